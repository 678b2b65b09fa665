"""Whatever a command is given, it says in one line what was wrong: no traceback, exit code 1 (2: argparse)."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine_builder.__main__ import main

pytestmark = pytest.mark.unit
# FILE: a file of words.  EMPTY: an empty folder.  OURS: a folder that holds a file already.
COMMANDS = (
    "init FILE", "init FILE/x", "init /proc/nothing", "init NUL", "init EMPTY --seed 99999999999999999999",
    "init EMPTY --seed x", "init EMPTY --preset huge", "init LONG",
    "import-qwen3 ABSENT EMPTY", "import-qwen3 FILE EMPTY", "import-qwen3 EMPTY EMPTY", "import-qwen3 NUL EMPTY",
    "import-codec EMPTY", "import-codec EMPTY --audio FILE", "import-codec NUL --video ABSENT",
    "build ABSENT out", "build FILE out", "build EMPTY out", "build EMPTY OURS", "build EMPTY out --target vulkan",
    "build EMPTY out --max-batch 0", "build EMPTY out --max-batch nan", "build EMPTY out --page-tokens -1",
    "build EMPTY out --max-pages 0", "build EMPTY out --pool-pages 99999999999999999999", "build NUL out",
    "build EMPTY out --precision float64",
    "keygen FILE", "keygen ABSENT/key", "keygen NUL", "sign ABSENT --key FILE", "sign EMPTY --key ABSENT", "sign EMPTY",
    "verify ABSENT", "verify FILE", "verify EMPTY", "verify NUL", "verify LONG", "verify EMPTY --trusted-key FILE", "",
)  # fmt: skip


@pytest.mark.parametrize("line", COMMANDS)
def test_no_command_ends_in_a_traceback(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("words")
    for name in ("EMPTY", "OURS"):
        (tmp_path / name).mkdir()
    (tmp_path / "OURS" / "mine").write_text("mine")
    words = [{"NUL": "a\0b", "LONG": "x" * 300}.get(word, word) for word in line.split()]
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    assert code in (1, 2)
    said = capsys.readouterr().err
    assert "error: " in said
    assert code == 2 or len(said.strip().splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != ".venv") == ["EMPTY", "FILE", "OURS"]
