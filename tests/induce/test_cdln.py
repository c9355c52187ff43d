"""Compressed deep linear layers: how they begin, how they train, how they fold."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rankfold.costs import trace
from rankfold.induce import cdln_, factors, fold_, is_overparametrized
from rankfold.induce.cdln import linear_targets
from rankfold.induce.correlations import correlations
from rankfold.linalg.compressed import completed, compressed_factors
from rankfold.papers import reproduce
from rankfold.papers.cdln import families as cdln_families
from rankfold.papers.cdln import networks as cdln_networks
from rankfold.papers.request import Request
from rankfold.pipeline import Tell
from rankfold.train import Recipe, TrainingError, fit, parameter_groups
from rankfold.train.step.gradients import weight_gradients
from rankfold.zoo.split import Data, Split

CLASSES = 3


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 14), nn.ReLU(), nn.Linear(14, CLASSES)
        ).to(dtype)


def samples(count: int = 96, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % CLASSES
    centres = torch.randn(CLASSES, 12, generator=generator)
    return (centres[labels] + 0.5 * torch.randn(count, 12, generator=generator)).to(dtype), labels


@given(st.integers(1, 6), st.integers(1, 6), st.integers(2, 4), st.integers(0, 30), st.integers(0, 99))
def test_the_start_spans_the_guide(m, n, depth, rank, seed):
    rank = 1 + rank % min(m, n)
    generator = torch.Generator().manual_seed(seed)
    guide = torch.randn(m, n, generator=generator, dtype=torch.float64)
    parts = compressed_factors((m, n), rank, [0.5] * depth, guide, generator)
    assert [tuple(part.shape) for part in parts] == [(m, rank), *[(rank, rank)] * (depth - 2), (rank, n)]
    product = torch.linalg.multi_dot(parts)
    torch.testing.assert_close(torch.linalg.svdvals(product)[:rank], torch.full((rank,), 0.5**depth).double())
    u, _, vh = torch.linalg.svd(guide)
    torch.testing.assert_close(product, 0.5**depth * u[:, :rank] @ vh[:rank])  # U Vᵀ, signs and all


@given(st.integers(1, 8), st.integers(0, 8), st.integers(0, 8), st.integers(0, 50))
def test_completed_bases_are_orthonormal(d, known, more, seed):
    known = min(known, d)
    rank = min(d, known + more)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, known, generator=generator, dtype=torch.float64)).Q
    found = completed(basis, rank, generator)
    torch.testing.assert_close(found.mT @ found, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(found[:, :known], basis)


def test_a_guide_of_low_rank_is_completed_and_one_of_classes_knows_the_inputs_alone():
    generator = torch.Generator().manual_seed(0)
    guide = torch.randn(3, 8, generator=generator, dtype=torch.float64)  # 3 classes, a layer of 6 outputs
    parts = compressed_factors((6, 8), 5, [1.0, 1.0, 1.0], guide, generator)
    span = parts[-1].mT
    assert torch.linalg.norm(guide.mT - span @ (span.mT @ guide.mT)) < 1e-12
    with pytest.raises(ValueError, match="rank must be from 1 to 6, got 7"):
        compressed_factors((6, 8), 7, [1.0, 1.0])


def test_the_correlation_is_that_of_labels_and_features():
    model, (x, labels) = network(), samples()
    cdln_(model, "3", CLASSES, data=(x, labels), epsilon=1.0)
    features = torch.relu(model[1](x))
    one_hot = nn.functional.one_hot(labels, CLASSES).double()
    right = torch.linalg.svd(one_hot.mT @ features.detach(), full_matrices=False)[2]
    last = factors(model)["3"][-1].detach()
    torch.testing.assert_close(last.mT @ last, right.mT @ right)
    # a wrong one, of the inputs of the network, spans something else
    wrong = torch.linalg.svd(one_hot.mT @ torch.randn(96, 16).double(), full_matrices=False)[2]
    assert (last.mT @ last - wrong.mT @ wrong).norm() > 0.1


class TimeFirst(nn.Module):
    """As transformers of torch without ``batch_first``; ``flat``: the layer sees positions and samples in one axis."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat, self.body, self.head = flat, nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.transpose(0, 1)
        seen = self.body(steps.reshape(-1, 16)).view_as(steps) if self.flat else self.body(steps)
        return self.head(torch.relu(seen).mean(0))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("length", [3, 8])
def test_the_samples_are_found_where_they_lie(flat, length):
    torch.manual_seed(0)
    model, x, labels = TimeFirst(flat).double(), torch.randn(10, length, 16).double(), torch.arange(10) % CLASSES
    data = [(x[:8], labels[:8]), (x[8:], labels[8:])]
    (found,) = correlations(model, linear_targets(model, ["body"]), data, 100).values()
    torch.testing.assert_close(found, nn.functional.one_hot(labels, CLASSES).double().mT @ x.mean(1))


def test_samples_that_cannot_be_told_apart_are_refused():
    class Mixed(TimeFirst):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x.reshape(4, -1, 16)).mean((0, 1))).expand(len(x), -1)

    model, (x, labels) = Mixed(False), (torch.randn(6, 2, 16), torch.arange(6) % CLASSES)
    with pytest.raises(ValueError, match=r"body.* of shape \(4, 3, 16\), belong to which of 6 samples .*'gradient'"):
        cdln_(model, "body", 3, data=(x, labels))


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, torch.bool])
def test_class_numbers_may_be_of_any_whole_type(kind):
    model, (x, labels) = network(), samples()
    labels = labels % 2
    (found,) = correlations(model, linear_targets(model, ["1"]), [(x, labels.to(kind))], 100).values()
    torch.testing.assert_close(found, nn.functional.one_hot(labels, 2).double().mT @ x)


def test_ignored_labels_are_left_out():
    model, (x, labels) = network(), samples()
    labels = torch.where(torch.arange(len(x)) % 4 == 0, -100, labels)
    data = [(x[:1], labels[:1]), (x[1:], labels[1:])]  # of the first batch none is left
    (found,) = correlations(model, linear_targets(model, ["1"]), data, 100).values()
    kept = labels >= 0
    torch.testing.assert_close(found, nn.functional.one_hot(labels[kept], CLASSES).double().mT @ x[kept])
    with pytest.raises(ValueError, match="every label is negative"):
        cdln_(model, "1", 3, data=(x, torch.full_like(labels, -100)))


def test_the_gradient_start_is_the_steepest_descent_of_a_last_layer():
    """For a last layer of zeros the gradient is that of labels less their mean: the paper's correlation, centred."""
    model, (x, labels) = network(), samples()
    with torch.no_grad():
        model[5].weight.zero_()
        model[5].bias.zero_()
    (gradient,) = weight_gradients(model, [model[5].weight], (x, labels))
    features = torch.relu(model[3](torch.relu(model[1](x)))).detach()
    centred = nn.functional.one_hot(labels, CLASSES).double() - 1 / CLASSES
    torch.testing.assert_close(-gradient, centred.mT @ features / len(x))
    cdln_(model, "5", 2, data=(x, labels), start="gradient", epsilon=1.0)
    first, *_, last = factors(model)["5"]
    u, _, vh = torch.linalg.svd(-gradient, full_matrices=False)
    torch.testing.assert_close(first.detach() @ last.detach(), u[:, :2] @ vh[:2])


def test_it_is_smaller_than_the_layer_and_keeps_its_norm():
    model = network()
    before, norm = sum(p.numel() for p in model.parameters()), model[3].weight.norm().detach()
    flops = trace(model, torch.zeros(1, 12))[0]
    cdln_(model, ["3"], 4, generator=torch.Generator().manual_seed(0))
    assert before - sum(p.numel() for p in model.parameters()) == 14 * 16 - (14 * 4 + 4 * 4 + 4 * 16)
    torch.testing.assert_close(model[3].weight.norm().detach(), norm)
    assert flops - trace(model, torch.zeros(1, 12))[0] == 2 * (14 * 16 - (14 * 4 + 4 * 4 + 4 * 16))


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_it_folds_back(depth):
    model, (x, labels) = network(), samples()
    names = list(model.state_dict())
    cdln_(model, ["1", "3"], {"1": 5, "3": 4}, depth=depth, data=(x, labels))
    assert is_overparametrized(model)
    fit(model, (x, labels), None, Recipe(epochs=2, batch_size=32, learning_rate=0.01))
    outputs = model(x)
    fold_(model)
    assert type(model[3]) is nn.Linear
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x), outputs)
    assert torch.linalg.matrix_rank(model[3].weight) <= 4


def test_outer_factors_learn_at_a_rate_of_their_own():
    """One step of plain gradient descent in ``fit``, against the step by hand."""
    model, (x, labels) = network(), samples(32)
    cdln_(model, "3", 4, data=(x, labels), rate_scale=5.0)
    twin = copy.deepcopy(model)
    recipe = Recipe(
        epochs=1, batch_size=32, learning_rate=0.1, momentum=0.0, nesterov=False, weight_decay=0.0,
        schedule="constant", warmup=0.0,
    )  # fmt: skip
    fit(model, (x, labels), None, recipe)
    loss = nn.functional.cross_entropy(twin(x), labels)
    loss.backward()
    for scale, before, after in zip((5.0, 1.0, 5.0), factors(twin)["3"], factors(model)["3"]):
        torch.testing.assert_close(after.detach(), before.detach() - 0.1 * scale * before.grad)
    torch.testing.assert_close(model[1].weight.detach(), twin[1].weight.detach() - 0.1 * twin[1].weight.grad)
    groups = parameter_groups(twin, 0.1, 0.01)
    assert {group["lr"] for group in groups} == {0.1, 0.5}
    assert sum(len(group["params"]) for group in groups) == len(list(twin.parameters()))
    torch.optim.AdamW(groups, lr=0.1).step()


def test_a_folded_layer_has_no_rate_of_its_own():
    model = fold_(cdln_(network(), "3", 4, rate_scale=5.0))
    assert [group["lr"] for group in parameter_groups(model, 0.1)] == [0.1, 0.1]


@pytest.mark.parametrize("start", ["correlation", "gradient", "random"])
def test_it_learns(start):
    model, data = network(torch.float32), samples(dtype=torch.float32)
    with torch.random.fork_rng():
        cdln_(model, "3", 4, data=None if start == "random" else data, start=start)
    history = fit(model, data, data, Recipe(epochs=40, batch_size=32, learning_rate=0.02))
    assert history.best.validation_accuracy > 0.95


@pytest.mark.parametrize(
    ("layer", "rank", "more", "says"),
    [
        ("7", 2, {}, "that can be replaced: the linear layers are 1, 3, 5"),
        ("2", 2, {}, "no linear layer"),
        ([], 2, {}, "at least one"),
        (["3", "3"], 2, {}, "none of them twice"),
        ("3", 15, {}, r"3 \(Linear 14×16\): rank 15 was asked for, and ranks from 1 to 14 are possible"),
        ("3", 2.5, {}, "rank 2.5 was asked for, and ranks from 1 to 14"),
        ("3", {"1": 2}, {}, "rank= names '1', which is none of the layers that were given: 3"),
        ("3", {"3": 2, "typo": 3}, {}, "rank= names 'typo'"),
        (["1", "3"], {"1": 2}, {}, r"3 \(Linear 14×16\): rank= has no rank for it"),
        ("3", 2, {"depth": 1}, "at least 2 factors"),
        ("3", 2, {"start": "gradient"}, "needs labelled data"),
        ("3", 2, {"start": "spectral"}, "start must be one of"),
        ("3", 2, {"epsilon": 0.0}, "epsilon"),
        ("3", 2, {"rate_scale": -1.0}, "rate_scale"),
        ("3", 2, {"data": torch.zeros(4, 12)}, "one class number"),
    ],
)
def test_bad_input_changes_nothing(layer, rank, more, says):
    model = network(torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=says):
        cdln_(model, layer, rank, **more)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_ranks_of_numpy_and_a_module_by_any_of_its_names():
    assert cdln_(network(), "3", np.int64(2))[3].parametrizations.weight.original0.shape == (14, 2)
    shared = nn.Linear(12, 12)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    for name in ("0", "2"):
        assert cdln_(copy.deepcopy(model), "2", {name: 3})[0].parametrizations.weight.original0.shape == (12, 3)


def test_a_tied_layer_says_which_one_to_name():
    model = nn.ModuleDict({"a": nn.Linear(12, 12), "b": nn.Linear(12, 12)})
    model["b"].weight = model["a"].weight
    with pytest.raises(ValueError, match=r"no linear layer 'b' .*\(its weight is that of a: name that layer"):
        cdln_(model, "b", 2)
    assert factors(cdln_(model, "a", 2))["b"][0] is factors(model)["a"][0]


def test_frozen_layers_and_bad_weights_are_named():
    model = network()
    model[3].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        cdln_(model, "3", 2)
    model = network()
    with torch.no_grad():
        model[3].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        cdln_(model, "3", 2)
    with pytest.raises(TrainingError, match="no labels"):
        weight_gradients(network(), [network()[3].weight], torch.zeros(4, 12).double())


def test_gradients_leave_everything_as_found():
    model, data = network(), samples()
    model[3].weight.requires_grad_(False)
    model.train()
    found = weight_gradients(model, [model[3].weight, model[1].weight], data)
    assert not model[3].weight.requires_grad
    assert model[1].weight.requires_grad
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert [tuple(g.shape) for g in found] == [(14, 16), (16, 12)]


@pytest.mark.parametrize(("family", "image"), [("mlp", (1, 28, 28)), ("vit", (3, 32, 32))])
@pytest.mark.parametrize("variant", ["plain", "dln", "c-dln"])
def test_the_networks_of_the_paper_have_its_sizes(family, image, variant):
    """Table 1: parameters, and multiply-adds in the published proportions."""
    images = torch.zeros(2, *image, dtype=torch.uint8)
    half = torch.full((image[0],), 0.5)
    part = Split(images, torch.arange(2), half, half)
    data, kind, costs = Data("images", part, part, part, classes=10), cdln_families.FAMILIES[family], {}
    for name in ("plain", variant):
        case = cdln_families.Case(family, name, kind.stable, "images", kind.width, kind.depth, start="random")
        model = cdln_families.build(case, data)
        costs[name] = cdln_networks.training_costs(model, next(iter(part.batches(2)))[0])
    assert costs[variant]["params"] / 1e6 == pytest.approx(kind.published[variant][6], rel=3e-3)
    ratio = costs[variant]["macs"] / costs["plain"]["macs"]
    assert ratio == pytest.approx(kind.published[variant][4] / kind.published["plain"][4], rel=2e-2)
    assert costs[variant]["memory"] > 16 * costs[variant]["params"]


def test_transformers_of_the_paper_run(tmp_path):
    outcome = reproduce("cdln-vit", tmp_path, Request(quick=True, seeds=(0,), epochs=1))
    assert list(outcome.table["method"]) == ["Original", "DLN", "C-DLN", "C-DLN, gradient"]


def test_the_experiment_runs_and_is_read_back(tmp_path):
    request = Request(quick=True, seeds=(0,), epochs=3)
    outcome = reproduce("cdln-mlp", tmp_path, request)
    assert list(outcome.table["method"]) == ["Original", "DLN", "C-DLN", "C-DLN, gradient"]
    assert outcome.table["test %"].min() > 50
    assert (tmp_path / "figure-21.svg").exists()
    assert any("C-DLN lies" in remark for remark in outcome.remarks)
    said: list[str] = []
    again = reproduce("cdln-mlp", tmp_path, request, Tell(say=said.append))
    assert "4 of 4 trainings are finished already" in said[0]
    assert again.table.equals(outcome.table)
    for wrong in ({"decays": (0.1,)}, {"models": ("resnet20",)}, {"setting": "relaxed"}, {"tolerance": 0.1}):
        with pytest.raises(ValueError, match="cdln-mlp has no"):
            reproduce("cdln-mlp", tmp_path, Request(quick=True, **wrong))
