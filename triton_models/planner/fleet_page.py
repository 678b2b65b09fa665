"""What `python -m triton_models.plan --fleet` prints and draws."""

from __future__ import annotations

import csv
from pathlib import Path

from .fleet import FleetPlan, FleetReport, erlang_b, servers_needed, simulate_fleet
from .plot import pyplot

COLUMNS = ("hour", "open_sessions", "slots", "servers", "refused_so_far")


def fleet(plan: FleetPlan, target: float, price: float | None, out: Path) -> FleetReport:
    """Simulates, prints the figures, and writes `fleet.csv` and `fleet.png` to `out`."""
    report = simulate_fleet(plan)
    load = plan.busiest_load
    print(
        f"{plan.servers} servers of {plan.capacity} sessions, routing {plan.routing}, {plan.hours:g} h\n"
        f"{load:.0f} sessions at once in the busiest hour if nobody is refused\n"
    )
    rows = [
        ("new sessions refused", f"{report.blocking:.3%} of {report.offered}"),
        ("Erlang B, busiest hour, all servers up", f"{erlang_b(plan.servers * plan.capacity, load):.3%}"),
        (f"servers for at most {target:.2%} refused (Erlang B)", str(servers_needed(load, plan.capacity, target))),
        ("server-hours", f"{report.server_hours:.0f}" + (f" = {report.server_hours * price:.2f}" if price else "")),
    ]
    if plan.failure_hours is not None:
        each = report.cut_by_failures / report.failures if report.failures else 0.0
        rows.append(("sessions cut by failures", f"{report.cut_by_failures}, {each:.1f} for each of {report.failures}"))
    if plan.update_hour is not None:
        rows.append(("sessions cut by the update", f"{report.cut_by_updates}, {report.updated} servers replaced"))
    if plan.failure_hours is not None or plan.update_hour is not None:
        rows.append(("of those cut off, found no other place", str(report.refused_again)))
    for name, value in rows:
        print(f"  {name:<48} {value}")
    out.mkdir(parents=True, exist_ok=True)
    with (out / "fleet.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(report.samples)
    print(f"\n{out / 'fleet.csv'}")
    if _plot(report, out / "fleet.png"):
        print(out / "fleet.png")
    return report


def _plot(report: FleetReport, path: Path) -> bool:
    if (plt := pyplot()) is None:
        return False
    hours, sessions, slots, servers, refused = zip(*report.samples, strict=True)
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 5), sharex=True, layout="constrained")
    top.step(hours, slots, label="slots that take new sessions", color="tab:grey", where="post")
    top.plot(hours, sessions, label="open sessions")
    top.set(ylabel="sessions", ylim=(0, None))
    top.legend()
    bottom.step(hours, servers, label="servers up", where="post")
    bottom.plot(hours, refused, label="refused so far", color="tab:red")
    bottom.set(xlabel="hour", ylim=(0, None))
    bottom.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True
