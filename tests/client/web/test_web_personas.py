"""Faces and voices by name: the page, Realtime and Live choose one, and the server gets its files as a persona."""

from __future__ import annotations

import asyncio
import base64
import json
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.stream import MediaError, UnitShape
from client.web.call.personas import Personas
from client.web.page import frames as page_frames

SHAPE = UnitShape(2560, 64, 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (90, 90), (0, 0, 250)).save(tmp_path / "ada.png")
    with wave.open(str(tmp_path / "ada.wav"), "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes((3000 * np.sin(np.arange(32_000) / 9)).astype("<i2").tobytes())
    (tmp_path / "ada.txt").write_text("You are Ada.\n")
    (tmp_path / "brief.txt").write_text("Be brief.")
    (tmp_path / "notes.pdf").write_bytes(b"not ours")
    return tmp_path


@pytest.mark.unit
def test_a_name_stands_for_its_files(folder: Path) -> None:
    personas = Personas(folder)
    assert personas.names == ("ada", "brief")
    assert personas.applied({"voice": "alloy", "seed": 1}, SHAPE) == {"seed": 1}, "what a framework says by default"
    assert personas.applied({"voice": "brief"}, SHAPE) == {"prompt": "Be brief."}
    assert personas.applied({"voice": "brief", "prompt": "mine"}, SHAPE) == {"prompt": "mine"}
    made = personas.applied({"voice": "ada", "seed": 1}, SHAPE)
    assert (made["seed"], made["persona"]["prompt"]) == (1, "You are Ada.")
    assert len(base64.b64decode(made["persona"]["picture"])) == 64 * 64 * 3
    assert len(base64.b64decode(made["persona"]["voice"])) == 2 * 13 * 2560 - 2 * (13 * 2560 - 32_000)
    assert personas.applied({"voice": "ada", "prompt": "mine"}, SHAPE)["persona"]["prompt"] == "mine"
    assert [personas.in_force(asked) for asked in ("ada", "alloy", "", None, 3)] == ["ada", *["model"] * 4]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("ada.png", b"no picture", MediaError, "ada.png: .* cannot be decoded"),
        ("ada.wav", b"no sound", MediaError, "ada.wav"),
        ("ada.txt", b"\xff\xfe", MediaError, "expected text in UTF-8"),
        ("ada.doc", b"", ValueError, "expected 1 to 100 of NAME.png, .wav or .txt"),
    ],
)
def test_a_folder_is_tried_when_the_gateway_starts(name, content, error, message, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        Personas(tmp_path)


@pytest.mark.timeout(30)
async def test_every_socket_chooses_by_name_and_says_what_is_in_force(folder: Path, start_fake, start_gate) -> None:
    fake, _ = await start_fake()
    gate = await start_gate(fake.url)
    gate.desk.personas = Personas(folder)

    async with gate.http.ws_connect(f"{gate.url}/v1/session", protocols=("wan.session.v1",)) as page:
        await page.send_json({"type": "hello", "options": {"voice": "ada"}})
        assert (await page.receive_json())["voice"] == {"in_force": "ada", "known": ["ada", "brief"]}
        await page.send_bytes(page_frames.pack(page_frames.PCM16, 0, b""))
        while not fake.seen:
            await asyncio.sleep(0.02)

    async with gate.http.ws_connect(f"{gate.url}/v1/realtime?model=duplex") as realtime:
        assert (await realtime.receive_json())["session"]["wan"]["voices"] == ["ada", "brief"]
        for voice, in_force in (("marin", "model"), ("ada", "ada")):
            session = {"type": "realtime", "audio": {"output": {"voice": voice}}}
            await realtime.send_json({"type": "session.update", "session": session})
            updated = await realtime.receive_json()
            assert updated["type"] == "session.updated"
            assert updated["session"]["audio"]["output"]["voice"] == in_force
        await realtime.send_json({"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(9600)).decode()})
        while len({unit.session for unit in fake.seen}) < 2:
            await asyncio.sleep(0.02)

    async with gate.http.ws_connect(f"{gate.url}/v1/live/sessions") as live:
        session = {"model": "duplex", "audio": {"output": {"voice": "ada"}}}
        await live.send_json({"type": "session.start", "session": session})
        started = json.loads((await live.receive()).data)
        assert started["session"]["audio"]["output"]["voice"] == "ada"
        while len({unit.session for unit in fake.seen}) < 3:
            await asyncio.sleep(0.02)

    starts = [unit.options for unit in fake.seen if unit.options]
    assert [sorted(start["persona"]) for start in starts] == [["picture", "prompt", "voice"]] * 3
