"""Whole jobs within torch.inference_mode() and torch.autocast."""

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.pipeline.adaptation import AdaptSettings, adapt
from rankfold.pipeline.collapse.forecast import forecast
from rankfold.pipeline.collapse.study import collapse_report
from rankfold.pipeline.compression.outcome.heldout import layer_errors
from rankfold.train.step.precision import arithmetic

X = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
Y = (X[:, :4].sum(1) > 0).long()
PART = X[:48], Y[:48]
BATCHES = [(X[:24], Y[:24]), (X[24:48], Y[24:48])]
DATA = SimpleNamespace(train=BATCHES, validation=(X[48:], Y[48:]), test=None)


def network() -> nn.Module:
    with torch.random.fork_rng(), torch.inference_mode(False):  # it was made before the mode began
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))


def compressed(place):
    settings = rf.pipeline.Settings(curve=False, samples=48, tune=2, finetune=1)
    return rf.pipeline.compress(network(), DATA, "params=0.8", settings=settings, directory=place / "c").params_removed


JOBS = {
    "smallest": lambda place: rf.smallest(network(), DATA, 10).plan.after.params,
    "advise": lambda place: rf.advise(network(), DATA, seconds=0.01, batches=()).start.value,
    "compress": compressed,
    "robustness": lambda place: rf.robustness(network(), PART, linf=[0.1], l2=[]).attacks,
    "collapse_report": lambda place: collapse_report(network(), PART, decay=0.1).residual,
    "forecast": lambda place: forecast(network(), PART, ["params=0.9"])[0].change,
    "layer_errors": lambda place: layer_errors(network(), rf.plan(network(), "params=0.8", "project", PART), PART),
    "adapt": lambda place: adapt(network(), DATA, AdaptSettings(params=0.5, epochs=1), place / "a").after.loss,
    "check_objective": lambda place: rf.testing.check_objective(rf.Classification(), network(), PART),
    "check_form": lambda place: rf.testing.check_form(rf.Form.FACTORED, network()[0], X[:3]),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_job_in_inference_mode_gives_what_it_gives_outside(job, tmp_path):
    outside = JOBS[job](tmp_path / "outside")
    with torch.inference_mode():
        assert JOBS[job](tmp_path / "inside") == outside


def rounded(outside: bool, learn: Callable[[nn.Module], object], model: nn.Module) -> nn.Module:
    """``model`` after ``learn`` in half precision; ``outside``: autocast begins outside, having rounded its weights."""
    model = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=outside):
        model(torch.randn(8, 16))
        assert learn(model) is not None
        if outside:
            assert torch.is_autocast_cache_enabled()
    return model


def test_what_is_learnt_under_autocast_of_the_caller_is_computed_with():
    """Autocast keeps what it has rounded until its outermost context ends, whatever was written meanwhile."""
    torch.manual_seed(0)
    x = torch.randn(256, 16)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    y = (x @ torch.randn(16, 4)).argmax(1)
    recipe = rf.Recipe(epochs=3, batch_size=32, learning_rate=0.01, optimizer="adam", precision="bfloat16")
    theirs, ours = (rounded(outside, lambda m: rf.fit(m, (x, y), None, recipe), net) for outside in (True, False))
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(theirs.state_dict()[name], value, rtol=0, atol=0)
    assert rf.evaluate(ours, (x, y)).loss < 0.8 * rf.evaluate(net, (x, y)).loss

    small = rf.apply_(copy.deepcopy(net), rf.plan(net, "params=0.5", data=x))
    told = {}
    for half in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            (told[half],) = rf.tune_(copy.deepcopy(small), net, x, objective="teacher", steps=60)
    assert told[True].after - told[False].after < 0.1 * (told[False].before - told[False].after)


def test_commands_in_half_precision_see_weights_that_change():
    layer, x = nn.Linear(4, 4), torch.ones(1, 4)
    with arithmetic("bfloat16", torch.device("cpu")):
        layer(x)
        with torch.no_grad():
            layer.weight.zero_(), layer.bias.zero_()
        assert not layer(x).any()
