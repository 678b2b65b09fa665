"""What surrounds perf_analyzer: its input data, its files, the comparison. No server, no binary."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from client.loadtest.driver import Plan, Run
from client.loadtest.media import Media
from client.loadtest.user import UnitLog, UserLog
from client.perf import compare
from client.perf.analyzer import AnalyzerError, Measurement, Request, command, measure, read_export, write_input
from client.stream.units import UnitShape

pytestmark = pytest.mark.unit


def request(
    sequence: int, unit: int, latency: float | None = 0.05, answer: int | None = None, late: float = 0.0
) -> Request:
    sent = 100.0 + unit * 0.16 + late
    return Request(
        sequence, unit, sent, None if latency is None else sent + latency, unit if answer is None else answer
    )


def test_sequences_of_real_media_with_their_indices(tmp_path: Path) -> None:
    media = Media.read(UnitShape(2560, 16, 16))
    write_input(media, 2, 3, tmp_path / "units.json")
    streams = json.loads((tmp_path / "units.json").read_text())["data"]
    assert [[step["unit_index"] for step in steps] for steps in streams] == [[[0], [1], [2]]] * 2
    pcm = np.frombuffer(base64.b64decode(streams[1][2]["pcm"]["b64"]), np.float32)
    assert np.array_equal(pcm, media.unit(1, 2).pcm)
    frames = np.frombuffer(base64.b64decode(streams[1][2]["frames"]["b64"]), np.uint8)
    assert np.array_equal(frames.reshape(4, 16, 16, 3), media.unit(1, 2).frames)


def test_the_rate_is_one_unit_a_stream_and_period() -> None:
    line = " ".join(command(Path("pa"), "h:1", "duplex", 4, Path("d.json"), 240, Path("out/x")))
    assert "--request-rate-range 25 " in line
    assert "--num-of-sequences 4 --serial-sequences" in line
    assert "--request-count 240" in line


def test_an_export_is_read_without_its_tensors(tmp_path: Path) -> None:
    """The form of perf_analyzer 2.51: the empty final response repeats the outputs with garbage."""

    def spelled(sequence: int, unit: int, sent: int, answers: list[int]) -> str:
        outputs = [f'{{"unit_index":{unit},"pcm":[0.5,0.25]}}', '{"unit_index":139950838251664,"pcm":-1e31}']
        return (
            f'{{"timestamp":{sent},"sequence_id":{sequence},"request_inputs":{{"unit_index":{unit},"pcm":[0.0]}},'
            f'"response_timestamps":{json.dumps(answers, separators=(",", ":"))},'
            f'"response_outputs":[{",".join(outputs[: len(answers)])}]}}'
        )

    text = ",".join([spelled(2, 0, 2_000_000_000, [2_050_000_000, 2_051_000_000]), spelled(1, 7, 1_000_000_000, [])])
    (tmp_path / "e.json").write_text(f'{{"experiments":[{{"experiment":{{}},"requests":[{text}]}}]}}')
    first, second = read_export(tmp_path / "e.json")
    assert (first.sequence, first.unit, first.answered, first.answer_unit) == (1, 7, None, None)
    assert (second.sequence, second.unit, second.answer_unit) == (2, 0, 0)
    assert second.latency_ms == pytest.approx(50)


def test_an_export_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text('{"timestamp":1,"request_inputs":{}}')
    with pytest.raises(AnalyzerError, match="profile export: expected a request of a sequence"):
        read_export(tmp_path / "e.json")


def test_what_a_driven_sequence_looks_like() -> None:
    good = [request(1, 0), request(1, 1), request(2, 0), request(2, 1)]
    assert compare.faults(good, units=2) == []
    assert "expected units 0 to 1 in order, got [0, 1, 2]" in compare.faults([*good, request(1, 2)], units=2)[0]
    assert "got [1]" in compare.faults([request(3, 1)], units=2)[0]
    assert "no answer of their own" in compare.faults([request(1, 0, None)], units=2)[0]
    assert "no answer of their own" in compare.faults([request(1, 0, answer=5)], units=2)[0]


def test_rows_and_files(tmp_path: Path) -> None:
    measured = Measurement(1, [request(1, unit, late=0.1 * (unit == 2)) for unit in range(4)], delayed=0.25)
    user = UserLog(0, start=0.0, planned=4)
    for unit in range(4):
        due = (unit + 1) * 0.16
        sent = due + (0.2 if unit == 2 else 0.0)
        user.units.append(UnitLog(unit, due, sent, 0.0, sent, sent + 0.05))
    table = compare.rows(measured, Run(Plan("x", 1, 0.64, warm_up=0), "", [user], {}, {}, {}))
    assert [(row["tool"], row["counted from"]) for row in table] == [
        ("perf_analyzer", "sending"),
        ("open loop", "sending"),
        ("open loop", "due time"),
    ]
    assert [row["within 160 ms"] for row in table] == [1.0, 1.0, 0.75]
    assert [row["late"] for row in table] == [0.25, None, None]
    page = compare.write(table, tmp_path)
    assert "| 1 | open loop | due time |" in page
    assert "coordinated omission" in page
    assert (tmp_path / "comparison.csv").read_text().count("\n") == 4
    json.dumps(table)


def test_without_the_binary_it_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(AnalyzerError, match="`make perf` installs it"):
        measure("h:1", 1, tmp_path / "d.json", 1, tmp_path / "x", binary=tmp_path / "none")
