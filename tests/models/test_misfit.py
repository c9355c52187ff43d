"""Inputs that do not fit: the layer, what it takes and what came, in one line."""

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.batches import InputError, forward
from rankfold.costs import model_cost

IDS = torch.zeros(4, 6, dtype=torch.int64)
CASES = {
    "width": (nn.Linear(20, 8), torch.randn(4, 21), "takes 20 values in the last axis, and was given 4×21 of float32"),
    "whole numbers": (nn.Conv2d(3, 8, 3), torch.randn(4, 1, 9, 9), r"takes (samples, 3 channels, size, size)"),
    "axes": (nn.Conv1d(3, 8, 3), torch.randn(2, 4, 3, 9), "takes (samples, 3 channels, size)"),
    "id": (nn.Embedding(10, 4), IDS + 10, "takes whole numbers from 0 to 9, and was given 4×6 of int64"),
    "negative id": (nn.Embedding(10, 4), IDS - 1, "takes whole numbers from 0 to 9"),
    "norm": (nn.LayerNorm((5, 3)), torch.randn(4, 3, 5), "takes 5×3 values in the last axes"),
    "channels": (nn.BatchNorm1d(7), torch.randn(4, 8), "takes 7 channels in the second axis"),
    "recurrent": (nn.LSTM(5, 8), torch.randn(4, 3, 6), "takes 5 values in the last axis"),
    "attention": (nn.TransformerEncoderLayer(8, 2, 16), torch.randn(4, 3, 6), "takes 8 values in the last axis"),
    "images of bytes": (
        nn.Conv2d(1, 2, 3),
        torch.zeros(2, 1, 5, 5, dtype=torch.uint8),
        "takes (samples, 1 channels, size, size), of floating-point numbers, and was given 2×1×5×5 of uint8",
    ),
    "whole numbers into a normalisation": (
        nn.BatchNorm1d(6),
        IDS,
        "takes 6 channels in the second axis, of floating-point",
    ),
    "integers": (nn.Linear(6, 3), IDS, "takes 6 values in the last axis, of floating-point numbers"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_layer_is_named(case):
    layer, x, said = CASES[case]
    model = nn.Sequential(nn.Identity(), nn.Sequential(nn.Identity(), layer)).eval()
    ways = [lambda: forward(model, x), lambda: model_cost(model, x)]
    for called in ways if x.is_floating_point() else ways[:1]:  # costs are counted without values
        with pytest.raises(InputError) as caught:
            called()
        assert str(caught.value).startswith("1.1")
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is not None


def test_a_layer_in_training_is_named_as_the_one_that_it_stands_for():
    model = rf.dlrt_(nn.Sequential(nn.ReLU(), nn.Linear(40, 20)), 4)
    with pytest.raises(InputError, match=r"^1 \(Linear\) takes 40 values in the last axis, and was given 4×32"):
        forward(model, torch.randn(4, 32))


@pytest.mark.parametrize(
    ("layer", "sample", "hint"),
    [
        (nn.Linear(20, 8), torch.randn(20), True), (nn.Conv2d(3, 8, 3), torch.randn(3, 9, 9), True),
        (nn.Linear(20, 8), torch.randn(4, 21), False), (nn.Conv2d(3, 8, 3), torch.randn(2, 1, 9, 9), False),
    ],
)  # fmt: skip
def test_a_list_of_samples_is_told_from_one_of_batches(layer, sample, hint):
    with pytest.raises(InputError) as caught:
        rf.profile(nn.Sequential(layer, nn.ReLU()), [sample] * 8)
    assert ("with a batch axis (a list is one of batches: torch.stack its samples)" in str(caught.value)) == hint


def test_arrays_are_refused_with_what_makes_tensors_of_them():
    for data in (torch.randn(8, 20).numpy(), [torch.randn(20).numpy()]):
        with pytest.raises(TypeError, match=r"ndarray .*torch\.as_tensor makes one of an array"):
            rf.profile(nn.Sequential(nn.Linear(20, 8)), data)


def test_every_way_in_says_it_and_a_factored_layer_too():
    model = nn.Sequential(nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 4)).eval()
    wrong, targets = torch.randn(64, 21), torch.arange(64) % 4
    small = rf.apply_(nn.Sequential(*model), rf.plan(model, rf.Ranks({"0": 4}), data=torch.randn(64, 20)))
    ways = (
        lambda: rf.profile(model, wrong),
        lambda: rf.plan(model, "params=0.5", data=wrong),
        lambda: rf.evaluate(model, (wrong, targets)),
        lambda: rf.fit(model, (wrong, targets), None, rf.Recipe(epochs=1)),
        lambda: rf.evaluate(small, (wrong, targets)),
    )
    for way in ways:
        with pytest.raises(InputError, match=r"^0(\.down)? \(Linear\) takes 20 values in the last axis"):
            way()


def test_other_errors_of_a_model_stay_what_they_are():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x) @ torch.ones(2, 2)

    class Flattening(nn.Linear):
        def forward(self, x):
            raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        forward(nn.Sequential(Own()), torch.randn(2, 4))
    assert not isinstance(caught.value, InputError)
    with pytest.raises(RuntimeError, match="of its own"):  # it may well take images
        forward(nn.Sequential(Flattening(64, 10)), torch.randn(2, 1, 8, 8))


def test_names_that_the_model_does_not_know_are_told_beside_those_that_it_takes():
    model = nn.Sequential(nn.Linear(4, 3))
    with (
        pytest.warns(UserWarning, match="takes no argument pixels"),
        pytest.raises(TypeError, match=r"a batch that holds pixels, labels: the model takes input: give the inputs"),
    ):
        forward(model, {"pixels": torch.randn(2, 4), "labels": torch.arange(2)})
