import json

import numpy as np
import pytest
import torch

from streamsplit.encoders.crossing import Crossing
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.errors import CheckpointError, EncoderError, RevisionError
from streamsplit.learning.rank import effective_rank
from streamsplit.refinement.batch import embed_features, embed_windows, stored_crossing, stored_features
from streamsplit.refinement.refiner import Refiner, RefinerSettings
from streamsplit.refinement.task import pair_info_nce
from streamsplit.weights.delta import apply_delta, unpack_full
from streamsplit.weights.revision import encoder_weights, revision_of, revision_prefix

FRAMES = 40  # short windows keep the tests quick
SMALL = EncoderSettings(width=0.25, embedding_dim=32)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


def sounds(count, seed=0, bands=128, frames=FRAMES):
    """Windows [count, bands, frames] of a stream whose spectrum changes slowly between a few kinds."""
    rng = np.random.default_rng(seed)
    kinds = np.random.default_rng(7).normal(0, 2, (5, bands, 1))
    kind = np.repeat(rng.integers(5, size=count // 8 + 1), 8)[:count]
    return (-7 + kinds[kind] + rng.normal(0, 1, (count, bands, frames))).astype(np.float32), kind


def refiner(warm=0, seed=0, **options):
    options = {"batch_windows": 16, "min_windows": 8, "warm_start_windows": warm, **options}
    return Refiner(make_encoder(SMALL), RefinerSettings(**options), seed)


def feed(target, device="a", count=48, seed=0, start=0):
    features, kind = sounds(count, seed)
    for i, x in enumerate(features):
        target.add(device, start + i, features=x)
    return features, kind


def feed_crossings(target, device, count, block, seed=0):
    encoder = target.known_encoder(target.revision)
    features, _ = sounds(count, seed)
    for i, x in enumerate(features):
        with torch.no_grad():
            crossing = encoder.forward_to(torch.from_numpy(x)[None], block)
        target.add(device, i, crossing=crossing, block=block, revision=target.revision)


def held_out_loss(r):
    z = torch.from_numpy(embed_features(r.encoder, sounds(64, seed=5)[0]))
    frames = np.concatenate([np.arange(0, 64, 2), np.arange(1, 64, 2)])
    return float(pair_info_nce(z[::2], z[1::2], frames, ["x"] * 64, 0.2, mask_frames=8))


def changed(before, after):
    return {name for name in before if not np.array_equal(before[name], after[name])}


def owner(name):
    """Block that a parameter belongs to, from its name and the encoder's own sites."""
    part, number = name.split(".")[:2]
    if part == "blocks":
        return int(number) + 1
    sites = make_encoder(SMALL).sites
    return max(1, sites[int(number)].block) if int(number) < len(sites) - 1 else make_encoder(SMALL).num_blocks


def test_training_on_features_lowers_the_loss_and_reaches_every_block():
    r = refiner(learning_rate=1e-3, batch_windows=32)
    feed(r, "a")
    feed(r, "b", seed=1)
    before, loss = encoder_weights(r.encoder), held_out_loss(r)
    reports = [r.step() for _ in range(20)]
    assert held_out_loss(r) < loss - 0.1
    assert reports[0].devices == 2 and reports[0].samples == 32 and 1 < reports[0].effective_rank < 32
    moved = changed(before, encoder_weights(r.encoder))
    assert {owner(name) for name in moved} == set(range(1, r.encoder.num_blocks + 1))
    assert not any(name.startswith("exits") for name in moved)


@pytest.mark.parametrize("block", [2, 7])
def test_crossings_train_only_the_blocks_above_their_cut(block):
    r = refiner()
    feed_crossings(r, "a", 24, block)
    before = encoder_weights(r.encoder)
    assert r.step().skipped == ""
    moved = changed(before, encoder_weights(r.encoder))
    assert moved and min(owner(name) for name in moved) == block + 1


def test_a_batch_may_mix_features_of_both_resolutions_and_crossings_of_any_cut():
    r = refiner(batch_windows=32)
    feed(r, "a", 16)
    for i, x in enumerate(sounds(16, seed=2, bands=64, frames=FRAMES // 2)[0]):
        r.add("reduced", i, features=x)
    feed_crossings(r, "b", 16, 3)
    report = r.step()
    assert report.skipped == "" and report.devices == 3 and np.isfinite(report.loss)


def test_gradients_of_a_mixed_batch_equal_those_of_the_windows_alone():
    r = refiner()
    features, _ = sounds(6)
    x = torch.from_numpy(features.astype(np.float16).astype(np.float32))
    batch = []
    for i in range(6):
        if i % 2:
            with torch.no_grad():
                crossing = r.encoder.forward_to(x[i : i + 1], 1)
            batch.append(stored_crossing(r.encoder, "a", i, crossing, 1, r.revision))
        else:
            batch.append(stored_features("a", i, x[i].numpy()))
    with torch.no_grad():
        z, whole = embed_windows(r.encoder, batch), r.encoder(x)
    assert torch.allclose(z[::2], whole[::2], atol=1e-6)  # order kept
    assert torch.nn.functional.cosine_similarity(z[1::2], whole[1::2]).min() > 0.999  # half precision


def test_the_warm_start_happens_once_breaks_the_space_and_keeps_the_features():
    r = refiner(warm=40)
    feed(r, "a", 39)
    feed_crossings(r, "b", 8, 3)
    assert not r.warm_start()
    r.add("a", 39, features=sounds(1)[0][0])
    old = r.revision
    assert r.warm_start() and not r.warm_start()
    assert r.reservoir.devices() == ["a"] and len(r.reservoir) == 40
    published = r.publish()
    assert published.breaks_space and published.delta is None and published.base is None
    assert published.revision != old and r.mixture.observations > 0
    assert revision_of(unpack_full(published.full)) == published.revision
    r.step()
    assert not r.publish().breaks_space


def test_training_keeps_the_geometry_of_the_warm_start():
    r = refiner(warm=64, batch_windows=32)
    for device in range(2):
        feed(r, f"d{device}", 64, seed=device)
    r.warm_start()
    held_out, kind = sounds(80, seed=9)
    start = embed_features(r.encoder, held_out)
    for _ in range(25):
        assert r.step().skipped == ""
    end = embed_features(r.encoder, held_out)
    assert effective_rank(end) > 0.6 * effective_rank(start)
    similarity = end @ end.T
    np.fill_diagonal(similarity, -2)
    assert (kind[similarity.argmax(axis=1)] == kind).mean() > 0.9
    assert np.corrcoef((start @ start.T)[np.triu_indices(80, 1)], (end @ end.T)[np.triu_indices(80, 1)])[0, 1] > 0.8


def test_a_delta_and_the_full_weights_give_the_announced_revision():
    r = refiner()
    feed(r)
    first = r.lineage.latest
    r.step()
    published = r.publish()
    assert published.base == first.revision == revision_of(encoder_weights(make_encoder(SMALL)))
    assert published.delta is not None and len(published.delta) < 0.4 * len(published.full)
    assert revision_of(apply_delta(first.weights, published.delta)) == published.revision
    assert revision_of(unpack_full(published.full)) == published.revision
    exact = encoder_weights(r.encoder)
    largest = max(np.abs(exact[name] - published.weights[name]).max() for name in exact)
    assert 0 < largest < 1e-5


def test_a_revision_tells_how_far_apart_the_devices_are():
    r = refiner()
    z = embed_features(r.encoder, feed(r, "a")[0])
    feed(r, "b", seed=1)
    for i, row in enumerate(z):
        r.add("a", i, embedding=row, revision=r.revision)
    r.step()
    assert r.publish().alignment is None
    far = z - 2 * (z @ z.mean(axis=0))[:, None] * z.mean(axis=0) / (z.mean(axis=0) ** 2).sum()  # mirrored
    for i, (row, mirrored) in enumerate(zip(z, far, strict=True)):
        r.add("b", i, embedding=row, revision=r.revision)
        r.add("odd", i, embedding=mirrored, revision=r.revision)
    r.step()
    alignment = r.publish().alignment
    assert set(alignment.devices) == {"a", "b", "odd"}
    assert alignment.devices[alignment.mean_distance.argmax()] == "odd"
    assert alignment.distances[alignment.devices.index("a"), alignment.devices.index("b")] < 1e-5


def test_quantisation_errors_do_not_add_up_over_revisions():
    r = refiner(keep_revisions=2)
    feed(r)
    for _ in range(6):
        r.step()
        published = r.publish()
    exact = encoder_weights(r.encoder)
    assert max(np.abs(exact[name] - published.weights[name]).max() for name in exact) < 1e-5


def test_nothing_new_publishes_nothing():
    r = refiner()
    again = r.publish()
    assert again.note and again.revision == r.revision and len(r.lineage) == 1


def test_recent_revisions_complete_cuts_and_older_ones_are_refused():
    r = refiner(keep_revisions=2)
    features, _ = feed(r)
    first = r.revision
    x = torch.from_numpy(features[:1])
    with torch.no_grad():
        crossing = make_encoder(SMALL).forward_to(x, 4)
        whole = make_encoder(SMALL)(x)
    r.step()
    r.publish()
    assert r.lineage.resolve(revision_prefix(first)) == first
    with torch.no_grad():
        assert torch.equal(r.known_encoder(first).forward_from(crossing, 4), whole)
    assert r.add("a", 900, crossing=crossing, block=4, revision=first)
    r.step()
    r.publish()
    for refused in (
        lambda: r.known_encoder(first),
        lambda: r.lineage.resolve(revision_prefix(first)),
        lambda: r.add("a", 901, crossing=crossing, block=4, revision=first),
        lambda: r.add("a", 901, embedding=np.ones(32, np.float32), revision="f" * 64),
        lambda: r.merge_local("a", first, r.lineage.latest.weights, 5),
    ):
        with pytest.raises(RevisionError, match="fetch the newest weights"):
            refused()


def test_what_belongs_to_a_replaced_space_is_left_out_without_an_error():
    r = refiner(warm=40)
    feed(r, "a", 40)
    old = r.revision
    z = np.ones(32, np.float32) / np.sqrt(32)
    assert r.add("a", 0, embedding=z, revision=old)
    r.warm_start()
    assert len(r.buffer) == 0
    r.publish()
    assert not r.add("a", 1, embedding=z, revision=old)
    with torch.no_grad():
        crossing = r.known_encoder(old).forward_to(torch.zeros(1, 128, FRAMES), 3)
    assert not r.add("a", 2, crossing=crossing, block=3, revision=old)
    assert r.add("a", 3, embedding=z, revision=r.revision)
    with pytest.raises(RevisionError, match="space was replaced"):
        r.merge_local("a", old, r.lineage.latest.weights, 5)


def test_one_device_alone_learns_after_a_longer_wait():
    r = refiner(min_windows=8, min_devices=2)
    feed(r, "a", 15)
    assert not r.ready()
    r.add("a", 15, features=sounds(1)[0][0])
    assert r.ready() and r.step().devices == 1
    two = refiner(min_windows=8, min_devices=2)
    feed(two, "a", 4)
    feed(two, "b", 4)
    assert two.ready()


def test_the_same_windows_are_learned_from_so_often_and_then_more_are_waited_for():
    r = refiner(most_passes=2.0, min_devices=1)
    feed(r, count=24)  # 48 windows may be drawn: three steps of 16
    steps = 0
    while r.ready():
        r.step()
        steps += 1
    assert steps == 3
    again = refiner(most_passes=2.0, min_devices=1)
    again.restore(r.snapshot())
    assert not again.ready(), "a restart does not start counting anew"
    feed(r, count=8, start=24)
    assert r.ready()


def test_learning_waits_for_the_warm_start_but_not_for_ever():
    r = refiner(warm=1000, warm_start_patience=30)
    feed(r, "a", 29)
    feed(r, "b", 1)
    assert r.ready() and not refiner(warm=1000).ready()


def test_a_bad_batch_changes_nothing_and_is_counted():
    r = refiner(target_weight=0.0)
    feed(r)
    r.step()
    before = encoder_weights(r.encoder)
    for parameter in r.encoder.readouts.parameters():
        parameter.register_hook(lambda gradient: gradient * float("nan"))
    report = r.step()
    assert "NaN" in report.skipped and r.bad_batches == 1 and r.steps == 1
    assert not changed(before, encoder_weights(r.encoder))
    assert np.isnan(report.loss)


def test_a_window_that_spoils_batches_is_dropped():
    r = refiner()
    features, _ = feed(r, count=40)
    spoiled = features[7, 0, 0].astype(np.float16)

    def spoil(_module, inputs, output):
        hit = inputs[0][:, 0, 0] == float(spoiled)
        return torch.where(hit[:, None], torch.nan, output)

    r.encoder.register_forward_hook(spoil)
    reports = [r.step() for _ in range(12)]
    assert sum(bool(report.skipped) for report in reports) == 1 and r.bad_batches == 1
    assert len(r.reservoir) == 39 and r.steps == 11
    assert all(np.isfinite(array).all() for array in encoder_weights(r.encoder).values())


def test_embeddings_beside_any_cut_feed_buffer_mixture_and_prototypes():
    r = refiner(prototypes=4)
    feed_crossings(r, "b", 6, 3)
    assert len(r.buffer) == 0
    features, _ = sounds(12)
    for i, (x, z) in enumerate(zip(features, embed_features(r.encoder, features), strict=True)):
        if i % 2:
            r.add("a", i, features=x, embedding=z, revision=r.revision)
        else:
            with torch.no_grad():
                crossing = r.encoder.forward_to(torch.from_numpy(x)[None], 5)
            r.add("a", i, crossing=crossing, block=5, embedding=z, revision=r.revision)
    assert r.buffer.window("a").frames.tolist() == list(range(12)) and r.mixture.observations == 12
    assert r.prototypes.ready and len(r.reservoir) == 18


def test_features_stay_where_the_revision_of_their_embedding_is_gone():
    r = refiner()
    z = np.ones(32, np.float32) / np.sqrt(32)
    assert r.add("a", 0, features=sounds(1)[0][0], embedding=z, revision="f" * 64)
    assert len(r.reservoir) == 1 and len(r.buffer) == 0


def test_the_laplacian_joins_the_batch_to_the_frames_that_the_buffer_holds():
    features, _ = sounds(48)
    reports = []
    for held in (False, True):
        r = refiner()
        z = embed_features(r.encoder, features)
        for i, x in enumerate(features):
            wrong = np.roll(z[i], 1)  # not what the window gives: the pull to it must show in the loss
            r.add("a", i, features=x, embedding=wrong if held else None, revision=r.revision)
        reports.append(r.step())
    alone, joined = reports
    assert joined.task == pytest.approx(alone.task) and joined.wasserstein == pytest.approx(alone.wasserstein)
    assert joined.laplacian > 1.5 * alone.laplacian


def test_nan_and_wrong_shapes_are_refused_and_nothing_is_kept():
    r = refiner()
    good = sounds(1)[0][0]
    sum_of = torch.zeros(1, 32)
    for bad in (
        {"features": np.full((128, FRAMES), np.nan)},
        {"features": good[0]},
        {"embedding": np.full(32, np.inf, np.float32), "revision": r.revision},
        {"embedding": np.zeros(5, np.float32), "revision": r.revision},
        {"features": good, "embedding": np.full(32, np.nan, np.float32), "revision": r.revision},
        {"crossing": Crossing(torch.full((1, 8, 4, 4), torch.nan), sum_of), "block": 2, "revision": r.revision},
        {"crossing": Crossing(torch.zeros(1, 8, 4, 4), sum_of), "block": 0, "revision": r.revision},
        {"crossing": Crossing(torch.zeros(2, 8, 4, 4), sum_of), "block": 2, "revision": r.revision},
        {},
    ):
        with pytest.raises(EncoderError, match="expected"):
            r.add("a", 0, **bad)
    assert len(r.reservoir) == 0 and len(r.buffer) == 0


def test_local_learning_is_merged_into_the_next_revision():
    r = refiner()
    base = r.lineage.latest.weights
    step = {"readouts.0.project.bias": np.full_like(base["readouts.0.project.bias"], 0.01)}
    r.merge_local("a", r.revision, step, samples=40)
    published = r.publish()
    assert published.merged_devices == 1
    moved = published.weights["readouts.0.project.bias"] - base["readouts.0.project.bias"]
    assert np.allclose(moved, 0.01, atol=1e-4)
    assert changed(base, published.weights) == {"readouts.0.project.bias"}


def test_collapsed_embeddings_are_not_published():
    r = refiner(collapse_share=0.5)
    feed(r)
    r.step()
    good = r.publish()
    with torch.no_grad():
        for readout in r.encoder.readouts:
            readout.project.weight.mul_(1e-4)
        r.encoder.readouts[0].project.bias.fill_(1.0)
        r.encoder.readouts[0].project.weight[0].fill_(1e-3)
    r.steps_since_publish = 1
    again = r.publish()
    assert "effective rank fell" in again.note and again.revision == good.revision
    assert not changed(encoder_weights(r.encoder), good.weights)


def test_labels_of_windows_are_learned_from():
    features, kind = sounds(64, seed=3)
    with_labels, without = refiner(), refiner()
    for i, x in enumerate(features):
        with_labels.add("a", i, 1000.0 + i, features=x)
        without.add("a", i, 1000.0 + i, features=x)
        assert with_labels.label("a", i, 1000.0 + i, f"kind {kind[i]}")
    assert not without.label("a", 3, 5.0, "of an earlier count") and not without.label("a", 999, 1.0, "never came")
    other = refiner()
    other.restore(with_labels.snapshot())
    assert [item.label for item in other.reservoir.items()] == [f"kind {k}" for k in kind]
    assert with_labels.step().task > without.step().task


def test_a_snapshot_continues_exactly():
    r = refiner(warm=40, keep_revisions=3)
    feed(r, "a", 40)
    r.warm_start()
    r.publish()
    feed_crossings(r, "b", 24, 5)
    z = embed_features(r.known_encoder(r.revision), sounds(60, seed=4)[0])
    for i, row in enumerate(z):
        r.add("c", i, embedding=row, revision=r.revision)
    r.step()
    r.merge_local("c", r.revision, {"exits.0.bias": np.full(32, 0.1, np.float32)}, 7)
    data = r.snapshot()

    other = refiner(warm=40, keep_revisions=3, seed=99)
    other.restore(data)
    assert other.revision == r.revision and other.buffer.window("c").frames.tolist() == list(range(60))
    for one in (r, other):
        for _ in range(3):
            assert one.step().skipped == ""
        for i, row in enumerate(z[:20]):
            one.add("c", 60 + i, embedding=row, revision=one.revision)
    ends = [one.publish() for one in (r, other)]
    assert ends[0].revision == ends[1].revision and ends[0].delta == ends[1].delta
    assert np.array_equal(r.mixture.means, other.mixture.means)
    assert r.snapshot() == other.snapshot()


def flip_a_weight(data):
    """The snapshot with one bit of its revision's weights changed, found through the safetensors header."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    start = 8 + size + header["revision.0/readouts.0.project.weight"]["data_offsets"][0]
    return data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: good[: len(good) // 2],
        lambda good: b"\x10" + b"\0" * 40,
        lambda good: b"",
        flip_a_weight,
        lambda good: good.replace(b"streamsplit-refiner-3", b"streamsplit-refiner-9"),
        lambda good: Refiner(make_encoder(EncoderSettings(width=0.5, embedding_dim=32))).snapshot(),
    ],
    ids=["half", "garbage", "empty", "one bit", "other format", "other encoder"],
)
def test_a_damaged_snapshot_is_refused_and_changes_nothing(damage):
    r = refiner()
    feed(r, count=20)
    r.step()
    bad = damage(r.snapshot())
    other = refiner()
    before = encoder_weights(other.encoder)
    with pytest.raises(CheckpointError):
        other.restore(bad)
    assert not changed(before, encoder_weights(other.encoder)) and len(other.reservoir) == 0


def test_memory_is_bounded_by_the_budget():
    r = refiner(reservoir_bytes=1 << 20)
    feed(r, "a", 400)
    assert r.reservoir.held_bytes <= 1 << 20
    assert len(r.snapshot()) < (1 << 20) + 6 * sum(a.nbytes for a in r.lineage.latest.weights.values())
