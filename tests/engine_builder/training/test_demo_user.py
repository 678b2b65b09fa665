"""The scripted user of the demo: what is written is what the script says, with eSpeak NG in either form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from engine_builder.training import demo_user
from engine_builder.training.world.camera import CARD_RGB
from engine_builder.training.world.speech import espeak
from engine_builder.training.world.speech.voices import SAMPLE_RATE
from engine_builder.training.world.words import COLOURS, DIGITS

pytestmark = pytest.mark.unit
speaks = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    demo_user.write(demo_user.tutorial(), out)
    return out


@speaks
def test_the_script_has_every_kind_of_event_in_order(folder: Path) -> None:
    script = json.loads((folder / "script.json").read_text())
    events = script["events"]
    assert {e["kind"] for e in events} == {"say", "type", "show", "murmur", "quiet"}
    assert [e["start"] for e in events] == sorted(e["start"] for e in events)
    assert events[-1]["stop"] < script["seconds"] < 40
    interruption = next(i for i, e in enumerate(events) if e["interrupts"])
    assert events[interruption - 1]["cut"]
    for event in events:
        if event["kind"] == "say" and len(event["words"]) == 4 and event["words"][1] == "comes":
            digits = DIGITS["en"]
            assert digits.index(event["words"][0]) == (digits.index(event["words"][3]) + 1) % 10


@speaks
def test_every_word_is_heard_where_the_script_says_and_silence_is_quiet(folder: Path) -> None:
    events = json.loads((folder / "script.json").read_text())["events"]
    with av.open(str(folder / "user.flac")) as file:
        pcm = np.concatenate([f.to_ndarray()[0] for f in file.decode(audio=0)]).astype(np.float32) / 32768

    def level(start: float, stop: float) -> float:
        part = pcm[round(start * SAMPLE_RATE) : round(stop * SAMPLE_RATE)]
        return float(np.sqrt((part**2).mean()))

    spoken = [level(e["start"], e["stop"]) for e in events if e["kind"] in ("say", "murmur")]
    silent = [level(e["start"], e["start"] + 1.5) for e in events if e["kind"] == "quiet"]
    assert min(spoken) > 10 * max(silent) > 0


@speaks
def test_cards_are_in_the_picture_while_they_are_shown(folder: Path) -> None:
    events = json.loads((folder / "script.json").read_text())["events"]
    with av.open(str(folder / "user.mp4")) as file:
        film = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)][:: demo_user.FPS // 5]
    for event in (e for e in events if e["kind"] == "show"):
        colour = CARD_RGB[event["card"]]
        assert event["words"] == [COLOURS["en"][event["card"]]]

        def share(seconds: float, wanted: np.ndarray = colour) -> float:
            picture = film[round(seconds * 5)].astype(float)
            return float((np.abs(picture - wanted).max(axis=2) < 45).mean())

        assert share((event["start"] + event["stop"]) / 2) > 0.06
        assert share(event["start"] - 0.4) < 0.01


def test_without_a_voice_there_is_no_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def silent(*_: object) -> None:
        raise espeak.SpeechToolMissing("espeak-ng: not found")

    (tmp_path / "script.json").write_text("{}")
    monkeypatch.setattr(espeak, "speak", silent)
    monkeypatch.setattr("sys.argv", ["demo_user", "--out", str(tmp_path)])
    assert demo_user.main() == 0
    assert "espeak-ng: not found" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_library_of_the_wheel_speaks_where_there_is_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("espeakng_loader")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    slow, fast = espeak.speak("seven", "en-gb+f3", 50, 130), espeak.speak("seven", "en-gb+f3", 50, 210)
    assert slow.dtype == np.int16
    assert 0.2 * espeak.RATE < fast.size < slow.size < 2 * espeak.RATE
    assert np.abs(slow).max() > 3000
    assert espeak.speak("[[m-hm-]]", "en-us+Mike", 50, 160).size > 0.1 * espeak.RATE
    with pytest.raises(RuntimeError, match="no voice 'xx-nothing'"):
        espeak.speak("seven", "xx-nothing", 50, 160)


@speaks
def test_command_and_library_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("espeakng_loader")
    command = espeak.speak("seven", "en-us+Andrea", 50, 160)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    library = espeak.speak("seven", "en-us+Andrea", 50, 160)
    assert abs(command.size - library.size) < 0.05 * espeak.RATE
