"""Parameters and multiply-accumulates, against hand counts and torch's own flop counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from streamsplit.encoders.factory import EncoderSettings, make_encoder


def test_the_second_residual_block_costs_what_a_hand_count_says():
    """Rows of table 2 at width 0.75: 16 -> 56 (1x1), 56 depthwise 3x3 stride 2, 56 -> 24 (1x1), maps 32x25 to 16x13."""
    cost = make_encoder().block_costs()[2]
    weights = 16 * 56 + 56 * 9 + 56 * 24
    norms = 2 * (56 + 56 + 24)
    assert cost.name == "residual2"
    assert cost.parameters == weights + norms
    assert cost.macs == 16 * 56 * 32 * 25 + 56 * 9 * 16 * 13 + 56 * 24 * 16 * 13
    assert cost.output_shape == (24, 16, 13)


def test_the_stem_carries_the_readout_of_the_input():
    cost = make_encoder().block_costs()[0]
    assert cost.parameters == 16 * 9 + 2 * 16 + (5 * 128 + 6 * 32) * 128 + 128
    assert cost.macs == 16 * 9 * 64 * 50 + (5 * 128 + 6 * 32) * 128


@pytest.mark.parametrize(
    ("name", "blocks", "total", "exits"), [("mobilenet", 13, 1_177_016, 5), ("resnet18", 9, 13_457_088, 4)]
)
def test_parameters_add_up_to_the_whole_encoder(name, blocks, total, exits):
    encoder = make_encoder(EncoderSettings(name=name, bottlenecks=()))
    costs = encoder.block_costs()
    assert len(costs) == encoder.num_blocks == blocks
    assert sum(p.numel() for p in encoder.parameters()) == total
    assert sum(cost.parameters for cost in costs) == total - exits * (128 * 128 + 128)
    assert make_encoder(EncoderSettings(name=name)).block_costs() == costs  # bottlenecks belong to no block


@pytest.mark.parametrize("name", ["mobilenet", "resnet18"])
@pytest.mark.parametrize(("bands", "frames"), [(128, 100), (64, 50)])
def test_multiply_accumulates_are_half_of_torchs_flops(name, bands, frames):
    encoder = make_encoder(EncoderSettings(name=name))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, bands, frames))
    means = 2 * 6 * 32 * frames  # of the course's segments: a weighted mean, no layer
    assert 2 * sum(cost.macs for cost in encoder.block_costs(bands, frames)) == counter.get_total_flops() - means


def test_shapes_are_those_that_cross():
    encoder = make_encoder()
    x = torch.zeros(1, 64, 50)
    for k, cost in enumerate(encoder.block_costs(64, 50), 1):
        assert tuple(encoder.forward_to(x, k).h.shape[1:]) == cost.output_shape


def test_counting_leaves_no_hooks_behind():
    encoder = make_encoder()
    encoder.block_costs()
    assert not any(module._forward_hooks for module in encoder.modules())
