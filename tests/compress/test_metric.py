"""Output metrics: what they must be in a linear network, and that they predict the change of the model's outputs."""

import copy

import torch
from torch import Tensor, nn

from rankfold.compress.methods.project import Project
from rankfold.compress.metric import output_metrics
from rankfold.compress.statistics import calibrate
from rankfold.sites import Form, sites


def linear_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 6), nn.Linear(6, 5), nn.Linear(5, 4)).double()


def inputs(count: int = 6000) -> Tensor:
    return torch.randn(count, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_metric_of_a_linear_network_is_the_gram_matrix_of_what_follows() -> None:
    model, x = linear_network(), inputs()
    metrics = output_metrics(model, x, sites(model), len(x), 1000)
    centring = torch.eye(4, dtype=torch.float64) - 0.25
    follows = {"0": model[2].weight @ model[1].weight, "1": model[2].weight, "2": torch.eye(4, dtype=torch.float64)}
    for name, map_ in follows.items():
        expected = map_.T @ centring @ map_
        # sampled directions: an error of about 1/√6000 of the norm
        assert (metrics[name] - expected).norm() < 0.1 * expected.norm(), name
    assert not (metrics["1"] - model[2].weight.T @ model[2].weight).norm() < 0.02 * metrics["1"].norm()


def test_predicted_change_of_the_outputs_is_the_measured_one() -> None:
    model, x = linear_network(), inputs()
    found = sites(model)
    statistics = calibrate(model, x, found, samples=None, metric_samples=len(x))
    for site in found:
        weight, bias = site.weight(model), site.bias(model)
        known = statistics.sites[site.name]
        decomposition = Project(damping=1e-9).decompose(site, Form.FACTORED, weight, known, bias)
        factors = decomposition.factors(2)
        changed = copy.deepcopy(model)
        layer = changed.get_submodule(site.name)
        layer.weight.data = factors.parts[1] @ factors.parts[0]
        layer.bias.data = bias + factors.shift
        change = (changed(x) - model(x)).detach()
        change = change - change.mean(1, keepdim=True)
        measured = float(change.square().sum(1).mean())
        predicted = float(decomposition.errors[2]) ** 2
        assert abs(predicted - measured) < 0.1 * measured, site.name


def test_model_is_left_as_found_and_frozen_parameters_do_not_matter() -> None:
    model, x = linear_network(), inputs(50)
    before = output_metrics(model, x, sites(model), 50, 50)
    model.requires_grad_(False)
    model.train()
    after = output_metrics(model, x, sites(model), 50, 50)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(not module._forward_hooks for module in model.modules())


def test_a_model_without_gradients_has_no_metric() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).detach()

    model = Cut().double()
    assert output_metrics(model, inputs(10), sites(model), 10, 10) == {}
