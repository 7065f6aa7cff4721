"""From window to payload: the policy's cut, the gate's veto, the header, energy and skipped windows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from streamsplit.audio.logmel import reduce_resolution
from streamsplit.audio.synth import Soundscape
from streamsplit.audio.windows import Window, WindowStream
from streamsplit.edge.emulation import Spent
from streamsplit.edge.model import EncoderModel, Forward, NoEncoder
from streamsplit.edge.payload import PieceChain
from streamsplit.edge.pipeline import Surroundings, WindowPipeline
from streamsplit.edge.readings import Readings
from streamsplit.edge.settings import EdgeSettings
from streamsplit.encoders.bottleneck import fit_bottlenecks
from streamsplit.encoders.crossing import pack_crossing, unpack_crossing
from streamsplit.encoders.embedding_codec import unpack_embedding
from streamsplit.encoders.factory import make_encoder
from streamsplit.encoders.projection import fit_exits, fit_projection
from streamsplit.errors import ConfigError, CutError, ProtocolError
from streamsplit.splitting.confidence import ExitRule, ExitSettings
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.decision import Decision
from streamsplit.splitting.device import device_profile
from streamsplit.splitting.link import LinkEstimate
from streamsplit.splitting.table import CutRow, CutTable, make_table
from streamsplit.splitting.transmission import GateSettings, Transmission, UncertaintyGate
from streamsplit.weights.revision import encoder_weights, load_weights, revision_of, revision_prefix
from streamsplit.wire.frame import HEADER_BYTES
from streamsplit.wire.media import Encoding, Resolution, unpack_media
from streamsplit.wire.messages import Prototypes
from streamsplit.wire.types import FrameType

L = 13
CUTS = [
    Cut(0, Encoding.PCM16), Cut(0, Encoding.LOGMEL_INT8), Cut(6, Encoding.INT8), Cut(L, Encoding.EMBEDDING_FP16),
    Cut(L, Encoding.NONE),
]  # fmt: skip
SIZES = [16_000, 6_400, 5_000, 280, 0]


class Stopwatch:
    """Work costs what it is told to."""

    device = device_profile("pi4")

    def __init__(self) -> None:
        self.drained = 0.0

    def run(self, work):
        return work(), Spent(20.0, 2.0)

    def drain(self, energy_mj: float) -> None:
        self.drained += energy_mj


class Chooses:
    """A policy that gives what it is given and writes down what it saw."""

    def __init__(self, cut: Cut) -> None:
        self.cut, self.seen = cut, []

    def decide(self, observation, table) -> Decision:
        self.seen.append(observation)
        return Decision(table.row(self.cut).cut, 0.9, "chosen")


@pytest.fixture(scope="module")
def encoder() -> EncoderModel:
    return EncoderModel(EdgeSettings())


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    audio = np.random.default_rng(0).normal(0, 0.1, 16000 * 6).astype(np.float32)
    return WindowStream().push(audio)


def make(model, cut: Cut, **gate) -> WindowPipeline:
    rows = tuple(CutRow(c, 1.0, 1.0, size, 1.0, 1.0) for c, size in zip(CUTS, SIZES, strict=True))
    table = make_table(CutTable("mobilenet", "host", 1.0, L, rows, {}))
    settings = GateSettings(**{"enabled": False, **gate})
    return WindowPipeline(model, table, Chooses(cut), UncertaintyGate(settings), Stopwatch(), PieceChain(100, 50))


def around(bps: float = 5e6, up: bool = True, cpu: float = 0.25) -> Surroundings:
    return Surroundings(Readings(cpu, 0.5, 0.9, 0.1), LinkEstimate(bps, 10.0, 40.0, 10.0, 0), up, 1234)


def test_the_policy_sees_the_device_and_the_last_uncertainty(encoder, windows) -> None:
    pipeline = make(encoder, CUTS[2])
    first = pipeline.process(windows[0], around())
    pipeline.process(windows[1], around())
    seen = pipeline.policy.seen
    assert math.isnan(seen[0].uncertainty) and seen[0].last_cut is None
    assert seen[1].uncertainty == first.uncertainty and seen[1].last_cut == CUTS[2]
    assert (seen[0].cpu, seen[0].battery, seen[0].bandwidth_bps, seen[0].backlog_bytes) == (0.25, 0.9, 5e6, 1234)


def test_activations_complete_to_the_devices_own_embedding(encoder, windows) -> None:
    outcome = make(encoder, CUTS[2]).process(windows[0], around())
    header, payload = unpack_media(outcome.payload)
    assert (header.block, header.encoding, header.new_frames) == (6, Encoding.INT8, 0)
    assert header.revision == revision_prefix(encoder.revision) != 0
    assert outcome.frame_type is FrameType.FEATURES
    with torch.no_grad():
        z = encoder.learner.key.forward_from(unpack_crossing(payload), 6)[0].numpy()
    own = encoder.forward_to(windows[0].features, L).z
    assert float(z @ own) > 0.99


def test_an_embedding_crosses_with_its_uncertainty(encoder, windows) -> None:
    outcome = make(encoder, CUTS[3]).process(windows[0], around())
    header, payload = unpack_media(outcome.payload)
    assert outcome.frame_type is FrameType.EMBEDDING and header.block == L
    assert np.abs(unpack_embedding(payload) - outcome.z).max() < 1e-3
    assert header.uncertainty == pytest.approx(outcome.uncertainty, rel=1e-3)


def test_block_zero_needs_no_revision_and_is_piecewise(encoder, windows) -> None:
    pipeline = make(encoder, CUTS[1])
    new = []
    for window in windows[:3]:
        outcome = pipeline.process(window, around())
        pipeline.accepted(window, outcome)
        header, _ = unpack_media(outcome.payload)
        new.append(header.new_frames)
        assert header.revision == 0
        assert math.isfinite(outcome.uncertainty)  # from the early exit on the input's statistics
    assert new == [100, 50, 50]


def test_the_first_window_sent_after_a_gap_or_of_a_new_clip_says_so_at_every_cut(encoder) -> None:
    rng = np.random.default_rng(1)
    stream = WindowStream()
    first = stream.push(rng.normal(0, 0.1, 32_000).astype(np.float32))
    stream.reset()  # a gap
    second = stream.push(rng.normal(0, 0.1, 40_000).astype(np.float32))
    for cut in (CUTS[1], CUTS[2], CUTS[3]):
        pipeline = make(encoder, cut, enabled=True, warm_up_windows=1)
        marks = []
        for number, window in enumerate(first + second):
            pipeline.gate.fix_threshold(1e9 if number == len(first) else -1.0)  # the new stretch's first one stays
            outcome = pipeline.process(window, around())
            if outcome.payload is None:
                marks.append(None)
                continue
            marks.append(unpack_media(outcome.payload)[0].flags)
            if number == len(first) + 1:
                pipeline.refused()  # it got lost: the next one takes the mark over
            else:
                pipeline.accepted(window, outcome)
        assert marks == [1] + [0] * (len(first) - 1) + [None, 1, 1] + [0] * (len(second) - 3), cut


def test_keeping_everything_sends_nothing_but_embeds(encoder, windows) -> None:
    pipeline = make(encoder, CUTS[4])
    outcome = pipeline.process(windows[0], around())
    assert outcome.payload is None and outcome.z is not None and outcome.action is Transmission.KEEP
    assert pipeline.skipped == 1 and pipeline.embedded_here(0)


def test_what_the_memory_is_sure_about_stays_and_is_counted_in_the_next_header(encoder, windows) -> None:
    pipeline = make(encoder, CUTS[2], enabled=True, warm_up_windows=1)
    pipeline.gate.fix_threshold(1e9)
    kept = [pipeline.process(window, around()) for window in windows[:3]]
    assert all(outcome.payload is None for outcome in kept) and pipeline.skipped == 3
    pipeline.gate.fix_threshold(-1.0)
    sent = pipeline.process(windows[3], around())
    assert unpack_media(sent.payload)[0].skipped == 3
    pipeline.accepted(windows[3], sent)
    assert pipeline.skipped == 0


def test_a_poor_link_gets_the_embedding_instead(encoder, windows) -> None:
    pipeline = make(encoder, CUTS[0], enabled=True, warm_up_windows=1)
    pipeline.gate.fix_threshold(-1.0)
    outcome = pipeline.process(windows[0], around(bps=0.2e6))
    assert outcome.action is Transmission.EMBEDDING_ONLY
    assert outcome.cut == Cut(L, Encoding.EMBEDDING_FP16) and outcome.z is not None
    assert outcome.z == pytest.approx(encoder.forward_to(windows[0].features, L).z, abs=1e-6)


def test_without_an_encoder_only_block_zero_is_left_and_a_poor_link_gets_the_smallest(windows) -> None:
    pipeline = make(NoEncoder(EdgeSettings()), CUTS[0], enabled=True, warm_up_windows=1)
    assert pipeline.table.cuts == (CUTS[0], CUTS[1])
    outcome = pipeline.process(windows[0], around(bps=0.2e6))
    assert outcome.cut == CUTS[1] and math.isnan(outcome.uncertainty)


def test_time_and_energy_hold_features_compute_and_transmission(encoder, windows) -> None:
    pipeline = make(encoder, CUTS[3])
    outcome = pipeline.process(windows[0], around(), feature_ms=5.0)
    assert outcome.edge_ms == 25.0
    expected = device_profile("pi4").energy_mj(25.0, HEADER_BYTES + len(outcome.payload))
    assert outcome.energy_mj == pytest.approx(expected)
    assert unpack_media(outcome.payload)[0].edge_ms == 25.0


def test_a_restarted_device_counts_windows_on(encoder, windows) -> None:
    pipeline = make(encoder, CUTS[3])
    pipeline.start_at(500)
    outcome = pipeline.process(windows[1], around())
    assert outcome.window == 501 and unpack_media(outcome.payload)[0].window == 501


def test_a_model_that_gives_nan_costs_its_window_only(windows) -> None:
    class Broken(NoEncoder):
        name = "broken"

        def forward_to(self, features, k):
            return Forward(None, np.full(128, np.nan, np.float32), 1.0)

    with pytest.raises(CutError, match="NaN"):
        make(Broken(EdgeSettings()), CUTS[3]).process(windows[0], around())


@pytest.mark.parametrize("block", [0, 5, L])
def test_v1_uncertainty_tells_windows_apart_at_every_cut(block: int) -> None:
    model = EncoderModel(EdgeSettings.from_mapping({"training": {"uncertainty": "v1"}}))
    heard = WindowStream().push(Soundscape(3, mean_segment_s=2.0).read(16_000 * 37))
    for window in heard[:60]:
        model.remember(window.features, model.forward_to(window.features, L).z, window.index, continuous=True)
    before = [model.forward_to(window.features, block).uncertainty for window in heard[60:]]
    assert np.isfinite(before).all() and len(set(before)) == len(before) >= 10 and np.std(before) > 0.01
    centres = np.random.default_rng(0).standard_normal((50, 128)).astype("<f2")
    message = Prototypes(revision=model.revision, count=50, dim=128, data=centres.tobytes())
    assert model.adopt_prototypes(message) and not model.adopt_prototypes(message)  # the first ones, then others
    after = [model.forward_to(window.features, block).uncertainty for window in heard[60:]]
    assert len(set(after)) == len(after) and abs(np.mean(after) - np.mean(before)) > 0.1
    forward = model.forward_to(heard[0].features, block)
    if forward.crossing is not None:
        assert math.isfinite(model.finish(forward.crossing, block, heard[0].features).uncertainty)


@pytest.fixture(scope="module")
def scape() -> list[Window]:
    """Windows of sound that changes, so that some are surer than others."""
    return WindowStream().push(Soundscape(5, mean_segment_s=2.0).read(16_000 * 62))


@pytest.fixture(scope="module")
def fitted(scape) -> EncoderModel:
    """A device with a server's first revision: projection, exits and bottlenecks fitted, and a memory in that space."""
    model = EncoderModel(EdgeSettings())
    whole = make_encoder()
    features = np.stack([window.features for window in scape[:64]])
    fit_projection(whole, features)
    fit_exits(whole, features)
    fit_bottlenecks(whole, features)
    weights = encoder_weights(whole)
    model.adopt(weights, revision_of(weights), breaks_space=True)
    for window in scape[:64]:
        model.remember(window.features, model.forward_to(window.features, L).z, window.index, continuous=True)
    return model


def pipeline_of(model, *cuts: str, chosen: str, rule: ExitRule | None = None) -> WindowPipeline:
    rows = tuple(CutRow(Cut.parse(cut), 1.0, 1.0, 500.0, 1.0, 1.0) for cut in cuts)
    table = make_table(CutTable("mobilenet", "host", 1.0, L, rows, {}))
    gate = UncertaintyGate(GateSettings(enabled=False))
    return WindowPipeline(
        model, table, Chooses(Cut.parse(chosen)), gate, Stopwatch(), PieceChain(100, 50), exit_rule=rule
    )


def test_a_narrowed_activation_is_completed_by_whoever_has_the_same_revision(fitted, scape) -> None:
    outcome = pipeline_of(fitted, "0:pcm16", "5:bottleneck-int8", chosen="5:bottleneck-int8").process(
        scape[70], around()
    )
    header, payload = unpack_media(outcome.payload)
    assert (header.block, header.encoding, outcome.frame_type) == (5, Encoding.BOTTLENECK_INT8, FrameType.FEATURES)
    server = make_encoder()
    load_weights(server, fitted.base_weights())
    with torch.no_grad():
        z = server.forward_from(unpack_crossing(payload, server.bottlenecks[5]), 5)[0].numpy()
    assert 0.85 < z @ fitted.forward_to(scape[70].features, L).z < 1.0
    with torch.no_grad():
        plain = pack_crossing(server.forward_to(torch.from_numpy(scape[70].features)[None], 5), Encoding.INT8)
    assert len(plain) - len(payload) == 32 * 8 * 7 * 3 // 4


def test_what_is_not_fitted_yet_is_not_offered_and_never_crosses(encoder, fitted, scape) -> None:
    names = ("0:pcm16", "5:int8", "5:bottleneck-int8", "4:exit-fp16")
    pipeline = pipeline_of(encoder, *names, chosen="0:pcm16")
    seen = []
    pipeline.policy.decide = lambda observation, table: (seen.append(table), Decision(table.cuts[0], 1.0, ""))[1]
    pipeline.process(scape[0], around())
    assert [str(cut) for cut in seen[0].cuts] == ["0:pcm16", "5:int8"]
    pipeline.model = fitted  # the server's first revision arrived
    pipeline.process(scape[1], around())
    assert set(map(str, seen[1].cuts)) == set(names)
    stubborn = pipeline_of(encoder, *names, chosen="5:bottleneck-int8").process(scape[0], around())
    assert str(stubborn.cut) == "5:int8" and "not fitted yet" in stubborn.reason
    assert unpack_media(stubborn.payload)[0].encoding == Encoding.INT8
    stubborn = pipeline_of(encoder, *names, chosen="4:exit-fp16").process(scape[0], around())
    assert str(stubborn.cut) == "13:embedding-fp16"


def test_rows_of_bottlenecks_that_the_encoder_does_not_have_are_left_out(scape) -> None:
    bare = EncoderModel(EdgeSettings.from_mapping({"encoder": {"bottlenecks": [2]}}))
    pipeline = pipeline_of(bare, "0:pcm16", "2:bottleneck-int8", "5:bottleneck-int8", chosen="0:pcm16")
    assert [str(cut) for cut in pipeline.table.cuts] == ["0:pcm16", "2:bottleneck-int8"]


def test_an_exit_crosses_where_it_is_sure_and_the_embedding_elsewhere(fitted, scape) -> None:
    rule = ExitRule(ExitSettings(percentile=50.0, warm_up_windows=5))
    pipeline = pipeline_of(fitted, "0:pcm16", "4:exit-fp16", chosen="4:exit-fp16", rule=rule)
    history, early = [], 0
    for window in scape[64:]:
        outcome = pipeline.process(window, around())
        own = fitted.forward_to(window.features, 4)
        sure = len(history) >= 5 and own.uncertainty <= np.percentile(history, 50.0)
        history.append(own.uncertainty)
        header, payload = unpack_media(outcome.payload)
        z = unpack_embedding(payload)
        assert outcome.frame_type is FrameType.EMBEDDING
        if sure:
            early += 1
            assert (header.block, header.encoding) == (4, Encoding.EXIT_FP16) and outcome.z is None
            assert np.abs(z - own.early).max() < 1e-3 and header.uncertainty == pytest.approx(own.uncertainty, rel=1e-3)
        else:
            assert (header.block, header.encoding) == (L, Encoding.EMBEDDING_FP16)
            assert np.abs(z - fitted.forward_to(window.features, L).z).max() < 1e-3 and "not sure" in outcome.reason
    assert 0 < early < len(history) - 5


def test_an_exit_is_never_sure_at_reduced_resolution(fitted, scape) -> None:
    rule = ExitRule(ExitSettings(percentile=100.0, warm_up_windows=1))
    pipeline = pipeline_of(fitted, "0:pcm16", "4:exit-fp16", chosen="4:exit-fp16", rule=rule)
    rule.confident(4, 9.0)
    small = scape[70]._replace(features=reduce_resolution(scape[70].features), resolution=Resolution.REDUCED)
    assert str(pipeline.process(small, around()).cut) == "13:embedding-fp16"


def test_prototypes_of_a_revision_to_come_wait_for_it_and_those_that_do_not_fit_are_refused() -> None:
    model = EncoderModel(EdgeSettings.from_mapping({"training": {"uncertainty": "v1"}}))
    weights = {name: array + np.float32(0.01) for name, array in model.base_weights().items()}
    revision = revision_of(weights)
    centres = np.eye(3, 128, dtype="<f2")
    assert not model.adopt_prototypes(Prototypes(revision=revision, count=3, dim=128, data=centres.tobytes()))
    assert len(model.learner.prototypes.prototypes) == 0
    model.adopt(weights, revision, breaks_space=True)
    assert np.array_equal(model.learner.prototypes.prototypes, centres)
    for count, dim, data in ((3, 64, centres.tobytes()), (2, 128, centres.tobytes()), (0, 128, b"")):
        with pytest.raises(ProtocolError, match="prototypes"):
            model.adopt_prototypes(Prototypes(revision=revision, count=count, dim=dim, data=data))
    with pytest.raises(ConfigError, match="finite"):
        model.adopt_prototypes(
            Prototypes(revision=revision, count=1, dim=128, data=np.full(128, np.nan, "<f2").tobytes())
        )
    assert np.array_equal(model.learner.prototypes.prototypes, centres)
