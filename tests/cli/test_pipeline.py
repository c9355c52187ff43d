"""The whole job: what it promises about budgets, splits, files, interruptions and the original model."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from digits import digits, tiny, trained
from torch import nn

import rankfold as rf
import rankfold.pipeline.compression.job as job_module
import rankfold.pipeline.compression.outcome.curve as curve_module
import rankfold.pipeline.compression.outcome.page as page_module
import rankfold.pipeline.compression.planned as planned_module
from rankfold.compress.applying.apply import apply_
from rankfold.compress.methods.project import Project
from rankfold.compress.planning.planner import plan
from rankfold.compress.planning.profile import Calibration
from rankfold.compress.ranks.budget import Flops, Ranks
from rankfold.compress.repair.tune import Tuned
from rankfold.costs import evaluating
from rankfold.objectives import Evaluation, Figure
from rankfold.pipeline import (
    Settings,
    Tell,
    analyse,
    calibration_part,
    compress,
    figures,
    first_example,
    layer_errors,
    over_fitted,
    quality_curve,
    write_analysis,
)
from rankfold.pipeline.compression.outcome.remarks import of_layers, samples_known
from rankfold.pipeline.compression.tuning import Tuning
from rankfold.sites import Form, fingerprint
from rankfold.store import StoreError, Unfinished, load
from rankfold.train import TrainingError, evaluate
from rankfold.zoo import model as zoo_model

QUICK = Settings(samples=256, curve=False, model="digits-cnn")
TUNED = replace(QUICK, finetune=3)
STAGE = {"accuracy", "loss", "params", "flops", "bytes", "latency_ms"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with fine-tuning: (original, result, directory)."""
    network, directory = trained(), tmp_path_factory.mktemp("runs") / "run"
    return network, compress(network, digits(), "flops=0.2", settings=TUNED, directory=directory), directory


def test_the_result_has_the_keys_that_are_promised_and_keeps_the_budget(finished):
    _, result, _ = finished
    values = json.loads(json.dumps(result.to_dict()))
    removed = ["params_removed", "flops_removed", "kept_of_factorable"]
    assert list(values) == ["before", "compressed", "finetuned", *removed, "seconds", "forecast"]
    assert all(set(values[stage]) == STAGE for stage in ("before", "compressed", "finetuned"))
    assert values["compressed"]["flops"] <= 0.2 * values["before"]["flops"]
    assert values["flops_removed"] == 1 - values["compressed"]["flops"] / values["before"]["flops"]
    assert values["compressed"]["params"] == sum(p.numel() for p in result.model.parameters())
    assert values["seconds"] > 0


def test_figures_are_those_of_the_test_split(finished):
    network, result, _ = finished
    assert result.split == "test"
    assert result.before.accuracy == evaluate(network, digits().test).accuracy
    assert result.finetuned.loss == evaluate(result.model, digits().test).loss
    assert result.validation["finetuned"] == evaluate(result.model, digits().validation).accuracy
    assert result.validation["finetuned"] >= result.validation["compressed"]


def test_the_original_is_left_as_it_was(finished):
    network, _, _ = finished
    fresh = trained()
    assert fingerprint(network) == fingerprint(fresh)
    assert [m.training for m in network.modules()] == [m.training for m in fresh.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_what_was_saved_computes_the_same(finished):
    _, result, directory = finished
    stored = load(directory, zoo_model("digits-cnn"))
    inputs = digits().test.normalize(digits().test.inputs)
    with evaluating(stored.model), evaluating(result.model):
        assert torch.equal(stored.model(inputs), result.model(inputs))
    assert stored.notes["model"] == "digits-cnn"
    assert stored.notes["figures"] == result.finetuned.to_dict()
    report = (directory / "report.html").read_text()
    assert "features.3" in report
    assert "classifier.1" in report


def test_the_same_call_reads_a_finished_run_back(finished, monkeypatch):
    network, result, directory = finished
    monkeypatch.setattr(planned_module, "profiled", None)
    again = compress(network, digits(), "flops=0.2", settings=TUNED, directory=directory)
    assert again.to_dict() == result.to_dict()
    assert again.before.latencies == result.before.latencies
    state = result.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in again.model.state_dict().items())
    assert not list((directory / "run" / "finetune").glob("checkpoint*"))


def test_tuning_leaves_its_trace_in_the_result_the_manifest_and_the_report(tmp_path):
    asked = replace(QUICK, tune=24, tune_by="whole", slices=False)
    result = compress(trained(), digits(), "flops=0.1", settings=asked, directory=tmp_path / "run")
    tuning, (whole,) = result.tuning, result.tuning.parts
    assert (tuning.steps, tuning.by, tuning.kept) == (24, "whole", True)
    assert whole.after < whole.before
    assert 1 <= whole.step <= 24
    noted = json.loads((tmp_path / "run" / "manifest.json").read_text())["notes"]["tuning"]
    assert noted == result.to_dict()["tuning"] == json.loads((tmp_path / "run" / "result.json").read_text())["tuning"]
    assert noted["parts"] == [{"block": "", "before": whole.before, "after": whole.after, "step": whole.step}]
    sentence = f"{whole.before:.4g} before and is {whole.after:.4g} after step {whole.step}, the best"
    assert sentence in (tmp_path / "run" / "report.html").read_text()
    assert compress(trained(), digits(), "flops=0.1", settings=asked, directory=tmp_path / "run").tuning == tuning


def test_tuning_that_was_not_kept_is_not_called_tuned():
    def told(by, kept, *steps):
        return Tuning(30, by, tuple(Tuned(str(n), 0.5, 0.25, step) for n, step in enumerate(steps)), kept).sentence

    block = "30 steps of one block; the squared error of a block's output, over its energy, was 0.5 before and is 0.25 "
    fell = "the loss on the validation split did not fall"
    assert told("blocks", True, 0) == f"{block}after, in the mean"
    assert told("blocks", False, 0) == (
        f"tried and not kept: {block}after, in the mean; {fell}; --tune-by whole is another way"
    )
    assert told("blocks", False, 0, 0).startswith("tried and not kept: 30 steps of each of 2 blocks; the squared")
    assert told("blocks", False, 0, 0).endswith(f"in the mean; {fell}")
    assert told("whole", False, 20).endswith(f"and is 0.25 after step 20, the best; {fell}")
    assert told("whole", False, 0).endswith("was 0.5 before, and no step lowered it: the factors stay as they were")


def test_a_network_that_takes_more_flops_says_so_and_why():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(200, 32), nn.Flatten(), nn.Linear(64, 4)).eval()
    ids = torch.randint(200, (192, 2))
    result = compress(net, (ids[:128], ids[128:]), "params=0.6", settings=QUICK)
    more = result.compressed.flops / result.before.flops - 1
    assert more > 0
    said = [remark.replace("\u00a0", " ") for remark in result.remarks if "FLOPs" in remark]
    assert said == [
        f"the network takes {result.compressed.flops / 1000:.3f} k FLOPs, {100 * more:.1f} % more than before: a table "
        "costs none where it is looked up, and as factors (0) a product"
    ]
    assert not any("FLOPs" in each for each in compress(net, (ids[:128], ids[128:]), "flops=1", settings=QUICK).remarks)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"budget": "flops=0.3"}, "budgets"),
        ({"settings": replace(TUNED, seed=1)}, "seed"),
        ({"settings": QUICK}, "finetune"),
        ({"model": "other weights"}, "fingerprint"),
    ],
)
def test_another_request_is_refused_by_name(finished, change, named):
    network, _, directory = finished
    if "model" in change:
        network = zoo_model("digits-cnn")
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match=named):
        compress(
            network,
            digits(),
            change.get("budget", "flops=0.2"),
            settings=change.get("settings", TUNED),
            directory=directory,
        )
    assert before == {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_restart_replaces_a_run_and_nothing_else(tmp_path, monkeypatch):
    network = tiny()
    compress(network, digits(), "flops=0.5", settings=QUICK, directory=tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(planned_module, "profiled", None)
    with pytest.raises(TypeError):
        compress(network, digits(), "flops=0.2", settings=QUICK, directory=tmp_path, restart=True)
    monkeypatch.undo()
    assert load(tmp_path, tiny()).plan.budgets == (Flops(0.5),)  # until there is another
    result = compress(network, digits(), "flops=0.2", settings=QUICK, directory=tmp_path, restart=True)
    assert result.compressed.flops <= 0.2 * result.before.flops
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert load(tmp_path, tiny()).plan.budgets == (Flops(0.2),)


@pytest.mark.parametrize("restart", [False, True])
def test_a_directory_with_other_files_is_refused(tmp_path, restart):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(StoreError, match="no run of rankfold"):
        compress(tiny(), digits(), "flops=0.5", settings=QUICK, directory=tmp_path, restart=restart)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_interrupted_run_goes_on_and_ends_with_the_very_same_weights(tmp_path, monkeypatch):
    network = tiny()
    whole = compress(network, digits(), "flops=0.2", settings=TUNED)
    said = []

    def stop(sentence: str) -> None:
        said.append(sentence)
        if "epoch 2 of 3" in sentence:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(network, digits(), "flops=0.2", settings=TUNED, directory=tmp_path, tell=Tell(say=stop))
    assert not (tmp_path / "result.json").exists()
    monkeypatch.setattr(planned_module, "profiled", None)  # the plan is not made again
    said.clear()
    result = compress(network, digits(), "flops=0.2", settings=TUNED, directory=tmp_path, tell=Tell(say=said.append))
    assert not any("epoch 1 of 3" in sentence for sentence in said)
    state = whole.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in result.model.state_dict().items())
    assert result.finetuned.accuracy == whole.finetuned.accuracy


def test_a_damaged_result_is_refused_in_one_line(tmp_path):
    compress(tiny(), digits(), "flops=0.5", settings=QUICK, directory=tmp_path)
    (tmp_path / "result.json").write_text('{"before": 3}')
    with pytest.raises(StoreError, match=r"result\.json: damaged.*restart"):
        compress(tiny(), digits(), "flops=0.5", settings=QUICK, directory=tmp_path)


def test_without_a_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = compress(tiny(), replace(digits(), test=None), ["flops=0.5", "params=0.5"], settings=QUICK)
    assert list(tmp_path.iterdir()) == []
    assert result.finetuned is None
    assert result.split == "validation"
    assert result.compressed.accuracy == result.validation["compressed"]
    assert result.compressed.params <= 0.5 * result.before.params


def test_data_that_do_not_fit_the_model_are_told_before_any_work():
    wrong = replace(digits().train, inputs=digits().train.inputs.repeat(1, 3, 1, 1))
    with pytest.raises(ValueError, match=r"cannot take the data \(one batch is 2×3×8×8\)"):
        compress(trained(), replace(digits(), train=wrong), "flops=0.5", settings=QUICK)


def test_a_method_of_ones_own_goes_through_the_whole_job(tmp_path):
    own = replace(QUICK, method=Project(name="mine", damping=0.5), curve=True)
    result = compress(tiny(), digits(), "flops=0.5", settings=own, directory=tmp_path)
    assert result.plan.method == "mine"
    assert "method mine" in (tmp_path / "report.html").read_text()


def test_an_original_that_knows_its_validation_samples_is_remarked():
    known = replace(digits(), validation=digits().train.subset(torch.arange(200)))
    hard = replace(known, test=replace(digits().test, labels=(digits().test.labels + 1) % 10))
    assert any(
        "probably trained on" in remark for remark in compress(tiny(), hard, "flops=0.5", settings=QUICK).remarks
    )
    assert compress(tiny(), known, "flops=0.5", settings=QUICK).remarks == ()
    few = replace(known, validation=digits().train.subset(torch.arange(14)))
    assert not any("trained on" in remark for remark in compress(tiny(), few, "flops=0.5", settings=QUICK).remarks)


@pytest.mark.parametrize(
    ("known", "new", "samples", "told"),
    [
        (1.0, 0.9, 14, False),
        (1.0, 0.9, 200, True),
        (0.95, 0.91, 5000, False),
        (1.0, 1.0, 9, False),
        (0.9, 1.0, 500, False),
    ],
)
def test_knowing_samples_too_well_is_said_where_it_is_no_chance(known, new, samples, told):
    def scored(share: float, count: int) -> Evaluation:
        return Evaluation((Figure("accuracy", share, True, "fraction"),), 0.1, count)

    def pairs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(count, 1), torch.zeros(count)

    remark = samples_known(scored(known, samples), scored(new, 449), pairs(samples), "test")
    assert bool(remark) == told
    # positions of one sample are no samples of their own
    assert not samples_known(scored(1.0, 14 * 500), scored(0.9, 449), pairs(14), "test")


@pytest.mark.parametrize("settings", [{"samples": 0}, {"finetune": -1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="at least"):
        Settings(**settings)


# Measured errors of layers


@pytest.fixture(scope="module")
def planned():
    network = trained()
    made = plan(network, "flops=0.3", "project", digits().train, calibration=Calibration(1078))
    return network, made


def _by_hand(network: nn.Module, source: nn.Module, made, name: str, inputs: torch.Tensor) -> float:
    """‖ŷ − y‖ / ‖y − mean‖ of one layer, given the inputs that it has in ``source``, up to a constant per channel."""
    small = apply_(copy.deepcopy(network), made)
    seen = []
    with evaluating(source), evaluating(small), evaluating(network):
        handle = source.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        source(inputs)
        handle.remove()
        y = network.get_submodule(name)(seen[0]).double().transpose(0, 1).flatten(1)
        difference = small.get_submodule(name)(seen[0]).double().transpose(0, 1).flatten(1) - y
    if not made[name].bias:
        difference -= difference.mean(1, keepdim=True)
    return float(difference.norm() / (y - y.mean(1, keepdim=True)).norm())


def test_layer_errors_are_those_of_each_layer_with_the_original_inputs(planned):
    network, made = planned
    split = digits().validation
    inputs = split.normalize(split.inputs)
    measured = layer_errors(network, made, split)
    assert set(measured) == {entry.site for entry in made.changed}
    for name, error in measured.items():
        assert error == pytest.approx(_by_hand(network, network, made, name, inputs), rel=1e-3)
    # the oracle tells the compressed network's own inputs from the original's
    last = made.changed[-1].site
    wrong = _by_hand(network, apply_(copy.deepcopy(network), made), made, last, inputs)
    assert wrong != pytest.approx(measured[last], rel=1e-3)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_layer_errors_of_grouped_convolutions(kind, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), kind(8, 16, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(1024, 10),
    ).eval()  # fmt: skip
    made = plan(network, Ranks({"2": 4}), "project", digits().train, calibration=Calibration(1078))
    assert [(entry.site, entry.groups) for entry in made.changed] == [("2", 2)]
    split = digits().validation
    inputs = split.normalize(split.inputs)
    measured = layer_errors(network, made, split)
    assert measured["2"] == pytest.approx(_by_hand(network, network, made, "2", inputs), rel=1e-3)
    result = compress(network, digits(), Ranks({"2": 4}), settings=replace(QUICK, model=""), directory=tmp_path / "run")
    assert (tmp_path / "run" / "report.html").exists()
    assert torch.isfinite(result.model(inputs)).all()


def test_the_prediction_holds_on_new_samples(planned):
    """It was made on samples that were held back: a hundred of them."""
    network, made = planned
    for name, error in layer_errors(network, made, digits().validation).items():
        assert error == pytest.approx(made[name].predicted_error, rel=0.3)


def test_over_fitting_is_noticed(planned):
    network, made = planned
    few = plan(network, "flops=0.3", "project", digits().train, calibration=Calibration(6))
    errors = layer_errors(network, few, digits().validation)
    assert all(error < 2 * few[name].predicted_error for name, error in errors.items())  # foreseen
    assert not over_fitted(made, layer_errors(network, made, digits().validation))
    assert over_fitted(made, {made.changed[0].site: 3.0}) == (made.changed[0].site,)


# Curve, figures, calibration


def test_the_curve_keeps_its_budgets_and_ends_where_none_can_be_met(planned):
    network, _ = planned
    part = digits().train.subset(torch.arange(128))
    known = rf.profile(network, part)
    points = list(quality_curve(network, digits().validation, part, known, kept=(0.6, 0.3, 1e-4, 0.5)))
    assert [point.kept_flops <= kept for point, kept in zip(points, (0.6, 0.3), strict=True)] == [True, True]
    assert points[0].label == "project, optimal"
    assert all(0 <= point.accuracy <= 1 for point in points)


def test_what_has_been_measured_is_not_measured_again_for_the_curve(planned, monkeypatch):
    network, _ = planned
    part = digits().train.subset(torch.arange(128))
    known = rf.profile(network, part)
    copies = []
    real = curve_module.compressed_copy
    monkeypatch.setattr(curve_module, "compressed_copy", lambda *a, **k: copies.append(a[1]) or real(*a, **k))

    def points(**how) -> list:
        return list(quality_curve(network, digits().validation, part, known, kept=(0.6, 0.3), **how))

    expected = points()
    assert len(copies) == 2
    made = known.plan("flops=0.3")
    small, score = real(network, made, part, digits().validation, profile=known)
    assert points(measured=(made, small, score)) == expected
    assert points(measured=(made, small, None)) == expected
    assert [made.budgets for made in copies[2:]] == 2 * [(Flops(0.6),)]


def test_figures_time_every_batch_size_and_count_the_whole_model():
    network = trained()
    example = first_example(network, digits().train)
    found = figures({"a": network}, digits().validation, example, batches=(4,))["a"]
    assert set(found.latencies) == {1, 4}
    assert found.latency_ms == found.latencies[1] > 0
    assert found.params == sum(p.numel() for p in network.parameters())
    assert set(found.to_dict()) == STAGE


def test_one_structure_has_one_time(monkeypatch):
    clock = iter(range(1, 9))
    monkeypatch.setattr(
        "rankfold.pipeline.compression.outcome.measure.latencies",
        lambda models, example, batch: {name: next(clock) for name in models},
    )
    network = tiny()
    again = copy.deepcopy(network)
    nn.init.zeros_(again[-1].weight)
    other = apply_(copy.deepcopy(network), plan(network, "flops=0.3", "truncate", example=digits().test[0][0][None]))
    models = {"a": network, "b": other, "c": again}
    found = figures(models, digits().validation, first_example(network, digits().train), batches=(4,))
    assert [found[name].latencies for name in models] == [{1: 1, 4: 3}, {1: 2, 4: 4}, {1: 1, 4: 3}]
    assert found["c"].latency_ms == 1
    assert found["c"].accuracy != found["a"].accuracy


def test_outputs_that_do_not_count_are_named_beside_the_result():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fine, self.coarse = nn.Linear(8, 24), nn.Linear(24, 4), nn.Linear(24, 2)

        def forward(self, x):
            x = self.body(x).relu()
            return {"fine": self.fine(x), "coarse": self.coarse(x)}

    torch.manual_seed(0)
    x, y = torch.randn(96, 8), torch.randint(4, (96,))
    data = (x[:48], y[:48]), (x[48:72], y[48:72]), (x[72:], y[72:])
    said = compress(TwoHeads(), data, "params=0.8", settings=QUICK).remarks
    assert sum("of the model's 2 outputs fine counts, and coarse may change unseen" in each for each in said) == 1
    every = compress(TwoHeads(), data, "params=0.8", settings=replace(QUICK, objective="teacher")).remarks
    assert not any("may change unseen" in each for each in every)


@pytest.mark.parametrize("learned", [True, False])
def test_an_original_at_chance_is_remarked(learned, tmp_path):
    network = tiny()
    if not learned:
        nn.init.zeros_(network[-1].weight)
        nn.init.zeros_(network[-1].bias)
    told = []
    result = compress(
        network, digits(), "params=0.9", settings=QUICK, directory=tmp_path, tell=Tell(lambda *_: None, told.append)
    )
    said = [remark for remark in result.remarks if "no better than chance" in remark]
    assert len(said) == (0 if learned else 1)
    assert all("trained weights" in remark and remark in told for remark in said)


def test_a_fine_tuning_that_cannot_be_says_how_to_do_without(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise TrainingError("this network cannot be trained: thaw it")

    monkeypatch.setattr(job_module, "finetune", refuse)
    with pytest.raises(
        TrainingError, match=r"thaw it; the compressed network is saved in .*--finetune-epochs 0 --restart"
    ):
        compress(trained(), digits(), "flops=0.5", settings=TUNED, directory=tmp_path / "x")
    with pytest.warns(Unfinished, match="fine-tuning, then the measurement on the test split is still to come"):
        stored = load(tmp_path / "x", trained())
    assert stored.plan.after.flops <= 0.5 * stored.plan.before.flops
    assert evaluate(stored.model, digits().validation).accuracy > 0.5


def test_calibration_samples_are_drawn_and_fixed_by_the_seed():
    train = digits().train
    first, again, other = (calibration_part(train, 100, seed) for seed in (0, 0, 1))
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.labels, other.labels)
    assert len(first.labels.unique()) == 10
    assert len(calibration_part(train, 10**6, 0)) == len(train)
    loader = [1, 2]
    assert calibration_part(loader, 1, 0) is loader


# Analysis


def test_analysis_answers_from_the_singular_values():
    network = trained()
    rows, found = analyse(network, digits().train, samples=512)
    row = next(row for row in rows if row.site.name == "classifier.1")
    values = np.linalg.svd(network.classifier[1].weight.detach().double().numpy(), compute_uv=False)
    energy = (values**2).cumsum() / (values**2).sum()
    assert row.weight_ranks == tuple(int((energy < share).sum()) + 1 for share in (0.9, 0.99))
    inputs = digits().train.normalize(digits().train.inputs[:512])
    with torch.no_grad():
        outputs = network.classifier[:2](network.features(inputs)).double()
    variances = np.linalg.svd((outputs - outputs.mean(0)).numpy(), compute_uv=False) ** 2
    assert row.output_ranks == tuple(
        int((variances.cumsum() / variances.sum() < share).sum()) + 1 for share in (0.9, 0.99)
    )
    assert {name for name, _ in found.left_out} >= {"features.1.weight"}


def test_analysis_names_the_site_of_a_weight_that_is_not_finite():
    network = trained()
    with torch.no_grad():
        network.features[3].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"features\.3"):
        analyse(network)


def test_analysis_files_hold_every_site(tmp_path):
    rows, found = analyse(trained())
    written = write_analysis(rows, found, tmp_path / "new")
    assert {path.name for path in written} == {"spectra.svg", "sites.csv", "sites.json"}
    values = json.loads((tmp_path / "new" / "sites.json").read_text())
    assert len((tmp_path / "new" / "sites.csv").read_text().splitlines()) == len(rows) + 1
    assert values["sites"][0]["spectrum"] == rows[0].spectrum.values.tolist()
    picture = (tmp_path / "new" / "spectra.svg").read_text()
    assert all(row.site.name in picture for row in rows)


def test_the_curve_is_drawn_from_a_few_validation_samples_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("rankfold.pipeline.compression.job.SAMPLES", 40)
    seen, real = [], curve_module.compressed_copy

    def copied(model, plan, calibration, validation, **how):
        seen.append((len(validation.inputs), how["repaired"]))
        return real(model, plan, calibration, validation, **how)

    monkeypatch.setattr(curve_module, "compressed_copy", copied)
    settings = Settings(samples=256, model="digits-cnn")
    result = compress(trained(), digits(), "flops=0.5", settings=settings, directory=tmp_path / "run")
    assert seen == [(40, curve_module.REPAIRED)] * (len(curve_module.KEPT) - 1)  # one of them is the result itself
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Measured on 40 samples of the validation split, the same for all points, without fine-tuning" in page
    assert result.validation["before"] > 0.9  # of all validation samples, not of these


def test_what_is_to_be_known_of_layers_that_change_is_a_remark():
    model = nn.Sequential(*(nn.Linear(24, 24) for _ in range(6)))
    made = rf.plan(model, rf.Ranks({str(site): 4 for site in range(5)}), "truncate", example=torch.zeros(1, 24))
    assert of_layers(made) == ()
    cut = [replace(entry, note="a large kernel: CP was searched" if entry.site < "4" else "") for entry in made.entries]
    last = replace(cut[-1], note="kept")  # and changes nothing
    said = of_layers(made.with_entries((*cut[:-1], last)))
    assert said == ("0, 1, 2 and 1 more: a large kernel: CP was searched",)


def test_rows_of_the_report_tell_the_largest_rank_of_the_form_and_a_bias_that_is_added():
    """A spatial pair folds 8 × 36 to 24 × 12: its ranks go to 12 in the picture, and in words."""
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, bias=False), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 6)
    )
    x = torch.randn(64, 4, 6, 6)
    known = rf.profile(model, x, forms=["spatial"])
    made = known.plan(Ranks({"0": 5}))
    convolution, kept, _ = page_module._layers(known, made, {}, Project())
    assert (convolution.form, convolution.rank, convolution.full_rank, len(convolution.spectrum)) == (
        "spatial", 5, 12, 12
    )  # fmt: skip
    assert convolution.note == "a bias is added, which takes up the mean error"
    assert convolution.params_after == known.counter.cost(known.sites["0"], Form.SPATIAL, 5, False).params + 8
    assert (kept.form, kept.full_rank, kept.note) == ("keep", 8, "")
    head = rf.profile(model, x, forms=["pivoted"])
    _, kept, pivoted = page_module._layers(head, head.plan(Ranks({"4": 3})), {}, Project())
    assert (kept.form, kept.full_rank, len(kept.spectrum)) == ("keep", 8, 8)
    assert (pivoted.form, pivoted.full_rank, len(pivoted.spectrum), pivoted.note) == ("pivoted", 6, 6, "")
    assert of_layers(made) == ()  # a bias more is nothing odd


def test_a_mapping_of_splits_is_answered_by_what_to_give():
    x = torch.randn(16, 24)
    parts = {"train": (x, x), "test": (x, x)}
    model = nn.Sequential(nn.Linear(24, 24))
    for use in (rf.profile, rf.evaluate):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(TypeError, match=r"give one of them, as data\['train'\]"):
                use(model, parts)
    with pytest.raises(ValueError, match=r"or a tuple \(train, test\)"):
        compress(model, parts, "params=0.6")
    assert compress(model, tuple(parts.values()), "params=0.6", settings=QUICK).params_removed >= 0.4
