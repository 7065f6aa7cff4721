import numpy as np
import pytest
import torch

from streamsplit.learning.contrastive import prediction_loss
from streamsplit.refinement.settings import RefinerSettings
from streamsplit.refinement.task import label_loss, pair_info_nce, task_loss


def unit(n, d=8, seed=0):
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)))
    return x / x.norm(dim=1, keepdim=True)


def slow_info_nce(first, second, frames, devices, temperature, mask):
    rows = torch.cat([first, second]).numpy()
    n, losses = len(rows), []
    for i in range(n):
        positive = (i + n // 2) % n
        terms = []
        for j in range(n):
            near = devices[i] == devices[j] and abs(int(frames[i]) - int(frames[j])) <= mask
            if j == positive or (j != i and not near):
                terms.append(np.exp(rows[i] @ rows[j] / temperature))
        losses.append(-np.log(np.exp(rows[i] @ rows[positive] / temperature) / sum(terms)))
    return float(np.mean(losses))


def test_info_nce_equals_a_slow_loop_with_near_windows_masked():
    first, second = unit(6), unit(6, seed=1)
    frames = np.array([0, 3, 50, 0, 2, 90, 1, 4, 51, 1, 3, 91])
    devices = ["a", "a", "a", "b", "b", "b"] * 2
    value = pair_info_nce(first, second, frames, devices, 0.2, mask_frames=4)
    assert float(value) == pytest.approx(slow_info_nce(first, second, frames, devices, 0.2, 4), rel=1e-9)
    unmasked = pair_info_nce(first, second, frames, devices, 0.2, mask_frames=0)
    assert float(unmasked) == pytest.approx(slow_info_nce(first, second, frames, devices, 0.2, 0), rel=1e-9)
    assert float(unmasked) > float(value)


def test_info_nce_is_finite_when_every_negative_is_masked():
    first, second = unit(3).requires_grad_(True), unit(3, seed=1)
    loss = pair_info_nce(first, second, np.zeros(6, dtype=np.int64), ["a"] * 6, 0.1, mask_frames=5)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12) and bool(torch.isfinite(first.grad).all())


def test_windows_marked_as_alike_are_no_negatives_but_the_positive_stays():
    first, second = unit(4), unit(4, seed=1)
    frames, devices = np.arange(8) * 100, list("abcdabcd")
    alike = torch.zeros(8, 8, dtype=torch.bool)
    alike[0, [1, 2]] = alike[5, [1, 7]] = True  # 5 and 1 are the positive pair
    rows = torch.cat([first, second]).numpy()
    losses = []
    for i in range(8):
        positive = (i + 4) % 8
        terms = [np.exp(rows[i] @ rows[j] / 0.2) for j in range(8) if j == positive or (j != i and not alike[i, j])]
        losses.append(-np.log(np.exp(rows[i] @ rows[positive] / 0.2) / sum(terms)))
    value = pair_info_nce(first, second, frames, devices, 0.2, 0, alike=alike)
    assert float(value) == pytest.approx(np.mean(losses), rel=1e-9)


def test_prediction_loss_is_zero_at_the_target_and_two_at_its_opposite():
    z = unit(5)
    assert float(prediction_loss(z, z)) == pytest.approx(0.0, abs=1e-12)
    assert float(prediction_loss(z, -z)) == pytest.approx(2.0)


def test_the_task_is_contrast_and_the_predictions_of_the_others_and_the_own_target():
    z, targets = unit(8), unit(8, seed=2)
    frames, devices = np.arange(8) * 100, list("abcdabcd")
    settings = RefinerSettings(contrast_weight=0.5, target_weight=3.0, own_weight=2.0, mask_similarity=0.2)
    loss = task_loss(z, targets, frames, devices, settings)
    similar = (targets @ targets.T).numpy() > 0.2
    assert similar.sum() > 8  # some besides the diagonal
    contrast = pair_info_nce(z[:4], z[4:], frames, devices, 0.2, 16, alike=torch.from_numpy(similar))
    swapped = torch.cat([targets[4:], targets[:4]])
    other, own = 1 - (z * swapped).sum(1).mean(), 1 - (z * targets).sum(1).mean()
    assert float(loss.contrast) == pytest.approx(float(contrast)) and float(loss.target) == pytest.approx(float(other))
    assert float(loss.total) == pytest.approx(float(0.5 * contrast + 3.0 * other + 2.0 * own))


def test_without_targets_the_task_is_contrast_alone():
    settings = RefinerSettings(contrast_weight=2.0, target_weight=0.0, own_weight=0.0, mask_similarity=1.0)
    assert not settings.needs_targets and RefinerSettings().needs_targets
    z, frames, devices = unit(6), np.arange(6) * 100, list("abcabc")
    loss = task_loss(z, None, frames, devices, settings)
    plain = pair_info_nce(z[:3], z[3:], frames, devices, 0.2, 16)
    assert float(loss.total) == pytest.approx(2.0 * float(plain)) and float(loss.target) == 0.0


def test_label_loss_is_low_for_separated_classes_and_high_for_swapped_ones():
    z = torch.eye(8, dtype=torch.float64)[[0, 0, 0, 1, 1, 1]]
    right = float(label_loss(z, np.array([0, 0, 0, 1, 1, 1]), 0.1))
    wrong = float(label_loss(z, np.array([0, 1, 0, 1, 0, 1]), 0.1))
    assert right == pytest.approx(np.log1p(np.exp(-10.0)), rel=1e-6)
    assert wrong > 1.0
    assert float(label_loss(z, np.array([2, 2, 2, 2, 2, -1]), 0.1)) == 0.0
