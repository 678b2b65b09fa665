"""The launcher's command line."""

from __future__ import annotations

import argparse
import ipaddress
import re
from pathlib import Path

from engine_builder.options import port, real, whole

from .awake import DEVICE, LINGER_SECONDS
from .server_process import HTTP_PORT, LOOPBACK

OPENABLE = ("http", "statistics")

HELP = """\
Starts NVIDIA Triton (the one of its container, else that of the nvidia-pytriton wheel) with the model duplex and its
stages, waits until they serve, and keeps them running: a dead or hung part makes readiness false, open streams
get an error, and the server is restarted. Everything listens on 127.0.0.1 unless told otherwise.

  python -m triton_models.launch --engines build/engines/tiny
  python -m client converse --audio hello.wav --out DIR   talk to it
  curl 127.0.0.1:8003/ready                               200 {"ready": true, ..} or 503 with the reason

Ctrl-C, SIGTERM or SIGHUP ends it in good order: units that were sent are answered, sessions are told, exit code 0. A
second signal does not wait for that. However the launcher ends, its server ends with it. What it writes goes to
build/runs/NAME/, for its user alone: server.json (ports, pids, state), server.log (bounded), and the model repository
that it filled in.

Clients have gRPC: inference, health, metadata and model configuration. Shared memory, repository, log, trace and
statistics are shut to everybody, on loopback too, and there is no HTTP endpoint (--open opens one). Triton kills a
model process that does not answer for about 1 s, a limit that it lets nobody raise: a machine that stalls longer (a
suspended VM, a debugger) loses its sessions to a restart.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m triton_models.launch", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--engines", type=Path, required=True, metavar="DIR", help="engine directory (python -m engine_builder build)")
    add(
        "--trusted-key",
        type=Path,
        metavar="FILE",
        help="public key that must have signed the engines (engine_builder sign)",
    )
    add("--guard", type=Path, metavar="FILE", help="looks at the agent's words before they leave (docs/SERVING.md)")
    add("--name", default="serve", help="name of the run: build/runs/NAME (default: %(default)s)")
    add("--runs", type=Path, default=Path("build/runs"), metavar="DIR", help="where runs go (default: %(default)s)")
    ports = made.add_argument_group("ports", "0 picks a free one; server.json says which")
    ports.add_argument("--grpc-port", type=port, default=8001, metavar="PORT", help="clients (default: %(default)s)")
    ports.add_argument("--metrics-port", type=port, default=8002, metavar="PORT", help="(default: %(default)s)")
    ports.add_argument("--health-port", type=port, default=8003, metavar="PORT", help="/ready (default: %(default)s)")
    place = made.add_argument_group("addresses and TLS", "not loopback: give clients TLS, or put a proxy in front")
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
    place.add_argument("--tls-cert", type=Path, metavar="PEM", help="gRPC with TLS: the server's certificate chain")
    place.add_argument("--tls-key", type=Path, metavar="PEM", help="and its key, which nobody else may read")
    place.add_argument("--tls-clients", type=Path, metavar="PEM", help="mTLS: only clients that this CA has signed")
    fleet = made.add_argument_group("fleet", "one of several servers behind a balancer (build/deploy/README.md)")
    fleet.add_argument("--fleet-key", type=Path, metavar="FILE", help="secret of all, signs whose session it is")
    fleet.add_argument(
        "--home", type=_home, metavar="NAME", help="what the balancer calls this one (default: what --name says)"
    )
    fleet.add_argument(
        "--agent-port", type=port, metavar="PORT", help="tells HAProxy how much room there is (default: none)"
    )
    size = made.add_argument_group("capacity")
    size.add_argument("--pages", type=whole(1), default=0, metavar="N", help="KV pages (default: what was built for)")
    size.add_argument("--max-sessions", type=whole(1), default=32, metavar="N", help="(default: %(default)s)")
    size.add_argument(
        "--state-gb",
        type=real(),
        default=8.0,
        metavar="GB",
        help="memory for the codec states of all sessions, in 10^9 bytes (default: %(default)g)",
    )
    size.add_argument(
        "--device",
        default="",
        metavar="N[,M..]",
        help="GPU of engines built for one; with M the performer has GPU M to itself; with more (0,1,2) it is spread "
        "over all but the first (torch-cuda alone, as many as divide the model's KV heads); cpu: torch-cuda in "
        "Triton's interpreter, to check; cpu,cpu,cpu: the same as if there were three (default: 0)",
    )
    size.add_argument(
        "--admit-all", action="store_true", help="up to --max-sessions, whether they can be on time or not"
    )
    size.add_argument("--keep-steps", action="store_true", help="never shorten a late unit: same input, same output")
    add(
        "--open",
        action="append",
        default=[],
        choices=OPENABLE,
        help=f"a door that is shut otherwise: Triton's HTTP on {LOOPBACK}:{HTTP_PORT}, or the statistics that "
        "perf_analyzer asks for; may be repeated",
    )
    add(
        "--awake",
        action="store_true",
        help=f"keep cores awake: hold {DEVICE} while a session is open and {LINGER_SECONDS:g} s longer. Idle cores "
        "poll, which takes 0.6 ms off a unit and costs power on the whole machine. It needs the right to write there "
        "(root, or a udev rule; build/compose.yaml says how in a container) and does nothing without",
    )
    add(
        "--drain-seconds",
        type=real(),
        default=0.0,
        metavar="S",
        help="at the end: for which open sessions may go on, and are told, while no new ones are taken "
        "(default: %(default)s; a second signal does not wait)",
    )
    add("--log-to-console", action="store_true", help="Triton's log goes where the launcher's goes, to no file")
    add("--trace", type=Path, metavar="FILE", help="one OpenTelemetry trace a unit, as OTLP/JSON lines")
    add(
        "--max-restarts",
        type=whole(),
        default=5,
        metavar="N",
        help="within two minutes; 0: end at the first fault, and let others start anew (default: %(default)s)",
    )
    return made


def _home(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,100}", text):
        raise argparse.ArgumentTypeError(f"expected a name or an address, got {text!r}")
    return text


def _address(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an IPv4 address, got {text!r}") from None
