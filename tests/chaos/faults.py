"""Parts that fail, and a machine that does: each row harms the server, or one of its own, and says what came of it."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from house import House, left_of
from real_server import Server

STOPPED_SECONDS = 3.0


# A mount of the row's own, which ends with its processes.
def _mounted(size: str, place: Path) -> list[str]:
    return ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs "$0" && exec "$@"', str(place)]


def _pid(house: House, part: str) -> int:
    info = house.main.info
    return info["server_pid"] if part == "tritonserver" else info["model_pids"][part]


def kill(part: str, house: House) -> str:
    os.kill(_pid(house, part), signal.SIGKILL)
    house.main.wait(lambda: not house.main.health()[0], 5, "readiness to fall")
    house.main.wait_ready()
    return "not ready at once, then started anew"


def stop(part: str, house: House) -> str:
    """SIGSTOP, and SIGCONT some seconds later if it is still there."""
    pid = _pid(house, part)
    restarts = house.main.health()[1]["restarts"]
    os.kill(pid, signal.SIGSTOP)
    house.main.wait(
        lambda: not house.main.health()[0] or house.main.health()[1]["restarts"] > restarts, 30, "a hang to be noticed"
    )
    house.main.wait_ready()
    return "taken for dead, started anew"


def stop_launcher(house: House) -> str:
    house.main.process.send_signal(signal.SIGSTOP)
    time.sleep(STOPPED_SECONDS)
    house.main.process.send_signal(signal.SIGCONT)
    return f"stopped for {STOPPED_SECONDS:g} s: units go on without it"


def kill_launcher(house: House) -> str:
    with house.server() as server:
        info, pids = server.info, server.pids()
        server.stream().ask("s", 0, options={"hold_open": True})
        begin = time.monotonic()
        server.process.kill()
        server.process.wait()
        while any(_lives(pid) for pid in pids) and time.monotonic() < begin + 15:
            time.sleep(0.05)
        gone = time.monotonic() - begin
        again = Server(house.engines, house.runs, *house.arguments, name=server.directory.name)
        again.wait_ready()
        took = time.monotonic() - begin
        again.stream().ask("s", 0, end=True)
        left = left_of(server, pids, info["shm_prefix"])
        again.stop()
        _expect(not left, f"nothing left, got {left}")
    return f"its server was gone after {gone:.1f} s; the next launcher serves after {took:.1f} s and cleans up"


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def full_disk(house: House) -> str:
    place = house.runs / "small"
    place.mkdir(exist_ok=True)
    with house.server(within=_mounted("8m", place), ready=False, runs=place) as server:
        seen = Path(f"/proc/{server.process.pid}/root{place}")
        server.directory = seen / server.directory.name
        return _fills(server, seen)


def full_shared_memory(house: House) -> str:
    with house.server(within=_mounted("600m", Path("/dev/shm")), ready=False) as server:
        return _fills(server, Path(f"/proc/{server.process.pid}/root/dev/shm"))


def _fills(server: Server, folder: Path) -> str:
    """Fills the folder of a running server to the last byte; it must go on, and end in good order."""
    server.wait_ready()
    stream = server.stream()
    stream.ask("s", 0, options={"hold_open": True})
    block, written = bytes(65_536), 0
    with (folder / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                written += filler.write(block)
        except OSError as error:
            what = error.strerror
    for unit in range(1, 40):
        stream.ask("s", unit)
        time.sleep(0.05)
    stream.ask("s", 40, end=True)
    _expect(server.health()[0], "it is ready")
    _expect(server.stop() == 0, "exit code 0")
    return f"full after {written >> 20} MiB ({what}): 40 units answered, ready, exit 0"


def no_descriptors(house: House) -> str:
    """tritonserver may open nothing more, while clients come."""
    pid = _pid(house, "tritonserver")
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    number = len(os.listdir(f"/proc/{pid}/fd"))
    host, port = house.main.info["grpc"].split(":")
    sockets: list[socket.socket] = []
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (number, before[1]))
    try:
        sockets += [socket.create_connection((host, int(port)), 1) for _ in range(50)]
        time.sleep(2)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        for each in sockets:
            each.close()
    time.sleep(1)
    return "50 newcomers wait for 2 s; who talks goes on"


def taken_port(house: House) -> str:
    port = house.main.info["grpc"].split(":")[1]
    done = _launch(house, "--name", "taken", "--grpc-port", port)
    _expect(done.returncode == 2 and "expected a free one" in done.stderr, f"a refusal, got {done.stderr[-300:]}")
    return f"refused: {done.stderr.strip().splitlines()[-1].rpartition('launch: ')[2][:110]}"


def same_folder(house: House) -> str:
    done = _launch(house, "--name", "main", "--grpc-port", "0")
    _expect(done.returncode == 2 and "got one that runs" in done.stderr, f"a refusal, got {done.stderr[-300:]}")
    return "refused: a server of this name runs"


def _launch(house: House, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "triton_models.launch", "--engines", str(house.engines), "--runs", str(house.runs)]
    ports = ["--metrics-port", "0", "--health-port", "0"]
    return subprocess.run(
        [*command, *house.arguments, *ports, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def damaged(name: str, house: House) -> str:
    """A file of the engine directory is altered while its server runs; then a part dies."""
    engines = house.runs / f"damaged-{name}"
    shutil.rmtree(engines, ignore_errors=True)
    shutil.copytree(house.engines, engines)
    with house.server("--max-restarts", "1", engines=engines) as server:
        info = server.info
        stream = server.stream()
        stream.ask("s", 0, options={"hold_open": True})
        data = bytearray((engines / name).read_bytes())
        data[len(data) // 2] ^= 1
        (engines / name).write_bytes(data)
        stream.ask("s", 1)
        os.kill(info["model_pids"]["thinker"], signal.SIGKILL)
        code = server.process.wait(60)
        said = server.log.read_text() + (server.directory / "server.log").read_text()
        _expect(code == 1, f"exit code 1, got {code}")
        _expect("failed to load all models" in said, "the reason")
        left = left_of(server, [info["server_pid"]], info["shm_prefix"])
        _expect(not left, f"nothing left, got {left}")
    return "units went on; after a restart it was refused before it was loaded: exit 1"


def term_while_starting(house: House) -> str:
    with house.server(ready=False) as server:
        server.wait(lambda: server.info.get("state") == "starting", 30, "a start")
        info, begin = server.info, time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(30)
        left = left_of(server, [info["server_pid"]], info["shm_prefix"])
        _expect(code == 0 and not left, f"exit code 0 and nothing left, got {code} and {left}")
    return f"exit 0 after {time.monotonic() - begin:.1f} s"


def term_twice(house: House) -> str:
    with house.server("--drain-seconds", "30") as server:
        info, pids = server.info, server.pids()
        server.stream().ask("s", 0, options={"hold_open": True})
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(20)
        took = time.monotonic() - begin
        left = left_of(server, pids, info["shm_prefix"])
        _expect(code == 0 and not left, f"exit code 0 and nothing left, got {code} and {left}")
    return f"exit 0 after {took:.1f} s instead of 30 s of draining"


STEPPED = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *t) {
    long result = syscall(SYS_clock_gettime, id, t), step = 0;
    int ours = id == CLOCK_REALTIME && strncmp(program_invocation_short_name, "python", 6) == 0;
    FILE *file = ours ? fopen(getenv("CLOCK_STEP"), "r") : NULL;
    if (file && fscanf(file, "%ld", &step) == 1) t->tv_sec += step;
    if (file) fclose(file);
    return result;
}
int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec, t->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return t ? (*t = now.tv_sec) : now.tv_sec;
}
"""


def clock_step(house: House) -> str:
    """Only in the launcher: Triton's timed waits would mix its own clock with the kernel's, as no real step does.
    (libfaketime breaks Python's sleep.)"""
    compiler = shutil.which("cc")
    if compiler is None:
        return "not tried: there is no C compiler for a clock of its own, and date(1) would step everybody's"
    library, offset = house.runs / "clock.so", house.runs / "clock"
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-o", str(library), "-"]
    subprocess.run(command, input=STEPPED, text=True, check=True)
    offset.write_text("0")
    within = ["env", f"LD_PRELOAD={library}", f"CLOCK_STEP={offset}"]
    with house.server(within=within) as server:
        stream = server.stream()
        stream.ask("s", 0, options={"hold_open": True})
        for unit, step in enumerate((86_400, -86_400, 0), start=1):
            offset.write_text(str(step))
            time.sleep(2)
            stream.ask("s", unit, end=step == 0)
        _expect(server.health()[1]["restarts"] == 0, "no restart")
    return "the launcher's, a day ahead, two back: units go on"


def _expect(so: bool, expected: str) -> None:
    if not so:
        raise AssertionError(f"expected {expected}")


OUTAGES: dict[str, Callable[[House], str]] = {
    **{f"SIGKILL of {part}": partial(kill, part) for part in ("tritonserver", "duplex", "thinker")},
    **{f"SIGSTOP of {part}": partial(stop, part) for part in ("tritonserver", "duplex", "thinker")},
}
FAULTS: dict[str, Callable[[House], str]] = {
    "SIGSTOP of the launcher": stop_launcher,
    "SIGKILL of a launcher": kill_launcher,
    "disk full under the run folder": full_disk,
    "/dev/shm full": full_shared_memory,
    "out of descriptors": no_descriptors,
    "port taken": taken_port,
    "two servers on one run folder": same_folder,
    "engine damaged on disk": partial(damaged, "think.onnx"),
    "manifest damaged on disk": partial(damaged, "manifest.json"),
    "SIGTERM while starting": term_while_starting,
    "two SIGTERM": term_twice,
    "step of the wall clock": clock_step,
}
