"""What a client may ask for when it starts a session: the `options` JSON of the wire contract, validated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from engine_builder.config import RECENT_UNITS, SINK_UNITS, ModelConfig
from engine_builder.manifest import ENCODE, Manifest

from ..kv import retention as policies
from ..kv.retention import Retention, Window
from ..messages import MAX_TEXT_BYTES, SessionError
from .persona import NOBODY, Persona, largest

MAX_HOME = 2048  # characters of a home token; ours have a few hundred
MAX_SEED = 2**63 - 1  # fits every JSON reader's and Triton's signed 64-bit integer


@dataclass(frozen=True)
class OptionLimits:
    """What this server allows and what it takes where a client says nothing."""

    solver_steps: int = 4  # default
    max_solver_steps: int = 16
    prompt: str = ""
    max_prompt_bytes: int = 16_384
    max_json_bytes: int = 65_536  # beside the references of a persona
    text_bytes: int = MAX_TEXT_BYTES  # typed in one unit; a checkpoint may have learnt to read less
    model: ModelConfig = field(default_factory=ModelConfig)  # whose sizes references have
    encodes: bool = False  # and whether its engines take any
    # Its cost is flat however long a session lasts.
    retention: Retention = field(default_factory=lambda: Window(SINK_UNITS, RECENT_UNITS))

    @classmethod
    def of(cls, manifest: Manifest) -> OptionLimits:
        """What suits the engines: their solver schedule, and their checkpoint's prompt and retention, if it has any.

        Raises ValueError for a retention that no policy knows.
        """
        solver, given = manifest.model.solver, manifest.defaults.get("retention")
        limits = cls(
            solver_steps=solver.steps,
            max_solver_steps=solver.max_steps,
            prompt=next(iter(manifest.defaults.get("prompts", [])), ""),  # it was never trained without one
            text_bytes=min(manifest.defaults.get("text_bytes", MAX_TEXT_BYTES), MAX_TEXT_BYTES),
            model=manifest.model,
            encodes=ENCODE in manifest.engines,
        )
        return limits if given is None else replace(limits, retention=policies.parse(given))


@dataclass(frozen=True)
class SessionOptions:
    """Validated options of one session.

    prompt        persona prompt, prefilled before unit 0; may be given as that of `persona`; "" is none at all
    persona       picture and voice, prefilled after it
    seed          of the noise: same seed and same input give the same output
    retention     what the history keeps
    solver_steps  evaluations of the velocity field a unit, before any degradation
    hold_open     the response stream of the start request stays open until the session ends
    resume        a lost connection keeps the session for the grace time instead of ending it
    home          with `resume`: the token of the first answer, where the server is one of a fleet
    given         the fields that the client named
    prompt_tokens of prompt and persona, for whoever has counted them
    echo_canceller  takes the agent's voice, where it comes back, out of the user's sound
    """

    prompt: str
    seed: int
    retention: Retention
    solver_steps: int
    hold_open: bool
    resume: bool
    home: str = ""
    given: frozenset[str] = frozenset()
    prompt_tokens: int = 0
    persona: Persona = NOBODY
    echo_canceller: bool = True

    @classmethod
    def parse(cls, raw: str | bytes | None, limits: OptionLimits) -> SessionOptions:
        """Options from the JSON text of a start request; None or empty means all defaults.

        Raises SessionError INVALID_ARGUMENT naming the field, the value and what was expected.
        """
        given = _load(raw, limits)
        known = [f.name for f in fields(cls) if f.name not in ("given", "prompt_tokens")]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise _invalid("options", f"only the fields {', '.join(known)}", unknown)
        prompt, persona = given.get("prompt", limits.prompt), NOBODY
        if "persona" in given:
            try:
                persona, prompt = Persona.parse(given["persona"], limits.model, limits.encodes, prompt)
            except ValueError as error:
                raise SessionError("INVALID_ARGUMENT", f"options.{error}") from None
            if "prompt" in given:
                raise _invalid("options.prompt", "it in the persona or beside it, not twice", given["prompt"])
        if not isinstance(prompt, str):
            raise _invalid("options.prompt", "a string", prompt)
        try:
            size = len(prompt.encode())
        except UnicodeEncodeError:  # JSON can spell half a surrogate pair, no tokenizer can read one
            raise _invalid("options.prompt", "valid Unicode", prompt) from None
        _check_size("options.prompt", size, limits.max_prompt_bytes)
        try:
            keep = policies.parse(given["retention"]) if "retention" in given else limits.retention
        except ValueError as error:
            raise SessionError("INVALID_ARGUMENT", f"options.{str(error)[:400]}") from None
        return cls(
            prompt=prompt,
            seed=_integer(given, "seed", 0, 0, MAX_SEED),
            retention=keep,
            solver_steps=_integer(given, "solver_steps", limits.solver_steps, 1, limits.max_solver_steps),
            hold_open=_flag(given, "hold_open"),
            resume=_flag(given, "resume"),
            echo_canceller=_flag(given, "echo_canceller", True),
            home=_short(given, "home"),
            given=frozenset(given),
            persona=persona,
        )


def interrupts(raw: str | bytes | None, limits: OptionLimits) -> bool:
    """Whether a unit in mid-session interrupts the agent: {"interrupt": true} is all that its options may say.

    Raises SessionError INVALID_ARGUMENT.
    """
    if not raw:
        return False
    given = _load(raw, limits)
    if set(given) != {"interrupt"}:
        raise SessionError(
            "INVALID_ARGUMENT",
            f'options: expected only with sequence_start, or {{"interrupt": true}} alone, got {sorted(given)}',
        )
    return _flag(given, "interrupt")


def _load(raw: str | bytes | None, limits: OptionLimits) -> dict[str, object]:
    """The JSON object of `raw`, its fields not yet validated."""
    if not raw:
        return {}
    _check_size("options", len(raw), limits.max_json_bytes + (largest(limits.model) if limits.encodes else 0))
    try:
        given = json.loads(raw)
    except (ValueError, RecursionError) as error:  # ValueError covers JSON and UTF-8 alike
        raise _invalid("options", f"a JSON object ({error})", raw[:80]) from None
    if not isinstance(given, dict):
        raise _invalid("options", "a JSON object", given)
    return given


def _integer(given: Mapping[str, object], name: str, default: int, low: int, high: int) -> int:
    value = given.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _invalid(f"options.{name}", f"an integer {low} to {high}", value)
    return value


def _short(given: Mapping[str, object], name: str) -> str:
    value = given.get(name, "")
    if not isinstance(value, str) or len(value) > MAX_HOME:
        raise _invalid(f"options.{name}", f"a string of at most {MAX_HOME} characters", value)
    return value


def _flag(given: Mapping[str, object], name: str, default: bool = False) -> bool:
    value = given.get(name, default)
    if not isinstance(value, bool):
        raise _invalid(f"options.{name}", "true or false", value)
    return value


def _check_size(where: str, size: int, limit: int) -> None:
    if size > limit:
        raise SessionError("INVALID_ARGUMENT", f"{where}: expected at most {limit} bytes, got {size}")


def _invalid(where: str, expected: str, got: object) -> SessionError:
    shown = repr(got)
    shown = shown if len(shown) <= 200 else shown[:200] + "..."
    return SessionError("INVALID_ARGUMENT", f"{where}: expected {expected}, got {shown}")
