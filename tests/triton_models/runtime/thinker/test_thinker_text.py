"""The thinker over fake engines: slots, what they say, and typed text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec import structs
from outcomes import error_of

from engine_builder.tokenizer import heard_ids
from triton_models.runtime.messages import MAX_QUEUED_TEXT, ThinkJob, ThinkResult

pytestmark = pytest.mark.unit

Bench = Any  # the class of conftest.py


def test_slots_end_at_eou_or_when_they_are_used_up(bench: Bench) -> None:
    language = bench.config.language
    word = bench.tokenizer.encode("seven")[0]
    chosen: list[int] = []

    def script(inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        outputs["logits"][:] = 0
        outputs["logits"][:, chosen[len(bench.fake("think").batches) - 1]] = 1

    bench.open("a")
    bench.fake("think").spoil = script
    speak, eou = language.state_ids[1], language.eou_id
    for unit, (script_ids, slots) in enumerate(
        [
            ([speak, eou], (speak,)),
            ([speak, word, eou], (speak, word)),
            ([speak, word, word, word], (speak, word, word)),
            ([language.query_id, speak], (language.first_state_id, 10)),  # neither may be chosen where it stands
        ]
    ):
        bench.fake("think").batches.clear()
        chosen[:] = [*script_ids, 10, 10]
        thought = bench.unit("a", unit)
        if unit < 3:
            assert thought.slots == slots
        else:
            assert thought.slots[0] == language.first_state_id
            assert not set(thought.slots[1:]) & set(language.special_ids)


def test_of_equally_likely_tokens_the_first_is_chosen_and_none_that_is_no_text(bench: Bench) -> None:
    language = bench.config.language
    likeliest = [[*language.special_ids, 20], [20, 30], [*language.state_ids, 40, 50], [language.pad_id]]

    def script(inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        outputs["logits"][:] = -5
        outputs["logits"][:, likeliest.pop(0)] = 3

    bench.open("a")
    bench.fake("think").spoil = script
    assert bench.unit("a", 0).slots == (language.first_state_id, 20, 40)
    likeliest[:] = [[9], [language.query_id, language.pad_id]]  # all text is equally unlikely: <eou>, which comes first
    assert bench.unit("a", 1).slots == (language.first_state_id,)


def test_state_and_text_are_named_and_characters_wait_for_their_bytes(bench: Bench) -> None:
    bench.open("a")
    smile = bench.tokenizer.encode("🙂")[-4:]  # its four bytes
    wanted: list[int] = []

    def script(inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        outputs["logits"][:] = 0
        outputs["logits"][:, wanted.pop(0)] = 1

    bench.fake("think").spoil = script
    speak = bench.config.language.state_ids[1]
    wanted[:] = [speak, smile[0], smile[1], 10]
    thought = bench.unit("a", 0)
    assert (thought.state, thought.text) == ("speak", "")
    wanted[:] = [speak, smile[2], smile[3], 10]
    thought = bench.unit("a", 1)
    assert thought.text == "🙂"


def test_what_was_heard_goes_beside_the_text_and_splits_no_character(bench: Bench) -> None:
    bench.open("a")
    smile, heard = bench.tokenizer.encode("🙂")[-4:], heard_ids(bench.config.language)
    listen, speak = bench.config.language.state_ids
    wanted: list[int] = []

    def script(inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        outputs["logits"][:] = 0
        outputs["logits"][:, wanted.pop(0)] = 1

    bench.fake("think").spoil = script
    said = []
    for unit, ids in enumerate(
        [
            [listen, heard["two"], bench.config.language.eou_id],
            [speak, smile[0], smile[1], 10],
            [speak, heard["three"], smile[2], 10],
            [speak, smile[3], heard["fünf"], 10],
        ]
    ):
        wanted[:] = ids
        thought = bench.unit("a", unit)
        said.append((thought.state, thought.text, thought.heard))
    assert said == [("listen", "", " two"), ("speak", "", ""), ("speak", "", " three"), ("speak", "🙂", " fünf")]


def test_text_beyond_a_unit_goes_into_the_next_ones(bench: Bench) -> None:
    bench.open("a")
    typed: list[list[int]] = []

    def watch(inputs: dict[str, np.ndarray], _: object) -> None:
        if inputs["ids"].shape[1] > 1:
            typed.append([token for token in inputs["ids"][0, :-1].tolist() if token])

    bench.fake("think").spoil = watch
    words = bench.tokenizer.encode("one two three four five")
    bench.unit("a", 0, text="one two three")
    bench.unit("a", 1, text="four five")
    bench.unit("a", 2)
    bench.unit("a", 3)
    assert typed == [words[:2], words[2:4], words[4:], []]
    bench.unit("a", 4, text="one two three four five")
    bench.think(structs.replace(bench.asks("a", 5, "six"), interrupt=True))
    assert typed[4:] == [words[:2], bench.tokenizer.encode("six")], "F3a: an interruption forgets the rest"


def test_too_much_waiting_text_is_refused_and_the_unit_can_be_sent_again(bench: Bench) -> None:
    bench.open("a")
    bench.thinker.perceive([bench.hear("a", 0)])
    text = "one " * (MAX_QUEUED_TEXT + 1)
    message = error_of(bench.think(ThinkJob("a", 1, 0, text[:4096]))[0], "INVALID_ARGUMENT")
    assert f"text: expected at most {MAX_QUEUED_TEXT} more tokens (0 wait), got" in message
    assert isinstance(bench.think(ThinkJob("a", 1, 0, "one"))[0], ThinkResult)
