"""Signatures in minisign's format: a published one verifies, and whatever was altered does not."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest

from engine_builder.__main__ import main
from engine_builder.manifest import MANIFEST, Manifest, ManifestError
from engine_builder.signature import SignatureError, make_keys, sign, verify

from .test_manifest import engines  # noqa: F401 - a fixture

pytestmark = pytest.mark.unit
# Made by minisign itself: the test vector of rust-minisign-verify.
PUBLIC = "untrusted comment: key\nRWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n"
SIGNED = (
    "untrusted comment: signature from minisign secret key\n"
    "RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=\n"
    "trusted comment: timestamp:1556193335\tfile:test\n"
    "y/rUw2y8/hOUYjZU71eHp/Wo1KZ40fGy2VJEDl34XMJM+TX48Ss/17u3IvIfbVR1FkZZSNCisQbuQY+bHwhEBg==\n"
)


def test_a_signature_of_minisign_verifies(tmp_path: Path) -> None:
    key, file = tmp_path / "key.pub", tmp_path / "test"
    key.write_text(PUBLIC)
    file.write_bytes(b"test")
    for text in (SIGNED, SIGNED.replace("\n", "\r\n")):
        (tmp_path / "test.minisig").write_bytes(text.encode())
        assert verify(file, key) == b"test"
    for text in (SIGNED.replace("1556193335", "1556193336"), SIGNED.replace("RUQf6LRCGA9i559r", "RWQf6LRCGA9i559r")):
        (tmp_path / "test.minisig").write_text(text)
        with pytest.raises(SignatureError, match=r"test is not what .*key\.pub signed"):
            verify(file, key)


def test_keys_sign_and_only_their_own_verify(tmp_path: Path) -> None:
    ours, theirs = make_keys(tmp_path / "ours"), make_keys(tmp_path / "theirs")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == 0o600
    with pytest.raises(SignatureError, match="expected a new file"):
        make_keys(tmp_path / "ours")
    file = tmp_path / "file"
    file.write_bytes(b"engines")
    with pytest.raises(SignatureError, match="file is not signed"):
        verify(file, ours)
    assert sign(file, tmp_path / "ours") == tmp_path / "file.minisig"
    assert verify(file, ours) == b"engines"
    with pytest.raises(SignatureError, match="expected the signature of key"):
        verify(file, theirs)
    file.write_bytes(b"Engines")
    with pytest.raises(SignatureError, match="altered"):
        verify(file, ours)


@pytest.mark.parametrize("text", ["", "x", "a\nb\n", "a\n" + base64.b64encode(b"Ed" + bytes(40)).decode(), "a\n\xff"])
def test_no_file_of_keys_ends_in_a_traceback(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text("x")
    public = make_keys(tmp_path / "key")
    sign(tmp_path / "file", tmp_path / "key")
    for path in (tmp_path / "bad", tmp_path / "file.minisig"):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(SignatureError):
            verify(tmp_path / "file", path if path.name == "bad" else public)
    with pytest.raises(SignatureError, match="expected a minisign secret key"):
        sign(tmp_path / "file", tmp_path / "bad")
    locked = base64.b64encode(b"EdScB2" + bytes(152)).decode()
    (tmp_path / "bad").write_text(f"a\n{locked}\n")
    with pytest.raises(SignatureError, match="locked with a password"):
        sign(tmp_path / "file", tmp_path / "bad")


def test_a_signed_directory_is_trusted_until_it_changes(
    engines: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key, public = str(tmp_path / "key"), str(tmp_path / "key.pub")
    assert main(["keygen", key]) == 0
    assert main(["verify", str(engines), "--trusted-key", public]) == 1
    assert "manifest.json is not signed" in capsys.readouterr().err
    assert main(["sign", str(engines), "--key", key]) == 0
    assert main(["verify", str(engines), "--trusted-key", public]) == 0
    assert "intact, signed by" in capsys.readouterr().out
    stale = Manifest.load(engines)
    resealed = Manifest.load(engines)
    object.__setattr__(resealed, "weights", "better")
    resealed.save(engines)  # whoever can write there can make a new seal, but no new signature
    with pytest.raises(ManifestError, match="altered"):
        Manifest.load(engines).verify(engines, trusted_key=Path(public))
    assert main(["sign", str(engines), "--key", key]) == 0
    with pytest.raises(ManifestError, match="changed while it was loaded"):
        stale.verify(engines, trusted_key=Path(public))
    (engines / MANIFEST).with_name("think").write_text("other")
    assert main(["sign", str(engines), "--key", key]) == 1, "what is not intact is not signed"
