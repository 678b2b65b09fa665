"""Reads build/Dockerfile, build/compose*.yaml and .dockerignore, as far as the tests need them."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import tomllib
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"
BASE_PATH = "/opt/tritonserver/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # of Triton's image

# Named by pyproject.toml and not installed here: gigabytes from NVIDIA's own index.
ELSEWHERE = {
    "tensorrt-cu13": ["tensorrt-cu13-libs==11.4.0.106", "tensorrt-cu13-bindings==11.4.0.106"],
    "tensorrt-cu13-libs": [],
}
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@dataclass
class Stage:
    """One stage. What it inherits from an earlier stage is in it already."""

    name: str
    base: str
    lines: list[tuple[str, str]] = field(default_factory=list)  # (instruction, rest) of this stage alone
    environment: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    directory: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)

    def rest(self, instruction: str) -> list[str]:
        return [rest for name, rest in self.lines if name == instruction]

    def extras(self, **arguments: str) -> list[str]:
        """The extras that pip installs, with build arguments filled in: ".[build,serve-x]" -> [build, serve-x]."""
        named = [found for rest in self.rest("RUN") for found in re.findall(r'"\.\[([^]]+)\]"', rest)]
        return [fill(extra, arguments) for group in named for extra in group.split(",")]


def fill(text: str, variables: dict[str, str]) -> str:
    """Replaces ${NAME}, ${NAME:-default} and $NAME. KeyError for one that has neither a value nor a default."""

    def value(match: re.Match[str]) -> str:
        name, default = match[1] or match[3], match[2]
        return variables[name] if default is None else variables.get(name) or default

    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}|\$(\w+)", value, text)


def instructions(text: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name.upper(), rest.strip()) for name, rest in (line.split(None, 1) for line in joined.splitlines())]


def dockerfile(path: Path = BUILD / "Dockerfile") -> tuple[dict[str, str], dict[str, Stage]]:
    """Global build arguments with their defaults, and the stages by name."""
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for name, rest in instructions(path.read_text()):
        if name == "FROM":
            base, _, alias = rest.split()
            above = stages.get(base)
            stage = Stage(alias, base, environment=dict(above.environment) if above else {"PATH": BASE_PATH})
            if above:
                stage.user, stage.directory, stage.entrypoint = above.user, above.directory, above.entrypoint
                stage.command, stage.healthcheck = above.command, above.healthcheck
            stages[alias] = stage
        elif stage is None:
            key, _, default = rest.partition("=")
            arguments[key] = default
        else:
            stage.lines.append((name, rest))
            _apply(stage, name, rest)
    return arguments, stages


def _apply(stage: Stage, name: str, rest: str) -> None:
    if name == "ENV":
        for pair in shlex.split(rest):
            key, _, value = pair.partition("=")
            stage.environment[key] = fill(value, stage.environment)
    elif name == "USER":
        stage.user = rest
    elif name == "WORKDIR":
        stage.directory = rest
    elif name == "ENTRYPOINT":
        stage.entrypoint, stage.command = json.loads(rest), []
    elif name == "CMD":
        stage.command = json.loads(rest)
    elif name == "HEALTHCHECK":
        stage.healthcheck = json.loads(rest[rest.index("CMD") + 3 :])


def compose(name: str = "compose.yaml", **variables: str) -> dict[str, Any]:
    """A compose file with its variables filled in."""
    return yaml.safe_load(fill((BUILD / name).read_text(), variables))


def in_context(path: str, ignored: str) -> bool:
    """Whether the file `path` (relative to the root) is sent to the builder under the rules of a .dockerignore.

    The last rule that matches the file or a directory above it decides.
    """
    sent = True
    parts = path.split("/")
    above = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    for line in filter(None, (line.strip() for line in ignored.splitlines())):
        if line.startswith("#"):
            continue
        rule = line.removeprefix("!").rstrip("/")
        if any(_matches(candidate, rule) for candidate in above):
            sent = line.startswith("!")
    return sent


def _matches(path: str, rule: str) -> bool:
    if rule.startswith("**/"):
        return any(fnmatch.fnmatchcase(part, rule[3:]) for part in path.split("/"))
    parts, wanted = path.split("/"), rule.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def requirements(extras: list[str]) -> list[Requirement]:
    """What pyproject.toml asks for. KeyError for an extra that it does not have."""
    groups = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(text) for group in groups for text in group]


def closure(extras: list[str], python: dict[str, str] | None = None) -> set[str]:
    """Names of all that pip would install for these extras, by the metadata of what is installed here.

    python: marker variables, for another version than this one.
    """

    def holds(requirement: Requirement, *wanted: str) -> bool:
        marker = requirement.marker
        return marker is None or any(marker.evaluate({**(python or {}), "extra": extra}) for extra in ("", *wanted))

    todo = [requirement for requirement in requirements(extras) if holds(requirement)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key not in seen:
            seen.add(key)
            known = ELSEWHERE.get(key[0])
            inner = [Requirement(text) for text in (metadata.requires(key[0]) or [] if known is None else known)]
            todo += [each for each in inner if holds(each, *requirement.extras)]
    return {name for name, _ in seen}
