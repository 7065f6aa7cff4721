"""Settings of the spoken dialogue: when somebody speaks, how it is coded, how long each state may take."""

from __future__ import annotations

from dataclasses import dataclass

from streamsplit.codec.jitter import JitterSettings
from streamsplit.codec.opus_stream import OpusSettings
from streamsplit.config import Settings, section, setting

ACTIVITIES = ("energy", "webrtc", "push", "always")


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
class TalkSettings(Settings):
    """A voice client; a message is `frames_per_message` frames of sound."""

    codec: str = setting("opus", choices=("opus", "pcm16"))
    opus: OpusSettings = section(OpusSettings)
    frames_per_message: int = setting(3, low=1, high=24)
    lossy: LossySettings = section(LossySettings)
    adapt_bitrate: bool = setting(True)  # 8 to 32 kbit/s, by the measured link
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

    def over_lossy_link(self) -> TalkSettings:
        """The same for a transport that loses live sound."""
        lossy = self.lossy
        fec = lossy.fec and self.codec == "opus"  # PCM has none, and lost frames of it are silence
        return self.replace(
            opus=self.opus.replace(fec=fec, expected_loss=lossy.expected_loss if fec else 0.0),
            frames_per_message=lossy.frames_per_message,
            jitter=self.jitter.replace(concealed_frames=lossy.concealed_frames),
        )
