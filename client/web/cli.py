"""`python -m client.web`: the command line of the gateway."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from client.stream import DuplexError, MediaError
from client.stream.line import host_of
from client.stream.tls import add_tls, read_tls

from ..own_server import ServerFailed, server
from ..terminal import count, minutes, port, seconds
from .call.call_book import GRACE_SECONDS, CallBook
from .call.personas import Personas
from .door.access import PER_MINUTE, Access, is_loopback
from .door.own_cert import make_certificate
from .door.upstream import Upstream
from .gateway import make_app, make_runner, spare_descriptors

RUN = Path("build/runs/web/server")  # of a server that the gateway starts
SECRET_VARIABLE = "WAN_WEB_TOKEN"
EXAMPLES = f"""
on this machine (only loopback can reach it); then open http://127.0.0.1:8080/
  python -m client.web --url 127.0.0.1:8001            with a server that runs already
  python -m client.web --engines build/engines/tiny    with a server of its own

for others: a secret, the origin of the page, and TLS are required together
  head -c 24 /dev/urandom | base64 > secret.txt
  python -m client.web --host 0.0.0.0 --port 8443 --token @secret.txt \\
      --allow-origin https://avatar.example.org:8443 --tls-cert fullchain.pem --tls-key key.pem
  The printed link holds a token that lasts --token-minutes; make more of them with
  curl -X POST -H "Authorization: Bearer $(cat secret.txt)" https://avatar.example.org:8443/v1/realtime/client_secrets
  and open https://avatar.example.org:8443/#token=<value>

clients of OpenAI's Live and Realtime APIs talk to the same port (examples/); the JavaScript SDK takes wss only:
  AsyncOpenAI(base_url="http://127.0.0.1:8080/v1", api_key="<the secret or a token>").realtime.connect(model="duplex")
  python -m client.web --tls-loopback build/tls    and    NODE_EXTRA_CA_CERTS=build/tls/cert.pem node app.mjs

figures for Prometheus: GET /metrics (with the secret as bearer token, where there is one)

The secret may also come from the environment: {SECRET_VARIABLE}.
"""


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="python -m client.web",
        description="Gateway between browsers (a page, /v1/session), OpenAI Realtime clients (/v1/realtime) and a "
        "`duplex` model on Triton. Listens on loopback unless told otherwise.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("--url", default="127.0.0.1:8001", help="gRPC address of the Triton server (%(default)s)")
    out.add_argument("--engines", type=Path, metavar="DIR", help="start a server with these engines instead of --url")
    out.add_argument("--model", default="duplex", help="name of the model (%(default)s)")
    out.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    out.add_argument("--port", type=port, default=8080, help="port to listen on, 0 takes a free one (%(default)s)")
    out.add_argument("--max-sessions", type=count, default=64, help="conversations at once (%(default)s)")
    out.add_argument(
        "--grace", type=seconds, default=GRACE_SECONDS, help="seconds a client may be away and resume (%(default)s)"
    )
    out.add_argument(
        "--personas",
        type=Path,
        metavar="DIR",
        help="faces and voices that clients choose as `voice`: NAME.png, NAME.wav (2 s), NAME.txt (a prompt) there",
    )
    door = out.add_argument_group("who may come in (needed for any --host that is not loopback)")
    door.add_argument("--token", metavar="SECRET|@FILE", help="secret that opens the door and signs short-lived tokens")
    door.add_argument("--token-minutes", type=minutes, default=10.0, help="life of a token (%(default)s)")
    door.add_argument(
        "--connects-per-minute",
        type=count,
        default=PER_MINUTE,
        metavar="N",
        help="connections and tokens for one address, half of them at once (%(default)s)",
    )
    door.add_argument(
        "--allow-origin", action="append", default=[], metavar="ORIGIN", help="origin of the page; may be repeated"
    )
    door.add_argument("--tls-cert", type=Path, metavar="PEM", help="certificate chain")
    door.add_argument("--tls-key", type=Path, metavar="PEM", help="its key")
    door.add_argument(
        "--ice-server",
        action="append",
        default=[],
        metavar="URL",
        help="for WebRTC: stun:HOST:PORT or turn:HOST:PORT?user=NAME&secret=WORD; may be repeated",
    )
    door.add_argument(
        "--tls-loopback",
        type=Path,
        metavar="DIR",
        help="make a certificate for loopback there: clients that take TLS only must trust DIR/cert.pem",
    )
    door.add_argument(
        "--behind-tls-proxy",
        action="store_true",
        help="a proxy in front does TLS and says in X-Forwarded-For who asks; plain HTTP here",
    )
    add_tls(out, "server-")
    return out


def read_access(args: argparse.Namespace) -> Access:
    """The rules that the options describe. Raises ValueError."""
    secret = args.token or os.environ.get(SECRET_VARIABLE) or None
    if secret is not None and secret.startswith("@"):
        try:
            secret = Path(secret[1:]).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"token: {error}") from None
    if (args.tls_cert is None) != (args.tls_key is None):
        raise ValueError("tls: expected --tls-cert and --tls-key together")
    if args.tls_loopback is not None:
        if args.tls_cert is not None or not is_loopback(args.host):
            raise ValueError("tls-loopback: expected it on loopback only, and without --tls-cert")
        args.tls_cert, args.tls_key = make_certificate(args.tls_loopback)
    return Access(
        host=args.host,
        secret=secret,
        origins=frozenset(args.allow_origin),
        tls=(args.tls_cert, args.tls_key) if args.tls_cert is not None else None,
        behind_proxy=args.behind_tls_proxy,
        token_seconds=args.token_minutes * 60,
        per_minute=args.connects_per_minute,
        ice_servers=tuple(args.ice_server),
    )


async def serve(args: argparse.Namespace, access: Access) -> None:
    """Runs until SIGINT or SIGTERM. Raises OSError when the port is taken."""
    context = access.ssl_context()
    app = make_app(
        access,
        Upstream(args.url, args.model, read_tls(args, "server_")),
        CallBook(args.max_sessions, args.grace),
        Personas(args.personas),
    )
    runner = make_runner(app)
    await runner.setup()
    spare_descriptors(runner)
    gc.freeze()  # what is there for good is not looked at again: a collection takes 2 ms instead of 40
    try:
        await web.TCPSite(runner, args.host, args.port, ssl_context=context).start()
        port = runner.addresses[0][1]
        place = min(access.origins) if access.origins else f"{access.scheme}://{args.host}:{port}"
        token = f"#token={access.make_token()[0]}" if access.secret is not None else ""
        print(f"page      {place}/{token}", f"realtime  {place}/v1", f"model     {args.url}", sep="\n", flush=True)
        stop = asyncio.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):
                asyncio.get_running_loop().add_signal_handler(name, stop.set)
        await stop.wait()
    finally:
        await runner.cleanup()


def _run(args: argparse.Namespace, access: Access) -> None:
    if args.engines is None:
        asyncio.run(serve(args, access))
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the server must not outlive a gateway that is starting
    try:
        with server(args.engines, RUN) as facts:
            args.url = facts["grpc"]
            asyncio.run(serve(args, access))
    except ServerFailed as error:
        raise OSError(str(error)) from None


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    args = parser().parse_args(argv)
    try:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a socket is one each, and shells give few
        access = read_access(args)
        host_of(args.url)
        if (tls := read_tls(args, "server_")) is not None:
            tls.credentials()
        _run(args, access)
    except KeyboardInterrupt:  # before the gateway listened; from then on it is a way to stop
        return 130
    except (ValueError, OSError, DuplexError, MediaError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
