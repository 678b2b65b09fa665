"""Text to token ids and back, with the tokenizer.json of an engine directory.

Both kinds in use are byte-level BPE (the tiny preset's and Qwen's), so a token stands for bytes and not for characters:
a character may be split over tokens, and tokens over units. `TextStream` holds back an incomplete character's bytes.

A token spelt `<heard:two>` is no text: the model writes it when it heard "two". Nor is `<note:said 2>`, which a model
writes to itself: it stays in the session's history and goes to no client.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders

from engine_builder.config import LanguageConfig
from engine_builder.tokenizer import HEARD, NOTE


class TextTokenizer:
    """Immutable; one serves all sessions. Load with `TextTokenizer.load`."""

    def __init__(self, tokenizer: Tokenizer, language: LanguageConfig) -> None:
        """Raises ValueError for a tokenizer that is not byte-level or has ids beyond the model's vocabulary."""
        if not isinstance(tokenizer.decoder, decoders.ByteLevel):
            raise ValueError(f"tokenizer: expected a ByteLevel decoder, got {type(tokenizer.decoder).__name__}")
        # A user who types "<|im_start|>" gets the bytes of that text, never the control token.
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab(with_added_tokens=True).items()
        marked = {number: token for token, number in vocabulary if token.startswith("<")}  # few of 150,000
        self._heard = {number: " " + found[1] for number, token in marked.items() if (found := HEARD.fullmatch(token))}
        notes = {number for number, token in marked.items() if NOTE.fullmatch(token)}
        self._special = frozenset(language.special_ids) | self._heard.keys() | notes
        self._bytes = _token_bytes(tokenizer)
        highest = max(self._bytes, default=-1)
        if highest >= language.vocab_size:
            raise ValueError(f"tokenizer: expected ids below vocab_size {language.vocab_size}, got {highest}")

    @classmethod
    def load(cls, path: Path, language: LanguageConfig) -> TextTokenizer:
        """Reads a tokenizer.json; ValueError names the file if it is missing or not one."""
        if not path.is_file():
            raise ValueError(f"tokenizer: expected {path}, got no such file; rebuild the engine directory")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises plain Exception
            raise ValueError(f"tokenizer: {path} is no tokenizer.json ({error})") from None
        return cls(tokenizer, language)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; none of them is a special token of the model."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [token for token in ids if token not in self._special]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a finished sequence; bytes that are no UTF-8 become U+FFFD, special and unknown ids vanish."""
        return b"".join(self.token_bytes(token) for token in ids).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that a token stands for; none for special tokens and for spare rows of the vocabulary."""
        return b"" if token in self._special else self._bytes.get(token, b"")

    def heard(self, ids: Iterable[int]) -> str:
        """What these tokens say of the user's words, each behind a space."""
        return "".join(self._heard.get(token, "") for token in ids)

    def stream(self) -> TextStream:
        """A decoder for one session's tokens as they come."""
        return TextStream(self)


class TextStream:
    """Incremental decoding; keeps at most three bytes (an incomplete UTF-8 character) between calls."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, ids: Iterable[int]) -> str:
        """The characters that these tokens complete. The results of all calls concatenate to `decode` of all ids."""
        return self._decoder.decode(b"".join(self._tokenizer.token_bytes(token) for token in ids))

    def finish(self) -> str:
        """What an incomplete last character becomes (U+FFFD), or nothing."""
        return self._decoder.decode(b"", final=True)


def _token_bytes(tokenizer: Tokenizer) -> dict[int, bytes]:
    """id -> bytes. Vocabulary entries are spelt in the byte-level alphabet, added tokens in plain text."""
    alphabet = _byte_alphabet()
    added = tokenizer.get_added_tokens_decoder()
    table: dict[int, bytes] = {}
    for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
        if number in added:
            table[number] = b"" if added[number].special else added[number].content.encode()
        elif all(character in alphabet for character in token):
            table[number] = bytes(alphabet[character] for character in token)
        else:
            table[number] = token.encode()
    return table


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte value of GPT-2's byte-level alphabet (Radford et al. 2019, as in Hugging Face's ByteLevel).

    Printable Latin-1 characters stand for themselves; the other bytes, in order, for U+0100 and up.
    """
    own = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [value for value in range(256) if value not in own]
    return {chr(value): value for value in own} | {chr(256 + i): value for i, value in enumerate(others)}
