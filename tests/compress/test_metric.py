"""The metric of the outputs: exact for linear networks, every output on its own scale, in whatever order."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.compress.gradients import shrunk
from rankfold.compress.methods.project import Project
from rankfold.compress.metric import output_metrics
from rankfold.compress.spread import measure_spread
from rankfold.compress.statistics import calibrate
from rankfold.objectives import Classification, Objective, Teacher
from rankfold.observe import Samples
from rankfold.sites import Form, sites


def linear_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 6), nn.Linear(6, 5), nn.Linear(5, 4)).double().eval()


def inputs(count: int = 600) -> Tensor:
    return torch.randn(count, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def metrics_of(model: nn.Module, x: Tensor, objective: Objective | None = None) -> dict[str, Tensor]:
    return output_metrics(model, Samples(x), sites(model), objective or Teacher())


@pytest.mark.parametrize("classes", [False, True])
def test_of_a_linear_network_it_is_the_gram_matrix_of_what_follows(classes: bool) -> None:
    """To rounding, since the directions of neighbouring samples are orthogonal: 600 is a multiple of 4 outputs."""
    model, x = linear_network(), inputs()
    metrics = metrics_of(model, x, Classification() if classes else Teacher())
    eye = torch.eye(4, dtype=torch.float64)
    centring = eye - 0.25 if classes else eye
    with torch.no_grad():
        z = model(x) @ centring
    variance = (z - z.mean(0)).square().sum() / len(z)
    follows = {"0": model[2].weight @ model[1].weight, "1": model[2].weight, "2": eye}
    for name, map_ in follows.items():
        expected = (map_.T @ centring @ map_).detach() / variance
        torch.testing.assert_close(metrics[name], expected, rtol=1e-5, atol=1e-7)
    wrong = model[2].weight.detach().T @ (centring if not classes else eye) @ model[2].weight.detach() / variance
    assert classes == (not torch.allclose(metrics["1"], wrong, rtol=1e-3))  # centred along known classes only


def test_predicted_change_is_the_measured_share_of_the_outputs_variance() -> None:
    model, x = linear_network(), inputs()
    found = sites(model)
    statistics = calibrate(model, x, found, samples=None, metric_samples=len(x))
    outputs = model(x).detach()
    variance = float((outputs - outputs.mean(0)).square().sum())
    for site in found:
        weight, bias = site.weight(model), site.bias(model)
        known = statistics.sites[site.name]
        decomposition = Project(damping=1e-9).decompose(site, Form.FACTORED, weight, known, bias)
        factors = decomposition.factors(2)
        changed = copy.deepcopy(model)
        layer = changed.get_submodule(site.name)
        layer.weight.data = factors.parts[1] @ factors.parts[0]
        layer.bias.data = bias + factors.shift
        measured = float((changed(x).detach() - outputs).square().sum()) / variance
        assert float(decomposition.errors[2]) ** 2 == pytest.approx(measured, rel=1e-4), site.name


class TwoHeads(nn.Module):
    """Boxes and scores on scales a thousandfold apart, handed out in either order, as a tuple or by name."""

    def __init__(self, swapped: bool, named: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.swapped, self.named = swapped, named
        self.one, self.two = nn.Linear(12, 16), nn.Linear(12, 16)
        self.boxes, self.scores = nn.Linear(16, 4), nn.Linear(16, 4)
        with torch.no_grad():
            self.scores.weight.mul_(1e3)

    def forward(self, x: Tensor) -> object:
        boxes = self.boxes(self.one(x).tanh() + 0.05 * self.two(x).tanh())
        scores = self.scores(self.two(x).tanh() + 0.05 * self.one(x).tanh())
        if self.named:
            return {"scores": scores, "boxes": boxes} if self.swapped else {"boxes": boxes, "scores": scores}
        return (scores, boxes) if self.swapped else (boxes, scores)


@pytest.mark.parametrize("named", [False, True])
def test_all_outputs_count_on_their_own_scale_in_whatever_order(named: bool) -> None:
    x = torch.randn(256, 12, generator=torch.Generator().manual_seed(2))
    plain, swapped = (TwoHeads(way, named).eval() for way in (False, True))
    a, b = (metrics_of(model, x) for model in (plain, swapped))
    assert all(torch.equal(a[name], b[name]) for name in a)
    traces = {name: float(metric.trace()) for name, metric in a.items()}
    assert 0.2 < traces["one"] / traces["two"] < 5  # each head is worth the same, whatever its numbers
    with torch.no_grad():
        swapped.boxes.weight.mul_(50), swapped.boxes.bias.mul_(50)
    rescaled = metrics_of(swapped, x)
    torch.testing.assert_close(rescaled["one"], a["one"], rtol=1e-3, atol=1e-6)


def test_a_shift_of_a_level_costs_what_it_moves() -> None:
    """Numbers that are no classes are not centred: moving all of them alike is a change like any other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6)).eval()
    x = torch.randn(240, 8)
    ones = torch.ones(6, dtype=torch.float64)
    numbers, classes = (metrics_of(model, x, asked)["0"].double() for asked in (None, Classification()))
    assert float(ones @ numbers @ ones) == pytest.approx(6 * float(numbers.trace()) / 6, rel=1e-4)
    assert abs(float(ones @ classes @ ones)) < 1e-6 * float(classes.trace())


@pytest.mark.parametrize("count", [50, 200, 333])
def test_one_linear_layer_reaches_the_known_optimum(count: int) -> None:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(16, 12), nn.Identity()).double().eval()
    x = torch.randn(count, 16, generator=generator, dtype=torch.float64)
    values = torch.linalg.svdvals((x - x.mean(0)) @ model[0].weight.detach().T)
    for rank in (3, 6):
        small = rf.apply_(copy.deepcopy(model), rf.plan(model, rf.Ranks({"0": rank}), data=x))
        with torch.no_grad():
            error = float((small(x) - model(x)).norm())
        best = float(values[rank:].square().sum().sqrt())
        assert best * (1 - 1e-9) <= error <= 1.01 * best


def test_noise_is_drawn_towards_the_identity_and_signal_is_kept() -> None:
    """Wishart matrices around a known metric: nearer than the plain mean, and strong structure is kept."""
    generator = torch.Generator().manual_seed(4)

    def wishart(root: Tensor, rows: int) -> Tensor:
        g = torch.randn(rows, len(root), generator=generator, dtype=torch.float64) @ root
        return g.T @ g / rows

    flat, steep = torch.eye(20, dtype=torch.float64), torch.diag(torch.logspace(0, -2, 20, dtype=torch.float64))
    for root, most in ((flat, 0.3), (steep, 1.05)):
        truth = root @ root
        ratios = []
        for _ in range(20):
            halves = [wishart(root, 60), wishart(root, 60)]
            mean = (halves[0] + halves[1]) / 2
            ratios.append(float((shrunk(halves, [60, 60]) - truth).norm() / (mean - truth).norm()))
        assert sum(ratios) / len(ratios) < most
    many = [wishart(steep, 20000), wishart(steep, 20000)]
    torch.testing.assert_close(shrunk(many, [1, 1]), (many[0] + many[1]) / 2, rtol=0, atol=5e-3)


def test_the_model_is_left_as_found_and_frozen_parameters_do_not_matter() -> None:
    model, x = linear_network(), inputs(50)
    before = metrics_of(model, x)
    model.requires_grad_(False)
    model.train()
    after = metrics_of(model, x)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(not module._forward_hooks for module in model.modules())


def test_batches_do_not_matter() -> None:
    model, x = linear_network(), inputs(120)
    whole = metrics_of(model, x)
    cut = output_metrics(model, Samples(list(x.split(28))), sites(model), Teacher())
    assert all(torch.allclose(whole[name], cut[name], rtol=1e-9) for name in whole)


def test_a_model_whose_first_axis_is_time_is_not_cut() -> None:
    class Running(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.seen = nn.Linear(7, 5), 0

        def forward(self, x: Tensor) -> Tensor:
            self.seen = max(self.seen, len(x))
            return self.layer(x.cumsum(0)).cumsum(0).flip(0)

    model = Running().double().eval()
    spread = measure_spread(model, Samples(inputs(200), batch_size=200), Teacher())
    model.seen = 0
    assert spread.chunk < 200
    found = output_metrics(model, Samples(inputs(200), batch_size=200), sites(model), Teacher(), spread)
    assert model.seen == 200
    assert "layer" in found


def test_a_model_without_gradients_has_no_metric() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).detach()

    assert metrics_of(Cut().double(), inputs(10)) == {}


def test_in_inference_mode_plans_are_the_same_and_weights_can_be_trained(tmp_path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)
        net, x = nn.Sequential(*layers), torch.randn(512, 32) + 1
    wanted, dense, filled = rf.plan(net, "params=0.4", data=x), copy.deepcopy(net), copy.deepcopy(net)
    with torch.inference_mode():
        made_here = x + 0  # as most of what is computed here
        for data in (x, made_here):
            assert rf.plan(net, "params=0.4", data=data) == wanted
        assert rf.profile(net, x).plan("params=0.4") == wanted
        small = rf.apply_(net, wanted)
        known = rf.bottlenecks(small, x)
        rf.save(small, wanted, tmp_path / "small")
        stored = rf.load(tmp_path / "small", filled)
        (told,) = rf.tune_(stored.model, dense, x, steps=20)
        sliced = rf.slice_(rf.Stored(small, wanted, {}, known), "params=0.3").model
        assert torch.is_inference_mode_enabled()
    assert known.energy == 1
    assert told.after < told.before
    for made in (stored.model, sliced):
        assert not any(tensor.is_inference() for tensor in made.state_dict().values())
        made(x).square().mean().backward()


def test_a_network_made_in_inference_mode_is_refused_with_the_remedy() -> None:
    with torch.inference_mode():
        net, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(64, 8)
    for verb in (rf.profile, rf.bottlenecks, lambda net, x: rf.plan(net, "params=0.8", data=x)):
        with pytest.raises(ValueError, match=r"0\.weight of this Sequential was made in torch\.inference_mode\(\)"):
            verb(net, x)
    assert rf.plan(copy.deepcopy(net), "params=0.8", data=x).changed
