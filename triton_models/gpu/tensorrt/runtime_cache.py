"""Kernels that TensorRT-RTX compiled on this GPU, kept in a file, so that the next start finds them.

The library itself looks whether they are of this plan's version, GPU and driver, and takes all or nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton_models.runtime.budget.probe import keeping_place, private_place

MOST_BYTES = 256 << 20  # of a file that is read or written
_log = logging.getLogger(__name__)


def place_of(engine_dir: Path, trusted_key: Path | None) -> Path:
    """Where the files of an engine directory lie. They are code that no signature covers: who asks for one takes them
    from nobody but this user."""
    return keeping_place(engine_dir) if trusted_key is None else private_place(engine_dir)


@dataclass(frozen=True)
class CacheFile:
    """A file that may be missing, damaged, or another GPU's: then kernels are compiled again, and it is replaced."""

    path: Path

    def load(self, cache: Any) -> None:
        """Fills an `IRuntimeCache`. Never raises."""
        try:
            size = self.path.stat().st_size
            if size > MOST_BYTES:
                _log.warning("%s: expected at most %d bytes, got %d; not used", self.path, MOST_BYTES, size)
            elif not cache.deserialize(self.path.read_bytes()):
                _log.warning("%s: expected kernels for this GPU and library, got others or damage; not used", self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("%s: not used (%s)", self.path, error)

    def save(self, cache: Any) -> None:
        """Writes what an `IRuntimeCache` holds, for this user alone, if the file holds something else. Never raises."""
        kernels = bytes(memoryview(cache.serialize()))
        if len(kernels) > MOST_BYTES:
            _log.warning("%s: expected at most %d bytes, got %d; not written", self.path, MOST_BYTES, len(kernels))
            return
        scratch = self.path.with_suffix(".part")
        try:
            if self.path.is_file() and self.path.read_bytes() == kernels:
                return
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            scratch.unlink(missing_ok=True)
            scratch.touch(mode=0o600)
            scratch.write_bytes(kernels)
            scratch.replace(self.path)
        except OSError as error:
            _log.warning("%s: not written (%s)", self.path, error)
