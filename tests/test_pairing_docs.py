"""What the documentation says in other languages: run, and compared with the test vectors."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "how-to" / "pair-devices.md").read_text(encoding="utf-8")
VECTORS = json.loads((DOCS / "reference" / "pairing-vectors.json").read_text())["vectors"]
SIGNED = [
    vector
    for vector in VECTORS
    if vector["valid"] and vector["connect"].get("role") and "=" not in json.dumps(vector)
]


def block(language, containing):
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    (found,) = [text for text in blocks if containing in text]
    return found


@pytest.fixture(params=SIGNED, ids=lambda vector: vector["name"])
def vector(request, tmp_path):
    """A vector whose key lies in the folder."""
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(request.param["seed"]))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "device.pem").write_bytes(pem)
    return request.param


def run(folder, *command, **environ):
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environ, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_signs_as_the_vectors_say(tmp_path, vector):
    """The commands of the page, with a key that is there already."""
    connect = vector["connect"]
    making, _, rest = block("sh", "pkeyutl").partition("\n")
    assert making.startswith("openssl genpkey")

    printed = run(
        *(tmp_path, "sh", "-ec", rest),
        NONCE=vector["challengeNonce"],
        DEVICE=connect["deviceId"],
        ROLE=connect["role"],
    )

    assert printed.split() == [connect["publicKey"], connect["challengeResponse"]]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_node_signs_as_the_vectors_say(tmp_path, vector):
    """The function of the page."""
    connect = vector["connect"]
    asked = json.dumps([vector["challengeNonce"], connect["deviceId"], connect["role"]])
    program = block("js", "createPrivateKey") + f"console.log(JSON.stringify(prove(...{asked})));"

    said = json.loads(run(tmp_path, "node", "--input-type=module", "-e", program))

    assert said == {**connect, "protocolVersion": 1}


def test_python_signs_as_the_vectors_say(vector):
    """The function of the page, which knows nothing of the SDK."""
    connect = vector["connect"]
    names: dict = {}
    exec(block("python", "def base64url"), names)
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["seed"]))

    said = names["prove"](key, vector["challengeNonce"], connect["deviceId"], connect["role"])

    assert said == {name: connect[name] for name in ("publicKey", "challengeResponse")}
