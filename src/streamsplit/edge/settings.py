"""Settings of a device: the sections of configs/edge.yaml."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from streamsplit.audio.logmel import LogMelSettings
from streamsplit.codec.tinystream.segments import DEFAULT_CODEC, SegmentEncoder, packaged_segments
from streamsplit.config import Settings, section, setting
from streamsplit.edge.emulation import EmulationSettings
from streamsplit.edge.monitor import MonitorSettings
from streamsplit.edge.queue import QueueSettings
from streamsplit.edge.talk_settings import TalkSettings
from streamsplit.edge.weight_link import BlockSettings
from streamsplit.errors import ConfigError
from streamsplit.learning.settings import LearnerSettings
from streamsplit.splitting.bandit import BanditSettings
from streamsplit.splitting.constraints import ConstraintSettings
from streamsplit.splitting.correction import CorrectionSettings
from streamsplit.splitting.device import DeviceProfile, device_profile
from streamsplit.splitting.greedy import GreedySettings
from streamsplit.splitting.link import LinkSettings
from streamsplit.splitting.objective import ObjectiveSettings
from streamsplit.splitting.policy import (
    DEFAULT_POLICY,
    LEARNED_POLICIES,
    POLICIES,
    HeuristicSettings,
    PolicySettings,
)
from streamsplit.splitting.steady import SteadySettings
from streamsplit.splitting.transmission import GateSettings
from streamsplit.weights.pretrained import StartSettings

TOKEN_VARIABLE = "STREAMSPLIT_TOKEN"
POLICY_KEY_VARIABLE = "STREAMSPLIT_POLICY_KEY"
_V1_REWARD = (1.0, -0.5, -0.3, -0.2)


@dataclass(frozen=True, kw_only=True)
class DeviceSettings(Settings):
    """Which device this is and where it keeps its files."""

    id: str = setting("edge-1")
    type: str = setting("host")  # a row of splitting/device.py, or its longer name such as raspberry_pi_4b
    factor: float | None = setting(None, low=1e-3, high=1e4)  # slower than the host by; None = the type's
    radio: str | None = setting(None)  # wifi, lte, ...; None = the type's
    state_dir: str = setting("")  # queue, learner's snapshot; "" = runs/devices/<id>
    journal: str = setting("")  # write a line of JSON per window, result and learning step here; "" = nowhere
    threads: int = setting(1, low=1, high=64)  # of the encoder
    memory_mb: float | None = setting(None, low=1e-3)  # total; None = this machine's

    def check(self) -> None:
        """The id names a folder and a row in the server's database."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.id):
            raise ConfigError(f"'id': got '{self.id}', expected 1 to 64 letters, digits, '-', '_' or '.'")
        device_profile(self.type, factor=self.factor, radio=self.radio)

    @property
    def profile(self) -> DeviceProfile:
        """The device's compute factor and energy model."""
        return device_profile(self.type, factor=self.factor, radio=self.radio)

    @property
    def memory_bytes(self) -> float:
        """All of the device's memory."""
        return psutil.virtual_memory().total if self.memory_mb is None else self.memory_mb * 1e6

    @property
    def folder(self) -> Path:
        """Where the device keeps its files."""
        return Path(self.state_dir) if self.state_dir else Path("runs") / "devices" / self.id


@dataclass(frozen=True, kw_only=True)
class AudioSettings(Settings):
    """What is listened to and how it is cut into windows."""

    source: str = setting("synthetic")  # synthetic[:seconds], mic[:device], a file, a folder, rtsp://, http(s)://
    sample_rate: int = setting(16_000, choices=(16_000,))
    n_mels: int = setting(128, choices=(128,))
    window_duration: float = setting(0.025, choices=(0.025,))  # s, the analysis window
    window_frames: int = setting(100, low=4, high=1_000)  # frames of 10 ms a window
    stride_frames: int = setting(50, low=2, high=1_000)
    block_ms: int = setting(100, low=10, high=1_000)
    buffer_s: float = setting(5.0, low=1.0, high=600.0)  # audio that may wait for the encoder; then some is dropped
    retry_s: float = setting(10.0, low=0.0, high=3_600.0)  # mic, speaker: longest wait between tries; 0 = lost: the end
    loop: bool = setting(False)
    seed: int = setting(0, low=0)

    def check(self) -> None:
        """Windows of even numbers of frames, without holes between them."""
        for name in ("window_frames", "stride_frames"):
            if getattr(self, name) % 2:
                raise ConfigError(f"'{name}': got {getattr(self, name)}, allowed even numbers")
        if self.stride_frames > self.window_frames:
            raise ConfigError(f"'stride_frames': got {self.stride_frames}, allowed <= {self.window_frames}")

    @property
    def log_mel(self) -> LogMelSettings:
        """The analysis that the server expects too."""
        return LogMelSettings(sample_rate_hz=self.sample_rate, mel_bands=self.n_mels)

    @property
    def stride_ms(self) -> float:
        """A window starts this often."""
        return self.stride_frames * 10.0


@dataclass(frozen=True, kw_only=True)
class DeviceEncoderSettings(StartSettings):
    """The encoder that device and server share; they must agree on it."""

    enabled: bool = setting(True)  # false: no torch needed; windows cross before the first block


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(LearnerSettings):
    """Learning on the device: all of the learner's own settings, and when it gets time.

    `warm_start` counts only where splitting is off: otherwise the server's first revision starts the projection for the
    whole fleet; a published encoder brings a fitted one. `memory`, `components`, `bank_least` and `bank_entries` are
    set in memory_bank.
    """

    enabled: bool = setting(True)  # false: the encoder and the memory still run
    batch_size: int | None = setting(None, low=2, high=4_096)  # windows an optimiser step, in place of `accumulate`
    load_share: float = setting(0.3, low=0.0, high=1.0)  # of one core's time that learning may take
    highest_cpu: float = setting(0.9, low=0.0, high=1.0)  # no learning above this load
    learn_every_windows: int = setting(4, low=1)  # without real time (speed 0): a mini-batch every so many windows
    snapshot_s: float = setting(300.0, low=1.0)  # how often the learner is saved (about 30 MB)
    ask_gradients: bool = setting(True)  # of the server's loss, for uncertain windows that cross between two blocks
    gradient_weight: float = setting(1.0, low=0.0, high=100.0)  # of such a window, beside one of a mini-batch
    pending_gradients: int = setting(32, low=1, high=1024)  # windows that may wait for theirs; 25.6 KB each
    seed: int = setting(0, low=0)


@dataclass(frozen=True, kw_only=True)
class MemoryBankSettings(Settings):
    """The memory of negatives: a Gaussian mixture (v2) or the bank of embeddings (v1)."""

    kind: str = setting("mixture", choices=("mixture", "bank"))
    components: int = setting(64, low=2, high=1_024)
    min_size: int = setting(64, low=64, high=512)  # entries of the bank; as many as free memory allows in between
    max_size: int = setting(512, low=64, high=512)

    def check(self) -> None:
        """The range must not be empty."""
        if self.min_size > self.max_size:
            raise ConfigError(f"'min_size': got {self.min_size}, allowed <= max_size ({self.max_size})")


@dataclass(frozen=True, kw_only=True)
class RewardWeights(Settings):
    """v1's reward (1.0, -0.5, -0.3, -0.2): the greedy policy takes its cost from it as soon as one weight is given."""

    accuracy: float | None = setting(None)
    resource_usage: float | None = setting(None)
    latency: float | None = setting(None)
    privacy_risk: float | None = setting(None)

    @property
    def greedy(self) -> GreedySettings | None:
        """The cost that follows; None where no weight is given."""
        given = (self.accuracy, self.resource_usage, self.latency, self.privacy_risk)
        if all(weight is None for weight in given):
            return None
        weights = [usual if weight is None else weight for weight, usual in zip(given, _V1_REWARD, strict=True)]
        return GreedySettings.from_reward(*weights)


@dataclass(frozen=True, kw_only=True)
class AgentSettings(Settings):
    """How cuts are chosen."""

    policy: str = setting(DEFAULT_POLICY, choices=POLICIES)
    cut: str = setting("")  # 'fixed' only, such as '6:int8'
    cuts: tuple[str, ...] = setting(())  # cuts to choose from; empty = all that the table has
    policy_file: str = setting("")  # 'ppo' and 'ppo-corrected'; "" = the one that ships for the encoder
    policy_key: str = setting("")  # to check policies that the server pushes; "" = STREAMSPLIT_POLICY_KEY
    learning_rate: float = setting(1e-3, low=0.0)  # v1's key; policies are trained by `streamsplit train-policy`
    reward_weights: RewardWeights = section(RewardWeights)
    greedy: GreedySettings = section(GreedySettings)
    heuristic: HeuristicSettings = section(HeuristicSettings)
    bandit: BanditSettings = section(BanditSettings)
    correction: CorrectionSettings = section(CorrectionSettings)
    steady: SteadySettings = section(SteadySettings)
    objective: ObjectiveSettings = section(ObjectiveSettings)  # what regret is counted in, whatever the policy

    @property
    def learned(self) -> bool:
        """Whether the policy is one that needs a policy file."""
        return self.policy in LEARNED_POLICIES

    @property
    def key(self) -> str:
        """The key for pushed policies; "" takes none."""
        return self.policy_key or os.environ.get(POLICY_KEY_VARIABLE, "")


@dataclass(frozen=True, kw_only=True)
class SplittingSettings(Settings):
    """Whether and how work is shared with the server."""

    enabled: bool = setting(True)  # false: everything stays on the device
    agent: AgentSettings = section(AgentSettings)
    constraints: ConstraintSettings = section(ConstraintSettings)  # on every policy; its interval is the stride
    table: str = setting("")  # file of `streamsplit profile --output`; "" = the packaged table, scaled to the device
    gate: GateSettings = section(GateSettings)
    link: LinkSettings = section(LinkSettings)


@dataclass(frozen=True, kw_only=True)
class CodecSettings(Settings):
    """The neural codec of the cut 0:tinystream; the server must hold its decoder."""

    name: str = setting(DEFAULT_CODEC)  # packaged, or a file of `streamsplit codec export --format integer`; "" = none
    quantizers: int | None = setting(None, low=1, high=16)  # the first so many: fewer bits, coarser; None = all

    @property
    def encoder(self) -> SegmentEncoder | None:
        """None where there is to be none; raises CheckpointError and CutError."""
        return packaged_segments(self.name, self.quantizers) if self.name else None


@dataclass(frozen=True, kw_only=True)
class ServerLinkSettings(Settings):
    """Where the server is and how hard to try to reach it."""

    url: str = setting("ws://127.0.0.1:8888/v1/stream")  # or quic://host:port, for links that lose packets
    token: str = setting("")  # "" = the environment variable STREAMSPLIT_TOKEN
    tls_ca_file: str = setting("")  # wss, quic: PEM file of the authorities that are trusted; "" = the system's
    tls_fingerprint: str = setting("")  # quic: SHA-256 of the server's certificate, as the server prints it
    tls_unverified: bool = setting(False)  # quic: true = whoever answers is believed to be the server
    connect_timeout_s: float = setting(10.0, low=0.1)
    first_backoff_s: float = setting(0.5, low=0.01)
    longest_backoff_s: float = setting(30.0, low=0.01)
    drain_s: float = setting(10.0, low=0.0)  # at the end: wait this long for what is still under way
    want_embedding: bool = setting(True)  # results carry the server's embedding where the device has none

    def check(self) -> None:
        """WebSocket and QUIC URLs; one way to know the server."""
        if not reachable(self.url):
            raise ConfigError(
                f"'url': got '{self.url}', expected ws://host:port/v1/stream, wss://... or quic://host:port"
            )
        given = [name for name in ("tls_fingerprint", "tls_unverified", "tls_ca_file") if getattr(self, name)]
        if given and not (self.lossy or (given == ["tls_ca_file"] and self.url.startswith("wss://"))):
            allowed = "wss:// and quic://" if given == ["tls_ca_file"] else "quic://"
            raise ConfigError(f"'{given[0]}': is for {allowed} only, got the url '{self.url}'")
        if len(given) > 1:
            raise ConfigError(f"'{given[0]}' and '{given[1]}': got both, expected one way to know the server")
        if self.tls_fingerprint and not re.fullmatch(r"[0-9a-f]{64}", self.fingerprint):
            raise ConfigError(f"'tls_fingerprint': got '{self.tls_fingerprint}', expected 64 hex digits")
        if self.first_backoff_s > self.longest_backoff_s:
            raise ConfigError(f"'first_backoff_s': got {self.first_backoff_s}, allowed <= {self.longest_backoff_s}")

    @property
    def secret(self) -> str:
        """The token to show."""
        return self.token or os.environ.get(TOKEN_VARIABLE, "")

    @property
    def lossy(self) -> bool:
        """Whether live sound may be lost on the way, instead of late: QUIC."""
        return self.url.startswith("quic://")

    @property
    def fingerprint(self) -> str:
        """Of the server's certificate: hex digits without colons; "" = not pinned."""
        return self.tls_fingerprint.replace(":", "").lower()


def reachable(url: str) -> bool:
    """Whether a URL is one that a device can connect to."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme == "quic":
        return bool(parts.hostname and port) and parts.path in ("", "/")
    return parts.scheme in ("ws", "wss") and bool(parts.hostname)


@dataclass(frozen=True, kw_only=True)
class SyncSettings(Settings):
    """Weights up and down."""

    download: bool = setting(True)
    download_min_bps: float = setting(0.5e6, low=0.0)  # below it only weights of a new embedding space are fetched
    upload_local: bool = setting(True)  # ship what the device learned when the link is good
    upload_interval_s: float = setting(120.0, low=1.0)
    upload_min_steps: int = setting(20, low=1)  # optimiser steps since the last upload
    upload_min_bps: float = setting(4e6, low=0.0)  # what counts as a good link
    upload_min_battery: float = setting(0.5, low=0.0, high=1.0)


@dataclass(frozen=True, kw_only=True)
class EdgeSettings(Settings):
    """Everything a device needs to know."""

    device: DeviceSettings = section(DeviceSettings)
    audio: AudioSettings = section(AudioSettings)
    encoder: DeviceEncoderSettings = section(DeviceEncoderSettings)
    training: TrainingSettings = section(TrainingSettings)
    memory_bank: MemoryBankSettings = section(MemoryBankSettings)
    splitting: SplittingSettings = section(SplittingSettings)
    codec: CodecSettings = section(CodecSettings)
    server: ServerLinkSettings = section(ServerLinkSettings)
    queue: QueueSettings = section(QueueSettings)
    sync: SyncSettings = section(SyncSettings)
    monitor: MonitorSettings = section(MonitorSettings)
    emulation: EmulationSettings = section(EmulationSettings)
    talk: TalkSettings = section(TalkSettings)
    weights: BlockSettings = section(BlockSettings)

    def check(self) -> None:
        """What one section asks of another."""
        _ = self.policy
        if self.weights.streamed and not (self.encoder.enabled and self.splitting.enabled):
            raise ConfigError(
                f"'weights.cache_bytes': got {self.weights.cache_bytes} on a device without an encoder or a server to "
                "fetch its blocks from; leave it out"
            )
        if self.weights.streamed and self.server.lossy and not self.weights.url:
            raise ConfigError(
                f"'weights.url': got '' with {self.server.url}, expected ws://host:port: blocks do not come over QUIC"
            )
        if self.weights.streamed and self.training.uncertainty == "v1":
            raise ConfigError("'training.uncertainty': got v1 with weights.cache_bytes, allowed v2, context")

    @property
    def learner(self) -> LearnerSettings:
        """What the learner is made with."""
        training, memory = self.training, self.memory_bank
        values = {item.name: getattr(training, item.name) for item in fields(LearnerSettings)}
        if training.batch_size is not None:
            values["accumulate"] = max(1, training.batch_size // training.batch_windows)
        fitted = self.splitting.enabled or bool(self.encoder.pretrained)
        values["warm_start"] = training.warm_start and not fitted
        values["memory"], values["components"] = memory.kind, memory.components
        values["bank_least"], values["bank_entries"] = memory.min_size, memory.max_size
        return LearnerSettings(**values)

    @property
    def policy(self) -> PolicySettings:
        """The splitting policy; keep-local where splitting is off."""
        if not self.splitting.enabled:
            return PolicySettings(name="keep-local")
        agent = self.splitting.agent
        greedy = (agent.reward_weights.greedy or agent.greedy).replace(interval_ms=self.audio.stride_ms)
        return PolicySettings(
            name=agent.policy, cut=agent.cut, cuts=agent.cuts, policy_file=agent.policy_file,
            encoder=self.encoder.name, constraints=self.constraints, greedy=greedy, heuristic=agent.heuristic,
            bandit=agent.bandit, correction=agent.correction,
            steady=agent.steady.replace(whole_factor=self.audio.window_frames / self.audio.stride_frames),
        )  # fmt: skip

    @property
    def constraints(self) -> ConstraintSettings:
        """What no policy may do; nothing is forbidden where splitting is off."""
        given = self.splitting.constraints if self.splitting.enabled else ConstraintSettings()
        return given.replace(interval_ms=self.audio.stride_ms)

    @property
    def policy_path(self) -> Path:
        """Where a policy that the server pushed is kept."""
        return self.device.folder / "policy.pushed"

    @property
    def queue_path(self) -> Path:
        """The offline queue's file."""
        return Path(self.queue.path) if self.queue.path else self.device.folder / "queue.sqlite"
