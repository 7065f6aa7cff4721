"""Temporal buffer: for every device the embeddings of its last frames, by frame index, whatever order they came in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from streamsplit.config import Settings, setting
from streamsplit.errors import EncoderError
from streamsplit.refinement.laplacian import Graph, gap_graph


@dataclass(frozen=True, kw_only=True)
class BufferSettings(Settings):
    """Bounds of the temporal buffer; frames here are window indices."""

    frames: int = setting(100, low=2, high=100_000)
    max_devices: int = setting(1024, low=1)
    restart_after: int = setting(8, low=1)  # consecutive frames behind the window that mean a new count, not lateness


class DeviceWindow(NamedTuple):
    """What is held of one device, in frame order: frames [n] int64, embeddings [n, d] float32."""

    frames: np.ndarray
    embeddings: np.ndarray


class NearbyFrames(NamedTuple):
    """A batch of n rows among the frames around it: `graph` counts the batch's rows first, then `embeddings` [m, d]."""

    graph: Graph
    embeddings: np.ndarray


class TemporalBuffer:
    """Keeps, per device, the embeddings whose frame index is among the last `frames` (v2).

    Gaps stay gaps, late frames find their place, a repeated frame replaces the earlier one, and a frame older than the
    window is refused. A device whose count starts anew (several refused frames in a row) begins a new window. The
    device heard from least recently goes when there are more than `max_devices`.
    """

    def __init__(self, settings: BufferSettings | None = None) -> None:
        self.settings = settings or BufferSettings()
        self._held: OrderedDict[str, dict[int, np.ndarray]] = OrderedDict()
        self._latest: dict[str, int] = {}
        self._behind: dict[str, list[tuple[int, np.ndarray]]] = {}

    def add(self, device: str, frame: int, embedding: np.ndarray) -> bool:
        """Takes one embedding [d]; False where the frame is older than the device's window."""
        z = np.array(embedding, dtype=np.float32)
        if z.ndim != 1 or not np.isfinite(z).all():
            raise EncoderError(f"got an embedding of shape {z.shape} or with NaN, expected [d] finite numbers")
        held = self._held.setdefault(device, {})
        self._held.move_to_end(device)
        while len(self._held) > self.settings.max_devices:
            self.forget(next(iter(self._held)))
        latest = self._latest.get(device, frame)
        if frame <= latest - self.settings.frames:
            behind = self._behind.setdefault(device, [])
            if behind and frame <= behind[-1][0]:
                behind.clear()  # stragglers come in any order; a new count climbs
            behind.append((frame, z))
            if len(behind) < self.settings.restart_after:
                return False
            held.clear()
            held.update(self._behind.pop(device))
            self._latest[device] = frame
            self._trim(device)
            return True
        self._behind.pop(device, None)
        held[frame] = z
        if frame >= latest:
            self._latest[device] = frame
            self._trim(device)
        return True

    def devices(self) -> list[str]:
        """Devices held, the least recently heard first."""
        return list(self._held)

    def window(self, device: str) -> DeviceWindow:
        """The device's frames and embeddings in frame order; empty for an unknown device."""
        held = self._held.get(device, {})
        frames = np.array(sorted(held), dtype=np.int64)
        if not len(frames):
            return DeviceWindow(frames, np.empty((0, 0), dtype=np.float32))
        return DeviceWindow(frames, np.stack([held[int(frame)] for frame in frames]))

    def nearest(self, device: str, frame: int, k: int) -> list[int]:
        """The k held frames nearest in time to `frame`, itself excluded; nearest first, ties to the earlier one."""
        others = [held for held in self._held.get(device, {}) if held != frame]
        return sorted(others, key=lambda held: (abs(held - frame), held))[:k]

    def graph(self, frames: np.ndarray, devices: Sequence[str], k: int = 5) -> NearbyFrames:
        """Joins every row of a batch to the k frames of its device that are nearest in time, in the batch or held here.

        Frames further away than the buffer is long are not joined; a frame that the batch has is taken from the batch.
        """
        numbers = [int(frame) for frame in frames]
        row_of = {key: row for row, key in enumerate(zip(devices, numbers, strict=True))}
        batch_frames: dict[str, set[int]] = {}
        for device, frame in row_of:
            batch_frames.setdefault(device, set()).add(frame)
        borrowed: list[np.ndarray] = []
        edges: list[tuple[int, int]] = []
        gaps: list[int] = []
        for row, (device, frame) in enumerate(zip(devices, numbers, strict=True)):
            candidates = batch_frames[device] | set(self.nearest(device, frame, k))
            near = [other for other in candidates if 0 < abs(other - frame) <= self.settings.frames]
            for other in sorted(near, key=lambda held: (abs(held - frame), held))[:k]:
                key = (device, other)
                if key not in row_of:
                    row_of[key] = len(numbers) + len(borrowed)
                    borrowed.append(self._held[device][other])
                edges.append((row, row_of[key]))
                gaps.append(abs(other - frame))
        embeddings = np.stack(borrowed) if borrowed else np.empty((0, 0), dtype=np.float32)
        return NearbyFrames(gap_graph(edges, gaps), embeddings)

    def forget(self, device: str) -> None:
        """Drops everything held of one device."""
        self._held.pop(device, None)
        self._latest.pop(device, None)
        self._behind.pop(device, None)

    def clear(self) -> None:
        """Drops everything: embeddings of a space that no longer holds must not be compared with new ones."""
        for device in self.devices():
            self.forget(device)

    def __len__(self) -> int:
        return sum(len(held) for held in self._held.values())

    def _trim(self, device: str) -> None:
        oldest = self._latest[device] - self.settings.frames
        held = self._held[device]
        for frame in [frame for frame in held if frame <= oldest]:
            del held[frame]
