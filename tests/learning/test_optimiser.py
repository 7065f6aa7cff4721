"""The optimiser: Adam as torch has it, without what torch's loads, and its state for snapshots."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from streamsplit.learning.optimiser import Adam, ParameterGroup  # noqa: E402


def layers() -> torch.nn.Sequential:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Flatten(), torch.nn.Linear(12, 4))
    return net.to(memory_format=torch.channels_last)


def groups(net: torch.nn.Sequential) -> list[ParameterGroup]:
    return [ParameterGroup(list(net[0].parameters()), 1e-2, 1e-2), ParameterGroup([*net[2].parameters()], 3e-3, 3e-3)]


def descend(net: torch.nn.Module, seed: int) -> None:
    x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    net.zero_grad(set_to_none=True)
    net(x).square().mean().backward()


def test_it_moves_parameters_as_torchs_adam_does() -> None:
    ours = layers()
    theirs = copy.deepcopy(ours)
    mine = Adam(groups(ours))
    oracle = torch.optim.Adam([{"params": g.parameters, "lr": g.full_rate} for g in groups(theirs)])
    for seed in range(30):
        descend(ours, seed)
        descend(theirs, seed)
        mine.step()
        oracle.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_parameter_without_a_gradient_stays_and_load_lowers_the_rate() -> None:
    net = layers()
    adam = Adam(groups(net))
    before = copy.deepcopy(net)
    descend(net, 0)
    net[0].weight.grad = None
    adam.slow_down(1.0)
    assert [group.rate for group in adam.groups] == pytest.approx([1e-2 / 16, 3e-3 / 16])
    adam.step()
    assert torch.equal(net[0].weight, before[0].weight)
    moved = (net[2].weight - before[2].weight).abs().max()
    assert float(moved) == pytest.approx(3e-3 / 16, rel=1e-3)  # Adam's first step is the rate itself


def test_its_state_goes_on_bit_for_bit() -> None:
    first = layers()
    one = Adam(groups(first))
    for seed in range(3):
        descend(first, seed)
        one.step()
    descend(first, 3)  # a half-done accumulation
    second = copy.deepcopy(first)
    other = Adam(groups(second))
    other.load_state({name: np.array(array) for name, array in one.state().items()}, [0.5, 0.25])
    assert [group.full_rate for group in other.groups] == [0.5, 0.25]
    for each in (one, other):
        each.slow_down(0.0)
    other.groups[0].rate, other.groups[1].rate = (group.rate for group in one.groups)
    for adam in (one, other):
        adam.step()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(
        p.stride() == g.stride()
        for p, g in zip(second.parameters(), [p.grad for p in second.parameters()], strict=True)
    )


def test_learning_does_not_load_torchs_compiler() -> None:
    code = """
import sys, numpy as np
from streamsplit.encoders.mobilenet import MobileNetV3Small
from streamsplit.learning.learner import EdgeLearner, LearnerSettings
s = LearnerSettings(batch_windows=4, accumulate=1, buffer_windows=40, run_windows=5, warm_start_windows=24)
learner = EdgeLearner(MobileNetV3Small(0.25, 32, np.random.default_rng(0)), s)
rng = np.random.default_rng(0)
for i in range(27):
    learner.observe(rng.normal(-7, 2, (128, 24)).astype(np.float32), i)
assert learner.steps >= 2, learner.steps
print([name for name in ("torch._dynamo", "sympy", "scipy", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
