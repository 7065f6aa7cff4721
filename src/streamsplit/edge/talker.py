"""A spoken dialogue at the device: the microphone's sound in, messages to and from the server, the speaker's sound out.

No socket, no clock, no thread: `hear`, `take`, `play` and `tick` say what happened and when.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsplit.edge.activity import SpeechGate, make_detector
from streamsplit.edge.answer import Answer, Heard, Trace
from streamsplit.edge.outages import LOUDSPEAKER, MICROPHONE, DeviceChange
from streamsplit.edge.question_store import KeptQuestion
from streamsplit.edge.questions import Outgoing, Questions
from streamsplit.edge.speech_rate import SpeechRate
from streamsplit.edge.talk_settings import TalkSettings
from streamsplit.errors import CutError, ProtocolError
from streamsplit.splitting.link import LinkEstimate
from streamsplit.wire.dialogue import Kind, Utterance, text_of, unpack_utterance
from streamsplit.wire.states import next_state
from streamsplit.wire.talk_states import TALK_TABLE, TalkInput, TalkState

Floats = NDArray[np.float32]
_CLIPPED = 0.999  # of full scale
_SPEAKING = (TalkState.RECORDING, TalkState.STREAMING)
_ANSWERING = (TalkState.PROCESSING, TalkState.RECEIVING, TalkState.PLAYING)


class TalkEvent(NamedTuple):
    """For whoever watches."""

    kind: str  # 'state', 'text', 'error', 'device' (one is back), 'question', 'answer'
    value: str
    at_ms: float


@dataclass
class TalkCounts:
    """What happened so far."""

    questions: int = 0
    stored: int = 0  # kept because the link was down
    answers: int = 0  # played to their end
    barge_ins: int = 0
    errors: int = 0
    frames: int = 0  # heard
    clipped_frames: int = 0
    silent_frames: int = 0  # digital silence: a microphone that gives nothing


class Talker:
    """One device's side of a dialogue; every method may be called from any thread."""

    def __init__(self, settings: TalkSettings, *, offline_sound: Floats | None = None, lossy: bool = False) -> None:
        """`offline_sound` [n] plays where there is no link; None: tones. `lossy`: the transport loses live sound, see
        `TalkSettings.over_lossy_link`. Raises AudioError where Opus is asked for and libopus is missing,
        MissingExtraError and ConfigError as the detector of `activity`."""
        settings = settings.over_lossy_link() if lossy else settings
        self.settings = settings
        self.frame_ms, self.frame = settings.opus.frame_ms, settings.opus.frame_samples
        self.counts = TalkCounts()
        self.questions = Questions(settings, live=lossy)
        self._rate = SpeechRate(settings.bitrate, settings.opus.bitrate_bps, settings.most_bps)
        self.answer = Answer(settings)
        self._state = TalkState.IDLE
        self._since_ms = self._sound_ms = self._pulled_ms = 0.0
        self._events: deque[TalkEvent] = deque(maxlen=10_000)
        self._detector = make_detector(settings.activity, self.frame_ms)
        self._gate = SpeechGate(settings.activity, self.frame_ms)
        self._lead: deque[Floats] = deque(maxlen=max(1, round(settings.activity.lead_ms / self.frame_ms)))
        self._rest = np.zeros(0, np.float32)  # of the microphone's sound: less than a frame
        self._left = np.zeros(0, np.float32)  # of the answer's frame that plays
        self._offline = _frames(tones() if offline_sound is None else offline_sound, self.frame)
        self._passed_over: deque[int] = deque(maxlen=64)  # questions whose answers nobody waited for
        self._gone: dict[str, str] = {}  # devices that are gone, and why
        self._up = False
        self._lock = threading.RLock()

    def watch(self, trace: Trace) -> None:
        """Tells `trace` what happens to every frame, for measurements."""
        self.questions.trace = self.answer.trace = trace

    @property
    def state(self) -> TalkState:
        """Where the dialogue stands."""
        return self._state

    def events(self) -> list[TalkEvent]:
        """What happened since the last call."""
        with self._lock:
            taken = list(self._events)
            self._events.clear()
            return taken

    # -- the microphone ------------------------------------------------------------------------------------------

    def press(self, now_ms: float) -> None:
        """The button: somebody speaks from now on."""
        with self._lock:
            if self._state in (*_SPEAKING, TalkState.ERROR):
                return
            if MICROPHONE in self._gone:
                self.fail(f"{MICROPHONE}: {self._gone[MICROPHONE]}", now_ms)
            else:
                self._begin(now_ms)

    def release(self, now_ms: float) -> None:
        """The button is let go."""
        with self._lock:
            self._end(now_ms)

    def hear(self, samples: Floats, now_ms: float) -> None:
        """Sound [n] as it comes; `now_ms` is when its last sample was heard."""
        with self._lock:
            joined = np.concatenate([self._rest, samples])
            whole = len(joined) - len(joined) % self.frame
            self._rest = joined[whole:].copy()
            for at in range(0, whole, self.frame):
                behind_ms = (len(joined) - at - self.frame) / 16.0
                self._hear_frame(joined[at : at + self.frame], now_ms - behind_ms)

    def _hear_frame(self, frame: Floats, now_ms: float) -> None:
        peak = float(np.abs(frame).max(initial=0.0))
        self.counts.frames += 1
        self.counts.clipped_frames += peak >= _CLIPPED
        self.counts.silent_frames += peak == 0.0
        if self._detector is not None and self._state is not TalkState.ERROR:
            extra_db = self.settings.activity.playing_db if self._state is TalkState.PLAYING else 0.0
            changed = self._gate.take(self._detector.speaks(frame, extra_db))
            allowed = self._state not in _SPEAKING and (self.settings.barge_in or self._state is not TalkState.PLAYING)
            if changed and self._gate.open and allowed:
                self._begin(now_ms)
        if not self.questions.asking:
            self._lead.append(frame)
            return
        self.questions.record(frame, now_ms)
        too_long = self.questions.frames * self.frame_ms >= 1000.0 * self.settings.longest_s
        over = self._detector is not None and not self._gate.open
        if over or too_long or (self.questions.full and not self._up):
            self._end(now_ms)

    def _begin(self, now_ms: float) -> None:
        if self._state in _ANSWERING:
            self.counts.barge_ins += self._state is TalkState.PLAYING
            if self.answer.number >= 0 and (self._state is TalkState.PROCESSING or not self._up):
                self._passed_over.append(self.answer.number)  # the server may not have heard all of it
            elif self.answer.number >= 0:
                self.questions.stop(self.answer.number)
        self._happened(TalkInput.SPEECH, now_ms)
        self.counts.questions += 1
        number = self.questions.begin()
        self.answer.expect(number)
        self._note("question", str(number), now_ms)
        for place, earlier in enumerate(self._lead):
            self.questions.record(earlier, now_ms - (len(self._lead) - place) * self.frame_ms)
        self._lead.clear()

    def _end(self, now_ms: float) -> None:
        """The question is over: the rest of it goes up, or it is kept."""
        self._gate.close()
        if not self.questions.asking:
            return
        self.questions.end()
        if self._state is TalkState.RECORDING and not self._up:
            self.counts.stored += 1
            self._happened(TalkInput.STORED, now_ms)
            self._answer_offline(now_ms)
            return
        if self._state is TalkState.RECORDING:  # shorter than a message: all of it goes now
            self._happened(TalkInput.SENT, now_ms)
        self._happened(TalkInput.SILENCE, now_ms)

    def _answer_offline(self, now_ms: float) -> None:
        if self._offline and LOUDSPEAKER not in self._gone:
            self.answer.offline(self._offline)
            self._happened(TalkInput.ANSWER, now_ms)

    # -- the link ------------------------------------------------------------------------------------------------

    def link(self, up: bool, now_ms: float) -> None:
        """The link came or went; with it went whatever was under way."""
        with self._lock:
            if up == self._up:
                return
            self._up = up
            if up:
                self.questions.relink()
                return
            state = self._state
            self._happened(TalkInput.LOST, now_ms)
            if self.questions.full:
                self._end(now_ms)
            if state is TalkState.PROCESSING:
                self._answer_offline(now_ms)
            elif state in (TalkState.STREAMING, TalkState.RECEIVING):
                self.answer.expect(self.answer.number if state is TalkState.STREAMING else -1)
            elif state is TalkState.PLAYING and not self.answer.local:
                self.answer.cut_off()

    @property
    def speaks(self) -> bool:
        """Whether a question is being asked, and goes up."""
        return self._up and self.questions.asking

    def follow(self, link: LinkEstimate, now_ms: float) -> None:
        """What is known of the link: speech is coded for it, and a slow one is waited for longer."""
        with self._lock:
            if self.speaks:
                self.questions.rate(self._rate.follow(link, now_ms))
            else:
                self._rate.rest(now_ms)
            if link.rtt_ms == link.rtt_ms:
                self.answer.rate(link.rtt_ms)

    @property
    def ready(self) -> bool:
        """Whether `outgoing` would give anything."""
        with self._lock:
            return self._up and self.questions.ready

    def outgoing(self, now_ms: float) -> list[Outgoing]:
        """What is to go up now: nothing while the link is down."""
        with self._lock:
            if not self._up:
                return []
            ready = self.questions.outgoing(now_ms)
            if self._state is TalkState.RECORDING and self.questions.under_way:
                self._happened(TalkInput.SENT, now_ms)
            return ready

    def waiting(self, known: frozenset[int], now_ms: float, unix_ms: float) -> tuple[list[int], list[KeptQuestion]]:
        """Numbers of the questions that wait, and those that are not `known`, to be stored."""
        with self._lock:
            return self.questions.waiting_numbers(), self.questions.kept(known, now_ms, unix_ms)

    # -- the answer ----------------------------------------------------------------------------------------------

    def take(self, payload: bytes, final: bool, now_ms: float, left_ms: float = math.nan) -> Utterance | None:
        """A DIALOGUE frame from the server, which left at `left_ms` of its clock; the piece, or None for one that
        nobody waits for, or that is none: the dialogue is in ERROR then."""
        with self._lock:
            try:
                piece = unpack_utterance(payload)
                said = text_of(piece) if piece.kind is Kind.TEXT else ""
                if final or not piece.live:  # an echo of what came early says nothing of the rest
                    self.questions.answered(piece.utterance)
                if piece.utterance in self._passed_over:  # it was heard; more of its answer is not wanted
                    self._passed_over.remove(piece.utterance)
                    if not final:
                        self.questions.stop(piece.utterance)
                wanted = piece.utterance == self.answer.number and piece.kind is not Kind.STOP
                if not wanted or self._state in (TalkState.ERROR, TalkState.RECORDING):
                    return None
                self._sound_ms = now_ms
                if said:
                    self._note("text", said, now_ms)
                elif self.answer.take(piece, final, now_ms, left_ms):
                    if LOUDSPEAKER in self._gone:
                        if not final:
                            self.questions.stop(piece.utterance)
                        self.fail(f"{LOUDSPEAKER}: {self._gone[LOUDSPEAKER]}", now_ms)
                        return None
                    self._happened(TalkInput.ANSWER, now_ms)
                elif final and self._state is TalkState.PROCESSING:  # an answer without sound
                    self.answer.expect(-1)
                    self._happened(TalkInput.FINISHED, now_ms)
            except (ProtocolError, CutError) as error:
                self.fail(f"answer: {error}", now_ms)
                return None
            return piece

    def refused(self, detail: str, now_ms: float, number: int = 0) -> None:
        """The server could not answer a question; 0: the one whose answer is waited for."""
        with self._lock:
            if number or self.answer.number >= 0:
                self.questions.refused(number or self.answer.number)
            if number in (0, self.answer.number):
                self.fail(detail, now_ms)
            else:  # an earlier one, that went up again
                self.counts.errors += 1
                self._note("error", detail, now_ms)

    def play(self, now_ms: float, count: int = 0) -> Floats:
        """The next `count` samples for the speaker, a frame or an equal part of one; silence where there is nothing to
        say. In parts, an answer begins within one of them."""
        count = count or self.frame
        with self._lock:
            self._pulled_ms = now_ms
            if not len(self._left):
                self._left = self._next_frame(now_ms)
            out, self._left = self._left[:count], self._left[count:]
            return out if len(out) else np.zeros(count, np.float32)

    def _next_frame(self, now_ms: float) -> Floats:
        """A frame [n] of the answer, or nothing [0]."""
        nothing = np.zeros(0, np.float32)
        try:
            heard, frame = self.answer.play(now_ms)
        except CutError as error:
            self.fail(f"answer: {error}", now_ms)
            return nothing
        if heard is Heard.SOUND and self._state is TalkState.PROCESSING:  # it has begun while the question was asked
            self._happened(TalkInput.ANSWER, now_ms)
        if heard is Heard.SOUND and self._state is TalkState.RECEIVING:
            self._happened(TalkInput.READY, now_ms)
        if heard is Heard.END and self._state in _ANSWERING:
            self.counts.answers += 1
            self._note("answer", str(self.answer.number), now_ms)
            self.answer.expect(-1)
            self._happened(TalkInput.FINISHED, now_ms)
        return frame if heard is Heard.SOUND else nothing

    # -- time and errors -----------------------------------------------------------------------------------------

    def tick(self, now_ms: float) -> None:
        """What took too long fails; an error passes."""
        s = self.settings
        with self._lock:
            spent_s = (now_ms - self._since_ms) / 1000.0
            if self._state is TalkState.ERROR and spent_s >= s.error_s:
                self._happened(TalkInput.RECOVERED, now_ms)
            elif self._state is TalkState.PROCESSING and spent_s > s.processing_s:
                self.fail(f"no answer within {s.processing_s:g} s; the question is kept", now_ms)
            elif self._state is TalkState.RECEIVING and spent_s > s.receiving_s:
                self.fail(f"the answer stopped before it could be played ({s.receiving_s:g} s)", now_ms)
            elif self._state is TalkState.PLAYING and self.answer.dry and self._quiet_s(now_ms) > s.stalled_s:
                self.fail(f"the answer stopped in the middle ({s.stalled_s:g} s)", now_ms)
            elif self._state is TalkState.PLAYING and now_ms - self._pulled_ms > 1000.0 * s.stalled_s:
                self.fail(f"the loudspeaker takes no sound any more ({s.stalled_s:g} s)", now_ms)

    def _quiet_s(self, now_ms: float) -> float:
        """Since anything of an answer has come."""
        return (now_ms - max(self._sound_ms, self._since_ms)) / 1000.0

    def changed(self, change: DeviceChange, now_ms: float) -> None:
        """A device went away: an error, and no sound from before the gap is joined to any behind it; or it is back."""
        with self._lock:
            if change.reason:
                self._gone[change.device] = change.reason
                if change.device == MICROPHONE:
                    self._rest = np.zeros(0, np.float32)
                    self._lead.clear()
                else:
                    self._left = np.zeros(0, np.float32)
                self.fail(f"{change.device}: {change.reason}", now_ms)
            else:
                self._gone.pop(change.device, None)
                self._note("device", f"{change.device}: back after {change.gone_s:.1f} s", now_ms)

    def fail(self, reason: str, now_ms: float) -> None:
        """Something failed; what was being asked or answered is given up."""
        with self._lock:
            self.counts.errors += 1
            self._note("error", reason, now_ms)
            self.questions.drop()
            self._gate.close()
            self.answer.expect(-1)
            self._happened(TalkInput.FAULT, now_ms)

    def _happened(self, happened: TalkInput, now_ms: float) -> None:
        after = next_state(TALK_TABLE, self._state, happened)
        if after is not self._state:
            self._state, self._since_ms = after, now_ms
            self._note("state", after.name, now_ms)

    def _note(self, kind: str, value: str, now_ms: float) -> None:
        self._events.append(TalkEvent(kind, value, now_ms))


def tones(pitches_hz: Iterable[float] = (660.0, 550.0, 440.0), seconds: float = 0.12) -> Floats:
    """Soft tones one after the other [n]: 'not now'."""
    time_s = np.arange(round(16_000 * seconds)) / 16_000
    fade = np.minimum(1.0, np.minimum(time_s, seconds - time_s) / 0.02)
    parts = [0.2 * fade * np.sin(2 * np.pi * pitch * time_s) for pitch in pitches_hz]
    return np.concatenate(parts).astype(np.float32)


def _frames(samples: Floats, size: int) -> list[Floats]:
    padded = np.pad(samples, (0, -len(samples) % size))
    return [padded[at : at + size] for at in range(0, len(padded), size)]
