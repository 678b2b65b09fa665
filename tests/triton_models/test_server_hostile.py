"""Whoever reaches Triton's ports and is not the duplex model learns nothing from a stage, and hurts nobody."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.grpc as grpc

from triton_models.backend import wire
from triton_models.runtime.messages import CloseJob, HistoryView, OpenJob, PerformJob

pytestmark = pytest.mark.server

PAGES = HistoryView(np.arange(1, 65), np.tile(np.array([[0, 8]]), (64, 1)))
GUESS = bytes(32)
ATTACKS = {
    "H2: pages of others": wire.encode(PerformJob("str:victim#1", 1, 0, 0, 4, 2**62, 0, PAGES), GUESS),
    "H3: no message at all": np.frombuffer(b"\0\0\0\0null", np.uint8),
    "H3: a name that is none": np.frombuffer(GUESS + msgspec.msgpack.encode(["CloseJob", [1], 1]), np.uint8),
    "H5: a stranger's session is closed": wire.encode(CloseJob("str:victim#1", 9), GUESS),
    "H6: openings of nobody": wire.encode(OpenJob("str:nobody#1", 1), GUESS),
    "H7: a prompt without end": wire.encode(OpenJob("str:nobody#2", 1, "x" * 1_000_000), GUESS),
}


def test_a_stage_takes_jobs_of_the_duplex_model_alone(server: Any) -> None:
    stream = server.stream()
    quiet = [stream.ask("quiet", unit, end=unit == 3, voice=5) for unit in range(4)]
    stranger = grpc.InferenceServerClient(server.info["grpc"])
    heard = []
    for unit in range(4):
        for what, message in ATTACKS.items():
            tensor = grpc.InferInput("message", list(message.shape), "UINT8").set_data_from_numpy(message)
            with pytest.raises(
                grpc.InferenceServerException, match=r"INVALID_ARGUMENT.*of the duplex model alone"
            ) as no:
                stranger.infer("stage", [tensor])
            assert "victim" not in str(no.value), what
        heard.append(stream.ask("victim", unit, end=unit == 3, voice=5))
    for before, among in zip(quiet, heard, strict=True):
        np.testing.assert_array_equal(before.pcm, among.pcm)
    config = str(stranger.get_model_config("stage"))
    assert "parameters" not in config, "any client may read them (H1)"
    stranger.close()
