"""What is said in the number tutor's world: the meanings a user can express and the agent's answer to each."""

from __future__ import annotations

from dataclasses import dataclass

from engine_builder.tokenizer import TINY_PEOPLE

LANGUAGES: tuple[str, ...] = ("en", "de")
PEOPLE = TINY_PEOPLE  # whom the agent may be; the first, if nobody says whom
PERSONA_PROMPT: dict[str, str] = {"en": "english", "de": "german"}

DIGITS: dict[str, tuple[str, ...]] = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "de": ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"),
}
COLOURS: dict[str, tuple[str, ...]] = {
    "en": ("red", "green", "blue", "yellow", "white", "black"),
    "de": ("rot", "grün", "blau", "gelb", "weiß", "schwarz"),
}
# Spoken by users only; the agent answers with `phrase`.
SOCIAL: dict[str, dict[str, str]] = {
    "en": {"greeting": "hello", "thanks": "thanks", "farewell": "goodbye"},
    "de": {"greeting": "hallo", "thanks": "danke", "farewell": "tschüss"},
}
# Questions for what was said before.
ASKS: dict[str, dict[str, str]] = {
    "en": {"again": "again", "recall": "what did i say"},
    "de": {"again": "nochmal", "recall": "was habe ich gesagt"},
}
_PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "greeting": ("hello", "say", "a", "number"),
        "thanks": ("you", "are", "welcome"),
        "farewell": ("goodbye",),
        "unknown": ("say", "a", "number"),
    },
    "de": {
        "greeting": ("hallo", "sag", "eine", "zahl"),
        "thanks": ("gern", "geschehen"),
        "farewell": ("tschüss",),
        "unknown": ("sag", "eine", "zahl"),
    },
}
_SUCCESSOR: dict[str, tuple[str, str]] = {"en": ("comes", "after"), "de": ("kommt", "nach")}

# espeak-ng phoneme input: nasal murmurs of one or two pulses ("mm-hm", "hm", "mmm").
BACKCHANNELS: tuple[str, ...] = ("[[m-hm-]]", "[[m-:h'm-:]]", "[[m@-hm-]]", "[[m-:m-:]]")


@dataclass(frozen=True)
class Meaning:
    """What a user event says: `kind` is 'digit', 'colour', 'greeting', 'thanks', 'farewell', 'again', 'recall' or
    'backchannel'; `index` is the digit or the colour, else 0. What is answered may also be 'unknown', and of a 'recall'
    `index` is then the digit."""

    kind: str
    index: int = 0


def spoken(meaning: Meaning, language: str) -> str:
    """The word by which a user of `language` says `meaning`; ValueError for what cannot be said in words."""
    if meaning.kind == "digit":
        return DIGITS[language][meaning.index]
    said = SOCIAL[language] | ASKS[language]
    if meaning.kind in said:
        return said[meaning.kind]
    raise ValueError(f"meaning: expected a digit, {', '.join(said)}, got {meaning}")


def answer(meaning: Meaning, language: str) -> tuple[str, ...]:
    """The agent's words, the decisive one first: ('eight', 'comes', 'after', 'seven') to a seven. What 'again' and
    'recall' mean is `Notes.meant`.

    A backchannel has no answer: the empty tuple.
    """
    if meaning.kind == "digit":
        digits = DIGITS[language]
        return (digits[(meaning.index + 1) % 10], *_SUCCESSOR[language], digits[meaning.index])
    if meaning.kind == "colour":
        return (COLOURS[language][meaning.index],)
    if meaning.kind == "recall":
        return (DIGITS[language][meaning.index],)
    if meaning.kind == "backchannel":
        return ()
    try:
        return _PHRASES[language][meaning.kind]
    except KeyError:
        raise ValueError(f"meaning: unknown kind {meaning.kind!r}") from None


def user_words(language: str) -> tuple[str, ...]:
    """Every word that a user of `language` may speak."""
    return (*DIGITS[language], *SOCIAL[language].values(), *ASKS[language].values())


def agent_words(language: str) -> tuple[str, ...]:
    """Every word that the agent may say in `language`, each once."""
    phrases = [word for phrase in _PHRASES[language].values() for word in phrase]
    return tuple(dict.fromkeys((*DIGITS[language], *_SUCCESSOR[language], *COLOURS[language], *phrases)))
