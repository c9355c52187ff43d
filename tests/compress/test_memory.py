"""Moments that would not fit are refused or measured a few at a time, before anything is measured."""

import copy

import pytest
import torch
from living import Living
from torch import nn

import rankfold as rf
from rankfold.compress import affordable as together
from rankfold.compress.affordable import bytes_together, moments_bytes
from rankfold.compress.layerwise import in_parts
from rankfold.compress.layerwise.in_parts import affordable
from rankfold.compress.layerwise.pairs import Pairs, bytes_needed
from rankfold.compress.statistics import calibrate
from rankfold.linalg import Moments
from rankfold.linalg.on_data import ridge
from rankfold.linalg.on_data.cross_moments import CrossMoments
from rankfold.pipeline import analyse
from rankfold.run.processes.memory import available
from rankfold.sites import Form, Names, Site, sites


class Counted(nn.Sequential):
    calls = 0

    def forward(self, x):
        type(self).calls += 1
        return super().forward(x)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Counted(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 8)).eval()


def data() -> list[torch.Tensor]:
    return list(torch.randn(256, 16, generator=torch.Generator().manual_seed(1)).split(32))


@pytest.fixture
def free(monkeypatch):
    """Sets how much memory this machine says that it has."""

    def has(size: int) -> None:
        for module in (together, in_parts):
            monkeypatch.setattr(module, "available", lambda: size)

    return has


def test_this_machine_tells_what_is_free():
    size = available()
    assert size is None or 1 << 20 < size < 1 << 50


def test_what_would_not_fit_is_refused_before_any_sample_is_seen(free):
    model, need = network(), bytes_together(sites(network()).reducible)
    free(int(need / 0.9) + 1000)
    rf.profile(model, data())
    free(sum(map(moments_bytes, sites(model).reducible)))
    Counted.calls = 0
    named = r"second moments of 3 layers and what is made of them .*2 \(Linear 48×48\) alone"
    with pytest.raises(ValueError, match=named) as caught:
        calibrate(model, data(), sites(model))
    assert Counted.calls == 0
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="second moments"):
        analyse(model, torch.cat(data()))
    free(int(need / 0.9) - 1000)
    with pytest.raises(ValueError, match=rf"{named}.*leave layers out \(--exclude, where=\)"):
        rf.plan(model, "params=0.7", data=data())
    # each remedy that is named works
    assert rf.plan(model, "params=0.9", data=data(), where=Names(exclude=("2",))).entries
    assert rf.plan(model, "params=0.7", "truncate", data=data()).changed
    assert rf.plan(model, "params=0.7", "sequential", data=data()).changed


def test_a_method_that_needs_all_moments_together_is_refused_where_the_bound_is_less():
    known = sites(network())
    need = bytes_together(known.reducible)
    with pytest.raises(ValueError, match=r"\d kB are allowed .*give at least --memory 1MB; leave layers out"):
        rf.plan(network(), "params=0.8", data=data(), calibration=rf.Calibration(memory=need - 1))
    for memory in (need, 1_000_000):
        assert rf.plan(network(), "params=0.8", data=data(), calibration=rf.Calibration(memory=memory)).changed


def test_layers_that_are_fitted_one_after_another_are_measured_in_parts_although_nobody_asked(free, monkeypatch):
    torch.manual_seed(0)
    model, passes = nn.Sequential(*(part for _ in range(6) for part in (nn.Linear(24, 24), nn.Tanh()))).eval(), []
    seen, found = list(torch.randn(256, 24).split(32)), sites(model)
    whole = sum(map(moments_bytes, found.reducible))
    free(10 * whole)
    assert affordable(found, None) is None
    assert affordable(found, 5) == 5
    at_once = rf.plan(model, "params=0.7", "sequential", seen)
    original = in_parts.calibrate
    monkeypatch.setattr(in_parts, "calibrate", lambda *args, **more: passes.append(1) or original(*args, **more))
    free(whole)
    assert affordable(found, None) == whole // 2
    in_turn = rf.plan(model, "params=0.7", "sequential", seen)
    assert len(passes) == 2  # three layers at a time
    assert [(e.site, e.form) for e in in_turn.entries] == [(e.site, e.form) for e in at_once.entries]


# ---- layer after layer only where held-out samples say so ------------------------------------------------------------


def error(model: nn.Module, plan: rf.Plan, samples: torch.Tensor) -> float:
    small = rf.apply_(copy.deepcopy(model), plan)
    with torch.no_grad():
        return float((small(samples) - model(samples)).norm() / model(samples).norm())


@pytest.mark.parametrize("memory", [None, 1 << 20, 160_000])
@pytest.mark.parametrize("samples", [24, 40, 64])
def test_with_few_samples_one_shot_is_kept_where_it_is_nearer(samples, memory):
    """Whatever the bound of memory: judged by samples that neither the fits nor the one shot have seen."""
    model, few = network(), list(torch.cat(data())[:samples].split(8))
    how = rf.Calibration(memory=memory)
    plan = rf.plan(model, "params=0.5", "sequential", few, calibration=how)
    told = [note for note in plan.notes if "one shot" in note]
    new = torch.randn(2000, 16, generator=torch.Generator().manual_seed(2))
    assert error(model, plan, new) < 1.15 * error(model, rf.plan(model, "params=0.5", "project", few), new)
    if told:
        assert "on held-out samples fitting layer after layer is no nearer" in told[0]


def test_where_nothing_can_be_held_back_one_shot_is_kept():
    """One batch whose first axis is time: no sample can be taken out of it."""

    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.head = nn.Linear(16, 24), nn.Linear(24, 8)

        def forward(self, x):
            return self.head(torch.relu(self.mix(x)).cumsum(0) / len(x))

    torch.manual_seed(0)
    plan = rf.plan(TimeFirst().eval(), "params=0.6", "sequential", [torch.randn(40, 2, 16)])
    assert any("no samples could be held back" in note for note in plan.notes)
    assert all(entry.form is not rf.Form.DENSE for entry in plan.changed)


def held(found: object, model: nn.Module) -> int:
    """Bytes of all matrices that an object leads to, each counted once, less the weights of the model itself."""
    seen: set[int] = set()
    storages: dict[int, int] = {}
    left = [found]
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, nn.Module):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            if one.dim() > 1:
                storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        elif isinstance(one, dict):
            left.extend(one.values())
        elif isinstance(one, list | tuple):
            left.extend(one)
        else:
            left.extend(getattr(one, "__dict__", {}).values())
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(size for place, size in storages.items() if place not in own)


def test_a_profile_holds_moments_metrics_and_vectors_and_no_copies_of_weights():
    """Of a layer m × n, k = min(m, n): k² doubles each of moments and vectors, and k² numbers of each metric, which are
    as exact as the gradients; nothing of size m × n but the weight that the network has."""
    model = nn.Sequential(nn.Embedding(50, 24), nn.Linear(24, 96), nn.ReLU(), nn.Linear(96, 24), nn.Linear(24, 50))
    inputs = [torch.randint(0, 50, (4, 32), generator=torch.Generator().manual_seed(i)) for i in range(4)]
    known = rf.profile(model, inputs, objective="causal-lm", where="[13]", forms=["factored", "pivoted"])
    assert len(known.sites.reducible) == 2
    assert known.coarser is not None
    square, metrics = 24**2, 2
    assert held((known.candidates, known.statistics), model) == 2 * square * (8 + 8 + 4 * metrics)
    plan = known.plan("params=0.8")  # what is made of it leaves nothing behind
    rf.apply_(copy.deepcopy(model), plan, known)
    assert held((known.candidates, known.statistics), model) == 2 * square * (8 + 8 + 4 * metrics)


def pooled(conv: nn.Module) -> nn.Module:
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Linear(128, 128), nn.Flatten()), (8, 128)),
        (nn.Sequential(*(nn.Linear(96, 96) for _ in range(6))), (8, 96)),
        (nn.Sequential(nn.Linear(64, 256), nn.Flatten()), (8, 64)),
        (nn.Sequential(nn.Linear(64, 1100), nn.Flatten()), (8, 64)),
        (nn.Sequential(nn.Linear(256, 64), nn.Flatten()), (8, 256)),
        (pooled(nn.Conv2d(16, 32, 3, padding=1)), (4, 16, 4, 4)),
        (pooled(nn.Conv2d(128, 128, 3, padding=1, groups=2)), (2, 128, 4, 4)),
        (nn.Sequential(nn.Embedding(50, 96), nn.Linear(96, 384), nn.ReLU(), nn.Linear(384, 50)), None),
    ],
)
def test_a_profile_takes_what_is_said_of_it_and_no_more(model, shape):
    """Beside the weights and the data, which are there already."""
    draws = torch.Generator().manual_seed(0)
    seen = [
        torch.randint(0, 50, (4, 16), generator=draws) if shape is None else torch.randn(shape, generator=draws)
        for _ in range(32)
    ]
    with Living() as living:
        living.known |= {each.untyped_storage()._cdata for each in (*model.parameters(), *seen)}
        known = rf.profile(model, seen, objective="causal-lm" if shape is None else "teacher")
        rf.apply_(copy.deepcopy(model), known.plan("params=0.7"), known)
    needed = bytes_together(known.sites.reducible, tokens=shape is None)
    assert 0.5 * needed < living.most <= needed


def test_of_other_objectives_there_is_one_metric():
    model = nn.Sequential(nn.Linear(24, 96), nn.ReLU(), nn.Linear(96, 24))
    known = rf.profile(model, torch.randn(256, 24), objective="teacher")
    assert held((known.candidates, known.statistics), model) == 4 * (96**2 + 24**2) + 2 * 24**2 * (8 + 8)


def pairs_of(layer: nn.Module, folds: int, free: bool) -> tuple[Site, torch.Tensor, Pairs]:
    """Moments of rows that nobody sees afterwards: of the halves to fit to, of others, of the original's inputs."""
    site, weight = sites(nn.Sequential(layer))["0"], layer.weight.detach()
    matrix = site.layer.geometry(Form.FACTORED).matrix(weight).double()

    def moments() -> CrossMoments:
        x = torch.randn(32, matrix.shape[1], dtype=torch.float64)
        return CrossMoments(*matrix.mT.shape).update(x, x @ matrix.mT + 0.1 * torch.randn(32, len(matrix)).double())

    before = Moments(matrix.shape[1]).update(torch.randn(32, matrix.shape[1]))
    return site, weight, Pairs([moments() for _ in range(folds)], moments(), before, free=free)


@pytest.mark.parametrize("folds", [1, 2])
@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize(
    ("layer", "form"),
    [
        (nn.Linear(240, 240), Form.FACTORED),
        (nn.Linear(240, 60), Form.FACTORED),
        (nn.Linear(240, 660), Form.FACTORED),
        (nn.Linear(240, 660), Form.DENSE),
        (nn.Conv2d(20, 40, 3), Form.FACTORED),
        (nn.Conv2d(20, 40, 3), Form.SPATIAL),
        (nn.Conv2d(20, 120, 3), Form.DENSE),
    ],
)
def test_a_fit_holds_what_is_said_of_it(layer, form, free, folds, monkeypatch):
    monkeypatch.setattr(ridge, "_TOGETHER", 0)  # as for large layers, one ridge at a time
    torch.manual_seed(0)
    with Living() as living:
        site, weight, known = pairs_of(layer, folds, free)
        metric = torch.eye(min(site.shape))
        rf.Sequential().solve(site, form, 8, weight, None, known, metric)
    needed = bytes_needed(site, folds)
    assert 0.5 * needed < living.most <= needed


def test_what_lives_at_once_is_counted_right():
    with Living() as living:
        a = torch.zeros(1000, dtype=torch.float64)
        b, view = a + 1, a[10:]
        del b
        c = a * view[0]
        assert (living.now, living.most) == (16000, 16000)
        del a
        assert living.now == 16000, "a view keeps what it is of"
        del view, c
    assert living.now == 0
