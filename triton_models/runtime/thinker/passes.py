"""The uses of the `think` engine: prompt chunks, the context blocks of a batch, and their slots token by token.

Every pass commits its K/V at once, row by row, and a row whose numbers are not finite commits nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine_builder.layout import UnitLayout, rope_tables

from ..engines.engine import EngineSet
from ..kv.pages import PageTable
from ..kv.pool import Pool
from ..kv.retention import Kind
from ..kv.tables import join, page_multiple, stack, stack_tables
from ..messages import Float32, Int64, SessionError
from ..validate import finite
from .choice import Choice
from .sessions import ThinkerSession

Tensors = dict[str, Any]  # of an engine call; K and V may be on a device
Rope = tuple[Float32, Float32]  # cos and sin [1, T, D / 2] of a pass of T tokens
Groups = Sequence[tuple[Kind, Int64]]  # which tokens of a pass are kept, by what they are to retention

_SLOT: Groups = [("language", np.zeros(1, dtype=np.int64))]  # the one token of a slot pass


@dataclass(eq=False)
class ThinkRow:
    """One unit of one session on its way through a think pass. `error` is set when the row dropped out."""

    session: ThinkerSession
    unit: int
    text: list[int]  # typed ids of this unit, at most language.text_tokens
    ropes: list[Rope] = field(default_factory=list)  # of the block, then of each slot
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
        self._choice = Choice(language)
        self._untyped = np.full((1, language.text_tokens + 1), language.pad_id, dtype=np.int64)
        self._untyped[0, -1] = language.query_id
        typed = range(language.text_tokens + 1)
        self._masks = [self._block_mask(count)[None] for count in typed]
        self._committed = [self._block_tokens(count) for count in typed]

    def prefill(self, session: ThinkerSession, count: int) -> None:
        """Commits the next tokens of the prompt, at most `count`: causal, the earlier ones seen as history.

        Raises SessionError: INTERNAL if the result is not finite, RESOURCE_EXHAUSTED if no page is left.
        """
        start = session.prefilled
        ids = np.array([session.prompt[start : start + count]], dtype=np.int64)
        tokens = ids.shape[1]
        cos, sin = rope_tables(self.config.backbone, np.arange(start, start + tokens)[None])
        out = self._run([session.table], self._words(ids, (cos, sin), np.tri(tokens, dtype=bool)[None]))
        self._commit_prompt(session, out, tokens)

    def prefill_own(self, session: ThinkerSession, z_video: Float32, z_audio: Float32) -> None:
        """Commits latents [n_v, c_v], [n_a, c_a] as the next unit of the agent's past: they see each other, and all
        that was prefilled before. A context block of which nothing else is kept, so that engines know its shape. Unit 0
        goes on from the picture of the last one, in silence: a voice may have been cut within a word.

        Raises SessionError as `prefill` does.
        """
        lay, d = self.layout, self.config.backbone.hidden_size
        own = np.zeros((lay.slot_offset, lay.slot_offset), dtype=bool)
        own[: lay.latents, : lay.latents] = True
        np.fill_diagonal(own, True)
        cos, sin = rope_tables(self.config.backbone, np.arange(lay.slot_offset)[None] + session.prefilled)
        inputs = {
            "z_video": z_video[None],
            "z_audio": z_audio[None],
            "e_video": np.zeros((1, self.config.video.perceive_tokens, d), np.float32),
            "e_audio": np.zeros((1, self.config.audio.perceive_tokens, d), np.float32),
            "ids": self._untyped,
            "rope_cos": cos,
            "rope_sin": sin,
            "block_mask": own[None],
        }
        self._commit_prompt(session, self._run([session.table], inputs), lay.latents)
        session.z_video = z_video

    def _commit_prompt(self, session: ThinkerSession, out: Tensors, tokens: int) -> None:
        if not _finite_rows(out, 1)[0]:
            raise SessionError("INTERNAL", f"prompt of session {session.id!r}: the think engine gave NaN or Inf")
        spans = session.table.append("prompt", -1, tokens)
        self._pool.write(spans, out["k_new"][:, 0], out["v_new"][:, 0], np.arange(tokens))
        session.prefilled += tokens

    def think(self, rows: Sequence[ThinkRow]) -> None:
        """Block and slots of each row: fills `row.slots` (the state first) or `row.error`."""
        lay, language = self.layout, self.config.language
        for row in rows:
            start = row.session.origin + row.unit * lay.span
            cos, sin = rope_tables(self.config.backbone, np.arange(start, start + lay.span)[None])
            parts = [slice(lay.slot_offset), *(slice(at, at + 1) for at in range(lay.slot_offset, lay.span))]
            row.ropes = [(cos[:, part], sin[:, part]) for part in parts]
        self._blocks(rows)
        for slot in range(language.slots):
            live = [row for row in rows if row.error is None and row.token != language.eou_id]
            if not live:
                break
            self._slot(live, slot)

    def _blocks(self, rows: Sequence[ThinkRow]) -> None:
        """Context blocks `[z^v | z^a | e^v | e^a | text, padded | query]`; the logits choose the state."""
        sessions = [row.session for row in rows]
        cos, sin = _join_ropes([row.ropes[0] for row in rows])
        inputs = {
            "z_video": stack([session.z_video for session in sessions]),
            "z_audio": stack([session.z_audio for session in sessions]),
            "e_video": stack([session.e_video for session in sessions]),
            "e_audio": stack([session.e_audio for session in sessions]),
            "ids": join([self._block_ids(row.text) for row in rows]),
            "rope_cos": cos,
            "rope_sin": sin,
            "block_mask": join([self._masks[len(row.text)] for row in rows]),
        }
        out = self._run([session.table for session in sessions], inputs)
        fine = _finite_rows(out, len(rows))
        for b, row in enumerate(rows):
            self._commit(row, b, out, fine[b], self._committed[len(row.text)])
            if row.error is None:
                row.token = self._choice.state(out, b)

    def _block_ids(self, text: list[int]) -> Int64:
        """int64 [1, I]: typed text, padded, and the query."""
        if not text:
            return self._untyped
        ids = self._untyped.copy()
        ids[0, : len(text)] = text
        return ids

    def _block_tokens(self, typed: int) -> Groups:
        """Which tokens of a block with `typed` text tokens are kept, by what they are to retention."""
        lay = self.layout
        tokens = lay.committed_tokens(typed)  # the query, last of them, is forgotten with sights and sounds
        av = np.concatenate([tokens[: lay.text_offset], tokens[-1:]])
        return [("av", av), ("language", tokens[lay.text_offset : -1])] if typed else [("av", av)]

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
        ids = np.array([[row.token] for row in rows], dtype=np.int64)
        ropes = _join_ropes([row.ropes[1 + slot] for row in rows])
        mask = np.ones((len(rows), 1, 1), dtype=bool)  # a token sees itself
        out = self._run([row.session.table for row in rows], self._words(ids, ropes, mask))
        fine = _finite_rows(out, len(rows))
        for b, row in enumerate(rows):
            self._commit(row, b, out, fine[b], _SLOT)
            if row.error is None:
                row.slots.append(row.token)
                row.token = self._choice.text(out, b)

    def _commit(self, row: ThinkRow, b: int, out: Tensors, fine: bool, groups: Groups) -> None:
        """Writes token groups of batch row `b` to the history, or sets `row.error`."""
        if not fine:
            what = f"think {row.unit} of session {row.session.id!r}"
            row.error = SessionError("INTERNAL", f"{what}: the think engine gave NaN or Inf")
            return
        try:
            for kind, tokens in groups:
                spans = row.session.table.append(kind, row.unit, len(tokens))
                self._pool.write(spans, out["k_new"][:, b], out["v_new"][:, b], tokens)
        except SessionError as error:  # OutOfPages
            row.error = error

    def _run(self, tables: Sequence[PageTable], inputs: Tensors) -> Tensors:
        """One engine call over the histories `tables`, which it adds to `inputs`."""
        inputs["page_table"], inputs["page_range"] = stack_tables(tables, self._page_multiple)
        inputs["k_pool"], inputs["v_pool"] = self._pool.k, self._pool.v
        begin = time.perf_counter()
        try:
            return self._engine.run(inputs)
        finally:
            self.engine_ms += (time.perf_counter() - begin) * 1e3

    def _words(self, ids: Int64, rope: Rope, mask: np.ndarray) -> Tensors:
        """Inputs of a pass of words alone, ids [B, T]: the other parts of a block have zero tokens."""
        c, rows = self.config, len(ids)
        widths = {"z_video": c.video.latent_dim, "z_audio": c.audio.latent_dim}
        widths |= {"e_video": c.backbone.hidden_size, "e_audio": c.backbone.hidden_size}
        nothing = {name: np.zeros((rows, 0, width), np.float32) for name, width in widths.items()}
        return {**nothing, "ids": ids, "rope_cos": rope[0], "rope_sin": rope[1], "block_mask": mask}


def _join_ropes(ropes: Sequence[Rope]) -> Rope:
    return join([cos for cos, _ in ropes]), join([sin for _, sin in ropes])


def _finite_rows(out: Tensors, rows: int) -> list[bool]:
    """Of which rows all numbers are finite. One look at the whole pass, as a rule; only a bad one is searched."""
    if "finite" in out:  # K and V are on a device, which has looked at them
        return [bool(fine) for fine in out["finite"]]
    logits, k, v = out["logits"], out["k_new"], out["v_new"]
    if finite(logits, k, v):
        return [True] * rows
    return [finite(logits[b], k[:, b], v[:, b]) for b in range(rows)]
