"""Faces and voices by name, out of a folder: NAME.png, NAME.wav and NAME.txt, each of them as it likes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.media.persona import joined, references
from client.stream import MediaError, UnitShape

KINDS = {
    "picture": (".png", ".jpg", ".jpeg", ".webp"),
    "voice": (".wav", ".flac", ".mp3", ".ogg", ".opus"),
    "prompt": (".txt",),
}
MOST = 100  # names
SHAPE = UnitShape(3840, 64, 64)  # at which files are tried; which model they are for is not known yet


class Personas:
    """What a client chooses by `voice`, a name, as it would one of OpenAI's voices."""

    def __init__(self, folder: Path | None = None) -> None:
        """Tries every file. Raises ValueError for a folder without any, MediaError for one that cannot be used."""
        self._files: dict[str, dict[str, Path]] = {}
        self._made: dict[tuple[str, UnitShape], dict[str, str]] = {}
        for path in sorted(folder.iterdir()) if folder is not None else ():
            for kind, endings in KINDS.items():
                if path.suffix.lower() in endings:
                    self._files.setdefault(path.stem, {})[kind] = path
        if folder is not None and not 1 <= len(self._files) <= MOST:
            raise ValueError(
                f"personas: expected 1 to {MOST} of NAME.png, .wav or .txt in {folder}, got {len(self._files)}"
            )
        for name in self._files:
            self._references(name, SHAPE)
        self._made.clear()
        self._prompts = {name: _prompt(files["prompt"]) for name, files in self._files.items() if "prompt" in files}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def in_force(self, asked: object) -> str:
        """The name that counts: one that is not known here leaves the model as it is."""
        return asked if isinstance(asked, str) and asked in self._files else "model"

    def applied(self, options: Mapping[str, Any], shape: UnitShape) -> dict[str, Any]:
        """`options` of a start request with the persona that their `voice` names. A prompt of the client's own counts.

        Raises MediaError for a file that has gone bad.
        """
        rest = {name: value for name, value in options.items() if name != "voice"}
        name = self.in_force(options.get("voice"))
        if name not in self._files:
            return rest
        return joined({**self._prompts.get(name, {}), **rest}, self._references(name, shape))

    def _references(self, name: str, shape: UnitShape) -> dict[str, str]:
        if (name, shape) not in self._made:
            files = self._files[name]
            self._made[name, shape] = references(shape, files.get("picture"), files.get("voice"))
        return self._made[name, shape]


def _prompt(path: Path) -> dict[str, str]:
    try:
        return {"prompt": path.read_text(encoding="utf-8").strip()}
    except UnicodeDecodeError:
        raise MediaError(f"{path}: expected text in UTF-8") from None
