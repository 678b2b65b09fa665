"""A LiveKit agent whose model is a served one: GPTLiveModel, or RealtimeModel; its face is a video track.

    pip install livekit-agents livekit-plugins-openai pillow      # and `make web` in another terminal
    LIVEKIT_URL=... LIVEKIT_API_KEY=... LIVEKIT_API_SECRET=... python examples/livekit_agent.py dev
    python examples/livekit_agent.py user.wav --api realtime      # without a room: a WAV file is the microphone

The ten lines that matter are `model` below. Only the way without a room has been run: no LiveKit server was at hand.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import os
import sys
import time
import wave
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from livekit import rtc
from livekit.agents import Agent, AgentSession, ChatContext, JobContext, WorkerOptions, cli, function_tool
from livekit.agents.voice.io import AudioInput, AudioOutput, AudioOutputCapabilities
from livekit.agents.voice.room_io import RoomOptions
from livekit.plugins.openai.realtime import GPTLiveModel, RealtimeModel
from PIL import Image

INSTRUCTIONS = "You are a friendly number tutor. Answer in English, and be brief."
URL, KEY = os.environ.get("WAN_URL", "http://127.0.0.1:8080/v1"), os.environ.get("WAN_KEY", "-")
RATE, CHUNK_SECONDS, TAIL_SECONDS, FPS, SIZE = 24_000, 0.02, 3.0, 25, 64


def model(api: str, http: aiohttp.ClientSession | None = None, seconds: float = 1200.0) -> Any:
    """seconds: after which the plugin connects anew and takes its history along."""
    kind = GPTLiveModel if api == "live" else RealtimeModel
    return kind(base_url=URL, api_key=KEY, http_session=http, max_session_duration=seconds)


@function_tool
async def get_weather() -> str:
    """The weather."""
    return "sunny"


class Voice(AudioOutput):
    """What the agent says, frame by frame, to `play`."""

    def __init__(self, play: Callable[[rtc.AudioFrame], Awaitable[None]]) -> None:
        super().__init__(label="voice", capabilities=AudioOutputCapabilities(pause=False), sample_rate=RATE)
        self._play, self._begin, self._seconds = play, 0.0, 0.0

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if not self._seconds:
            self._begin = time.time()
            self.on_playback_started(created_at=self._begin)
        self._seconds += frame.duration
        await self._play(frame)

    def flush(self) -> None:
        super().flush()
        left = self._begin + self._seconds - time.time()
        asyncio.get_running_loop().call_later(max(0.0, left), self._finish, self._seconds, False)
        self._seconds = 0.0

    def clear_buffer(self) -> None:
        if self._seconds:
            self._finish(min(self._seconds, time.time() - self._begin), True)
            self._seconds = 0.0

    def _finish(self, position: float, interrupted: bool) -> None:
        self.on_playback_finished(playback_position=position, interrupted=interrupted)


async def entrypoint(ctx: JobContext) -> None:
    """The agent's voice and face as two tracks of a room, kept together by AVSynchronizer."""
    await ctx.connect()
    sound, picture = rtc.AudioSource(RATE, 1), rtc.VideoSource(SIZE, SIZE)
    sync = rtc.AVSynchronizer(audio_source=sound, video_source=picture, video_fps=FPS)
    await ctx.room.local_participant.publish_track(rtc.LocalAudioTrack.create_audio_track("voice", sound))
    await ctx.room.local_participant.publish_track(rtc.LocalVideoTrack.create_video_track("face", picture))
    session: AgentSession = AgentSession(llm=model("live"))
    session.output.audio = Voice(sync.push)
    agent = Agent(instructions=INSTRUCTIONS, tools=[get_weather])
    await session.start(agent, room=ctx.room, room_options=RoomOptions(audio_output=False))
    await show_face(agent.duplex_session, sync.push)


async def show_face(events: Any, push: Callable[[rtc.VideoFrame], Awaitable[None]]) -> None:
    """Asks for pictures, and plays the four of each unit, which come as one JPEG, one below the other."""
    strips: asyncio.Queue[str] = asyncio.Queue(8)
    events.on(
        "openai_server_event_received",
        lambda event: strips.put_nowait(event["delta"]) if event.get("type") == "wan.video.delta" else None,
    )
    events.send_event({"type": "session.update", "session": {"wan": {"video": {"output": "jpeg"}}}})
    while True:
        strip = Image.open(io.BytesIO(base64.b64decode(await strips.get()))).convert("RGB")
        side = strip.width
        for top in range(0, strip.height, side):
            rgb = strip.crop((0, top, side, top + side)).tobytes()
            await push(rtc.VideoFrame(side, side, rtc.VideoBufferType.RGB24, rgb))


class Microphone(AudioInput):
    """A WAV file in real time, and silence after it."""

    def __init__(self, path: str) -> None:
        super().__init__(label="microphone")
        with wave.open(path) as sound:
            assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, RATE), "16-bit, 24 kHz"
            self._pcm = sound.readframes(sound.getnframes())
        self.seconds, self._place, self._begin = len(self._pcm) / 2 / RATE + TAIL_SECONDS, 0, time.monotonic()

    async def __anext__(self) -> rtc.AudioFrame:
        samples = round(CHUNK_SECONDS * RATE)
        data = self._pcm[2 * self._place : 2 * (self._place + samples)].ljust(2 * samples, b"\0")
        self._place += samples
        await asyncio.sleep(self._begin + self._place / RATE - time.monotonic())
        return rtc.AudioFrame(data, RATE, 1, samples)


async def without_a_room(args: argparse.Namespace) -> None:
    voice = bytearray()

    async def play(frame: rtc.AudioFrame) -> None:
        voice.extend(frame.data.cast("b").tobytes())

    async with aiohttp.ClientSession() as http:
        session: AgentSession = AgentSession(llm=model(args.api, http, args.reconnect))
        session.on("error", lambda event: print("error:", event.error, flush=True))
        microphone = Microphone(args.audio)
        session.input.audio, session.output.audio = microphone, Voice(play)
        before = ChatContext()
        for text in args.context:
            before.add_message(role="user", content=text)
        await session.start(Agent(instructions=INSTRUCTIONS, tools=[get_weather], chat_ctx=before), record=False)
        await asyncio.sleep(microphone.seconds)
        await session.aclose()
        for item in session.history.items:
            if item.type == "message" and item.role in ("user", "assistant"):
                print(f"{'agent' if item.role == 'assistant' else 'user'}: {item.text_content}", flush=True)
    print(f"heard {len(voice) / 2 / RATE:.1f} s", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].endswith(".wav"):
        parser = argparse.ArgumentParser()
        parser.add_argument("audio")
        parser.add_argument("--api", choices=("live", "realtime"), default="live")
        parser.add_argument("--context", action="append", default=[], metavar="TEXT", help="said by the user before")
        parser.add_argument("--reconnect", type=float, default=1200.0, metavar="SECONDS")
        asyncio.run(without_a_room(parser.parse_args()))
    else:
        cli.run_app(WorkerOptions(entrypoint_fnc=entrypoint))
