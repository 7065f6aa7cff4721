"""All methods by name, in the order of the table, and which rows others are held against."""

from __future__ import annotations

from collections.abc import Iterable

from streamsplit.config import nearest
from streamsplit.errors import ConfigError
from streamsplit.evaluation.baselines.ablation import ABLATION
from streamsplit.evaluation.baselines.base import Method
from streamsplit.evaluation.baselines.edge_only import AS_PUBLISHED, EdgeOnly
from streamsplit.evaluation.baselines.fedcl import FedCL
from streamsplit.evaluation.baselines.fsl import SplitTraining
from streamsplit.evaluation.baselines.handcrafted import Handcrafted
from streamsplit.evaluation.baselines.heuristic_split import heuristic_split
from streamsplit.evaluation.baselines.random_encoder import PooledStart, RandomEncoder
from streamsplit.evaluation.baselines.released import Released
from streamsplit.evaluation.baselines.server_only import ServerOnly
from streamsplit.evaluation.baselines.streamsplit import StreamSplit
from streamsplit.learning.settings import LearnerSettings
from streamsplit.wire.media import Encoding

METHODS: tuple[Method, ...] = (
    Handcrafted("mean-std"),
    Handcrafted("five"),
    Handcrafted("five-pca"),
    Handcrafted("course-pca"),
    RandomEncoder(start=False),
    RandomEncoder(start=True),
    PooledStart(),
    Released(),
    EdgeOnly("edge_only", "edge only as published: batch 8, bank", AS_PUBLISHED),
    EdgeOnly("edge_only_same_memory", "edge only, StreamSplit's memory and loss", LearnerSettings()),
    EdgeOnly("leo", "LEO: MobileNetV2 0.35, edge only", LearnerSettings(trained="all"), "leo"),
    FedCL(),
    SplitTraining("fsl", "split training at a fixed cut"),
    heuristic_split(),
    StreamSplit(),
    StreamSplit("streamsplit_merge", "the same, devices ship what they learned too", merge=True),
    ServerOnly("server_only_same_windows", "server only, as many windows as a device", "windows"),
    ServerOnly("server_only_same_updates", "server only, as many updates as a device", "updates"),
    ServerOnly("server_only", "server only, to convergence", "convergence"),
    ServerOnly("server_only_opus", "the same over Opus 24 kbit/s", "convergence", Encoding.OPUS24),
)
NAMES = tuple(method.name for method in METHODS)
QUICK = ("five_statistics_pca", "untrained_pca", "untrained_pooled", "released", "edge_only_same_memory", "streamsplit")
OURS = ("streamsplit", "server_only")
START = "start"  # the row of the budget's published start, judged as it is
REFERENCES = ("five_statistics_pca", "fixed_course_pca", "untrained_pca", START, "server_only", "edge_only", "released")

GROUPS: dict[str, tuple[Method, ...]] = {"ablation": ABLATION}  # known by one name, and not run unless asked for


def method(name: str) -> Method:
    """The method of this name; raises ConfigError with the nearest known one."""
    known = {known.name: known for known in (*METHODS, *(member for group in GROUPS.values() for member in group))}
    if name not in known:
        raise ConfigError(f"got method '{name}'; {nearest(name, (*known, *GROUPS))}")
    return known[name]


def methods(names: Iterable[str]) -> list[Method]:
    """The methods of these names, each once and in this order; a group's name stands for its methods. ConfigError."""
    found = [member for name in names for member in GROUPS.get(name, ()) or (method(name),)]
    return list({member.name: member for member in found}.values())
