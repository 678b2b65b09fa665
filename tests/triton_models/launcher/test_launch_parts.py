"""The launcher's parts that need no server: templates, parameters, records, arguments, processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from engine_builder.config import ModelConfig
from engine_builder.manifest import Defaults, Manifest
from triton_models import launch
from triton_models.launcher import server_process
from triton_models.launcher.repository import TEMPLATES, fill, fill_repository, parameters
from triton_models.service import settings
from triton_models.service.settings import DuplexSettings, RunSettings, StageSettings
from triton_models.service.status import Heartbeat, Notice, prepare, read_notice, read_status, write_notice

pytestmark = pytest.mark.unit

STAGE = StageSettings(
    engines="/engines",
    role="both",
    link="wst-kv",
    pages=64,
    page_tokens=16,
    max_sessions=4,
    threads=1,
    degrade=False,
    orphan_seconds=100.0,
)
DUPLEX = DuplexSettings(
    engines="/engines",
    max_sessions=4,
    max_in_flight=2,
    idle_ms=30_000,
    grace_ms=20_000,
    poll_ms=500,
    pages=100,
    page_tokens=16,
    threads=1,
    state_memory=10**9,
    sessions=0,
    degrade=True,
)
RUN = RunSettings(status="/status", duplex=DUPLEX, stages={"stage": STAGE})


def manifest() -> Manifest:
    return Manifest(
        model=ModelConfig(),
        target="onnxruntime",
        precision="float32",
        compute_capability=None,
        weights='random, "seed 0"',
        libraries={},
        limits={"max_batch": 8, "pool_pages": 64, "page_tokens": 16},
        state={"perceive": 1936, "render": 12608},
        engines={},
        tokenizer={},
        rebuild="",
    )


def test_the_repository_has_the_shapes_of_the_model(tmp_path: Path) -> None:
    target = tmp_path / "repository"
    (target / "stale").mkdir(parents=True)
    fill_repository(target, manifest(), RUN)
    assert sorted(path.name for path in target.iterdir()) == ["duplex", "stage"]
    text = (target / "duplex" / "config.pbtxt").read_text()
    assert text.count('name: "pcm" data_type: TYPE_FP32 dims: [ 2560 ]') == 2
    assert text.count('name: "frames" data_type: TYPE_UINT8 dims: [ 4, 64, 64, 3 ]') == 2
    assert "sequence" not in text, "nobody can fill Triton's table of them (H35)"
    assert r'key: "weights" value: { string_value: "random, \"seed 0\"" }' in text
    assert 'key: "max_in_flight" value: { string_value: "2" }' in text, "clients read it"
    assert 'key: "codecs" value: { string_value: "mdct, patch" }' in text
    assert 'key: "session_state_mb" value: { string_value: "0.06" }' in text
    for model in target.iterdir():
        config = (model / "config.pbtxt").read_text()
        assert f'name: "{model.name}"' in config
        assert "$" not in config
        for secret in (RUN.secret, "/engines", "/status", "wst-kv"):  # any client may ask Triton for this (H1)
            assert secret not in config
        assert (model / "1" / "model.py").read_text() == (TEMPLATES / model.name / "1" / "model.py").read_text()


def test_clients_read_what_the_checkpoint_was_trained_on(tmp_path: Path) -> None:
    defaults: Defaults = {"prompts": ["english", "german"], "text_bytes": 16, "delegation": "<ask>"}
    fill_repository(tmp_path, replace(manifest(), defaults=defaults), RUN)
    text = (tmp_path / "duplex" / "config.pbtxt").read_text()
    assert 'key: "text_bytes" value: { string_value: "16" }' in text
    assert 'key: "delegation" value: { string_value: "<ask>" }' in text
    assert r'key: "prompts" value: { string_value: "[\"english\", \"german\"]" }' in text


def test_two_devices_are_two_stages_of_one_template(tmp_path: Path) -> None:
    stages = {role: structs.replace(STAGE, role=role) for role in ("thinker", "performer")}
    fill_repository(tmp_path / "repository", manifest(), structs.replace(RUN, stages=stages))
    assert sorted(path.name for path in (tmp_path / "repository").iterdir()) == ["duplex", "performer", "thinker"]


def test_model_files_are_thin() -> None:
    for path in TEMPLATES.glob("*/1/model.py"):
        assert len(path.read_text().splitlines()) < 50


def test_a_forgotten_variable_is_named() -> None:
    with pytest.raises(KeyError, match="height"):
        fill("dims: [ ${height} ]", {"width": 3})


def test_parameters_that_would_break_out_are_quoted_or_refused() -> None:
    assert parameters({"a": 'x" } evil { "\n\\'}) == (
        r'parameters { key: "a" value: { string_value: "x\" } evil { \"\n\\" } }'
    )
    with pytest.raises(ValueError, match="expected printable text"):
        parameters({"a": "\x00"})


def test_settings_are_read_by_their_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(settings.ENVIRONMENT, raising=False)
    with pytest.raises(ValueError, match="start the server with triton_models"):
        settings.load()
    for _ in range(2):  # a restart replaces them
        path = settings.save(RUN, tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv(settings.ENVIRONMENT, str(path))
    assert settings.load() == RUN
    assert len(RUN.key) == 32
    assert RUN.key != RunSettings(status="/status", duplex=DUPLEX, stages={}).key, "a secret for each run"


def test_a_heartbeat_can_be_read_and_stops(tmp_path: Path) -> None:
    count = iter(range(1000))
    heartbeat = Heartbeat(tmp_path, {"thinker": lambda: {"turn": next(count)}})
    assert read_status(tmp_path, "thinker") is None
    heartbeat.start()
    first = read_status(tmp_path, "thinker")
    assert first is not None
    assert first["pid"] == os.getpid()
    assert abs(time.monotonic() - first["beat"]) < 5
    end = time.monotonic() + 10
    while (read_status(tmp_path, "thinker") or first)["turn"] < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    heartbeat.stop()
    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_that_fails_stops_the_beat(tmp_path: Path) -> None:
    state = {"fail": False}

    def snapshot() -> dict[str, int]:
        if state["fail"]:
            raise RuntimeError("lost a page")
        return {}

    heartbeat = Heartbeat(tmp_path, {"thinker": snapshot})
    heartbeat.start()
    state["fail"] = True
    heartbeat._thread.join(10)
    assert not heartbeat._thread.is_alive()


def test_notices_pass(tmp_path: Path) -> None:
    records = tmp_path / "records"
    prepare(records)
    assert records.stat().st_mode & 0o777 == 0o700
    assert read_notice(records) is None
    write_notice(records, Notice("abandon", "the thinker has died"))
    assert read_notice(records) == Notice("abandon", "the thinker has died")
    with pytest.raises(FileExistsError):
        prepare(records)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--name", "../x"], "--name: expected letters"),
        (["--pages", "0"], "--pages: expected a whole number from 1 to 1000000000, got '0'"),
        (["--home", "s1 or s2"], "expected a name or an address"),
        ([], "no such file; expected an engine directory"),
    ],
)
def test_bad_arguments(arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    try:
        code = launch.main(["--engines", str(tmp_path / "none"), "--runs", str(tmp_path / "runs"), *arguments])
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    assert expected in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        launch.main(["--help"])
    text = capsys.readouterr().out
    for part in ("--engines", "127.0.0.1 unless", "exit code 0", "server.json", "--awake", "about 1 s"):
        assert part in text


def test_zombies_do_not_live() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    end = time.monotonic() + 10
    while server_process.process_lives(child.pid):  # not waited for: it becomes a zombie
        assert time.monotonic() < end
        time.sleep(0.01)
    assert Path(f"/proc/{child.pid}").exists()
    child.wait()
    assert not server_process.process_lives(child.pid)


def test_errors_of_a_log_are_found(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    plan = server_process.ServerPlan(tmp_path, tmp_path, log, 1, 2, "p")
    server = server_process.ServerProcess(plan)
    assert server.errors() == "no log was written"
    log.write_text(
        'I1122 fine\nE1122 16:12:46 1 server.cc:241] "CudaDriverHelper has not been initialized."\n'
        "E1122 17:06:22 1 m.cc:642] \"failed to load 'duplex': no\\n\\nAt: x\"\nerror: creating server\n"
    )
    assert re.fullmatch(r"E1122 .* \"failed to load 'duplex': no\n\nAt: x\"\nerror: creating server", server.errors())


def test_stale_shared_memory_is_removed_by_prefix() -> None:
    prefix = f"wst-test-{os.getpid()}-"
    names = [f"{prefix}{i}" for i in range(2)]
    other = server_process.SHM / f"wst-other-{os.getpid()}"
    for path in [other, *(server_process.SHM / name for name in names)]:
        path.write_bytes(b"x")
    try:
        assert server_process.clean_shared_memory(prefix) == names
        assert other.exists()
        assert server_process.clean_shared_memory(prefix) == []
    finally:
        other.unlink()
