"""Starts and supervises a server: `python -m triton_models.launch --engines DIR`."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import secrets
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from engine_builder.config import FRAMES_PER_UNIT, UNIT_MS
from engine_builder.manifest import GPU_TARGETS, Manifest, ManifestError

from .launcher.arguments import parser
from .launcher.awake import KeepAwake
from .launcher.checks import (
    LaunchError,
    check_descriptors,
    check_guard,
    check_pool,
    check_state,
    check_tls,
    check_trace,
    lock_run,
    read_key,
    reserve_ports,
    verified,
)
from .launcher.connections import Connections
from .launcher.repository import fill_repository
from .launcher.server_process import HTTP_PORT, LOOPBACK, SHM, ServerError, ServerPlan, reached, shown
from .launcher.supervisor import Supervisor, SupervisorOptions
from .planner.capacity import measured_costs, sessions_on_time
from .runtime.budget.admission import CPU_UTILISATION
from .runtime.budget.probe import load_costs
from .runtime.engines.devices import Devices
from .runtime.engines.engine import EngineError
from .runtime.engines.target import Role
from .runtime.kv.pool import PoolError
from .service.settings import DuplexSettings, RunSettings, StageSettings, save

# Models by topology, with their roles: one device, or two.
STAGES: dict[bool, dict[str, Role]] = {
    False: {"stage": "both"},
    True: {"thinker": "thinker", "performer": "performer"},
}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
# One value suits everybody; tests have others.
MAX_IN_FLIGHT = 2  # unanswered units of a session
POLL_SECONDS = 0.5  # a vanished client is noticed within this time
IDLE_SECONDS = 30.0  # a session that sends nothing ends
GRACE_SECONDS = 30.0  # one that lost its stream can be resumed
THREADS = 1  # of each engine


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    mask = os.umask(0o077)
    try:
        if not _NAME.fullmatch(args.name):
            raise LaunchError(f"--name: expected letters, digits, '-' and '_' (at most 40), got {args.name!r}")
        manifest = verified(args.engines, args.device, args.trusted_key)
        check_descriptors(args.max_sessions)
        if args.trace:
            check_trace(args.trace)
        args.fleet_key = read_key(args.fleet_key) if args.fleet_key else ""
        args.guard, args.tls = check_guard(args.guard), check_tls(args.tls_cert, args.tls_key, args.tls_clients)
        prefix = f"wst-{secrets.token_hex(8)}-"
        run = (args.runs / args.name).resolve()
        with lock_run(run, prefix):
            return _serve(args, manifest, run, prefix)
    except (LaunchError, ManifestError, EngineError, PoolError, ServerError, OSError) as error:
        with contextlib.suppress(OSError):
            print(f"triton_models.launch: {error}", file=sys.stderr)
        return 2
    finally:
        os.umask(mask)


def _serve(args: argparse.Namespace, manifest: Manifest, run: Path, prefix: str) -> int:
    wanted = (
        (args.grpc_address, args.grpc_port),
        (args.metrics_address, args.metrics_port),
        (args.metrics_address, args.health_port),
        *([(args.metrics_address, args.agent_port)] if args.agent_port is not None else []),
    )
    with contextlib.ExitStack() as reserved:
        sockets = [reserved.enter_context(each) for each in reserve_ports(wanted)]
        grpc, metrics = (each.getsockname()[1] for each in sockets[:2])
        pages = args.pages or manifest.limits["pool_pages"]
        pool_bytes = check_pool(manifest, pages, args.device)
        states = check_state(manifest, args.state_gb)
        sessions = 0 if args.admit_all else _capacity(args, manifest, pages, min(args.max_sessions, states))
        status = SHM / f"{prefix}status"
        settings = _settings(args, manifest, run, prefix, status, pages, sessions, states)
        fill_repository(run / "repository", manifest, settings, sequences="statistics" in args.open)
        log = None if args.log_to_console else run / "server.log"
        if log is not None:
            log.unlink(missing_ok=True)
        plan = ServerPlan(
            run / "repository",
            run / "backends",
            log,
            grpc,
            metrics,
            prefix,
            args.grpc_address,
            args.metrics_address,
            frozenset(args.open),
            save(settings, run),
            args.tls,
        )
        awake = KeepAwake() if args.awake else None
        keeps_awake = awake is not None and awake.possible()
        facts = {
            "name": args.name,
            "engines": str(args.engines.resolve()),
            "model": manifest.model.name,
            "weights": manifest.weights,
            "grpc": f"{reached(args.grpc_address)}:{grpc}",
            "metrics": f"{reached(args.metrics_address)}:{metrics}",
            **({"agent": f"{reached(args.metrics_address)}:{sockets[3].getsockname()[1]}"} if len(sockets) > 3 else {}),
            "shm_prefix": prefix,
            "awake": keeps_awake,
            "tls": "none" if args.tls is None else "server" if args.tls.clients is None else "mutual",
            **({"http": f"{LOOPBACK}:{HTTP_PORT}"} if "http" in args.open else {}),
        }
        options = SupervisorOptions(drain_seconds=args.drain_seconds, max_restarts=args.max_restarts)
        model = manifest.model
        unit_bytes = 4 * model.audio.unit_samples + 3 * FRAMES_PER_UNIT * model.video.height * model.video.width
        watched = Connections(grpc, unit_bytes, sessions or args.max_sessions)
        supervisor = Supervisor(
            plan,
            status,
            run / "server.json",
            facts,
            sockets[2],
            options,
            _say,
            awake,
            *sockets[3:],
            connections=watched,
        )
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: supervisor.stop())
        signed = f"signed by {args.trusted_key}" if args.trusted_key else "signatures not looked at (--trusted-key)"
        _say(f"model {manifest.model.name}, weights: {manifest.weights}, engines: {signed}")
        _say(f"KV pool: {pages} pages of {manifest.limits['page_tokens']} tokens, {pool_bytes / 2**20:.0f} MiB")
        _say(f"codec state: {manifest.state_bytes / 1e6:.1f} MB a session, {states} fit in {args.state_gb:g} GB")
        if manifest.target in GPU_TARGETS:
            _say_devices(args.device)
        if awake is not None:
            _say("cores stay awake while a session is open" if keeps_awake else f"cores may sleep: {awake.problem}")
        _say(f"gRPC {args.grpc_address}:{grpc}  metrics {args.metrics_address}:{metrics}/metrics")
        _say(f"readiness http://{args.metrics_address}:{supervisor.health_port}/ready  log {log or 'here'}")
        return supervisor.run()


def _settings(
    args: argparse.Namespace,
    manifest: Manifest,
    run: Path,
    prefix: str,
    status: Path,
    pages: int,
    sessions: int,
    states: int,
) -> RunSettings:
    """What the models read."""

    def path(name: str, given: Path | str | None) -> str:
        return shown(name, Path(given).resolve(), run, prefix) if given else ""

    duplex = DuplexSettings(
        engines=path("engines", args.engines),
        max_sessions=args.max_sessions,
        max_in_flight=MAX_IN_FLIGHT,
        idle_ms=round(IDLE_SECONDS * 1000),
        grace_ms=round(GRACE_SECONDS * 1000),
        poll_ms=round(POLL_SECONDS * 1000),
        pages=pages,
        page_tokens=manifest.limits["page_tokens"],
        threads=THREADS,
        state_memory=int(args.state_gb * 1e9),
        sessions=sessions,
        degrade=not args.keep_steps,
        trace=path("trace", args.trace),
        device=args.device,
        admit_all=args.admit_all,
        guard=path("guard", args.guard),
        home=args.home or args.name,
        home_key=args.fleet_key,
    )
    stages = {
        name: StageSettings(
            engines=duplex.engines,
            role=role,
            link=f"{prefix}kv",
            pages=pages,
            page_tokens=duplex.page_tokens,
            max_sessions=min(args.max_sessions, states),
            threads=THREADS,
            degrade=duplex.degrade,
            orphan_seconds=2 * (IDLE_SECONDS + GRACE_SECONDS),  # longer than duplex keeps a silent session
            device=args.device,
            trusted_key=path("trusted_key", args.trusted_key),
        )
        for name, role in STAGES[manifest.target in GPU_TARGETS and Devices.parse(args.device).apart].items()
    }
    return RunSettings(status=str(status), duplex=duplex, stages=stages)


def _capacity(args: argparse.Namespace, manifest: Manifest, pages: int, limit: int) -> int:
    """Sessions that measured costs carry on time, at most `limit`. LaunchError if they cannot be measured: none is let
    in unseen."""
    if load_costs(args.engines, THREADS, args.device) is None:
        _say("measuring what each step costs, once for these engines and this machine")
    costs = measured_costs(args.engines, THREADS, args.device)
    if costs is None:
        raise LaunchError(
            f"{args.engines}: expected step costs, which say how many sessions are on time, and they could not be "
            "measured (the lines above say why); --admit-all takes up to --max-sessions unseen"
        )
    sessions = sessions_on_time(costs, manifest, pages, limit, args.device)
    if sessions:
        _say(
            f"capacity: {sessions} sessions on time by measured step costs, {CPU_UTILISATION:.0%} of them are admitted"
        )
    else:
        unit = costs.unit_ms(0, manifest.model.solver.steps)
        _say(
            f"capacity: 0 sessions, NONE is admitted: a unit takes at least {unit:.0f} ms of its {UNIT_MS}, so not "
            "even one session stays on time. What helps: a faster machine or a GPU target, a smaller model, fewer "
            "solver steps or a shorter window in its checkpoint; costs measured on a quieter machine (python -m "
            "triton_models.measure); --admit-all to let sessions in that will be late"
        )
    return sessions


def _say_devices(device: str) -> None:
    devices = Devices.parse(device)
    _say(
        f"on {devices.describe()}"
        + ("; all sizes of call are prepared first" if devices.gpus else ", far from real time")
    )


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk or a closed terminal behind it is no reason to end
        print(f"[launch] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
