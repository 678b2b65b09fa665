"""Model repository templates: config.pbtxt with ${variables} becomes the repository of one server run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from string import Template

from engine_builder.config import FRAMES_PER_UNIT
from engine_builder.manifest import Manifest

from ..service.settings import RunSettings

TEMPLATES = Path(__file__).parents[1] / "repository"
MODELS = ("duplex", "thinker", "performer")  # what tells its state; the last two may be one stage
CONFIG = "config.pbtxt"
TOLD = ("prompts", "text_bytes", "delegation")  # to clients, where the manifest names them
# The runtime's own session table decides. Triton's batcher would give each session a place, and who starts 65,536 of
# them silences everybody for its idle time. perf_analyzer sends no sequences without one: `oldest` does not serialise
# a sequence of a decoupled model.
SEQUENCES = """
sequence_batching {
  max_sequence_idle_microseconds: ${idle_us}
  oldest { max_candidate_sequences: 65536 }
}
"""


def fill_repository(target: Path, manifest: Manifest, run: RunSettings, sequences: bool = False) -> None:
    """Writes the repository of `duplex` and the stages of a run to `target`, which is replaced.

    Sizes come from the manifest's model. Parameters are what clients read: weights, precision, rates, limits.
    sequences: `duplex` goes through Triton's sequence batcher, for load tools that look for one.
    """
    config, duplex = manifest.model, run.duplex
    suits: dict[str, object] = {**manifest.defaults}
    facts = {
        "max_in_flight": str(duplex.max_in_flight),
        "idle_ms": str(duplex.idle_ms),
        "grace_ms": str(duplex.grace_ms),
        "max_sessions": str(duplex.max_sessions),
        "model": config.name,
        "weights": manifest.weights,
        "precision": manifest.precision,
        "sample_rate": str(config.audio.sample_rate),
        "codecs": f"{config.audio.codec}, {config.video.codec}",
        "session_state_mb": f"{manifest.state_bytes / 1e6:.2f}",
        **{name: _fact(suits[name]) for name in TOLD if name in suits},
    }
    public = {
        "unit_samples": config.audio.unit_samples,
        "frames": FRAMES_PER_UNIT,
        "height": config.video.height,
        "width": config.video.width,
        # Longer than any session of ours may be silent, so that the batcher never forgets one that we still know.
        "sequences": fill(SEQUENCES, {"idle_us": 2_000 * (duplex.idle_ms + duplex.grace_ms)}) if sequences else "",
        "parameters": parameters(facts),
    }
    if target.exists():
        shutil.rmtree(target)
    for model in ("duplex", *run.stages):
        template = TEMPLATES / ("duplex" if model == "duplex" else "stage")
        shutil.copytree(template, target / model, ignore=shutil.ignore_patterns("__pycache__"))
        variables = public if model == "duplex" else {"model": model}
        (target / model / CONFIG).write_text(fill((template / CONFIG).read_text(), variables))


def _fact(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def fill(template: str, variables: Mapping[str, object]) -> str:
    """Replaces ${name}. KeyError for a variable that nobody gave."""
    return Template(template).substitute(variables)


def parameters(values: Mapping[str, str]) -> str:
    """Triton `parameters` entries in protobuf text format."""
    return "\n".join(
        f'parameters {{ key: "{name}" value: {{ string_value: "{_quote(value)}" }} }}' for name, value in values.items()
    )


def _quote(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    if not escaped.isprintable():
        raise ValueError(f"parameter: expected printable text, got {value!r}")
    return escaped
