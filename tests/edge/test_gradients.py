"""Gradients on the device: which windows ask, and what becomes of every answer."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from streamsplit.audio.windows import WindowStream  # noqa: E402
from streamsplit.edge.counters import Counters  # noqa: E402
from streamsplit.edge.emulation import RealDevice  # noqa: E402
from streamsplit.edge.gradients import GradientExchange  # noqa: E402
from streamsplit.edge.model import EncoderModel, NoEncoder  # noqa: E402
from streamsplit.edge.payload import PieceChain  # noqa: E402
from streamsplit.edge.pipeline import Outcome, Surroundings, WindowPipeline  # noqa: E402
from streamsplit.edge.readings import Readings  # noqa: E402
from streamsplit.edge.settings import EdgeSettings  # noqa: E402
from streamsplit.encoders.crossing import Crossing, unpack_crossing  # noqa: E402
from streamsplit.learning.returned import ReturnedGradient, pack_gradient  # noqa: E402
from streamsplit.splitting.cut import Cut  # noqa: E402
from streamsplit.splitting.device import device_profile  # noqa: E402
from streamsplit.splitting.link import LinkEstimate  # noqa: E402
from streamsplit.splitting.policy import FixedPolicy  # noqa: E402
from streamsplit.splitting.table import CutRow, CutTable, make_table  # noqa: E402
from streamsplit.splitting.transmission import GateSettings, Transmission, UncertaintyGate  # noqa: E402
from streamsplit.weights.revision import revision_prefix  # noqa: E402
from streamsplit.wire.media import Encoding, unpack_media  # noqa: E402
from streamsplit.wire.types import FrameType  # noqa: E402

CUTS = [
    Cut(0, Encoding.LOGMEL_INT8),
    Cut(6, Encoding.FP16),
    Cut(6, Encoding.EXIT_FP16),
    Cut(13, Encoding.EMBEDDING_FP16),
]
TRAINING = {"warm_start_windows": 16, "buffer_windows": 64, "pending_gradients": 2, "batch_windows": 4, "accumulate": 1}


class Exchange:
    """An exchange with its model, its counters and what it complained about."""

    def __init__(self, training: dict | None = None) -> None:
        settings = EdgeSettings.from_mapping({"training": {**TRAINING, **(training or {})}})
        self.model, self.counters, self.problems = EncoderModel(settings), Counters(), []
        self.exchange = GradientExchange(settings.training, self.model, self.counters, self.problems.append)
        rng = np.random.default_rng(0)
        audio = rng.normal(0, 0.1, 16_000 * 12).astype(np.float32) * np.repeat(rng.uniform(0.1, 2, 48), 4_000).astype(
            np.float32
        )
        self.windows = WindowStream().push(audio)
        for window in self.windows:
            self.model.remember(window.features, None, window.index, continuous=True)
        self.exchange.grant(True)

    def ask(self, index: int) -> Outcome:
        outcome = pipeline(self.model, CUTS[1], self.exchange).process(self.windows[index], around())
        assert outcome.frame_type is FrameType.GRADIENT
        self.exchange.asked(self.windows[index], outcome)
        return outcome

    def answer(self, window: int, *, value: float = 0.01, block: int = 6, revision: str | None = None) -> bytes:
        h, partial = self.model.learner.encode_to(self.windows[0].features, block)
        gradient = Crossing(torch.full_like(h, value), torch.full_like(partial, value))
        prefix = revision_prefix(self.model.revision if revision is None else revision)
        return pack_gradient(ReturnedGradient(window, prefix, block, gradient), Encoding.FP32)

    @property
    def counts(self) -> dict[str, int]:
        names = ("asked", "applied", "late", "stale", "refused")
        return {name: n for name in names if (n := getattr(self.counters, f"gradients_{name}"))}


def around() -> Surroundings:
    return Surroundings(Readings(0.2, 0.5, 0.9, 0.1), LinkEstimate(5e6, 10.0, 40.0, 10.0, 0), True, 0)


def pipeline(model: object, cut: Cut, exchange: GradientExchange, **gate: object) -> WindowPipeline:
    rows = tuple(CutRow(c, 1.0, 1.0, 1000, 1.0, 1.0) for c in CUTS)
    table = make_table(CutTable("mobilenet", "host", 1.0, 13, rows, {}))
    settings = GateSettings(**{"enabled": False, **gate})
    return WindowPipeline(
        model, table, FixedPolicy(cut), UncertaintyGate(settings), RealDevice(device_profile("host")),
        PieceChain(100, 50), asks=exchange.asks,
    )  # fmt: skip


@pytest.fixture(scope="module")
def shared() -> Exchange:
    return Exchange()


def test_a_window_that_crosses_between_blocks_asks_and_its_bytes_stay_those_of_features(shared: Exchange) -> None:
    outcome = pipeline(shared.model, CUTS[1], shared.exchange).process(shared.windows[0], around())
    assert outcome.frame_type is FrameType.GRADIENT
    header, payload = unpack_media(outcome.payload)
    assert (header.block, header.encoding) == (6, Encoding.FP16)
    assert unpack_crossing(payload).h.shape[0] == 1


@pytest.mark.parametrize("cut", [CUTS[0], CUTS[2], CUTS[3]])
def test_other_cuts_have_no_gradient_to_ask_for(shared: Exchange, cut: Cut) -> None:
    outcome = pipeline(shared.model, cut, shared.exchange).process(shared.windows[0], around())
    assert outcome.sends and outcome.frame_type is not FrameType.GRADIENT


def test_nothing_is_asked_of_a_server_that_has_not_offered_it(shared: Exchange) -> None:
    shared.exchange.grant(False)
    outcome = pipeline(shared.model, CUTS[1], shared.exchange).process(shared.windows[0], around())
    assert outcome.frame_type is FrameType.FEATURES
    shared.exchange.grant(True)


def test_with_the_first_papers_gate_only_windows_above_the_threshold_ask(shared: Exchange) -> None:
    v1 = pipeline(shared.model, CUTS[1], shared.exchange, enabled=True, version="v1", longest_silence_windows=1)
    v1.gate.fix_threshold(-1.0)
    assert v1.process(shared.windows[0], around()).frame_type is FrameType.GRADIENT
    v1.gate.fix_threshold(1e6)
    kept, forced = (v1.process(window, around()) for window in shared.windows[1:3])
    assert kept.action is Transmission.KEEP
    assert forced.action is Transmission.SEND and forced.frame_type is FrameType.FEATURES


def test_devices_that_do_not_learn_ask_for_nothing() -> None:
    for training in ({"enabled": False}, {"ask_gradients": False}):
        assert not Exchange(training).exchange.asks()
    settings = EdgeSettings()
    bare = GradientExchange(settings.training, NoEncoder(settings), Counters(), print)
    bare.grant(True)
    assert not bare.offers and not bare.granted and not bare.asks()


def test_before_learning_has_begun_nothing_is_asked() -> None:
    settings = EdgeSettings.from_mapping({"training": TRAINING})
    exchange = GradientExchange(settings.training, EncoderModel(settings), Counters(), print)
    exchange.grant(True)
    assert exchange.granted and not exchange.asks()


def test_an_answer_goes_into_the_accumulation_and_moves_the_lower_blocks() -> None:
    made = Exchange()
    made.exchange.arrived(made.answer(made.ask(0).window))
    assert made.exchange.apply(made.model) == 1
    assert made.counts == {"asked": 1, "applied": 1} and not made.problems
    assert len(made.model.learner._updates.returned) > 0
    assert made.model.learn(0.0).steps == 1
    assert len(made.model.learner._updates.returned) == 0


def test_answers_that_come_late_twice_or_unasked_are_dropped_and_counted() -> None:
    made = Exchange()
    first, *others = (made.ask(index) for index in range(3))  # two places: the first has to go
    for window in (first.window, others[0].window, others[0].window, 4711):
        made.exchange.arrived(made.answer(window))
        made.exchange.apply(made.model)
    made.exchange.arrived(made.answer(others[1].window, revision="ab" * 32))
    made.exchange.apply(made.model)
    assert made.counts == {"asked": 3, "applied": 1, "late": 4} and not made.problems


def test_answers_that_pile_up_unused_are_bounded() -> None:
    made = Exchange()
    for _ in range(5):
        made.exchange.arrived(made.answer(1))
    assert made.counts == {"late": 3}
    assert made.exchange.apply(made.model) == 0 and made.counts == {"late": 5}


def test_a_gradient_of_a_replaced_space_is_refused() -> None:
    made = Exchange()
    window = made.ask(0).window
    made.exchange.arrived(made.answer(window))
    made.model.adopt(made.model.base_weights(), made.model.revision, breaks_space=True)
    assert made.exchange.apply(made.model) == 0
    assert made.counts == {"asked": 1, "stale": 1} and not made.problems


def test_damaged_gradients_are_refused_with_their_reason() -> None:
    made = Exchange()
    window = made.ask(0).window
    good = bytearray(made.answer(window))
    for at in range(20, 24):
        good[at] = 0xFF  # a NaN among the values
    made.exchange.arrived(bytes(good))
    made.exchange.arrived(b"short")
    assert made.exchange.apply(made.model) == 0
    assert made.counts == {"asked": 1, "refused": 2} and len(made.problems) == 2
    other = made.answer(window, block=3)
    made.exchange.arrived(other)
    made.exchange.apply(made.model)
    assert made.counts["late"] == 1  # of another cut than asked for
    assert len(made.model.learner._updates.returned) == 0
