"""Rank collapse in use: the recorder's probe, the report and its verb, warm-up, forecasts; bad input is said."""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from commands import failed, succeeded
from digits import digits, tiny, write_weights
from hypothesis import given
from hypothesis import strategies as st
from test_collapse import Attention
from torch import Tensor, nn

import rankfold as rf
from rankfold.collapse import CollapseProbe, Partition, chain, cross_entropy
from rankfold.collapse.warmup import class_centroids, warm_up_
from rankfold.pipeline.collapse.forecast import (
    Correction,
    Margins,
    accuracy_at,
    accuracy_curve_of,
    forecast,
    learned,
    lost_over_kept,
)
from rankfold.pipeline.collapse.page import collapse_data
from rankfold.pipeline.collapse.study import CollapseReport, collapse_report
from rankfold.report.collapse import render_collapse
from rankfold.spectrum import spectrum


@lru_cache(maxsize=1)
def report() -> CollapseReport:
    return collapse_report(tiny(), digits().train, decay=5e-4, samples=300)


# --- the probe


def test_the_recorder_keeps_what_the_probe_says(tmp_path: Path) -> None:
    model, probe = tiny(), CollapseProbe(digits().train, samples=200, decay=1e-2)
    with rf.SpectrumRecorder(model, probe=probe) as recorder:
        recorder.step(0)
        with torch.no_grad():
            model[1].weight.mul_(0.5)
        recorder.step(1)
    frame = recorder.frame()
    assert list(frame.columns[-len(probe.columns) :]) == list(probe.columns)
    first, last = frame[frame.site == "1"].iloc[0], frame[frame.site == "3"].iloc[-1]
    assert first["wcss"] > 0
    assert last["nc3"] > 0
    assert (frame["chain_holds"] == 1).all()
    assert first["to_rank_k"] == pytest.approx(spectrum(2 * model[1].weight.detach()).tail(10), rel=1e-5)
    inputs, labels = probe.inputs, probe.labels
    targets = torch.eye(10)[labels]
    again = chain(model, inputs, targets, Partition.of(labels), 1e-2, cross_entropy)
    assert frame[frame.site == "1"].iloc[-1]["chain_bound"] == pytest.approx(again.layers[0].bound, rel=1e-4)
    recorder.save(tmp_path / "run.safetensors")
    loaded = rf.SpectrumRecorder.load(tmp_path / "run.safetensors", model, probe=probe)
    assert loaded.frame().equals(frame)
    loaded.step(2)
    assert not loaded.frame().query("epoch == 2")["wcss"].isna().any()
    loaded.close()
    plain = rf.SpectrumRecorder(model)
    plain.step(0)
    plain.save(tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="recorded with no probe"):
        rf.SpectrumRecorder.load(tmp_path / "plain.safetensors", model, probe=probe)
    assert not model[1].weight.grad
    assert model.training is False


@pytest.mark.parametrize("kind", ["dense", "tokens"])
def test_the_chain_beside_them_changes_no_measure(kind: str) -> None:
    """With the chain the features come from its backward pass, else from a forward pass of their own."""
    if kind == "tokens":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: nn.Module = Attention()
        ids = torch.randint(7, (12, 5), generator=torch.Generator().manual_seed(0))
        data: Any = [(ids, torch.arange(12) % 3)]
    else:
        model, data = tiny(), digits().train.take(60, torch.Generator().manual_seed(0))
    alone, beside = (CollapseProbe(data, decay=decay)(model) for decay in (None, 1e-2))
    assert set(beside) - set(alone) <= {"embed"}  # ids have no variation, their table has bounds
    for name, numbers in alone.items():
        assert {key: beside[name][key] for key in numbers} == pytest.approx(numbers, rel=1e-6, nan_ok=True)
        assert beside[name].get("chain_holds", 1) == 1  # no cut, no chain
        assert "chain_holds" not in numbers
    assert "chain_holds" in beside[list(alone)[-1]]


def test_a_probe_needs_labels_and_leaves_the_model_as_it_was() -> None:
    with pytest.raises(ValueError, match="one class label"):
        CollapseProbe([torch.zeros(4, 3)])
    with pytest.raises(ValueError, match="loss must be one of"):
        CollapseProbe(digits().train, loss="hinge")
    model = tiny().train()
    model[1].weight.requires_grad_(False)
    CollapseProbe(digits().train, samples=50, decay=1e-2)(model)
    assert model.training
    assert not model[1].weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert not model[1]._forward_hooks
    assert not model[1]._forward_pre_hooks


# --- the report


def test_the_report_says_the_same_as_its_parts() -> None:
    found = report()
    assert [layer.site.name for layer in found.layers] == ["1", "3"]
    first = found.layers[0]
    assert first.bound is not None
    assert first.bound.distance == pytest.approx(first.spectrum.tail(10), rel=1e-5)
    assert found.violations == 0
    assert found.transitions is not None
    assert found.transitions.layers == 2
    text = found.conclusion()
    assert "1 layers that could have a rank above the number of classes, 10" in text
    assert "5 % of rank 10" in text
    assert json.loads(json.dumps(found.to_dict()))["conclusion"] == text


def test_a_planted_low_rank_layer_is_named_and_an_absent_decay_is_estimated() -> None:
    model = tiny()
    u, s, vh = torch.linalg.svd(model[1].weight.detach(), full_matrices=False)
    model[1].weight.data = (u[:, :6] * s[:6]) @ vh[:6]
    found = collapse_report(model, digits().train, samples=200)
    assert found.decay_estimated
    assert "1 of the 1 layers" in found.conclusion()
    assert "within 5 % of rank 10: 1." in found.conclusion()
    kappa = found.decay
    assert math.isnan(kappa) or kappa > 0
    with pytest.raises(ValueError, match=r"decay must be that of the training, or 0 where there was none, got -1"):
        collapse_report(model, digits().train, decay=-1.0)


def test_without_weight_decay_there_are_no_bounds_and_that_is_said():
    """0 was refused with the advice to leave it out, and left out it was asked for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    found = collapse_report(model, digits().train, samples=200, decay=0.0)
    assert found.notes[-1] == "there are no bounds: they hold of networks that were trained with weight decay"
    assert all(layer.bound is None for layer in found.layers)
    assert "give that of the training" not in found.conclusion()
    assert dict(collapse_data(found, "m", "d").facts)["Weight decay"] == "none, so that there are no bounds"


@lru_cache(maxsize=1)
def pairs() -> tuple[nn.Module, Tensor, Tensor]:
    """A network, inputs, and three classes."""
    torch.manual_seed(0)
    labels = torch.arange(240) % 3
    inputs = 3 * torch.randn(3, 12)[labels] + torch.randn(240, 12)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)), inputs, labels


def test_targets_that_are_numbers_fall_into_clusters_and_bounds_are_of_the_numbers_themselves() -> None:
    """One-hot vectors as numbers: k-means finds the classes, and everything is as with the labels."""
    model, inputs, labels = pairs()
    vectors = nn.functional.one_hot(labels).float()
    asked: Any = {"decay": 1e-2, "loss": "squared-error", "samples": 240}
    of_classes = collapse_report(model, [(inputs, labels)], **asked)
    of_numbers = collapse_report(model, [(inputs, vectors)], clusters=3, **asked)
    assert of_numbers.classes == 3
    assert "numbers" in of_numbers.notes[0]
    for a, b in zip(of_classes.layers, of_numbers.layers, strict=True):
        assert a.clusters.classes["whole"].normalised == pytest.approx(b.clusters.classes["whole"].normalised)
        assert a.clusters.collapse.nc1 == pytest.approx(b.clusters.collapse.nc1)
        assert math.isnan(b.clusters.collapse.nc4)  # outputs are no scores of clusters
        assert a.bound.bound == pytest.approx(b.bound.bound, rel=1e-6)
        assert b.bound.holds
    moved = collapse_report(model, [(inputs, vectors + 5)], clusters=3, **asked)
    assert moved.layers[0].bound.bound != pytest.approx(of_numbers.layers[0].bound.bound, rel=1e-2)


def test_one_number_for_each_sample_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "heights.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "def data():\n    torch.manual_seed(0)\n    x = torch.randn(200, 5)\n"
        "    rows = [(a, a[:2].sum()) for a in x]\n    return rows[:120], rows[120:160], rows[160:]\n\n\n"
        "def net():\n    torch.manual_seed(1)\n"
        "    return nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Linear(24, 20), nn.Tanh(), nn.Linear(20, 1))\n"
    )
    asked = ("collapse", "heights:net", "--data", "heights:data", "--decay", 1e-2, "-o", tmp_path / "c.html")
    found = succeeded(*asked, "--clusters", 4)
    assert (found["classes"], found["loss"]) == (4, "mean-squared-error")
    assert found["violations"] == 0
    assert succeeded(*asked)["classes"] == 10
    assert "the targets are numbers" in failed(*asked, "--loss", "cross-entropy")


class NextToken(nn.Module):
    """Tokens in, scores of the next ones out; the second layer sees what the first makes of each token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.body, self.head = nn.Embedding(7, 12), nn.Linear(12, 16), nn.Linear(16, 7)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(torch.tanh(self.body(self.embed(input_ids))))


def test_positions_of_a_language_model_are_grouped_by_their_next_token() -> None:
    """Beside the definition: rows of features by the token that follows, padding and rare tokens left out."""
    model, g = NextToken().double().eval(), torch.Generator().manual_seed(0)
    ids = torch.multinomial(torch.tensor([0.4, 0.3, 0.1, 0.1, 0.05, 0.03, 0.02]), 30 * 9, True, generator=g).reshape(
        30, 9
    )
    mask = torch.ones_like(ids)
    mask[:10, 6:] = 0
    objective = rf.CausalLanguageModel()
    following = objective.target({"input_ids": ids, "attention_mask": mask})
    data = [{"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}]
    found = collapse_report(model, data, samples=30, clusters=2)
    assert found.classes == 2
    assert "2 most frequent next tokens" in found.notes[0]
    assert not any(layer.bound for layer in found.layers)
    two = following[following >= 0].bincount().argsort(descending=True)[:2]
    features = torch.tanh(model.body(model.embed(ids))).detach()
    parts = [features[following == token] for token in two]
    whole = torch.cat(parts)
    within = sum(float((p - p.mean(0)).square().sum()) for p in parts)
    expected = within / float((whole - whole.mean(0)).square().sum())
    layers = {layer.site.name: layer.clusters for layer in found.layers if layer.clusters is not None}
    assert layers["head"].classes["position"].normalised == pytest.approx(expected)
    assert layers["head"].collapse_view == "position"
    assert 0 <= layers["head"].best["position"].normalised <= expected + 1e-9
    assert "embed" not in layers  # tokens have no mean


def test_classes_of_one_sample_are_said() -> None:
    split = digits().train
    chosen = torch.cat([torch.arange(60), torch.tensor([int((split.labels == k).nonzero()[0]) for k in range(10)])])
    part = split.subset(chosen[split.labels[chosen] < 3])
    lone = torch.cat([part.labels, torch.tensor([9])])
    both = [(torch.cat([part.normalize(part.inputs), torch.zeros(1, 1, 8, 8)]), lone)]
    found = collapse_report(tiny(), both, decay=1e-3)
    assert found.classes == 4
    assert "classes: 1 cluster consists of one row, in which nothing varies (every layer)" in found.notes


def test_constant_features_and_too_many_clusters_are_said() -> None:
    model = tiny()
    with torch.no_grad():
        model[1].weight.zero_()
    found = collapse_report(model, digits().train, samples=30, clusters=50)
    assert any(note.startswith("classes: constant features (3") for note in found.notes)
    assert any(note.startswith("k-means: as many clusters as rows") for note in found.notes)
    assert not any("constant" in note or "as many" in note for note in report().notes)
    weights = [(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 11]))]
    with pytest.raises(ValueError, match="labels must be from 0 to 9 for 10 classes, and run from 0 to 11"):
        collapse_report(model, weights, decay=1e-3)


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$\\frac{1}{$"])
def test_the_page_fetches_nothing_and_escapes_everything(hostile: str) -> None:
    data = collapse_data(report(), hostile, "digits")
    page = render_collapse(data)
    assert "<script" not in page
    assert "<img" not in page
    assert not re.search(r"(src|href)\s*=\s*[\"']?https?:", page)
    assert page.count("<svg") == 4
    for picture in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(picture)
    identities = re.findall(r'\sid="([^"]+)"', page)
    assert len(identities) == len(set(identities))
    assert report().conclusion().split(".")[0] in page.replace("&#39;", "'")


def test_the_verb_writes_its_page_and_prints_json(tmp_path: Path) -> None:
    file = write_weights(tmp_path / "w.safetensors")
    out = tmp_path / "page.html"
    arguments = ("collapse", "digits-cnn", "--weights", file, "--samples", 100, "--decay", 1e-3, "-o", out)
    found = succeeded(*arguments)
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert found["violations"] == 0
    assert [layer["site"] for layer in found["layers"]][-1] == "classifier.3"
    assert found["layers"][0]["clusters"]["classes"].keys() == {"whole", "position", "pooled"}
    assert "loss" in failed(*arguments[:4], "--loss", "hinge", "-o", out)


# --- warm-up


def test_warm_up_descends_the_centroid_loss_and_so_that_of_blobs() -> None:
    labels = torch.arange(60) % 3
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(3, 4, generator=generator)
    inputs = centres[labels] + 0.1 * torch.randn(60, 4, generator=generator)
    points = class_centroids(inputs, labels, 2)
    assert points.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert float(points.weights.sum()) == pytest.approx(1)
    means = class_centroids(inputs, labels)
    assert torch.allclose(means.inputs[1], inputs[labels == 1].mean(0), atol=1e-6)
    model = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight.zero_()
    before = float(nn.functional.cross_entropy(model(inputs), labels).detach())
    last = warm_up_(model, points, steps=30, learning_rate=0.1)
    after = float(nn.functional.cross_entropy(model(inputs), labels).detach())
    assert after < 0.3 * before
    assert last == pytest.approx(after, rel=0.5)
    with pytest.raises(ValueError, match="0 centroids for each class"):
        class_centroids(inputs, labels, 0)


# --- forecasts


def margins(seed: int) -> Margins:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (400,), generator=generator)
    logits = 3 * torch.eye(4)[labels] + torch.randn(400, 4, generator=generator)
    return Margins.from_logits(logits, labels)


@given(seed=st.integers(0, 1000))
def test_accuracy_under_noise_is_that_of_a_new_draw_and_falls_to_chance(seed: int) -> None:
    known = margins(seed)
    assert known.accuracy(0) == float((known.logits.argmax(1) == known.labels).double().mean())
    noise = torch.randn(50, 400, 4, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    for change in (0.1, 1.0, 1e4):
        size = (change * known.energy / (noise - noise.mean(-1, keepdim=True)).square().sum(-1).mean()).sqrt()
        reached = float(((known.logits + size * noise).argmax(-1) == known.labels).double().mean())
        assert known.accuracy(change) == pytest.approx(reached, abs=0.03)
    assert known.accuracy(1e4) == pytest.approx(0.25, abs=0.05)
    assert accuracy_at(accuracy_curve_of(known), 0.5) == pytest.approx(known.accuracy(0.5), abs=0.03)


def test_a_planted_correction_is_learned() -> None:
    planted, cases = Correction(1.0, 0.5), []
    for seed in range(4):
        known = margins(seed)
        cases += [(known, change, known.accuracy(planted.of(change))) for change in (0.01, 0.1, 0.3, 0.6, 0.9)]
    found = learned([(accuracy_curve_of(known), change, reached) for known, change, reached in cases])
    wrong = max(abs(known.accuracy(found.of(change)) - reached) for known, change, reached in cases)
    plain = max(abs(known.accuracy(Correction().of(change)) - reached) for known, change, reached in cases)
    assert wrong < 0.03 < plain
    assert [Correction().of(change) for change in (0.0, 0.2, 5.0)] == pytest.approx([0, 0.25, 99])


def test_a_projection_leaves_noise_over_what_it_keeps() -> None:
    """z = u + e with e ⟂ u and ‖e‖² = c: of z the projection u keeps 1 − c, and varies about it by c(1 − c)."""
    generator = torch.Generator().manual_seed(0)
    for change in (0.1, 0.5, 0.8):
        u = (1 - change) ** 0.5 * torch.randn(200_000, generator=generator, dtype=torch.float64)
        z = u + change**0.5 * torch.randn(200_000, generator=generator, dtype=torch.float64)
        slope = float((u * z).mean() / z.square().mean())
        noise = float((u - slope * z).square().mean())
        assert noise / slope**2 == pytest.approx(lost_over_kept(change), rel=0.02)
        assert noise / slope**2 != pytest.approx(change, rel=0.02)  # noise on top of outputs that keep their size
    with pytest.raises(ValueError, match="at least one"):
        learned([])


def test_a_forecast_compresses_nothing_and_falls_with_the_budget() -> None:
    model, data = tiny(), digits()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = forecast(model, data.train, ["params=0.9", "params=0.4", "params=0.2", "params=0.0001"], samples=256)
    assert [each.budget for each in found] == ["params=0.9", "params=0.4", "params=0.2"]  # the last cannot be met
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    changes = [each.change for each in found]
    assert changes == sorted(changes)
    assert found[0].accuracy >= found[-1].accuracy
    labels: Tensor = torch.zeros(4)
    with pytest.raises(ValueError, match="one class label"):
        Margins.of(nn.Identity(), [labels])


def test_a_probe_that_does_not_fit_is_refused_before_the_training() -> None:
    probe = CollapseProbe([(torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 3, 4, 97]))], decay=1e-2)
    with pytest.raises(ValueError, match="97"):
        rf.SpectrumRecorder(tiny(), probe=probe)
