"""The uses of the `think` engine: prompt chunks, the context blocks of a batch, and their slots token by token.

Every pass commits its K/V at once, row by row, and a row whose numbers are not finite commits nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine_builder.layout import UnitLayout, rope_tables

from .engine import EngineSet
from .history import page_multiple, stack, stack_views
from .kv_pool import Pool
from .messages import Float32, Int64, SessionError
from .retention import Kind
from .thinker_session import ThinkerSession
from .validate import finite

_FIRST = np.zeros(1, dtype=np.int64)  # the one token of a slot pass

Outputs = dict[str, np.ndarray]  # logits [B, V] of the last token; k_new, v_new [L, B, T, Hkv, D]


@dataclass(eq=False)
class ThinkRow:
    """One unit of one session on its way through a think pass. `error` is set when the row dropped out."""

    session: ThinkerSession
    unit: int
    text: list[int]  # typed ids of this unit, at most language.text_tokens
    slots: list[int] = field(default_factory=list)  # fed and committed so far
    token: int = -1  # chosen and not fed yet
    error: SessionError | None = None


class ThinkPass:
    """Runs think passes over sessions and commits their K/V to the pool."""

    def __init__(self, engines: EngineSet, pool: Pool) -> None:
        self.config = engines.config
        self.layout = UnitLayout.of(self.config)
        self.engine_ms = 0.0  # inside engine calls so far
        self._engine = engines["think"]
        self._pool = pool
        self._page_multiple = page_multiple(pool.geometry.page_tokens, self.config.backbone.head_dim)
        language = self.config.language
        self._state_ids = np.array(language.state_ids, dtype=np.int64)
        self._not_text = np.zeros(language.vocab_size, dtype=bool)  # never chosen for a text slot; <eou> may be
        self._not_text[list(language.special_ids)] = True
        self._not_text[language.eou_id] = False
        self._absent: dict[int, Outputs] = {}  # by rows: what a pass without a block has in place of its parts
        typed = range(language.text_tokens + 1)
        self._masks = [self._block_mask(count) for count in typed]
        self._committed = [self._block_tokens(count) for count in typed]

    def prefill(self, session: ThinkerSession, start: int, count: int) -> None:
        """Commits prompt tokens from `start` on, at most `count`: causal, the earlier ones seen as history.

        Raises SessionError: INTERNAL if the result is not finite, RESOURCE_EXHAUSTED if no page is left.
        """
        ids = np.array([session.prompt[start : start + count]], dtype=np.int64)
        tokens = ids.shape[1]
        rope = rope_tables(self.config.backbone, np.arange(start, start + tokens)[None])
        out = self._run([session], ids, rope, np.tri(tokens, dtype=bool)[None])
        if not _finite_pass(0, out):
            raise SessionError("INTERNAL", f"prompt of session {session.id!r}: the think engine gave NaN or Inf")
        spans = session.table.append("prompt", -1, tokens)
        self._pool.write(spans, out["k_new"][:, 0], out["v_new"][:, 0], np.arange(tokens))

    def think(self, rows: Sequence[ThinkRow]) -> None:
        """Block and slots of each row: fills `row.slots` (the state first) or `row.error`."""
        self._blocks(rows)
        for slot in range(self.config.language.slots):
            live = [row for row in rows if row.error is None and row.token != self.config.language.eou_id]
            if live:
                self._slot(live, slot)

    def _blocks(self, rows: Sequence[ThinkRow]) -> None:
        """Context blocks `[z^v | z^a | e^v | e^a | text, padded | query]`; the logits choose the state."""
        lay, language = self.layout, self.config.language
        sessions = [row.session for row in rows]
        ids = np.full((len(rows), language.text_tokens + 1), language.pad_id, dtype=np.int64)
        ids[:, -1] = language.query_id
        for b, row in enumerate(rows):
            ids[b, : len(row.text)] = row.text
            self.prepare(row.session, row.unit)
        block = slice(lay.slot_offset)
        out = self._run(
            sessions,
            ids,
            self._rope(rows, block),
            stack([self._masks[len(row.text)] for row in rows]),
            {
                "z_video": stack([session.z_video for session in sessions]),
                "z_audio": stack([session.z_audio for session in sessions]),
                "e_video": stack([session.e_video for session in sessions]),
                "e_audio": stack([session.e_audio for session in sessions]),
            },
        )
        for b, row in enumerate(rows):
            self._commit(row, b, out, self._committed[len(row.text)])
            row.token = int(self._state_ids[np.argmax(out["logits"][b, self._state_ids])])

    def prepare(self, session: ThinkerSession, unit: int) -> None:
        """RoPE of `unit`, unless it is there: what depends on nothing but the unit can be made before it comes."""
        if session.rope is None or session.rope[0] != unit:
            start = session.origin + unit * self.layout.span
            cos, sin = rope_tables(self.config.backbone, np.arange(start, start + self.layout.span))
            session.rope = unit, cos, sin

    def _rope(self, rows: Sequence[ThinkRow], where: slice) -> tuple[Float32, Float32]:
        """cos and sin [B, T, D / 2] of a part of the units' spans."""
        made = [row.session.rope for row in rows if row.session.rope is not None]
        return stack([cos[where] for _, cos, _ in made]), stack([sin[where] for _, _, sin in made])

    def _block_tokens(self, typed: int) -> dict[Kind, Int64]:
        """Which tokens of a block with `typed` text tokens are kept, by what they are to retention."""
        lay = self.layout
        tokens = lay.committed_tokens(typed)  # the query, last of them, is forgotten with sights and sounds
        av = np.concatenate([tokens[: lay.text_offset], tokens[-1:]])
        return {"av": av, "language": tokens[lay.text_offset : -1]} if typed else {"av": av}

    def _block_mask(self, typed: int) -> np.ndarray:
        """bool [T, T] of a block with `typed` text tokens; the rest of their places is padding."""
        lay = self.layout
        mask = np.ones((lay.slot_offset, lay.slot_offset), dtype=bool)
        mask[:, lay.text_offset + typed : lay.query_offset] = False  # nobody sees padding ..
        padding = np.arange(lay.text_offset, lay.query_offset)
        mask[padding, padding] = True  # .. but itself, so that every softmax has a key
        return mask

    def _slot(self, rows: Sequence[ThinkRow], slot: int) -> None:
        """Feeds slot token number `slot` of rows whose block is committed; the logits choose the next token."""
        at = self.layout.slot_offset + slot
        out = self._run(
            [row.session for row in rows],
            np.array([[row.token] for row in rows], dtype=np.int64),
            self._rope(rows, slice(at, at + 1)),
            np.ones((len(rows), 1, 1), dtype=bool),
        )
        for b, row in enumerate(rows):
            self._commit(row, b, out, {"language": _FIRST})
            row.slots.append(row.token)
            row.token = int(np.argmax(np.where(self._not_text, -np.inf, out["logits"][b])))

    def _commit(self, row: ThinkRow, b: int, out: Outputs, groups: dict[Kind, np.ndarray]) -> None:
        """Writes token groups of batch row `b` to the history, or sets `row.error`."""
        if not _finite_pass(b, out):
            what = f"think {row.unit} of session {row.session.id!r}"
            row.error = SessionError("INTERNAL", f"{what}: the think engine gave NaN or Inf")
            return
        try:
            for kind, tokens in groups.items():
                spans = row.session.table.append(kind, row.unit, len(tokens))
                self._pool.write(spans, out["k_new"][:, b], out["v_new"][:, b], tokens)
        except SessionError as error:  # OutOfPages
            row.error = error

    def _run(
        self,
        sessions: Sequence[ThinkerSession],
        ids: Int64,
        rope: tuple[Float32, Float32],
        mask: np.ndarray,
        block: Outputs | None = None,
    ) -> Outputs:
        """One engine call. rope: cos and sin [B, T, D / 2]; block: latents and embeddings, None in other passes."""
        inputs = {
            **(self._no_block(len(sessions)) if block is None else block),
            "ids": ids,
            "rope_cos": rope[0],
            "rope_sin": rope[1],
            "block_mask": mask,
            **stack_views([session.table.view() for session in sessions], self._page_multiple),
            "k_pool": self._pool.k,
            "v_pool": self._pool.v,
        }
        begin = time.perf_counter()
        try:
            return self._engine.run(inputs)
        finally:
            self.engine_ms += (time.perf_counter() - begin) * 1e3

    def _no_block(self, rows: int) -> Outputs:
        """Parts that a pass does not have come with zero tokens."""
        if rows not in self._absent:
            c = self.config
            widths = {"z_video": c.video.latent_dim, "z_audio": c.audio.latent_dim}
            widths |= {"e_video": c.backbone.hidden_size, "e_audio": c.backbone.hidden_size}
            self._absent[rows] = {name: np.zeros((rows, 0, width), np.float32) for name, width in widths.items()}
        return self._absent[rows]


def _finite_pass(b: int, out: Outputs) -> bool:
    if "finite" in out:  # K and V are on a device, which has looked at them
        return bool(out["finite"][b])
    return finite(out["logits"][b]) and finite(out["k_new"][:, b]) and finite(out["v_new"][:, b])
