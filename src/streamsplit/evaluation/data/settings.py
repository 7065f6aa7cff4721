"""What `streamsplit data prepare` is told, and what its readers find."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from streamsplit.config import Settings, setting
from streamsplit.errors import ConfigError
from streamsplit.evaluation.datasets import Clip

KINDS = ("esc", "audioset", "ondevice", "folder", "digits")
PARTS = {"train": 0.8, "validation": 0.1, "test": 0.1}
SEGMENT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class PrepareSettings(Settings):
    """How a source folder becomes a data set; saved in its card, and compared before one is written anew."""

    source: str = setting("")  # folder with the audio
    kind: str = setting("", choices=("", *KINDS))  # "" = found by looking
    classes: tuple[str, ...] = setting(())  # () = all
    segments: str = setting("")  # AudioSet's list of segments, "" = found in the source folder
    labels: str = setting("")  # annotators' table (ondevice) or class_labels_indices.csv (audioset)
    seconds: float | None = setting(None, low=0.5, high=3600.0)  # of a segment of a long recording
    seed: int = setting(0, low=0)  # of what is drawn: parts, balanced clips
    balanced: bool = setting(False)  # as many clips of every class as the smallest has
    keep_short: bool = setting(False)  # clips shorter than a window, zero-padded when cut into windows

    def check(self) -> None:
        """Refuses options that the chosen kind does not have, and names given twice."""
        only = {"segments": ("audioset",), "labels": ("audioset", "ondevice"), "seconds": ("ondevice",)}
        for name, kinds in only.items():
            if getattr(self, name) and self.kind and self.kind not in kinds:
                raise ConfigError(f"got --{name} for kind '{self.kind}', expected it for {' or '.join(kinds)} only")
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for name, count in Counter(self.classes).items() if count > 1)
            raise ConfigError(f"got class '{twice}' twice, expected each name once")


class LeftOut(NamedTuple):
    """One thing that did not get into the data set, and why."""

    name: str
    reason: str  # the same for all of its kind, for counting
    detail: str = ""


@dataclass
class Found:
    """Clips as a reader found them, before any was opened, and what it left out."""

    clips: list[Clip] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)  # for the card, by name
    names: dict[str, str] = field(default_factory=dict)  # other names of labels that may be asked for
    short_is_kept: bool = False
