"""Whole jobs within torch.inference_mode()."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.pipeline.adaptation import AdaptSettings, adapt
from rankfold.pipeline.collapse.forecast import forecast
from rankfold.pipeline.collapse.study import collapse_report
from rankfold.pipeline.compression.outcome.heldout import layer_errors

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
