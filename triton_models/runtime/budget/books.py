"""From measured step costs to the books of admission: how many sessions a server of these engines can promise."""

from __future__ import annotations

from pathlib import Path

from engine_builder.config import ModelConfig

from ..kv.retention import Retention, history_tokens
from .admission import Admission, Budget
from .costs import CostTable
from .probe import load_costs

# Client sockets, gRPC and the Python stubs want the same processors as the engines; measured with `bench_overhead`.
CPU_UTILISATION = 0.7


def usual_history(config: ModelConfig, keep: Retention) -> int:
    """Cached tokens of a session with the server's default retention; what capacity is computed for."""
    return history_tokens(keep, config, 0) or 0


def admission(
    directory: Path,
    config: ModelConfig,
    keep: Retention,
    sessions: float,
    threads: int,
    pages: int,
    page_tokens: int,
    device: str = "",
) -> Admission | None:
    """The books for `sessions` that the costs next to the engines were found to carry; None without such costs."""
    costs: CostTable | None = load_costs(directory, threads, device)
    if costs is None or sessions <= 0:
        return None
    budget = Budget(
        sessions=sessions,
        solver_steps=config.solver.steps,
        pages=pages - 1,  # the null page is nobody's
        page_tokens=page_tokens,
        history=usual_history(config, keep),
        utilisation=CPU_UTILISATION,
    )
    return Admission(config, costs, budget)
