"""Timing and limits of a session; both ends have their own, WELCOME tells the device the server's."""

from __future__ import annotations

from dataclasses import dataclass, fields

from streamsplit.errors import ConfigError
from streamsplit.wire.types import MAX_FRAME_BYTES, MAX_MESSAGE_BYTES


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """Defaults suit the server; `CLIENT_SETTINGS` acknowledges results more lazily."""

    hello_timeout_ms: int = 10_000  # connection to HELLO (server), HELLO to WELCOME (device)
    ping_interval_ms: int = 10_000  # device: between probes; server: of silence before it asks
    silence_timeout_ms: int = 30_000  # nothing heard: the connection counts as lost
    ack_every_frames: int = 16  # an ack goes after so many frames
    ack_delay_ms: int = 25  # or so long after the first of them
    max_in_flight: int = 64  # windows unacknowledged (server)
    max_frame_bytes: int = MAX_FRAME_BYTES  # payload of one frame
    resume_expires_ms: int = 120_000  # how long the server keeps a session without a connection
    replay_frames: int = 512  # RESULTs kept until acknowledged (server)
    replay_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"'{item.name}': got {value!r}, expected a whole number of at least 1")
        if not MAX_MESSAGE_BYTES <= self.max_frame_bytes <= MAX_FRAME_BYTES:
            raise ConfigError(
                f"'max_frame_bytes': got {self.max_frame_bytes}, allowed {MAX_MESSAGE_BYTES}..{MAX_FRAME_BYTES}"
            )
        if self.max_in_flight > 0xFFFF:
            raise ConfigError(f"'max_in_flight': got {self.max_in_flight}, allowed 1..65535")
        if self.resume_expires_ms > 0xFFFF_FFFF:
            raise ConfigError(f"'resume_expires_ms': got {self.resume_expires_ms}, allowed 1..{0xFFFF_FFFF}")
        if self.silence_timeout_ms <= self.ping_interval_ms:
            raise ConfigError(
                f"'silence_timeout_ms': got {self.silence_timeout_ms}, "
                f"expected more than ping_interval_ms ({self.ping_interval_ms})"
            )


CLIENT_SETTINGS = SessionSettings(ack_every_frames=64, ack_delay_ms=1000, ping_interval_ms=2_000)
