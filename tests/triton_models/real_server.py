"""A real server through the launcher, and the plainest client there is: tritonclient itself."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine_builder.manifest import Manifest

START_SECONDS = 60.0  # of a loaded machine; usually two
Key = int | str


@dataclass
class Answer:
    """One response of the stream, or the text of an error."""

    unit: int = -1
    state: str = ""
    text: str = ""
    pcm: np.ndarray | None = None
    frames: np.ndarray | None = None
    info: dict[str, Any] | None = None
    error: str = ""
    heard: str = ""


class Stream:
    """One gRPC stream. Answers come in the order in which the server sent them."""

    def __init__(self, url: str, manifest: Manifest) -> None:
        import tritonclient.grpc  # here: tests that need no server run where there is none, as on a bare GPU machine

        self.config, self._grpc = manifest.model, tritonclient.grpc
        self._client = self._grpc.InferenceServerClient(url)
        self._answers: queue.Queue[Answer] = queue.Queue()
        self._client.start_stream(self._receive)

    def _receive(self, result: Any, error: Exception | None) -> None:
        if error is not None or result is None:
            self._answers.put(Answer(error=str(error)))
            return

        def text(name: str) -> str:
            found = result.as_numpy(name)  # None: an optional one
            return "" if found is None else found[0].decode()

        values = {name: result.as_numpy(name) for name in ("pcm", "frames")}
        unit = int(result.as_numpy("unit_index")[0])  # pyright: ignore
        self._answers.put(
            Answer(unit, text("state"), text("text"), **values, info=json.loads(text("info")), heard=text("heard"))
        )

    def send(
        self,
        key: Key,
        unit: int,
        *,
        start: bool | None = None,
        end: bool = False,
        options: dict[str, Any] | str | None = None,
        text: str | bytes = "",
        voice: int = 0,
        **tensors: np.ndarray,
    ) -> None:
        """A unit of noise that follows from `voice` and its index; `tensors` replace its inputs."""
        rng = np.random.default_rng([voice, abs(unit)])
        video = self.config.video
        arrays: dict[str, np.ndarray] = {
            "pcm": rng.uniform(-0.5, 0.5, self.config.audio.unit_samples).astype(np.float32),
            "frames": rng.integers(0, 256, (4, video.height, video.width, 3), np.uint8),
            "unit_index": np.array([unit], np.int64),
            **tensors,
        }
        if text:
            arrays["text"] = np.array([text.encode() if isinstance(text, str) else text], np.object_)
        if options is not None:
            given = options if isinstance(options, str) else json.dumps(options)
            arrays["options"] = np.array([given.encode()], np.object_)
        kinds = {"float32": "FP32", "float64": "FP64", "uint8": "UINT8", "int16": "INT16", "int64": "INT64"}
        inputs = []
        for name, array in arrays.items():
            inputs.append(self._grpc.InferInput(name, list(array.shape), kinds.get(str(array.dtype), "BYTES")))
            inputs[-1].set_data_from_numpy(array)
        self._client.async_stream_infer(
            "duplex", inputs, sequence_id=key, sequence_start=unit == 0 if start is None else start, sequence_end=end
        )

    def try_send(self, key: Key, unit: int, **changes: Any) -> None:
        """To a server that may be gone: whether it is known here by now or not, the next answer is an error."""
        with contextlib.suppress(self._grpc.InferenceServerException):
            self.send(key, unit, **changes)

    def next(self, timeout: float = 30.0) -> Answer:
        try:
            return self._answers.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"expected an answer within {timeout:g} s, got silence") from None

    def ask(self, key: Key, unit: int, **changes: Any) -> Answer:
        """Sends a unit and returns its answer, which must not be an error."""
        self.send(key, unit, **changes)
        answer = self.next()
        assert not answer.error, answer.error
        assert answer.unit == unit
        return answer

    def refused(self, key: Key, unit: int, **changes: Any) -> str:
        """Sends a unit and returns the error that it gets."""
        self.send(key, unit, **changes)
        answer = self.next()
        assert answer.error, f"expected an error, got the answer to unit {answer.unit}"
        return answer.error

    def silent(self, seconds: float = 0.3) -> bool:
        try:
            self._answers.get(timeout=seconds)
        except queue.Empty:
            return True
        return False

    def close(self, cancel: bool = True) -> None:
        self._client.stop_stream(cancel_requests=cancel)
        self._client.close()


# The launcher with other constants than its own: options would be there for tests alone.
LAUNCH = "import sys; from triton_models import launch; vars(launch).update({}); sys.exit(launch.main())"


class Server:
    """A launcher process. `info` is its server.json; `health` what /ready says."""

    def __init__(
        self,
        engines: Path,
        runs: Path,
        *arguments: str,
        name: str = "test",
        constants: dict[str, float] | None = None,
        within: Sequence[str] = (),
    ) -> None:
        """within: a command that runs the launcher, with its own arguments before."""
        self.manifest = Manifest.load(engines)
        self.directory = runs / name
        self.log = runs / f"{name}.launch.log"
        command = [*within, sys.executable, "-c", LAUNCH.format(constants or {}), "--engines", str(engines)]
        command += ["--runs", str(runs), "--name", name, *arguments]
        for port in ("grpc", "metrics", "health"):
            command += [f"--{port}-port", "0"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self._streams: list[Stream] = []

    @property
    def info(self) -> dict[str, Any]:
        try:
            return json.loads((self.directory / "server.json").read_text())
        except FileNotFoundError:
            return {}

    def health(self) -> tuple[bool, dict[str, Any]]:
        try:
            with urllib.request.urlopen(f"http://{self.info['health']}/ready", timeout=5) as response:
                return True, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return False, json.loads(error.read())
        except (OSError, KeyError):
            return False, {"reason": "no answer"}

    def model(self, name: str) -> dict[str, Any]:
        """The last status of a model's process."""
        return self.health()[1]["models"][name]

    def wait(self, what: Callable[[], Any], seconds: float, expected: str) -> None:
        end = time.monotonic() + seconds
        while not what():
            if time.monotonic() > end:
                raise AssertionError(f"expected {expected} within {seconds:g} s; launcher:\n{self.log.read_text()}")
            time.sleep(0.05)

    def wait_ready(self, restarts: int = 0) -> None:
        self.wait(
            lambda: (self.health()[0] and self.health()[1]["restarts"] >= restarts) or self.process.poll() is not None,
            START_SECONDS,
            "a ready server",
        )
        assert self.process.poll() is None, self.log.read_text()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Units are taken and not answered: every process of the models but the loop's stands still."""
        pids = [pid for name, pid in self.info["model_pids"].items() if name != "duplex"]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def stream(self) -> Stream:
        self._streams.append(Stream(self.info["grpc"], self.manifest))
        return self._streams[-1]

    def close_streams(self) -> None:
        while self._streams:
            self._streams.pop().close()

    def free_again(self) -> bool:
        """No session anywhere, and no page in use."""
        health = self.health()[1].get("models", {})
        return bool(health) and health["duplex"]["sessions"] == 0 and health["thinker"]["pages.used"] == 0

    def shared_memory(self) -> list[str]:
        return [name for name in os.listdir("/dev/shm") if name.startswith(self.info["shm_prefix"])]

    def pids(self) -> list[int]:
        info = self.info
        return [info["server_pid"], *info["model_pids"].values()]

    def stop(self) -> int:
        self.close_streams()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        finally:
            self.process.kill()
