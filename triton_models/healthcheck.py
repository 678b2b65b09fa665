"""`python -m triton_models.healthcheck`: exit status 0 if a server takes conversations, 1 with the reason if not.

For a container's HEALTHCHECK. Triton's own readiness stays 200 when a model's process is dead; the launcher's does not,
and a launcher that hangs or is gone gives no answer, which is unhealthy too.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
from urllib.parse import urlsplit

READY = "http://127.0.0.1:8003/ready"  # the launcher's default port
TIMEOUT = 3.0


def check(url: str, origin: str | None = None, timeout: float = TIMEOUT) -> tuple[bool, str]:
    """Whether `url` says ready, and the reason that it gives.

    origin: of the page, for a gateway, which answers under its public name only (https://avatar.example.org).
    """
    try:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    except (ValueError, http.client.HTTPException) as error:
        return False, f"expected http://HOST:PORT/PATH, got {url!r} ({error})"
    try:
        connection.request("GET", parts.path, headers={"Host": urlsplit(origin).netloc} if origin else {})
        response = connection.getresponse()
        body = response.read(1 << 20)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return False, f"no answer ({error!r})"
    finally:
        connection.close()
    try:
        reason = str(json.loads(body).get("reason", ""))
    except (ValueError, AttributeError):
        reason = body[:200].decode(errors="replace").strip()
    return response.status == 200, f"{response.status} {reason}".strip()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m triton_models.healthcheck", description=__doc__)
    parser.add_argument("url", nargs="?", default=READY, help="address to ask (default: %(default)s)")
    parser.add_argument("--origin", help="public origin of a gateway, e.g. https://avatar.example.org")
    args = parser.parse_args(argv)
    good, reason = check(args.url, args.origin)
    print(reason)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
