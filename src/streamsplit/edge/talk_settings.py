"""Settings of the spoken dialogue: when somebody speaks, how it is coded, how long each state may take."""

from __future__ import annotations

from dataclasses import dataclass

from streamsplit.codec.jitter import JitterSettings
from streamsplit.codec.opus_stream import OpusSettings
from streamsplit.config import Settings, section, setting
from streamsplit.errors import ConfigError
from streamsplit.wire.dialogue import DIALOGUE_HEADER_BYTES
from streamsplit.wire.frame import HEADER_BYTES

ACTIVITIES = ("energy", "webrtc", "push", "always")
_MESSAGE_BYTES = HEADER_BYTES + DIALOGUE_HEADER_BYTES + 8  # around the frames of a message, a WebSocket's own included
_LENGTH_BYTES = 2  # before each frame


@dataclass(frozen=True, kw_only=True)
class ActivitySettings(Settings):
    """When somebody speaks."""

    kind: str = setting("energy", choices=ACTIVITIES)  # push: `press` and `release` say so; always: from the start
    above_noise_db: float = setting(10.0, low=0.0, high=60.0)  # energy: a frame's level over that of the noise
    least_db: float = setting(-50.0, low=-100.0, high=0.0)  # energy: below it is silence; full scale is 0
    playing_db: float = setting(12.0, low=0.0, high=60.0)  # more is asked for while an answer plays: its own sound
    aggressiveness: int = setting(2, low=0, high=3)  # webrtc
    start_ms: float = setting(60.0, low=0.0, high=2_000.0)  # of speech in a row before it counts
    end_ms: float = setting(700.0, low=20.0, high=10_000.0)  # of silence in a row before the question is over
    lead_ms: float = setting(200.0, low=0.0, high=2_000.0)  # of sound before the start that belongs to it


@dataclass(frozen=True, kw_only=True)
class LossySettings(Settings):
    """What a transport that loses live sound takes in place of its namesakes (quic://)."""

    fec: bool = setting(True)  # a packet carries the one before it once more, coarsely
    expected_loss: float = setting(0.1, low=0.0, high=1.0)  # of packets; how much of the rate that copy takes
    frames_per_message: int = setting(1, low=1, high=24)  # the copy repairs one frame, and a message is lost whole
    concealed_frames: int = setting(25, low=0, high=100)  # in a row, before comfort silence


@dataclass(frozen=True, kw_only=True)
class BitrateSettings(Settings):
    """How Opus follows the link, see `edge.speech_rate`; it begins with `opus.bitrate_bps`."""

    least_bps: int = setting(8_000, low=6_000, high=128_000)
    most_bps: int = setting(32_000, low=6_000, high=128_000)
    traffic_bps: int = setting(40_000, low=8_000, high=1_000_000)  # that speech and its messages' headers may climb to
    probe_ms: float = setting(500.0, low=20.0, high=60_000.0)  # between round trips, while speech goes up
    queue_ms: float = setting(120.0, low=1.0, high=10_000.0)  # that a probe waits on the way: the link is full
    room_ms: float = setting(50.0, low=0.0, high=10_000.0)  # that it may wait at most where there is room for more
    settle_ms: float = setting(400.0, low=0.0, high=60_000.0)  # from one change downwards to the next
    climb_ms: float = setting(1_500.0, low=0.0, high=600_000.0)  # of room on the link, until more is tried

    def check(self) -> None:
        """The range must not be empty, and room is less than a queue."""
        if self.least_bps > self.most_bps:
            raise ConfigError(f"'least_bps': got {self.least_bps}, allowed <= most_bps ({self.most_bps})")
        if self.room_ms > self.queue_ms:
            raise ConfigError(f"'room_ms': got {self.room_ms:g}, allowed <= queue_ms ({self.queue_ms:g})")


@dataclass(frozen=True, kw_only=True)
class TalkSettings(Settings):
    """A voice client; a message is `frames_per_message` frames of sound."""

    codec: str = setting("opus", choices=("opus", "pcm16"))
    opus: OpusSettings = section(OpusSettings)
    frames_per_message: int = setting(3, low=1, high=24)
    lossy: LossySettings = section(LossySettings)
    adapt_bitrate: bool = setting(True)  # by the measured link, within the bounds of `bitrate`
    bitrate: BitrateSettings = section(BitrateSettings)
    activity: ActivitySettings = section(ActivitySettings)
    barge_in: bool = setting(True)  # speaking while the answer plays stops it
    jitter: JitterSettings = section(JitterSettings)
    recording_messages: int = setting(100, low=1, high=10_000)  # of a question, kept in case the link is lost
    conversations: int = setting(10, low=1, high=1_000)  # questions kept while there is no link
    offline_sound: str = setting("")  # played where there is no link: an audio file; "": three tones
    longest_s: float = setting(60.0, low=1.0, high=3_600.0)  # of a question
    processing_s: float = setting(10.0, low=0.1, high=600.0)  # until an answer begins
    receiving_s: float = setting(5.0, low=0.1, high=600.0)  # until enough of it is there to play
    stalled_s: float = setting(10.0, low=0.1, high=600.0)  # of an answer that plays without any sound coming
    error_s: float = setting(1.0, low=0.0, high=60.0)  # that an error is shown

    @property
    def most_bps(self) -> int:
        """That Opus may climb to: small messages leave less of `bitrate.traffic_bps` beside their headers."""
        message_ms = self.frames_per_message * self.opus.frame_ms
        headers_bps = 8_000.0 * (_MESSAGE_BYTES + _LENGTH_BYTES * self.frames_per_message) / message_ms
        return int(min(self.bitrate.most_bps, max(self.bitrate.traffic_bps - headers_bps, self.bitrate.least_bps)))

    def over_lossy_link(self) -> TalkSettings:
        """The same for a transport that loses live sound."""
        lossy = self.lossy
        fec = lossy.fec and self.codec == "opus"  # PCM has none, and lost frames of it are silence
        return self.replace(
            opus=self.opus.replace(fec=fec, expected_loss=lossy.expected_loss if fec else 0.0),
            frames_per_message=lossy.frames_per_message,
            jitter=self.jitter.replace(concealed_frames=lossy.concealed_frames),
        )
