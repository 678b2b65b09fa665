"""Which client says what, and how it is started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[2] / "examples"
PAGE = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 25  # 2,000 characters
SILENT_AT = 21.0  # seconds; in the ten seconds of silence


@dataclass(frozen=True)
class Run:
    """package: whose environment. command: (its folder, URL, WAV) -> what to run. page: typed (or in the context)."""

    package: str
    command: Callable[[Path, str, Path], list[str]]
    typed: bool = True  # the client types "nine" at the end
    refused: bool = False  # a page of text is refused, as the Live API wants it; elsewhere it is passed over
    tls: bool = False
    slow: bool = False  # not in `make test`: right by hand, not yet so on every loaded machine


def _openai(api: str) -> Callable[[Path, str, Path], list[str]]:
    def command(folder: Path, url: str, user: Path) -> list[str]:
        script = [str(folder / "bin/python"), str(EXAMPLES / "openai_live.py"), str(user)]
        return [*script, "--url", url, "--api", api, "--type", PAGE, "--type", "nine"]

    return command


def _pipecat(api: str) -> Callable[[Path, str, Path], list[str]]:
    def command(folder: Path, url: str, user: Path) -> list[str]:
        script = [str(folder / "bin/python"), str(EXAMPLES / "pipecat_bot.py"), str(user)]
        return [*script, "--url", url, "--api", api, "--context", PAGE, "--context", "Are you there?"]

    return command


def _livekit(api: str) -> Callable[[Path, str, Path], list[str]]:
    def command(folder: Path, url: str, user: Path) -> list[str]:
        script = [str(folder / "bin/python"), str(EXAMPLES / "livekit_agent.py"), str(user)]
        return [*script, "--api", api, "--reconnect", str(SILENT_AT), "--context", PAGE]

    return command


def _agents(folder: Path, url: str, user: Path) -> list[str]:
    return [str(folder / "bin/python"), str(HERE / "agents_driver.py"), url, str(user), PAGE]


def _node(api: str) -> Callable[[Path, str, Path], list[str]]:
    def command(folder: Path, url: str, user: Path) -> list[str]:
        return ["node", str(HERE / "openai_driver.mjs"), api, url, str(user), PAGE, "nine"]

    return command


RUNS = {
    "openai-python live": Run("openai", _openai("live"), refused=True),
    "openai-python realtime": Run("openai", _openai("realtime")),
    "pipecat live": Run("pipecat", _pipecat("live"), typed=False),
    "pipecat realtime": Run("pipecat", _pipecat("realtime"), typed=False),
    "livekit live": Run("livekit", _livekit("live"), typed=False),
    "livekit realtime": Run("livekit", _livekit("realtime"), typed=False),
    "openai-agents realtime": Run("agents", _agents, slow=True),
    "openai-js realtime": Run("openai-js", _node("realtime"), tls=True, slow=True),
    "openai-js live": Run("openai-js", _node("live"), refused=True, tls=True, slow=True),
}
