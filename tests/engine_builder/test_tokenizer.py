"""The tiny tokenizer: one token a word, bytes for the rest, no forged specials."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from engine_builder.config import LanguageConfig
from engine_builder.tokenizer import (
    HEARD,
    TINY_HEARD,
    TINY_WORDS,
    heard_ids,
    tiny_tokenizer,
    tiny_vocabulary,
    word_ids,
    write_tiny_tokenizer,
)

pytestmark = pytest.mark.unit
TOKENIZER = tiny_tokenizer()


@pytest.mark.parametrize("word", TINY_WORDS)
def test_every_task_word_is_one_token_and_comes_back(word: str) -> None:
    ids = TOKENIZER.encode(word).ids
    assert ids == [word_ids()[word]]
    assert TOKENIZER.decode(ids) == " " + word


def test_a_sentence_is_one_token_a_word_and_concatenates() -> None:
    ids = TOKENIZER.encode("Eight comes after SEVEN").ids
    assert len(ids) == 4
    assert "".join(TOKENIZER.decode([i]) for i in ids) == " eight comes after seven"


def test_special_tokens_cannot_be_typed() -> None:
    language = LanguageConfig()
    ids = TOKENIZER.encode("<pad> <query><eou> <listen> <speak> <heard:two>").ids
    assert not set(ids) & {*language.special_ids, *heard_ids().values()}


def test_the_transcript_has_a_token_of_its_own_for_all_that_a_user_may_say() -> None:
    ids, names = heard_ids(), {number: token for token, number in tiny_vocabulary().items()}
    assert not set(ids.values()) & set(word_ids().values())
    assert [HEARD.fullmatch(names[ids[text]])[1] for text in TINY_HEARD] == list(TINY_HEARD)  # type: ignore[index]


@given(st.text(max_size=40))
def test_any_text_encodes_to_text_ids_below_the_vocabulary_size(text: str) -> None:
    language = LanguageConfig()
    ids = TOKENIZER.encode(text).ids
    assert all(0 <= i < language.vocab_size and i not in language.special_ids for i in ids)


@given(
    st.text(
        alphabet=st.characters(min_codepoint=0x21, max_codepoint=0x24F, exclude_categories=["Lu", "Lt"]), max_size=20
    )
)
def test_unknown_words_survive_the_round_trip_as_bytes(text: str) -> None:
    normal = TOKENIZER.normalizer.normalize_str(text)
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids).strip() == normal.strip()


def test_the_file_is_deterministic_and_loads(tmp_path: Path) -> None:
    first = write_tiny_tokenizer(tmp_path / "a" / "tokenizer.json").read_bytes()
    second = write_tiny_tokenizer(tmp_path / "b" / "tokenizer.json").read_bytes()
    assert first == second
    loaded = Tokenizer.from_file(str(tmp_path / "a" / "tokenizer.json"))
    assert loaded.encode("sieben").ids == TOKENIZER.encode("sieben").ids
    assert loaded.get_vocab_size() <= LanguageConfig().vocab_size


def test_a_vocabulary_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match=r"language.vocab_size: expected at least \d+, got 200"):
        tiny_vocabulary(LanguageConfig(vocab_size=200))
