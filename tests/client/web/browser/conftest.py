"""A browser for the tests of the page."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from client.e2e.chromium import Tab, chromium


@pytest.fixture
async def browse(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Tab]]]:
    """`tab = await browse(microphone=wav_path)`; the browser is killed at the end of the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(microphone: Path | None = None) -> Tab:
            return await stack.enter_async_context(chromium(tmp_path / "profile", microphone))

        yield start
