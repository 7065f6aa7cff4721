"""Settings of the spoken dialogue at the server: who answers, and within which bounds."""

from __future__ import annotations

from dataclasses import dataclass

from streamsplit.config import Settings, setting
from streamsplit.errors import ConfigError

RESPONDERS = ("", "echo", "announce", "command", "http")


@dataclass(frozen=True, kw_only=True)
class DialogueSettings(Settings):
    """The section 'dialogue'; without a responder, DIALOGUE is answered 'unsupported'."""

    responder: str = setting("", choices=RESPONDERS)
    command: tuple[str, ...] = setting(())  # 'command': its words; raw 16-bit sound at 16 kHz in and out
    url: str = setting("")  # 'http': a WAV is posted there; the answer is audio/wav or text/plain
    answer_s: float = setting(10.0, low=0.1, high=600.0)  # a responder may be silent this long, once all was heard
    longest_s: float = setting(120.0, low=1.0, high=3_600.0)  # of a question
    patience_ms: float = setting(100.0, low=0.0, high=2_000.0)  # live questions: a frame waits so long for those before
    ahead_ms: float = setting(1_000.0, low=40.0, high=10_000.0)  # by which an answer goes out before its time
    bitrate_bps: int = setting(24_000, low=6_000, high=128_000)  # of answers
    learn: bool = setting(True)  # questions are windows of sound, too: embedded, named, learned from

    def check(self) -> None:
        """A hook needs to be told where it leads."""
        if self.responder == "command" and not self.command:
            raise ConfigError("'command': got none with responder 'command', expected the words of a command")
        if self.responder == "http" and not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"'url': got '{self.url}' with responder 'http', expected http:// or https://")
