"""What Python shows of a value: one line, however many tensors and tables it holds."""

import importlib
import re
from dataclasses import fields, is_dataclass

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.linalg.brief import brief
from rankfold.recover import triplets

LARGE = re.compile(r"Tensor|ndarray|DataFrame|Module|SiteList|Statistics|Sequence|, \.\.\.\]")
ROOMS = ("adapt", "collapse", "costs", "forms", "induce", "linalg", "objectives", "observe", "pipeline", "recover")
ROOMS += ("store", "train", "zoo")
SMALL = {"Border", "Call", "Convolution", "Entry", "Joint", "Site", "Span", "Tried"}  # sizes and names of one thing


def public():
    named = [getattr(rf, name) for name in rf.__all__]
    for room in ROOMS:
        module = importlib.import_module(f"rankfold.{room}")
        named += [getattr(module, name) for name in getattr(module, "__all__", ())]
    return sorted({x for x in named if isinstance(x, type) and is_dataclass(x)}, key=lambda x: x.__qualname__)


def holds_much(kind):
    return kind.__name__ not in SMALL and any(LARGE.search(str(field.type)) for field in fields(kind) if field.repr)


@pytest.mark.parametrize("kind", [k for k in public() if holds_much(k)], ids=lambda k: k.__name__)
def test_a_public_value_that_holds_tensors_or_tables_is_shown_in_brief(kind):
    generated = hasattr(kind.__repr__, "__wrapped__")
    assert not generated, f"{kind.__name__} shows everything that it holds: give it __repr__ = brief"


@pytest.fixture(scope="module")
def known():
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(40) for layer in (nn.Linear(9, 9), nn.Tanh())))
    return rf.profile(model, torch.randn(40, 9))


def test_a_profile_and_what_is_made_of_it_take_one_line(known):
    plan = known.plan("params=0.7")
    small = rf.apply_(known.model, plan, known)
    for each in (known, plan, plan.statistics, known.sites, rf.spectrum(torch.randn(300, 200)),
                 rf.bottlenecks(small, torch.randn(40, 9)),
                 triplets(range(999), range(999), torch.arange(999.0).numpy())):  # fmt: skip
        shown = repr(each)
        assert shown.startswith(f"{type(each).__name__}(")
        assert "\n" not in shown
        assert len(shown) <= 200
    assert repr(plan) == (
        f"Plan(params ≤ 0.7 of dense; method project, ranks optimal; {len(plan.changed)} of 40 sites change; "
        f"3,600 → {plan.after.params:,} parameters; forecast {plan.forecast:.3g} squared change)"
    )


def test_numbers_and_names_are_told_of_the_rest_how_much():
    told = brief(rf.Spectrum(torch.tensor([2.0, 1.0]), (2, 2), 0.25))
    assert told == "Spectrum(values=Tensor(2,), shape=(2, 2), unseen_energy=0.25)"
    assert "metrics" not in repr(
        rf.profile(nn.Sequential(nn.Linear(4, 4)), method="truncate", example=torch.ones(1, 4))
    )
