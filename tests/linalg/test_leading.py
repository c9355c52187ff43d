"""Leading triplets: errors that are those of the triplets, near the best of any rank, whatever the spectrum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rankfold.linalg import NonFiniteError
from rankfold.linalg.leading import leading, leading_of_product

SPECTRA = {
    "flat": lambda i: torch.ones_like(i),
    "harmonic": lambda i: 1 / i,
    "slow": lambda i: i**-0.3,
    "exponential": lambda i: torch.exp(-i / 4),
    "a step": lambda i: torch.where(i <= 5, 1.0, 0.5),
}


def matrix(spectrum: str, m: int = 260, n: int = 200, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(m, n, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return ((u * SPECTRA[spectrum](torch.arange(1, n + 1, dtype=torch.float64))) @ v.T).to(dtype)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("turned", [False, True])
def test_errors_are_within_a_percent_of_the_best_and_those_of_the_triplets(spectrum, turned):
    a = matrix(spectrum).T if turned else matrix(spectrum)
    found = leading(a, 12)
    assert not found.full
    assert len(found.values) >= 12
    best = torch.linalg.svdvals(a.double()).square()
    for rank in (0, 1, 5, 12):
        right, left = found.pair(rank)
        error = float((a.double() - left.double() @ right.double()).norm())
        assert error == pytest.approx(float(found.losses[rank]) ** 0.5, rel=1e-4)
        assert error <= 1.01 * float(best[rank:].sum()) ** 0.5


def test_one_pass_without_turning_would_not_be_near_enough(monkeypatch):
    """What the test above is worth."""
    from rankfold.linalg import leading as module

    monkeypatch.setattr("rankfold.linalg.leading.POWER", 0)
    monkeypatch.setattr("rankfold.linalg.leading.OVERSAMPLED", 0)
    a = matrix("a step")
    best = torch.linalg.svdvals(a.double()).square()[5:].sum()
    assert float(module.leading(a, 5).losses[5]) > 1.01**2 * float(best)


def test_a_matrix_of_low_rank_is_known_to_have_no_more():
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(300, 3, generator=generator), torch.randn(3, 200, generator=generator)
    found = leading(factors[0].double() @ factors[1].double(), 4)
    assert found.full
    assert float(found.losses[3]) < 1e-24 * float(found.losses[0])


def test_small_matrices_are_decomposed_whole():
    a = matrix("harmonic", 12, 9)
    found = leading(a, 2)
    assert found.full
    assert found.rest == 0
    torch.testing.assert_close(found.values, torch.linalg.svdvals(a).double(), rtol=1e-5, atol=1e-6)


def test_a_product_is_not_formed():
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(30, 4, generator=generator), torch.randn(4, 20, generator=generator)
    found = leading_of_product(left, right)
    right_, left_ = found.pair(4)
    torch.testing.assert_close(left_ @ right_, (left @ right).double(), rtol=1e-5, atol=1e-5)
    assert found.losses.tolist() == pytest.approx(
        [float((torch.linalg.svdvals((left.double() @ right.double()))[r:] ** 2).sum()) for r in range(5)]
    )


def test_what_is_refused():
    with pytest.raises(NonFiniteError):
        leading(torch.full((3, 3), float("nan")), 1)
    with pytest.raises(ValueError, match="at least 0"):
        leading(torch.ones(3, 3), -1)
