"""Residual quantisation against an exhaustive search, and codebooks that find what is in the data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from streamsplit.codec.tinystream.quantizer import ResidualQuantizer, nearest, perplexity
from streamsplit.errors import CutError


def quantizer(count: int = 2, size: int = 8, dim: int = 3) -> ResidualQuantizer:
    made = ResidualQuantizer(count, size, dim)
    generator = torch.Generator().manual_seed(5)
    made.codebooks.copy_(torch.randn(count, size, dim, generator=generator) * torch.tensor([1.0, 0.3])[:, None, None])
    made.filled.fill_(True)
    return made.eval()


def test_nearest_is_what_distances_say() -> None:
    rng = np.random.default_rng(0)
    rows, entries = rng.standard_normal((50, 4)), rng.standard_normal((9, 4))
    expected = ((rows[:, None] - entries[None]) ** 2).sum(-1).argmin(1)
    found = nearest(torch.from_numpy(rows), torch.from_numpy(entries))
    assert found.tolist() == expected.tolist()


def test_each_codebook_quantises_what_the_ones_before_leave() -> None:
    made, z = quantizer(), torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    quantized, indices, commitment = made(z)
    books = made.codebooks.numpy()
    for item, frame in itertools.product(range(2), range(5)):
        left = z[item, :, frame].numpy().copy()
        for number in range(2):
            best = int(((left - books[number]) ** 2).sum(-1).argmin())
            assert indices[item, number, frame] == best
            left -= books[number][best]
        np.testing.assert_allclose(quantized[item, :, frame], z[item, :, frame].numpy() - left, atol=1e-6)
    assert commitment.item() == pytest.approx(float(((quantized - z) ** 2).mean()))
    assert torch.equal(made.encode(z), indices)
    torch.testing.assert_close(made.decode(indices), quantized, rtol=0, atol=1e-6)


def test_fewer_quantizers_are_the_first_ones() -> None:
    made, z = quantizer(), torch.randn(2, 3, 5)
    indices = made.encode(z)
    assert torch.equal(made.encode(z, 1), indices[:, :1])
    used = made(z, torch.tensor([1, 2]))
    torch.testing.assert_close(used.quantized[0], made.decode(indices[:1, :1])[0])
    torch.testing.assert_close(used.quantized[1], made.decode(indices[1:])[0])


def test_gradients_pass_straight_through_and_the_commitment_pulls_the_latent() -> None:
    made = quantizer()
    z = torch.randn(1, 3, 4, requires_grad=True)
    quantized = made(z)
    (quantized.quantized * 3).sum().backward(retain_graph=True)
    assert torch.equal(z.grad, torch.full_like(z, 3.0))
    z.grad = None
    quantized.commitment.backward()
    torch.testing.assert_close(z.grad, 2 * (z.detach() - quantized.quantized.detach()) / z.numel())


def test_codebooks_find_the_points_that_the_data_are_made_of() -> None:
    generator = torch.Generator().manual_seed(2)
    points = 4 * torch.randn(8, 3, generator=generator)
    made = ResidualQuantizer(1, 8, 3, decay=0.9).train()
    for _ in range(200):
        rows = points[torch.randint(8, (64,), generator=generator)] + 0.01 * torch.randn(64, 3, generator=generator)
        made(rows.T[None])
    distances = torch.cdist(points, made.codebooks[0]).min(1).values
    assert distances.max() < 0.05  # every point has an entry, though the first batch's draw had some twice
    once = made.encode(points.T[None])
    assert perplexity(once, 8).item() == pytest.approx(8.0)
    assert perplexity(once.expand(-1, 2, -1).clone().index_fill_(1, torch.tensor([1]), 3), 8)[1].item() == 1.0
    assert made.revived == 0


def test_an_entry_that_nothing_chooses_comes_back_into_the_data() -> None:
    made = ResidualQuantizer(1, 4, 2, decay=0.5).train()
    rows = torch.randn(1, 2, 400, generator=torch.Generator().manual_seed(0))
    made(rows)
    made.codebooks[0, 3] = made.sums[0, 3] = 1e3
    revived = 0
    for _ in range(8):
        made(rows)
        revived += made.revived
    assert revived >= 1
    assert made.codebooks[0].abs().max() < 5


def test_the_same_generator_gives_the_same_codebooks() -> None:
    def trained() -> torch.Tensor:
        made = ResidualQuantizer(2, 16, 3).train()
        made.generator.manual_seed(7)
        generator = torch.Generator().manual_seed(1)
        for _ in range(5):
            made(torch.randn(2, 3, 20, generator=generator))
        return made.codebooks

    assert torch.equal(trained(), trained())


def test_evaluation_leaves_the_codebooks_alone() -> None:
    made = quantizer()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made(torch.randn(2, 3, 50))
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


@pytest.mark.parametrize(
    "indices",
    [torch.zeros(1, 3, 4).long(), torch.zeros(2, 4).long(), torch.full((1, 2, 4), 8), -torch.ones(1, 2, 4).long()],
)
def test_indices_that_no_codebook_has_are_refused(indices: torch.Tensor) -> None:
    with pytest.raises(CutError, match="tinystream: got"):
        quantizer().decode(indices)
