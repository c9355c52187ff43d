"""The token metric: what a layer's error costs a language model in nats, against direct computation."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from networks import gpt2, llama, tokens
from torch import Tensor, nn

import rankfold as rf
from rankfold.batches import forward
from rankfold.compress import tokens as token_metric
from rankfold.compress.measured import SiteStatistics, Statistics
from rankfold.compress.methods.project import Projected
from rankfold.compress.planning import decide, probe
from rankfold.compress.statistics import calibrate
from rankfold.compress.tokens import moment_for, slope_of, token_metrics
from rankfold.linalg import Moments, project
from rankfold.observe import Samples
from rankfold.observe.passes import Apart
from rankfold.sites import sites

LM = rf.CausalLanguageModel()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(size: int, seed: int) -> Tensor:
    root = drawn(size, size, seed=seed)
    return root @ root.mT + 0.1 * torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(9, 5), (6, 6)])
@pytest.mark.parametrize("rank", [1, 3])
def test_the_inner_metric_is_all_that_the_optimum_needs(shape, rank):
    """The dense solution D^{-1/2} (D^{1/2} W H^{1/2})_r H^{-1/2}; with D and H exchanged it is another."""
    (m, n), weight = shape, drawn(*shape)
    moment, metric = positive(n, 1), positive(m, 2)
    found = project(weight, inputs=moment, inner=weight.mT @ metric @ weight)
    left, right = found.factors(rank)

    def root(matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return vectors * values.sqrt() @ vectors.mT

    a, b = root(metric), root(moment)
    u, s, vh = torch.linalg.svd(a @ weight @ b, full_matrices=False)
    wanted = a.inverse() @ (u[:, :rank] * s[:rank]) @ vh[:rank] @ b.inverse()
    torch.testing.assert_close(left @ right, wanted, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found.errors[rank], s[rank:].square().sum().sqrt(), rtol=1e-8, atol=1e-9)


def test_the_inner_metric_stands_alone():
    weight = drawn(4, 6)
    with pytest.raises(ValueError, match="for m ≥ n"):
        project(weight, inputs=positive(6, 0), inner=positive(6, 1))
    with pytest.raises(ValueError, match="without another metric"):
        project(weight.mT, inputs=positive(4, 0), inner=positive(4, 1), metric=positive(6, 2))


def test_small_moments_are_those_of_the_large_ones():
    model = nn.Sequential(nn.Linear(5, 9)).double()
    (site,) = sites(model)
    weight, gradient = site.matrix(model), drawn(3, 7, 9)
    rows = gradient.reshape(-1, 9)
    large = weight.mT @ (rows.mT @ rows) @ weight
    moment = moment_for({"0": weight}, 0.5)(site, gradient)
    torch.testing.assert_close(moment, 0.5 * large, rtol=1e-12, atol=1e-12)
    averaged = gradient.mean(1) @ weight  # over sequences instead of tokens
    assert not torch.allclose(moment, 0.5 * averaged.mT @ averaged, rtol=0.1)


def test_slopes_have_the_second_moment_of_the_softmax():
    scores = drawn(7).float()
    p = scores.softmax(-1).double()
    rows = slope_of(scores.expand(20_000, 7), torch.Generator().manual_seed(0)).double()
    wanted = torch.diag(p) - p.outer(p)
    torch.testing.assert_close(rows.mT @ rows / len(rows), wanted, rtol=0, atol=4 / len(rows) ** 0.5)
    torch.testing.assert_close(rows.mean(0), torch.zeros(7, dtype=torch.float64), rtol=0, atol=4 / len(rows) ** 0.5)
    certain = slope_of(torch.tensor([[0.0, 80.0, 0.0]]), torch.Generator())
    assert certain.abs().max() < 1e-6


class Small(nn.Module):
    """Tokens to scores of tokens through two layers, the second with more outputs than inputs."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed, self.a, self.b = nn.Embedding(20, 12), nn.Linear(12, 12, bias=False), nn.Linear(12, 20, False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.b(torch.tanh(self.a(self.embed(input_ids))))


def batches(count: int = 256, length: int = 16, seed: int = 0) -> list[dict[str, Tensor]]:
    ids = torch.randint(0, 20, (count, length), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": part} for part in ids.split(32)]


@torch.no_grad()
def lost(small: nn.Module, model: nn.Module, data: list[dict[str, Tensor]]) -> float:
    return float(torch.cat([LM.divergence(forward(small, b), forward(model, b), b) for b in data]).mean())


@pytest.mark.parametrize("name", ["a", "b"])
def test_half_the_fisher_cost_is_the_divergence_of_a_small_change(name):
    """The ratio tends to 1 as the change is halved."""
    model, data = Small().double().eval(), batches()
    seen = Samples(data, None)
    metric = token_metrics(model, seen, sites(model), LM).fisher[name]
    site = sites(model)[name]
    weight = site.matrix(model)
    inputs: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda layer, args: inputs.append(args[0].detach()))
    for batch in data:
        forward(model, batch)
    hook.remove()
    rows = torch.cat([each.reshape(-1, 12) for each in inputs])
    moment = rows.mT @ rows / len(rows)
    step = drawn(12, 12, seed=3)
    change = weight @ step  # so that both kinds of metric can say what it costs
    inner = metric.shape[0] != len(weight)
    cost = (step if inner else change) @ moment @ (step if inner else change).mT
    predicted = float((metric * cost).sum())
    ratios = []
    for scale in (0.04, 0.02, 0.01):
        small = copy.deepcopy(model)
        with torch.no_grad():
            small.get_submodule(name).weight.add_(scale * change)
        ratios.append(lost(small, model, data) / (scale**2 * predicted))
    assert abs(ratios[-1] - 1) < 0.06, ratios  # of 4096 drawn tokens
    assert abs(ratios[-1] - 1) <= abs(ratios[0] - 1) + 0.02, ratios


@pytest.mark.parametrize(("enough", "backward"), [(1 << 20, 2), (1, 1)])
def test_one_forward_and_two_backward_passes_or_one_where_half_of_the_tokens_are_enough(enough, backward, monkeypatch):
    model, data, calls = Small().eval(), batches(64), []
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append("backward") or real(*a, **k))
    model.register_forward_hook(lambda *_: calls.append("forward"))
    spread = token_metric.measure_spread(model, Samples(data, None), LM)
    for name, answer in (("separable", True), ("layout_for", torch.contiguous_format)):  # each runs the model once
        monkeypatch.setattr(f"rankfold.compress.metric.{name}", lambda *_, found=answer: found)
    monkeypatch.setattr(token_metric, "ENOUGH", enough)
    calls.clear()
    found = token_metrics(model, Samples(data, None), sites(model), LM, spread)
    assert found.fisher.keys() == found.outputs.keys()
    assert calls.count("forward") == 4  # 64 samples, 16 at a time
    assert calls.count("backward") == backward * calls.count("forward")


def test_no_statistic_is_larger_than_the_smaller_side():
    model = llama()[0].eval()
    found = calibrate(model, [llama()[1]], sites(model), objective=LM)
    assert found.nats
    seen = 0
    for site in sites(model).reducible:
        if site.name in found.sites:
            known, least = found.sites[site.name], min(site.shape)
            for each in (known.moments.covariance_sum, known.metric, known.coarse):
                assert each.shape == (least, least), site.title
            seen += 1
    assert seen == 15 + ("lm_head" in found.sites)  # two blocks, and the embedding


@pytest.mark.parametrize("make", [gpt2, llama])
def test_padding_counts_nowhere(make):
    model = make()[0].eval()
    ids, mask = tokens(8, 10)
    padded = [{"input_ids": ids, "attention_mask": mask}]
    short = [
        {"input_ids": ids[:4, :7], "attention_mask": mask[:4, :7]},
        {"input_ids": ids[4:], "attention_mask": mask[4:]},
    ]
    assert int(mask[:4].sum()) == 28
    found, wanted = (calibrate(model, data, sites(model), objective=LM) for data in (padded, short))
    for name, known in wanted.sites.items():
        if name.endswith("wpe"):  # positions are looked up once for all samples
            continue
        assert found.sites[name].moments.count == known.moments.count == 28 + 40
        torch.testing.assert_close(found.sites[name].moments.gram, known.moments.gram, rtol=1e-4, atol=1e-5)


def test_the_statistics_are_read_as_they_were_written(tmp_path):
    model = llama()[0].eval()
    found = calibrate(model, [llama()[1]], sites(model), objective=LM)
    found.save(tmp_path / "s")
    again = Statistics.load(tmp_path / "s")
    assert again.nats
    for name, known in found.sites.items():
        assert torch.equal(again.sites[name].coarse, known.coarse)
        assert again.sites[name].free == known.free is False
        assert torch.equal(again.sites[name].covariance, known.covariance)


@pytest.mark.parametrize("shape", [(5, 8), (9, 5)])
def test_a_cost_in_another_metric(shape):
    (m, n), weight = shape, drawn(*shape)
    rows = drawn(200, n, seed=1) @ drawn(n, n, seed=2)
    first, other = positive(m, 3), positive(m, 4)
    wide = m <= n
    moments = Moments(m if wide else n).update(rows @ weight.mT if wide else rows)
    taken = (first, other) if wide else (weight.mT @ first @ weight, weight.mT @ other @ weight)
    made = Projected(
        "output" if wide else "input", weight, SiteStatistics(moments, metric=taken[0], free=False), None, 0.01
    )
    for rank in (1, 3):
        left, right = made.projection.factors(rank)
        change = weight - left @ right
        wanted = torch.trace(other @ change @ (rows.mT @ rows / 200) @ change.mT)
        assert made.cost_in(taken[1], rank) == pytest.approx(float(wanted), rel=1e-8)


def known_of(model: nn.Module, data: list[dict[str, Tensor]]) -> rf.Profile:
    # not the embedding: of 20 tokens what a row is and how much it matters are not independent
    return rf.profile(model, data, objective=LM, where="[ab]")


def test_a_plan_forecasts_nats_and_adds_no_bias():
    model, data = Small().eval(), batches()
    with torch.no_grad():
        model.b.weight.mul_(3)
    known = known_of(model, data)
    plan = known.plan("params=0.95")
    assert plan.calibration["unit"] == "nats per token"
    assert plan.forecast == pytest.approx(sum(entry.predicted_loss for entry in plan.entries))
    assert not any(entry.bias for entry in plan.entries)
    small = rf.apply_(copy.deepcopy(model), plan, known)
    measured = lost(small, model, batches(seed=9))
    assert 0.5 < measured / plan.forecast < 2
    assert not [name for name, _ in small.named_parameters() if "bias" in name]


@pytest.mark.parametrize("better", ["fisher", "outputs"])
def test_the_nearer_of_two_plans_is_taken_and_made_again_without_the_profile(better, monkeypatch, tmp_path):
    model, data = Small().eval(), batches()
    with torch.no_grad():
        model.b.weight.mul_(3)
    known = known_of(model, data)
    monkeypatch.setattr(decide, "CERTAIN", 0.0)
    measured = []

    def divergence(known: rf.Profile, plan: rf.Plan, batch: object) -> float:
        measured.append(plan.calibration.get("metric", "fisher"))
        return 0.1 if measured[-1] == better else 0.2

    monkeypatch.setattr(probe, "_divergence", divergence)
    plan = known.plan("params=0.7")
    assert measured == ["fisher", "outputs"]
    assert plan.calibration.get("metric", "fisher") == better
    assert plan.calibration["probe"] == plan.total.probe == plan.total.to_dict()["probe"] == 0.1
    assert plan.total.sentence.endswith("; the whole, tried on a few tokens of the calibration data, loses 0.1")
    assert plan.forecast > 0
    small = rf.apply_(copy.deepcopy(model), plan, known)
    plan.save(tmp_path / "plan.json")
    again = rf.apply_(copy.deepcopy(model), rf.Plan.load(tmp_path / "plan.json"))
    torch.testing.assert_close(again(data[0]["input_ids"]), small(data[0]["input_ids"]))
    other = replace(plan, calibration={"unit": "nats per token"})  # of the other metric: other factors
    if better == "outputs":
        wrong = rf.apply_(copy.deepcopy(model), other, known)
        assert not torch.allclose(wrong(data[0]["input_ids"]), small(data[0]["input_ids"]), rtol=1e-5, atol=1e-6)


def test_other_objectives_are_measured_as_before():
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).eval()
    data = (torch.randn(128, 6), torch.randint(4, (128,)))
    plan = rf.plan(model, "params=0.6", data=data)
    assert plan.calibration["unit"] == "squared change"
    assert plan.statistics.sites["0"].metric.shape == (9, 9)


@pytest.mark.parametrize("enough", [1 << 20, 1])
def test_metrics_in_passing_are_those_of_a_pass_of_their_own(enough, monkeypatch):
    """Where each batch can be differentiated at once, moments and metrics come from the same forward pass."""
    model, calls = Small().eval(), []
    data = [{"input_ids": part} for batch in batches(64) for part in batch["input_ids"].split(16)]
    assert len(data) == 4
    monkeypatch.setattr(token_metric, "ENOUGH", enough)
    apart = token_metrics(model, Samples(data, None), sites(model), LM)
    model.register_forward_hook(lambda *_: calls.append(1))
    for place in ("compress.statistics", "compress.tokens"):  # it runs the model once
        monkeypatch.setattr(f"rankfold.{place}.layout_for", lambda *_: torch.contiguous_format)
    monkeypatch.setattr("rankfold.compress.statistics.apart", lambda *_: Apart(True, {}))  # twice, on a few samples
    found = calibrate(model, data, sites(model), objective=LM)
    assert len(calls) == len(data)
    assert apart.fisher.keys() == {name for name, each in found.sites.items() if each.metric is not None}
    for name, each in found.sites.items():
        for metric, other in ((each.metric, apart.fisher[name]), (each.coarse, apart.outputs[name])):
            assert float((metric - other).norm()) < 1e-5 * float(other.norm())


class NoGradients(Small):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("not with a graph")
        return super().forward(input_ids)


def test_a_model_that_cannot_run_with_a_graph_gives_moments_of_every_sample_once():
    data = [{"input_ids": part} for batch in batches(64) for part in batch["input_ids"].split(16)]
    with pytest.warns(UserWarning, match="cannot be differentiated"):
        found = calibrate(NoGradients().eval(), data, sites(NoGradients()), objective=LM)
    assert found.sites["a"].moments.count == 64 * 16
    assert found.sites["a"].metric is None
