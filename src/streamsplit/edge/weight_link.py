"""Where the weight stream is, and how patient a client of it is."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from streamsplit.config import Settings, setting
from streamsplit.errors import ConfigError

PATH = "/v1/weights"


@dataclass(frozen=True, kw_only=True)
class WeightLinkSettings(Settings):
    """How a client connects and when it gives up."""

    device_id: str = setting("device")
    token: str = setting("")
    connect_timeout_s: float = setting(10.0, low=0.01)
    silence_s: float = setting(10.0, low=0.01)  # nothing came although something is asked for: the link is dead
    attempts: int = setting(5, low=1, high=1000)  # connections in a row that bring nothing, before it gives up
    faults: int = setting(2, low=0, high=100)  # damaged or malformed replies of one request that are asked for again
    compress: bool = setting(False)  # asks the server to pack what it sends
    backoff_s: float = setting(0.1, low=0.0, high=60.0)  # before the second attempt; doubles up to 2 s


def full_url(url: str) -> str:
    """The endpoint's whole URL; ws://host:port is enough. Raises ConfigError."""
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ConfigError(f"'uri': got {url!r}, expected ws://host:port or wss://host:port")
    return url if parts.path.strip("/") else parts._replace(path=PATH).geturl()
