"""What a change of one weight does to the outputs: the closed form beside its definition, and what it spares."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.compress.effect import AT, between, effect, effects, product, spread_ranks
from rankfold.compress.methods.truncate import Truncate
from rankfold.compress.planning import decide
from rankfold.compress.planning.candidates import decompose
from rankfold.compress.statistics import calibrate
from rankfold.sites import Form, sites


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(change: Tensor, rows: Tensor, root: Tensor) -> float:
    """Σ over groups of the mean of ‖R E x‖², D = RᵀR, row by row."""
    if change.dim() == 3:
        return sum(naive(*each) for each in zip(change, rows, root, strict=True))
    return sum(float((root @ (change @ row)).square().sum()) for row in rows) / len(rows)


@pytest.mark.parametrize(("m", "n"), [(4, 7), (7, 4), (5, 5), (1, 6), (6, 1)])
@pytest.mark.parametrize("groups", [(), (3,)])
@pytest.mark.parametrize("kept", ["inputs", "outputs", "diagonal", "inside"])
def test_it_is_the_mean_square_of_what_the_change_does(m: int, n: int, groups: tuple[int, ...], kept: str) -> None:
    weight, rows, root = drawn(*groups, m, n), drawn(*groups, 40, n, seed=1) + 0.5, drawn(*groups, 3, m, seed=2)
    mixing = drawn(*groups, m, m, seed=3)
    change = mixing @ weight  # within the row space, so that moments of outputs tell
    moment, metric, side = rows.mT @ rows / 40, root.mT @ root, "input"
    if kept == "outputs":
        moment, side = weight @ moment @ weight.mT, "output"
    elif kept == "diagonal":
        root = torch.diag_embed(root.square().sum(-2).sqrt())
        metric = root.diagonal(dim1=-2, dim2=-1).square()
    elif kept == "inside":
        if m <= n or groups:
            return  # WᵀDW stands for D of single matrices with fewer inputs than outputs
        change = weight @ drawn(n, n, seed=4)  # within the column space, which is all that it sees
        metric = weight.mT @ metric @ weight
    found = effect(change, weight, moment, metric, side)
    assert found == pytest.approx(naive(change, rows, root), rel=1e-9)


def test_moments_of_outputs_do_not_tell_of_a_change_that_reads_other_inputs() -> None:
    weight, other = drawn(3, 8), drawn(3, 8, seed=1)
    moment = weight @ weight.mT
    assert effect(other, weight, moment, torch.eye(3).double(), "output") is None
    assert effect(2 * weight, weight, moment, torch.eye(3).double(), "output") == pytest.approx(
        4 * float(moment.trace())
    )


def of_truncation(model: nn.Module, x: Tensor, samples: int | None = None):
    found = sites(model)
    statistics = calibrate(model, x, found, samples=samples, metric_samples=len(x))
    candidates = [c for group in decompose(model, found, Truncate(), None, quiet).candidates.values() for c in group]
    return candidates, statistics


def quiet(what: str, done: int, total: int) -> None: ...


def test_of_a_linear_network_it_is_the_measured_change_of_the_outputs() -> None:
    """With inputs that have a mean: truncation fits no bias, so what the mean loses counts too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 6), nn.Linear(6, 8), nn.Linear(8, 4)).double().eval()
    x = drawn(600, 9) + 2.0
    candidates, statistics = of_truncation(model, x)
    prices = effects(model, candidates, statistics, quiet)
    assert prices is not None
    then = model(x).detach()
    variance = float((then - then.mean(0)).square().sum())
    for candidate in candidates:
        for rank in spread_ranks(candidate.relative_errors.numpy(), candidate.ranks, AT):
            changed = copy.deepcopy(model)
            changed.get_submodule(candidate.site.name).weight.data = product(model, candidate, rank)
            lost = float((changed(x).detach() - then).square().sum()) / variance
            assert float(prices[candidate.site.name, candidate.form][rank]) == pytest.approx(lost, rel=1e-4)
    assert {c.form for c in candidates} == {Form.FACTORED, Form.PIVOTED}


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(7, 5), nn.Linear(5, 7, bias=False), nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, (3, 1), groups=2),
        nn.ConvTranspose2d(4, 6, 3), nn.Conv1d(5, 6, 3),
    ],
    ids=repr,
)  # fmt: skip
def test_at_full_rank_the_product_is_the_weight(layer: nn.Module) -> None:
    model = nn.Sequential(layer)
    made = decompose(model, sites(model), Truncate(), None, quiet).candidates["0"]
    assert made
    for candidate in made:
        whole = product(model, candidate, candidate.decomposition.ranks[-1])
        torch.testing.assert_close(whole, layer.weight.double(), rtol=1e-6, atol=1e-6)
    least = product(model, made[0], 1)
    assert not torch.allclose(least, layer.weight.double(), atol=1e-2)


def test_of_a_weight_that_is_stored_transposed_too() -> None:
    layers = pytest.importorskip("transformers.pytorch_utils")
    model = nn.Sequential(layers.Conv1D(6, 6))
    (candidate, *_) = decompose(model, sites(model), Truncate(), None, quiet).candidates["0"]
    torch.testing.assert_close(product(model, candidate, 6), model[0].weight.double(), rtol=1e-6, atol=1e-6)


class Counted(nn.Sequential):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return super().forward(x)


@pytest.mark.parametrize("depth", [4, 40])
def test_a_deep_network_is_priced_without_probes(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Counted(*(nn.Sequential(nn.Linear(12, 12), nn.ReLU()) for _ in range(depth)), nn.Linear(12, 3)).eval()
    monkeypatch.setattr(Counted, "calls", 0)
    known = rf.profile(model, (drawn(256, 12).float(), torch.randint(3, (256,))), method="truncate")
    before = Counted.calls
    made = known.plan("params=0.6")
    passes = Counted.calls - before
    assert passes <= 40  # batches of calibration, of 16 samples for gradients; whatever the depth
    assert made.changed
    known.plan("params=0.5")
    assert Counted.calls - before == passes
    monkeypatch.setattr(decide, "effects", lambda *args: None)  # what probes would take
    known.prices.clear()
    known.plan("params=0.6")
    assert Counted.calls - before - passes > 3 * depth


def test_a_layer_that_the_data_never_reached_is_priced_as_an_average_one() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    torch.manual_seed(0)
    model = Two().double()
    candidates, statistics = of_truncation(model, drawn(50, 6))
    prices = effects(model, candidates, statistics, quiet)
    assert prices is not None
    assert float(prices["unused", Form.FACTORED][0]) == pytest.approx(float(prices["used", Form.FACTORED][0]))
    assert float(prices["unused", Form.FACTORED][-1]) == 0


def test_without_gradients_it_does_not_tell() -> None:
    class Signs(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sign().detach()

    model = Signs(nn.Linear(6, 6))
    candidates, statistics = of_truncation(model, drawn(50, 6).float())
    assert effects(model, candidates, statistics, quiet) is None
    assert rf.plan(model, "params=0.6", "truncate", drawn(50, 6).float()).changed  # probes do


def test_between_known_points_the_price_is_a_power_law_and_never_rises_with_the_rank() -> None:
    errors = np.array([1.0, 0.5, 0.25, 0.125, 0.0])
    made = between(errors, [(0.5, 2 * 0.5**3), (0.25, 2 * 0.25**3)])
    np.testing.assert_allclose(made, [0.25 * 4, 0.25, 2 / 64, 2 / 64 / 4, 0], rtol=1e-12)
    assert (np.diff(between(errors, [(0.5, 0.1), (0.25, 0.2)])) <= 0).all()
