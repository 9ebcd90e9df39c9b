"""An issuer of tokens for tests: keys of every kind, each made once, and tokens with the claims that a test wants."""

from __future__ import annotations

import base64
import functools
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from towerws.auth.jwt import JwtMethod
from towerws.core.http_head import Head
from towerws.core.identity import Identity
from towerws.core.settings import JwtSettings

NOW = 1_800_000_000.0
CANARY = "canary-f00d"
SECRET = f"{CANARY}-".ljust(64, "s").encode()

_CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}

_implementations = get_default_algorithms()


@functools.cache
def private_key(algorithm: str, number: int = 0) -> Any:
    """Return a private key for an algorithm. Each number has another key."""
    if algorithm.startswith("HS"):
        return SECRET[number:] + SECRET[:number]
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm.startswith("ES"):
        return ec.generate_private_key(_CURVES[algorithm])
    return _rsa(number)


@functools.cache
def _rsa(number: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def public_pem(algorithm: str, number: int = 0) -> bytes:
    """Return the public key of `private_key`, in PEM."""
    key = private_key(algorithm, number).public_key()
    return bytes(key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))


def private_pem(algorithm: str) -> bytes:
    """Return the private key, in PEM."""
    return bytes(
        private_key(algorithm).private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def jwk(algorithm: str, number: int = 0, **members: object) -> dict[str, object]:
    """Return the public key of `private_key` as a JWK. A field that is None is left out."""
    made: dict[str, object] = dict(_implementations[algorithm].to_jwk(private_key(algorithm, number).public_key(), as_dict=True))
    return {name: value for name, value in {**made, **members}.items() if value is not None}


def jwks(*members: object) -> bytes:
    """Return a key set."""
    return json.dumps({"keys": members}).encode()


def b64(raw: bytes | str | object) -> str:
    """Return the canonical base64url of bytes, of text, or of a value as JSON."""
    if not isinstance(raw, bytes):
        raw = (raw if isinstance(raw, str) else json.dumps(raw)).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def claims(**changes: object) -> dict[str, object]:
    """Return the claims of a valid token, with changes. A claim that is None is left out."""
    good: dict[str, object] = {"sub": "anna", "iat": NOW - 10, "exp": NOW + 100, "groups": ["jobs.status_changed", "job_events.*"]}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def sign(payload: object = None, algorithm: str = "HS256", *, key: Any = None, number: int = 0, header: object = None) -> str:
    """Return a token. Payload and header may be text that is not JSON."""
    head = {"alg": algorithm, "typ": "JWT", **(header or {})} if header is None or isinstance(header, dict) else header
    signed = f"{b64(head)}.{b64(claims() if payload is None else payload)}"
    material = private_key(algorithm, number) if key is None else key
    return f"{signed}.{b64(_implementations[algorithm].sign(signed.encode(), material))}"


def make_method(folder: Path, clock: Any = None, *, wall: float = NOW, **changes: Any) -> JwtMethod:
    """Return a method with a secret, or with the changed settings."""
    changes.setdefault("algorithms", ("HS256",))
    if not {"secret_file", "public_key_file", "jwks_url"} & changes.keys():
        path = folder / "secret"
        path.write_bytes(SECRET)
        changes["secret_file"] = str(path)
    return JwtMethod(JwtSettings(**changes), Clock() if clock is None else clock, wall=lambda: wall)


def head(*, authorization: str = "", token: str | None = None, cookie: str = "", query: str = "") -> Head:
    """Return an opening handshake with a credential."""
    headers = {"host": "x", "authorization": authorization, "cookie": cookie}
    if token is not None:
        query = f"token={quote(token)}"
    return Head("GET", "/websocket/", query, {name: value for name, value in headers.items() if value})


def result(deferred: Deferred[Any]) -> Any:
    """Return the result of a Deferred that has fired, or raise its exception."""
    found: list[Any] = []
    deferred.addBoth(found.append)
    assert found, "has not fired"
    if hasattr(found[0], "raiseException"):
        found[0].raiseException()
    return found[0]


def identify(method: JwtMethod, token: str) -> Identity:
    """Return the identity of a token."""
    identity = result(method.identify(token))
    assert isinstance(identity, Identity)
    return identity
