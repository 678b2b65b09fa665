"""What a session's history keeps: the retention policies, what each makes visible, and how many pages each can need.

`visible` is the definition. The oracle's mask and `PageTable.view` are both tested against it, so a policy means the
same to the reference, to the page tables and to the capacity planner.

Token kinds:
    prompt      the persona prompt; stays under every policy
    av          clean latents of the previous unit, the perceived user audio and video (z^v, z^a, e^v, e^a), the query
    language    typed text and the slots: the words
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from engine_builder.config import ModelConfig
from engine_builder.layout import pages_of

Kind = Literal["prompt", "av", "language"]
KINDS: tuple[str, ...] = get_args(Kind)


class Retention(Protocol):
    """A policy: says which tokens the block of `current_unit` may see. Eviction takes whole units, oldest first."""

    def visible(self, kind: Kind, token_unit: int, current_unit: int) -> bool:
        """True if a token of `kind`, committed in `token_unit`, is visible to the block and slots of `current_unit`."""
        ...

    def pinned(self, token_unit: int) -> bool:
        """True if tokens of this unit are never evicted."""
        ...

    def to_json(self) -> object:
        """The value that `parse` accepts."""
        ...


@dataclass(frozen=True)
class Full:
    """Everything stays, as in the paper. A session lasts until its pages are used up (`units_that_fit`)."""

    def visible(self, kind: Kind, token_unit: int, current_unit: int) -> bool:
        return kind == "prompt" or token_unit <= current_unit

    def pinned(self, token_unit: int) -> bool:
        return True

    def to_json(self) -> object:
        return "full"


@dataclass(frozen=True)
class Window:
    """The prompt, the first `sink` units and the last `recent` units (the current one included) stay."""

    sink: int
    recent: int

    def __post_init__(self) -> None:
        _at_least("retention.window.sink", self.sink, 0)
        _at_least("retention.window.recent", self.recent, 1)

    def visible(self, kind: Kind, token_unit: int, current_unit: int) -> bool:
        if kind == "prompt":
            return True
        return token_unit <= current_unit and (token_unit < self.sink or token_unit > current_unit - self.recent)

    def pinned(self, token_unit: int) -> bool:
        return token_unit < self.sink

    def to_json(self) -> object:
        return {"window": {"sink": self.sink, "recent": self.recent}}


@dataclass(frozen=True)
class WindowLanguage:
    """`Window` for sights and sounds; language tokens stay for the last `language_recent` units."""

    sink: int
    recent: int
    language_recent: int

    def __post_init__(self) -> None:
        _at_least("retention.window_language.sink", self.sink, 0)
        _at_least("retention.window_language.recent", self.recent, 1)
        # A language window shorter than the other one would forget words before it forgets sounds: use `window` then.
        _at_least("retention.window_language.language_recent", self.language_recent, self.recent)

    def visible(self, kind: Kind, token_unit: int, current_unit: int) -> bool:
        if kind == "prompt":
            return True
        keep = self.language_recent if kind == "language" else self.recent
        return token_unit <= current_unit and (token_unit < self.sink or token_unit > current_unit - keep)

    def pinned(self, token_unit: int) -> bool:
        return token_unit < self.sink

    def to_json(self) -> object:
        sizes = {"sink": self.sink, "recent": self.recent, "language_recent": self.language_recent}
        return {"window_language": sizes}


def parse(value: object) -> Retention:
    """The policy of a JSON value: `"full"`, `{"window": {"sink", "recent"}}` or
    `{"window_language": {"sink", "recent", "language_recent"}}`. ValueError names the field, the value and what was
    expected."""
    if value == "full":
        return Full()
    if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in ("window", "window_language"):
        raise ValueError(
            'retention: expected "full", {"window": {"sink": int, "recent": int}} or '
            f'{{"window_language": {{"sink": int, "recent": int, "language_recent": int}}}}, got {value!r}'
        )
    name, sizes = next(iter(value.items()))
    kind = Window if name == "window" else WindowLanguage
    expected = ("sink", "recent") if name == "window" else ("sink", "recent", "language_recent")
    if not isinstance(sizes, dict) or set(sizes) != set(expected):
        got = sorted(sizes) if isinstance(sizes, dict) else sizes
        raise ValueError(f"retention.{name}: expected the fields {', '.join(expected)}, got {got!r}")
    return kind(**sizes)


def av_tokens(config: ModelConfig) -> int:
    """Tokens of kind `av` that one unit commits."""
    return config.latent_tokens + config.video.perceive_tokens + config.audio.perceive_tokens + 1  # the query


def language_tokens(config: ModelConfig) -> int:
    """Tokens of kind `language` that one unit commits at most: all typed text and all slots."""
    return config.language.text_tokens + config.language.slots


def history_tokens(retention: Retention, config: ModelConfig, prompt_tokens: int) -> int | None:
    """The most tokens that a session keeps once its windows have filled; None if that never happens (`full`)."""
    av, language = av_tokens(config), language_tokens(config)
    if isinstance(retention, Window):
        return prompt_tokens + (retention.sink + retention.recent) * (av + language)
    if isinstance(retention, WindowLanguage):
        rolling = retention.recent * av + retention.language_recent * language
        return prompt_tokens + retention.sink * (av + language) + rolling
    return None


def pages_needed(
    retention: Retention, config: ModelConfig, prompt_tokens: int, page_tokens: int, units: int | None
) -> int | None:
    """Upper bound of the pages that one session owns at any time within its first `units` units (None: for ever).

    None if no bound exists (`full` for ever). The bound takes every text and slot position as used.
    """
    _at_least("prompt_tokens", prompt_tokens, 0)
    _at_least("page_tokens", page_tokens, 1)
    if units is not None:
        _at_least("units", units, 0)
    av, language = av_tokens(config), language_tokens(config)
    if isinstance(retention, Full):
        return None if units is None else pages_of(prompt_tokens + units * (av + language), page_tokens)
    if not isinstance(retention, Window | WindowLanguage):
        raise ValueError(f"retention: expected Full, Window or WindowLanguage, got {retention!r}")
    pinned_units = retention.sink if units is None else min(retention.sink, units)
    rolling_units = None if units is None else units - pinned_units
    pinned = pages_of(prompt_tokens + pinned_units * (av + language), page_tokens)
    if isinstance(retention, Window):
        return pinned + _rolling_pages(av + language, retention.recent, rolling_units, page_tokens)
    return (
        pinned
        + _rolling_pages(av, retention.recent, rolling_units, page_tokens)
        + _rolling_pages(language, retention.language_recent, rolling_units, page_tokens)
    )


def units_that_fit(
    retention: Retention, config: ModelConfig, prompt_tokens: int, page_tokens: int, pages: int
) -> int | None:
    """How many units a session with `pages` pages surely lasts. None: for ever. This is how long `full` can last."""
    whole = pages_needed(retention, config, prompt_tokens, page_tokens, None)
    if whole is not None and whole <= pages:
        return None
    low, high = -1, pages * page_tokens + 1  # a unit commits at least one token
    while high - low > 1:
        middle = (low + high) // 2
        need = pages_needed(retention, config, prompt_tokens, page_tokens, middle)
        if need is not None and need <= pages:
            low = middle
        else:
            high = middle
    return max(low, 0)


def _rolling_pages(tokens: int, recent: int, units: int | None, page_tokens: int) -> int:
    """Pages of a window of `recent` units of `tokens` tokens, the first of which may begin anywhere in its page."""
    if units is not None and units <= recent:
        return pages_of(units * tokens, page_tokens)  # nothing was evicted yet, so the first page begins at 0
    return pages_of(recent * tokens + page_tokens - 1, page_tokens)


def _at_least(where: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{where}: expected an integer >= {low}, got {value!r}")
