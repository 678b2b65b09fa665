"""What a client on loopback can reach of a real server: the conversation, and nothing of the machine behind it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.server

SHUT: dict[str, Callable[[grpc.InferenceServerClient, str], Any]] = {
    "register shared memory": lambda client, pool: client.register_system_shared_memory("x", f"/{pool}", 4096),
    "list shared memory": lambda client, _: client.get_system_shared_memory_status(),
    "list CUDA memory": lambda client, _: client.get_cuda_shared_memory_status(),
    "list the repository": lambda client, _: client.get_model_repository_index(),
    "unload a model": lambda client, _: client.unload_model("duplex"),
    "set the log": lambda client, _: client.update_log_settings({"log_verbose_level": 3}),
    "read the log's settings": lambda client, _: client.get_log_settings(),
    "read trace settings": lambda client, _: client.get_trace_settings(),
    "read statistics": lambda client, _: client.get_inference_statistics(),
}


def test_only_the_conversation_is_open(server: Any) -> None:
    client = grpc.InferenceServerClient(server.info["grpc"])
    for what, ask in SHUT.items():
        with pytest.raises(InferenceServerException) as refused:
            ask(client, f"{server.info['shm_prefix']}kv")
        assert "This protocol is restricted" in str(refused.value), what
    assert client.is_server_ready()
    assert client.get_model_metadata("duplex").name == "duplex"
    assert client.get_model_config("duplex").config.name == "duplex"
    client.close()
    assert "http" not in server.info
    server.stream().ask("s", 0, end=True)


def test_the_key_is_of_no_use_to_who_reads_the_command_line(server: Any) -> None:
    """Any user of the machine can; but HTTP/2 carries no header name with capital letters."""
    words = Path(f"/proc/{server.info['server_pid']}/cmdline").read_text().split("\0")
    [given] = [word for word in words if word.startswith("--grpc-restricted-protocol=")]
    name, _, value = given.rpartition(":")[2].partition("=")
    for key in (name, name.lower()):
        answer = call(server.info["grpc"], "RepositoryIndex", f"triton-grpc-protocol-{key}", value)
        assert b"duplex" not in answer, key
    assert b"triton" in call(server.info["grpc"], "ServerMetadata", "x-any", "1"), "it is asked as one has to"


def test_what_a_run_writes_is_for_its_user_alone(server: Any) -> None:
    server.stream().ask("s", 0, end=True)
    names = server.shared_memory()
    assert len(names) >= 3
    for path in [server.directory, *server.directory.iterdir(), *(Path("/dev/shm") / name for name in names)]:
        assert path.lstat().st_mode & 0o077 == 0 or path.is_symlink(), path


def call(address: str, method: str, key: str, value: str) -> bytes:
    """What the server answers to a call that is written byte by byte, as no gRPC library would."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload

    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/inference.GRPCInferenceService/{method}",
        ":authority": "127.0.0.1",
        "te": "trailers",
        "content-type": "application/grpc",
        key: value,
    }
    block = b"".join(
        b"\x10" + bytes((len(name),)) + name.encode() + bytes((len(text),)) + text.encode()
        for name, text in headers.items()
    )
    host, port = address.rsplit(":", 1)
    heard = b""
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
        connection.sendall(frame(1, 4, 1, block) + frame(0, 1, 1, bytes(5)))
        connection.settimeout(0.5)
        end = time.monotonic() + 2
        try:
            while time.monotonic() < end and (more := connection.recv(65_536)):
                heard += more
        except OSError:
            pass
    assert heard, "a server that speaks HTTP/2"
    return heard


def test_a_door_that_was_asked_for_is_open(start_server: Callable[..., Any]) -> None:
    server = start_server("--open", "statistics")
    client = grpc.InferenceServerClient(server.info["grpc"])
    assert client.get_inference_statistics("duplex").model_stats[0].name == "duplex"
    client.close()
