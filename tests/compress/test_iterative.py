"""Iterative truncation takes the steps that plain forward passes would take, and leaves everything as found."""

import copy
from dataclasses import dataclass, replace
from itertools import count

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import network
from torch import nn

import rankfold as rf
from rankfold.batches import arguments, labels_of
from rankfold.compress.methods import method_named
from rankfold.compress.planning.candidates import Counter, decompose, options
from rankfold.compress.ranks.budget import Params
from rankfold.compress.ranks.iterative import iterate, start, truncations
from rankfold.compress.ranks.options import BudgetError
from rankfold.compress.ranks.replay import Replay, ReplayError, Tape
from rankfold.compress.ranks.rules import Iterative
from rankfold.compress.ranks.sampling import POOL, alike, draw, join
from rankfold.compress.sensitivity import relative_energy
from rankfold.compress.statistics import calibrate
from rankfold.compress.trial import Trial
from rankfold.costs import evaluating, trace
from rankfold.objectives import main_tensor
from rankfold.sites import Form, opened, replace_, sites


def quiet(what, done, total):
    pass


@dataclass
class Problem:
    """What the planner hands to the iterative rule."""

    root: nn.Module
    candidates: dict
    choices: dict
    limits: tuple

    def steps(self, samples, step, most=10_000, counted="stored"):
        taken = []

        def watch(done):
            taken.append((done.site, done.option.rank))
            return len(taken) < most

        rule = Iterative(step, counted=counted)
        truncations(self.root, self.candidates, self.choices, self.limits, samples, rule, watch)
        return taken


def problem(root, batch, keep=0.5, method="truncate", only=None):
    """The sites of ``root`` to be truncated to ``keep`` of their parameters."""
    args, kwargs = arguments(batch)
    found = sites(root, only)
    _, calls = trace(root, kwargs if kwargs else args, found)
    method = method_named(method)
    statistics = calibrate(root, [batch], found) if method.needs_data else None
    with opened(root):
        candidates = {k: v[:1] for k, v in decompose(root, found, method, statistics, quiet).candidates.items()}
        counter = Counter(calls, 1, {site.name: 8 for site in found})
        prices = relative_energy([c for group in candidates.values() for c in group])
        choices = options(found, candidates, prices, (Params(keep),), (Params(keep),), counter)
    total = sum(group[0].costs[0] for group in choices.values())
    return Problem(root, candidates, choices, (keep * total,))


def singles(batch):
    args, kwargs = arguments(batch)
    size = len(next(iter((*args, *kwargs.values()))))
    return draw([batch], size, torch.Generator().manual_seed(0))


def naive(problem, samples, step, most=10_000, counted="stored"):
    """The same steps by building every truncated network and running it from end to end."""
    by_value = counted == "values"
    batch = join(samples)
    args, kwargs = arguments(batch)
    picked, taken = start(problem.choices), []

    def params(site, option):
        layer, kept = problem.candidates[site][0].site.layer, option.form is Form.KEEP
        if kept and by_value:
            (m, n), groups = problem.candidates[site][0].site.shape, layer.groups
            bias = m * groups if problem.candidates[site][0].bias else 0
            return groups * min(m, n) * (m + n) + bias
        return layer.params(option.form, option.rank, layer.has_bias if kept else problem.candidates[site][0].bias)

    def cost(choice):
        return sum(min(option.costs[0], problem.choices[site][0].costs[0]) for site, option in choice.items())

    def options_of(site):
        keep, *rest = problem.choices[site]
        alike = [o for o in rest if o.form is problem.candidates[site][0].form]
        return [o for o in alike if o.costs[0] < keep.costs[0] or (by_value and o.rank < keep.rank)]

    def built(choice):
        model = copy.deepcopy(problem.root)
        for name, option in choice.items():
            if option.form is Form.KEEP:
                continue
            candidate, old = problem.candidates[name][0], model.get_submodule(name)
            new = candidate.site.layer.skeleton(old, option.form, option.rank, True)
            factors = candidate.decomposition.factors(option.rank)
            candidate.site.layer.write_(new, option.form, factors)
            with torch.no_grad():
                given = getattr(old, "bias", None)  # an embedding has none
                bias = torch.zeros_like(new.bias) if given is None else given.detach().clone()
                new.bias.copy_(bias if factors.shift is None else bias + factors.shift)
            replace_(model, {old: new})
        return model

    with evaluating(problem.root), opened(problem.root):
        original = main_tensor(problem.root(*args, **kwargs))
        while cost(picked) > problem.limits[0] and len(taken) < most:
            tried = []
            for site in problem.choices:
                lower = [
                    o
                    for o in options_of(site)
                    if (picked[site].form is Form.KEEP or o.rank < picked[site].rank)
                    and (
                        params(site, o) <= params(site, picked[site]) - step
                        or cost({**picked, site: o}) <= problem.limits[0]
                    )
                ]
                if lower:
                    way = max(lower, key=lambda o: o.rank)
                    with evaluating(changed := built({**picked, site: way})):
                        tried.append((plain_loss(changed(*args, **kwargs), labels_of(batch), original), site, way))
            _, site, way = min(tried, key=lambda t: t[0])
            picked[site] = way
            taken.append((site, way.rank))
    return taken


def plain_loss(output, labels, original):
    logits = main_tensor(output)
    if labels is not None and logits.dim() == 2:
        return float(F.cross_entropy(logits, labels))
    return float(F.kl_div(logits.log_softmax(-1), original.log_softmax(-1), reduction="sum", log_target=True))


class Residual(nn.Module):
    """Convolutions around which values are changed in place, one layer called twice, one never."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.twice = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.wide = nn.Conv2d(6, 9, (3, 1), groups=3)
        self.never = nn.Linear(9, 9)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(9, 4)

    def forward(self, x):
        x = self.stem(x)
        y = self.twice(x)
        y += x
        x = self.twice(y).relu_() + x
        x *= 0.5
        return self.head(self.drop(self.wide(x).flatten(2).mean(2)))


def residual(seed=0, samples=24, labelled=True):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Residual().double()
        x, y = torch.randn(samples, 3, 6, 6, dtype=torch.float64), torch.randint(0, 4, (samples,))
    return model, (x, y) if labelled else x


@given(st.integers(0, 1000), st.integers(20, 60), st.floats(0.4, 0.8), st.booleans())
@settings(max_examples=4)
def test_steps_are_those_of_plain_forward_passes(seed, step, keep, labelled):
    model, batch = residual(seed, labelled=labelled)
    task = problem(model, batch, keep)
    samples = singles(batch)
    steps = task.steps(samples, step, 6)
    assert steps == naive(task, samples, step, 6)
    assert len(steps) > 1


@given(st.integers(0, 1000), st.integers(5, 40), st.floats(0.4, 0.8))
@settings(max_examples=4)
def test_steps_counted_by_value_are_those_of_plain_forward_passes(seed, step, keep):
    model, batch = residual(seed)
    task = problem(model, batch, keep)
    samples = singles(batch)
    steps = task.steps(samples, step, 8, "values")
    assert steps == naive(task, samples, step, 8, "values")
    assert steps != task.steps(samples, step, 8)


def test_the_first_step_counts_what_is_stored_or_every_value_alike():
    """40 × 40: rank 19 is the first whose factors have 50 fewer than the matrix; a value counts 80: one goes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40, bias=False)).double()
    task = problem(model, torch.randn(20, 40).double(), 0.5)
    samples = singles(torch.randn(20, 40).double())
    assert task.steps(samples, 50, 2) == [("0", 19), ("0", 18)]
    by_value = task.steps(samples, 50, counted="values")
    assert by_value == [("0", rank) for rank in range(39, 9, -1)]  # 0.5 · 1,600 is rank 10
    assert task.steps(samples, 170, counted="values")[:2] == [("0", 37), ("0", 34)]


def test_a_layer_whose_factors_save_nothing_is_kept_whole():
    """Counted by value both layers are truncated on the way; in the plan stands only what is smaller for it."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(30, 30, bias=False), nn.Linear(30, 30, bias=False))
    model[0].weight.data += 30 * torch.outer(torch.ones(30), torch.ones(30)) / 30  # its tail matters less
    batch = torch.randn(64, 30)
    plan = rf.plan(model, "params=0.75", "truncate", [batch], rule=Iterative(60, 64, counted="values"))
    assert plan.after.params <= 0.75 * plan.before.params
    assert all(entry.form is Form.KEEP or entry.rank < 15 for entry in plan.entries)
    with pytest.raises(ValueError, match="'stored' or 'values'"):
        Iterative(counted="all")


@pytest.mark.parametrize("name", ["conv_net", "encoder", "encoder_decoder", "gpt2", "t5"])
def test_steps_are_those_of_plain_forward_passes_in_known_networks(name):
    if name in ("gpt2", "t5"):
        pytest.importorskip("transformers")
    model, batch = network(name, torch.float64)
    model.requires_grad_(False)
    batch = as_double(batch)
    task = problem(model, batch, 0.6)
    samples = singles(batch)
    assert task.steps(samples, 150, 3) == naive(task, samples, 150, 3)


def as_double(value):
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: as_double(item) for key, item in value.items()}
    return tuple(as_double(item) for item in value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("method", ["project", "tucker"])
def test_steps_are_those_of_plain_forward_passes_for_other_methods(method):
    model, batch = residual(3)
    task = problem(model, batch, 0.6, method)
    samples = singles(batch)
    assert task.steps(samples, 40) == naive(task, samples, 40)


def test_plain_forward_passes_reject_a_loss_on_part_of_the_samples(monkeypatch):
    model, batch = residual(1, samples=64)
    task, samples = problem(model, batch, 0.4), None
    samples = singles(batch)
    whole = Trial.loss
    monkeypatch.setattr(Trial, "loss", lambda self, site, option, bound: whole(self, site, option, -1.0))
    assert task.steps(samples, 20) != naive(task, samples, 20)


def test_samples_go_through_in_chunks_and_hopeless_sites_are_given_up(monkeypatch):
    model, batch = residual(1, samples=64)
    task, samples = problem(model, batch, 0.4), singles(batch)
    expected = naive(task, samples, 20)
    monkeypatch.setattr("rankfold.compress.trial.CHUNK", 4)
    seen, whole = count(), Trial._changed
    monkeypatch.setattr(Trial, "_changed", lambda *a: (next(seen), whole(*a))[1])
    assert task.steps(samples, 20) == expected
    trials = 16 * sum(1 for site in task.candidates if task.candidates[site]) * len(expected)
    assert next(seen) < 0.8 * trials


def test_a_wrong_replay_is_noticed_and_left(monkeypatch):
    model, batch = residual(2)
    task, samples = problem(model, batch, 0.5), singles(batch)
    first = Tape.first
    monkeypatch.setattr(Tape, "first", lambda self, module: first(self, module) + 1)
    assert task.steps(samples, 30) == naive(task, samples, 30)


class Stateful(nn.Module):
    """Calls its layers in another order every time, and rectifies for the side effect alone."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.act = nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        parts = [self.one, self.two] if self.calls % 2 else [self.two, self.one]
        a, b = (part(x) for part in parts)
        total = a + b
        self.act(total)
        return self.head(total)


def test_networks_that_cannot_be_replayed_take_the_same_steps():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, batch = Stateful().double(), (torch.randn(20, 8).double(), torch.randint(0, 3, (20,)))
    task, samples = problem(model, batch, 0.6), singles(batch)
    assert task.steps(samples, 8) == naive(task, samples, 8)


def test_views_of_images_are_left_as_they_are():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(96, 4)

        def forward(self, x):
            return self.head(self.conv(x).view(len(x), -1))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, batch = Viewing().double(), torch.randn(12, 3, 6, 6).double()
    task, samples = problem(model, batch, 0.6), singles(batch)
    assert task.steps(samples, 60) == naive(task, samples, 60)


def state(model):
    return {
        path: (
            [(name, id(p), None if p is None else p._version) for name, p in module._parameters.items()],
            module.training,
            "forward" in module.__dict__,
            list(module._forward_hooks),
        )
        for path, module in model.named_modules()
    }


def test_the_network_is_left_as_found_even_after_an_error():
    model, batch = residual(0)
    model.train()
    model.stem.eval()
    model.head.register_forward_hook(lambda *a: None)
    task, samples = problem(model, batch, 0.5), singles(batch)
    before = state(model)
    with torch.enable_grad():
        task.steps(samples, 40)
        assert torch.is_grad_enabled()
    assert state(model) == before

    def fail(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        truncations(model, task.candidates, task.choices, task.limits, samples, Iterative(40), fail)
    assert state(model) == before


def test_the_last_step_removes_no_more_than_needed():
    model, batch = residual(0)
    task, samples = problem(model, batch, 0.5), singles(batch)
    picked = start(task.choices)
    steps = []
    truncations(
        model, task.candidates, task.choices, task.limits, samples, Iterative(70), lambda s: steps.append(s) or True
    )
    for step in steps:
        picked[step.site] = step.option
    total = sum(option.costs[0] for option in picked.values())
    last = steps[-1]
    group = task.choices[last.site]
    above = [o.costs[0] for o in group if o.form is last.option.form and o.rank == last.option.rank + 1]
    assert total <= task.limits[0]
    assert above
    assert total - last.option.costs[0] + above[0] > task.limits[0]


def test_layers_smaller_than_a_step_give_what_they_have_in_the_end():
    model, batch = residual(0)
    task = problem(model, batch, 0.5)
    least = sum(min(o.costs[0] for o in group) for group in task.choices.values())
    task = replace(task, limits=(least,))
    steps = task.steps(singles(batch), 200)
    assert dict(steps) == dict.fromkeys(dict(steps), 1)
    with pytest.raises(BudgetError, match="iterative rule"):
        replace(task, limits=(least - 1,)).steps(singles(batch), 200)


def test_given_ranks_are_in_place_from_the_start():
    model, batch = residual(0)
    task = problem(model, batch, 0.5)
    low = task.choices["twice"][1]
    task.choices["twice"] = [low]
    picked = iterate(model, task.candidates, task.choices, task.limits, [batch], Iterative(40, samples=10), quiet)
    assert picked["twice"] == low
    assert sum(option.costs[0] for option in picked.values()) <= task.limits[0]


def test_progress_ends_at_a_hundred_and_the_draw_follows_the_seed():
    model, batch = residual(0)
    task = problem(model, batch, 0.5)
    told = []
    before = torch.get_rng_state()
    picked = [
        iterate(
            model,
            task.candidates,
            task.choices,
            task.limits,
            [batch],
            Iterative(40, samples=6, seed=seed),
            lambda *what: told.append(what),
        )
        for seed in (0, 0, 1, 2, 3, 4)
    ]
    assert picked[0] == picked[1]
    assert any(other != picked[0] for other in picked[2:])
    assert told[-1] == ("truncating", 100, 100)
    assert all(0 <= done <= 100 for _, done, _ in told)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 99))
def test_a_draw_has_no_sample_twice_and_follows_the_generator(size, wanted, seed):
    data = [torch.arange(size).unsqueeze(1)]
    first, second = (draw(data, wanted, torch.Generator().manual_seed(seed)) for _ in range(2))
    values = [int(sample) for sample in first]
    assert len(set(values)) == len(values) == min(size, wanted)
    assert values == [int(sample) for sample in second]


def test_a_draw_reads_endless_streams_mappings_and_data_sets():
    endless = ((torch.full((16, 2), float(i)), torch.full((16,), i)) for i in count())
    samples = draw(endless, 50, torch.Generator().manual_seed(0))
    assert len(samples) == 50
    assert max(int(y) for _, y in samples) < POOL // 16
    mapping = {"ids": torch.arange(12).reshape(6, 2), "labels": torch.arange(6)}
    for sample in draw([mapping], 4, torch.Generator().manual_seed(0)):
        assert int(sample["ids"][0, 0]) == 2 * int(sample["labels"])
    whole = torch.utils.data.TensorDataset(torch.arange(5000), torch.arange(5000))
    drawn = draw(whole, 100, torch.Generator().manual_seed(0))
    assert max(int(x) for x, _ in drawn) > POOL
    with pytest.raises(ValueError, match="empty"):
        draw([], 3, torch.Generator())


def test_samples_join_by_shape():
    samples = [(torch.zeros(1, 3 + i % 2), torch.tensor([i])) for i in range(7)]
    groups = alike(samples, 2)
    assert sorted(index for group in groups for index in group) == list(range(7))
    for group in groups:
        x, y = join([samples[i] for i in group])
        assert y.tolist() == group
        assert len(x) == len(group) <= 2


class Counting(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.ran = layer, 0

    def forward(self, x):
        self.ran += 1
        return self.layer(x)


def test_a_replay_computes_only_what_follows_the_change():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [Counting(nn.Linear(4, 4)) for _ in range(5)]
        x = torch.randn(3, 4)
    model = nn.Sequential(nn.Sequential(*layers[:2]), *layers[2:]).eval()
    own = layers[3].forward = layers[3].forward
    with torch.no_grad(), Replay(model) as replay:
        tape, output = replay.record(lambda: model(x))
        assert torch.equal(replay.play(lambda: model(x), tape, layers[3]), output)
        assert [layer.ran for layer in layers] == [1, 1, 1, 2, 2]
        layers[2].layer.weight.mul_(2)
        tape, output = replay.record(lambda: model(x), tape, layers[2])
        assert [layer.ran for layer in layers] == [1, 1, 2, 3, 3]
        assert torch.equal(replay.play(lambda: model(x), tape, layers[4]), output)
        with pytest.raises(ReplayError, match="tape"):
            replay.play(lambda: layers[1](x), tape, layers[4])
    assert layers[3].__dict__["forward"] is own
    assert torch.equal(model(x), output)


def test_outputs_beyond_the_memory_are_computed_again(monkeypatch):
    model, batch = residual(0)
    task, samples = problem(model, batch, 0.5), singles(batch)
    expected = task.steps(samples, 40)
    monkeypatch.setattr("rankfold.compress.trial.MEMORY", 20_000)
    assert task.steps(samples, 40) == expected


def test_labels_out_of_range_are_named() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    data = (torch.randn(20, 6), torch.full((20,), 7))
    with pytest.raises(ValueError, match=r"label 7, .* from 0 to 2"):
        rf.plan(model, "params=0.6", "truncate", data, rule="iterative")


def test_many_layers_are_probed_on_fewer_samples():
    """A network of 40 layers passes no more samples in all than one of 64 candidates would."""
    from rankfold.compress.ranks.rules import Optimal
    from rankfold.compress.sensitivity import probe_samples

    rule = Optimal()
    assert [probe_samples(rule, count) for count in (1, 64, 128, 240, 10_000)] == [256, 256, 128, 68, 32]
    assert probe_samples(Optimal(samples=16), 240) == 16


class RuledOut(nn.Module):
    """Scores of six classes, two of which it rules out, or leaves away."""

    def __init__(self, away: bool) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(
                nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 6, bias=False)
            )
        self.away = away

    def forward(self, x):
        scores = self.body(x)
        return scores[:, :4] if self.away else scores.index_fill(-1, torch.tensor([4, 5]), -torch.inf)


def test_classes_that_a_network_rules_out_count_as_if_they_were_not_there():
    x = torch.randn(128, 16, generator=torch.Generator().manual_seed(0))
    found = [rf.plan(RuledOut(away), "params=0.6", data=x, rule="iterative") for away in (True, False)]
    told = [[(entry.site, entry.form, entry.rank) for entry in plan.entries] for plan in found]
    assert told[0] == told[1]
    assert any(form is not Form.KEEP for _, form, _ in told[0])
