"""Who is let in: what a HELLO must say, checked in the order in which a device can do something about it."""

from __future__ import annotations

import hmac
from typing import NamedTuple

from streamsplit.server.settings import ServerSettings
from streamsplit.wire.messages import Hello


class Refusal(NamedTuple):
    """Why a device is turned away: a code of `wire.codes` and what to change."""

    code: str
    detail: str


def check_hello(hello: Hello, settings: ServerSettings) -> Refusal | None:
    """None for a device that may come in."""
    token = settings.auth.token_for(hello.device_id)
    if token and not hmac.compare_digest(hello.token.encode(), token.encode()):
        return Refusal("bad_token", f"the token of device '{hello.device_id}' is wrong; set server.token on the device")
    audio, encoder = settings.audio, settings.encoder
    for name, got, expected in (
        ("sample_rate_hz", hello.sample_rate_hz, audio.sample_rate),
        ("mel_bands", hello.mel_bands, audio.n_mels),
        ("window_frames", hello.window_frames, audio.window_frames),
        ("stride_frames", hello.stride_frames, audio.stride_frames),
    ):
        if got != expected:
            return Refusal("bad_settings", f"{name}: got {got}, expected {expected}; set it on the device")
    if hello.encoder and hello.encoder != encoder.name:
        return Refusal(
            "bad_settings", f"encoder: got '{hello.encoder}', expected '{encoder.name}'; set it on the device"
        )
    return None
