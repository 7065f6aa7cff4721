"""StreamingConfig: where a streamed model's weights come from, and how many of them may be in memory."""

from __future__ import annotations

from dataclasses import dataclass

from streamsplit.config import Settings, setting
from streamsplit.edge.disk_cache import BUDGET_BYTES
from streamsplit.edge.weight_link import WeightLinkSettings
from streamsplit.weights.streaming.model import COMPUTE


@dataclass(frozen=True, kw_only=True)
class StreamingConfig(Settings):
    """Where the weights come from, and how many of them may be in memory."""

    server_host: str = setting("localhost")
    server_port: int = setting(8765, low=1, high=65535)
    secure: bool = setting(False)  # True: wss://
    token: str = setting("")
    tls_ca_file: str = setting("")  # with `secure`: PEM file of the authorities that are trusted; "" = the system's
    device_id: str = setting("device")
    cache_size: int | None = setting(None, low=1)  # layers in memory, the running one included; None: all
    cache_bytes: int | None = setting(None, low=1)  # the same in bytes; the smaller of the two holds
    enable_compression: bool = setting(False)  # the server packs what it sends where that makes it smaller
    prefetch_layers: bool = setting(True)  # ask for the next layer while one runs
    prefetch_depth: int = setting(1, low=1, high=8)
    dtype: str = setting("fp32", choices=tuple(COMPUTE))  # to compute in
    disk_cache_dir: str = setting("")  # "": nothing is written to disk
    disk_cache_bytes: int = setting(BUDGET_BYTES, low=1)  # of chunks in that folder; the least recently used ones leave
    public_key: str = setting("")  # hex Ed25519 key that the manifest must be signed with; "": not asked for
    silence_s: float = setting(10.0, low=0.01)  # nothing came although something is asked for: connect again
    attempts: int = setting(5, low=1, high=1000)  # connections in a row that bring nothing, before a layer is given up

    @property
    def uri(self) -> str:
        """The server's address."""
        host = f"[{self.server_host}]" if ":" in self.server_host else self.server_host
        return f"{'wss' if self.secure else 'ws'}://{host}:{self.server_port}"

    @property
    def link(self) -> WeightLinkSettings:
        """What the connection needs of it."""
        return WeightLinkSettings(
            device_id=self.device_id, token=self.token, tls_ca_file=self.tls_ca_file, silence_s=self.silence_s,
            attempts=self.attempts, compress=self.enable_compression,
        )  # fmt: skip
