"""Starts and supervises a server: `python -m triton_models.launch --engines DIR`."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import ipaddress
import re
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import psutil

from engine_builder.config import UNIT_MS
from engine_builder.manifest import GPU_TARGETS, TENSORRT_MODULES, Manifest, ManifestError

from .launcher.awake import DEVICE, LINGER_SECONDS, KeepAwake
from .launcher.repository import fill_repository
from .launcher.server_process import LOOPBACK, Ports, ServerError, ServerPlan, reached
from .launcher.supervisor import Supervisor, SupervisorOptions
from .planner.capacity import measured_costs, sessions_on_time
from .runtime.budget.admission import CPU_UTILISATION
from .runtime.budget.probe import load_costs
from .runtime.engines.devices import Devices
from .runtime.engines.engine import TARGET, EngineError
from .runtime.engines.target import Role
from .runtime.kv.pool import PoolError, PoolGeometry
from .service.settings import DuplexSettings, RunSettings, StageSettings, save

# Models by topology, with their roles: one device, or two.
STAGES: dict[bool, dict[str, Role]] = {
    False: {"stage": "both"},
    True: {"thinker": "thinker", "performer": "performer"},
}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")

HELP = """\
Starts NVIDIA Triton (the one of its container, else that of the nvidia-pytriton wheel) with the model duplex and its
stages, waits until they serve, and keeps them running: a dead or hung part makes readiness false, open streams
get an error, and the server is restarted. Everything listens on 127.0.0.1 unless told otherwise.

  python -m triton_models.launch --engines build/engines/tiny
  python -m client converse --audio hello.wav --out DIR   talk to it
  curl 127.0.0.1:8003/ready                               200 {"ready": true, ..} or 503 with the reason

Ctrl-C or SIGTERM ends it in good order: units that were sent are answered, sessions are told, exit code 0. A second
signal does not wait for that. What it writes goes to build/runs/NAME/: server.json (ports, pids, state), server.log,
and the model repository that it filled in.
"""


class LaunchError(ValueError):
    """An argument that cannot work; the message says what was expected."""


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        if not _NAME.fullmatch(args.name):
            raise LaunchError(f"--name: expected letters, digits, '-' and '_' (at most 40), got {args.name!r}")
        manifest = verified(args.engines, args.device)
        run = (args.runs / args.name).resolve()
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LaunchError(f"--runs {args.runs}: expected a directory that can be written to ({error})") from None
        with _lock(run):
            return _serve(args, manifest, run)
    except (LaunchError, ManifestError, EngineError, PoolError, ServerError) as error:
        print(f"triton_models.launch: {error}", file=sys.stderr)
        return 2


def verified(engines: Path, device: str = "") -> Manifest:
    """The manifest of an engine directory that this machine can serve; refuses before anything is loaded.

    Raises ManifestError, LaunchError, or EngineError if a library or a GPU is missing.
    """
    manifest = Manifest.load(engines)
    manifest.verify(engines, target=manifest.target if manifest.target in GPU_TARGETS else TARGET)
    if manifest.target in GPU_TARGETS:
        from .gpu.serving import check_target

        try:
            check_target(manifest, Devices.parse(device))
        except ValueError as error:
            raise LaunchError(f"--{error}") from None
        return manifest
    if device:
        raise LaunchError(f"--device {device}: {engines} was built for {manifest.target}, which runs on any processor")
    if importlib.util.find_spec(TARGET) is None:
        raise LaunchError(
            f"{engines}: built for {TARGET} {manifest.libraries.get(TARGET, '')}, expected that package, got none; "
            "install it: pip install 'wan-streamer-triton[serve]'"
        )
    return manifest


def _serve(args: argparse.Namespace, manifest: Manifest, run: Path) -> int:
    grpc, http, metrics, health = pick_ports((args.grpc_port, args.http_port, args.metrics_port, args.health_port))
    # Two checkouts may use one name, and all processes of a machine share /dev/shm.
    prefix = f"wst-{args.name}-{hashlib.sha256(str(run).encode()).hexdigest()[:8]}-"
    status = run / "status"
    pages = args.pages or manifest.limits["pool_pages"]
    page_tokens = manifest.limits["page_tokens"]
    pool_bytes = check_pool(manifest, pages, args.device)
    sessions = 0
    if not args.admit_all:
        sessions = _capacity(args, manifest, pages)
    duplex = DuplexSettings(
        engines=str(args.engines.resolve()),
        max_sessions=args.max_sessions,
        max_in_flight=args.max_in_flight,
        idle_ms=round(args.idle_seconds * 1000),
        grace_ms=round(args.grace_seconds * 1000),
        poll_ms=round(args.poll_seconds * 1000),
        pages=pages,
        page_tokens=page_tokens,
        threads=args.threads,
        sessions=sessions,
        degrade=not args.keep_steps,
        trace=str(args.trace.resolve()) if args.trace else "",
        device=args.device,
        admit_all=args.admit_all,
    )
    stages = {
        name: StageSettings(
            engines=duplex.engines,
            role=role,
            link=f"{prefix}kv",
            pages=pages,
            page_tokens=page_tokens,
            max_sessions=args.max_sessions,
            threads=args.threads,
            degrade=not args.keep_steps,
            orphan_seconds=2 * (args.idle_seconds + args.grace_seconds),  # longer than duplex keeps a silent session
            device=args.device,
        )
        for name, role in STAGES[manifest.target in GPU_TARGETS and Devices.parse(args.device).apart].items()
    }
    settings = RunSettings(status=str(status), duplex=duplex, stages=stages)
    fill_repository(run / "repository", manifest, settings)
    log = None if args.log_to_console else run / "server.log"
    if log is not None:
        log.unlink(missing_ok=True)
    if args.trace:  # restarts append
        args.trace.unlink(missing_ok=True)
    plan = ServerPlan(
        run / "repository",
        run / "backends",
        log,
        Ports(grpc, http, metrics),
        prefix,
        args.grpc_address,
        args.metrics_address,
        args.triton,
        save(settings, run),
    )
    awake = None if args.no_awake else KeepAwake()
    keeps_awake = awake is not None and awake.possible()
    facts = {
        "name": args.name,
        "engines": duplex.engines,
        "model": manifest.model.name,
        "weights": manifest.weights,
        "grpc": f"{reached(args.grpc_address)}:{grpc}",
        "http": f"127.0.0.1:{http}",
        "metrics": f"{reached(args.metrics_address)}:{metrics}",
        "shm_prefix": prefix,
        "awake": keeps_awake,
    }
    options = SupervisorOptions(drain_seconds=args.drain_seconds, max_restarts=args.max_restarts)
    supervisor = Supervisor(plan, status, run / "server.json", facts, health, options, _say, awake)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())
    _say(f"model {manifest.model.name}, weights: {manifest.weights}")
    _say(f"KV pool: {pages} pages of {page_tokens} tokens, {pool_bytes / 2**20:.0f} MiB")
    if manifest.target in GPU_TARGETS:
        _say_devices(args.device)
    if awake is not None:
        _say("cores stay awake while a session is open" if keeps_awake else f"cores may sleep: {awake.problem}")
    _say(f"gRPC {args.grpc_address}:{grpc}  HTTP 127.0.0.1:{http}  metrics {args.metrics_address}:{metrics}/metrics")
    _say(f"readiness http://{args.metrics_address}:{supervisor.health_port}/ready  log {log or 'here'}")
    return supervisor.run()


def _capacity(args: argparse.Namespace, manifest: Manifest, pages: int) -> int:
    """Sessions that measured costs carry on time. LaunchError if they cannot be measured: none is let in unseen."""
    if load_costs(args.engines, args.threads, args.device) is None:
        _say("measuring what each step costs, once for these engines and this machine")
    costs = measured_costs(args.engines, args.threads, args.device)
    if costs is None:
        raise LaunchError(
            f"{args.engines}: expected step costs, which say how many sessions are on time, and they could not be "
            "measured (the lines above say why); --admit-all takes up to --max-sessions unseen"
        )
    sessions = sessions_on_time(costs, manifest, pages, args.max_sessions, args.device)
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


def check_pool(manifest: Manifest, pages: int, device: str) -> int:
    """Bytes of the KV pool; LaunchError if it is known already that it cannot be made."""
    geometry = PoolGeometry.of(manifest.model, pages, manifest.limits["page_tokens"])
    if manifest.target not in GPU_TARGETS:
        size, free = geometry.bytes, psutil.virtual_memory().available
        if size > free:
            raise LaunchError(f"--pages {pages}: expected {size / 2**20:.0f} MiB of memory, got {free / 2**20:.0f}")
        return size
    if manifest.target in TENSORRT_MODULES and pages != manifest.limits["pool_pages"]:
        raise LaunchError(
            f"--pages {pages}: these plans were built for a pool of {manifest.limits['pool_pages']} pages; leave the "
            "option out, or build with another --pool-pages"
        )
    from .gpu.cuda.device_pool import pool_bytes  # what fits a GPU shows when it is allocated

    return pool_bytes(geometry, manifest.precision)


def _say_devices(device: str) -> None:
    devices = Devices.parse(device)
    _say(
        f"on {devices.describe()}"
        + ("; all sizes of call are prepared first" if devices.gpus else ", far from real time")
    )


def pick_ports(wanted: Sequence[int]) -> list[int]:
    """The ports asked for; 0 becomes a free one. LaunchError if one is taken."""
    sockets: list[socket.socket] = []
    try:
        for port in wanted:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sockets.append(listener)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError as error:
                raise LaunchError(f"port {port}: expected a free one ({error}); 0 picks one") from None
        return [listener.getsockname()[1] for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()


def _lock(run: Path) -> IO[str]:
    """Held for as long as the launcher runs: two servers of one name would remove each other's files."""
    file = (run / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise LaunchError(f"{run}: expected no server of this name, got one that runs; choose another --name") from None
    return file


def _say(text: str) -> None:
    print(f"[launch] {text}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m triton_models.launch", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--engines", type=Path, required=True, metavar="DIR", help="engine directory (python -m engine_builder build)")
    add("--name", default="serve", help="name of the run: build/runs/NAME (default: %(default)s)")
    add("--runs", type=Path, default=Path("build/runs"), metavar="DIR", help="where runs go (default: %(default)s)")
    ports = parser.add_argument_group("ports", "0 picks a free one; server.json says which")
    ports.add_argument("--grpc-port", type=int, default=8001, metavar="PORT", help="clients (default: %(default)s)")
    ports.add_argument("--http-port", type=int, default=8000, metavar="PORT", help="Triton HTTP (default: %(default)s)")
    ports.add_argument("--metrics-port", type=int, default=8002, metavar="PORT", help="(default: %(default)s)")
    ports.add_argument("--health-port", type=int, default=8003, metavar="PORT", help="/ready (default: %(default)s)")
    place = parser.add_argument_group("addresses", "not loopback: put mTLS or a proxy in front")
    place.add_argument(
        "--grpc-address", type=_address, default=LOOPBACK, metavar="IP", help="clients (default: %(default)s)"
    )
    place.add_argument(
        "--metrics-address",
        type=_address,
        default=LOOPBACK,
        metavar="IP",
        help="metrics, /ready (default: %(default)s)",
    )
    size = parser.add_argument_group("capacity")
    size.add_argument("--pages", type=_count, default=0, metavar="N", help="KV pages (default: what was built for)")
    size.add_argument("--max-sessions", type=_count, default=32, metavar="N", help="(default: %(default)s)")
    size.add_argument(
        "--max-in-flight", type=_count, default=2, metavar="N", help="unanswered units a session (default: %(default)s)"
    )
    size.add_argument("--threads", type=_count, default=1, metavar="N", help="of each engine (default: %(default)s)")
    size.add_argument(
        "--device",
        default="",
        metavar="N[,M]",
        help="GPU of engines built for one; with M the performer has GPU M to itself; cpu: torch-cuda in Triton's "
        "interpreter, to check (default: 0)",
    )
    size.add_argument(
        "--admit-all", action="store_true", help="up to --max-sessions, whether they can be on time or not"
    )
    size.add_argument("--keep-steps", action="store_true", help="never shorten a late unit: same input, same output")
    times = parser.add_argument_group("times, in seconds")
    times.add_argument("--poll-seconds", type=_seconds, default=0.5, metavar="S", help="look for vanished clients")
    times.add_argument("--idle-seconds", type=_seconds, default=30.0, metavar="S", help="a silent session ends")
    times.add_argument("--grace-seconds", type=_seconds, default=30.0, metavar="S", help="a lost one can be resumed")
    times.add_argument("--drain-seconds", type=_seconds, default=10.0, metavar="S", help="to answer what is open")
    add(
        "--no-awake",
        action="store_true",
        help=f"let cores sleep between units. Without it the launcher holds {DEVICE} while a session is open and "
        f"{LINGER_SECONDS:g} s longer: idle cores poll, which takes 0.6 ms off a unit and costs power on the whole "
        "machine. It needs the right to write there (root, or a udev rule; build/compose.yaml says how in a container) "
        "and does nothing without",
    )
    add("--triton", type=Path, metavar="DIR", help="Triton to start (default: /opt/tritonserver or that of the wheel)")
    add("--log-to-console", action="store_true", help="Triton's log goes where the launcher's goes, to no file")
    add("--trace", type=Path, metavar="FILE", help="one OpenTelemetry trace a unit, as OTLP/JSON lines")
    add("--max-restarts", type=int, default=5, metavar="N", help="within two minutes (default: %(default)s)")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def _address(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an IPv4 address, got {text!r}") from None


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected more than 0 seconds, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
