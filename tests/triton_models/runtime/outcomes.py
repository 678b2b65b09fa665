"""What became of a job: shared by the tests of thinker and renderer."""

from __future__ import annotations

from triton_models.runtime.messages import SessionError


def error_of(result: object, code: str) -> str:
    assert isinstance(result, SessionError), result
    assert result.code == code, result
    return result.message
