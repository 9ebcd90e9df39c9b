"""An issuer of tokens: keys of every kind, made once, and tokens that say exactly what a test wants."""

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
    """A private key for an algorithm; another one for each number."""
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
    """The public key of `private_key`, in PEM."""
    key = private_key(algorithm, number).public_key()
    return bytes(key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))


def private_pem(algorithm: str) -> bytes:
    """The private key itself, in PEM."""
    return bytes(
        private_key(algorithm).private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def jwk(algorithm: str, number: int = 0, **members: object) -> dict[str, object]:
    """The public key of `private_key` as a member of a key set. A member that is None is left out."""
    made: dict[str, object] = dict(_implementations[algorithm].to_jwk(private_key(algorithm, number).public_key(), as_dict=True))
    return {name: value for name, value in {**made, **members}.items() if value is not None}


def jwks(*members: object) -> bytes:
    """A key set."""
    return json.dumps({"keys": members}).encode()


def b64(raw: bytes | str | object) -> str:
    """Canonical base64url of bytes, of text, or of something as JSON."""
    if not isinstance(raw, bytes):
        raw = (raw if isinstance(raw, str) else json.dumps(raw)).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def claims(**changes: object) -> dict[str, object]:
    """What a good token says, with some things said otherwise; a claim that is None is left out."""
    good: dict[str, object] = {"sub": "anna", "iat": NOW - 10, "exp": NOW + 100, "groups": ["jobs.status_changed", "job_events.*"]}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def sign(payload: object = None, algorithm: str = "HS256", *, key: Any = None, number: int = 0, header: object = None) -> str:
    """A token; payload and header may be text that is not what JSON should be."""
    head = {"alg": algorithm, "typ": "JWT", **(header or {})} if header is None or isinstance(header, dict) else header
    signed = f"{b64(head)}.{b64(claims() if payload is None else payload)}"
    material = private_key(algorithm, number) if key is None else key
    return f"{signed}.{b64(_implementations[algorithm].sign(signed.encode(), material))}"


def make_method(folder: Path, clock: Any = None, *, wall: float = NOW, **changes: Any) -> JwtMethod:
    """A method with a secret, or with what the changes say."""
    changes.setdefault("algorithms", ("HS256",))
    if not {"secret_file", "public_key_file", "jwks_url"} & changes.keys():
        path = folder / "secret"
        path.write_bytes(SECRET)
        changes["secret_file"] = str(path)
    return JwtMethod(JwtSettings(**changes), Clock() if clock is None else clock, wall=lambda: wall)


def head(*, authorization: str = "", token: str | None = None, cookie: str = "", query: str = "") -> Head:
    """An opening handshake with a credential."""
    headers = {"host": "x", "authorization": authorization, "cookie": cookie}
    if token is not None:
        query = f"token={quote(token)}"
    return Head("GET", "/websocket/", query, {name: value for name, value in headers.items() if value})


def result(deferred: Deferred[Any]) -> Any:
    """What a Deferred has fired with by now; its exception is raised."""
    found: list[Any] = []
    deferred.addBoth(found.append)
    assert found, "has not fired"
    if hasattr(found[0], "raiseException"):
        found[0].raiseException()
    return found[0]


def identify(method: JwtMethod, token: str) -> Identity:
    """Whose token it is."""
    identity = result(method.identify(token))
    assert isinstance(identity, Identity)
    return identity
