"""Whatever the options of any command are given: a status that is not 0, a sentence that says why, no traceback."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.unit

# Every command, with what else it needs. DIR: an empty folder. ENGINES, CHECKPOINT: whole ones. Nothing of this serves.
COMMANDS = {
    "engine_builder.__main__": (
        "init DIR", "import-qwen3 DIR out", "import-codec CHECKPOINT", "codec-check CHECKPOINT out",
        "build DIR out", "keygen out", "sign DIR --key DIR", "verify ENGINES",
    ),
    "engine_builder.training.__main__": ("train --speech DIR", "rehearse DIR"),
    "engine_builder.training.demo_user": ("--out /proc/nothing",),
    "client.cli": ("converse --text x --out o --url 127.0.0.1:1 --timeout 0", "info --url HOST", "loadtest --url HOST"),
    "client.demo": ("--engines DIR",),
    "client.web.cli": ("--url HOST",),
    "client.perf.__main__": ("--engines DIR",),
    "client.fleet.__main__": ("--engines DIR",),
    "client.e2e.__main__": ("--engines DIR",),
    "triton_models.launch": ("--engines ENGINES",),
    "triton_models.measure": ("--engines ENGINES",),
    "triton_models.plan": ("--preset none",),
    "triton_models.healthcheck": ("http://127.0.0.1:1/",),
}  # fmt: skip
LINES = [(module, line) for module, lines in COMMANDS.items() for line in lines]
NO_NUMBERS = ("", "nan", "inf", "-inf", "-1", "9" * 25, "1e400", "zwölf", "½", "0x10", "[]", "\udce9")


class _Found(Exception):
    pass


def options(module: str, command: str) -> Iterator[argparse.Action]:
    """Of the command, what takes a value."""

    def keep(parser: argparse.ArgumentParser, *_: object) -> None:
        raise _Found(parser)

    program = importlib.import_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", keep)
        with pytest.raises(_Found) as found:
            program.main()
    parser: argparse.ArgumentParser = found.value.args[0]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parser = action.choices[command]
    return (action for action in parser._actions if action.nargs != 0)


def is_number(action: argparse.Action) -> bool:
    return callable(action.type) and action.type is not Path and _is(action.type, "1")


def _is(kind: Callable[[str], Any], text: str) -> bool:
    try:
        return isinstance(kind(text), int | float | tuple | list)
    except (ValueError, argparse.ArgumentTypeError):
        return False


def status(module: str, words: list[str]) -> int | str | None:
    try:
        return importlib.import_module(module).main(words)
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize(("module", "line"), LINES)
def test_a_number_that_is_none_is_refused_by_the_name_of_its_option(
    module: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for action in options(module, line.split(" ")[0]):
        for bad in NO_NUMBERS if is_number(action) and action.dest != "session" else ():
            name = action.option_strings[0]
            code, said = status(module, [*line.split(), f"{name}={bad}"]), capsys.readouterr().err
            assert (code, f"argument {name}: " in said) == (2, True), f"{name} {bad!r}: {code}, {said}"


# Places that are free, and an old file of traces: nothing is wrong with them, and --engines and all else are whole.
FINE = {
    *(("init", "directory", kind) for kind in ("missing", "folder")),
    *(("launch", "--runs", kind) for kind in ("missing", "folder")),
    *(("launch", "--trace", kind) for kind in ("missing", "empty")),
}


def bad_paths(folder: Path) -> dict[str, Path]:
    folder.mkdir()
    (folder / "empty").touch()
    (folder / "junk").write_bytes(bytes(range(256)) * 8)
    (folder / "folder/ü").mkdir(parents=True)
    return {
        "missing": folder / "no/such thing",
        "folder": folder / "folder",
        "empty": folder / "empty",
        "junk": folder / "junk",
        "below a file": folder / "junk/x",
        "where nobody writes": Path("/proc/nothing"),
        "long": folder / ("x" * 300),
    }


def with_option(words: list[str], action: argparse.Action, place: int, value: str) -> list[str]:
    """The command with one value in place of another."""
    if not action.option_strings:
        return [*words[:place], value, *words[place + 1 :]]
    name = action.option_strings[0]
    if name in words:
        at = words.index(name) + 1
        return [*words[:at], value, *words[at + 1 :]]
    return [*words, f"{name}={value}"]


@pytest.mark.engine
@pytest.mark.parametrize(("module", "line"), LINES)
def test_a_path_that_is_none_is_one_sentence(
    module: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    mini_engines: Path, mini_checkpoint: Path,
) -> None:  # fmt: skip
    def no_server(*_: object, **__: object) -> None:
        raise OSError("no server is started here")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # this process goes on
    monkeypatch.setattr("client.own_server.subprocess.Popen", no_server)
    monkeypatch.setattr("triton_models.launch._serve", no_server if "--engines ENGINES" not in line else lambda *_: 0)
    (tmp_path / "DIR").mkdir()
    whole = {"ENGINES": str(mini_engines), "CHECKPOINT": str(mini_checkpoint)}
    words = [whole.get(word, word) for word in line.split()]
    place = int(words[:1] != [] and not words[0].startswith("-") and "health" not in module)
    for action in options(module, line.split(" ")[0]):
        name = (action.option_strings or [action.dest])[0]
        for kind, bad in bad_paths(tmp_path / name).items() if action.type is Path else ():
            code, said = status(module, with_option(words, action, place, str(bad))), capsys.readouterr()
            fine = ((place and words[0]) or module.rpartition(".")[2], name, kind) in FINE
            assert (code in (1, 2)) is not fine, f"{name} {kind}: {code}, {said}"
            assert fine or said.err.strip(), f"{name} {kind}: {code}, without a word"
        place += not action.option_strings


@pytest.mark.parametrize(
    "url", ["", "http://", "http://HOST:x/", "ftp:", "http://[::1/", "\udce9", "http://" + "x" * 300]
)
def test_an_address_that_is_none_is_unhealthy(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("triton_models.healthcheck", [url]) == 1
    assert capsys.readouterr().out.strip()
