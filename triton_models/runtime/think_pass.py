"""The uses of the `think` engine: prompt chunks, the context blocks of a batch, and their slots token by token.

Every pass commits its K/V at once, row by row, and a row whose numbers are not finite commits nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine_builder.layout import UnitLayout, rope_tables

from .engine import EngineSet
from .history import page_multiple, stack_views
from .kv_pool import Pool
from .messages import Int64, SessionError
from .retention import Kind
from .thinker_session import ThinkerSession

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
        self._engine = engines["think"]
        self._pool = pool
        self._page_multiple = page_multiple(pool.geometry.page_tokens, self.config.backbone.head_dim)
        language = self.config.language
        self._state_ids = np.array(language.state_ids, dtype=np.int64)
        self._not_text = np.zeros(language.vocab_size, dtype=bool)  # never chosen for a text slot; <eou> may be
        self._not_text[list(language.special_ids)] = True
        self._not_text[language.eou_id] = False

    def prefill(self, session: ThinkerSession, start: int, count: int) -> None:
        """Commits prompt tokens from `start` on, at most `count`: causal, the earlier ones seen as history.

        Raises SessionError: INTERNAL if the result is not finite, RESOURCE_EXHAUSTED if no page is left.
        """
        ids = np.array([session.prompt[start : start + count]], dtype=np.int64)
        tokens = ids.shape[1]
        out = self._run([session], ids, np.arange(start, start + tokens)[None], np.tri(tokens, dtype=bool)[None])
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
        positions = np.empty((len(rows), lay.slot_offset), dtype=np.int64)
        mask = np.ones((len(rows), lay.slot_offset, lay.slot_offset), dtype=bool)
        for b, row in enumerate(rows):
            ids[b, : len(row.text)] = row.text
            positions[b] = lay.block_positions(row.session.origin, row.unit)
            mask[b, :, lay.text_offset + len(row.text) : lay.query_offset] = False  # nobody sees padding ..
        padding = np.arange(lay.text_offset, lay.query_offset)
        mask[:, padding, padding] = True  # .. but itself, so that every softmax has a key
        out = self._run(
            sessions,
            ids,
            positions,
            mask,
            z_video=np.stack([session.z_video for session in sessions]),
            z_audio=np.stack([session.z_audio for session in sessions]),
            e_video=np.stack([session.e_video for session in sessions]),
            e_audio=np.stack([session.e_audio for session in sessions]),
        )
        for b, row in enumerate(rows):
            tokens = lay.committed_tokens(len(row.text))  # the query, last of them, is forgotten with sights and sounds
            av = np.concatenate([tokens[: lay.text_offset], tokens[-1:]])
            self._commit(row, b, out, {"av": av, "language": tokens[lay.text_offset : -1]})
            row.token = int(self._state_ids[np.argmax(out["logits"][b, self._state_ids])])

    def _slot(self, rows: Sequence[ThinkRow], slot: int) -> None:
        """Feeds slot token number `slot` of rows whose block is committed; the logits choose the next token."""
        where = [self.layout.slot_position(row.session.origin, row.unit, slot) for row in rows]
        out = self._run(
            [row.session for row in rows],
            np.array([[row.token] for row in rows], dtype=np.int64),
            np.array(where, dtype=np.int64)[:, None],
            np.ones((len(rows), 1, 1), dtype=bool),
        )
        for b, row in enumerate(rows):
            self._commit(row, b, out, {"language": np.zeros(1, dtype=np.int64)})
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
        positions: Int64,
        mask: np.ndarray,
        **block: np.ndarray,
    ) -> Outputs:
        c, rows = self.config, len(sessions)
        absent = {  # parts that a pass does not have come with zero tokens
            "z_video": (rows, 0, c.video.latent_dim),
            "z_audio": (rows, 0, c.audio.latent_dim),
            "e_video": (rows, 0, c.backbone.hidden_size),
            "e_audio": (rows, 0, c.backbone.hidden_size),
        }
        cos, sin = rope_tables(c.backbone, positions)
        return self._engine.run(
            {
                **{name: block.get(name, np.zeros(shape, dtype=np.float32)) for name, shape in absent.items()},
                "ids": ids,
                "rope_cos": cos,
                "rope_sin": sin,
                "block_mask": mask,
                **stack_views([session.table.view() for session in sessions], self._page_multiple),
                "k_pool": self._pool.k,
                "v_pool": self._pool.v,
            }
        )


def _finite_pass(b: int, out: Outputs) -> bool:
    if "finite" in out:  # K and V are on a device, which has looked at them
        return bool(out["finite"][b])
    kv = (out[name][:, b] for name in ("k_new", "v_new"))
    return all(bool(np.isfinite(array).all()) for array in (out["logits"][b], *kv))
