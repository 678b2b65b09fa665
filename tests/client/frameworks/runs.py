"""Which client says what, and how it is started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from words import AGAIN_AT

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[2] / "examples"
PAGE = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 25  # 2,000 characters
TYPED = (PAGE, "nine")
AGAIN = ("--reconnect", str(AGAIN_AT))


@dataclass(frozen=True)
class Run:
    """package: whose environment. command: (its folder, URL, folder of write_user) -> what to run."""

    package: str
    command: Callable[[Path, str, Path], list[str]]
    typed: bool = True  # the client types "nine" at the end
    refused: bool = False  # a page of text is refused, as the Live API wants it; elsewhere it is passed over
    tls: bool = False


def _twice(said: Path) -> list[str]:
    """For clients that do not connect anew by themselves: what follows is another conversation."""
    return [str(said / "before.wav"), str(said / "after.wav")]


def _openai(api: str) -> Callable[[Path, str, Path], list[str]]:
    def command(folder: Path, url: str, said: Path) -> list[str]:
        script = [str(folder / "bin/python"), str(EXAMPLES / "openai_live.py"), *_twice(said)]
        return [*script, "--url", url, "--api", api, *(f"--type={text}" for text in TYPED)]

    return command


def _pipecat(api: str) -> Callable[[Path, str, Path], list[str]]:
    def command(folder: Path, url: str, said: Path) -> list[str]:
        script = [str(folder / "bin/python"), str(EXAMPLES / "pipecat_bot.py"), str(said / "user.wav"), "--url", url]
        return [*script, "--api", api, *AGAIN, "--context", PAGE, "--context", "Are you there?"]

    return command


def _livekit(api: str) -> Callable[[Path, str, Path], list[str]]:
    def command(folder: Path, url: str, said: Path) -> list[str]:
        script = [str(folder / "bin/python"), str(EXAMPLES / "livekit_agent.py"), str(said / "user.wav")]
        return [*script, "--api", api, *AGAIN, "--context", PAGE]

    return command


def _agents(folder: Path, url: str, said: Path) -> list[str]:
    return [str(folder / "bin/python"), str(HERE / "agents_driver.py"), url, ",".join(_twice(said)), *TYPED]


def _node(api: str) -> Callable[[Path, str, Path], list[str]]:
    def command(folder: Path, url: str, said: Path) -> list[str]:
        return ["node", str(HERE / "openai_driver.mjs"), api, url, ",".join(_twice(said)), *TYPED]

    return command


RUNS = {
    "openai-python live": Run("openai", _openai("live"), refused=True),
    "openai-python realtime": Run("openai", _openai("realtime")),
    "pipecat live": Run("pipecat", _pipecat("live"), typed=False),
    "pipecat realtime": Run("pipecat", _pipecat("realtime"), typed=False),
    "livekit live": Run("livekit", _livekit("live"), typed=False),
    "livekit realtime": Run("livekit", _livekit("realtime"), typed=False),
    "openai-agents realtime": Run("agents", _agents),
    "openai-js realtime": Run("openai-js", _node("realtime"), tls=True),
    "openai-js live": Run("openai-js", _node("live"), refused=True, tls=True),
}
