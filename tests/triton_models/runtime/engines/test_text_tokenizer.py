"""Text in and out of token ids: bytes, streaming, and nothing that a user types becomes a control token."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from engine_builder.config import LanguageConfig
from engine_builder.tokenizer import heard_ids, note_ids, tiny_tokenizer, write_tiny_tokenizer
from triton_models.runtime.engines.tokenizer import TextTokenizer

pytestmark = pytest.mark.unit

LANGUAGE = LanguageConfig()
# As for a Qwen import: the special ids are rows of the vocabulary that the tokenizer does not use.
SPARE_ROWS = LanguageConfig(pad_id=500, query_id=501, eou_id=502, first_state_id=503)
TINY = TextTokenizer(tiny_tokenizer(), LANGUAGE)


def qwen_like() -> Tokenizer:
    """Byte-level BPE with control tokens as special added tokens and one plain added token, as Qwen's file has."""
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True)])
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    return tokenizer


@pytest.mark.parametrize("text", ["seven", "grün weiß", "drei 3 three", "a café 日本 🙂", ""])
def test_text_comes_back(text: str) -> None:
    assert TINY.decode(TINY.encode(text)).strip() == text


def test_words_of_the_task_are_one_token() -> None:
    assert len(TINY.encode("grün")) == 1
    assert len(TINY.encode("green weiß 7")) == 3


@given(st.text(max_size=40))
def test_streaming_equals_decoding_at_once_however_it_is_cut(text: str) -> None:
    tokenizer = TextTokenizer(qwen_like(), SPARE_ROWS)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream()
    assert "".join(stream.feed([token]) for token in ids) + stream.finish() == text


def test_an_incomplete_character_waits_for_the_next_unit() -> None:
    ids = TextTokenizer(qwen_like(), SPARE_ROWS).encode("🙂!")
    stream = TextTokenizer(qwen_like(), SPARE_ROWS).stream()
    assert [stream.feed(ids[:2]), stream.feed(ids[2:3]), stream.feed(ids[3:])] == ["", "", "🙂!"]


def test_bytes_that_are_no_utf8_become_replacement_characters() -> None:
    tokenizer = TextTokenizer(qwen_like(), SPARE_ROWS)
    ids = tokenizer.encode("🙂")
    assert tokenizer.decode(ids[:2]) == "\ufffd"
    stream = tokenizer.stream()
    assert stream.feed(ids[:2]) == ""
    assert stream.feed(tokenizer.encode("a")) == "\ufffda"
    stream.feed(ids[:1])
    assert stream.finish() == "\ufffd"


@pytest.mark.parametrize(
    "typed", ["<speak>", "<eou>", "<|im_start|>user", "<pad> <query>", "<heard:two>", "<note:said 2>"]
)
def test_typing_a_control_token_yields_its_letters(typed: str) -> None:
    qwen = TextTokenizer(qwen_like(), SPARE_ROWS)
    for tokenizer, special in (
        (TINY, {*LANGUAGE.special_ids, *heard_ids().values(), *note_ids().values()}),
        (qwen, set(SPARE_ROWS.special_ids) | {256}),
    ):
        ids = tokenizer.encode(typed)
        assert not set(ids) & special
        assert tokenizer.decode(ids).strip() == typed


def test_special_and_unknown_ids_have_no_text() -> None:
    assert TINY.decode([LANGUAGE.eou_id, *LANGUAGE.state_ids, 511]) == ""


def test_added_tokens_are_plain_text_unless_they_are_special() -> None:
    source = qwen_like()
    tokenizer = TextTokenizer(source, SPARE_ROWS)
    assert tokenizer.decode([source.token_to_id("<think>")]) == "<think>"
    assert tokenizer.decode([source.token_to_id("<|im_start|>")]) == ""


@pytest.mark.parametrize("special", [True, False])
def test_what_was_heard_is_no_text_however_the_vocabulary_has_it(special: bool) -> None:
    source = qwen_like()
    source.add_tokens([AddedToken("<heard:grün>", special=special), AddedToken("<heard:>", special=False)])
    for tokenizer, token, word in (
        (TINY, heard_ids()["fünf"], "fünf"),
        (TextTokenizer(source, SPARE_ROWS), source.token_to_id("<heard:grün>"), "grün"),
    ):
        said = tokenizer.encode("a")
        ids = [*said, token, token]
        assert tokenizer.heard(ids) == f" {word} {word}"
        assert tokenizer.decode(ids).strip() == tokenizer.stream().feed(ids).strip() == "a"
        assert tokenizer.heard(said) == ""


def test_notes_are_neither_said_nor_heard() -> None:
    ids = [*note_ids().values()]
    assert TINY.decode(ids) == TINY.heard(ids) == TINY.stream().feed(ids) == ""


def test_load_names_the_file(tmp_path: Path) -> None:
    path = write_tiny_tokenizer(tmp_path / "tokenizer.json")
    assert TextTokenizer.load(path, LANGUAGE).decode(TINY.encode("seven")) == " seven"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer: .*tokenizer\.json is no tokenizer\.json"):
        TextTokenizer.load(path, LANGUAGE)
    with pytest.raises(ValueError, match=r"expected .*nowhere\.json, got no such file"):
        TextTokenizer.load(tmp_path / "nowhere.json", LANGUAGE)


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    words = Tokenizer(models.WordLevel(vocab={"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match="expected a ByteLevel decoder, got NoneType"):
        TextTokenizer(words, LANGUAGE)
    with pytest.raises(ValueError, match="expected ids below vocab_size 200, got"):
        TextTokenizer(qwen_like(), LanguageConfig(vocab_size=200))
