"""The probe of a recorder: batches of any form, layers that are called several times, models of one output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.collapse import CollapseProbe, Partition, binary_cross_entropy, chain, cross_entropy, measure_layers
from rankfold.collapse.backward import layer_rows, local_gradients


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Again(nn.Module):
    """One layer is called three times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.body(x))
        return self.head(x)


def perceptron(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, outputs))


X, Y = drawn(60, 8), torch.arange(60) % 3


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize("decay", [None, 1e-2])
@pytest.mark.parametrize(
    "data",
    [
        [{"x": X[:40], "labels": Y[:40]}, {"x": X[40:], "labels": Y[40:]}],
        [((X,), Y)],
        [({"x": X}, Y)],
        [(X, Y.unsqueeze(1))],
    ],
)
def test_batches_of_any_form_are_measured_alike(data: Any, decay: float | None) -> None:
    model = Named()
    expected = CollapseProbe((X, Y), decay=decay)(model)
    found = CollapseProbe(data, decay=decay)(model)
    assert list(found) == list(expected) == ["inner.0", "inner.2", "inner.4"]
    for name, numbers in found.items():
        assert numbers == pytest.approx(expected[name], rel=1e-5, nan_ok=True)
        assert ("chain_bound" in numbers) == (decay is not None)


@pytest.mark.parametrize("decay", [None, 1e-2])
def test_all_calls_of_a_layer_count(decay: float | None) -> None:
    """As in ``measure_layers``; the probe took the last call alone."""
    model, data = Again(), [(X[:25], Y[:25]), (X[25:], Y[25:])]
    found, expected = CollapseProbe(data, decay=decay)(model), measure_layers(model, data)
    for name in ("body", "head"):
        clusters, collapse = expected[name].classes["whole"], expected[name].collapse
        assert found[name]["wcss"] == pytest.approx(clusters.wcss, rel=1e-6)
        assert found[name]["nc1"] == pytest.approx(collapse.nc1, rel=1e-5)
        assert found[name]["nc4"] == collapse.nc4
    assert expected["body"].classes["whole"].rows == 180


def test_rows_of_all_calls_give_the_gradient_of_a_layer() -> None:
    model, x, targets = Again().double(), X.double(), torch.eye(3, dtype=torch.float64)[Y]
    cross_entropy(model(x), targets).mean().backward()
    near = local_gradients(model, ("body",), x, targets, Partition.of(Y), cross_entropy)["body"]
    for name, a, delta in layer_rows(model, ("body", "head"), x, targets, cross_entropy, 1 / 60):
        assert torch.allclose(delta.mT @ a, model.get_submodule(name).weight.grad, atol=1e-14)
        if name == "body":
            index = Y.repeat_interleave(3)
            means = [torch.stack([rows[index == k].mean(0) for k in range(3)]) for rows in (delta, a)]
            assert torch.allclose(near, 60 * means[0].mT @ means[1], atol=1e-14)


@pytest.mark.parametrize("labels", [Y % 2, (Y % 2).float(), (Y % 2).bool(), (Y % 2).unsqueeze(1).float()])
def test_a_model_of_one_output_has_the_loss_of_one(labels: Tensor) -> None:
    model = perceptron(outputs=1)
    found = CollapseProbe([(X, labels)], decay=1e-2)(model)
    binary = (Y % 2).unsqueeze(1).float()
    expected = chain(model, X, binary, Partition.of(Y % 2), 1e-2, binary_cross_entropy)
    for layer in expected.layers:
        assert found[layer.name]["chain_bound"] == pytest.approx(layer.bound, rel=1e-5)
    answers = (model(X) > 0).long().flatten()
    features = model[:2](X).detach()
    means = torch.stack([features[k == Y % 2].mean(0) for k in (0, 1)])
    wrong = (torch.cdist(features, means).argmin(1) != answers).double().mean()
    assert found["2"]["nc4"] == pytest.approx(float(wrong))
    assert measure_layers(model, [(X, labels)])["2"].collapse.nc4 == pytest.approx(float(wrong))


def test_what_does_not_fit_is_refused_before_a_training() -> None:
    with pytest.raises(ValueError, match="the model has one output, of which cross-entropy says nothing"):
        CollapseProbe((X, Y % 2), decay=1e-2, loss="cross-entropy").check(perceptron(1))
    with pytest.raises(ValueError, match="labels must be from 0 to 1 for 2 classes, and run from 0 to 2"):
        CollapseProbe((X, Y), decay=1e-2).check(perceptron(1))
    with pytest.raises(ValueError, match="labels must be from 0 to 2 for 3 classes, and run from 1 to 3"):
        CollapseProbe((X, Y + 1), decay=1e-2).check(perceptron())
    with pytest.raises(ValueError, match=r"decay must be that of the training, or None where there was none, got -1"):
        CollapseProbe((X, Y), decay=-1)
    with pytest.raises(ValueError, match=r"one class label for each sample.*use rankfold collapse, which forms them"):
        CollapseProbe((X, drawn(60, 3)))

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = perceptron()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.inner(x + y)

    with pytest.raises(ValueError, match="cannot measure bounds: the model takes more than one input; leave decay="):
        CollapseProbe([((X, X), Y)], decay=1e-2).check(Two())
    assert list(CollapseProbe([((X, X), Y)])(Two())) == ["inner.0", "inner.2", "inner.4"]


def test_a_recorder_takes_a_probe_of_mappings() -> None:
    model = Named()
    with rf.SpectrumRecorder(model, probe=CollapseProbe([{"x": X, "labels": Y}], decay=1e-2)) as recorder:
        recorder.step(0)
    assert bool((recorder.frame().chain_holds == 1).all())
