"""An identity provider for tests: its keys, and the tokens that it or a forger makes."""

from __future__ import annotations

import base64
import json
import time
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from trunkline.config import JwtConfig, JwtKeyConfig

ISSUER = "https://id.example/realm"
AUDIENCE = "trunkline"
SECRET = "a secret of more than sixty-four bytes, as HS512 wants it: 0123456789"


@cache
def private_key(name: str) -> Any:
    """A key, made once: by the algorithm that it is for, or any other name for a stranger's."""
    curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
    if name in curves:
        return ec.generate_private_key(curves[name])
    if name == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, 2048)


def signing_key(algorithm: str) -> Any:
    """What the provider signs with."""
    if algorithm.startswith("HS"):
        return SECRET
    return private_key("RSA" if algorithm[0] in "RP" else algorithm)


def public_pem(name: str) -> str:
    """A public key as text."""
    public = private_key(name).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def private_pem(name: str) -> str:
    """A private key as text."""
    key = private_key(name)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def jwk(algorithm: str, kid: str, **more: Any) -> dict[str, Any]:
    """A public key as a JWKS holds it."""
    key = signing_key(algorithm).public_key()
    made = jwt.get_algorithm_by_name(algorithm).to_jwk(key, as_dict=True)
    return {**made, "kid": kid, "alg": algorithm, **more}


def key_config(algorithm: str, kid: str | None = None) -> JwtKeyConfig:
    """A key as the gateway's configuration holds it."""
    if algorithm.startswith("HS"):
        return JwtKeyConfig(algorithm=algorithm, kid=kid, secret=SECRET)
    name = "RSA" if algorithm[0] in "RP" else algorithm
    return JwtKeyConfig(algorithm=algorithm, kid=kid, public_key=public_pem(name))


def jwt_config(*algorithms: str, **more: Any) -> JwtConfig:
    """The configuration of a gateway that takes the provider's tokens; kids are algorithms."""
    keys = tuple(key_config(a, a) for a in algorithms)
    return JwtConfig(**{"issuer": ISSUER, "audience": AUDIENCE, "keys": keys, **more})


def claims(now: float | None = None, **changes: Any) -> dict[str, Any]:
    """Good claims with changes; a change to None takes a claim away."""
    now = time.time() if now is None else now
    good = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ada",
        "iat": int(now),
        "exp": int(now) + 3600,
        "roles": ["webchat"],
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def word(data: Any) -> str:
    """One of a token's three words."""
    if not isinstance(data, bytes):
        data = (data if isinstance(data, str) else json.dumps(data)).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(
    body: Any, algorithm: str = "RS256", *, key: Any = None, kid: Any = "", head: Any = None
) -> str:
    """
    Sign anything as if it were a token, also what no library would.

    Args:
        body: The claims, as an object or as the text of one.
        algorithm: What signs.
        key: What it signs with; absent: the provider's.
        kid: Empty: the algorithm's name; None: none.
        head: More of the head, or its text.
    """
    named = {"kid": algorithm if kid == "" else kid} if kid is not None else {}
    if not isinstance(head, str):
        head = {"alg": algorithm, "typ": "JWT", **named, **(head or {})}
    signed = f"{word(head)}.{word(body)}"
    signer = jwt.get_algorithm_by_name(algorithm)
    key = signing_key(algorithm) if key is None else key
    signature = signer.sign(signed.encode(), key.encode() if isinstance(key, str) else key)
    return f"{signed}.{word(signature)}"
