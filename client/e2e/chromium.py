"""A headless Chromium with a fake microphone and camera, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

from ..own_server import ends_with_us

START_SECONDS = 30.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=user-gesture-required",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)


class PageError(Exception):
    """The page did not do what it was told, or there is no browser."""


class Tab:
    """One page of the browser."""

    def __init__(self, ws: ClientWebSocketResponse) -> None:
        self.console: list[str] = []  # errors and warnings of the page
        self._ws = ws
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reader = asyncio.create_task(self._read())

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._ws.send_json({"id": number, "method": method, "params": params})
        return await asyncio.wait_for(self._waiting[number], 20)

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited. A click in it counts as the user's."""
        result = await self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in result:
            raise PageError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    async def until(self, script: str, seconds: float = 20.0) -> Any:
        """Waits until an expression is true and returns its value."""
        for _ in range(int(seconds / 0.1)):
            if value := await self.run(script):
                return value
            await asyncio.sleep(0.1)
        raise PageError(f"not within {seconds:g} s: {script}; stats: {await self.stats()}")

    async def stats(self) -> dict[str, Any]:
        return await self.run("window.wan ? window.wan.stats() : null")

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && !!window.wan")

    async def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=phone
        )

    async def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        size = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = await self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    async def close(self) -> None:
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader

    async def _read(self) -> None:
        async for message in self._ws:
            if message.type is not WSMsgType.TEXT:
                continue
            data = json.loads(message.data)
            if (future := self._waiting.pop(data.get("id", 0), None)) is not None and not future.done():
                if "error" in data:
                    future.set_exception(PageError(str(data["error"])))
                else:
                    future.set_result(data["result"])
            elif data.get("method") == "Runtime.exceptionThrown":
                self.console.append(str(data["params"]["exceptionDetails"]))
            elif data.get("method") == "Log.entryAdded" and data["params"]["entry"]["level"] == "error":
                self.console.append(str(data["params"]["entry"]["text"]))


@contextlib.asynccontextmanager
async def chromium(profile: Path, microphone: Path | None = None) -> AsyncIterator[Tab]:
    """One tab of a browser of its own, which is killed at the end. microphone: a WAV file. Raises PageError."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        raise PageError("chromium is missing: apt-get install -y chromium")
    sound = [f"--use-file-for-fake-audio-capture={microphone}"] if microphone is not None else []
    async with contextlib.AsyncExitStack() as stack:
        process = subprocess.Popen(
            ends_with_us([binary, *FLAGS, *sound, f"--user-data-dir={profile}", "about:blank"]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        stack.callback(_kill, process)
        port = await _port(profile / "DevToolsActivePort")
        http = await stack.enter_async_context(ClientSession())
        async with http.get(f"http://127.0.0.1:{port}/json") as response:
            target = next(t for t in await response.json() if t["type"] == "page")
        ws = await stack.enter_async_context(http.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0))
        tab = Tab(ws)
        stack.push_async_callback(tab.close)
        for domain in ("Page", "Runtime", "Log"):
            await tab.call(f"{domain}.enable")
        yield tab


async def _port(file: Path) -> str:
    for _ in range(int(START_SECONDS / 0.1)):
        if file.exists() and len(lines := file.read_text().splitlines()) == 2:
            return lines[0]
        await asyncio.sleep(0.1)
    raise PageError(f"the browser did not start within {START_SECONDS:g} s")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The browser and its helpers, which share a process group of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
