"""Clients that nobody wants: each attacks the server for some seconds and says what it met."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
import numpy as np
from house import House
from tritonclient.grpc import service_pb2_grpc

from client.stream import wire
from client.stream.units import UnitShape, UserUnit, quiet
from client.stream.wire import kserve
from triton_models.backend.wire import encode
from triton_models.runtime.messages import CloseJob, HistoryView, OpenJob, PerformJob

SECONDS = 6.0
PAGES = HistoryView(np.arange(1, 65), np.tile(np.array([[0, 8]]), (64, 1)))


class Elsewhere:
    """A port of which the server sees another address than that of this machine's other programs."""

    def __init__(self, server: str, address: str = "127.0.0.66") -> None:
        host, port = server.split(":")
        self._server, self._source = (host, int(port)), (address, 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client = self._listener.accept()[0]
                threading.Thread(target=self._connect, args=[client], daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        with (
            client,
            contextlib.suppress(OSError),  # refused, cut off
            socket.create_connection(self._server, SECONDS, self._source) as server,
        ):
            server.settimeout(None)
            threading.Thread(target=self._pass, args=[server, client], daemon=True).start()
            self._pass(client, server)

    @staticmethod
    def _pass(of: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := of.recv(1 << 18):
                to.sendall(part)
        for end in (of, to):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Attacker:
    """gRPC connections of its own."""

    def __init__(self, house: House, elsewhere: bool = False) -> None:
        video, audio = house.main.manifest.model.video, house.main.manifest.model.audio
        self.shape = UnitShape(audio.unit_samples, video.height, video.width)
        self._elsewhere = Elsewhere(house.main.info["grpc"]) if elsewhere else None
        self.address: str = self._elsewhere.address if self._elsewhere else house.main.info["grpc"]
        self.met: Counter[str] = Counter()
        self._channels: list[grpc.Channel] = []

    def __enter__(self) -> Attacker:
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels:
            channel.close()
        if self._elsewhere:
            self._elsewhere.close()

    def stub(self) -> Any:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self._channels.append(grpc.insecure_channel(self.address, options=options))
        return service_pb2_grpc.GRPCInferenceServiceStub(self._channels[-1])

    def start(self, name: str, unit: UserUnit | None = None, **options: Any) -> Any:
        return wire.encode("duplex", unit or quiet(0, self.shape), name, {"hold_open": True, **options})

    def meet(self, error: str) -> None:
        self.met[error.split(":")[0][:60] or "answered"] += 1

    def said(self) -> str:
        return ", ".join(f"{count} x {what}" for what, count in self.met.most_common(3)) or "nothing"


def strangers(house: House) -> str:
    """H1 to H7: jobs to the stage, without the secret."""
    guess = bytes(32)
    jobs = [
        encode(PerformJob("str:victim#1", 1, 0, 0, 4, 2**62, 0, PAGES), guess),
        encode(CloseJob("str:victim#1", 9), guess),
        encode(OpenJob("str:nobody#1", 1, "x" * 100_000), guess),
        np.frombuffer(b"\0\0\0\0null", np.uint8),
    ]
    with Attacker(house) as attacker:
        stub, end, number = attacker.stub(), time.monotonic() + SECONDS, 0
        while time.monotonic() < end:
            message = jobs[number % len(jobs)]
            number += 1
            request = kserve.ModelInferRequest(model_name="stage")
            request.inputs.add(name="message", datatype="UINT8", shape=[len(message)])
            request.raw_input_contents.append(message.tobytes())
            try:
                stub.ModelInfer(request)
                attacker.meet("ANSWERED")
            except grpc.RpcError as error:
                attacker.meet(error.code().name)  # pyright: ignore
            time.sleep(0.01)
        return f"all refused ({attacker.said()})"


def never_read(house: House) -> str:
    """H13."""
    stop = threading.Event()
    with Attacker(house) as attacker:

        def talk(number: int) -> Iterator[Any]:
            begin = time.monotonic()
            for unit in range(10_000):
                if stop.is_set():
                    return
                user, name = quiet(unit, attacker.shape), f"mute-{number}"
                yield wire.encode("duplex", user, name) if unit else attacker.start(name, user)
                time.sleep(max(0.0, begin + 0.16 * unit - time.monotonic()))

        calls = [attacker.stub().ModelStreamInfer(talk(number)) for number in range(4)]
        begin = time.monotonic()
        while any(call.is_active() for call in calls) and time.monotonic() - begin < 20:
            time.sleep(0.1)
        took = time.monotonic() - begin
        stop.set()
        ended = sum(not call.is_active() for call in calls)
    return f"{ended} of 4 cut off within {took:.0f} s"


def flood_of_starts(elsewhere: bool, house: House) -> str:
    """H35: 1,000 starts a second, on connections that come again."""
    end = time.monotonic() + SECONDS
    with Attacker(house, elsewhere) as attacker:
        while time.monotonic() < end:

            def starts() -> Iterator[Any]:
                begin, count = time.monotonic(), 0
                while time.monotonic() < end:
                    yield attacker.start(f"flood-{begin}-{count}")
                    count += 1
                    time.sleep(max(0.0, begin + count / 1000 - time.monotonic()))

            try:
                for answer in attacker.stub().ModelStreamInfer(starts(), timeout=SECONDS + 5):
                    attacker.meet(answer.error_message)
            except grpc.RpcError as error:
                attacker.meet(f"cut off ({error.code().name})")  # pyright: ignore
        return attacker.said()


def storm_of_cancels(elsewhere: bool, house: House) -> str:
    """H28: 1,000 sessions started and cancelled at once."""
    with Attacker(house, elsewhere) as attacker:
        stubs, gone = [attacker.stub() for _ in range(20)], threading.Event()

        def one(number: int) -> Iterator[Any]:
            yield attacker.start(f"storm-{time.monotonic()}-{number}")
            gone.wait(10)

        calls = [stubs[number % len(stubs)].ModelStreamInfer(one(number)) for number in range(1000)]
        for call in calls:
            call.cancel()
        gone.set()
        time.sleep(2)
    return "1,000 starts, all cancelled"


def long_prompts(house: House) -> str:
    """H36."""
    with Attacker(house) as attacker:
        stubs = [attacker.stub() for _ in range(6)]
        gone = threading.Event()

        def one(number: int) -> None:
            def only() -> Iterator[Any]:
                yield attacker.start(f"prompt-{number}-{time.monotonic()}", prompt="word and more " * 285)
                gone.wait(30)

            with contextlib.suppress(grpc.RpcError):
                for answer in stubs[number].ModelStreamInfer(only()):
                    attacker.meet(answer.error_message)

        threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(2 * SECONDS)
        gone.set()
    return f"of 6 x 4 kB: {attacker.said()}"


def bad_units(house: House) -> str:
    """Tensors and options that are none, in sessions of their own."""
    with Attacker(house) as attacker:
        shape = attacker.shape
        loud, empty = np.full(shape.samples, np.nan, np.float32), np.zeros(shape.frames, np.uint8)
        bad = [
            attacker.start("bad-1", UserUnit(0, loud, empty)),
            attacker.start("bad-2", UserUnit(-1, np.zeros(shape.samples, np.float32), empty)),
            attacker.start("bad-3", None, retention={"window": {"sink": -1}}),
            attacker.start("bad-4", None, prompt="x" * 40_000),
            attacker.start("", None),
            wire.encode("duplex", quiet(7, shape), "bad-5"),
        ]
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            try:
                for answer in attacker.stub().ModelStreamInfer(iter(bad), timeout=3):
                    attacker.meet(answer.error_message.partition("] ")[2] or answer.error_message)
            except grpc.RpcError as error:
                attacker.meet(error.code().name)  # pyright: ignore
            time.sleep(0.2)
        return f"refused: {attacker.said()}"


def half_open(house: House) -> str:
    """Connections that say nothing, to both ports."""
    sockets: list[socket.socket] = []
    try:
        for port in ("grpc", "health"):
            host, number = house.main.info[port].split(":")
            for _ in range(400):
                with contextlib.suppress(OSError):
                    sockets.append(socket.create_connection((host, int(number)), 1))
        time.sleep(SECONDS)
    finally:
        for each in sockets:
            each.close()
    return f"{len(sockets)} connections that say nothing"


ATTACKS: dict[str, Callable[[House], str]] = {
    "jobs to a stage, without its secret": strangers,
    "4 clients that never read": never_read,
    "1,000 starts a second, of one address": partial(flood_of_starts, True),
    "1,000 starts a second, of this machine": partial(flood_of_starts, False),
    "1,000 sessions started and cancelled, of one address": partial(storm_of_cancels, True),
    "1,000 sessions started and cancelled, of this machine": partial(storm_of_cancels, False),
    "6 prompts of 4 kB at once": long_prompts,
    "units and options that are none": bad_units,
    "800 silent connections": half_open,
}
