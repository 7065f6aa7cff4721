"""Training of a TinyStream codec: what a step is, how healthy the latent is, and exact checkpoints.

Lives with the server's learning: it needs effective rank and checkpoints, which the codec's room stands below.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamsplit.codec.tinystream.discriminators import (
    Discriminators,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
)
from streamsplit.codec.tinystream.integerise import activation_peaks
from streamsplit.codec.tinystream.losses import SCALES, MelDistance, waveform_distance
from streamsplit.codec.tinystream.model import TinyStream
from streamsplit.codec.tinystream.quantizer import perplexity
from streamsplit.config import Settings, setting
from streamsplit.errors import AudioError, CheckpointError, CollapseError, ConfigError
from streamsplit.learning.rank import effective_rank

FORMAT = "streamsplit-codec-training-1"
_SILENCE = 1e-4  # RMS of a crop below which another one is drawn
_HEALTH_CROPS = 32
_PEAK_CROPS = 128


@dataclass(frozen=True, kw_only=True)
class CodecTrainingSettings(Settings):
    """How a codec is trained."""

    steps: int = setting(10_000, low=1, high=10_000_000)
    batch: int = setting(16, low=2, high=1024)  # crops
    crop_s: float = setting(1.0, low=0.2, high=30.0)
    learning_rate: float = setting(1e-3, low=1e-7, high=1.0)  # Adam; cosine decay to a tenth
    warm_up_steps: int = setting(100, low=0)
    encoder_learns: bool = setting(True)  # false: the decoder alone, for codes that devices in the field send already
    unquantized_steps: int = setting(500, low=0)  # first ones, without the quantizer
    mel_weight: float = setting(1.0, low=0.0)  # per 10 dB
    waveform_weight: float = setting(0.1, low=0.0)
    commitment_weight: float = setting(0.25, low=0.0)
    fewer_share: float = setting(0.3, low=0.0, high=1.0)  # of the crops: a random number of quantizers, not all
    quietest_db: float = setting(-20.0, low=-60.0, high=0.0)  # crops are scaled by this much to 0, drawn evenly
    gradient_norm: float = setting(1.0, low=1e-3)
    adversarial_from: int | None = setting(None, low=0)  # step from which the discriminators take part; null: never
    adversarial_weight: float = setting(0.1, low=0.0)
    feature_weight: float = setting(0.5, low=0.0)
    discriminator_rate: float = setting(3e-4, low=1e-7, high=1.0)
    discriminator_channels: int = setting(16, low=4, high=128)
    health_steps: int = setting(250, low=1)  # between two looks at the latent
    least_rank: float = setting(3.0, low=1.0)  # effective rank of the latent below which training stops
    rank_from: int = setting(1_500, low=0)  # step from which that counts


class CodecStep(NamedTuple):
    """What one step gave; nan for what took no part in it."""

    step: int
    mel_db: float
    waveform: float
    commitment: float
    adversarial: float
    discriminator: float
    revived: int  # codebook entries


class CodecHealth(NamedTuple):
    """What the codec is like on sound that it does not learn from."""

    step: int
    mel_db: float  # with all quantizers
    mel_db_one: float  # with the first alone
    mel_db_unquantized: float
    effective_rank: float  # of the centred latent, in 1..d
    perplexity: tuple[float, ...]  # of each codebook's choices for the held-out crops; nan while it holds no data

    @property
    def best_mel_db(self) -> float:
        """With all quantizers, or without any as long as they hold no data."""
        return self.mel_db_unquantized if math.isnan(self.mel_db) else self.mel_db


class Sounds:
    """Recordings in memory, as 16-bit integers; crops are drawn by their length."""

    def __init__(self, recordings: Sequence[NDArray[np.int16]], sample_rate: int) -> None:
        """Raises AudioError where there is nothing to hear."""
        self.recordings = [recording for recording in recordings if len(recording)]
        self.sample_rate = sample_rate
        if not self.recordings:
            raise AudioError("got no recordings, expected sound to train a codec on")
        lengths = np.array([len(recording) for recording in self.recordings], float)
        self._shares = lengths / lengths.sum()
        self.seconds = float(lengths.sum()) / sample_rate

    def crops(self, count: int, samples: int, quietest_db: float, random: np.random.Generator) -> NDArray[np.float32]:
        """Crops [count, 1, samples] at random places and levels; behind a recording that is too short is silence."""
        batch = np.zeros((count, 1, samples), np.float32)
        for row in batch:
            for _ in range(8):
                recording = self.recordings[int(random.choice(len(self.recordings), p=self._shares))]
                at = int(random.integers(0, max(1, len(recording) - samples + 1)))
                piece = recording[at : at + samples].astype(np.float32) / 32768.0
                if float(np.sqrt(np.mean(np.square(piece)))) > _SILENCE:
                    break
            row[0, : len(piece)] = piece * 10.0 ** (random.uniform(quietest_db, 0.0) / 20.0)
        return batch


class CodecTraining:
    """A run; `step` goes on from wherever `load` put it, exactly."""

    def __init__(
        self, model: TinyStream, sounds: Sounds, held_out: Sounds, settings: CodecTrainingSettings, seed: int = 0
    ) -> None:
        """`model` is changed in place. Raises AudioError where the sounds have another sample rate than the model,
        ConfigError where only the decoder is to learn of a model that has no codes yet, or does not use them at once.
        """
        for part in (sounds, held_out):
            if part.sample_rate != model.settings.sample_rate:
                raise AudioError(f"got sound at {part.sample_rate} Hz, expected {model.settings.sample_rate}")
        if not settings.encoder_learns and (settings.unquantized_steps or not bool(model.quantizer.filled)):
            raise ConfigError(
                "got training.encoder_learns false, expected a codec to start with (--start) and unquantized_steps 0"
            )
        self.model, self.sounds, self.settings = model, sounds, settings
        self.random = np.random.default_rng(seed)
        model.quantizer.generator.manual_seed(seed)
        self.step_number = 0
        self.samples = round(settings.crop_s * model.settings.sample_rate)
        scales = tuple(scale for scale in SCALES if scale.fft <= self.samples)
        self.mel = MelDistance(model.settings.sample_rate, scales).to(self._device)
        learning = model if settings.encoder_learns else model.decoder
        model.encoder.requires_grad_(settings.encoder_learns)
        self.optimiser = torch.optim.Adam(learning.parameters(), settings.learning_rate, betas=(0.8, 0.99))
        torch.manual_seed(seed)  # the discriminators' weights
        self.discriminators = Discriminators(settings.discriminator_channels).to(self._device)
        self.judge = torch.optim.Adam(self.discriminators.parameters(), settings.discriminator_rate, betas=(0.8, 0.99))
        self._held_out = self._tensor(
            held_out.crops(_HEALTH_CROPS, self.samples, settings.quietest_db, np.random.default_rng(seed + 1))
        )

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _tensor(self, array: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def step(self) -> CodecStep:
        """One batch."""
        settings, number = self.settings, self.step_number
        self.model.train()
        if not settings.encoder_learns:
            self.model.quantizer.eval()
        audio = self._tensor(self.sounds.crops(settings.batch, self.samples, settings.quietest_db, self.random))
        used = self._used()
        coded = self.model(audio, used, quantize=number >= settings.unquantized_steps)
        mel = self.mel(coded.audio, audio)
        waveform = waveform_distance(coded.audio, audio)
        loss = settings.mel_weight * mel / 10.0 + settings.waveform_weight * waveform
        commitment = adversarial = judged = math.nan
        if coded.quantized is not None:
            loss = loss + settings.commitment_weight * coded.quantized.commitment
            commitment = coded.quantized.commitment.item()
        if settings.adversarial_from is not None and number >= settings.adversarial_from:
            judged = self._teach_discriminators(audio, coded.audio.detach())
            self.discriminators.requires_grad_(False)  # they are asked, not taught
            real, decoded = self.discriminators(audio), self.discriminators(coded.audio)
            self.discriminators.requires_grad_(True)
            fooled = adversarial_loss(decoded)
            loss = loss + settings.adversarial_weight * fooled
            loss = loss + settings.feature_weight * feature_matching_loss(real, decoded)
            adversarial = fooled.item()
        self._move(self.optimiser, self.model, loss, settings.learning_rate)
        self.step_number += 1
        return CodecStep(
            self.step_number, mel.item(), waveform.item(), commitment, adversarial, judged, self.model.quantizer.revived
        )

    def _used(self) -> Tensor:
        """With how many quantizers each crop of a batch is coded."""
        count = self.model.settings.num_quantizers
        drawn = self.random.integers(1, count + 1, self.settings.batch)
        fewer = self.random.random(self.settings.batch) < self.settings.fewer_share
        return torch.from_numpy(np.where(fewer, drawn, count)).to(self._device)

    def _teach_discriminators(self, audio: Tensor, decoded: Tensor) -> float:
        loss = discriminator_loss(self.discriminators(audio), self.discriminators(decoded))
        self._move(self.judge, self.discriminators, loss, self.settings.discriminator_rate)
        return loss.item()

    def _move(self, optimiser: torch.optim.Optimizer, module: torch.nn.Module, loss: Tensor, rate: float) -> None:
        """One optimiser step at the schedule's rate."""
        settings = self.settings
        done = min(1.0, self.step_number / settings.steps)
        scale = (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))) * min(
            1.0, (self.step_number + 1) / max(1, settings.warm_up_steps)
        )
        for group in optimiser.param_groups:
            group["lr"] = rate * scale
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), settings.gradient_norm)
        optimiser.step()

    @torch.no_grad()
    def health(self) -> CodecHealth:
        """Figures on held-out crops; raises CollapseError where the latent says next to nothing."""
        self.model.eval()
        audio, model = self._held_out, self.model
        latent = model.encoder(model.whole_frames(audio))
        rows = latent.transpose(1, 2).reshape(-1, latent.shape[1]).cpu().numpy()
        rank = effective_rank(rows - rows.mean(0))
        plain = float(self.mel(model(audio, quantize=False).audio, audio))
        everything = first = math.nan
        chosen = (math.nan,) * model.settings.num_quantizers
        if bool(model.quantizer.filled):
            coded = model(audio)
            everything = float(self.mel(coded.audio, audio))
            chosen = tuple(perplexity(coded.quantized.indices, model.settings.codebook_size).tolist())
            one = torch.ones(len(audio), dtype=torch.long, device=self._device)
            first = float(self.mel(model(audio, one).audio, audio))
        found = CodecHealth(self.step_number, everything, first, plain, rank, chosen)
        if self.step_number >= self.settings.rank_from and rank < self.settings.least_rank:
            raise CollapseError(
                f"the codec's latent has collapsed: got an effective rank of {rank:.1f} of {latent.shape[1]} at step "
                f"{self.step_number}, expected at least {self.settings.least_rank:g}; more unquantized_steps, less "
                "commitment_weight or a lower learning_rate help"
            )
        return found

    def peaks(self) -> list[float]:
        """The encoder's largest activations on crops at full level, for its form in whole numbers."""
        crops = self.sounds.crops(_PEAK_CROPS, self.samples, 0.0, np.random.default_rng(0))
        return activation_peaks(self.model.eval(), self._tensor(crops))

    def state(self) -> bytes:
        """Everything that goes on, as safetensors bytes."""
        from safetensors.torch import save

        arrays: dict[str, Tensor] = {}
        for prefix, module in (("model", self.model), ("discriminators", self.discriminators)):
            arrays |= {f"{prefix}/{name}": value for name, value in module.state_dict().items()}
        for prefix, optimiser in (("optimiser", self.optimiser), ("judge", self.judge)):
            for number, held in optimiser.state_dict()["state"].items():
                arrays |= {f"{prefix}/{number}/{name}": torch.as_tensor(value) for name, value in held.items()}
        arrays["generator"] = self.model.quantizer.generator.get_state()
        description = {
            "format": FORMAT, "step": self.step_number, "random": self.random.bit_generator.state,
            "codec": self.model.settings.as_dict(), "training": self._identity(),
        }  # fmt: skip
        packed: bytes = save(
            {name: value.detach().cpu().contiguous() for name, value in arrays.items()},
            {"streamsplit": json.dumps(description)},
        )
        return packed

    def load(self, data: bytes) -> None:
        """Goes on where `state` was taken; raises CheckpointError, changing nothing, where it is of another run."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            arrays = load(data)
            size = int.from_bytes(data[:8], "little")
            description = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["streamsplit"])
            if description["format"] != FORMAT:
                raise CheckpointError(f"got a checkpoint of format {description['format']!r}, expected {FORMAT}")
            self._check_identity(description)
            parts = {name: _part(arrays, name) for name in ("model", "discriminators", "optimiser", "judge")}
            for prefix, module in (("model", self.model), ("discriminators", self.discriminators)):
                for name, value in module.state_dict().items():
                    if parts[prefix][name].shape != value.shape:
                        raise CheckpointError(f"got a checkpoint without a fitting '{name}' ({tuple(value.shape)})")
            step, random, generator = int(description["step"]), description["random"], arrays["generator"]
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"the codec's checkpoint cannot be read ({error}); delete it to start anew"
            ) from error
        self.model.load_state_dict(parts["model"])
        self.discriminators.load_state_dict(parts["discriminators"])
        for optimiser, held in ((self.optimiser, parts["optimiser"]), (self.judge, parts["judge"])):
            _restore(optimiser, held)
        self.step_number = step
        self.random.bit_generator.state = random
        self.model.quantizer.generator.set_state(generator)

    def _identity(self) -> dict[str, Any]:
        """The settings that a resumed run must share; how often it looks at its health is free."""
        held = self.settings.as_dict()
        return {name: value for name, value in held.items() if name not in ("health_steps", "least_rank", "rank_from")}

    def _check_identity(self, description: dict[str, Any]) -> None:
        for what, own in (("codec", self.model.settings.as_dict()), ("training", self._identity())):
            own = json.loads(json.dumps(own))
            wrong = [name for name, value in description[what].items() if own.get(name) != value]
            if wrong:
                raise CheckpointError(
                    f"got a checkpoint with {what} setting {wrong[0]} {description[what][wrong[0]]}, expected "
                    f"{own.get(wrong[0])}; resume with the settings that it was made with"
                )


def _part(arrays: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: value for name, value in arrays.items() if name.startswith(f"{prefix}/")}


def _restore(optimiser: torch.optim.Optimizer, held: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in held.items():
        number, key = name.split("/")
        state.setdefault(int(number), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
