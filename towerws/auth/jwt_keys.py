"""The keys that check a token's signature. The configuration pins each key to one algorithm.

A token's `alg` only selects among the keys for that algorithm. So a public key can't be used as an HMAC secret (RFC 8725 section 2.1).
`none` is not an algorithm here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import get_default_algorithms
from jwt.exceptions import InvalidKeyError
from twisted.internet.defer import Deferred, succeed

from towerws.auth.jwt_token import Token
from towerws.core.errors import ConfigError
from towerws.outgoing import read_bounded

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
RSA_BITS = range(2048, 8192 + 1)  # NIST SP 800-131A. With more bits, checking a signature takes milliseconds

_implementations = {name: get_default_algorithms()[name] for name in ALGORITHMS}


@dataclass(frozen=True, slots=True)
class Key:
    """A key for one algorithm. `kid` is its name in a key set."""

    algorithm: str
    material: Any = field(repr=False)
    kid: str | None = None

    def verifies(self, token: Token) -> bool:
        """Whether this key's owner signed the token."""
        return token.algorithm == self.algorithm and _implementations[self.algorithm].verify(token.signed, self.material, token.signature)


class KeySource(Protocol):
    """Supplies the keys that check signatures."""

    def find(self, algorithm: str, kid: str | None) -> Deferred[Sequence[Key]]:
        """Fires with the keys that may have signed a token with this header. Fails with `Unavailable` if they can't be fetched."""

    def find_newer(self, algorithm: str, kid: str | None) -> Deferred[Sequence[Key]]:
        """Fires with the keys that replaced those of `find`, none of which signed the token. Fires with none if there are no newer ones.

        Fails with `Unavailable` if there may be newer ones that can't be fetched now.
        """

    def knows(self, algorithm: str, kid: str | None) -> bool:
        """Whether there is a key that a token with this header names. If not, its signature says nothing about the issuer."""

    def stop(self) -> Deferred[None]:
        """Close connections. Fires when that is done."""


class FileKeys:
    """Keys from a file, which was read when the method was made. A token's `kid` is ignored."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = tuple(keys)

    def find(self, algorithm: str, kid: str | None) -> Deferred[Sequence[Key]]:
        """Fires at once."""
        return succeed(tuple(key for key in self._keys if key.algorithm == algorithm))

    def find_newer(self, algorithm: str, kid: str | None) -> Deferred[Sequence[Key]]:
        """Fires with no keys: a file is read at the start and at a reload only."""
        return succeed(())

    def knows(self, algorithm: str, kid: str | None) -> bool:
        """Return true: the key of a file signs all tokens."""
        return True

    def stop(self) -> Deferred[None]:
        """Fires at once."""
        return succeed(None)


def check_algorithms(algorithms: Sequence[str]) -> None:
    """Raise `ConfigError` unless all algorithms are known, and all use a secret or all use public keys."""
    shown = ", ".join(repr(name) for name in algorithms)
    if not algorithms or not set(algorithms) <= set(ALGORITHMS):
        raise ConfigError(f"jwt.algorithms = {shown or 'nothing'}: must be one or more of {', '.join(ALGORITHMS)}")
    if len({_KEY_TYPES[name] == "oct" for name in algorithms}) > 1:
        raise ConfigError(f"jwt.algorithms = {shown}: HS256, HS384 and HS512 (a shared secret) can't be used with public keys' algorithms")


def use_secret(algorithms: Sequence[str]) -> bool:
    """Whether these algorithms (checked by `check_algorithms`) use a shared secret."""
    return _KEY_TYPES[algorithms[0]] == "oct"


def read_secret(path: str, algorithms: Sequence[str]) -> FileKeys:
    """Return the file's bytes as the shared secret, without one line end. `ConfigError` if it is too short."""
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
    """Return the public key in a PEM file. `ConfigError` if it is not a public key, or not for all of the algorithms."""
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
    """Read one key of a key set (RFC 7517 section 4). Return a `Key` for each configured algorithm that it is for.

    Keys of unknown types and for other purposes are ignored, as the RFC says. Private keys are ignored too.
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
            continue  # not a key: PyJWT has many exceptions for that
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
        return read_bounded(path, MAX_FILE_BYTES)
    except ValueError as error:
        raise ConfigError(f"{key} = {path!r}: {error}") from None
