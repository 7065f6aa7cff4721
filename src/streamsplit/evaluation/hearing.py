"""What a fleet hears, pass after pass, and the same sound in one device's ears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from streamsplit.config import setting
from streamsplit.evaluation.data.stream import SHIFTS, Stream, StreamSettings


@dataclass(frozen=True, kw_only=True)
class HearingSettings(StreamSettings):
    """Streams of compared methods: each device has classes of its own, which change in the middle of every pass.

    A gradual shift would cut a few hundred clips into stretches too short for runs of one class.
    """

    seed: int = setting(0, low=0)  # added to a run's own
    shift: str = setting("abrupt", choices=SHIFTS)
    passes: int = setting(0, low=0, high=0)  # endless: a run takes as many as its budget holds


class FleetStream(Stream):
    """Clips of every device in every pass; each pass holds every clip exactly once."""

    def __init__(
        self, labels: Sequence[str], devices: int, settings: StreamSettings, *, follows: Sequence[int] | None = None
    ) -> None:
        """As for `Stream`, but endless whatever the settings say."""
        super().__init__(labels, devices, settings.replace(passes=0), follows=follows)
        self._labels = tuple(labels)

    def one_pass(self, number: int) -> list[list[int]]:
        """Clips in pass `number`, a list a device."""
        return [list(own) for own in self._period(number)]

    def one_listener(self, number: int) -> list[int]:
        """Clips in pass `number` where one device hears it all: the fleet's runs of one class, whole, and always the
        next run of the device that is furthest behind."""
        waiting = [[list(run) for _, run in groupby(own, key=self._labels.__getitem__)] for own in self._period(number)]
        totals, heard = [sum(map(len, runs)) for runs in waiting], [0] * self.devices
        order: list[int] = []
        while any(waiting):
            device = min(
                (device for device in range(self.devices) if waiting[device]),
                key=lambda device: heard[device] / totals[device],
            )
            run = waiting[device].pop(0)
            heard[device] += len(run)
            order += run
        return order
