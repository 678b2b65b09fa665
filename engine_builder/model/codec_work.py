"""What perceive and render do at least, counted in a run on meta tensors: no memory, no weights, no second formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ..config import ModelConfig
from .duplex import DuplexModel
from .steps import StepSpec, step_specs


@dataclass(frozen=True)
class CodecWork:
    """Of one unit of one session. Codecs count in float32 on every target."""

    flops: int  # of convolutions and products; a multiply-add is two
    weight_bytes: int  # read once a call, however many rows it has
    state_bytes: int  # of the session: read and written
    io_bytes: int  # the other inputs and outputs

    def bytes(self, batch: int) -> int:
        return self.weight_bytes + batch * (2 * self.state_bytes + self.io_bytes)


class _Used(TorchDispatchMode):
    """Collects which of a module's tensors take part."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self._known = {id(t): t for t in (*module.parameters(), *module.buffers())}
        self.bytes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if id(leaf) in self._known:
                self.bytes[id(leaf)] = leaf.numel() * leaf.element_size()
        return func(*args, **(kwargs or {}))


def codec_works(config: ModelConfig) -> dict[str, CodecWork]:
    """Of the steps `perceive` and `render`."""
    with torch.device("meta"):
        specs = step_specs(DuplexModel(config), batch=1)
        return {step: _count(specs[step]) for step in ("perceive", "render")}


def _count(spec: StepSpec) -> CodecWork:
    with torch.no_grad(), FlopCounterMode(display=False) as flops, _Used(spec.module) as used:
        results = spec.module(*spec.inputs.values())
    tensors = {**spec.inputs, **dict(zip(spec.outputs, results, strict=True))}
    sizes = {name: t.numel() * t.element_size() for name, t in tensors.items()}
    state = sizes.pop("state")
    del sizes["state_out"]
    return CodecWork(flops.get_total_flops(), sum(used.bytes.values()), state, sum(sizes.values()))
