"""A time that was measured several times is shown with its quartiles, everywhere by one function."""

import copy
import json
import pickle
from itertools import count

import pytest
import torch
from torch import nn

from rankfold.costs import Milliseconds, clock, latencies, shown
from rankfold.costs.times import speed, spread_over, spreads
from rankfold.objectives import Evaluation, Figure
from rankfold.pipeline.comparing import _stages
from rankfold.pipeline.compression.outcome.delivery import _stage
from rankfold.pipeline.compression.outcome.measure import Figures
from rankfold.report.quantities import milliseconds


def test_quartiles_stay_with_the_number():
    ms = Milliseconds.of([1.0, 2.0, 3.0, 4.0, 9.0])
    assert (ms, ms.quartiles) == (3.0, (2.0, 4.0))
    assert Milliseconds.of([1.0, 2.0, 3.0], 0.25) == 1.5
    for kept in (copy.deepcopy(ms), pickle.loads(pickle.dumps(ms))):
        assert (kept, kept.quartiles) == (3.0, (2.0, 4.0))
    assert json.dumps(ms) == "3.0"
    assert shown(ms) == "3.000 (2.000–4.000)"
    assert shown(3.0) == "3.000"  # of an earlier release
    assert milliseconds(ms) == "3.000\u00a0ms (2.000–4.000)"
    assert milliseconds(None) == "–"


def test_quartiles_are_stored_beside_the_numbers():
    times = {1: Milliseconds.of([1.0, 2.0, 3.0]), 64: 5.0}
    held = json.loads(json.dumps({"latencies": times, "spreads": spreads(times)}))
    again = spread_over(held["latencies"], held["spreads"])
    assert again["1"].quartiles == times[1].quartiles
    assert type(again["64"]) is float


def test_prompts_that_were_timed_are_read_back_with_their_quartiles():
    """Else every ratio of theirs would seem clear."""
    ms = Milliseconds(3.0, (2.0, 4.0))
    score = Evaluation((Figure("perplexity", 4.0, higher=False),), 1.0, 10)
    values = json.loads(json.dumps(Figures(score, 1, 2, 4, ms, prefill_ms=ms, decode_ms=2.0).to_dict()))
    read = _stage(values, {1: ms}, score.to_dict(), {"prefill_ms": (2.0, 4.0)})
    assert read.prefill_ms.quartiles == (2.0, 4.0)
    assert speed(read.prefill_ms, 3.5) == "no clear difference"
    assert read.decode_ms == 2.0


def test_latencies_know_their_quartiles(monkeypatch: pytest.MonkeyPatch):
    steps = count(1)
    monkeypatch.setattr(clock, "once", lambda model, example: 1e-3 * next(steps))
    found = latencies({"a": nn.Linear(2, 2)}, torch.zeros(1, 2), rounds=3)["a"]
    assert (found, found.quartiles) == (pytest.approx(3.0), (pytest.approx(2.5), pytest.approx(3.5)))


def test_a_comparison_reads_quartiles_that_were_stored_beside_the_numbers():
    stage = {"params": 1, "latency_ms": 2.0}
    stored = {"before": stage, "compressed": stage, "finetuned": None, "latencies": {"before": {"1": 2.0}}}
    read = _stages(stored | {"spreads": {"before": {"1": (1.5, 2.5)}}})
    assert read["before"]["latency_ms"]["1"].quartiles == (1.5, 2.5)
    assert read["compressed"]["latency_ms"] == {"1": 2.0}  # of an earlier release
    assert _stages(stored)["before"]["latency_ms"] == {"1": 2.0}
