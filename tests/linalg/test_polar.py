"""A gradient whose singular values are made alike."""

from __future__ import annotations

import pytest
import torch

from rankfold.linalg import polar
from rankfold.linalg.polar import nearly_orthogonal


@pytest.mark.parametrize("shape", [(6, 6), (5, 12), (12, 5)])
def test_singular_values_become_alike_and_directions_stay(shape):
    generator = torch.Generator().manual_seed(0)
    u, s, vh = torch.linalg.svd(torch.randn(shape, dtype=torch.float64, generator=generator), full_matrices=False)
    values = torch.logspace(0, -2, len(s), dtype=torch.float64)
    found = nearly_orthogonal(7.0 * (u * values) @ vh)
    turned = u.mT @ found @ vh.mT
    assert torch.allclose(turned, torch.diag(turned.diagonal()), atol=1e-10)  # the same singular vectors
    assert (turned.diagonal() > 0.6).all()
    assert (turned.diagonal() < 1.3).all()
    torch.testing.assert_close(found, nearly_orthogonal(1e-3 * (u * values) @ vh))  # whatever its scale


def test_zero_stays_zero():
    assert not nearly_orthogonal(torch.zeros(3, 4)).any()


def test_single_precision_is_as_good_whatever_the_device_multiplies_in():
    generator = torch.Generator().manual_seed(0)
    u, s, vh = torch.linalg.svd(torch.randn((40, 60), generator=generator), full_matrices=False)
    found = nearly_orthogonal((u * torch.logspace(0, -1.5, len(s))) @ vh)
    assert found.dtype == torch.float32
    values = torch.linalg.svdvals(found)
    assert (values > 0.6).all()
    assert (values < 1.3).all()
    assert float((found * (u @ vh)).sum() / found.norm() / (u @ vh).norm()) > 0.97


def test_three_rounds_take_a_hundredth_to_near_one():
    """The best three rounds from there end within .269 of one, as a linear program of each says; without room for
    rounding."""
    values = torch.cat([torch.logspace(-2, 0, 400, dtype=torch.float64), torch.linspace(0.01, 1, 400).double()])
    for a, b, c in polar._ROUNDS:
        values = a * values + b * values**3 + c * values**5
    assert 0.65 < float(values.min()) < float(values.max()) < 1.3


@pytest.mark.parametrize("values", [[1.0, 0.01, 0.001], [1.0, 0.02, 0.02], [1.0, 1.0, 1.0]])
def test_rounding_leads_no_value_astray(values):
    """What is multiplied in bfloat16 may come to lie beyond the values for which a round is made."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        u, _, vh = torch.linalg.svd(torch.randn((3, 3), generator=generator))
        assert float(torch.linalg.matrix_norm(nearly_orthogonal(u * torch.tensor(values) @ vh), 2)) < 1.5


@pytest.mark.parametrize("size", [1e-40, 1e-23, 1e25, 1e38])
def test_a_matrix_of_any_size_is_one_of_its_directions(size):
    matrix = torch.randn((5, 8), generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    found = nearly_orthogonal(matrix * size)
    assert float((found - nearly_orthogonal(matrix)).norm()) < (0.05 if size > 1e-38 else 0.1)
    assert nearly_orthogonal(matrix[:0]).shape == (0, 8)
