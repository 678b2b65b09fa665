"""One short day on a GPU: every check that wants one, the most valuable first, results kept after each.

    python day.py --kit DIR --work DIR --out DIR [--seconds 540 | --smoke]      gpu_day.sh calls it so

A stage is a process with a time limit of its own. What it wrote is in --out when it ends, also when it failed or was
stopped; `stages.json` and `table.txt` are written anew after each. Needs nothing but Python's own library.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from table import table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[3]
BENCH = HERE.parent / "bench_gpu.py"
GPU_TESTS = "tests/triton_models/gpu"
PARITY, SERVING = f"{GPU_TESTS}/test_gpu_parity.py", f"{GPU_TESTS}/test_gpu_serving.py"
BEGAN = time.monotonic()
SMOKE_SECONDS = 900
TIMES_FROM = "v0.1-8b"  # from this stage on the processor's other cores are idle: no compiler runs beside


@dataclass(frozen=True)
class Stage:
    name: str
    seconds: int  # at most
    command: tuple[object, ...]
    least: int = 15  # with less time left it is not begun


def bench(preset: str, seconds: int, *more: object, name: str = "") -> Stage:
    """`bench_gpu.py` of one preset; the last quarter of its time is plain PyTorch's."""
    flags = ("--presets", preset, "--no-rtx", "--minutes", f"{0.75 * seconds / 60:.2f}", "--repeats", 10, *more)
    return Stage(name or preset, seconds, (BENCH, *flags, "--out", "{out}"), least=20)


def pytest(name: str, seconds: int, *arguments: str) -> Stage:
    flags = ("-p", "no:cacheprovider", "--tb=short", "--durations=8", "-rA")
    return Stage(name, seconds, ("-m", "pytest", *flags, *arguments))


def own(name: str, seconds: int, *more: object) -> Stage:
    """A program of this folder."""
    return Stage(name, seconds, (HERE / f"{name}.py", "{out}", *more))


def stages(smoke: bool) -> list[Stage]:
    """In the order of value: each answers what the ones before do not. Their limits fit in nine minutes together."""
    if smoke:  # nothing is hurried there: the machine may be busy
        oracle = (f"{GPU_TESTS}/torch_cuda/test_torch_engine.py", f"{GPU_TESTS}/kernels/test_fused.py")
        return [
            own("machine", SMOKE_SECONDS),
            pytest("collect", SMOKE_SECONDS, "--collect-only", "-m", "gpu", PARITY, SERVING),
            pytest("parity", SMOKE_SECONDS, *oracle, "-k", "equal_the_model or fp8_products or fused"),
            Stage("prewarm", SMOKE_SECONDS, (HERE / "prewarm.py", "--jobs", 1, "--sets", "smoke")),
            Stage("tiny", SMOKE_SECONDS, (BENCH, "--smoke", "--no-rtx", "--out", "{out}")),
            *(own(name, SMOKE_SECONDS, "--smoke") for name in ("overlap", "anchors", "served")),
        ]
    return [
        own("machine", 25),
        pytest("parity", 70, "-m", "gpu", PARITY, "--timeout", "60"),
        bench("v0.1-8b", 75),
        own("overlap", 35),
        bench("v0.1-8b", 30, "--precision", "fp8", "--no-baseline", name="fp8"),
        bench("v0.1-1.7b", 35),
        bench("v0.1-0.6b", 35),
        # At batch 8 an H100 is full, and one session is late already.
        bench("v0.2-8b", 40, "--batches", 1, 2, 4, "--repeats", 4, "--no-baseline"),
        own("anchors", 35),
        own("served", 95),
        pytest("serving", 50, "-m", "gpu", SERVING, "-k", "not through_triton"),
        Stage("rtx", 10, (HERE.parent / "gpu_rtx.py", "{out}")),
    ]


class Day:
    """Where everything lies, and when it must be over."""

    def __init__(self, kit: Path, work: Path, out: Path, seconds: float, smoke: bool, only: Sequence[str] = ()) -> None:
        self.out, self.smoke, self.only = out, smoke, only
        self.deadline = BEGAN + seconds
        self.results: list[dict[str, object]] = []
        site, cache = work / "site", work / "kernels"
        for wheel in sorted((kit / "wheels").glob("*.whl")):
            if not installed(wheel.name):
                zipfile.ZipFile(wheel).extractall(site)
        cache.mkdir(parents=True, exist_ok=True)
        if (kit / "kernels.tgz").is_file() and not smoke:
            with tarfile.open(kit / "kernels.tgz") as tar:
                tar.extractall(cache, filter="data")
        self.env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, HERE.parents[1], HERE.parent, HERE, site))),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "TRITON_CACHE_DIR": str(cache),
            "TRITON_INTERPRET": "1" if smoke else "0",
            "OMP_NUM_THREADS": "1" if smoke else "8",
        }
        if smoke:
            self.env["CUDA_VISIBLE_DEVICES"] = ""

    def run(self) -> int:
        """Every stage; the number of those that failed."""
        warm = None if self.smoke else self._prewarm()
        for stage in stages(self.smoke):
            if self.only and stage.name not in self.only:
                continue
            if warm is not None and stage.name == TIMES_FROM:
                self._end(warm, max(1.0, min(60.0, self.deadline - time.monotonic() - 200)))
                warm = None
            self.results.append(self._stage(stage))
            say(str(self.results[-1]))
            self.save()
        if warm is not None:
            self._end(warm, 0.1)
        return sum(result["code"] != 0 for result in self.results)

    def _stage(self, stage: Stage) -> dict[str, object]:
        left = self.deadline - time.monotonic()
        if left < stage.least:
            return {"stage": stage.name, "code": None, "seconds": 0, "note": f"not begun: {left:.0f} s left"}
        limit, out = min(stage.seconds, left), self.out / stage.name
        out.mkdir(parents=True, exist_ok=True)
        say(f"== {stage.name}, at most {limit:.0f} s")
        begin, log = time.monotonic(), self.out / f"{stage.name}.log"
        process = self._start([str(word).replace("{out}", str(out)) for word in stage.command], log)
        note = self._end(process, limit)
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        for line in lines[-(8 if process.returncode == 0 else 30) :]:
            print("   ", line[:170], flush=True)
        seconds = round(time.monotonic() - begin, 1)
        return {"stage": stage.name, "code": process.returncode, "seconds": seconds, "note": note}

    def _prewarm(self) -> subprocess.Popen[bytes]:
        """The other cores compile what the kit's cache lacks, so that no stage pays for it."""
        command = [str(HERE / "prewarm.py"), "--jobs", str(max(2, (os.cpu_count() or 4) - 4))]
        return self._start(command, self.out / "prewarm.log")

    def _start(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("w") as file:
            return subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @staticmethod
    def _end(process: subprocess.Popen[bytes], seconds: float) -> str:
        """Waits so long, then ends the process and all that it started."""
        note = ""
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            note = "stopped at its limit"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return note

    def save(self) -> None:
        """The account so far, each file whole at any time."""
        files = {
            "stages.json": json.dumps({"smoke": self.smoke, "stages": self.results}, indent=1) + "\n",
            "table.txt": table(self.out),
        }
        for name, text in files.items():
            (self.out / f".{name}").write_text(text)
            (self.out / f".{name}").replace(self.out / name)


def installed(wheel: str) -> bool:
    """Does this Python have the distribution of a wheel? Its own counts, whatever the version."""
    try:
        importlib.metadata.version(wheel.split("-")[0])
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGAN:5.0f}] {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--kit", "--work", "--out"):
        parser.add_argument(name, type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--seconds", type=float, help="for everything (default: 540; --smoke: an hour)")
    parser.add_argument("--smoke", action="store_true", help="tiny, on the CPU: proves that every stage runs")
    parser.add_argument("--only", nargs="+", metavar="STAGE", default=[])
    args = parser.parse_args()
    day = Day(args.kit, args.work, args.out, args.seconds or (3600 if args.smoke else 540), args.smoke, args.only)
    failed = day.run()
    print(table(args.out)[-9000:], flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
