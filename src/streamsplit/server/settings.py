"""Settings of the server: the sections of configs/server.yaml."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from streamsplit.codec.tinystream.segments import DEFAULT_CODEC
from streamsplit.config import Settings, section, setting
from streamsplit.errors import ConfigError
from streamsplit.server.dialogue.settings import DialogueSettings
from streamsplit.splitting.policy_push import MAX_VERSION
from streamsplit.weights.pretrained import StartSettings
from streamsplit.weights.transfer import CHUNK_DATA_BYTES, DEFAULT_CHUNK_BYTES
from streamsplit.wire.types import MAX_FRAME_BYTES

TOKEN_VARIABLE = "STREAMSPLIT_TOKEN"
POLICY_KEY_VARIABLE = "STREAMSPLIT_POLICY_KEY"


@dataclass(frozen=True, kw_only=True)
class ListenSettings(Settings):
    """Where the server listens and keeps its files (section 'server')."""

    bind_address: str = setting("127.0.0.1")
    port: int = setting(8888, low=0, high=65535)  # 0: any free port
    quic_port: int | None = setting(None, low=0, high=65535)  # UDP, for quic:// devices; None: none. 0: any free port
    quic_certificate: str = setting("")  # PEM file; "": one of the server's own, made once into data_dir
    quic_key: str = setting("")  # PEM file of its key
    data_dir: str = setting("runs/server")  # database, checkpoints, revisions
    log_level: str = setting("INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))

    def check(self) -> None:
        """A certificate is of no use without its key."""
        if bool(self.quic_certificate) != bool(self.quic_key):
            raise ConfigError(
                f"'quic_certificate' and 'quic_key': got '{self.quic_certificate}' and '{self.quic_key}', "
                "expected both or neither"
            )


@dataclass(frozen=True, kw_only=True)
class AuthSettings(Settings):
    """Who may connect; the environment variable STREAMSPLIT_TOKEN replaces `shared_token`."""

    shared_token: str = setting("")  # "": no token asked for, allowed on a loopback address only
    device_tokens: dict[str, str] = setting({})  # device id -> token, in place of the shared one
    api_token: str = setting("")  # "": /api and /metrics are open; otherwise 'Authorization: Bearer <token>'
    allow_open: bool = setting(False)  # True: no token even on an address that others can reach

    def check(self) -> None:
        """Tokens are text; YAML reads an unquoted 1234 as a number."""
        for device, token in self.device_tokens.items():
            if not isinstance(token, str) or not token:
                raise ConfigError(f"'device_tokens.{device}': got {token!r}, expected text in quotes")

    def token_for(self, device_id: str) -> str:
        """The token that this device must show; '' where none is asked for."""
        return self.device_tokens.get(device_id) or os.environ.get(TOKEN_VARIABLE) or self.shared_token


@dataclass(frozen=True, kw_only=True)
class SignalSettings(Settings):
    """The windows that devices must agree on with the server (section 'audio')."""

    sample_rate: int = setting(16000, choices=(16000,))
    n_mels: int = setting(128, choices=(128,))
    window_frames: int = setting(100, low=10, high=1000)  # 10 ms each
    stride_frames: int = setting(50, low=1, high=1000)

    def check(self) -> None:
        """A stride beyond the window would lose sound; the reduced resolution needs even counts."""
        if self.stride_frames > self.window_frames:
            raise ConfigError(f"'stride_frames': got {self.stride_frames}, allowed 1..{self.window_frames}")
        if self.window_frames % 2 or self.stride_frames % 2:
            raise ConfigError(
                f"'window_frames' and 'stride_frames': got {self.window_frames} and {self.stride_frames}, "
                "expected even numbers"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """The refiner: how the server's copy of the encoder learns."""

    enabled: bool = setting(True)
    learning_rate: float = setting(5e-4, low=0.0)
    batch_size: int = setting(64, low=4, high=4096)  # windows per optimiser step; the paper's 256 suits a GPU
    most_passes: float = setting(40.0, low=1.0)  # over what came in; then learning waits for more
    warm_start_windows: int = setting(256, low=0)  # windows collected before the first fit of the projection
    step_interval_s: float = setting(1.0, low=0.0)  # least time between two optimiser steps
    publish_steps: int = setting(20, low=1)  # optimiser steps from one published revision to the next
    publish_interval_s: float = setting(600.0, low=0.0)  # least time between revisions of 1.2 MB each
    checkpoint_interval_s: float = setting(60.0, low=0.1)
    return_gradients: bool = setting(True)  # the loss's gradient at the cut, to devices that ask for it
    gradient_encoding: str = setting("fp16", choices=("fp16", "fp32"))  # of what is returned
    worker: str = setting("process", choices=("process", "thread"))
    threads: int = setting(1, low=1, high=256)
    seed: int = setting(0, low=0)


@dataclass(frozen=True, kw_only=True)
class SlicedWassersteinSettings(Settings):
    """Pull of the embeddings to the uniform law on the sphere (v2), or of the devices to each other (v1)."""

    num_projections: int | None = setting(None, low=1, high=10000)  # v2: 50, v1: 100
    weight: float | None = setting(None, low=0.0)  # v2: 0.1, v1: 1


@dataclass(frozen=True, kw_only=True)
class LaplacianSettings(Settings):
    """Smoothness along each device's time graph (v2), or along the nearest neighbours in the space (v1)."""

    k_neighbors: int | None = setting(None, low=1, high=100)  # v2: 5, v1: 10
    weight: float | None = setting(None, low=0.0)  # v2: 0.01, v1: 0.1


@dataclass(frozen=True, kw_only=True)
class LossSettings(Settings):
    """The hybrid loss, in the form of either paper; what is left open takes that form's own value."""

    version: str = setting("v2", choices=("v1", "v2"))
    sliced_wasserstein: SlicedWassersteinSettings = section(SlicedWassersteinSettings)
    laplacian: LaplacianSettings = section(LaplacianSettings)


@dataclass(frozen=True, kw_only=True)
class AggregationSettings(Settings):
    """How windows of many devices come together."""

    temporal_window: float = setting(30.0, low=1.0, high=3600.0)  # seconds of each device's past that are kept
    min_devices_per_update: int = setting(2, low=1)  # preferred; one alone learns with twice the windows


@dataclass(frozen=True, kw_only=True)
class LimitSettings(Settings):
    """Bounds on what one device and all together may ask for."""

    max_devices: int = setting(2000, low=1)
    max_frame_bytes: int = setting(MAX_FRAME_BYTES, low=1024, high=MAX_FRAME_BYTES)
    max_in_flight: int = setting(64, low=1, high=4096)  # unacknowledged windows of one device
    max_windows_per_s: float = setting(200.0, low=0.1)  # per device, beyond which it is throttled
    max_waiting: int = setting(4096, low=1)  # windows waiting for compute, beyond which senders are throttled
    max_waiting_mb: float = setting(512.0, low=1.0)  # payloads not durable yet, beyond which no socket is read
    resume_expires_s: float = setting(60.0, low=0.1, high=86400.0)  # a lost connection's session is kept this long
    hello_timeout_s: float = setting(10.0, low=0.1)


@dataclass(frozen=True, kw_only=True)
class ComputeSettings(Settings):
    """The worker that completes windows in micro-batches."""

    batch_windows: int = setting(64, low=1, high=4096)
    wait_ms: float = setting(3.0, low=0.0, high=1000.0)  # a batch waits this long for company
    threads: int = setting(1, low=1, high=256)
    revisions: int = setting(3, low=1, high=64)  # encoder revisions held ready
    entropy_temperature: float = setting(0.1, low=0.01, high=10.0)  # of the uncertainty, as on devices


@dataclass(frozen=True, kw_only=True)
class StoreSettings(Settings):
    """The database."""

    windows_per_device: int = setting(20000, low=1)  # older ones are deleted
    embeddings_per_device: int = setting(2000, low=0)  # newest ones that keep their embedding (fp16)
    events: int = setting(5000, low=1)
    synchronous: str = setting("NORMAL", choices=("NORMAL", "FULL"))  # FULL also survives a power cut


@dataclass(frozen=True, kw_only=True)
class SynchronisationSettings(Settings):
    """What goes down to the devices besides results."""

    gmm_every_windows: int = setting(100, low=1)
    chunk_bytes: int = setting(DEFAULT_CHUNK_BYTES, low=1024, high=CHUNK_DATA_BYTES)  # of weights, data in one frame
    announce_per_s: float = setting(10.0, low=0.1)  # devices told of a new revision a second


@dataclass(frozen=True, kw_only=True)
class PolicyPushSettings(Settings):
    """A trained splitting policy for the devices that want one; the environment variable STREAMSPLIT_POLICY_KEY
    replaces `key`."""

    file: str = setting("")  # of `streamsplit train-policy`; "" = none, unless one came by POST /api/policy
    version: int = setting(1, low=1, high=MAX_VERSION)  # devices take none that is not newer than what they hold
    key: str = setting("")  # signs policies; the devices hold the same in splitting.agent.policy_key

    def check(self) -> None:
        """A policy goes out signed or not at all."""
        if self.file and not self.secret:
            raise ConfigError(f"'file': got {self.file} without a key; set policy.key or {POLICY_KEY_VARIABLE}")

    @property
    def secret(self) -> str:
        """The key to sign with; "" for none."""
        return os.environ.get(POLICY_KEY_VARIABLE) or self.key


@dataclass(frozen=True, kw_only=True)
class WeightStreamSettings(Settings):
    """A transformer model that devices run without storing it, at /v1/weights."""

    chunks_dir: str = setting("")  # of `streamsplit weights chunk`, or s3://bucket/prefix; "" = no weight stream
    redis_url: str = setting("")  # of a cache in front of it, shared by servers; "" = none
    memory_mb: float = setting(64.0, low=0.0)  # of its blocks held in memory, in front of a bucket or a Redis
    device_mb_per_s: float = setting(0.0, low=0.0)  # of one device, over all its connections; 0 = no limit
    total_mb_per_s: float = setting(0.0, low=0.0)  # of all together, shared piece by piece; 0 = no limit
    max_connections: int = setting(256, low=1)


@dataclass(frozen=True, kw_only=True)
class ServerSettings(Settings):
    """Everything that configs/server.yaml may say."""

    device: str = setting("cpu", choices=("auto", "cpu", "cuda"))
    server: ListenSettings = section(ListenSettings)
    auth: AuthSettings = section(AuthSettings)
    audio: SignalSettings = section(SignalSettings)
    codecs: tuple[str, ...] = setting((DEFAULT_CODEC,))  # whose codes devices may send: packaged names, or files
    encoder: StartSettings = section(StartSettings)
    training: TrainingSettings = section(TrainingSettings)
    loss: LossSettings = section(LossSettings)
    aggregation: AggregationSettings = section(AggregationSettings)
    limits: LimitSettings = section(LimitSettings)
    compute: ComputeSettings = section(ComputeSettings)
    store: StoreSettings = section(StoreSettings)
    synchronisation: SynchronisationSettings = section(SynchronisationSettings)
    policy: PolicyPushSettings = section(PolicyPushSettings)
    dialogue: DialogueSettings = section(DialogueSettings)
    weights: WeightStreamSettings = section(WeightStreamSettings)

    def check(self) -> None:
        """An address that others can reach needs a token or the word of the owner."""
        address = self.server.bind_address
        if not is_loopback(address) and not self.auth.allow_open and not self.auth.token_for(""):
            raise ConfigError(
                f"'server.bind_address': got {address} without a token; set auth.shared_token or {TOKEN_VARIABLE}, "
                "or auth.allow_open: true to let anybody in"
            )

    @property
    def data_path(self) -> Path:
        """Folder of the database, checkpoints and revisions."""
        return Path(self.server.data_dir)


def is_loopback(address: str) -> bool:
    """True for 'localhost' and addresses that only this machine can reach."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
