"""Keeping cores awake, with a file in place of the kernel's device."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from triton_models.launcher.awake import KeepAwake

pytestmark = pytest.mark.unit


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "cpu_dma_latency"
    path.touch()
    return path


def holders(device: Path) -> list[str]:
    """Descriptors of this process that are open on the device."""
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{fd}") == str(device)]


def test_the_file_is_open_with_a_zero_in_it_for_as_long_as_the_block_lasts(device: Path) -> None:
    with KeepAwake(device) as awake:
        assert awake.held
        assert len(holders(device)) == 1
        assert struct.unpack("=i", device.read_bytes()) == (0,)
        assert awake.hold(), "a second time changes nothing"
        assert len(holders(device)) == 1
        assert not os.get_inheritable(int(holders(device)[0])), "a server that inherits it would never let go"
    assert not awake.held
    assert holders(device) == []
    awake.release()


def test_it_is_released_when_the_block_fails(device: Path) -> None:
    with pytest.raises(RuntimeError), KeepAwake(device):
        raise RuntimeError
    assert holders(device) == []


def test_without_the_device_nothing_happens(tmp_path: Path) -> None:
    awake = KeepAwake(tmp_path / "none")
    assert not awake.possible()
    assert awake.problem == f"{tmp_path / 'none'}: No such file or directory"
    awake.follow(3)
    assert not awake.held
    assert list(tmp_path.iterdir()) == [], "nobody takes the place of a device"


@pytest.mark.parametrize("call", ["open", "write"])
def test_without_permission_nothing_happens(device: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as root, who is refused nothing."""

    def refuse(*args: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with KeepAwake(device) as awake:
            assert not awake.held
            assert awake.problem == f"{device}: Permission denied"
    assert holders(device) == []
    assert not awake.hold(), "what was refused once is not asked for five times a second"


def test_a_try_leaves_things_as_they_were(device: Path) -> None:
    awake = KeepAwake(device)
    assert awake.possible()
    assert not awake.held
    awake.hold()
    assert awake.possible()
    assert awake.held
    awake.release()


def test_cores_sleep_again_some_time_after_the_last_session(device: Path) -> None:
    clock = Clock()
    awake = KeepAwake(device, linger=10.0, clock=clock)
    awake.follow(0)
    assert not awake.held, "nobody has talked yet"
    awake.follow(2)
    assert awake.held
    clock.now += 3600
    awake.follow(1)
    clock.now += 9.9
    awake.follow(0)
    assert awake.held, "the next one may be there in a moment"
    awake.follow(1)
    clock.now += 9.9
    awake.follow(0)
    assert awake.held, "the time runs from the last session"
    clock.now += 0.1
    awake.follow(0)
    assert not awake.held
    assert holders(device) == []
