"""EdgeLearner: learns, never collapses, resumes exactly, stays within its memory, takes over revisions."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from streamsplit.encoders.mobilenet import MobileNetV3Small  # noqa: E402
from streamsplit.errors import CheckpointError, ConfigError, EncoderError, RevisionError  # noqa: E402
from streamsplit.learning.collapse import CollapseSettings  # noqa: E402
from streamsplit.learning.learner import EdgeLearner, LearnerSettings  # noqa: E402
from streamsplit.weights.revision import encoder_weights, load_weights  # noqa: E402

SMALL: dict[str, Any] = {
    "batch_windows": 4, "accumulate": 2, "buffer_windows": 40, "run_windows": 5, "warm_start_windows": 24,
    "components": 8, "cold_start": 10, "negatives": 8, "learning_rate": 1e-3, "contrast_weight": 1.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def sounds(n: int, seed: int = 0, bands: int = 128, frames: int = 24) -> np.ndarray:
    """Log-mel windows of four textures that last five windows each."""
    rng = np.random.default_rng(seed)
    shapes = rng.standard_normal((4, bands, 1)) * 2
    rhythm = np.sin(np.linspace(0, 30, frames))[None] * rng.standard_normal((4, bands, 1))
    kinds = np.repeat(rng.integers(0, 4, n // 5 + 1), 5)[:n]
    noise = rng.standard_normal((n, bands, frames)) * 0.7
    return (-7 + (shapes + rhythm)[kinds] + noise).astype(np.float32)


def make(seed: int = 0, **changes: Any) -> EdgeLearner:
    encoder = MobileNetV3Small(0.25, 32, np.random.default_rng(seed))
    return EdgeLearner(encoder, LearnerSettings(**{**SMALL, **changes}), seed)


def feed(learner: EdgeLearner, windows: np.ndarray, start: int = 0, learn: bool = True) -> list[Any]:
    return [
        learner.observe(window, start + i, 500.0 * (start + i), learn=learn, continuous=(start + i) % 5 != 0)
        for i, window in enumerate(windows)
    ]


def weights_of(learner: EdgeLearner) -> dict[str, np.ndarray]:
    query = {f"query.{k}": v for k, v in encoder_weights(learner.query).items()}
    return {**query, **{f"key.{k}": v for k, v in encoder_weights(learner.key).items()}}


def identical(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_nothing_is_learned_before_the_warm_start_and_everything_after_it() -> None:
    learner = make()
    before = encoder_weights(learner.query)
    seen = feed(learner, sounds(23))
    assert all(o.loss is None and o.steps == 0 for o in seen)
    assert identical(encoder_weights(learner.query), before) and learner.space == 0
    seen = feed(learner, sounds(13, seed=1), start=23)
    assert learner.space == 1 and learner.started
    assert seen[-1].steps == learner.steps == 6
    assert [o.loss is not None for o in seen].count(True) == 6
    assert learner.windows_learned == 6 * 8 + 4
    assert all(np.isclose(np.linalg.norm(o.embedding), 1, atol=1e-5) for o in seen)


def test_learning_lowers_the_loss_and_does_not_collapse() -> None:
    learner = make(learning_rate=2e-3)
    windows = sounds(40, seed=3)
    feed(learner, windows, learn=False)
    started = np.stack([learner.embed(w) for w in windows])
    losses = [learner.learn() for _ in range(80)]
    assert np.mean(losses[-20:]) < 0.85 * np.mean(losses[:20])
    learned = np.stack([learner.embed(w) for w in windows])
    assert not np.allclose(started, learned, atol=1e-3)

    def rank(z: np.ndarray) -> float:
        s = np.linalg.svd(z - z.mean(0), compute_uv=False)
        p = s / s.sum()
        return float(np.exp(-(p * np.log(p + 1e-12)).sum()))

    assert rank(learned) > 0.5 * rank(started)
    assert learner.sigma2 is not None and learner.sigma2 > 0


@pytest.mark.parametrize("memory", ["mixture", "bank"])
@pytest.mark.parametrize("uncertainty", ["v2", "v1"])
def test_both_memories_and_both_uncertainties_learn(memory: str, uncertainty: str) -> None:
    learner = make(memory=memory, uncertainty=uncertainty)
    if uncertainty == "v1":
        learner.prototypes.set_prototypes(np.eye(5, 32))
    seen = feed(learner, sounds(33))
    assert learner.steps == 5 and seen[-1].loss is not None and np.isfinite(seen[-1].loss)
    assert all(np.isfinite(o.uncertainty) and o.uncertainty >= 0 for o in seen)
    assert len({o.uncertainty for o in seen[-8:]}) > 1


@pytest.mark.parametrize(
    ("windows", "learner"),
    [  # before the warm start; within an accumulation
        (10, {"memory": "mixture"}), (10, {"memory": "bank"}), (31, {"memory": "mixture"}), (31, {"memory": "bank"}),
        (31, {"memory": "bank", "augment": "auto"}), (31, {"memory": "mixture", "uncertainty": "v1"}),
        (31, {"trained": "all"}), (31, {"target": "statistics"}),
    ],
    ids=str,
)  # fmt: skip
def test_a_restored_learner_goes_on_bit_for_bit(windows: int, learner: dict[str, str]) -> None:
    first = make(**learner)
    stream = sounds(37)
    feed(first, stream[:windows])
    data = first.snapshot()
    other = make(seed=9, **learner)
    other.restore(data)
    first_seen, other_seen = (feed(each, stream[windows:], start=windows) for each in (first, other))
    assert [o.uncertainty for o in first_seen] == [o.uncertainty for o in other_seen]
    assert first.steps == other.steps >= 4
    assert identical(weights_of(first), weights_of(other))
    assert first.snapshot() == other.snapshot()


def test_augmentation_changes_the_second_view_only_and_auto_follows_the_load() -> None:
    def losses(augment: str, **load: float) -> list[float | None]:
        learner = make(augment=augment, warm_start_windows=16)
        feed(learner, sounds(20), learn=False)
        return [learner.learn(**load) for _ in range(3)]

    plain, basic, standard, extended = (losses(name) for name in ("none", "basic", "standard", "extended"))
    assert len({tuple(each) for each in (plain, basic, standard, extended)}) == 4
    assert losses("standard") == standard
    assert losses("auto") == extended  # an idle device can afford it
    assert losses("auto", cpu_load=0.5, memory_load=0.5) == standard
    assert losses("auto", cpu_load=0.75, memory_load=1.0) == basic
    learner = make(augment="extended", contrast_weight=0.0, consistency_weight=0.0, warm_start_windows=16)
    bare = make(contrast_weight=0.0, consistency_weight=0.0, warm_start_windows=16)
    for each in (learner, bare):
        feed(each, sounds(20), learn=False)
    assert learner.learn() == bare.learn()  # what is predicted stays as heard


@pytest.mark.parametrize("trained", ["readouts", "all"])
def test_blocks_learn_only_where_they_are_asked_to(trained: str) -> None:
    learner = make(trained=trained)
    feed(learner, sounds(24), learn=False)
    before = encoder_weights(learner.query)
    feed(learner, sounds(12, seed=1), start=24)
    moved = {name for name, array in encoder_weights(learner.query).items() if not np.array_equal(array, before[name])}
    assert learner.steps and any(name.startswith("readouts.") for name in moved)
    assert any(name.startswith("blocks.") for name in moved) == (trained == "all")
    difference = learner.local_difference()
    assert difference is not None
    shipped = max(float(np.abs(difference[name]).max()) for name in difference if name.startswith("blocks."))
    assert (shipped > 0) == (trained == "all")


def test_the_loss_is_the_same_from_kept_statistics_as_from_windows() -> None:
    losses = []
    for trained in ("readouts", "all"):
        learner = make(trained=trained)
        feed(learner, sounds(24), learn=False)
        losses.append([learner.learn() for _ in range(2)])  # no optimiser step yet
    assert np.allclose(losses[0], losses[1], rtol=2e-3)  # half precision


@pytest.mark.parametrize("trained", ["readouts", "all"])
def test_what_is_predicted_is_what_the_start_and_then_the_last_revision_says(trained: str) -> None:
    learner = make(trained=trained)
    feed(learner, sounds(24), learn=False)
    started = encoder_weights(learner.key)
    feed(learner, sounds(12, seed=1), start=24)
    rng = np.random.default_rng(0)

    def predicted_by(weights: dict[str, np.ndarray]) -> bool:
        other = MobileNetV3Small(0.25, 32)
        load_weights(other, weights)
        batch = learner.buffer.draw(4, rng, decay=0.5, reach=4, gap=2)
        assert batch is not None
        with torch.no_grad():
            wanted = [other(torch.from_numpy(part)) for part in (batch.partner_features, batch.anchor_features)]
        found = learner._loss._predicted(batch)
        return all(torch.allclose(one, known, atol=2e-3) for one, known in zip(found, wanted, strict=True))

    assert learner.steps and predicted_by(started) and not predicted_by(encoder_weights(learner.query))
    server = {name: array * 1.5 if name.startswith("readouts.1") else array for name, array in learner.base.items()}
    learner.adopt(server)
    assert predicted_by(server) and not predicted_by(started)
    restored = make(trained=trained)
    restored.restore(learner.snapshot())
    learner = restored
    assert predicted_by(server)


def test_windows_that_the_revision_finds_alike_are_no_negatives() -> None:
    losses = {}
    for similarity in (-1.0, 1.0):
        learner = make(mask_similarity=similarity, negatives=0, target_weight=0.0, own_weight=0.0)
        feed(learner, sounds(24), learn=False)
        losses[similarity] = learner.learn()
    assert losses[-1.0] == pytest.approx(0.0, abs=1e-6)  # nothing is left to tell the positive from
    assert losses[1.0] is not None and losses[1.0] > 0.01


def test_after_a_revision_statistics_are_those_of_its_blocks() -> None:
    learner = make()
    feed(learner, sounds(40))
    base = encoder_weights(learner.query)
    server = {name: array * 1.3 if name.startswith("blocks.") else array for name, array in base.items()}
    learner.adopt(server)
    batch = learner.buffer.draw(4, np.random.default_rng(0), decay=0.5, reach=4, gap=2)
    assert batch is not None and learner._readouts is not None
    kept = learner._readouts(batch.anchor_slots, batch.anchor_features)
    with torch.no_grad():
        fresh = learner.query.readout_features(torch.from_numpy(batch.anchor_features)).numpy()
    assert np.allclose(kept, fresh, atol=2e-4) and np.abs(fresh).max() > 0.01
    after = encoder_weights(learner.key)
    assert all(np.array_equal(after[name], server[name]) for name in server if name.startswith("blocks."))


@pytest.mark.parametrize("k", [0, 5, 11])
def test_v1_uncertainty_tells_windows_apart_at_every_cut(k: int) -> None:
    learner = make(uncertainty="v1")
    k = min(k, learner.key.num_blocks)
    windows = sounds(60)
    feed(learner, windows, learn=False)

    def parts(window: np.ndarray) -> tuple[float, float]:
        z = learner.key.exit_embedding(learner.encode_to(window, k), k)[0].detach().numpy()
        return learner.uncertainty(z, window, k), learner.uncertainty(z)

    first = [parts(window) for window in windows[:20]]
    assert len({u for u, _ in first}) == 20 and len({u for _, u in first}) == 20  # also without the first part
    learner.prototypes.set_prototypes(np.eye(5, 32))
    assert not np.allclose([u for _, u in first], [parts(window)[1] for window in windows[:20]])
    silence = np.full_like(windows[0], -13.8)
    assert parts(silence)[0] > 0


def test_prototypes_of_an_earlier_space_are_forgotten() -> None:
    learner = make(uncertainty="v1")
    learner.prototypes.set_prototypes(np.eye(5, 32))
    learner.adopt(learner.base)
    assert len(learner.prototypes.prototypes) == 5
    learner.adopt(learner.base, breaks_space=True)
    assert len(learner.prototypes.prototypes) == 0


def test_the_bank_follows_free_memory_and_its_size_survives_a_restart() -> None:
    learner, windows = make(memory="bank", bank_entries=300, warm_start=False), sounds(40)
    rng = np.random.default_rng(0)
    for i in range(320):
        z = rng.standard_normal(32).astype(np.float32)
        learner.remember(windows[i % 40], z=z / np.linalg.norm(z), index=i)
    bank = learner.memory.bank
    kept = bank.entries()[0]
    sizes = []
    for free_bytes in (1e9, 100 * 4 * 32 + 5, 0, 200 * 4 * 32):
        learner.memory.fit(free_bytes)
        sizes.append((bank.size, len(bank)))
    assert sizes == [(300, 300), (100, 100), (64, 64), (200, 64)]
    assert np.array_equal(bank.entries()[0], kept[-64:])
    other = make(memory="bank", bank_entries=300, warm_start=False)
    other.restore(learner.snapshot())
    assert other.memory.bank.size == 200
    mixture = make().memory
    before = mixture.state_bytes()
    mixture.fit(0)
    assert mixture.state_bytes() == before


def test_a_snapshot_of_other_settings_or_of_nothing_is_refused() -> None:
    learner = make()
    before = weights_of(learner)
    data = make(learning_rate=0.5).snapshot()
    with pytest.raises(CheckpointError, match="settings"):
        learner.restore(data)
    for broken in (b"", data[:100], data[:-7], b"\xff" * 64, data[:8] + b"[" * 5000):
        with pytest.raises(CheckpointError, match="snapshot"):
            learner.restore(broken)
    assert identical(before, weights_of(learner))


def test_another_alarm_goes_on_from_the_same_snapshot() -> None:
    learner = make()
    other = make(collapse=CollapseSettings(share=0.3, clear_share=0.4))
    other.restore(learner.snapshot())
    assert other.collapse.settings.share == 0.3
    assert identical(weights_of(learner), weights_of(other))


def test_memory_is_bounded_over_thousands_of_windows() -> None:
    learner = make(accumulate=1)
    rng = np.random.default_rng(0)
    windows = sounds(40)

    def stream(start: int, stop: int) -> None:
        for i in range(start, stop):
            if i % 72 == 0:
                learner.observe(windows[i % 40], i, 0.0)
            else:
                z = rng.standard_normal(32).astype(np.float32)
                learner.remember(windows[i % 40], z=z / np.linalg.norm(z), index=i)

    stream(0, 400)
    account = learner.state_bytes()
    gc.collect()
    tracemalloc.start()
    held = tracemalloc.get_traced_memory()[0]
    stream(400, 2000)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - held
    tracemalloc.stop()
    assert learner.steps > 25
    assert grown < 190_000  # small change, not one kept window (12,288 bytes each) in a hundred
    assert learner.state_bytes() == account
    assert len(learner.buffer) <= 40
    assert account < 6_500_000


def test_the_default_learner_holds_less_than_25_megabytes_above_its_frozen_encoder() -> None:
    encoder = MobileNetV3Small(0.75, 128)
    frozen = sum(4 * parameter.numel() for parameter in encoder.parameters())
    assert EdgeLearner(encoder, LearnerSettings()).state_bytes() - frozen < 25e6


def test_windows_of_both_resolutions_may_mix() -> None:
    learner = make()
    feed(learner, sounds(30))
    feed(learner, sounds(14, bands=64, frames=12), start=30)
    assert learner.steps >= 8


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    learner = make()
    bad = sounds(1)[0]
    bad[3, 4] = value
    with pytest.raises(EncoderError, match="finite"):
        learner.observe(bad, 0)
    assert len(learner.buffer) == 0


def test_results_from_the_server_reach_the_memory_without_a_forward_pass() -> None:
    learner = make()
    z = np.zeros(32, np.float32)
    z[0] = 1
    learner.remember(sounds(1)[0], z=z, index=0, now_ms=0.0)
    learner.remember(sounds(1)[0], index=1, now_ms=500.0)
    assert learner.memory.mixture.observations == 1 and len(learner.buffer) == 2


def test_cpu_load_lowers_the_rate_of_a_step() -> None:
    learner = make()
    feed(learner, sounds(25), learn=False)
    for load, rate in ((0.0, 1e-3), (0.85, 5e-4), (1.0, 6.25e-5)):
        for _ in range(2):
            learner.learn(cpu_load=load)
        assert learner._updates.optimiser.groups[1].rate == pytest.approx(rate)


def test_a_new_revision_keeps_what_was_learned_here() -> None:
    learner = make()
    feed(learner, sounds(40))
    base = learner.base
    local = learner.local_difference()
    assert local is not None and any(np.abs(v).max() > 0 for v in local.values())
    server = {name: array + np.float32(0.01) for name, array in base.items()}
    space = learner.space
    learner.adopt(server)
    after = encoder_weights(learner.query)
    assert all(np.allclose(after[name], server[name] + local[name], atol=1e-5) for name in after)
    again = learner.local_difference()
    assert again is not None and all(np.allclose(again[name], local[name], atol=1e-5) for name in local)
    assert learner.space == space
    assert learner.learn() is not None


def test_a_revision_that_breaks_the_space_starts_anew_and_brings_its_own_warm_start() -> None:
    learner = make()
    feed(learner, sounds(12))
    assert learner.local_difference() is None
    server = encoder_weights(MobileNetV3Small(0.25, 32, np.random.default_rng(77)))
    learner.adopt(server, breaks_space=True)
    assert identical(encoder_weights(learner.key), server) and learner.space == 1
    assert learner.memory.mixture.observations == 12  # the buffer's windows, embedded anew
    feed(learner, sounds(13), start=12, learn=False)
    assert identical(encoder_weights(learner.key), server)  # no warm start of its own
    assert learner.learn() is not None


def test_a_revision_of_another_encoder_is_refused_before_any_change() -> None:
    learner = make()
    before = weights_of(learner)
    server = encoder_weights(MobileNetV3Small(0.25, 16))
    with pytest.raises(RevisionError):
        learner.adopt(server, breaks_space=True)
    assert identical(before, weights_of(learner))


def test_what_crosses_a_cut_comes_from_the_key_encoder() -> None:
    learner = make()
    feed(learner, sounds(30))
    x = sounds(1, seed=8)[0]
    for k in (0, 5, learner.key.num_blocks):
        z = learner.key.forward_from(learner.encode_to(x, k), k)[0].detach().numpy()
        assert np.array_equal(z, learner.embed(x))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="warm_start_windows"):
        LearnerSettings(warm_start_windows=300, buffer_windows=256)
    with pytest.raises(ConfigError, match="memory"):
        LearnerSettings(memory="queue")


def test_context_learns_from_embeddings_and_results_and_is_kept_in_a_snapshot() -> None:
    learner = make(uncertainty="context", warm_start=False)
    windows = sounds(160)
    feed(learner, windows[:100], learn=False)
    measure = learner.context
    assert measure is not None and not measure.ready
    for index, window in enumerate(windows[100:]):
        learner.hold(learner.embed(window), 100 + index)  # as a RESULT brings it
    assert measure.ready
    z = learner.embed(windows[0])
    assert learner.uncertainty(z) == measure.value(z)
    other = make(uncertainty="context", warm_start=False)
    other.restore(learner.snapshot())
    assert other.uncertainty(z) == learner.uncertainty(z)
    assert make(uncertainty="v2").context is None
