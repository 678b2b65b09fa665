"""Prometheus over a fleet, where that is installed: the rules of build/observability and what it saw at the end."""

from __future__ import annotations

import contextlib
import json
import shutil
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .machines import Balancer, Member, Program, free_ports

RULES = Path(__file__).parents[2] / "build" / "observability" / "alerts.yml"
QUESTIONS = {
    "places, most": "max_over_time(sum(wan_streamer_sessions_capacity)[1h:1s])",
    "free places, least share": "min_over_time((sum(wan_streamer_sessions_free) "
    "/ sum(wan_streamer_sessions_capacity))[1h:1s])",
    "sessions admitted": "sum(max_over_time(wan_streamer_sessions_admitted_total[1h]))",
    "servers seen by haproxy, most": 'max_over_time(sum(haproxy_server_status{proxy="servers",state="UP"})[1h:1s])',
}


class Prometheus(Program):
    """Runs one for as long as the block lasts; without the program it does nothing, and `figures` says so."""

    end_seconds = 20.0

    def __init__(self, run: Path, members: Sequence[Member], balancer: Balancer) -> None:
        self._program, self._run = shutil.which("prometheus"), run
        targets = [f"127.0.0.1:{member.ports[port]}" for member in members for port in ("metrics", "health")]
        jobs = [("servers", targets), ("balancer", [balancer.figures])]
        scrape = [{"job_name": name, "static_configs": [{"targets": found}]} for name, found in jobs]
        every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        self._config = {"global": every, "rule_files": [str(RULES)], "scrape_configs": scrape}

    def __enter__(self) -> Prometheus:
        if self._program is not None:
            config = self._run / "prometheus.yml"
            config.write_text(json.dumps(self._config))  # which is YAML
            [port] = free_ports(1)
            self._url = f"http://127.0.0.1:{port}/api/v1/query?query="
            data = self._run / "prometheus"
            shutil.rmtree(data, ignore_errors=True)
            command = [self._program, f"--config.file={config}", f"--storage.tsdb.path={data}"]
            self._begin([*command, f"--web.listen-address=127.0.0.1:{port}"], self._run / "prometheus.log")
        return self

    def figures(self) -> dict[str, Any] | str:
        if self._process is None:
            return "not installed (apt-get install prometheus); figures are from /ready alone"
        found: dict[str, Any] = {name: self._ask(query) for name, query in QUESTIONS.items()}
        return {**found, "alerts": self._alerts()}

    def _ask(self, query: str) -> float | None:
        with contextlib.suppress(OSError, ValueError, LookupError):
            return float(self._results(query)[0]["value"][1])
        return None

    def _alerts(self) -> list[str]:
        """Names of alerts that fired at some time."""
        with contextlib.suppress(OSError, ValueError, LookupError):
            found = self._results('count by (alertname) (count_over_time(ALERTS{alertstate="firing"}[1h]))')
            return sorted(each["metric"]["alertname"] for each in found)
        return []

    def _results(self, query: str) -> list[dict[str, Any]]:
        with urllib.request.urlopen(self._url + urllib.parse.quote(query), timeout=5) as answer:
            return json.load(answer)["data"]["result"]
