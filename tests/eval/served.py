"""The same conversations through a real tritonserver and the gRPC client, unit by unit against the runtime's.

A few at a time and as fast as they are answered. The server is told to keep all solver steps of late units, which
otherwise could not equal those of a runtime without a clock.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client import own_server
from client.stream.client import DuplexClient
from client.stream.units import UnitResponse, UserUnit
from engine_builder.tokenizer import heard_ids, word_ids
from engine_builder.training.judges.closed_loop import Performance
from engine_builder.training.world.conversation import Conversation
from triton_models.service.local import AgentUnit

from .parts import TRAINED_RETENTION
from .stage import FIRST_NOISE, asked

UNKNOWN = -1  # the token of a text that is no word of the task


@dataclass(frozen=True)
class Comparison:
    """Counts over all units: states and texts that are equal, units whose sound or pictures are equal to the last bit,
    units that the server shortened because it was late, and the largest difference of a sample."""

    conversations: int
    units: int
    same_words: int
    same_sound: int
    same_pictures: int
    degraded: int
    largest_difference: float


def serve(engines: Path, folder: Path, talks: list[Conversation], at_once: int) -> list[list[UnitResponse]]:
    """What the server answers to `talks`; its logs go to `folder`. Raises DuplexError or own_server.ServerFailed."""
    with own_server.server(engines, folder / "server", "--admit-all", "--keep-steps") as facts:
        return asyncio.run(_converse_all(str(facts["grpc"]), talks, at_once))


async def _converse_all(url: str, talks: list[Conversation], at_once: int) -> list[list[UnitResponse]]:
    answers: list[list[UnitResponse]] = []
    async with await DuplexClient.connect(url) as client:
        for first in range(0, len(talks), at_once):
            group = talks[first : first + at_once]
            # Seeds count within a group, as on a `Stage` of as many sessions.
            answers += await asyncio.gather(*(_converse(client, t, FIRST_NOISE + i) for i, t in enumerate(group)))
    return answers


async def _converse(client: DuplexClient, talk: Conversation, seed: int) -> list[UnitResponse]:
    options = {"persona": asked(talk), "seed": seed, "retention": TRAINED_RETENTION}
    last = len(talk.state) - 1
    answers: list[UnitResponse] = []
    async with client.session(options=options, timeout=60.0) as session:
        for unit in range(last + 1):
            typed = talk.scenario.typed.get(unit, "")
            await session.send(UserUnit(unit, talk.user_pcm[unit], talk.camera[unit], typed, end=unit == last))
            answers.append(await anext(session))
    return answers


def compare(served: list[list[UnitResponse]], local: list[list[AgentUnit]]) -> Comparison:
    """Both in the same order."""
    pairs = [(s, k) for row, other in zip(served, local, strict=True) for s, k in zip(row, other, strict=True)]
    whole = [(s, k) for s, k in pairs if not s.info.get("degradation")]
    gaps = [float(np.abs(s.pcm - k.pcm).max()) for s, k in whole]
    return Comparison(
        conversations=len(served),
        units=len(pairs),
        same_words=sum((s.state, s.text, s.heard) == (k.state, k.text, k.heard) for s, k in pairs),
        same_sound=sum(gap == 0.0 for gap in gaps),
        same_pictures=sum(np.array_equal(s.frames, k.frames) for s, k in whole),
        degraded=len(pairs) - len(gaps),
        largest_difference=max(gaps, default=0.0),
    )


def performance(states: tuple[str, ...], units: list[UnitResponse]) -> Performance:
    """What the judges take, from what a client of the server gets."""
    heard, words = heard_ids(), word_ids()
    return Performance(
        np.array([states.index(unit.state) for unit in units], dtype=np.int64),
        [
            [heard.get(text, UNKNOWN) for text in unit.heard.split()]
            + [words.get(text, UNKNOWN) for text in unit.text.split()]
            for unit in units
        ],
        np.stack([unit.pcm for unit in units]),
        np.stack([unit.frames for unit in units]),
    )
