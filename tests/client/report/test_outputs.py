"""What is left of a conversation: the report's numbers, the timeline, the film."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from client.media.loudness import active, level_db, unit_levels
from client.media.sound import scratch
from client.media.source import UserSource
from client.report import figures as report
from client.report import film as media_out
from client.report import timeline
from client.report.captions import Turn, printable, turns
from client.stream.errors import DuplexError, MediaError
from client.stream.units import UnitResponse, UnitShape
from client.talk.conversation import Conversation, Recording, UnitRecord

pytestmark = pytest.mark.unit

SHAPE = UnitShape(samples=2560, height=64, width=64)


def make_talk(folder: Path, count: int = 12, shape: UnitShape = SHAPE, **late: float) -> Conversation:
    """A conversation of `count` units answered after 60 ms; `late`: u3=400.0 answers unit 3 after 400 ms, -1 never."""
    pcm = np.zeros(count * shape.samples, np.float32)
    pcm[: pcm.size // 2] = 0.3 * np.sin(np.arange(pcm.size // 2) * 0.1)
    files = {"audio": "silence", "video": "grey"}
    source = UserSource(shape, count, pcm, None, {2: "grüß dich"}, files)
    talk = Conversation(
        source=source,
        recording=Recording(shape, folder),
        url="127.0.0.1:8001",
        model="duplex",
        session_id=5,
        options={"hold_open": True},
        server={"name": "triton", "version": "2.51.0"},
        parameters={},
        started="2026-01-01T00:00:00+00:00",
    )
    for index in range(count):
        due = (index + 1) * 160.0
        record = UnitRecord(index, due, due + 1.0, source.typed.get(index, ""))
        talk.units.append(record)
        wait = late.get(f"u{index}", 60.0)
        if wait < 0:
            continue
        record.received_ms = due + wait
        record.state, record.text = ("speak", "so ") if index % 6 > 2 else ("listen", "")
        record.info = {"ms": {"queue": 1, "perceive": 3, "think": 10, "perform": 30, "render": 5, "total": 50}}
        level = np.full(shape.frames, 10 * (index + 1), np.uint8)
        pcm = np.full(shape.samples, (index + 1) / 100, np.float32)
        talk.recording.add(UnitResponse(index, record.state, record.text, pcm, level, record.info, 0.0))
    return talk


# -- numbers -------------------------------------------------------------------------------------------------------
def test_percentiles_interpolate_and_need_values():
    values = list(range(101))
    found = report.percentiles(values[::-1])
    assert found == {"p50": 50.0, "p95": 95.0, "p99": 99.0, "mean": 50.0, "max": 100.0}
    assert report.percentiles([7.0]) == {"p50": 7.0, "p95": 7.0, "p99": 7.0, "mean": 7.0, "max": 7.0}
    assert report.percentiles([1.0, 2.0])["p50"] == 1.5  # pyright: ignore[reportOptionalSubscript]
    assert report.percentiles([]) is None


def test_on_time_means_before_the_next_unit_is_complete(tmp_path):
    talk = make_talk(tmp_path, 10, u3=160.0, u4=160.001, u5=-1)
    data = report.build(talk)
    assert data["on_time"]["share"] == 0.8
    assert data["on_time"]["late_units"] == [4, 5]
    assert data["units"] == {"sent": 10, "answered": 9, "planned": 10}


def test_the_report_has_every_stage_and_is_json(tmp_path):
    talk = make_talk(tmp_path, 12, u0=90.0)
    talk.units[3].info = {"ms": {"think": 20, "total": 55, "later": 1}, "degradation": ["steps"]}
    talk.units[8].heard, talk.units[10].heard = " two", " drei"  # before its answer, and on through it
    talk.errors.append(DuplexError("UNAVAILABLE", "gone"))
    data = report.build(talk, media={"licence": "CC0"})
    report.write(data, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == data
    assert {"response", "total", "queue", "perceive", "think", "perform", "render", "later"} == set(data["ms"])
    assert data["ms"]["think"]["p50"] == 10
    assert data["ms"]["think"]["max"] == 20
    assert data["first_response_ms"] == 89.0
    assert data["send_lateness_ms"]["p99"] == 1.0
    assert data["degraded_units"] == [{"unit": 3, "what": ["steps"]}]
    assert data["errors"] == [{"code": "UNAVAILABLE", "message": "gone", "fatal": True}]
    assert data["agent_states"] == {"listen": 6, "speak": 6}
    assert data["dialogue"] == [
        {"seconds": 0.32, "who": "user", "text": "grüß dich"},
        {"seconds": 0.48, "who": "agent", "text": "so so so"},
        {"seconds": 1.28, "who": "user", "text": "two drei"},
        {"seconds": 1.44, "who": "agent", "text": "so so so"},
    ]
    assert data["config"]["input"] == {"audio": "silence", "video": "grey", "licence": "CC0"}
    assert data["versions"]["server"] == "triton 2.51.0"


@pytest.mark.parametrize(
    ("said", "parameters", "expected"),
    [
        (None, {}, "not stated by the server"),
        (None, {"weights": "random, seed 0"}, "random, seed 0"),
        ("mine", {"weights": "theirs"}, "mine"),
    ],
)
def test_the_report_says_what_the_weights_are(tmp_path, said, parameters, expected):
    talk = make_talk(tmp_path, 2)
    talk.parameters.update(parameters)
    assert report.build(talk, weights=said)["weights"] == expected


def test_nothing_sent_and_nothing_answered_are_reports_too(tmp_path):
    talk = make_talk(tmp_path, 0)
    data = report.build(talk)
    assert (data["on_time"]["share"], data["first_response_ms"], data["ms"]["response"]) == (0.0, None, None)
    data = report.build(make_talk(tmp_path, 2, u0=-1, u1=-1))
    assert (data["on_time"]["share"], data["units"]["answered"]) == (0.0, 0)


# -- text and energy -----------------------------------------------------------------------------------------------
def test_text_is_gathered_into_turns():
    def unit(index, text, state="speak", answered=True):
        return UnitRecord(index, 0, 0, received_ms=1.0 if answered else None, state=state, text=text)

    units = [unit(0, "a"), unit(1, ""), unit(2, "b"), unit(9, "c"), unit(10, "d", "listen"), unit(11, "e", "x", False)]
    assert turns(units) == [Turn(0, 2, "ab"), Turn(9, 9, "c"), Turn(10, 10, "d")]


def test_what_cannot_be_drawn_becomes_a_dot():
    assert printable("a\x00b\ufffd\x01\ufffdc\nd é Ж 漢字") == "a·b·c d é Ж ·"


def test_levels_and_activity():
    pcm = np.concatenate([np.zeros(160), 0.5 * np.ones(160), 0.004 * np.ones(160), np.ones(80)]).astype(np.float32)
    np.testing.assert_allclose(level_db(pcm, 160), [-80, -6.02, -47.96, -3.01], atol=0.01)
    units = unit_levels(pcm[:480].reshape(3, 160), 160)
    assert units.shape == (3, 4)
    np.testing.assert_array_equal(active(units), [False, True, False])
    assert active(unit_levels([], 160)).size == 0
    assert not active(unit_levels(np.full((2, 160), 1e-4, np.float32), 160)).any()


# -- pictures ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("late", [{}, {"u2": 900.0, "u3": 400.0, "u5": -1}, {f"u{i}": -1 for i in range(12)}])
def test_the_timeline_is_drawn_whatever_happened(tmp_path, late):
    talk = make_talk(tmp_path, 12, **late)
    talk.errors.append(DuplexError("ABORTED", "x" * 300))
    timeline.draw(talk, tmp_path / "t.png", weights="random")
    picture = Image.open(tmp_path / "t.png")
    assert picture.width >= 1000
    assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_a_timeline_of_nothing_and_a_long_one(tmp_path):
    timeline.draw(make_talk(tmp_path, 0), tmp_path / "t.png", weights="random")
    timeline.draw(make_talk(tmp_path, 600), tmp_path / "l.png", weights="random")
    assert Image.open(tmp_path / "l.png").width == 30 * 110


def test_what_the_weights_are_ends_within_the_picture(tmp_path):
    timeline.draw(make_talk(tmp_path), tmp_path / "t.png", weights="trained on conversations and people " * 9)
    with Image.open(tmp_path / "t.png") as picture:
        assert np.asarray(picture.convert("L"))[:, -20:].min() == 255, "the edge is blank"


def test_a_late_mark_begins_early_enough_to_be_read():
    axes = Figure(figsize=(12, 7)).add_subplot()
    axes.set_xlim(0, 10)
    lines = timeline._Lines(axes, 2, 12.0)
    for at in (1.0, 9.9, 9.9):
        lines.write(at, "answers after 211 ms", "black")
    places = [text.get_position() for text in axes.texts]
    assert places[0][0] == 1.0
    assert places[1][0] == places[2][0] < 8.8
    assert places[1][1] != places[2][1], "one below the other"
    lines.write(9.9, "answers after 212 ms", "black")
    assert axes.texts[3].get_position()[0] == 9.9, "not over what is there"


# -- film ----------------------------------------------------------------------------------------------------------
def _decode(path: Path) -> tuple[list[np.ndarray], np.ndarray]:
    with av.open(str(path)) as file:
        assert [(s.type, s.codec_context.name) for s in file.streams] == [("video", "h264"), ("audio", "aac")]
        assert file.streams.video[0].average_rate == 25
        pictures = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
    with av.open(str(path)) as file:
        sound = np.concatenate([f.to_ndarray() for f in file.decode(audio=0)], axis=1)
    return pictures, sound


def test_the_film_shows_both_and_keeps_the_voices_apart(tmp_path):
    talk = make_talk(tmp_path, 14)
    seen: list[tuple[int, int]] = []
    media_out.write_conversation(talk, tmp_path / "c.mp4", lambda done, total: seen.append((done, total)))
    pictures, sound = _decode(tmp_path / "c.mp4")
    assert seen[-1] == (16, 16)
    assert len(pictures) == 16 * 4
    height, width = pictures[0].shape[:2]
    assert (height % 2, width % 2) == (0, 0)
    assert width > 2 * height * 0.6
    # Unit k of the agent is on the right from unit k + 2 on; the user's grey is on the left all the time.
    for unit in (2, 9, 15):
        picture = pictures[unit * 4 + 2]
        assert abs(int(np.median(picture[200:400, width // 2 + 200 : width - 200])) - 10 * (unit - 1)) <= 3
        assert abs(int(np.median(picture[200:400, 200:400])) - 128) <= 3
    rate = 48_000
    first = slice(0, int(0.3 * rate))
    later = slice(int(1.7 * rate), int(2.4 * rate))
    assert np.abs(sound[0, first]).max() > 0.1  # the user speaks in the first half
    assert np.abs(sound[1, first]).max() < 0.01
    assert np.abs(sound[0, later]).max() < 0.05
    assert np.abs(sound[1, later]).max() > 0.05


@pytest.mark.parametrize(("height", "width"), [(192, 336), (368, 640), (96, 32)])
def test_the_film_has_even_sides_for_every_model(tmp_path, height, width):
    talk = make_talk(tmp_path, 2, UnitShape(samples=3840, height=height, width=width))
    media_out.write_conversation(talk, tmp_path / "c.mp4")
    pictures, _ = _decode(tmp_path / "c.mp4")
    assert pictures[0].shape[0] % 2 == 0
    assert pictures[0].shape[1] % 2 == 0


@pytest.mark.parametrize(("wait", "delay"), [(60.0, 2), (160.0, 2), (170.0, 3), (500.0, 5), (1e6, 25)])
def test_a_slow_server_is_shown_later_and_not_cut_to_pieces(tmp_path, wait, delay):
    talk = make_talk(tmp_path, 5, **{f"u{i}": wait for i in range(5)})
    assert media_out.playout_delay(talk) == delay


def test_a_single_late_unit_is_silent_and_holds_the_picture(tmp_path):
    talk = make_talk(tmp_path, 200, u3=500.0, u5=-1)
    assert media_out.playout_delay(talk) == 2
    units = [sound[1] for _, (_, sound) in zip(range(9), media_out._Film(talk, "").units(), strict=False)]
    assert not np.any(units[:2])
    np.testing.assert_allclose(units[4], 0.03, atol=1e-6)
    assert not units[5].any()
    assert not units[7].any()


def test_an_hour_needs_no_more_memory_than_a_minute(tmp_path):
    """Ten minutes at 24 kHz: the voices alone are 115 MB, and would be read into memory twice."""
    talk = make_talk(tmp_path, 3750, UnitShape(samples=3840, height=8, width=8))
    talk.source = replace(talk.source, pcm=scratch(talk.source.pcm.size))
    tracemalloc.start()
    try:
        timeline.draw(talk, tmp_path / "t.png", weights="random")
        next(media_out._Film(talk, "").units())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40e6


def test_no_film_of_nothing_and_none_where_it_cannot_be_written(tmp_path):
    with pytest.raises(MediaError, match="no unit was sent"):
        media_out.write_conversation(make_talk(tmp_path, 0), tmp_path / "c.mp4")
    with pytest.raises(MediaError, match="cannot be written"):
        media_out.write_conversation(make_talk(tmp_path, 1), tmp_path / "missing" / "c.mp4")


def test_the_recording_returns_what_came_in_whatever_order(tmp_path):
    with Recording(SHAPE, tmp_path) as recording:
        for index in (1, 0, 3):
            pcm = np.full(SHAPE.samples, index, np.float32)
            recording.add(UnitResponse(index, "", "", pcm, np.full(SHAPE.frames, index, np.uint8)))
        assert recording.get(2) is None
        pcm, frames = recording.get(3) or (None, None)
        assert pcm is not None
        assert frames is not None
        assert (pcm == 3).all()
        assert (frames == 3).all()
