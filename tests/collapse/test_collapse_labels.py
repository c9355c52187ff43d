"""What targets are: classes in columns or along any axis, numbers, labels of 0 and 1; and the loss that follows."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import failed, succeeded
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import rankfold as rf
from rankfold.collapse import LOSSES, Partition, chain, measure_layers, transitions
from rankfold.pipeline.collapse.page import collapse_data
from rankfold.pipeline.collapse.study import CollapseReport, collapse_report
from rankfold.report.collapse import render_collapse


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m, bias=False), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


def settle(model: nn.Module, loss: Callable[[], Tensor], decay: float) -> None:
    """To a stationary point of ``loss`` with weight decay."""
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3000, history_size=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss() + decay / 2 * sum(p.square().sum() for p in model.parameters())
        value.backward()
        return value

    for _ in range(3):
        optimizer.step(closure)


def same(a: CollapseReport, b: CollapseReport) -> None:
    """Up to the rounding of two ways to the same numbers."""
    assert (a.classes, a.samples, a.kinds, a.loss) == (b.classes, b.samples, b.kinds, b.loss)
    assert a.residual == pytest.approx(b.residual, nan_ok=True)
    for one, other in zip(a.layers, b.layers, strict=True):
        assert one.clusters is not None
        assert other.clusters is not None
        assert vars(one.clusters.collapse) == pytest.approx(vars(other.clusters.collapse), nan_ok=True)
        assert (one.bound is None) == (other.bound is None)
        assert one.bound is None or one.bound.bound == pytest.approx(other.bound.bound)


# --- losses


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("kind", ["numbers", "yes or no"])
def test_the_decay_is_that_of_the_loss_which_training_minimises(outputs: int, kind: str) -> None:
    """At a stationary point of rankfold's own objectives, which take the mean over the outputs, as torch does."""
    x = drawn(200, 12)
    y = x @ drawn(12, outputs, seed=1)
    y, objective = (y, rf.Regression()) if kind == "numbers" else ((y > 0).double(), rf.MultiLabel())
    model, decay = dense(12, 16, outputs), 1e-2
    settle(model, lambda: objective.losses(model(x), (x, y))[0], decay)
    found = collapse_report(model, [(x, y)], decay=decay)
    assert found.loss == ("mean-squared-error" if kind == "numbers" else "binary-cross-entropy")
    assert found.residual < 0.01
    assert found.violations == 0
    assert collapse_report(model, [(x, y)]).decay == pytest.approx(decay, rel=1e-2)
    if kind == "numbers" and outputs > 1:
        # the paper's sum is as many times as large, and so is its decay
        summed = collapse_report(model, [(x, y)], loss="squared-error")
        assert summed.decay == pytest.approx(outputs * decay, rel=1e-2)
        assert any("give loss='squared-error' (--loss) where it was their sum" in note for note in found.notes)
        assert not any("taken for" in note for note in summed.notes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("squared-error", lambda f, y: F.mse_loss(f, y, reduction="none").sum(1)),
        ("mean-squared-error", lambda f, y: F.mse_loss(f, y, reduction="none").mean(1)),
        ("cross-entropy", lambda f, y: F.cross_entropy(f, y, reduction="none")),
        ("binary-cross-entropy", lambda f, y: F.binary_cross_entropy_with_logits(f, y, reduction="none").mean(1)),
    ],
)
def test_losses_are_those_of_torch_and_the_chain_holds_of_all(name: str, expected: Callable[..., Tensor]) -> None:
    model, x, labels = dense(6, 9, 4), drawn(30, 6), torch.arange(30) % 3
    y = drawn(30, 4, seed=2).softmax(1)
    assert torch.allclose(LOSSES[name](model(x), y), expected(model(x), y))
    found = chain(model, x, y, Partition.of(labels), 0.1, LOSSES[name])
    assert len(found.layers) == 2
    assert found.violations == 0


@pytest.mark.parametrize("name", ["mean-squared-error", "binary-cross-entropy"])
def test_transitions_are_where_a_trained_linear_chain_loses_its_directions(name: str) -> None:
    """Two layers and one direction, by descent a little below and above the decay that is predicted."""
    x = drawn(400, 1)
    y = torch.cat([0.5 + 0.02 * x, 0.5 - 0.02 * x, torch.full_like(x, 0.5)], 1)
    predicted = float(transitions(x, y, 2, loss=name).decays[0])
    centred, kept = x - x.mean(0), []
    for share in (0.7, 1.3):
        model = dense(1, 4, 3)
        model[1] = nn.Identity()
        middle = 0.5 if name.startswith("mean") else 0.0

        def loss(model: nn.Module = model, middle: float = middle) -> Tensor:
            return LOSSES[name](model(centred) + middle, y).mean()

        settle(model, loss, share * predicted)
        kept.append(float((model[2].weight @ model[0].weight).detach().norm()))
    assert kept[1] < 1e-4 < 0.005 < kept[0]  # of the .028 that fit the data


# --- labels


def test_targets_0_and_1_are_measured_alike_whatever_their_type() -> None:
    """Whole numbers (N, C) were taken for labels of positions, and floating ones for numbers."""
    model, x = dense(8, 16, 5), drawn(64, 8)
    hot = (drawn(64, 5, seed=1) > 0).long()
    floating = collapse_report(model, [(x, hot.double())], decay=1e-2)
    assert floating.loss == "binary-cross-entropy"
    assert floating.kinds == "clusters"
    for other in (hot, hot.bool(), hot.float()):
        found = collapse_report(model, [(x, other)], decay=1e-2)
        same(found, floating)
        assert found.notes[:2] == floating.notes[:2]
    with pytest.raises(ValueError, match="loss cross-entropy is for classes, and the targets are numbers 0 and 1"):
        collapse_report(model, [(x, hot)], loss="cross-entropy")
    with pytest.raises(ValueError, match="loss binary-cross-entropy is for targets from 0 to 1"):
        collapse_report(model, [(x, drawn(64, 5))], loss="binary-cross-entropy")
    with pytest.raises(ValueError, match=r"shape \(64, 5\) are several numbers for each sample.*one class label"):
        measure_layers(model, [(x, hot)])
    one = F.one_hot(torch.arange(64) % 5)
    assert "give class labels (.argmax(1))" in collapse_report(model, [(x, one)], decay=1e-2).notes[0]


def test_columns_of_classes_are_classes() -> None:
    model, x, labels = dense(8, 16, 5), drawn(64, 8), torch.arange(64) % 5
    same(collapse_report(model, [(x, labels[:, None])], decay=1e-2), collapse_report(model, [(x, labels)], decay=1e-2))
    column, plain = (measure_layers(model, [(x, y)])["2"] for y in (labels[:, None], labels))
    assert column.to_dict() == plain.to_dict()


@pytest.mark.parametrize("form", ["whole", "column", "floating", "booleans"])
def test_one_output_for_two_classes(form: str) -> None:
    model, x, labels = dense(8, 16, 6, 1), drawn(64, 8), torch.arange(64) % 2
    data = {"whole": labels, "column": labels[:, None], "floating": labels.double(), "booleans": labels.bool()}[form]
    found = collapse_report(model, [(x, data)], decay=1e-2)
    assert (found.classes, found.kinds, found.loss) == (2, "classes", "binary-cross-entropy")
    features = model[:2](x)
    means = torch.stack([features[labels == k].mean(0) for k in (0, 1)])
    wrong = torch.cdist(features, means).argmin(1) != (model(x) > 0).flatten()
    assert found.layers[1].clusters is not None
    assert found.layers[1].clusters.collapse.nc4 == pytest.approx(float(wrong.double().mean()))
    bound = chain(model, x, labels[:, None].double(), Partition.of(labels), 1e-2, LOSSES["binary-cross-entropy"])
    assert found.layers[1].bound.bound == pytest.approx(bound.layers[1].bound)


def test_probabilities_of_classes_have_cross_entropy() -> None:
    model, x = dense(8, 16, 5), drawn(64, 8)
    found = collapse_report(model, [(x, (3 * drawn(64, 5, seed=1)).softmax(1))], decay=1e-2)
    assert found.loss == "cross-entropy"
    assert found.notes[0].startswith("the targets are probabilities of the classes: ")


def test_labels_below_0_count_nowhere() -> None:
    """As in torch's cross-entropy (−100): they were a class of their own, or refused."""
    model, x, labels = dense(8, 16, 5), drawn(64, 8), torch.arange(64) % 5
    ignored = torch.where(torch.arange(64) < 12, -100, labels)
    same(
        collapse_report(model, [(x, ignored)], decay=1e-2),
        collapse_report(model, [(x[12:], labels[12:])], decay=1e-2),
    )
    some, rest = (measure_layers(model, [pair], batch_size=64)["2"] for pair in ((x, ignored), (x[12:], labels[12:])))
    assert some.classes["whole"].wcss == pytest.approx(rest.classes["whole"].wcss)
    assert some.collapse.nc4 == rest.collapse.nc4


class Tagger(nn.Module):
    """A class for each position, whose scores lie along the last axis or the second."""

    def __init__(self, second: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.local, self.head = nn.Linear(4, 8), nn.Conv1d(8, 8, 1), nn.Linear(8, 5)
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        found = self.head(torch.tanh(self.local(torch.tanh(self.body(x)).mT).mT))
        return found.mT if self.second else found


def test_classes_lie_where_the_objective_says() -> None:
    x, labels = drawn(50, 7, 4).float(), torch.randint(5, (50, 7), generator=torch.Generator().manual_seed(0))
    labels[:, 5:] = -100
    last, second = (measure_layers(Tagger(second).eval(), [(x, labels)]) for second in (False, True))
    assert list(last) == ["body", "local", "head"]
    assert {name: layer.to_dict() for name, layer in last.items()} == {n: s.to_dict() for n, s in second.items()}
    model = Tagger(False)
    features = torch.tanh(model.local(torch.tanh(model.body(x)).mT).mT)[:, :5].detach().flatten(0, 1).double()
    means = torch.stack([features[labels[:, :5].flatten() == k].mean(0) for k in range(5)])
    wrong = torch.cdist(features, means).argmin(1) != model(x)[:, :5].argmax(-1).flatten()
    assert last["head"].collapse.nc4 == pytest.approx(float(wrong.double().mean()))
    note = "there are no bounds: the labels are those of positions, and bounds are of whole samples"
    assert collapse_report(Tagger(True), [(x, labels)], decay=1e-2).notes[-1] == note
    square, tags = drawn(50, 5, 4).float(), labels[:, 1:6]  # as many positions as classes
    assert math.isnan(measure_layers(Tagger(True), [(square, tags)])["head"].collapse.nc4)
    told = measure_layers(Tagger(True), [(square, tags)], objective="classification")["head"].collapse.nc4
    assert (
        told == measure_layers(Tagger(False), [(square, tags)], objective="token-classification")["head"].collapse.nc4
    )


def test_labels_of_positions_that_no_layer_has_are_refused_in_a_line() -> None:
    labels = torch.randint(3, (64, 5), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"labels of shape \(64, 5\) were taken for those of positions, and no layer"):
        collapse_report(dense(8, 16, 7), [(drawn(64, 8), labels)])


# --- bounds or the cause of there being none


class Named(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor | None = None, other: Tensor | None = None) -> Tensor:
        return self.inner(other if x is None else x if other is None else x + other)


def test_a_mapping_of_one_tensor_has_bounds() -> None:
    model, x, labels = Named(dense(8, 16, 5)), drawn(64, 8), torch.arange(64) % 5
    expected = collapse_report(model, [(x, labels)], decay=1e-2)
    assert expected.layers[0].bound is not None
    for data in ({"x": x, "labels": labels}, ((x,), labels), ({"x": x}, labels)):
        found = collapse_report(model, [data], decay=1e-2)
        same(found, expected)
        assert found.notes == expected.notes
    y = x @ drawn(8, 5, seed=1)
    same(
        collapse_report(model, [{"x": x, "labels": y}], decay=1e-2),
        collapse_report(model, [(x, y)], decay=1e-2),
    )


@pytest.mark.parametrize("numbers", [False, True])
def test_notes_name_the_cause(numbers: bool) -> None:
    model, x, labels = Named(dense(8, 16, 5)), drawn(64, 8), torch.arange(64) % 5
    y: Tensor = x @ drawn(8, 5, seed=1) if numbers else labels
    causes: dict[str, Any] = {
        "the model takes more than one input": {"x": x, "other": x, "labels": y},
        "the model takes its input as other, which is not its first argument": {"other": x, "labels": y},
    }
    for cause, batch in causes.items():
        found = collapse_report(model, [batch], decay=1e-2)
        assert found.notes[-1] == f"there are no bounds: {cause}"
        assert all(layer.clusters is not None for layer in found.layers)


@pytest.mark.parametrize("decay", [None, 1e-2])
@pytest.mark.parametrize("make", [lambda: nn.Linear(8, 5), lambda: nn.Sequential(weight_norm(nn.Linear(8, 5)))])
def test_a_network_without_layers_to_measure_is_no_error(make: Callable[[], nn.Module], decay: float | None) -> None:
    found = collapse_report(make().double(), [(drawn(64, 8), torch.arange(64) % 5)], decay=decay)
    assert found.layers == ()
    assert math.isnan(found.residual)
    assert found.notes[-1].startswith("there are no bounds: the network has no layer that could be low-rank (")
    assert found.conclusion().startswith("The network has no layer that could be low-rank")
    assert "no layer that could be low-rank" in render_collapse(collapse_data(found, "m", "d"))


def test_the_verb_takes_losses_and_objectives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tags.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "def data():\n    torch.manual_seed(0)\n    x = torch.randn(90, 5)\n"
        "    rows = [(a, (a[:3] > 0).long()) for a in x]\n    return rows[:60], rows[60:75], rows[75:]\n\n\n"
        "def net():\n    torch.manual_seed(1)\n"
        "    return nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Linear(24, 3))\n"
    )
    asked = ("collapse", "tags:net", "--data", "tags:data", "--decay", 1e-2, "-o", tmp_path / "c.html")
    assert succeeded(*asked)["loss"] == "binary-cross-entropy"
    assert succeeded(*asked, "--loss", "squared-error")["loss"] == "squared-error"
    assert succeeded(*asked, "--objective", "regression")["loss"] == "mean-squared-error"
    assert "the targets are numbers 0 and 1" in failed(*asked, "--loss", "cross-entropy")
