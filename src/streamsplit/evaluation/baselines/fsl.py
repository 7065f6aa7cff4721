"""FSL: split training at a fixed cut. Activations go up, the server computes the loss, gradients come back down."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from streamsplit.edge.payload import Packed
from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.crossing import Crossing, pack_crossing, stack_crossings, unpack_crossing
from streamsplit.evaluation.baselines.base import (
    START_WINDOWS,
    Budget,
    Effort,
    Outcome,
    Progress,
    Ranks,
    Stopwatch,
    embedder,
    fitted_encoder,
    heard_by,
    start_rows,
)  # fmt: skip
from streamsplit.evaluation.baselines.server_only import TASK_ONLY
from streamsplit.evaluation.baselines.traffic import (
    InputTraffic,
    framed_bytes,
    media_frame,
    transfer_bytes,
    weights_bytes,
)  # fmt: skip
from streamsplit.evaluation.corpus import Corpus
from streamsplit.learning.rank import effective_rank
from streamsplit.learning.shuffle import Batch, ShuffleBuffer
from streamsplit.refinement.batch import frozen_copy
from streamsplit.refinement.task import task_loss
from streamsplit.splitting.cut import Cut
from streamsplit.weights.delta import pack_full
from streamsplit.weights.revision import Weights, encoder_weights
from streamsplit.wire.media import Encoding
from streamsplit.wire.types import FrameType

PAIRS = 16  # of windows in one optimiser step
TURN_UPDATES = 25  # optimiser steps of one device before the next has its turn
BUFFER_WINDOWS = 256
FIXED_CUT = Cut(5, Encoding.FP16)

Chooser = Callable[[float], Cut]  # seconds of sound heard -> where to cut for the next turn


class Exchange(NamedTuple):
    """What one split step made: gradients are in the parameters."""

    loss: float
    z: Tensor  # [b, d]
    up: list[bytes]  # payload of each window
    down: list[bytes]


def split_step(
    encoder: SplitEncoder, windows: np.ndarray, cut: Cut, loss_of: Callable[[Tensor, Crossing], Tensor]
) -> Exchange:
    """One backward pass over the wire, for windows [b, f, t].

    The device runs blocks 1..k and packs each window's crossing; the server sees nothing but those bytes, computes
    `loss_of(embeddings, crossing)` with its upper blocks, and packs the loss's gradient at the cut in full precision;
    the device carries it on through its own blocks.
    """
    own = encoder.forward_to(torch.from_numpy(windows), cut.block)
    singles = [Crossing(own.h[i : i + 1], own.partial[i : i + 1]).detach() for i in range(len(windows))]
    up = [pack_crossing(single, cut.encoding) for single in singles]
    received = stack_crossings([unpack_crossing(payload) for payload in up])
    received = Crossing(received.h.requires_grad_(), received.partial.requires_grad_())
    z = encoder.forward_from(received, cut.block)
    loss = loss_of(z, received.detach())
    torch.autograd.backward(loss)
    gradient = Crossing(_gradient(received.h), _gradient(received.partial))
    rows = range(len(windows))
    down = [pack_crossing(Crossing(gradient.h[i : i + 1], gradient.partial[i : i + 1]), Encoding.FP32) for i in rows]
    returned = stack_crossings([unpack_crossing(payload) for payload in down])
    torch.autograd.backward((own.h, own.partial), (returned.h, returned.partial))
    return Exchange(float(loss.detach()), z.detach(), up, down)


class SplitTraining:
    """Devices take turns at the lower blocks, which are handed on through the server; the upper ones stay there.

    `choose` gives the cut of each turn. Where it moves, the weights of the blocks between cross too.
    """

    def __init__(self, name: str, about: str, chooser: Callable[[SplitEncoder, int], Chooser] | None = None) -> None:
        self.name, self.about = name, about
        self._chooser = chooser or (lambda encoder, seed: lambda seconds: FIXED_CUT)

    def run(self, corpus: Corpus, budget: Budget, seed: int, progress: Progress) -> Outcome:
        """Hears the stream into the devices' shuffle buffers and spreads the optimiser steps evenly over it.

        The first START_WINDOWS only fill the buffers; they go up for the start, unless all begin with published ones.
        """
        watch, effort, ranks = Stopwatch(), Effort(), Ranks()
        encoder = fitted_encoder(corpus, budget, seed)
        if not budget.start:
            start = InputTraffic(corpus.learn, Encoding.LOGMEL_INT8)
            effort.uplink_bytes += sum(start.bytes_of(row) for row in start_rows(corpus, seed, budget.devices))
            effort.downlink_bytes += budget.devices * weights_bytes(encoder_weights(encoder))
        teacher = frozen_copy(encoder)
        parameters = list(encoder.parameters())
        optimiser = torch.optim.Adam(parameters, lr=TASK_ONLY.learning_rate)
        random = np.random.default_rng([seed, 11])
        buffers = [ShuffleBuffer(BUFFER_WINDOWS) for _ in range(budget.devices)]
        choose = self._chooser(encoder, seed)
        cut, device, turn = choose(0.0), 0, 0
        cuts: set[Cut] = set()
        limit = min(budget.updates, budget.windows // (2 * PAIRS))
        sent: set[int] = set() if budget.start else set(range(START_WINDOWS))
        for number, (hearer, row, continuous) in enumerate(heard_by(corpus, budget, seed, budget.devices)):
            features = corpus.learn.batch(slice(row, row + 1))[0]
            buffers[hearer].add(features, number // budget.devices, random, continuous=continuous)
            effort.heard += 1
            effort.heard_s += float(corpus.learn.seconds[row])
            while effort.updates < limit * (number + 1 - START_WINDOWS) / max(1, budget.heard - START_WINDOWS):
                if effort.updates // TURN_UPDATES != turn:
                    turn, device = effort.updates // TURN_UPDATES, (device + 1) % budget.devices
                    cut = self._hand_over(encoder, cut, choose(effort.heard_s), effort)
                cuts.add(cut)
                batch = _draw(buffers[device], random)
                if batch is None:
                    break
                optimiser.zero_grad(set_to_none=True)
                exchange = _exchange(encoder, teacher, batch, cut, device)
                nn.utils.clip_grad_norm_(parameters, TASK_ONLY.gradient_norm)
                optimiser.step()
                window = corpus.learn.window(row)  # whose it is does not change the size of a frame
                effort.uplink_bytes += sum(
                    len(media_frame(window, Packed(FrameType.FEATURES, payload, 0), cut.block, cut.encoding))
                    for payload in exchange.up
                )
                effort.downlink_bytes += sum(framed_bytes(payload, FrameType.GRAD_BACK) for payload in exchange.down)
                sent.update((int(time) * budget.devices + device) for time in batch.times)
                effort.updates += 1
                effort.windows += 2 * len(batch.times)
                ranks.see(effective_rank(exchange.z.numpy()))
            progress((number + 1) / budget.heard, f"{effort.updates} updates")
        effort.sent, effort.cpu_s = len(sent), watch.read()
        notes = (f"cut {', '.join(map(str, sorted(cuts)))}", "a window crosses every time it is trained on")
        return Outcome(embedder(encoder), effort, ranks.peak, ranks.last, notes, encoder=encoder)

    def _hand_over(self, encoder: SplitEncoder, cut: Cut, new: Cut, effort: Effort) -> Cut:
        """The lower blocks go up from one device and down to the next, up to the new cut."""
        for held, direction in ((cut, "uplink_bytes"), (new, "downlink_bytes")):
            lower: Weights = {}
            for block in range(1, held.block + 1):
                lower |= encoder.block_weights(block)
            size = transfer_bytes(len(pack_full(lower, "fp16")[0]))
            setattr(effort, direction, getattr(effort, direction) + size)
        return new


def _exchange(encoder: SplitEncoder, teacher: SplitEncoder, batch: Batch, cut: Cut, device: int) -> Exchange:
    windows = np.concatenate([batch.anchor_features, batch.partner_features])
    frames = np.concatenate([batch.times, batch.times])
    names = [f"device{device}"] * len(windows)

    def loss_of(z: Tensor, crossing: Crossing) -> Tensor:
        with torch.no_grad():
            targets = teacher.forward_from(crossing, cut.block)
        return task_loss(z, targets, frames, names, TASK_ONLY).total

    return split_step(encoder, windows, cut, loss_of)


def _draw(buffer: ShuffleBuffer, random: np.random.Generator) -> Batch | None:
    s = TASK_ONLY
    return buffer.draw(PAIRS, random, decay=s.positive_decay, reach=s.positive_max_gap, gap=s.mask_windows)


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
