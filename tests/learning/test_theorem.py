import numpy as np
import pytest
import torch

from streamsplit.learning.theorem import TRACE_ROWS, GradientVariance


def run(meter, gradients):
    """Feeds gradients [steps, n, d] as a learner does: accumulated in .grad, each scaled by 1 / n."""
    weight = torch.zeros(gradients.shape[2], requires_grad=True)
    meter.watch([weight])
    for step in gradients:
        scale = 1.0 / len(step)
        weight.grad = None
        for own in step:
            with meter.mini_batch(scale):
                (weight @ torch.as_tensor(own) * scale).backward()
        meter.after_step(float(weight.grad.norm()), scale)
    return meter


def draw(steps, n=4, d=6, seed=0):
    return np.random.default_rng(seed).normal(0.5, 1.0, (steps, n, d)).astype(np.float32)


def test_every_steps_variance_and_norm_are_numpys():
    x = draw(20)
    trace = run(GradientVariance(), x).trace()
    assert trace.step.tolist() == list(range(1, 21))
    assert trace.sigma2 == pytest.approx(x.var(axis=1, ddof=1).sum(axis=1), rel=1e-4)
    assert trace.mean_norm2 == pytest.approx((x.mean(axis=1) ** 2).sum(axis=1), rel=1e-4)
    assert trace.noise_norm2 == pytest.approx(trace.sigma2 / 4)


def test_the_norm_less_its_noise_estimates_the_true_gradient():
    trace = run(GradientVariance(), draw(200)).trace()
    estimate = (trace.mean_norm2 - trace.noise_norm2).mean()
    assert estimate == pytest.approx(6 * 0.25, rel=0.1) and trace.mean_norm2.mean() > 1.3 * 6 * 0.25


def test_a_long_run_is_kept_whole_in_bounded_space():
    x = draw(3 * TRACE_ROWS + 7, n=2, d=2)
    trace = run(GradientVariance(), x).trace()
    own = x.var(axis=1, ddof=1).sum(axis=1)
    assert len(trace.step) <= TRACE_ROWS and trace.step[-1] == len(x)
    counts = np.diff(trace.step, prepend=0)
    assert (trace.sigma2 * counts).sum() == pytest.approx(own.sum(), rel=1e-4)
    assert trace.sigma2[0] == pytest.approx(own[: counts[0]].mean(), rel=1e-4) and counts[0] == 4


def test_a_saved_trace_goes_on_where_it_was():
    x = draw(TRACE_ROWS + 50, n=2, d=3)
    whole = run(GradientVariance(), x)
    half = run(GradientVariance(), x[:277])
    other = GradientVariance()
    other.load_state({name: array.copy() for name, array in half.state().items()})
    run(other, x[277:])
    for one, two in zip(whole.trace(), other.trace(), strict=True):
        assert np.array_equal(one, two)
    assert whole.sigma2 == other.sigma2


def test_a_state_without_a_trace_starts_one():
    meter = run(GradientVariance(), draw(3))
    old = GradientVariance()
    old.load_state({"scalars": meter.state()["scalars"]})
    assert old.sigma2 == meter.sigma2 and len(old.trace().step) == 0


def test_a_step_of_one_mini_batch_has_no_variance_and_leaves_no_row():
    meter = run(GradientVariance(), draw(5, n=1))
    assert meter.sigma2 is None and len(meter.trace().step) == 0
