"""The two spellings of the events: the generally available API and its beta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Wording:
    """Names that differ between the spellings."""

    beta: bool
    audio: str  # response.<audio>.delta, and the type of a content part
    transcript: str
    text: str

    def item_events(self, *, complete: bool) -> tuple[str, ...]:
        """What announces a conversation item: GA says when it comes and when it is complete, beta says it once."""
        if self.beta:
            return ("conversation.item.created",)
        return ("conversation.item.added", "conversation.item.done") if complete else ("conversation.item.added",)

    def modalities(self, modality: str) -> list[str]:
        return ["text", "audio"] if self.beta and modality == "audio" else [modality]

    def part(self, modality: str, text: str | None = None) -> dict[str, Any]:
        """The content part of an agent's message."""
        if modality == "audio":
            return {"type": self.audio, "transcript": text or ""}
        return {"type": self.text, "text": text or ""}

    def stream_part(self, modality: str, text: str = "") -> dict[str, Any]:
        """The same in response.content_part events, which say audio and text in both spellings."""
        return {"type": "audio", "transcript": text} if modality == "audio" else {"type": "text", "text": text}


GA = Wording(beta=False, audio="output_audio", transcript="output_audio_transcript", text="output_text")
BETA = Wording(beta=True, audio="audio", transcript="audio_transcript", text="text")
