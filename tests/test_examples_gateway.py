"""The examples do what they say, on real sockets."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from websockets.asyncio.client import connect as open_websocket

import trunkline
from trunkline import Identity, WebSocketGateway, WebSocketTransportConfig, create_message
from trunkline.config import AuthConfig
from trunkline.messages import decode_message, encode

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TOKEN = "a-token-for-this-test"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config(**auth: str) -> WebSocketTransportConfig:
    return WebSocketTransportConfig(port=0, auth=AuthConfig(**auth))


def websocket(gateway: WebSocketGateway) -> str:
    return f"ws://127.0.0.1:{gateway.port}/ws"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_fits_on_a_screen(path):
    """No example has more than 60 lines."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


async def test_the_message_flow_is_that_of_the_protocol():
    """A client is welcomed, greeted and signed in, in this order."""
    async with WebSocketGateway(config(token=TOKEN)) as gateway:
        types = await load("message_flow").main(websocket(gateway), TOKEN)

    assert types == ["session_info", "hello_ok", "auth_success"]


async def test_the_message_flow_ends_with_an_error_for_a_wrong_token():
    """A wrong token is refused by an ``error`` that names the request."""
    async with WebSocketGateway(config(token=TOKEN)) as gateway:
        types = await load("message_flow").main(websocket(gateway), "wrong")

    assert types == ["session_info", "hello_ok", "error"]


async def weather(gateway: WebSocketGateway, city: str) -> trunkline.GatewayMessage:
    async with open_websocket(websocket(gateway)) as socket:
        await socket.recv()
        await socket.send(encode(create_message("weather", {"city": city})).decode())
        return decode_message(await socket.recv())


async def test_the_custom_handler_answers():
    """A custom type is answered with the handler's payload."""
    async with load("custom_handler").create_gateway(config(mode="none")) as gateway:
        answer = await weather(gateway, "Oslo")

    assert answer.type == "weather_report"
    assert answer.data() == {"celsius": 4.5}


async def test_the_custom_handler_refuses_in_its_own_words():
    """A handler's `GatewayError` reaches the client as it is."""
    async with load("custom_handler").create_gateway(config(mode="none")) as gateway:
        answer = await weather(gateway, "Atlantis")

    assert answer.type == "error"
    assert answer.data()["code"] == "UNKNOWN_CITY"


async def test_custom_authentication_lets_the_users_of_the_table_in():
    """The token's own user signs in, with the table's roles."""
    example = load("custom_auth")
    ada = Identity(user_id="ada", roles=frozenset({"webchat", "observer"}))

    async with (
        example.TableGateway(config(), {example.digest(TOKEN): ada}) as gateway,
        trunkline.connect(gateway.address, token=TOKEN) as client,
    ):
        info = gateway.get_client_info(client.client_id)

    assert info is not None
    assert (info.user_id, info.role) == ("ada", "webchat")


async def test_custom_authentication_keeps_everybody_else_out():
    """A token that the table does not know is refused."""
    async with load("custom_auth").TableGateway(config(), {}) as gateway:
        with pytest.raises(trunkline.SignInFailed):
            await trunkline.connect(gateway.address, token=TOKEN, open_timeout=0).open()
