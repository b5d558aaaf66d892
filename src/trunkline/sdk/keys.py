"""
A device's own key, with which it proves who it is instead of showing a secret.

The private key never leaves the device; the gateway knows the public one once
somebody has approved it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from trunkline.challenges import challenge_text, fingerprint, to_base64url
from trunkline.messages import Role
from trunkline.sdk.errors import TrunklineError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class DeviceKey:
    """
    An Ed25519 key.

    Args:
        private: 32 bytes that nobody else knows.

    Raises:
        ValueError: Not 32 bytes.
    """

    def __init__(self, private: bytes) -> None:
        # Only who has a key pays for the import.
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._key: Ed25519PrivateKey = Ed25519PrivateKey.from_private_bytes(private)
        self._public = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"DeviceKey({self.fingerprint!r})"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DeviceKey:
        """
        Read a key from a PEM file (PKCS #8), as `load_or_create` and openssl write it.

        Raises:
            TrunklineError: There is none, it is something else, or others may read it.
        """
        file = Path(path)
        try:
            if file.stat().st_mode & 0o077:
                raise TrunklineError(f"others may read {file}: run chmod 600 {file}")
            return cls(_private_bytes(file.read_bytes()))
        except FileNotFoundError:
            raise TrunklineError(
                f"there is no key {file}; DeviceKey.load_or_create makes one"
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise TrunklineError(f"{file} is no Ed25519 key in PEM: {error}") from None

    @classmethod
    def load_or_create(cls, path: str | os.PathLike[str]) -> DeviceKey:
        """
        Read a key, and make one first where there is no file; only its owner may read it.

        Raises:
            TrunklineError: The file is something else, others may read it, or
                it cannot be made.
        """
        file = Path(path)
        if not file.exists():
            try:
                _create(file)
            except OSError as error:
                raise TrunklineError(f"{file} cannot be made: {error.strerror}") from None
        return cls.load(file)

    @property
    def public_key(self) -> str:
        """The public key, base64url."""
        return to_base64url(self._public)

    @property
    def fingerprint(self) -> str:
        """What to compare with what the approver sees."""
        return fingerprint(self._public)

    @property
    def device_id(self) -> str:
        """A name for the device that follows from the key."""
        return "d-" + self.fingerprint.replace(" ", "")

    def sign(self, nonce: str, device_id: str, role: Role | None) -> str:
        """Return the answer to a gateway's challenge, base64url."""
        return to_base64url(self._key.sign(challenge_text(nonce, device_id, role)))


def _private_bytes(pem: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(pem, None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("it is of another kind")
    return key.private_bytes_raw()


def _create(file: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as whole:
            whole.write(pem)
            whole.flush()
            os.fsync(whole.fileno())
        os.link(name, file)  # whoever comes first makes the key
    except FileExistsError:
        pass
    finally:
        os.unlink(name)
