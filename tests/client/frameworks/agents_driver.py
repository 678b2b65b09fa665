"""Runs in the environment of openai-agents: a RealtimeAgent hears WAV files, a conversation each; prints the histories.

python agents_driver.py BASE_URL WAV,WAV TEXT...       (the texts are typed in the last)
"""

from __future__ import annotations

import asyncio
import sys
import time
import wave
from typing import Any

from agents import function_tool
from agents.realtime import RealtimeAgent, RealtimeRunner

RATE, CHUNK_SECONDS, TAIL_SECONDS = 24_000, 0.02, 3.0


@function_tool
def get_weather() -> str:
    """The weather."""
    return "sunny"


async def play(session: Any, path: str, texts: list[str]) -> None:
    with wave.open(path) as sound:
        pcm = sound.readframes(sound.getnframes()) + bytes(2 * round(TAIL_SECONDS * RATE))
    step, begin = 2 * round(CHUNK_SECONDS * RATE), time.monotonic()
    for place in range(0, len(pcm), step):
        await session.send_audio(pcm[place : place + step])
        await asyncio.sleep(begin + place / 2 / RATE - time.monotonic())
    for text in texts:
        await session.send_message(text)
        await asyncio.sleep(TAIL_SECONDS)
    await session.close()


async def main(url: str, path: str, texts: list[str]) -> None:
    instructions = "You are a friendly number tutor. Answer in English, and be brief."
    agent = RealtimeAgent(name="tutor", instructions=instructions, tools=[get_weather])
    session = await RealtimeRunner(agent).run(
        model_config={"api_key": "-", "url": url.replace("http", "ws", 1) + "/realtime?model=duplex"}
    )
    history: list[Any] = []
    async with session:
        playing = asyncio.create_task(play(session, path, texts))
        async for event in session:
            if event.type == "history_updated":
                history = event.history
            elif event.type == "history_added":
                history = [each for each in history if each.item_id != event.item.item_id] + [event.item]
            elif event.type == "audio_interrupted":
                print("interrupted", flush=True)
            elif event.type == "error":
                print("error:", event.error, flush=True)
        await playing
    for item in history:
        if item.type == "message" and item.role != "system":
            said = "".join(getattr(part, "transcript", None) or "" for part in item.content)
            print("agent:" if item.role == "assistant" else "user:", said, flush=True)


if __name__ == "__main__":
    paths = sys.argv[2].split(",")
    for path in paths:
        asyncio.run(main(sys.argv[1], path, sys.argv[3:] if path is paths[-1] else []))
