"""The slider over budgets: its numbers are those of the plans, its script alone may run, and it moves."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from browser import CHROMIUM, Page
from digits import digits, tiny, trained
from torch import nn

import rankfold as rf
from rankfold.pipeline.compression.outcome import offers as module
from rankfold.pipeline.compression.outcome.offers import offers
from rankfold.report import (
    CurvePoint,
    FigureKind,
    LayerRow,
    Offer,
    OfferedLayer,
    ReportData,
    SearchShown,
    TriedPoint,
    render,
)
from rankfold.report.budget import digest, nearest, payload, script
from rankfold.report.search import search


@pytest.fixture(scope="module")
def known() -> rf.Profile:
    return rf.profile(trained(), digits().train.subset(torch.arange(256)))


def data(*made: Offer, name: str = "a.weight", count: int = 2) -> ReportData:
    rows = [
        LayerRow(f"{name}{i}", "Linear", (8, 8), "keep", None, 8, 64, 64, 128 * (i + 1), 128, None, None)
        for i in range(count)
    ]
    before = {"params": 128, "flops": 384, "bytes": 512, "accuracy": 0.9}
    return ReportData("title", "asked", before, before | {"flops": 200}, layers=rows, offers=made)


def offer(flops: float, *layers: OfferedLayer) -> Offer:
    return Offer(flops, flops, flops, 1 - flops, layers)


TWO = (
    offer(0.5, OfferedLayer("factored", 2, 0.3, 32, 64), OfferedLayer("factored", 4, 0.1, 64, 128)),
    offer(0.9, OfferedLayer("keep", None, None, 64, 128), OfferedLayer("factored", 6, 0.05, 64, 220)),
)


def test_every_offer_is_a_plan_of_the_profile(known: rf.Profile) -> None:
    plan = known.plan("flops=0.5")
    made = offers(known, plan)
    assert len(made) > 30
    assert [each.flops for each in made] == sorted(each.flops for each in made)
    assert sum(each.flops == plan.after.flops / plan.before.flops for each in made) == 1  # the chosen one, once
    again = known.plan(rf.Flops(made[7].flops + 1e-9))
    assert made[7].flops == again.after.flops / again.before.flops
    assert made[7].loss == pytest.approx(sum(entry.predicted_loss for entry in again.entries))
    for one, entry in zip(made[7].layers, again.entries, strict=True):
        assert (one.form, one.params, one.flops) == (entry.form, entry.params, entry.flops)
        assert one.rank == (None if entry.form is rf.Form.KEEP else entry.rank)


def test_they_decompose_nothing_and_run_no_model(known: rf.Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, counts = known.plan("flops=0.5"), Counter[str]()
    for name in ("eigh", "svd", "eigvalsh", "svdvals"):
        real = getattr(torch.linalg, name)
        monkeypatch.setattr(torch.linalg, name, lambda *a, _n=name, _r=real, **k: counts.update([_n]) or _r(*a, **k))
    monkeypatch.setattr(nn.Module, "__call__", lambda self, *a, **k: counts.update(["forward"]))
    assert offers(known, plan)
    assert not counts


def test_large_networks_get_fewer(known: rf.Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 2)
    assert len(offers(known, known.plan("flops=0.5"))) <= 1 + max(module.FEWEST, module.MANY * 2 // 6)


def test_none_where_a_plan_costs_more_than_a_look() -> None:
    known = rf.profile(tiny(), digits().train.subset(torch.arange(64)), method="sequential")
    assert offers(known, known.plan("params=0.6")) == []


def test_what_was_asked_is_shown_first_and_one_plan_alone_has_no_slider() -> None:
    assert nearest(data(*TWO)) == 0  # 200 of 384
    assert "budget-slider" in render(data(*TWO))
    page = render(data(TWO[0]))
    assert "budget-slider" not in page
    assert "<script" not in page


def test_networks_of_a_search_stand_beside_the_plans_too() -> None:
    tried = SearchShown(("told",), 0.8, 0.9, [TriedPoint(0.5, 0.5, 0.85, True), TriedPoint(None, 0.4, 0.8, False)])
    curve = [CurvePoint("project", 0.7, 0.7, 0.88)]
    found = json.loads(payload(replace(data(*TWO), search=tried, curve=curve)))["measured"]
    assert [point["kept"] for point in found] == [0.7, pytest.approx(200 / 384), 0.5]


def test_a_search_by_another_figure_is_shown_in_its_own_words() -> None:
    """Its numbers are none of the judging figure: they stand in its table and picture, and not beside the plans."""
    tried = SearchShown(("told",), 0.02, 0.0, [TriedPoint(0.55, 0.5, 0.0125, True)], FigureKind("kl", "nats"))
    shown = replace(data(*TWO), search=tried)
    assert [point["text"] for point in json.loads(payload(shown))["measured"]] == ["90.00\u00a0%"]
    page = render(shown)
    part = page[page.index("What was tried") : page.index("Other budgets")]
    assert "0.0125\u00a0nats" in part
    assert '<th scope="col" class="n">KL</th>' in part
    assert "KL against kept FLOPs" in part
    assert "ccuracy" not in part


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_a_limit_that_a_logarithm_has_no_place_for_is_not_drawn(limit: float) -> None:
    points = [TriedPoint(0.5, 0.5, 0.001, True), TriedPoint(0.3, 0.3, 9.0, False)]
    drawn = [search(SearchShown(("told",), each, 0.0, points), FigureKind("kl", "nats")) for each in (limit, 0.5)]
    dashes = [str(picture).count("stroke-dasharray") for picture in drawn]
    assert dashes[1] == dashes[0] + 1


def test_where_parameters_were_to_be_small_the_slider_and_the_picture_go_by_them(known: rf.Profile) -> None:
    tried = SearchShown(("told",), 0.8, 0.9, [TriedPoint(0.5, 0.25, 0.85, True), TriedPoint(0.7, None, 0.8, False)])
    shown = replace(
        data(*TWO), search=tried, curve=[CurvePoint("project", 0.7, 0.4, 0.88)], sought="params", called="parameters"
    )
    told = json.loads(payload(shown))
    assert (told["sought"], told["called"]) == ("params", "parameters")
    assert [point["kept"] for point in told["measured"]][0::2] == [0.4, 0.25]
    page = render(shown)
    assert ">Parameters to keep</label>" in page
    assert "against kept parameters of 1 networks" in page
    plan = known.plan("params=0.5")
    made = offers(known, plan, "params")
    assert [each.params for each in made] == sorted(each.params for each in made)
    again = known.plan(rf.Params(made[7].params + 1e-9))
    assert made[7].params == again.after.params / again.before.params


def test_the_network_that_was_built_stands_beside_its_own_plan() -> None:
    """So that the slider, which starts there, does not say that nothing was measured near."""
    (near,) = json.loads(payload(data(*TWO)))["measured"]
    assert near == {"kept": pytest.approx(200 / 384), "text": "90.00\u00a0%"}


def test_no_other_script_may_run_and_no_name_ends_the_data() -> None:
    made = data(*TWO, name="</script><script>alert(1)</script>&amp;")
    page = render(made)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert f"script-src '{digest(script())}'" in policy[1]
    assert page.count("<script") == page.count("</script>") == 2
    inside = re.search(r'<script type="application/json" id="offers">(.*?)</script>', page, re.DOTALL)
    assert inside is not None
    assert json.loads(inside[1])["offers"][1]["layers"][0] == ["keep", None, None, 64, 0.33333]
    hostile = replace(made, offers=[offer(0.5, *(OfferedLayer("</script>", 1, 0.1, 1, 1),) * 2), TWO[1]])
    assert "</script>" not in payload(hostile)
    assert render(hostile).count("</script>") == 2


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mixed, self.head = nn.Embedding(40, 16), nn.Linear(16, 16), nn.Linear(16, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.mixed(self.table(ids))))


def test_parameters_that_two_layers_share_are_listed_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Tied().eval(), torch.randint(40, (48, 4))
    run = rf.pipeline.Settings(curve=False, slices=False)
    rf.pipeline.compress(net, (x[:32], x[32:40], x[40:]), "flops=0.95", settings=run, directory=tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    *_, offered, layers = re.findall(r"<tbody.*?</tbody>", page[: page.index("<h2>Predicted")], flags=re.DOTALL)
    for table, name in ((offered, 0), (layers, 1)):
        cells = {}
        for row in re.findall(r"<tr.*?</tr>", table, flags=re.DOTALL):
            found = [re.sub(r"<[^>]+>", "", each) for each in re.findall(r"<t[hd].*?</t[hd]>", row, flags=re.DOTALL)]
            cells[found[name].split()[0]] = found
        assert cells["table"][4].split()[0] == "640"
        assert cells["head"][4] == "tied to table"
    assert '"tied":true' in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_table_of_layers_is_not_cut_off(tmp_path: Path) -> None:
    """In a window of 1200 points, with long names and notes; a narrow one scrolls the table and not the page."""
    row = LayerRow(
        "model.encoder.layers.11.attention.output.dense", "Linear", (3072, 768), "factored", 128, 768, 2_362_368,
        494_592, 10**9, 10**8, 0.123, 0.234, (), "fitted to few samples; more calibration samples would help here",
    )  # fmt: skip
    tied = replace(row, name="lm_head", tied_to="model.embed_tokens")
    before, file = {"params": 128, "flops": 384, "bytes": 512, "accuracy": 0.9}, tmp_path / "report.html"
    file.write_text(render(ReportData("t", "a", before, before, layers=[row, tied])), "utf-8")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        page = Page(file, Path(folder), width=1200)
        try:
            assert page.ask("window.innerWidth") == 1200
            assert page.ask("[...document.querySelectorAll('.scroll')].every(t => t.scrollWidth <= t.clientWidth)")
            page.tell("Emulation.setDeviceMetricsOverride", width=390, height=900, deviceScaleFactor=1, mobile=False)
            assert page.ask("document.documentElement.scrollWidth <= window.innerWidth")
            assert page.ask("document.querySelector('.layers').innerText.includes('tied to model.embed_tokens')")
        finally:
            page.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_slider_shows_the_plan_and_the_layers_in_order(known: rf.Profile, tmp_path: Path) -> None:
    plan = known.plan("flops=0.5")
    made = offers(known, plan)
    rows = [
        LayerRow(
            entry.site, "layer", entry.shape, "keep", None, 8, 0, 0,
            known.counter.cost(known.sites[entry.site], rf.Form.KEEP, 0, True).flops, 0, None, None,
        )
        for entry in plan.entries
    ]  # fmt: skip
    before = {"params": plan.before.params, "flops": plan.before.flops, "bytes": plan.before.bytes, "accuracy": 1.0}
    file = tmp_path / "report.html"
    file.write_text(
        render(ReportData("t", "a", before, before | {"flops": plan.after.flops}, layers=rows, offers=made)), "utf-8"
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        page = Page(file, Path(folder))
        try:
            for index in (0, len(made) // 2, len(made) - 1):
                page.ask(
                    f"var s = document.getElementById('budget-slider'); s.value = {index}; "
                    "s.dispatchEvent(new Event('input'))"
                )
                assert (
                    page.ask("document.getElementById('budget-flops').textContent")
                    == f"{100 * made[index].flops:.1f} %"
                )
                shown = page.ask(
                    "[...document.getElementById('budget-rows').rows].map(r => [...r.cells].map(c => c.innerText))"
                )
                for row, one, entry in zip(shown, made[index].layers, plan.entries, strict=True):
                    assert row[:3] == [entry.site, one.form, "" if one.rank is None else str(one.rank)]
                    assert row[4] == f"{one.params:,}"
            page.ask(
                "var o = document.getElementById('budget-order'); o.value = 'saved'; "
                "o.dispatchEvent(new Event('change'))"
            )
            saved = page.ask(
                "[...document.getElementById('budget-rows').rows].map(r => parseFloat(r.cells[5].innerText))"
            )
            assert saved == sorted(saved, reverse=True)
            assert page.ask("document.documentElement.scrollWidth <= window.innerWidth")
        finally:
            page.close()
