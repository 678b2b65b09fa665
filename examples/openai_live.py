"""Talks to a served model by the official OpenAI SDK: the Live API (full duplex, no turns), or the Realtime API.

    pip install 'openai[realtime]'                                # and `make web` in another terminal
    python examples/openai_live.py user.wav --save agent.wav
    python examples/openai_live.py user.wav --api realtime --type seven

The ten lines that matter are `connect` and what follows it; the rest plays a WAV file (16-bit mono) as a microphone.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import wave
from typing import Any

from openai import AsyncOpenAI

INSTRUCTIONS = "You are a friendly number tutor. Answer in English, and be brief."
WEATHER = {"type": "function", "name": "get_weather", "description": "The weather.", "parameters": {"type": "object"}}
CHUNK_SECONDS, TAIL_SECONDS = 0.02, 3.0
RATE = 24_000  # of PCM in both APIs
GAP_MS = 800  # between two things that the agent says (the Live API has no turns)


async def live(client: AsyncOpenAI, audio: str, texts: list[str], voice: bytearray) -> None:
    backend: Any = {"type": "responses", "responses": {"model": "none", "tools": [WEATHER]}}
    async with client.live.connect() as connection:
        await connection.session.start(session={"model": "duplex", "instructions": INSTRUCTIONS, "delegation": backend})
        said, end = "", 0
        async for event in connection:
            if event.type == "session.started":
                talking = asyncio.create_task(talk_live(connection, audio, texts))
            elif event.type == "session.output_audio.delta":  # every 160 ms, silence too
                voice += base64.b64decode(event.delta)
            elif event.type == "session.output_transcript.delta":
                if event.start_ms - end > GAP_MS and said:
                    print("agent:", said.strip(), flush=True)
                    said = ""
                said, end = said + event.delta, event.end_ms
            elif event.type == "session.input_transcript.delta":
                print("user:", event.delta.strip(), flush=True)
            elif event.type == "error":
                print("error:", event.error.code, event.error.message, flush=True)
            elif event.type == "session.closed":
                print("agent:", said.strip(), f"\nclosed: {event.reason} after {event.usage.seconds} s", flush=True)
        await talking


async def talk_live(connection: Any, audio: str, texts: list[str]) -> None:
    async for chunk in microphone(audio):
        await connection.session.input_audio.append(audio=chunk)
    for text in texts:
        await connection.session.commentary.append(content=text, delegation_id=None)
        await asyncio.sleep(TAIL_SECONDS)
    await connection.session.close()


async def realtime(client: AsyncOpenAI, audio: str, texts: list[str], voice: bytearray) -> None:
    async with client.realtime.connect(model="duplex") as connection:
        session: Any = {"type": "realtime", "instructions": INSTRUCTIONS, "tools": [WEATHER]}
        await connection.session.update(session=session)
        talking = asyncio.create_task(talk_realtime(connection, audio, texts))
        async for event in connection:
            if event.type == "response.output_audio.delta":
                voice += base64.b64decode(event.delta)
            elif event.type == "response.output_audio_transcript.done":
                print("agent:", event.transcript.strip(), flush=True)
            elif event.type == "conversation.item.input_audio_transcription.completed":
                print("user:", event.transcript.strip(), flush=True)
            elif event.type == "response.done" and event.response.status == "cancelled":
                print("interrupted", flush=True)
            elif event.type == "error":
                print("error:", event.error.code, event.error.message, flush=True)
        await talking


async def talk_realtime(connection: Any, audio: str, texts: list[str]) -> None:
    async for chunk in microphone(audio):
        await connection.input_audio_buffer.append(audio=chunk)
    for text in texts:
        content: Any = [{"type": "input_text", "text": text}]
        await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        await connection.response.create()
        await asyncio.sleep(TAIL_SECONDS)
    await connection.close()


async def microphone(path: str) -> Any:
    """Base64 of 20 ms at a time, in real time; silence at the end."""
    with wave.open(path) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, RATE), "16-bit mono, 24 kHz"
        pcm = sound.readframes(sound.getnframes()) + bytes(2 * round(TAIL_SECONDS * RATE))
    step, begin = 2 * round(CHUNK_SECONDS * RATE), asyncio.get_running_loop().time()
    for place in range(0, len(pcm), step):
        yield base64.b64encode(pcm[place : place + step]).decode()
        await asyncio.sleep(begin + place / 2 / RATE - asyncio.get_running_loop().time())


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    help_ = "WAV file of what the user says: 16-bit mono, 24 kHz; each is a conversation of its own"
    parser.add_argument("audio", nargs="+", help=help_)
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1", help="of the gateway (%(default)s)")
    parser.add_argument("--key", default="-", help="the gateway's secret or a token of it, where it has one")
    parser.add_argument("--api", choices=("live", "realtime"), default="live")
    parser.add_argument("--type", action="append", default=[], metavar="TEXT", help="typed after the last; repeat")
    parser.add_argument("--save", metavar="WAV", help="what the agent says goes there")
    args = parser.parse_args()
    voice = bytearray()
    socket = args.url.replace("http", "ws", 1)
    async with AsyncOpenAI(base_url=args.url, websocket_base_url=socket, api_key=args.key) as client:
        for audio in args.audio:
            texts = args.type if audio is args.audio[-1] else []
            await (live if args.api == "live" else realtime)(client, audio, texts, voice)
    if args.save:
        with wave.open(args.save, "wb") as sound:
            sound.setparams((1, 2, RATE, 0, "NONE", ""))
            sound.writeframes(voice)


if __name__ == "__main__":
    asyncio.run(main())
