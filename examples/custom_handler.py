"""A gateway with a message type of its own: ``weather``, answered by our function."""

from __future__ import annotations

import asyncio

from trunkline import (
    Client,
    GatewayError,
    GatewayMessage,
    Payload,
    WebSocketGateway,
    WebSocketTransportConfig,
)
from trunkline.config import AuthConfig

CELSIUS = {"oslo": 4.5, "nairobi": 22.0}


class Weather(Payload, kw_only=True):
    """What a client sends."""

    type = "weather"
    city: str


class WeatherReport(Payload, kw_only=True):
    """What it gets."""

    type = "weather_report"
    sent_by = "gateway"
    celsius: float


async def on_weather(client: Client, message: GatewayMessage, payload: Weather) -> WeatherReport:
    """Answer one request; a coroutine may wait, and delays only the client that asked."""
    await asyncio.sleep(0)  # here a real handler asks a database or another service
    celsius = CELSIUS.get(payload.city.lower())
    if celsius is None:
        raise GatewayError("UNKNOWN_CITY", f"no report for {payload.city}")
    return WeatherReport(celsius=celsius)


def create_gateway(config: WebSocketTransportConfig) -> WebSocketGateway:
    """Make a gateway that knows the weather."""
    gateway = WebSocketGateway(config)
    gateway.register_handler("weather", on_weather, Weather, roles=["control", "webchat"])
    return gateway


async def main() -> None:
    """Run it on this machine, with no sign-in, until Ctrl-C."""
    config = WebSocketTransportConfig(auth=AuthConfig(mode="none"))
    async with create_gateway(config) as gateway:
        print(f"listening on {gateway.address}")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
