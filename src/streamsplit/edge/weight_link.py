"""Where the weight stream is, and how patient a client of it is."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from streamsplit.config import Settings, setting
from streamsplit.errors import ConfigError

PATH = "/v1/weights"
ENCODER_PATH = "/v1/weights/encoder"  # of a server that serves another model beside its encoder, too


@dataclass(frozen=True, kw_only=True)
class WeightLinkSettings(Settings):
    """How a client connects and when it gives up."""

    device_id: str = setting("device")
    token: str = setting("")
    tls_ca_file: str = setting("")  # wss: PEM file of the authorities that are trusted; "" = the system's
    connect_timeout_s: float = setting(10.0, low=0.01)
    silence_s: float = setting(10.0, low=0.01)  # nothing came although something is asked for: the link is dead
    attempts: int = setting(5, low=1, high=1000)  # connections in a row that bring nothing, before it gives up
    faults: int = setting(2, low=0, high=100)  # damaged or malformed replies of one request that are asked for again
    compress: bool = setting(False)  # asks the server to pack what it sends
    backoff_s: float = setting(0.1, low=0.0, high=60.0)  # before the second attempt; doubles up to 2 s


@dataclass(frozen=True, kw_only=True)
class BlockSettings(Settings):
    """The encoder's blocks as a stream: a device with room for some of them fetches the others from the server."""

    cache_bytes: int | None = setting(None, low=1)  # of blocks in memory; None: the whole encoder is here
    url: str = setting("")  # of the weight stream; "" = /v1/weights/encoder beside server.url
    wait_ms: float = setting(200.0, low=0.0)  # a window waits so long for blocks that have no room to stay
    retry_s: float = setting(5.0, low=0.0)  # after blocks could not be fetched, they are asked for again
    disk_cache_dir: str = setting("")  # chunks that came are kept there; "" = nothing is written
    disk_cache_bytes: int = setting(256_000_000, low=1)  # of that folder's chunks; the least recently used ones leave

    @property
    def streamed(self) -> bool:
        """Whether blocks are fetched as cuts need them."""
        return self.cache_bytes is not None

    def check(self) -> None:
        """Only addresses of a weight stream."""
        if self.url:
            full_url(self.url)

    def beside(self, server_url: str) -> str:
        """The weight stream's address, given the server's."""
        if self.url:
            return full_url(self.url)
        return urlsplit(server_url)._replace(path=ENCODER_PATH, query="", fragment="").geturl()


def full_url(url: str) -> str:
    """The endpoint's whole URL; ws://host:port is enough. Raises ConfigError."""
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ConfigError(f"'uri': got {url!r}, expected ws://host:port or wss://host:port")
    return url if parts.path.strip("/") else parts._replace(path=PATH).geturl()
