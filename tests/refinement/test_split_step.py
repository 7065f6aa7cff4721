"""Split training at the server: its gradient at the cut is the uncut network's, and who asks gets one or is counted."""

import numpy as np
import pytest
import torch

from streamsplit.encoders.crossing import Crossing
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.errors import RevisionError
from streamsplit.refinement.batch import embed_windows, stored_crossing, stored_features
from streamsplit.refinement.hybrid import HybridSettings
from streamsplit.refinement.refiner import Refiner, RefinerSettings
from streamsplit.refinement.reservoir import Reservoir
from streamsplit.refinement.split_step import (
    PATIENCE,
    AskedWindows,
    crossing_leaf,
    embed_with_leaves,
    split_gradients,
)
from streamsplit.refinement.task import pair_info_nce
from streamsplit.weights.revision import encoder_weights

FRAMES = 40
SMALL = EncoderSettings(width=0.25, embedding_dim=32)
OPTIONS = RefinerSettings()


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


def sounds(count, seed=0):
    rng = np.random.default_rng(seed)
    return (-7 + rng.normal(0, 2, (count, 128, 1)) + rng.normal(0, 1, (count, 128, FRAMES))).astype(np.float32)


def refiner(**options):
    return Refiner(
        make_encoder(SMALL),
        RefinerSettings(**{"batch_windows": 16, "min_windows": 8, "warm_start_windows": 0, **options}),
    )


def crossing_of(encoder, x, block):
    with torch.no_grad():
        return encoder.forward_to(torch.from_numpy(x)[None], block)


def fill(r, device, count, seed=0):
    for i, x in enumerate(sounds(count, seed)):
        r.add(device, i, features=x)


def ask(r, device, window, block=5, seed=77):
    x = sounds(1, seed)[0]
    return r.ask(device, window, crossing_of(r.known_encoder(r.revision), x, block), block, r.revision)


@pytest.mark.parametrize("block", [1, 6, 12])
def test_cut_gradients_of_a_mixed_batch_are_the_uncut_networks(block):
    """Oracle: autograd through one graph, its crossing rounded to half precision straight-through."""
    encoder, xs = make_encoder(SMALL), sounds(8)
    cut = [0, 1, 5]
    batch = [stored_features("a", 4 * row, x) for row, x in enumerate(xs)]
    for row in cut:
        batch[row] = stored_crossing(encoder, "a", 4 * row, crossing_of(encoder, xs[row], block), block, "r")
    frames = np.arange(8) * 4

    def loss_of(z):
        return pair_info_nce(z[:4], z[4:], frames, ["a"] * 8, 0.2, 2)

    trained = list(encoder.parameters())
    own = {row: encoder.forward_to(torch.from_numpy(xs[row])[None], block) for row in cut}
    rows = []
    for row in range(8):
        if row in own:
            h, partial = own[row]
            h = h + (h.detach().half().float() - h.detach())
            rows.append(encoder.forward_from(Crossing(h, partial), block))
        else:
            rows.append(embed_windows(encoder, [batch[row]]))
    uncut = torch.autograd.grad(loss_of(torch.cat(rows)), trained, allow_unused=True)

    leaves = {row: crossing_leaf(batch[row], torch.device("cpu")) for row in cut}
    z = embed_with_leaves(encoder, batch, leaves)
    assert torch.allclose(z, torch.cat(rows), atol=1e-5)
    loss_of(z).backward()
    gradients = split_gradients(batch, leaves)
    assert [item.item.window for item in gradients] == [4 * row for row in cut]
    for row, found in zip(cut, gradients, strict=True):  # the device's part of the backward pass
        device = encoder.forward_to(torch.from_numpy(xs[row])[None], block)
        outputs = [(o, g / len(batch)) for o, g in zip(device, found.gradient, strict=True)]
        torch.autograd.backward([o for o, _ in outputs], [g for _, g in outputs])
    for parameter, expected in zip(trained, uncut, strict=True):
        if expected is None:
            assert parameter.grad is None or not parameter.grad.any()
        else:
            assert torch.allclose(parameter.grad, expected, rtol=1e-3, atol=2e-5 * float(expected.abs().max()) + 1e-9)


def test_a_step_answers_the_windows_that_asked_and_trains_the_upper_blocks():
    r = refiner()
    fill(r, "a", 12)
    fill(r, "b", 12, seed=1)
    before = encoder_weights(r.encoder)
    assert ask(r, "a", 12) and ask(r, "b", 5)
    report = r.step()
    assert sorted((g.item.device, g.item.window) for g in report.gradients) == [("a", 12), ("b", 5)]
    assert all(
        float(g.gradient.h.abs().max()) > 0 and float(g.gradient.partial.abs().max()) > 0 for g in report.gradients
    )
    assert report.samples == 16 and len(r.asked) == 0 and r.asked.unanswered == 0
    assert any(not np.array_equal(before[name], array) for name, array in encoder_weights(r.encoder).items())
    assert r.step().gradients == ()


def test_returned_gradients_do_not_shrink_with_the_batch():
    lengths = []
    for size in (8, 32):
        r = refiner(
            batch_windows=size, contrast_weight=0.0, loss=HybridSettings(wasserstein_weight=0.0, laplacian_weight=0.0)
        )
        fill(r, "a", 40)
        ask(r, "a", 40)
        lengths.append(float(r.step().gradients[0].gradient.partial.norm()))
    assert 0.2 < lengths[0] / lengths[1] < 5.0


def test_a_window_without_a_neighbour_waits_a_few_steps_and_is_then_counted():
    r = refiner()
    fill(r, "a", 12)
    ask(r, "lonely", 3)
    for step in range(PATIENCE):
        assert len(r.asked) == 1, step
        assert r.step().gradients == ()
    assert len(r.asked) == 0 and r.asked.unanswered == 1


def test_a_neighbour_that_comes_later_still_helps():
    r = refiner()
    fill(r, "a", 12)
    ask(r, "lonely", 3)
    r.step()
    r.add("lonely", 4, features=sounds(1, 5)[0])
    assert len(r.step().gradients) == 1


def test_waiting_windows_are_bounded_and_at_most_half_of_a_batch():
    asked = AskedWindows(capacity=5)
    encoder, reservoir = make_encoder(SMALL), Reservoir(1 << 24)
    crossed = crossing_of(encoder, sounds(1)[0], 5)
    for window in range(8):
        asked.add(stored_crossing(encoder, "a", window, crossed, 5, "r"))
        reservoir.add(stored_features("a", window, sounds(1, window)[0]))
    assert len(asked) == 5 and asked.unanswered == 3
    pairs = asked.pairs(reservoir, np.random.default_rng(0), 2, OPTIONS)
    assert [item.window for item, _ in pairs] == [3, 4] and len(asked) == 3
    assert all(1 <= abs(item.window - partner.window) <= 4 for item, partner in pairs)


def test_partners_are_not_taken_across_a_new_stretch():
    reservoir, rng = Reservoir(1 << 24), np.random.default_rng(0)
    for window in (0, 1, 3):
        reservoir.add(stored_features("a", window, sounds(1, window)[0], starts=window == 3))
    asked = stored_features("a", 2, sounds(1)[0])
    assert {reservoir.partner(rng, asked).window for _ in range(40)} == {0, 1}
    asked.starts = True
    assert reservoir.partner(rng, asked) is None
    assert reservoir.partner(rng, stored_features("b", 2, sounds(1)[0])) is None


def test_what_was_asked_in_an_earlier_space_gets_nothing():
    r = refiner(warm_start_windows=16)
    first = r.revision
    crossed = crossing_of(r.known_encoder(first), sounds(1)[0], 5)
    assert r.ask("a", 20, crossed, 5, first)
    fill(r, "a", 16)
    assert r.warm_start()
    assert len(r.asked) == 0 and r.asked.unanswered == 1
    assert not r.ask("a", 20, crossed, 5, first)
    with pytest.raises(RevisionError, match="expected one of"):
        r.ask("a", 20, crossed, 5, "0" * 64)
