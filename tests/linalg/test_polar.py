"""A gradient whose singular values are made alike."""

from __future__ import annotations

import pytest
import torch

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
    found = nearly_orthogonal((u * torch.logspace(0, -2, len(s))) @ vh)
    assert found.dtype == torch.float32
    values = torch.linalg.svdvals(found)
    assert (values > 0.6).all()
    assert (values < 1.3).all()
    assert float((found * (u @ vh)).sum() / found.norm() / (u @ vh).norm()) > 0.97
