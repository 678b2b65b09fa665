"""Signed engine directories: Ed25519 signatures of the manifest, whose hashes cover every other file.

Files have the format of minisign (jedisct1.github.io/minisign), so that its own tool makes keys (`minisign -GW`), signs
and verifies them as well; the arithmetic is that of `cryptography`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import time
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SUFFIX = ".minisig"
_RAW, _HASHED = b"Ed", b"ED"  # what is signed: the file, or its BLAKE2b
_PLAIN = _RAW + b"\0\0B2" + bytes(48)  # header of a secret key without a password
_NUMBER, _KEY = 8, 32  # bytes


class SignatureError(ValueError):
    """A key or a signature that cannot be used, or a file that the trusted key has not signed."""


def make_keys(secret: Path) -> Path:
    """Writes a new secret key (for its owner only, no password) and, beside it, `<secret>.pub`, which it returns."""
    key, number = Ed25519PrivateKey.generate(), os.urandom(_NUMBER)
    seed, point = key.private_bytes_raw(), key.public_key().public_bytes_raw()
    pair = number + seed + point
    check = hashlib.blake2b(_RAW + pair, digest_size=32).digest()
    public = secret.with_name(secret.name + ".pub")
    try:
        with os.fdopen(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(_lines("minisign encrypted secret key", _PLAIN + pair + check))
        with public.open("xb") as file:
            file.write(_lines(f"minisign public key {number[::-1].hex().upper()}", _RAW + number + point))
    except FileExistsError as error:
        raise SignatureError(f"{error.filename}: expected a new file, there is one already") from None
    return public


def sign(file: Path, secret: Path) -> Path:
    """Signs `file`; returns the path of the signature, `<file>.minisig`."""
    number, seed = _secret(secret)
    key = Ed25519PrivateKey.from_private_bytes(seed)
    signature = key.sign(hashlib.blake2b(file.read_bytes()).digest())
    comment = f"timestamp:{int(time.time())}\tfile:{file.name}\thashed"
    path = file.with_name(file.name + SUFFIX)
    whole = base64.b64encode(key.sign(signature + comment.encode())).decode()
    head = _lines("signature from minisign secret key", _HASHED + number + signature)
    path.write_bytes(head + f"trusted comment: {comment}\n{whole}\n".encode())
    return path


def verify(file: Path, trusted: Path) -> bytes:
    """The bytes of `file`, if the public key `trusted` has signed exactly them. SignatureError says what is wrong."""
    key = _payload(trusted, 0, len(_RAW) + _NUMBER + _KEY, "a minisign public key")
    path = file.with_name(file.name + SUFFIX)
    if not path.exists():
        raise SignatureError(f"{file.name} is not signed; expected {path.name} by {trusted}")
    signed = _payload(path, 0, len(_RAW) + _NUMBER + 64, "a minisign signature")
    whole = _payload(path, 2, 64, "a minisign signature")
    comment = _text(path)[2].removeprefix("trusted comment: ")
    if signed[2:10] != key[2:10]:
        wanted, got = (part[2:10][::-1].hex().upper() for part in (key, signed))
        raise SignatureError(f"{file.name}: expected the signature of key {wanted} ({trusted}), got that of {got}")
    data, public = file.read_bytes(), Ed25519PublicKey.from_public_bytes(key[10:])
    try:
        public.verify(signed[10:], hashlib.blake2b(data).digest() if signed[:2] == _HASHED else data)
        public.verify(whole, signed[10:] + comment.encode())
    except InvalidSignature:
        raise SignatureError(f"{file.name} is not what {trusted} signed: altered, or the signature is") from None
    return data


def _secret(path: Path) -> tuple[bytes, bytes]:
    """Number and seed of a secret key."""
    data = _payload(path, 0, 158, "a minisign secret key")
    if not data.startswith(_PLAIN[:4]):
        raise SignatureError(f"{path}: locked with a password; `minisign -C -W -s {path}` takes it off")
    number, seed, point = data[54:62], data[62:94], data[94:126]
    check = hashlib.blake2b(_RAW + number + seed + point, digest_size=32).digest()
    if check != data[126:] or Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw() != point:
        raise SignatureError(f"{path}: damaged: its check sum does not fit")
    return number, seed


def _payload(path: Path, line: int, size: int, what: str) -> bytes:
    """The base64 that follows comment line `line` of a file."""
    try:
        data = base64.b64decode(_text(path)[line + 1], validate=True)
    except (OSError, ValueError, IndexError) as error:
        raise SignatureError(f"{path}: expected {what} ({error})") from None
    if len(data) != size or (line == 0 and data[:2] not in (_RAW, _HASHED)):
        raise SignatureError(f"{path}: expected {what} of {size} bytes, got {len(data)}")
    return data


def _text(path: Path) -> list[str]:
    with path.open("rb") as file:
        return file.read(4096).decode().replace("\r\n", "\n").split("\n")


def _lines(comment: str, data: bytes) -> bytes:
    return f"untrusted comment: {comment}\n{base64.b64encode(data).decode()}\n".encode()
