"""The scale of every row and column of a matrix."""

from __future__ import annotations

import pytest
import torch

from rankfold.linalg import NonFiniteError
from rankfold.linalg.levels import levels


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(2, 2), (6, 24), (300, 50)])
def test_in_their_units_every_row_and_column_has_a_root_mean_square_of_one(shape):
    matrix = drawn(*shape)
    matrix[1] *= 1e4
    rows, columns = levels(matrix)
    squares = (matrix.double() / rows[:, None] / columns).square()
    torch.testing.assert_close(squares.mean(1), torch.ones_like(rows))
    torch.testing.assert_close(squares.mean(0), torch.ones_like(columns))


def test_they_follow_an_exact_rescaling():
    matrix, a, b = drawn(8, 5), torch.rand(8) + 0.01, 300 * torch.rand(5) + 1
    rows, columns = levels(matrix)
    other = levels((a[:, None] * matrix * b).double())
    wanted = (a * rows)[:, None] * (b * columns)
    torch.testing.assert_close(other[0][:, None] * other[1], wanted, rtol=1e-5, atol=0.0)


def test_rows_and_columns_of_zeros_have_none_and_count_in_no_mean():
    matrix = torch.zeros(6, 4)
    matrix[:4, 1:] = drawn(4, 3)
    rows, columns = levels(matrix)
    inner = levels(matrix[:4, 1:])
    torch.testing.assert_close(rows, torch.cat([inner[0], torch.zeros(2)]))
    torch.testing.assert_close(columns, torch.cat([torch.zeros(1), inner[1]]))
    assert all(not part.any() for part in levels(torch.zeros(3, 2)))


def test_where_there_are_none_they_stay_within_bounds():
    matrix = torch.eye(3)
    matrix[1] = matrix[0]  # two rows that have nothing but the same column
    rows, columns = levels(matrix)
    assert (rows[:, None] * columns).max() < 3


def test_what_is_not_finite_is_refused():
    with pytest.raises(NonFiniteError):
        levels(torch.tensor([[1.0, torch.nan]]))
