"""What a plan is forecast to lose is one number, printed everywhere, in the unit in which the loss is measured."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.cli.verbs.compression.compress import print_result
from rankfold.cli.verbs.compression.show import plan_values, print_plan
from rankfold.objectives import objective_names
from rankfold.objectives.moved import Moved
from rankfold.objectives.units import CHANGE, COSINE, NATS, TOKEN, in_words
from rankfold.pipeline.compression.outcome.beside import Beside

WIDTH = 12


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mixed = nn.Embedding(WIDTH, 16), nn.Linear(16, 24)
        self.head = nn.Linear(24, WIDTH)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.head(torch.tanh(self.mixed(self.embedding(input_ids))))


def case(name: str) -> tuple[nn.Module, Any]:
    """A network and 96 samples with targets for an objective."""
    torch.manual_seed(0)
    if name in ("causal-lm", "masked-lm"):
        ids = torch.randint(WIDTH, (96, 8))
        return Tokens().eval(), [{"input_ids": ids, "labels": ids}]
    if name == "segmentation":
        net = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1))
        return net.eval(), (torch.randn(96, 2, 5, 5), torch.randint(3, (96, 5, 5)))
    net = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 6)).eval()
    inputs = torch.randn(96, 4, 10) if name == "token-classification" else torch.randn(96, 10)
    targets = {
        "classification": torch.randint(6, (96,)), "token-classification": torch.randint(6, (96, 4)),
        "multi-label": torch.rand(96, 6).round(), "regression": torch.randn(96, 6),
    }  # fmt: skip
    return net, (inputs, targets[name]) if name in targets else inputs


@pytest.mark.parametrize("name", objective_names())
def test_the_figure_that_is_printed_is_the_plans_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = case(name)
    plan = rf.plan(model, "params=0.7", data=data, objective=name)
    lost = sum(entry.predicted_loss for entry in plan.entries)
    assert lost > 0
    assert plan.forecast == plan.total.value == pytest.approx(lost)
    assert plan.total.unit == (TOKEN if name.endswith("lm") else CHANGE)
    assert sum(row["predicted loss"] for row in plan.table()) == pytest.approx(lost)
    assert f"forecast {lost:.3g} {plan.total.unit}" in repr(plan)
    print_plan(plan)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("forecast")]
    assert line.startswith(f"forecast: {lost:.3g} {in_words(plan.total.unit)} (what the layers cost one by one")
    assert f"{plan.total.unseen:.3g} on those held back" in line
    told = plan_values(rf.Plan.from_json(plan.to_json()))["forecast"]
    assert (told["value"], told["unit"]) == (plan.forecast, plan.total.unit)
    assert min(told["seen"], told["unseen"]) <= lost * (1 + 1e-9)
    assert max(told["seen"], told["unseen"]) >= lost * (1 - 1e-9)


@pytest.mark.parametrize(
    ("name", "unit"), [("regression", CHANGE), ("classification", NATS), ("embedding", COSINE), ("causal-lm", TOKEN)]
)
def test_layers_tried_one_by_one_are_forecast_in_the_unit_of_the_trial(
    name: str, unit: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from rankfold.compress.planning import decide

    model, data = case(name)
    monkeypatch.setattr(decide, "_from_statistics", lambda *args: None)  # as of a network without gradients
    known = rf.profile(model, data, method="truncate", objective=name)
    rule = rf.Optimal(probes=2, samples=32)
    plan = known.plan("params=0.7", rule)
    assert (plan.total.unit, plan.forecast) == (unit, pytest.approx(sum(e.predicted_loss for e in plan.entries)))
    known.save(tmp_path / "profile")
    assert rf.Profile.load(tmp_path / "profile", model, data).plan("params=0.7", rule).total == plan.total


@pytest.mark.parametrize("method", ["project", "truncate"])
def test_a_layer_that_is_never_called_is_no_change_of_the_outputs(method) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.idle, self.c = nn.Linear(24, 24), nn.Linear(30, 30), nn.Linear(24, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.tanh(self.a(x)))

    torch.manual_seed(0)
    net, x = Idle().eval(), torch.randn(512, 24)
    made = rf.plan(net, rf.Ranks({"a": 9, "idle": 5}), method, x)
    without = rf.plan(net, rf.Ranks({"a": 9}), method, x)
    assert made["idle"].rank == 5
    assert made.forecast == pytest.approx(without.forecast)
    assert (made.total.seen, made.total.unseen) == (without.total.seen, without.total.unseen)


def test_where_there_is_none_it_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    model, data = case("regression")
    blind = rf.plan(model, "params=0.7", "truncate", example=data[0][:1])
    assert (blind.forecast, blind.total.why) == (None, blind.total.sentence.removeprefix("none: "))
    assert "no data were used" in blind.total.why
    assert "forecast none" in repr(blind)
    plan = rf.plan(model, "params=0.7", data=data)
    first = replace(plan.entries[0], form=rf.Form.FACTORED, rank=1)
    edited = plan.with_entries((first, *plan.entries[1:]))
    assert edited.forecast is None
    print_plan(edited)
    assert "forecast: none: forms, ranks or biases were changed since it was made" in capsys.readouterr().out
    local = rf.plan(model, "params=0.7", "truncate", data=data, rule="local")
    assert (local.forecast, local.calibration.get("unit")) == (None, None)


@pytest.fixture(scope="module", params=["regression", "teacher"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    name, place = request.param, tmp_path_factory.mktemp("run")
    model, data = case(name)

    def part(first: int, last: int) -> Any:
        return tuple(each[first:last] for each in data) if isinstance(data, tuple) else data[first:last]

    parts = part(0, 64), part(64, 80), part(80, 96)
    settings = rf.pipeline.Settings(curve=False, slices=False, objective=name)
    done = rf.pipeline.compress(model, parts, "params=0.7", settings=settings, directory=place)
    return name, model, parts, done, place


def test_forecast_and_measurement_stand_side_by_side(run: tuple[Any, ...], capsys: pytest.CaptureFixture[str]) -> None:
    name, model, parts, done, place = run
    found, inputs = done.forecast, parts[2][0] if isinstance(parts[2], tuple) else parts[2]
    then, now = model(inputs).detach(), done.model(inputs).detach()
    wanted = float((now - then).square().sum() / (then - then.mean(0)).square().sum())
    assert found.measured == pytest.approx(wanted, rel=1e-4)
    assert found.total == done.plan.total
    words = f"forecast {done.plan.forecast:.3g}, measured {wanted:.3g} on the test split, before any fine-tuning: "
    words += in_words(CHANGE)
    assert found.sentence == words
    print_result(done)
    assert words in capsys.readouterr().out
    assert words[1:] in (place / "report.html").read_text()
    assert done.to_dict()["forecast"]["measured"] == found.measured
    for file in ("result.json", "manifest.json"):
        values = json.loads((place / file).read_text())
        assert values.get("notes", values)["forecast"] == found.to_dict()
    settings = rf.pipeline.Settings(curve=False, slices=False, objective=name)
    again = rf.pipeline.compress(model, parts, "params=0.7", settings=settings, directory=place)
    assert again.forecast == found


@pytest.mark.parametrize("name", ["teacher", "causal-lm"])
def test_a_forecast_knows_nothing_of_tuning_and_is_compared_without(name: str, tmp_path: Path) -> None:
    model, data = case(name)
    part = data if name == "causal-lm" else data[:64]
    parts = part, part, part
    settings = rf.pipeline.Settings(curve=False, slices=False, objective=name)
    plain = rf.pipeline.compress(model, parts, "params=0.6", settings=settings)
    settings = replace(settings, tune=20)
    tuned = rf.pipeline.compress(model, parts, "params=0.6", settings=settings, directory=tmp_path / "run")
    assert tuned.tuning.kept
    assert tuned.compressed.loss != plain.compressed.loss
    assert tuned.forecast.measured == pytest.approx(plain.forecast.measured, rel=1e-4)
    assert "on the test split, before tuning: " in tuned.forecast.sentence
    steps = f"20 tuning steps of {'the whole network' if tuned.tuning.by == 'whole' else 'each block'}"
    assert f"method project, ranks optimal; {steps}" in (tmp_path / "run" / "report.html").read_text()


def test_without_a_forecast_the_run_says_so_and_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from rankfold.pipeline.compression.outcome import beside

    model, data = case("regression")
    plan = rf.plan(model, "params=0.7", "truncate", example=data[0][:1])
    monkeypatch.setattr(beside, "evaluate", None)
    score = rf.evaluate(model, data, objective="regression")
    found = beside.beside(plan, model, model, data, "test", rf.Regression(), score)
    assert found.sentence.startswith("forecast none: no data were used")
    assert Beside.read(found.to_dict()) == found


def test_class_scores_less_their_mean_are_what_has_moved() -> None:
    model, (inputs, _) = case("classification")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[2].bias += 3.0  # a common shift says nothing
    judged = {"objective": Moved(judged=rf.Classification()), "teacher": model}
    assert rf.evaluate(other, inputs, **judged).loss == pytest.approx(0.0, abs=1e-9)
    with torch.no_grad():
        other[2].bias[0] += 1.0
    then = (model(inputs) - model(inputs).mean(1, keepdim=True)).detach()
    moved = len(inputs) * (1 - 1 / 6)
    wanted = moved / float((then - then.mean(0)).square().sum())
    assert rf.evaluate(other, inputs, **judged).loss == pytest.approx(wanted, rel=1e-4)
