"""Coding a stream piece by piece with the trained networks: the same codes and sound as at once."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamsplit.codec.tinystream.frames import Floats, FrameStream, Indices
from streamsplit.codec.tinystream.layers import State
from streamsplit.codec.tinystream.model import TinyStream

_HELD_FRAMES = 2  # of lost ones: the last latent as it was; after them it goes over to silence
_FADE = 0.8  # a frame


class EncoderStream(FrameStream):
    """Encodes a stream piece by piece: the same indices as at once, however it is cut."""

    def __init__(self, model: TinyStream, num_quantizers: int | None = None) -> None:
        """Sends the first `num_quantizers` (all of them: None); raises CutError where there are not that many."""
        model.check_count(num_quantizers)
        super().__init__(model.settings.hop, num_quantizers or model.settings.num_quantizers)
        self._model = model
        self._state: State = model.encoder.initial(1)

    @torch.no_grad()
    def code(self, samples: Floats) -> Indices:
        """Through the encoder from its state."""
        latent, self._state = self._model.encoder.step(torch.from_numpy(samples[None, None]), self._state)
        return self._model.quantizer.encode(latent, self.quantizers)[0].numpy()


class DecoderStream:
    """Decodes a stream piece by piece, `lookahead` frames late, and conceals frames that did not come."""

    def __init__(self, model: TinyStream) -> None:
        self._model = model
        self._state: State = model.decoder.initial(1)
        self._silence = model.silent_latent()
        self._last = self._silence
        self._lost = 0  # frames in a row

    @torch.no_grad()
    def push(self, indices: NDArray[np.integer]) -> NDArray[np.float32]:
        """Samples [frames * hop] of indices [quantizers, frames]; raises CutError as `decode`."""
        latent = self._model.quantizer.decode(torch.from_numpy(np.asarray(indices, np.int64))[None])
        if not latent.shape[-1]:
            return np.zeros(0, np.float32)
        self._last, self._lost = latent[..., -1:], 0
        return self._decoded(latent)

    @torch.no_grad()
    def conceal(self, frames: int) -> NDArray[np.float32]:
        """Samples [frames * hop] in place of `frames` lost ones: the last latent, held, then faded to silence."""
        if not frames:
            return np.zeros(0, np.float32)
        age = torch.arange(self._lost + 1, self._lost + frames + 1, device=self._last.device)
        weight = _FADE ** (age - _HELD_FRAMES).clamp(min=0)
        self._lost += frames
        return self._decoded(self._silence + weight * (self._last - self._silence))

    @torch.no_grad()
    def finish(self) -> NDArray[np.float32]:
        """Samples [lookahead * hop] that are still to come at a stream's end: after it the last latent goes on."""
        late = self._model.settings.lookahead
        if not late or self._lost:
            return self.conceal(late)
        return self._decoded(self._last.expand(-1, -1, late))

    def _decoded(self, latent: Tensor) -> NDArray[np.float32]:
        audio, self._state = self._model.decoder.step(latent, self._state)
        return audio[0, 0].numpy()
