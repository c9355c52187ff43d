"""Forecasts of accuracy: every kind of data that the library takes, and budgets where they say their doubts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from digits import digits, tiny
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rankfold.compress.planning.plan import Plan
from rankfold.compress.planning.planner import plan
from rankfold.pipeline.collapse.forecast import Forecast, Margins, doubts, forecast
from rankfold.pipeline.compression.outcome.measure import calibration_part
from rankfold.sites import Form
from rankfold.zoo import Split

BUDGETS = ["params=0.6", "params=0.3"]


def numbers(found: list[Forecast]) -> list[float]:
    assert [each.budget for each in found] == BUDGETS
    return [number for each in found for number in (each.accuracy, each.change)]


def by_hand(train: Any, labelled: Any) -> list[float]:
    return numbers(forecast(tiny(), train, BUDGETS, labelled=labelled, samples=256))


def data_set(split: Split) -> TensorDataset:
    return TensorDataset(split.normalize(split.inputs), split.labels)


def test_data_calibrate_on_train_and_are_forecast_on_validation() -> None:
    data = digits()
    found = forecast(tiny(), data, BUDGETS, samples=256)
    train, validation = (calibration_part(part, 256, 0) for part in (data.train, data.validation))
    assert numbers(found) == by_hand(train, validation)
    assert numbers(found) != by_hand(train, train)
    alike = SimpleNamespace(train=data.train, validation=data.validation, test=None)
    assert numbers(forecast(tiny(), alike, BUDGETS, samples=256)) == numbers(found)
    given = forecast(tiny(), data, BUDGETS, labelled=train, samples=256)
    assert numbers(given) == by_hand(train, train)


def test_data_sets_are_read_as_those_of_a_factory() -> None:
    data = digits()
    parts = tuple(data_set(split) for split in (data.train, data.validation, data.test))
    whole = forecast(tiny(), parts, BUDGETS, samples=256)
    assert numbers(whole) == pytest.approx(numbers(forecast(tiny(), data, BUDGETS, samples=256)))
    # of a pair the second is test, which must not be looked at: wrong labels there change nothing
    inputs, labels = parts[2].tensors
    pairs = [(parts[0], parts[2]), (parts[0], TensorDataset(inputs, (labels + 1) % 10))]
    first, second = (numbers(forecast(tiny(), pair, BUDGETS, samples=256)) for pair in pairs)
    assert first == second
    assert first[0] > 0.3


def test_one_part_is_taken_as_a_plan_takes_it() -> None:
    part = data_set(digits().train.subset(torch.arange(200)))
    batches = [tuple(batch) for batch in DataLoader(part, batch_size=100)]
    assert len(batches) == 2  # two batches are no pair of data sets
    found = [numbers(forecast(tiny(), data, BUDGETS)) for data in (part, batches, part.tensors)]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=0.05)  # probes of a layer go batch by batch


@pytest.mark.parametrize("data", [3, [1, 2, 3], nn.Linear(2, 2)], ids=["number", "numbers", "model"])
def test_what_is_no_data_is_said_in_one_sentence(data: Any) -> None:
    with pytest.raises(ValueError, match=r"a forecast cannot read a .*give rankfold\.zoo\.Data, a tuple of data sets"):
        forecast(tiny(), data, BUDGETS)


def test_data_that_can_be_read_once_are_refused() -> None:
    with pytest.raises(ValueError, match="can be read only once"):
        forecast(tiny(), iter([digits().train]), BUDGETS)


def test_data_sets_without_labels_are_said() -> None:
    inputs = TensorDataset(torch.zeros(20, 1, 8, 8))
    with pytest.raises(ValueError, match="a forecast of accuracy needs one class label"):
        forecast(tiny(), (inputs, inputs), BUDGETS)


def made(*ranks: int) -> Plan:
    """A plan of ``tiny`` with these ranks."""
    found = plan(tiny(), "params=0.5", "truncate", example=torch.zeros(1, 1, 8, 8))
    changed = [replace(entry, form=Form.FACTORED, rank=rank) for entry, rank in zip(found.entries, ranks, strict=True)]
    return found.with_entries(tuple(changed))


def test_each_cause_of_doubt_is_told_alone() -> None:
    assert doubts(0.02, 0.5, made(4, 5)) == ""
    assert doubts(0.3, 0.5, made(4, 5)) == "the outputs change by 30 %, and the forecast is rough beyond 3 %"
    assert doubts(0.02, 0.5, made(1, 5)) == "rank 1 in layer 1"
    assert (
        doubts(0.02, 0.05, made(4, 5))
        == "5.0 % of the parameters are kept, and the forecast was tried only down to 7 %"
    )
    assert doubts(2.0, 0.06, made(1, 1)).count(";") == 2
    kept = made(1, 5)
    kept = kept.with_entries(tuple(replace(entry, form=Form.KEEP) for entry in kept.entries))
    assert doubts(0.0, 1.0, kept) == ""  # what is kept has no rank to doubt


def test_a_change_that_is_no_number_is_doubted() -> None:
    for change in (float("nan"), float("inf")):
        assert "not a number" in doubts(change, 0.5, made(4, 5))


def drawn(classes: int = 2) -> tuple[Tensor, Tensor]:
    logits = torch.randn(64, classes, generator=torch.Generator().manual_seed(0)).double()
    return logits, logits.argmax(1)


def test_labels_that_are_left_out_count_nowhere_in_margins() -> None:
    logits, labels = drawn()
    left_out = labels.clone()
    left_out[::2] = -100
    half, expected = Margins.from_logits(logits, left_out), Margins.from_logits(logits[1::2], labels[1::2])
    assert half.energy == expected.energy
    assert [half.accuracy(change) for change in (1e-6, 0.5)] == [expected.accuracy(change) for change in (1e-6, 0.5)]
    assert half.accuracy(1e-6) == 1.0
    with pytest.raises(ValueError, match="every label is marked as left out"):
        Margins.from_logits(logits, torch.full_like(labels, -100))


def test_classes_that_a_network_rules_out_are_no_part_of_its_margins() -> None:
    logits, labels = drawn()
    ruled = torch.cat([logits, torch.full((64, 1), -torch.inf, dtype=torch.float64)], 1)
    found, expected = Margins.from_logits(ruled, labels), Margins.from_logits(logits, labels)
    assert found.energy == pytest.approx(expected.energy)
    assert found.accuracy(1e-6) == 1.0
    assert found.accuracy(0.5) == pytest.approx(expected.accuracy(0.5), abs=0.03)  # other draws of one size


def test_margins_of_probabilities_are_those_of_the_likeliest_class() -> None:
    logits, labels = drawn(3)
    chances = nn.functional.one_hot(labels).double()
    assert Margins.from_logits(logits, chances).accuracy(0.1) == Margins.from_logits(logits, labels).accuracy(0.1)
    with pytest.raises(ValueError, match="must be probabilities of the classes"):
        Margins.from_logits(logits, chances + 1)


def test_a_tiny_budget_is_doubted_and_a_large_one_is_not() -> None:
    large, small = forecast(tiny(), digits(), ["params=0.9", "params=0.1"], samples=256)
    assert large.trusted
    assert not small.trusted
    assert "outputs change" in small.doubt
    assert repr(small) == f"Forecast(params=0.1: accuracy {small.accuracy:.3f}, doubtful)"
    assert repr(large) == f"Forecast(params=0.9: accuracy {large.accuracy:.3f})"
