"""The tokenizer of the `tiny` preset: every word of its task is ONE token, any other text falls back to bytes.

Word tokens carry their leading space, as in GPT-2's byte-level BPE, so the text of successive units concatenates to a
sentence. There are no merges: a word is found whole in the vocabulary or spelt out in UTF-8 bytes.
The special tokens of `LanguageConfig` are vocabulary entries but no "added" tokens: typing `<speak>` yields the bytes
of that text, never the token, so a user cannot forge a state. So are the tokens of the transcript: a model that heard
"two" writes `<heard:two>`, a token of its own beside the word that it says. And those of the notes that a model writes
to itself, `<note:said 2>`, which nobody else reads.
"""

from __future__ import annotations

import re
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from .config import LanguageConfig

# Order is part of the format: ids follow from it. Append, never insert.
TINY_WORDS: tuple[str, ...] = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"),
    *("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
    *("red", "green", "blue", "yellow", "white", "black"),
    *("rot", "grün", "blau", "gelb", "weiß", "schwarz"),
    *("english", "german", "deutsch"),
    *("comes", "after", "kommt", "nach"),
    *("hello", "say", "a", "number", "hallo", "sag", "eine", "zahl"),
    *("thanks", "you", "are", "welcome", "danke", "gern", "geschehen"),
    *("goodbye", "tschüss"),
)
# What a user may say, words or whole phrases; their tokens follow those of TINY_WORDS.
TINY_HEARD: tuple[str, ...] = (
    *TINY_WORDS[:20],  # digits
    *("hello", "thanks", "goodbye", "hallo", "danke", "tschüss"),
    *("again", "what did i say", "nochmal", "was habe ich gesagt"),
)
# What a model notes for later: what it answered last, and the user's last digit.
TINY_NOTES: tuple[str, ...] = (
    *(f"digit {digit}" for digit in range(10)),
    *(f"colour {colour}" for colour in TINY_WORDS[30:36]),
    *("greeting", "thanks", "farewell"),
    *(f"said {digit}" for digit in range(10)),
)
# What a prompt may call the agent.
TINY_PEOPLE: tuple[str, ...] = ("woman", "man")
# How any vocabulary spells a token of the transcript, and a note, in plain text.
HEARD, NOTE = re.compile("<heard:(.+)>", re.DOTALL), re.compile("<note:(.+)>", re.DOTALL)


def heard_token(text: str) -> str:
    """The token by which a model says that it heard `text`."""
    return f"<heard:{text}>"


def note_token(text: str) -> str:
    """The token by which a model notes `text` for itself."""
    return f"<note:{text}>"


def _byte_characters() -> list[str]:
    """The 256 printable characters that stand for the byte values in the byte-level alphabet."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _visible(word: str) -> str:
    """A word with its leading space in the byte-level alphabet: 'grün' -> 'ĠgrÃ¼n'."""
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=True).pre_tokenize_str(word)
    if len(pieces) != 1:
        raise ValueError(f"word: expected one word without punctuation, got {word!r}")
    return pieces[0][0]


def tiny_vocabulary(language: LanguageConfig | None = None) -> dict[str, int]:
    """Token -> id: the special tokens where `language` has them, then bytes, words, the transcript's tokens, notes
    and people.

    Raises ValueError if `language.vocab_size` is too small.
    """
    language = language or LanguageConfig()
    vocabulary = {"<pad>": language.pad_id, "<query>": language.query_id, "<eou>": language.eou_id}
    vocabulary |= {f"<{name}>": token for name, token in zip(language.states, language.state_ids, strict=True)}
    taken = set(vocabulary.values())
    free = (i for i in range(language.vocab_size) if i not in taken)
    tokens = [*_byte_characters(), *(_visible(word) for word in TINY_WORDS), *map(heard_token, TINY_HEARD)]
    tokens += [*map(note_token, TINY_NOTES), *map(_visible, TINY_PEOPLE)]
    for token in tokens:
        number = next(free, None)
        if number is None:
            raise ValueError(
                f"language.vocab_size: expected at least {len(tokens) + len(taken)}, got {language.vocab_size}"
            )
        vocabulary[token] = number
    return vocabulary


def tiny_tokenizer(language: LanguageConfig | None = None) -> Tokenizer:
    """The tokenizer; text is lower-cased and NFC-composed before it is cut into words."""
    tokenizer = Tokenizer(models.BPE(vocab=tiny_vocabulary(language), merges=[], ignore_merges=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return tokenizer


def write_tiny_tokenizer(path: Path, language: LanguageConfig | None = None) -> Path:
    """Writes tokenizer.json (byte for byte the same on every call) and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tiny_tokenizer(language).to_str(pretty=True) + "\n", encoding="utf-8")
    return path


def word_ids(language: LanguageConfig | None = None) -> dict[str, int]:
    """Word -> token id, for the task's words."""
    vocabulary = tiny_vocabulary(language)
    return {word: vocabulary[_visible(word)] for word in TINY_WORDS}


def heard_ids(language: LanguageConfig | None = None) -> dict[str, int]:
    """What a user may say -> id of the token that says it was heard."""
    vocabulary = tiny_vocabulary(language)
    return {text: vocabulary[heard_token(text)] for text in TINY_HEARD}


def note_ids(language: LanguageConfig | None = None) -> dict[str, int]:
    """What a model may note for itself -> token id."""
    vocabulary = tiny_vocabulary(language)
    return {text: vocabulary[note_token(text)] for text in TINY_NOTES}
