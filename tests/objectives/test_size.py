"""How many samples a batch holds where its first tensor has one row for all of them."""

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.batches import batches_of, divisible, samples_of, size_of

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
TABLE = torch.zeros(1, 4)


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 1)

    def forward(self, a, b):
        return self.inner(a + b)


@pytest.mark.parametrize(
    "objective", [rf.objective("mae", loss=lambda out, batch: (out - batch[1]).abs().mean()), "teacher"]
)
def test_a_table_for_all_samples_may_come_first(objective):
    """Every batch counted as one sample, so that a mean over batches of two sizes was another one."""
    net, other = Sum(), Sum()
    parts = [(X[:60], X[:60, :1]), (X[60:] * 100, X[60:, :1])]
    found = [
        rf.evaluate(net, batches, objective=objective, teacher=other)
        for batches in ([((TABLE, x), y) for x, y in parts], [((x, TABLE), y) for x, y in parts])
    ]
    assert found[0].count == 64
    assert found[0] == found[1]


def test_limits_count_samples_and_cut_the_tensors_that_have_a_row_for_each():
    batches = [((TABLE, X[:16]),) for _ in range(20)]
    assert [size_of(batch) for batch in batches_of(batches, limit=40)] == [16, 16, 8]
    *_, ((table, x),) = batches_of(batches, limit=40)
    assert (table is TABLE, torch.equal(x, X[:8])) == (True, True)
    ((kept, rows),) = samples_of(batches[0], 16, torch.tensor([3, 5]))
    assert (kept is TABLE, torch.equal(rows, X[[3, 5]])) == (True, True)
    assert divisible(((TABLE, X[:16]), {}), 16)


def ones(*shapes):
    return tuple(torch.ones(shape) for shape in shapes)


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        ({"positions": torch.arange(7)[None], "tokens": torch.ones(5, 7)}, 5),
        ((ones((1, 1, 7, 7), (5, 7, 4)), torch.ones(5)), 5),  # a mask for all texts, where targets count
        ((ones((1, 7, 4), (3, 2), (5, 7, 4)), torch.ones(5)), 5),
        # one sample alone: beside the text of a picture its patches, beside a series the state of two layers
        ({"input_ids": torch.ones(1, 7), "pixel_values": torch.ones(64, 12)}, 1),
        ({"input_ids": torch.ones(1, 7), "cache_position": torch.arange(7), "labels": torch.ones(1, 7)}, 1),
        ((ones((1, 7, 4), (2, 1, 6)),), 1),
        ((ones((1, 3, 9, 9), (5, 4)), torch.ones(1)), 1),
        ((ones((5, 4), (1, 4)), torch.ones(5)), 5),
        ((ones((20, 8), (2, 60)), torch.ones(4)), 20),  # nodes of graphs, and the edges between them
    ],
)
def test_a_single_row_is_one_sample_or_for_all(batch, size):
    assert size_of(batch) == size
