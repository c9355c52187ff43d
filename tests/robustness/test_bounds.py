"""What inputs may be, which samples are attacked, and what is said where that cannot be known."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import rankfold as rf
from rankfold.pipeline.robustness.layers import Amplification


def far_apart() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Forty samples near 0, but for one."""
    torch.manual_seed(1)
    model, x = nn.Linear(16, 2), 0.01 * torch.randn(40, 16)
    x[-1], x[-2] = 5, -5
    return model, x, model(x).argmax(1)


class Slow(Dataset):
    def __init__(self, *tensors: torch.Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)


KEPT = {
    "pair": lambda x, y: (x, y),
    "data set": TensorDataset,
    "batches": lambda x, y: list(zip(x.split(8), y.split(8), strict=True)),
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), 8),
}


@pytest.mark.parametrize("kind", KEPT)
def test_bounds_are_the_extremes_of_the_data_and_not_of_the_samples_attacked(kind):
    model, x, y = far_apart()
    for samples in (5, 20):
        how = {"linf": [1.0], "l2": [], "samples": samples}
        found, told = (rf.robustness(model, KEPT[kind](x, y), **how, **more) for more in ({}, {"bounds": (-5, 5)}))
        assert found == told
        assert found.accuracy("linf", 1.0) == 0  # between the extremes of the first five it would be 1
        assert not found.notes


def test_where_the_data_are_not_in_memory_the_samples_say_the_bounds_and_a_note_says_so():
    model, x, y = far_apart()
    found = rf.robustness(model, Slow(x, y), linf=[1.0], l2=[], samples=5)
    (note,) = found.notes
    assert note.startswith("inputs stay between the extremes of the 5 samples attacked")
    assert "give bounds=" in note
    for how in ({"samples": None}, {"bounds": (-5, 5), "samples": 5}):
        assert not rf.robustness(model, Slow(x, y), linf=[1.0], l2=[], **how).notes


@pytest.mark.parametrize("samples", [-1, 0, 2.5, True])
def test_a_number_of_samples_that_is_none_is_refused(samples):
    model, x, y = far_apart()
    with pytest.raises(ValueError, match=rf"^samples must be a whole number of at least 1.*got {samples}$"):
        rf.robustness(model, (x, y), samples=samples)


def test_a_sample_is_named_only_by_a_number_that_it_has():
    model, x, y = far_apart()
    x[30, 2] = math.nan
    for data in ((x, y), DataLoader(Slow(x, y), 8), Slow(x, y)):
        with pytest.raises(ValueError, match=r"^sample 30 holds NaN"):
            rf.robustness(model, data, linf=[0.01], l2=[], samples=None)
    with pytest.raises(ValueError, match=r"^a sample holds NaN or infinity in its input"):
        rf.robustness(model, DataLoader(Slow(x, y), 8, shuffle=True), linf=[0.01], l2=[], samples=None)


def test_random_states_are_left_as_they_were():
    model, x, y = far_apart()
    before = torch.get_rng_state()
    rf.robustness(model, DataLoader(TensorDataset(x, y), 8, shuffle=True), linf=[0.01], l2=[])
    assert torch.equal(torch.get_rng_state(), before)


# --- products


def product(*ends: tuple[float, float]) -> rf.Robustness:
    layers = tuple(Amplification(str(i), (4, 4), 4, *pair) for i, pair in enumerate(ends))
    return rf.Robustness(1.0, (), layers, 10, 10, 20, 1, "of the inputs", 0.0)


def test_products_beyond_any_number_are_infinite_and_of_nothing_zero():
    large = product(*[(100.0, 1e-3)] * 160)
    assert (large.gain, large.condition) == (math.inf, math.inf)
    assert (large.to_dict()["gain"], large.to_dict()["condition"]) == (None, None)
    ordinary = product((4.0, 2.0), (3.0, 1.0))
    assert (ordinary.gain, ordinary.condition) == (pytest.approx(12.0), pytest.approx(6.0))
    nothing = product((4.0, 2.0), (0.0, 0.0))
    assert (nothing.gain, nothing.condition) == (0.0, math.inf)
    assert (nothing.to_dict()["gain"], nothing.to_dict()["condition"]) == (0.0, None)
    assert product((1e-200, 1e-200), (1e-200, 1e-200)).gain == 0.0
    assert product((1e200, 1.0), (1e-200, 1e-200)).gain == pytest.approx(1.0)


# --- what goes wrong


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.inner(x)


def test_a_network_without_gradients_blinds_the_attack():
    _, x, _ = far_apart()
    model = Frozen()
    found = rf.robustness(model, (x, model(x).argmax(1)), linf=[0.01], l2=[], restarts=0)
    assert found.blind == 1.0
    assert "the gradient is zero" in found.notes[0]


def test_a_weight_that_is_not_finite_is_named_before_any_attack():
    _, x, y = far_apart()
    model, steps = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 2)), []
    model[1].weight.data[0, 0] = math.inf
    with pytest.raises(ValueError, match=r"^1: 1 of 32 values .*: load or train the network again$"):
        rf.robustness(model, (x, y), linf=[0.01], l2=[], progress=lambda *done: steps.append(done))
    assert not steps
