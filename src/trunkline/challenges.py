"""
What a device signs to prove its key, the same in every language.

The signature is Ed25519 (RFC 8032) over one line of text that names the
connection's challenge, the device, the role that it asks for and the version
of the protocol. Keys and signatures travel as base64url without padding.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from trunkline.messages import PROTOCOL_VERSION

KEY_BYTES = 32
"""Bytes of a public key, and of a private one."""

SIGNATURE_BYTES = 64
"""Bytes of a signature."""


def challenge_text(
    nonce: str, device_id: str, role: str | None, protocol_version: int | None = None
) -> bytes:
    """
    Return the bytes that a device signs.

    Args:
        nonce: The ``challengeNonce`` that the gateway sent last on this connection.
        device_id: ``connect.deviceId``.
        role: ``connect.role``; absent: nothing stands in its place.
        protocol_version: ``connect.protocolVersion``; absent: this version.
    """
    version = PROTOCOL_VERSION if protocol_version is None else protocol_version
    return f"trunkline-v1|{nonce}|{device_id}|{role or ''}|{version}".encode()


def to_base64url(data: bytes) -> str:
    """Encode bytes as base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_base64url(text: str, size: int) -> bytes | None:
    """
    Decode base64url, with or without padding.

    Returns:
        The bytes; None if the text is no base64url, or not of `size` bytes.
    """
    if not text.isascii() or "+" in text or "/" in text:
        return None
    standard = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        data = binascii.a2b_base64(standard + "=" * (-len(standard) % 4), strict_mode=True)
    except binascii.Error:
        return None
    # Two spellings of the same bytes would be two names of one key.
    same = base64.b64encode(data).rstrip(b"=").decode() == standard
    return data if same and len(data) == size else None


def fingerprint(public_key: bytes) -> str:
    """Return what people compare to tell keys apart: 16 hex digits of its SHA-256, in fours."""
    digest = hashlib.sha256(public_key).hexdigest()
    return " ".join(digest[n : n + 4] for n in range(0, 16, 4))
