"""Nothing of a fleet outlives the program that started it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.unit
STARTS = """
import sys, time
from pathlib import Path
from client.fleet.machines import Program
program = Program()
program._begin(["/bin/sleep", "600"], Path(sys.argv[1]))
print(program._process.pid, flush=True)
time.sleep(600)
"""


def test_programs_end_with_a_runner_that_is_killed(tmp_path: Path) -> None:
    runner = subprocess.Popen([sys.executable, "-c", STARTS, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    assert runner.stdout is not None
    program = psutil.Process(int(runner.stdout.readline()))
    while program.name() != "sleep":
        time.sleep(0.01)
    runner.kill()
    runner.wait()
    program.wait(5)
