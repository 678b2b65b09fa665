"""The browser of a measurement; a shell script is in its place."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
PROGRAM = """
import asyncio, sys
from pathlib import Path
from client.e2e.chromium import chromium
asyncio.run(chromium(Path(sys.argv[1])).__aenter__())
"""


def test_a_killed_measurement_leaves_no_browser(tmp_path):
    """One that was left took a fifth of a core from all that were measured after it."""
    browser, here = tmp_path / "chromium", tmp_path / "pid"
    browser.write_text(f"#!/bin/sh\necho $$ > {here}.new; mv {here}.new {here}; exec sleep 60\n")
    browser.chmod(0o755)
    variables = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path / "profile")], env=variables) as measurement:
        _until(here.exists)
        pid = here.read_text().strip()
        measurement.kill()
    _until(lambda: not Path("/proc", pid).exists() or " Z " in Path("/proc", pid, "stat").read_text())


def _until(what):
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)
