"""Capacity planner: how many sessions a machine keeps on time, by simulation of the server's own scheduler.

python -m triton_models.plan --help
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine_builder.config import UNIT_MS, ConfigError, ModelConfig
from engine_builder.options import positive, real, seed, share, whole
from engine_builder.presets import preset

from .planner.fleet import ROUTINGS, FleetPlan
from .planner.fleet_page import fleet
from .planner.plot import pyplot
from .planner.policies import one_at_a_time, request_level, step_level
from .planner.simulate import capacity, simulate
from .planner.workload import Report, Workload, gpu_like
from .runtime.budget.admission import usual_history
from .runtime.budget.costs import CostTable
from .runtime.kv import retention
from .runtime.kv.retention import Full, Retention, pages_needed, units_that_fit

if TYPE_CHECKING:
    from engine_builder.model.codec_work import CodecWork

HELP = """\
Runs the server's own scheduler over a table of step costs in a discrete-event simulation: seeded arrivals, jitter,
session lengths. Prints, for each number of sessions, the share of units answered by their deadline, the latency and how
busy the devices are; then the most sessions that keep 99% of their units on time, for three policies:

  step-level     this package: sessions join and leave the batch at every solver step, earliest deadline first
  request-level  Triton's dynamic batching by itself: a batch runs all its solver steps before the next one forms
  one-at-a-time  no batching

Costs come from the costs.csv that the server measures and keeps next to its engines. Without --costs they are
assumed (--fixed-ms, --row-ms; codecs by their operations at --codec-tflops) and the output says so.
"""
EXAMPLES = f"""\
examples:
  # size a machine from measured costs, window retention, 40 GB of K/V
  python -m triton_models.plan --preset v0.1-8b --costs build/engines/v0.1-8b/costs.csv --kv-gb 40
  # what one device instead of two costs, with a response wanted in 100 ms
  python -m triton_models.plan --devices 1 --deadline 100
  # callers who stay five minutes on average, on a jittery network
  python -m triton_models.plan --session-seconds 300 --jitter 20 --seconds 900
  # how long full history lasts
  python -m triton_models.plan --preset v0.1-1.7b --retention '"full"' --kv-gb 40

  # a fleet: 40 servers of 8 sessions, 5,000 callers an hour, failures, an update at ten, cost by the hour
  python -m triton_models.plan --fleet 40 --server-sessions 8 --arrivals 3600 --failure-hours 200 --update-hour 10
  # one that grows and shrinks with the day (24 rates) and keeps a fifth of its slots free
  python -m triton_models.plan --fleet 10 --server-sessions 8 --free 0.2 \\
    --arrivals 90,60,40,30,30,40,80,200,400,500,520,500,480,500,510,520,500,480,450,400,350,280,200,130

A unit is {UNIT_MS} ms. The deadline counts from the complete unit at the server to its response.
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m triton_models.plan",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = p.add_argument_group("model and machine")
    model.add_argument("--preset", default="v0.1-8b", help="model sizes: decide K/V per session (%(default)s)")
    model.add_argument("--costs", type=Path, help="costs.csv: step,batch,history,ms")
    model.add_argument("--fixed-ms", type=real(), default=6.0, help="assumed: fixed part of a call (%(default)s)")
    model.add_argument("--row-ms", type=real(), default=1.5, help="assumed: part per row of a call (%(default)s)")
    model.add_argument(
        "--codec-tflops",
        type=positive,
        default=53.0,
        help="assumed: what codecs reach in float32 (%(default)s: 80%% of an H100's datasheet)",
    )
    model.add_argument("--devices", type=int, choices=(1, 2), default=2, help="2: thinker and performer have their own")
    model.add_argument("--max-batch", type=whole(1), default=64, help="rows an engine call takes (%(default)s)")
    model.add_argument("--kv-gb", type=positive, help="memory of the K/V pool, in 10^9 bytes")
    model.add_argument(
        "--state-gb", type=real(), default=8.0, help="memory for codec states (%(default)g, as in serve)"
    )
    model.add_argument("--kv-bytes", type=int, choices=(2, 4), default=4, help="bytes of one K/V number (%(default)s)")
    model.add_argument("--page-tokens", type=whole(1), default=16, help="token positions of a page (%(default)s)")
    load = p.add_argument_group("what the clients do")
    load.add_argument(
        "--sessions", type=_numbers, help="numbers to simulate, e.g. 4,8,16 (default: around the capacity)"
    )
    load.add_argument("--deadline", type=positive, default=float(UNIT_MS), help="ms to the response (%(default)s)")
    load.add_argument("--solver-steps", type=whole(1, 1000), help="evaluations a unit (default: the preset's)")
    load.add_argument("--jitter", type=real(), default=5.0, help="mean lateness of an arrival, ms (%(default)s)")
    load.add_argument(
        "--session-seconds", type=positive, help="mean session length (default: the whole simulation; a fleet: 300)"
    )
    load.add_argument(
        "--retention", type=_retention, default='{"window": {"sink": 4, "recent": 50}}', help="as in the wire options"
    )
    many = p.add_argument_group("a fleet (sessions over hours instead of units over seconds)")
    many.add_argument("--fleet", type=whole(1), metavar="SERVERS", help="simulate that many servers behind a balancer")
    many.add_argument("--server-sessions", type=whole(1), help="of one server (default: found from the costs as above)")
    many.add_argument("--arrivals", type=_rates, default=(600.0,), help="sessions an hour, or 24 rates by the hour")
    many.add_argument("--hours", type=positive, default=24.0, help="simulated (%(default)s)")
    many.add_argument("--routing", choices=ROUTINGS, default=ROUTINGS[0], help="of new sessions (%(default)s)")
    many.add_argument("--failure-hours", type=positive, help="mean time between failures of one server (default: none)")
    many.add_argument("--start-seconds", type=real(), default=120.0, help="until a new server serves (%(default)s)")
    many.add_argument("--update-hour", type=real(), help="a rolling update begins then (default: none)")
    many.add_argument("--drain-seconds", type=real(), default=900.0, help="a draining server waits (%(default)s)")
    many.add_argument("--free", type=share, help="a scaler keeps this share of the slots free (default: fixed size)")
    many.add_argument("--refused", type=share, default=0.001, help="share that may be refused (%(default)s)")
    many.add_argument("--price", type=real(), help="of a server-hour")
    run = p.add_argument_group("simulation")
    run.add_argument("--seconds", type=positive, default=15.0, help="simulated time of a run (%(default)s)")
    run.add_argument("--seed", type=seed, default=0, help="of the arrivals; same seed, same result (%(default)s)")
    run.add_argument("--seeds", type=whole(1, 10_000), default=5, help="runs for each figure (%(default)s)")
    run.add_argument("--target", type=share, default=0.99, help="share of units on time (%(default)s)")
    run.add_argument("--degrade", action="store_true", help="let late units have fewer solver steps")
    run.add_argument("--out", type=Path, default=Path("build/runs/plan"), help="for plan.csv, plan.png (%(default)s)")
    return p


def _rates(text: str) -> tuple[float, ...]:
    return tuple(real()(part) for part in text.split(","))


def _numbers(text: str) -> list[int]:
    return [whole(1, 10_000)(part) for part in text.split(",")]


def _retention(text: str) -> retention.Retention:
    try:
        return retention.parse(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        plan(args)
    except (ValueError, ConfigError, OSError) as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    return 0


def plan(args: argparse.Namespace) -> None:
    """Prints the plan and writes `plan.csv` and `plan.png` to `args.out`."""
    config, keep = preset(args.preset), args.retention
    works = _codec_works(config)
    perceive, render = (
        works[step].flops / args.codec_tflops / 1e9 if works else 0.0 for step in ("perceive", "render")
    )
    costs = (
        CostTable.load(args.costs) if args.costs else gpu_like(args.fixed_ms, args.row_ms, codecs=(perceive, render))
    )
    load = Workload(
        seconds=args.seconds,
        deadline=args.deadline,
        jitter=args.jitter,
        solver_steps=args.solver_steps or config.solver.steps,
        devices=args.devices,
        session_seconds=args.session_seconds,
        history=usual_history(config, keep, _pages(config, args) + 1, args.page_tokens),
        seed=args.seed,
    )
    policies = [
        step_level(args.max_batch, degrade=args.degrade),
        request_level(args.max_batch),
        one_at_a_time(),
    ]
    source = args.costs or (
        f"ASSUMED, not measured: {args.fixed_ms:g} + {args.row_ms:g} ms a row and call, "
        f"codecs {perceive + render:.2g} ms a row more"
    )
    print(f"model {config.name}, costs {source}")
    print(
        f"{load.devices} device(s), {load.solver_steps} solver steps, deadline {load.deadline:g} ms, "
        f"jitter {load.jitter:g} ms, seed {load.seed}\n"
    )
    if args.fleet is not None:
        _plan_fleet(args, args.server_sessions or capacity(load, costs, policies[0], target=args.target))
        return
    found = {p.name: capacity(load, costs, p, target=args.target, seeds=args.seeds) for p in policies}
    numbers = args.sessions or _around(found.values())
    reports = [simulate(replace(load, sessions=n), costs, p, args.seeds) for p in policies for n in numbers]
    _print_table(reports)
    print(f"\nsessions with {args.target:.0%} of units on time:")
    for name, sessions in found.items():
        print(f"  {name:<14} {sessions:>4}")
    _print_states(works, args.state_gb)
    if args.kv_gb:
        _print_memory(config, keep, args)
    args.out.mkdir(parents=True, exist_ok=True)
    _write_csv(reports, args.out / "plan.csv")
    print(f"\n{args.out / 'plan.csv'}")
    if _plot(reports, args.target, args.out / "plan.png"):
        print(args.out / "plan.png")


def _codec_works(config: ModelConfig) -> dict[str, CodecWork] | None:
    """What the codecs do and keep; None without torch, which counts it."""
    try:
        from engine_builder.model.codec_work import codec_works
    except ModuleNotFoundError:
        return None
    return codec_works(config)


def _print_states(works: dict[str, CodecWork] | None, gigabytes: float) -> None:
    if works is None:
        print("\ncodec states: not counted, for that needs torch")
        return
    sizes = {step: work.state_bytes for step, work in works.items()}
    each = ", ".join(f"{step} {size / 1e6:.1f}" for step, size in sizes.items())
    fit = int(gigabytes * 1e9 // max(1, sum(sizes.values())))
    print(
        f"\ncodec states: {sum(sizes.values()) / 1e6:.1f} MB a session ({each}): {fit} sessions fit in {gigabytes:g} GB"
    )


def _plan_fleet(args: argparse.Namespace, sessions: int) -> None:
    given = FleetPlan(
        servers=args.fleet,
        capacity=sessions,
        arrivals=args.arrivals,
        session_seconds=args.session_seconds or 300.0,
        hours=args.hours,
        routing=args.routing,
        failure_hours=args.failure_hours,
        start_seconds=args.start_seconds,
        update_hour=args.update_hour,
        drain_seconds=args.drain_seconds,
        free_share=args.free,
        seed=args.seed,
    )
    fleet(given, args.refused, args.price, args.out)


def _around(capacities: Iterable[int]) -> list[int]:
    """Numbers of sessions worth showing: up to a little beyond the largest capacity, at most ten."""
    most = max(1, *capacities)
    top = most + max(2, most // 3)
    return sorted({max(1, round(top * i / 10)) for i in range(1, 11)})


COLUMNS = ("policy", "sessions", "on_time", "p50", "p95", "p99", "shortened", "thinker", "performer", "rows_per_tick")


def _row(report: Report) -> tuple[str | float, ...]:
    return (
        report.policy,
        report.load.sessions,
        round(report.on_time, 4),
        *(round(report.percentile(q), 1) for q in (50, 95, 99)),
        round(report.shortened / report.units, 4) if report.units else 0.0,
        round(report.busy[0], 3),
        round(report.busy[-1], 3),
        round(report.rows_per_tick, 2),
    )


def _print_table(reports: Sequence[Report]) -> None:
    """One line per number of sessions: ours in full, what is compared with it in short."""
    names = list(dict.fromkeys(report.policy for report in reports))
    ours, others = names[0], names[1:]
    by_key = {(report.policy, report.load.sessions): report for report in reports}
    print(f"{'':<10}{ours:<48}" + "".join(f"{name:<19}" for name in others))
    print(
        f"{'sessions':<10}{'on time    p50    p95  p99 ms   busy      rows':<48}"
        + f"{'on time  p99 ms':<19}" * len(others)
    )
    for sessions in sorted({report.load.sessions for report in reports}):
        report = by_key[ours, sessions]
        busy = " ".join(f"{share:.0%}" for share in report.busy)
        latency = "".join(f"{report.percentile(q):>7.0f}" for q in (50, 95, 99))
        line = f"{report.on_time:>7.1%}{latency}   {busy:<10}{report.rows_per_tick:.1f}"
        rest = (by_key[name, sessions] for name in others)
        print(f"{sessions:<10}{line:<48}" + "".join(f"{r.on_time:>7.1%}{r.percentile(99):>8.0f}    " for r in rest))


def _print_memory(config: ModelConfig, keep: Retention, args: argparse.Namespace) -> None:
    page_bytes, pages = _page_bytes(config, args), _pages(config, args)
    print(f"\nmemory: {pages} pages of {args.page_tokens} tokens ({page_bytes / 1e6:.2f} MB each)")
    if isinstance(keep, Full):
        units = units_that_fit(keep, config, 0, args.page_tokens, pages) or 0
        print(f"  full history of one session lasts {units * UNIT_MS / 1000:.0f} s; of n sessions, an n-th of that")
        return
    each = pages_needed(keep, config, 0, args.page_tokens, None) or 1
    print(f"  a session needs {each} pages ({each * page_bytes / 1e9:.2f} GB): {pages // each} sessions fit, for ever")


def _page_bytes(config: ModelConfig, args: argparse.Namespace) -> int:
    return config.kv_bytes_per_token * args.kv_bytes // 4 * args.page_tokens


def _pages(config: ModelConfig, args: argparse.Namespace) -> int:
    """Of the pool, without the null page; without --kv-gb, as many as anybody could want."""
    return max(0, int(args.kv_gb * 1e9) // _page_bytes(config, args) - 1) if args.kv_gb else 1 << 20


def _write_csv(reports: Sequence[Report], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(_row(report) for report in reports)


def _plot(reports: Sequence[Report], target: float, path: Path) -> bool:
    """On-time share and p99 over sessions. False (with a word why) where matplotlib is not installed."""
    if (plt := pyplot()) is None:
        return False
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in dict.fromkeys(report.policy for report in reports):
        mine = [report for report in reports if report.policy == name]
        sessions = [report.load.sessions for report in mine]
        left.plot(sessions, [100 * report.on_time for report in mine], marker="o", label=name)
        right.plot(sessions, [report.percentile(99) for report in mine], marker="o", label=name)
    deadline = reports[0].load.deadline
    left.axhline(100 * target, color="grey", linestyle=":")
    right.axhline(deadline, color="grey", linestyle=":")
    left.set(xlabel="sessions", ylabel="units on time, %", ylim=(0, 103))
    right.set(xlabel="sessions", ylabel="p99 response, ms", ylim=(0, 3 * deadline))
    left.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


if __name__ == "__main__":
    raise SystemExit(main())
