"""What the conclusion of a report of rank collapse claims, and what it leaves out: on networks that are no chains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from digits import digits, tiny
from torch import Tensor, nn

from rankfold.cli.verbs.analysis.collapse import print_collapse
from rankfold.collapse import CollapseProbe, Partition, Paths, chain, cross_entropy, paths
from rankfold.collapse.gradients import gradient_ranks
from rankfold.pipeline.collapse import bounded
from rankfold.pipeline.collapse.page import collapse_data
from rankfold.pipeline.collapse.study import CollapseReport, collapse_report
from rankfold.pipeline.trainings.stationarity import stationarity
from rankfold.report.collapse import render_collapse
from rankfold.sites import sites


class ConvAttention(nn.Module):
    """Conv, then self-attention that a skip connection passes by, then two dense layers."""

    def __init__(self, skip: bool = True) -> None:
        super().__init__()
        self.conv, self.skip = nn.Conv2d(1, 12, 3, stride=2, padding=1), skip
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))
        self.hidden, self.head = nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.relu(self.conv(x)).flatten(2).mT
        seen = self.o(torch.softmax(self.q(tokens) @ self.k(tokens).mT, -1) @ self.v(tokens))
        return self.head(torch.relu_(self.hidden((tokens + seen if self.skip else seen).mean(1))))


class Tied(nn.Module):
    """Two layers with one weight, and a tuple for an output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Linear(64, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.tanh(self.c(torch.tanh(self.b(torch.tanh(self.a(x.flatten(1)))))))
        return self.head(features), features


def seeded(make: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def four_classes() -> list[tuple[Tensor, Tensor]]:
    split = digits().train
    kept = split.labels < 4
    return [(split.normalize(split.inputs[kept])[:120], split.labels[kept][:120])]


@lru_cache(maxsize=3)
def report(make: type[nn.Module]) -> CollapseReport:
    return collapse_report(seeded(make), four_classes(), decay=5e-3)


def counted(model: nn.Module, inputs: Tensor) -> Paths:
    return paths(model, [site.name for site in sites(model)], inputs)


# --- thresholds


def settled(residual: float, certain_from: float) -> CollapseReport:
    """A report of a network that is ``residual`` from stationary, its first layer certain from that many decays on."""
    found = collapse_report(tiny(), digits().train, decay=5e-3, samples=100)
    first = found.layers[0]
    assert first.bound is not None
    gradient = certain_from * 0.05 * first.bound.norm
    bound = replace(first.bound, gradient_part=gradient, excess=0.0, local_part=None)
    return replace(found, residual=residual, layers=(replace(first, bound=bound), *found.layers[1:]))


def test_far_from_stationary_no_decay_is_named() -> None:
    for certain_from in (0.13, 3.0):
        text = settled(0.92, certain_from).conclusion()
        assert "not at a stationary point (residual 0.92 of the norm of the weights)" in text
        assert "they do not explain its ranks, nor tell from which weight decay on the ranks would fall" in text
        assert "would be within" not in text
        assert "certain" not in text


def test_a_threshold_below_the_decay_in_use_is_held_against_the_layer() -> None:
    past = settled(0.2, 0.13).conclusion()
    assert "1 would be that near to rank 10 at a stationary point of this decay, and is not" in past
    assert "from weight decay" not in past
    coming = settled(0.2, 3.0).conclusion()
    assert "A stationary point with gradients and norms like today's would be within 5 % of rank 10" in coming
    assert "from weight decay 0.015 on in 1;" in coming
    assert "already" not in coming


# --- the decay


@pytest.mark.parametrize("angle", [0.2, 0.6, 1.0, 1.4])
def test_weights_tell_a_decay_only_where_it_fits_better_than_none(
    angle: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With W and −∇L at an angle the best decay leaves a residual of its tangent: above 1 from 45 degrees on."""
    model, data = tiny(), digits().train
    sizes = [site.weight(model).double() for site in sites(model)]
    generator = torch.Generator().manual_seed(0)
    norm = math.sqrt(sum(float(w.square().sum()) for w in sizes))
    other = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in sizes]
    along = sum(float((w * o).sum()) for w, o in zip(sizes, other, strict=True)) / norm**2
    other = [o - along * w for w, o in zip(sizes, other, strict=True)]
    size = math.sqrt(sum(float(o.square().sum()) for o in other))
    slopes = [
        -0.01 * (math.cos(angle) * w + math.sin(angle) * norm / size * o) for w, o in zip(sizes, other, strict=True)
    ]
    monkeypatch.setattr("rankfold.pipeline.trainings.stationarity.gradients", lambda *given: slopes)
    found = collapse_report(model, data, samples=60)
    assert found.residual == pytest.approx(math.tan(angle))
    text = found.conclusion()
    if angle < math.pi / 4:
        assert found.decay == pytest.approx(0.01 * math.cos(angle))
        assert "estimated from gradients and weights" in text
        return
    assert math.isnan(found.decay)
    assert all(layer.bound is None for layer in found.layers)
    assert "The weights do not tell their weight decay: the one that fits" in text
    assert f"{math.tan(angle):.2f} of their norm" in text
    assert "--decay" in text
    assert found.to_dict()["decay"] is None
    page = render_collapse(collapse_data(found, "m", "d"))
    assert "not known; give that of the training" in page


def test_a_given_decay_is_kept_however_badly_it_fits() -> None:
    found = report(ConvAttention)
    assert found.decay == 5e-3
    assert found.residual > 1
    assert all(layer.bound is not None for layer in found.layers)


def test_a_shared_weight_counts_once_in_the_residual() -> None:
    model, (batch,) = seeded(Tied).double(), four_classes()
    inputs, targets = batch[0].double(), torch.eye(4, dtype=torch.float64)[batch[1]]
    _, residual = stationarity(model, sites(model), inputs, targets, "cross-entropy", 0.1)
    weights = [model.get_submodule(name).weight for name in ("a", "b", "head")]
    loss = nn.functional.cross_entropy(model(inputs)[0], batch[1])
    slopes = torch.autograd.grad(loss, weights)
    whole = torch.cat([weight.detach().flatten() for weight in weights])
    missing = torch.cat([slope.flatten() for slope in slopes]) + 0.1 * whole
    assert residual == pytest.approx(float(missing.norm() / (0.1 * whole.norm())))


def test_every_module_keeps_its_own_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above 20 million parameters it is the network itself that is looked at, and no copy."""
    monkeypatch.setattr(bounded, "_EXACT_PARAMS", 0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).train()
    model[1].eval()  # frozen, as in fine-tuning
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    collapse_report(model, (x, (x[:, 0] > 0).long()), decay=1e-3)
    stationarity(model, sites(model), x, torch.eye(2)[(x[:, 0] > 0).long()], "cross-entropy", 0.1)
    assert [module.training for module in model] == [True, False, True, True]
    assert model.training


@pytest.mark.parametrize("asks", ["chain", "gradient_ranks", "paths", "probe"])
def test_a_part_in_another_mode_than_the_model_stays_in_it(asks: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).double().train()
    model[1].eval()  # frozen, as in fine-tuning
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = (x[:, 0] > 0).long()
    targets = torch.eye(2, dtype=torch.float64)[labels]
    ways: dict[str, Callable[[], object]] = {
        "chain": lambda: chain(model, x, targets, Partition.of(labels), 0.1, cross_entropy),
        "gradient_ranks": lambda: gradient_ranks(model, x, targets, cross_entropy),
        "paths": lambda: paths(model, ["0", "3"], x),
        "probe": lambda: CollapseProbe((x, labels), decay=1e-3)(model),
    }
    ways[asks]()
    assert [module.training for module in model] == [True, False, True, True]
    assert model.training


# --- chains and what is none


def test_layers_are_counted_along_paths() -> None:
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert counted(seeded(ConvAttention), images) == Paths(3, 5, 7)
    assert counted(ConvAttention(skip=False), images) == Paths(5, 5, 7)
    assert counted(seeded(Tied), images) == Paths(4, 4, 4)
    assert counted(tiny(), images) == Paths(2, 2, 2)
    inplace = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(inplace=True), nn.Linear(5, 4))
    assert counted(inplace, images) == Paths(2, 2, 2)
    twice = nn.Linear(64, 64)
    assert counted(nn.Sequential(nn.Flatten(), twice, nn.Tanh(), twice), images) == Paths(2, 2, 2)
    ids = torch.randint(5, (2, 3), generator=torch.Generator().manual_seed(0))
    assert counted(nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3)), ids) == Paths(2, 2, 2)
    assert [counted(model, images).chain for model in (tiny(), ConvAttention(skip=False))] == [True, False]


def test_a_layer_that_does_not_reach_the_output_is_on_no_path() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.aside, self.table = nn.Linear(64, 4), nn.Linear(64, 4), nn.Embedding(1, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.aside(x.flatten(1))
            return self.used(x.flatten(1)) + self.table(torch.zeros(len(x), dtype=torch.long))

    model = Aside().train()
    model.used.weight.requires_grad_(False)
    with torch.no_grad():
        assert counted(model, torch.zeros(2, 1, 8, 8)) == Paths(1, 1, 1)
    assert model.training
    assert not model.used.weight.requires_grad
    assert not model.used._forward_hooks
    assert all(p.grad is None for p in model.parameters())


def test_what_is_no_chain_is_said_in_the_text_and_on_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(ConvAttention)
    assert list(found.skipped) == ["q", "k", "v", "o"]
    assert found.transitions is not None
    assert found.transitions.layers == 5
    print_collapse(found)
    page = render_collapse(collapse_data(found, "m", "d"))
    for told in (capsys.readouterr().out, page):
        assert "The chain of bounds cannot be cut at q, k, v, o: the output depends on more than" in told
        assert "A linear chain of 5 layers (the longest path through this network; the shortest has 3)" in told
        assert "only a rough picture: layers run side by side, or are bypassed" in told
    plain = collapse_report(tiny(), digits().train, decay=5e-3, samples=60)
    assert "rough picture" not in plain.conclusion()
    assert "no cut" not in plain.conclusion()


def test_of_one_layer_no_decay_is_said_to_end_a_direction() -> None:
    torch.manual_seed(0)
    found = collapse_report(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), four_classes(), decay=5e-3)
    assert found.transitions is not None
    assert found.transitions.decays.tolist() == [math.inf] * 3
    text = found.conclusion()
    assert "One linear layer on these data would have rank at most 3, and keep it at any weight decay" in text
    assert "inf" not in text
    assert "Predicted rank" not in render_collapse(collapse_data(found, "one", "digits"))


def test_tied_weights_count_once_and_are_said() -> None:
    found = report(Tied)
    assert [layer.site.name for layer in found.layers] == ["a", "b", "c", "head"]
    text = found.conclusion()
    assert " of the 2 layers that could have a rank above the number of classes, 4," in text
    assert "b and c share one weight, which counts once." in text
    assert "a rough picture: layers share a weight." in text
    assert found.violations == 0


# --- data that do not vary


def test_constant_features_and_lone_samples_are_part_of_the_conclusion() -> None:
    ((inputs, labels),) = four_classes()
    black = collapse_report(seeded(Tied), [(torch.zeros_like(inputs), labels)], decay=5e-3)
    assert "The features that enter every layer are constant: their clusters say nothing." in black.conclusion()
    assert "linear chain" not in black.conclusion()
    keep = labels != 2
    keep[int((labels == 2).nonzero()[0])] = True
    lone = collapse_report(seeded(Tied), [(inputs[keep], labels[keep])], decay=5e-3)
    said = "1 of the 4 classes has a single sample here: its variation is 0 whatever the network does."
    assert said in lone.conclusion()
    dead = seeded(Tied)
    with torch.no_grad():
        dead.a.weight.zero_()
    some = collapse_report(dead, [(inputs, labels)], decay=5e-3).conclusion()
    assert "The features that enter b, c, head are constant" in some
    for other in (report(Tied), report(ConvAttention)):
        assert "constant" not in other.conclusion()
        assert "single sample" not in other.conclusion()
