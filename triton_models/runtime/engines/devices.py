"""Which device each role runs on, and which GPUs there are. No context is made and no torch is imported here."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass

CPU = "cpu"
_FORM = re.compile(r"\d+(,\d+)*|cpu(,cpu)*")


@dataclass(frozen=True)
class Devices:
    """GPU numbers of the roles as text ("0"), or "cpu": the kernels in Triton's interpreter, for checks.

    `apart`: the performer has a pool of its own, to which the thinker copies what it writes. `others`: devices of the
    further ranks of a performer group, the first of which is `performer`.
    """

    thinker: str = "0"
    performer: str = "0"
    apart: bool = False
    others: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Devices:
        """ "" (the first GPU), "N", "N,M" (thinker, performer), "N,M,O.." (thinker, performer group), or as many times
        "cpu". ValueError for anything else."""
        if not text:
            return cls()
        if not _FORM.fullmatch(text):
            raise ValueError(f"device: expected GPU numbers with commas between them, or cpu, got {text!r}")
        thinker, *group = text.split(",")
        if len(group) > 1 and thinker != CPU and len({thinker, *group}) <= len(group):
            raise ValueError(
                f"device: expected a GPU for the thinker and one for each rank of the performer, got {text}"
            )
        performer, *others = group or [thinker]
        return cls(thinker, performer, bool(group) and (performer != thinker or thinker == CPU), tuple(others))

    @property
    def group(self) -> tuple[str, ...]:
        """Where each rank of the performer is."""
        return self.performer, *self.others

    @property
    def gpus(self) -> list[int]:
        """The numbers of the GPUs that are needed; none for the interpreter."""
        return sorted({int(name) for name in (self.thinker, *self.group) if name != CPU})

    def describe(self) -> str:
        """What a measurement is valid for: names of the devices."""
        found = installed_gpus()
        names = ", ".join(found[n] if n < len(found) else f"GPU {n}" for n in self.gpus) or "Triton's interpreter"
        return f"{names}, a performer of {len(self.group)} ranks" if self.others else names


def installed_gpus() -> list[str]:
    """Names of the GPUs that the driver shows this process; empty without a driver, a GPU or cuda-python."""
    try:
        driver = importlib.import_module("cuda.bindings.driver")
        (status,) = driver.cuInit(0)
    except Exception:  # no package, or no driver: the package raises types of its own
        return []
    if int(status) != 0:
        return []
    _, count = driver.cuDeviceGetCount()
    names = []
    for number in range(count):
        _, device = driver.cuDeviceGet(number)
        _, name = driver.cuDeviceGetName(128, device)
        names.append(name.decode().rstrip("\0"))
    return names
