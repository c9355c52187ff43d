"""Samples are counted, and not batches or members of a pair, wherever something depends on how many there are."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader, TensorDataset

import rankfold as rf
from rankfold.pipeline.adaptation import AdaptSettings, _samples
from rankfold.pipeline.compression.outcome.heldout import _Sums
from rankfold.pipeline.compression.outcome.remarks import samples_known


def forms(x: Tensor, y: Tensor) -> dict:
    return {
        "pair": (x, y),
        "data set": TensorDataset(x, y),
        "loader": DataLoader(TensorDataset(x, y), batch_size=50),
        "batches": [(x[i : i + 50], y[i : i + 50]) for i in range(0, len(x), 50)],
    }


@pytest.mark.parametrize("form", ["pair", "data set", "loader", "batches"])
def test_what_was_trained_on_validation_is_told_in_every_form(form):
    scores, right = torch.eye(2).repeat(150, 1), torch.tensor([0, 1]).repeat(150)
    known, new = (rf.evaluate(nn.Identity(), (scores, each)) for each in (right, right.roll(1, 0).clamp_max(0)))
    (said,) = samples_known(known, new, forms(scores, right)[form], "test")
    assert "probably trained on the validation split" in said


def test_a_pair_is_adapted_to_for_as_many_epochs_as_a_data_set():
    x, y = torch.zeros(20_000, 1), torch.zeros(20_000, dtype=torch.long)
    counts = {form: _samples(train, 32) for form, train in forms(x, y).items()}
    assert counts == {"pair": 20_000, "data set": 20_000, "loader": 400 * 32, "batches": 400 * 32}  # as many steps
    assert AdaptSettings().filled(1000, counts["pair"])[0] == 3


def test_sums_of_errors_lie_where_the_outputs_do():
    with FakeTensorMode(allow_non_fake_inputs=True):
        rows = torch.empty(8, 5, dtype=torch.float64, device="cuda")
        sums = _Sums.like(rows)
        sums.add(rows, -rows)
    assert (sums.count, sums.output.device.type, tuple(sums.difference.shape)) == (8, "cuda", (5,))
