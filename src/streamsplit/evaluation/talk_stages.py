"""The stages of an echo's latency: each is measured by itself, frame by frame, and together they are the whole.

A frame's way, by the moments between which each stage lies: its first sample (begun); the last sample of its message
(heard) and the packet made of it (coded); the server has the message (arrived), and hands the echo over (left); the
device has it (received), takes it from the jitter buffer (pulled), has it as sound (decoded); its first sample is
played. Sound that waits for the rest of its message belongs to capture, the wait in the jitter buffer to playout, the
codec's own delay to encode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
STAGES = ("capture", "encode", "uplink", "processing", "downlink", "decode", "playout")
AIMS_MS = {
    "capture": 20.0, "encode": 10.0, "uplink": 50.0, "processing": 100.0, "downlink": 50.0, "decode": 10.0,
    "playout": 20.0, "total": 260.0,
}  # fmt: skip
"""What the streaming seed asks of each stage, and of all."""
_WRAPS_MS = 2.0**32  # of the time in a frame's header
_HALF_MS = 0.5  # that time is in whole milliseconds, rounded down


class Moments(NamedTuple):
    """When what happened to frames, ms [frames]; `arrived` and `left` by the server's clock."""

    begun: Floats
    own: Floats  # its own last sample was heard
    heard: Floats
    coded: Floats
    arrived: Floats
    left: Floats
    received: Floats
    pulled: Floats
    decoded: Floats
    played: Floats


class FrameWatch:
    """Sees a talker's frames pass (see `edge.answer.Trace`), its source and its sink, on one clock."""

    def __init__(self, clock_ms: Callable[[], float]) -> None:
        self._clock_ms = clock_ms
        self._begins_ms = np.nan
        self._decoded = -1  # the frame that goes to the sink next
        self._at: dict[str, dict[int, float]] = {
            name: {}
            for name in ("begun", "own", "coded", "last", "held", "left", "received", "pulled", "decoded", "played")
        }

    @property
    def played(self) -> int:
        """Frames so far that were played."""
        return len(self._at["played"])

    def begins(self, at_ms: float) -> None:
        """The source: the next frame's first sample was made at this time."""
        self._begins_ms = at_ms

    def plays(self) -> None:
        """The sink: what was decoded last is played from now on."""
        if self._decoded >= 0:
            self._note("played", self._decoded, self._clock_ms())
            self._decoded = -1

    def __call__(self, what: str, index: int, number: float) -> None:
        """The talker: something happens to a frame."""
        if what in ("held", "left"):
            self._note(what, index, number)
        elif what == "sent":
            self._note("last", index, number)
        elif what == "heard":
            self._note("begun", index, self._begins_ms)
            self._note("own", index, self._clock_ms())
        else:
            self._note(what, index, self._clock_ms())
            self._decoded = index if what == "decoded" else self._decoded

    def moments(self, after: int = 0) -> Moments:
        """Of the frames that were played, those before number `after` aside."""
        at = self._at
        whole = [
            index
            for index in sorted(set(at["played"]).intersection(*at.values()))
            if index >= after and int(at["last"][index]) in at["coded"]
        ]
        column = {name: np.array([values[index] for index in whole]) for name, values in at.items()}
        last = column["last"].astype(int)
        apart_ms = column["received"] - column["left"]  # by both clocks, wherever they began
        first_ms = apart_ms[:1]
        since_ms = first_ms % _WRAPS_MS + (apart_ms - first_ms + _WRAPS_MS / 2) % _WRAPS_MS - _WRAPS_MS / 2
        left = column["received"] - since_ms + _HALF_MS
        return Moments(
            column["begun"], column["own"], np.array([at["own"][index] for index in last]),
            np.array([at["coded"][index] for index in last]), left - column["held"], left, column["received"],
            column["pulled"], column["decoded"], column["played"],
        )  # fmt: skip

    def _note(self, name: str, index: int, value: float) -> None:
        self._at[name].setdefault(index, value)


def summary(moments: Moments, lookahead_ms: float, *, one_clock: bool) -> dict[str, Any]:
    """Stages, what capture and playout are made of, and totals, ms: from a frame's first sample to the playout of what
    was made of it, with `lookahead_ms` of the codec. `one_clock`: the server's is the device's, as on one machine;
    else the fastest round trip is taken to have been as long up as down."""
    m = moments
    up, down = m.arrived - m.coded, m.received - m.left
    if not one_clock:
        fastest = int(np.argmin(up + down))
        ahead_ms = (up - down)[fastest] / 2.0
        up, down = up - ahead_ms, down + ahead_ms
    stages = dict(
        zip(
            STAGES,
            (
                m.heard - m.begun, m.coded - m.heard + lookahead_ms, up, m.left - m.arrived, down, m.decoded - m.pulled,
                m.pulled - m.received + m.played - m.decoded,
            ),
            strict=True,
        )
    )  # fmt: skip
    parts = {
        "capture": {"own sound": m.own - m.begun, "rest of the message": m.heard - m.own},
        "encode": {"coding": m.coded - m.heard, "delay of the codec": np.full(len(up), lookahead_ms)},
        "playout": {"jitter buffer": m.pulled - m.received, "sink": m.played - m.decoded},
    }
    total = m.played - m.begun + lookahead_ms
    return {
        "frames": len(total), "codec_delay_ms": round(lookahead_ms, 2),
        "stages": {name: _spread(values) for name, values in stages.items()},
        "parts": {name: {part: _spread(values) for part, values in each.items()} for name, each in parts.items()},
        "total": _spread(total), "aims_ms": AIMS_MS,
        "clocks": "one" if one_clock else "two: the fastest round trip halved",
    }  # fmt: skip


def _spread(values: Floats) -> dict[str, float]:
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return {"mean": round(float(values.mean()), 2), "p50": round(float(p50), 2), "p95": round(float(p95), 2),
            "p99": round(float(p99), 2)}  # fmt: skip
