"""Half-whitened principal directions against numpy's SVD and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from streamsplit.encoders.pca import fit_pca
from streamsplit.errors import EncoderError


def rows(n: int, g: int, rank: int | None = None, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rank = rank or min(n, g)
    scales = 0.9 ** np.arange(rank)
    return (rng.standard_normal((n, rank)) * scales @ rng.standard_normal((rank, g)) + 3).astype(np.float32)


@pytest.mark.parametrize(("n", "g"), [(200, 50), (40, 300)])
def test_projections_have_the_half_whitened_spectrum(n, g):
    """Both Gram routes: singular values of the projected rows are the square roots of the rows' own."""
    x = rows(n, g)
    dim = 16
    fitted = fit_pca(x, dim)
    own = np.linalg.svd(x - x.mean(0), compute_uv=False)[:dim]
    got = np.linalg.svd(fitted(x), compute_uv=False)
    np.testing.assert_allclose(got / got[0], np.sqrt(own / own[0]), rtol=2e-3)
    np.testing.assert_allclose(fitted(x).mean(0), 0, atol=1e-3)
    assert np.square(fitted(x)).mean() == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(("n", "g"), [(200, 50), (40, 300)])
def test_the_kept_space_and_its_share_are_scikit_learns(n, g):
    x = rows(n, g)
    fitted = fit_pca(x, 16)
    reference = PCA(16, svd_solver="full").fit(x)
    assert fitted.explained == pytest.approx(reference.explained_variance_ratio_.sum(), rel=1e-4)
    basis = np.linalg.qr(fitted.matrix.T)[0].T
    overlap = np.linalg.svd(basis @ reference.components_.T, compute_uv=False)
    np.testing.assert_allclose(overlap, 1, atol=1e-3)


def test_the_random_turn_spreads_variance_over_the_components():
    projected = fit_pca(rows(400, 60), 16)(rows(400, 60))
    unturned = np.sqrt(np.linalg.svd(rows(400, 60) - rows(400, 60).mean(0), compute_uv=False)[:16])
    assert projected.var(0).max() / projected.var(0).min() < (unturned[0] / unturned[-1]) ** 2 / 2


def test_fewer_directions_than_asked_for_give_a_lower_rank():
    x = rows(60, 80, rank=5)
    fitted = fit_pca(x, 16)
    assert fitted.rank == 5 and fitted.matrix.shape == (16, 80)
    assert fitted.explained == pytest.approx(1.0, abs=1e-4)
    assert np.linalg.matrix_rank(fitted.matrix, tol=1e-3 * np.linalg.norm(fitted.matrix, 2)) == 5


def test_more_rows_than_the_limit_are_sampled_by_seed():
    x = rows(300, 20)
    assert np.array_equal(fit_pca(x, 4, seed=1, max_rows=50).matrix, fit_pca(x, 4, seed=1, max_rows=50).matrix)
    assert not np.array_equal(fit_pca(x, 4, seed=1, max_rows=50).mean, fit_pca(x, 4, seed=2, max_rows=50).mean)


def test_useless_rows_are_refused():
    with pytest.raises(EncoderError, match="at least 2 rows"):
        fit_pca(np.zeros((1, 8)))
    with pytest.raises(EncoderError, match="identical"):
        fit_pca(np.ones((5, 8)))
    with pytest.raises(EncoderError, match="NaN"):
        fit_pca(np.full((5, 8), np.inf))
