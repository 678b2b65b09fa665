"""The sharded performer: four real processes over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine_builder.presets import preset
from triton_models.gpu.torch_cuda.group.ulysses import Shard

SCRIPT = Path(__file__).with_name("sharded_ranks.py")
pytestmark = pytest.mark.engine


def test_one_two_and_four_ranks_equal_a_single_one(tmp_path):
    env = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "store")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(report["rank"] for report in reports) == [0, 1, 2, 3]
    first = next(report for report in reports if report["rank"] == 0)
    assert set(first["errors"]) == {"1", "2", "4"}
    assert first["scale"] > 0.5  # latents that are not zero
    assert max(first["errors"].values()) < 1e-5


def test_shards_cover_the_picture_once():
    config = preset("v0.2-8b")
    for ranks in (1, 2, 4, 8):
        shards = [Shard(config, rank, ranks) for rank in range(ranks)]
        video = [i for s in shards for i in range(s.video.start, s.video.stop)]
        assert video == list(range(920))


def test_impossible_groups_are_refused():
    with pytest.raises(ValueError, match=r"ranks: expected a divisor of kv_heads \(8\), got 3"):
        Shard(preset("v0.2-8b"), 0, 3)
    with pytest.raises(ValueError, match="rank: expected 0 to 1, got 2"):
        Shard(preset("v0.2-8b"), 2, 2)
