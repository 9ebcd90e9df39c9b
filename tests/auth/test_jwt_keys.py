from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import get_default_algorithms

from tests.auth.jwt_kit import CANARY, SECRET, b64, claims, identify, jwk, make_method, private_key, private_pem, public_pem, result, sign
from tests.kit.rows import each_row
from towerws.auth.base import Refused
from towerws.auth.jwt_keys import ALGORITHMS, MAX_FILE_BYTES, check_algorithms, read_jwk, read_public_key, read_secret
from towerws.auth.jwt_token import parse_token
from towerws.core.errors import ConfigError

PUBLIC = [name for name in ALGORITHMS if not name.startswith("HS")]


def write(folder: Path, raw: bytes) -> str:
    """Write a file with these bytes and return its path."""
    path = folder / "key"
    path.write_bytes(raw)
    return str(path)


@each_row("algorithm", ALGORITHMS)
def test_every_algorithm_verifies(tmp_path: Path, algorithm: str) -> None:
    """A token of each algorithm is accepted with its key, and refused with another key's signature."""
    if algorithm.startswith("HS"):
        method = make_method(tmp_path, algorithms=(algorithm,))
    else:
        method = make_method(tmp_path, algorithms=(algorithm,), public_key_file=write(tmp_path, public_pem(algorithm)))
    assert identify(method, sign(algorithm=algorithm)).user_id == "anna"
    for spoiled in (
        sign(algorithm=algorithm, number=1),
        sign(algorithm=algorithm).rpartition(".")[0] + ".",
        sign(algorithm=algorithm)[:-8],
    ):
        with pytest.raises(Refused):
            identify(method, spoiled)


@each_row(
    "algorithms",
    [(), ("none",), ("NONE",), ("",), ("HS256", "none"), ("hs256",), ("ES256K",), ("ES521",), ("HS1",), ("HS256", "RS256"),
        ("EdDSA", "HS512"),
     ("ES256", "HS384", "RS256")],
)  # fmt: skip
def test_algorithms_that_cannot_be_configured(algorithms: tuple[str, ...]) -> None:
    """`none`, unknown algorithms, and a secret together with a public key are errors of the configuration."""
    with pytest.raises(ConfigError, match=r"^jwt\.algorithms"):
        check_algorithms(algorithms)


def test_algorithms_of_one_kind_stand_together() -> None:
    """Several algorithms of a shared secret, or several of public keys, are accepted."""
    check_algorithms(("HS256", "HS512"))
    check_algorithms(PUBLIC)


@each_row(("algorithms", "least"), [(("HS256",), 32), (("HS384",), 48), (("HS512",), 64), (("HS256", "HS512"), 64)])
@each_row("end", [b"", b"\n", b"\r\n"])
def test_a_secret_is_as_long_as_the_hash(tmp_path: Path, algorithms: tuple[str, ...], least: int, end: bytes) -> None:
    """The secret has at least the bytes of RFC 7518 section 3.2. A line end at the end is no part of it."""
    (key, *_) = result(read_secret(write(tmp_path, b"s" * least + end), algorithms).find(algorithms[0], "any"))
    assert key.material == b"s" * least
    assert "ssss" not in repr(key)
    with pytest.raises(ConfigError, match=rf"^jwt\.secret_file = '.*': must hold at least {least} bytes"):
        read_secret(write(tmp_path, b"s" * (least - 1) + end), algorithms)


def test_files_that_hold_no_secret(tmp_path: Path) -> None:
    """A public key, a huge file, an empty file and no file each have an error, which does not repeat the content."""
    with pytest.raises(ConfigError, match="no secret"):
        read_secret(write(tmp_path, public_pem("RS256")), ("HS256",))
    with pytest.raises(ConfigError, match="at most 65536 bytes"):
        read_secret(write(tmp_path, CANARY.encode() * MAX_FILE_BYTES), ("HS256",))
    with pytest.raises(ConfigError, match="at least 32") as caught:
        read_secret(write(tmp_path, CANARY.encode()), ("HS256",))
    assert CANARY not in str(caught.value)
    with pytest.raises(ConfigError, match="No such file"):
        read_secret(str(tmp_path / "none"), ("HS256",))
    with pytest.raises(ConfigError, match="not a path"):
        read_secret("\0", ("HS256",))


def test_files_that_hold_no_public_key(tmp_path: Path) -> None:
    """A private key, a key for another purpose, a short one and noise are errors that name the right content."""
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()
    small = short.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for raw, algorithms, text in (
        (private_pem("RS256"), ("RS256",), "private key"),
        (private_pem("EdDSA"), ("EdDSA",), "private key"),
        (b"noise", ("RS256",), "in PEM"),
        (SECRET, ("ES256",), "in PEM"),
        (public_pem("RS256"), ("ES256",), "not a key for ES256"),
        (public_pem("ES256"), ("RS256",), "not a key for RS256"),
        (public_pem("ES256"), ("ES384",), "not a key for ES384"),
        (public_pem("ES256"), ("EdDSA",), "not a key for EdDSA"),
        (public_pem("RS256"), ("RS256", "ES256"), "not a key for ES256"),
        (small, ("RS256",), "2048 to 8192 bits"),
    ):
        with pytest.raises(ConfigError, match=text):
            read_public_key(write(tmp_path, raw), algorithms)


def test_one_rsa_key_serves_several_algorithms(tmp_path: Path) -> None:
    """RS and PS may share a key. Each token is checked by the algorithm that it names."""
    method = make_method(tmp_path, algorithms=("RS256", "PS512"), public_key_file=write(tmp_path, public_pem("RS256")))
    assert identify(method, sign(algorithm="RS256")).user_id == identify(method, sign(algorithm="PS512")).user_id == "anna"
    for other in ("PS256", "RS512"):
        with pytest.raises(Refused, match="algorithm"):
            identify(method, sign(algorithm=other))


def test_a_key_is_for_one_algorithm(tmp_path: Path) -> None:
    """A signature is not valid in a token that names another algorithm of the same key."""
    path = write(tmp_path, public_pem("RS256"))
    keys = read_public_key(path, ("RS256", "PS512"))
    (rs256,), (ps512,) = result(keys.find("RS256", None)), result(keys.find("PS512", "any"))
    signed = f"{b64({'alg': 'PS512'})}.{b64(claims())}"
    text = f"{signed}.{b64(get_default_algorithms()['RS256'].sign(signed.encode(), private_key('RS256')))}"
    assert not rs256.verifies(parse_token(text))
    assert not ps512.verifies(parse_token(text))
    with pytest.raises(Refused, match="signature"):
        identify(make_method(tmp_path, algorithms=("RS256", "PS512"), public_key_file=path), text)


@each_row("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_private_key_in_a_key_set_is_passed_over(algorithm: str) -> None:
    """A secret in a key set is ignored, since every reader of the set could sign with it."""
    both = get_default_algorithms()[algorithm].to_jwk(private_key(algorithm), as_dict=True)
    assert "d" in both
    both.pop("key_ops", None)
    assert read_jwk(both, [algorithm]) == []


@each_row("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_public_key_is_no_secret(tmp_path: Path, algorithm: str) -> None:
    """Algorithm confusion: a token signed by HMAC with the public key's bytes as the secret is refused, for three encodings of them."""
    path = write(tmp_path, public_pem(algorithm))
    method = make_method(tmp_path, algorithms=(algorithm,), public_key_file=path)
    der = private_key(algorithm).public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    for secret in (public_pem(algorithm), public_pem(algorithm).rstrip(), der):
        for name in ("HS256", "HS512"):
            with pytest.raises(Refused, match="algorithm"):
                identify(method, sign(algorithm=name, key=secret))
        forged = sign(algorithm="HS256", key=secret, header={"alg": algorithm})
        with pytest.raises(Refused, match="signature"):
            identify(method, forged)


@each_row("algorithm", PUBLIC)
def test_a_member_of_a_key_set(algorithm: str) -> None:
    """A public key works for each configured algorithm of its type, or for the one that it names."""
    (key,) = [key for key in read_jwk(jwk(algorithm, kid="k"), PUBLIC) if key.algorithm == algorithm]
    assert key.kid == "k"
    assert key.verifies(parse_token(sign(algorithm=algorithm)))
    assert not key.verifies(parse_token(sign(algorithm=algorithm, number=1)))
    assert [key.algorithm for key in read_jwk(jwk(algorithm, alg=algorithm), PUBLIC)] == [algorithm]
    assert read_jwk(jwk(algorithm, alg=algorithm), [name for name in PUBLIC if name != algorithm]) == []


@each_row("key_ops", [["verify"], ["sign", "verify"], None])
def test_what_a_key_is_for(key_ops: list[str] | None) -> None:
    """A key for signatures, or without a stated use, is accepted."""
    assert read_jwk(jwk("ES256", use="sig", key_ops=key_ops), ["ES256"])
    assert read_jwk(jwk("ES256", key_ops=key_ops), ["ES256"])


@each_row(
    "member",
    [
        None, 1, "key", [], {}, {"kty": "oct", "k": b64(SECRET)}, {"kty": ["RSA"]}, {"kty": "EC"}, {"kty": "RSA"}, {"kty": "OKP"},
        jwk("ES256", use="enc"), jwk("ES256", use=1), jwk("ES256", key_ops=["encrypt"]), jwk("ES256", key_ops="verify"),
        jwk("ES256", kid=1),
        jwk("ES256", alg="HS256"), jwk("ES256", alg="none"), jwk("ES256", alg=["ES256"]), jwk("ES256", alg="ES384"), jwk("ES256", d="AAAA"),
        jwk("ES256", x=None), jwk("ES256", x=1), jwk("ES256", x="!"), jwk("ES256", x=b64(b"1" * 32)), jwk("ES256", crv="P-384"),
        jwk("ES256", crv="secp256k1"), jwk("ES256", crv=1), jwk("ES384"), jwk("EdDSA", x="AA"), jwk("EdDSA", x=1),
        jwk("EdDSA", crv="X25519"),
        jwk("RS256", n="AQAB"), jwk("RS256", n=1), jwk("RS256", e=1), jwk("RS256", e=""), jwk("RS256", n=""),
        jwk("RS256", n=b64(b"\xff" * 2000)),
    ],
)  # fmt: skip
def test_what_serves_no_algorithm_is_passed_over(member: object) -> None:
    """Other types, other purposes, private keys and nonsense are no keys, and the other keys still count."""
    assert read_jwk(member, ["RS256", "ES256", "EdDSA"]) == []
