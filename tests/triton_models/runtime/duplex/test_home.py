"""A session's home: tokens of this fleet are believed, for their own session, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jwt
import pytest
from duplex_bench import DuplexBench

from triton_models.runtime.duplex.home import Home
from triton_models.runtime.messages import SessionError

pytestmark = pytest.mark.unit
KEY, OTHER = b"k" * 32, b"o" * 32
HERE = Home("s1", KEY)


def made(key: bytes | str = KEY, algorithm: str = "HS256", **claims: Any) -> str:
    return jwt.encode({"srv": "s1", "sid": "int:7", **claims}, key, algorithm)


@pytest.mark.parametrize(
    ("token", "code", "says"),
    [
        (HERE.token(7), None, ""),
        (Home("s2", KEY).token(7), "NOT_FOUND", "at home on another server"),
        (HERE.token(8), "INVALID_ARGUMENT", "another session's"),
        (HERE.token("7"), "INVALID_ARGUMENT", "another session's"),
        (Home("s1", OTHER).token(7), "INVALID_ARGUMENT", "Signature"),
        (made(srv="s2", key=OTHER), "INVALID_ARGUMENT", "Signature"),
        (made(algorithm="none", key=""), "INVALID_ARGUMENT", "alg"),
        ("", "INVALID_ARGUMENT", "got another"),
        ("a.b.c", "INVALID_ARGUMENT", "got another"),
        (jwt.encode({"srv": "s1"}, KEY, "HS256"), "INVALID_ARGUMENT", "sid"),
    ],
)
def test_what_is_believed(token: str, code: str | None, says: str, caplog: pytest.LogCaptureFixture) -> None:
    if code is None:
        HERE.check(token, 7)
        return
    with pytest.raises(SessionError, match=says) as caught:
        HERE.check(token, 7)
    assert caught.value.code == code
    assert ("a forged home token was refused" in caplog.text) == (code == "INVALID_ARGUMENT")
    assert KEY.decode() not in repr(HERE)


@pytest.mark.parametrize("fleet", [True, False])
def test_in_a_fleet_a_session_is_taken_up_by_who_has_its_token(make: Callable[..., DuplexBench], fleet: bool) -> None:
    bench = make(home=HERE if fleet else None)
    first = bench.unit(7, 0, options='{"resume": true, "hold_open": true}')
    bench.settled()
    token = first.said[0].info.get("home", "")  # type: ignore[union-attr]
    assert bool(token) == fleet
    stranger = bench.unit(7, -1, start=True, options='{"resume": true}')
    bench.settled()
    assert bool(stranger.errors) == fleet
    forged = bench.unit(7, -1, start=True, options=f'{{"resume": true, "home": "{Home("s1", OTHER).token(7)}"}}')
    bench.settled()
    assert bool(forged.errors) == fleet
    back = bench.unit(7, -1, start=True, options=f'{{"resume": true, "home": "{token}"}}')
    bench.settled()
    assert back.errors == []
    assert bench.unit(9, 0, options='{"resume": true}').errors == [], "who begins has none yet"
    plain = bench.unit(10, 0)
    bench.settled()
    assert "home" not in plain.said[0].info  # type: ignore[union-attr]
