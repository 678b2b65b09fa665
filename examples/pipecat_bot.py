"""A Pipecat pipeline whose model is a served one: OpenAILiveLLMService, or OpenAIRealtimeLLMService.

    pip install 'pipecat-ai[openai]'                              # and `make web` in another terminal
    python examples/pipecat_bot.py user.wav --save agent.wav
    python examples/pipecat_bot.py user.wav --api realtime

The ten lines that matter are `model` below; the transport plays a WAV file (16-bit mono), put your microphone there.
"""

from __future__ import annotations

import argparse
import asyncio
import time
import wave
from typing import Any

from pipecat.adapters.llm.schemas.function_schema import FunctionSchema
from pipecat.adapters.llm.schemas.tools_schema import ToolsSchema
from pipecat.frames.frames import EndFrame, InputAudioRawFrame, LLMRunFrame, OutputAudioRawFrame, StartFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair, LLMUserAggregatorParams
from pipecat.services.openai.live.llm import OpenAILiveLLMService
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.turns.user_turn_strategies import ExternalUserTurnStrategies
from pipecat.workers.runner import WorkerRunner

INSTRUCTIONS = "You are a friendly number tutor. Answer in English, and be brief."
WEATHER = FunctionSchema(name="get_weather", description="The weather.", properties={}, required=[])
RATE, CHUNK_SECONDS, TAIL_SECONDS = 24_000, 0.02, 3.0


def model(args: argparse.Namespace) -> tuple[Any, LLMUserAggregatorParams | None]:
    """The service, and what its kind of turns needs."""
    url = args.url.replace("http", "ws", 1)
    if args.api == "live":
        service = OpenAILiveLLMService(api_key=args.key, base_url=f"{url}/live/sessions")
        turns = ExternalUserTurnStrategies(enable_interruptions=False)  # the model hears interruptions itself
        return service, LLMUserAggregatorParams(user_turn_strategies=turns)
    return OpenAIRealtimeLLMService(api_key=args.key, base_url=f"{url}/realtime"), None


class Microphone(BaseInputTransport):
    """A WAV file in real time, and silence after it; then the conversation ends."""

    def __init__(self, params: TransportParams, path: str) -> None:
        super().__init__(params)
        self.begun, self.played = asyncio.Event(), asyncio.Event()
        with wave.open(path) as sound:
            assert (sound.getnchannels(), sound.getsampwidth()) == (1, 2), "16-bit mono"
            self._rate = sound.getframerate()
            self._pcm = sound.readframes(sound.getnframes()) + bytes(2 * round(TAIL_SECONDS * self._rate))

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)
        self.create_task(self._play())

    async def _play(self) -> None:
        step, begin = 2 * round(CHUNK_SECONDS * self._rate), time.monotonic()
        self.begun.set()
        for place in range(0, len(self._pcm), step):
            audio = self._pcm[place : place + step]
            await self.push_audio_frame(InputAudioRawFrame(audio=audio, sample_rate=self._rate, num_channels=1))
            await asyncio.sleep(begin + place / 2 / self._rate - time.monotonic())
        self.played.set()


class Loudspeaker(BaseOutputTransport):
    """Plays, that is waits, and keeps what it played."""

    voice = bytearray()

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        self.voice += frame.audio
        await asyncio.sleep(len(frame.audio) / 2 / frame.sample_rate)
        return True


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", help="WAV file of what the user says: 16-bit mono")
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1", help="of the gateway (%(default)s)")
    parser.add_argument("--key", default="-", help="the gateway's secret or a token of it, where it has one")
    parser.add_argument("--api", choices=("live", "realtime"), default="live")
    parser.add_argument(
        "--context", action="append", default=[], metavar="TEXT", help="said by the user before; repeat"
    )
    parser.add_argument("--reconnect", type=float, metavar="SECONDS", help="a new session then, with the same context")
    parser.add_argument("--save", metavar="WAV", help="what the agent says goes there")
    args = parser.parse_args()
    params = TransportParams(audio_in_enabled=True, audio_out_enabled=True, audio_out_sample_rate=RATE)
    microphone, loudspeaker = Microphone(params, args.audio), Loudspeaker(params)
    llm, user_params = model(args)
    messages: list[Any] = [{"role": "system", "content": INSTRUCTIONS}]
    messages += [{"role": "user", "content": text} for text in args.context]
    context = LLMContext(messages, tools=ToolsSchema(standard_tools=[WEATHER]))
    aggregators = LLMContextAggregatorPair(context, user_params=user_params)
    steps = [microphone, aggregators.user(), llm, loudspeaker, aggregators.assistant()]
    worker = PipelineWorker(Pipeline(steps), params=PipelineParams(audio_out_sample_rate=RATE))
    await worker.queue_frames([LLMRunFrame()])  # a Live session starts with its context
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    if args.reconnect is not None:
        await microphone.begun.wait()
        await asyncio.sleep(args.reconnect)
        await llm.reset_conversation()
    await microphone.played.wait()
    await worker.queue_frames([EndFrame()])
    await running
    for message in context.get_messages():
        if isinstance(message, dict) and message["role"] in ("user", "assistant"):
            print(f"{'agent' if message['role'] == 'assistant' else 'user'}: {message['content']}", flush=True)
    if args.save:
        with wave.open(args.save, "wb") as sound:
            sound.setparams((1, 2, RATE, 0, "NONE", ""))
            sound.writeframes(loudspeaker.voice)


if __name__ == "__main__":
    asyncio.run(main())
