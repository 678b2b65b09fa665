"""A real Prometheus scrapes a real server: every metric has a sample, a dead performer fires its alert."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from triton_models.launcher.checks import reserve_ports
from triton_models.observability.table import TABLE

pytestmark = pytest.mark.server

FILES = Path(__file__).parents[3] / "build" / "observability"
INTERVAL = "300ms"


class Prometheus:
    """A Prometheus process with this project's own configuration; only ports and intervals are others."""

    def __init__(self, directory: Path, server: Any) -> None:
        with reserve_ports([("127.0.0.1", 0)])[0] as reserved:
            port = reserved.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        text = (FILES / "prometheus.yml").read_text().replace("5s", INTERVAL)
        for given, name in (("127.0.0.1:8002", "metrics"), ("127.0.0.1:8003", "health")):
            assert given in text
            text = text.replace(given, server.info[name])
        (directory / "prometheus.yml").write_text(text)
        shutil.copy(FILES / "alerts.yml", directory)
        self.log = directory / "prometheus.log"
        command = ["prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as response:
            answer = json.loads(response.read())
        assert answer["status"] == "success", answer
        return answer["data"]

    def value(self, query: str) -> float | None:
        """Sum of the samples that a query finds; None if there are none."""
        found = self.get("query", query=query)["result"]
        return sum(float(sample["value"][1]) for sample in found) if found else None

    def wait(self, what: Callable[[], Any], seconds: float, expected: str) -> Any:
        end = time.monotonic() + seconds
        while True:
            try:
                if result := what():
                    return result
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, f"expected {expected} within {seconds:g} s\n{self.log.read_text()}"
            time.sleep(0.1)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        finally:
            self.process.kill()


@pytest.fixture
def watched(start_server: Any, tmp_path: Path) -> Iterator[tuple[Any, Prometheus]]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    server = start_server("--max-sessions", "2", "--trace", str(tmp_path / "traces" / "units.jsonl"))
    prometheus = Prometheus(tmp_path, server)
    try:
        yield server, prometheus
    finally:
        prometheus.stop()


def test_prometheus_sees_every_metric(watched: tuple[Any, Prometheus], tmp_path: Path) -> None:
    server, prometheus = watched
    stream = server.stream()
    window = {"retention": {"window": {"sink": 0, "recent": 2}}}
    for unit in range(8):
        for key in (1, 2):
            stream.send(key, unit, options=window if unit == 0 else None, end=unit == 7 and key == 1)
        answers = [stream.next() for _ in range(2)]
        assert [(answer.unit, answer.error) for answer in answers] == [(unit, "")] * 2
    assert "INVALID_ARGUMENT" in stream.refused(2, 3)
    stream.ask(3, 0)
    assert "RESOURCE_EXHAUSTED" in stream.refused(4, 0)

    units = 'sum(wan_streamer_units_total{outcome=~"on_time|late"})'
    prometheus.wait(lambda: prometheus.value(units) == 17, 20, "17 answered units")
    for specs in TABLE.values():
        for spec in specs:
            name = spec.name + ("_count" if spec.kind == "histogram" else "")
            found = prometheus.wait(lambda name=name: prometheus.get("query", query=name)["result"], 10, name)
            labels = [{label: sample["metric"][label] for label in spec.labels} for sample in found]
            for wanted in spec.series.values():
                assert dict(wanted) in labels, spec.name
    expected = {
        "sessions_active": 2,
        "sessions_admitted_total": 3,
        'sessions_refused_total{code="RESOURCE_EXHAUSTED"}': 1,
        'sessions_ended_total{outcome="completed"}': 1,
        'units_refused_total{code="INVALID_ARGUMENT"}': 1,
        'unit_stage_seconds_count{stage="total"}': 17,
        "receive_lateness_seconds_count": 17,
        'performer_batch_rows_sum{step="perform"}': 17 * server.manifest.model.solver.steps,
        "join_rows_count": 17,
        "kv_pages": 255,
        "ready": 1,
        "part_up": 4,
        "part_faults_total": 0,
    }
    assert {query: prometheus.value(f"wan_streamer_{query}") for query in expected} == expected
    for query in ("kv_pages_evicted_total", 'thinker_engine_seconds_total{step="think"}', 'kv_pages{state="used"}'):
        assert (prometheus.value(f"wan_streamer_{query}") or 0) > 0, query
    assert prometheus.value('nv_inference_request_success{model="stage"}'), "Triton's own are there as well"

    lines = (tmp_path / "traces" / "units.jsonl").read_text().splitlines()
    assert len(lines) == 17
    for line in lines:
        [part] = json.loads(line)["resourceSpans"][0]["scopeSpans"]
        names = [span["name"] for span in part["spans"]]
        assert [name for name in names if name != "open"] == ["unit", "encode", "think", "exchange", "solve", "decode"]
        times = [(int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])) for span in part["spans"]]
        assert all(times[0][0] <= begin <= end <= times[0][1] for begin, end in times), "stages are inside their unit"

    for panel in json.loads((FILES / "dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            assert "$" not in query
            prometheus.get("query", query=query)
    rows = re.findall(r"^\| [^`|]+ \| `([^`]+)`[^|]* \|$", (FILES / "METRICS.md").read_text(), re.MULTILINE)
    assert len(rows) >= 5
    for query in rows:
        prometheus.wait(lambda query=query: prometheus.value(query) is not None, 5, query)


def test_a_dead_stage_fires_its_alert(watched: tuple[Any, Prometheus]) -> None:
    server, prometheus = watched
    prometheus.wait(lambda: prometheus.value("wan_streamer_ready"), 10, "a ready server")

    def firing() -> list[dict[str, Any]]:
        alerts = prometheus.get("alerts")["alerts"]
        return [alert for alert in alerts if alert["state"] == "firing"]

    assert firing() == []
    os.kill(server.info["model_pids"]["performer"], signal.SIGKILL)
    [alert] = prometheus.wait(firing, 30, "an alert")
    assert alert["labels"]["alertname"] == "WanStreamerPartDied"
    assert alert["labels"]["part"] == "thinker", "of one stage the first part is named"
    assert alert["annotations"]["summary"].startswith("thinker died")
    server.wait_ready(restarts=1)
    server.stream().ask(1, 0, end=True)
    prometheus.wait(lambda: prometheus.value("wan_streamer_restarts_total") == 1, 10, "a restart")
    prometheus.wait(lambda: prometheus.value("wan_streamer_part_up") == 4, 10, "all parts")
