"""The keys that a token's signature is checked with, each pinned to one algorithm by whoever runs the daemon.

An algorithm is never taken from a token: its `alg` only picks among the keys that are there for that algorithm, so that a
public key can't be used as an HMAC secret (RFC 8725 section 2.1). `none` is no algorithm here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import get_default_algorithms
from jwt.exceptions import InvalidKeyError
from twisted.internet.defer import Deferred, succeed

from towerws.auth.jwt_token import Token
from towerws.core.errors import ConfigError

_HASH_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
"""A secret must not be shorter than the hash (RFC 7518 section 3.2)."""
_KEY_TYPES = {
    **dict.fromkeys(("HS256", "HS384", "HS512"), "oct"),
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    **dict.fromkeys(("ES256", "ES384", "ES512"), "EC"),
    "EdDSA": "OKP",
}
ALGORITHMS = tuple(_KEY_TYPES)
MAX_FILE_BYTES = 64 * 1024
RSA_BITS = range(2048, 8192 + 1)  # NIST SP 800-131A; above, checking a signature takes milliseconds

_implementations = {name: get_default_algorithms()[name] for name in ALGORITHMS}


@dataclass(frozen=True, slots=True)
class Key:
    """One key for one algorithm. `kid` is its name in a key set."""

    algorithm: str
    material: Any = field(repr=False)
    kid: str | None = None

    def verifies(self, token: Token) -> bool:
        """Whether this key's owner signed the token."""
        return token.algorithm == self.algorithm and _implementations[self.algorithm].verify(token.signed, self.material, token.signature)


class KeySource(Protocol):
    """Where keys come from."""

    def find(self, algorithm: str, kid: str | None) -> Deferred[Sequence[Key]]:
        """Fires with the keys that may have signed a token with this header; fails with `Unavailable` when they can't be had."""

    def stop(self) -> Deferred[None]:
        """Let go of connections. Fires when that is done."""


class FileKeys:
    """Keys that were read from a file when the daemon started. A token's `kid` means nothing to them."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = tuple(keys)

    def find(self, algorithm: str, kid: str | None) -> Deferred[Sequence[Key]]:
        """Fires at once."""
        return succeed(tuple(key for key in self._keys if key.algorithm == algorithm))

    def stop(self) -> Deferred[None]:
        """Fires at once."""
        return succeed(None)


def check_algorithms(algorithms: Sequence[str]) -> None:
    """`ConfigError` unless these can stand together: known ones, and either all with a secret or all with public keys."""
    shown = ", ".join(repr(name) for name in algorithms)
    if not algorithms or not set(algorithms) <= set(ALGORITHMS):
        raise ConfigError(f"jwt.algorithms = {shown or 'nothing'}: must be one or more of {', '.join(ALGORITHMS)}")
    if len({_KEY_TYPES[name] == "oct" for name in algorithms}) > 1:
        raise ConfigError(f"jwt.algorithms = {shown}: HS256, HS384 and HS512 (a shared secret) can't stand with public keys' algorithms")


def use_secret(algorithms: Sequence[str]) -> bool:
    """Whether these algorithms (that passed `check_algorithms`) are those of a shared secret."""
    return _KEY_TYPES[algorithms[0]] == "oct"


def read_secret(path: str, algorithms: Sequence[str]) -> FileKeys:
    """The file's bytes as the shared secret, without one line end behind them. `ConfigError` when it is too short to be one."""
    secret = _read("jwt.secret_file", path).removesuffix(b"\n").removesuffix(b"\r")
    least = max(_HASH_BYTES[name] for name in algorithms)
    if len(secret) < least:
        raise ConfigError(f"jwt.secret_file = {path!r}: must hold at least {least} bytes, for {max(algorithms)}")
    try:
        return FileKeys([Key(name, _implementations[name].prepare_key(secret)) for name in algorithms])
    except InvalidKeyError:
        pass
    raise ConfigError(f"jwt.secret_file = {path!r}: holds a public key or a certificate, which is no secret")


def read_public_key(path: str, algorithms: Sequence[str]) -> FileKeys:
    """The public key in a PEM file. `ConfigError` when it is something else, or not a key for each of the algorithms."""
    pem = _read("jwt.public_key_file", path)
    if b"PRIVATE KEY-----" in pem:
        raise ConfigError(f"jwt.public_key_file = {path!r}: holds a private key, which only the issuer should have")
    try:
        material = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        material = None
    if material is None:
        raise ConfigError(f"jwt.public_key_file = {path!r}: must hold a public key in PEM (-----BEGIN PUBLIC KEY-----)")
    for name in algorithms:
        if not _fits(material, name):
            raise ConfigError(f"jwt.public_key_file = {path!r}: is not a key for {name}, or an RSA key not of 2048 to 8192 bits")
    return FileKeys([Key(name, material) for name in algorithms])


def read_jwk(jwk: object, algorithms: Sequence[str]) -> list[Key]:
    """One member of a key set (RFC 7517 section 4), once for each configured algorithm it is for; nothing if for none.

    Keys of unknown types and for other purposes are passed over, as the RFC says, and so is what holds a private key.
    """
    if not isinstance(jwk, dict) or "d" in jwk or "k" in jwk or jwk.get("use", "sig") != "sig" or not _may_verify(jwk.get("key_ops")):
        return []
    kid, only = jwk.get("kid"), jwk.get("alg")
    if not isinstance(kid, str | None):
        return []
    keys = []
    for name in algorithms:
        if _KEY_TYPES[name] != jwk.get("kty") or only not in (None, name):
            continue
        try:
            material = _implementations[name].from_jwk(jwk)
        except (InvalidKeyError, ValueError, TypeError, AttributeError, KeyError, UnsupportedAlgorithm):
            continue  # not a key, in one of the many ways in which somebody's JSON can be none
        if _fits(material, name):
            keys.append(Key(name, material, kid))
    return keys


def _may_verify(operations: object) -> bool:
    return operations is None or (isinstance(operations, list) and "verify" in operations)


def _fits(material: Any, algorithm: str) -> bool:
    try:
        _implementations[algorithm].prepare_key(material)
    except (InvalidKeyError, TypeError):
        return False
    return _KEY_TYPES[algorithm] != "RSA" or material.key_size in RSA_BITS


def _read(key: str, path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key} = {path!r}: can't be read: {getattr(error, 'strerror', None) or 'not a path'}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{key} = {path!r}: must be at most {MAX_FILE_BYTES} bytes")
    return raw
