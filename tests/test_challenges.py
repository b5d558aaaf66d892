"""What a device signs, and how keys and signatures are spelled."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.challenges import challenge_text, fingerprint, from_base64url, to_base64url
from trunkline.pairing import verify

VECTORS = json.loads(
    (Path(__file__).parents[1] / "docs" / "reference" / "pairing-vectors.json").read_text()
)
GOOD = [vector for vector in VECTORS["vectors"] if vector["valid"]]


def name_of(vector):
    return vector["name"]


def text_of(connect, nonce):
    return challenge_text(
        nonce, connect["deviceId"], connect.get("role"), connect.get("protocolVersion")
    )


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=name_of)
def test_the_gateway_judges_a_vector_as_the_file_says(vector):
    """Other languages check their own implementation against the same file."""
    connect = vector["connect"]

    key = verify(
        connect["publicKey"],
        connect["challengeResponse"],
        text_of(connect, vector["challengeNonce"]),
    )

    assert (key is not None) is vector["valid"]


@pytest.mark.parametrize("vector", GOOD, ids=name_of)
def test_a_vector_says_what_was_signed(vector):
    """The line of text, and what people compare of the key."""
    connect = vector["connect"]

    assert text_of(connect, vector["challengeNonce"]).decode() == vector["signed"]
    key = from_base64url(connect["publicKey"], 32)
    assert key is not None
    assert fingerprint(key) == vector["fingerprint"]


def test_the_weak_keys_are_all_points_of_small_order():
    """Every encoding of a point whose order divides eight is refused, and there are 14 of them."""
    prime = 2**255 - 19
    d = -121665 * pow(121666, -1, prime) % prime
    # y of the points of order 8: from the curve's equation where doubling gives y = 0.
    root = pow(1 + d, (prime + 3) // 8, prime)
    if root * root % prime != (1 + d) % prime:
        root = root * pow(2, (prime - 1) // 4, prime) % prime
    eighths = {y for s in (root, -root) for y in _square_roots((s - 1) * pow(d, -1, prime), prime)}
    points = {0, 1, prime - 1, *eighths}
    spellings = {y + n * prime for y in points for n in (0, 1) if y + n * prime < 2**255}

    assert len(eighths) == 2
    for y in spellings:
        for sign in (0, 1 << 255):
            key = to_base64url((y | sign).to_bytes(32, "little"))
            identity = to_base64url(bytes([1]) + bytes(63))
            assert all(verify(key, identity, b"%d" % n) is None for n in range(64))


def _square_roots(value, prime):
    root = pow(value % prime, (prime + 3) // 8, prime)
    for candidate in (root, root * pow(2, (prime - 1) // 4, prime) % prime):
        if candidate * candidate % prime == value % prime:
            return {candidate, prime - candidate}
    return set()


@given(st.binary(max_size=80))
def test_bytes_come_back_from_base64url(data):
    """With padding or without."""
    text = to_base64url(data)

    assert "=" not in text
    assert from_base64url(text, len(data)) == data
    assert from_base64url(base64.urlsafe_b64encode(data).decode(), len(data)) == data
    assert from_base64url(text, len(data) + 1) is None


@given(st.text(max_size=50))
def test_any_text_is_decoded_or_refused(text):
    """Never an exception; what is decoded has one spelling only."""
    for size in range(33):
        data = from_base64url(text, size)
        assert data is None or to_base64url(data) == text.rstrip("=")


@pytest.mark.parametrize("text", ["+A", "/A", "A", "AB", "A A", "AA\n", "ÀA", "=", "A=A="])
def test_what_is_no_base64url_is_refused(text):
    """The other alphabet, spaces, lost bits, padding within."""
    assert from_base64url(text, 1) is None
