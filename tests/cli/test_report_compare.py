"""Several results in one page: its numbers are those of the results, hostile names are text, and it works by hand."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from browser import CHROMIUM, Page
from commands import failed, succeeded
from digits import digits, tiny
from matplotlib.figure import Figure

from rankfold.compress.planning.plan import Plan
from rankfold.costs import Milliseconds
from rankfold.pipeline import Settings, comparing, compress
from rankfold.pipeline.comparing import read_compared, wilson, write_comparison
from rankfold.report import CurvePoint, FigureKind
from rankfold.report.compare import Compared, LayerShown, render_compared
from rankfold.report.plots import percent_axis
from rankfold.store import StoreError

ACCURACY = FigureKind("accuracy", "fraction")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two that ``compress`` wrote: half of the parameters by data, a quarter without."""
    place, network = tmp_path_factory.mktemp("results"), tiny()
    for budget, method in (("params=0.5", "project"), ("params=0.25", "truncate")):
        settings = Settings(method=method, samples=128, slices=False, model="digits-cnn")
        compress(network, digits(), budget, settings=settings, directory=place / method)
    return [place / "project", place / "truncate"]


def shown(name: str, flops: int, **layers: LayerShown) -> Compared:
    before = {"accuracy": 0.9, "params": 100, "flops": 200, "bytes": 400, "latency_ms": {"1": 2.0}}
    after = before | {"accuracy": 0.8, "params": 50, "flops": flops, "latency_ms": {"1": 3.0}}
    curve = [CurvePoint("project", 0.5, 0.5, 0.8)]
    return Compared(
        name, f"flops {flops}", "project", "test split", [ACCURACY], {"before": before, "compressed": after},
        {"compressed": (0.7, 0.9)}, layers, curve,
    )  # fmt: skip


def two(name: str = "a") -> str:
    same, other = LayerShown("keep", None, None, 1.0), LayerShown("factored", 3, 0.2, 0.4)
    small = LayerShown("factored", 2, 0.3, 0.2)
    return render_compared(
        [shown(name, 100, one=same, two=other, three=same), shown("b", 60, one=same, two=small, three=other)]
    )


def test_a_time_that_is_not_clearly_another_has_no_share() -> None:
    chance = shown("a", 60)
    chance.stages["before"]["latency_ms"] = {"1": Milliseconds(8.0, (2.0, 9.0))}
    chance.stages["compressed"]["latency_ms"] = {"1": Milliseconds(2.0, (1.0, 9.0))}
    row = next(
        row
        for row in re.findall(r"<tr>.*?</tr>", render_compared([chance, shown("b", 60)]), flags=re.DOTALL)
        if "Latency" in row
    )
    assert "2.000\u00a0ms (1.000–9.000), not clearly different from before</td>" in row
    assert ("25.0" in row, row.count("of before")) == (False, 1)


def test_a_result_is_read_as_it_was_written(results: list[Path]) -> None:
    found = read_compared(results[0])
    stored = json.loads((results[0] / "result.json").read_text())
    plan = Plan.load(results[0] / "plan.json")
    assert found.stages["compressed"]["accuracy"] == stored["compressed"]["accuracy"]
    assert found.stages["before"]["latency_ms"] == stored["latencies"]["before"]
    assert found.judged_on == "test split of digits, 449 samples"
    assert {name: one.rank for name, one in found.layers.items() if one.rank} == {
        entry.site: entry.rank for entry in plan.entries if entry.form.value != "keep"
    }
    assert [point.value for point in found.curve] == [point["value"] for point in stored["curve"]]
    assert len(found.curve) > 3
    low, high = found.intervals["compressed"]
    assert low < stored["compressed"]["accuracy"] < high
    assert (low, high) == wilson(stored["compressed"]["accuracy"], 449)


def test_the_command_writes_a_page_with_every_number(results: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    assert succeeded("report", *results, "-o", file)["file"] == str(file)
    page = file.read_text()
    for directory in results:
        stored = json.loads((directory / "result.json").read_text())
        assert f"{100 * stored['compressed']['accuracy']:.2f}\u00a0%" in page
        for entry in Plan.load(directory / "plan.json").entries:
            assert entry.form.value == "keep" or f"{entry.form.value} {entry.rank}<small" in page
    assert ">project<" in page
    assert ">truncate<" in page


def test_what_was_allowed_and_done_is_said(
    results: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search by what it allowed, not by the budget that it found; tuning beside the method; tokens by their name."""
    searched = shutil.copytree(results[0], tmp_path / "searched")
    values = json.loads((searched / "result.json").read_text())
    figure = {"name": "accuracy", "value": 0.98, "higher": True, "unit": "fraction"}
    values["search"] = {"by": "flops", "asked": 0.005, "figure": figure}
    (searched / "result.json").write_text(json.dumps(values))
    plain = read_compared(results[0])
    monkeypatch.setattr(comparing, "read_manifest", lambda _: {"notes": {"data": "digits", "tuning": {"steps": 40}}})
    found = read_compared(searched)
    plan = Plan.load(results[0] / "plan.json")
    kept = f"{100 * plan.after.params / plan.before.params:.1f} % of the parameters kept"
    assert found.asked == f"smallest flops with accuracy worse by at most 0.5 points; found: {kept}"
    assert found.method == "project, ranks optimal, tuned without labels"
    assert (plain.asked, plain.method) == ("params ≤ 0.5 of dense", "project, ranks optimal")
    score = values["scores"]["compressed"]
    score["figures"] = [{"name": "perplexity", "value": 9.0, "higher": False, "unit": ""}]
    (searched / "result.json").write_text(json.dumps(values))
    assert read_compared(searched).judged_on == "test split of digits, 449 tokens"


def test_what_cannot_be_compared_is_said_in_one_line(results: list[Path], tmp_path: Path) -> None:
    assert "at least two directories" in failed("report", results[0])
    assert "no finished result" in failed("report", results[0], tmp_path)
    broken = shutil.copytree(results[0], tmp_path / "broken")
    (broken / "result.json").write_text('{"before": 3}')
    assert "damaged" in failed("report", results[0], broken)


def test_a_result_of_the_first_release_is_judged_by_accuracy(results: list[Path], tmp_path: Path) -> None:
    old = shutil.copytree(results[0], tmp_path / "old")
    values = json.loads((old / "result.json").read_text())
    for key in ("scores", "curve", "objective", "search"):
        del values[key]
    (old / "result.json").write_text(json.dumps(values))
    found = read_compared(old)
    assert (found.judged, found.intervals, found.curve) == (ACCURACY, {}, [])


def test_the_interval_is_that_of_wilson() -> None:
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(1.0, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)


def test_nothing_is_fetched_and_names_are_text() -> None:
    page = two('"><script>alert(1)</script>')
    assert page.count("<script") == page.count("</script>") == 1
    assert "http" not in page.replace("http-equiv", "")
    assert re.search(r"script-src 'sha256-[\w+/=]+'", page)
    assert not re.search(r"#0000[01]\d", page), "a colour of the drawing stayed"


def test_different_data_and_networks_are_told() -> None:
    other = shown("b", 60)
    assert "made from different networks" not in render_compared([shown("a", 60), other])
    changed = Compared(**{**vars(other), "judged_on": "validation split", "stages": {
        "before": {"params": 7, "accuracy": 1.0}, "compressed": {"params": 5, "accuracy": 0.9}}})  # fmt: skip
    page = render_compared([shown("a", 60), changed])
    assert "made from different networks" in page
    assert "of different data" in page
    alike = [{**vars(shown("a", 60)), "made_from": "s:1", "data": "9 of Split 1"}, {**vars(other), "made_from": "s:1"}]
    page = render_compared([Compared(**each) for each in alike])
    assert "different" not in page  # what an earlier version did not note tells nothing
    for key, value, said in (
        ("made_from", "s:2", "one network with different weights"),
        ("made_from", "t:2", "made from different networks"),
        ("data", "9 of Split 2", "of different data"),
    ):
        assert said in render_compared([Compared(**alike[0]), Compared(**{**alike[0], key: value})])


def test_two_networks_of_one_shape_are_told_by_their_weights(results: list[Path], tmp_path: Path) -> None:
    one, two = (read_compared(directory) for directory in results)
    assert one.made_from == two.made_from == Plan.load(results[0] / "plan.json").fingerprint
    assert one.data == two.data
    assert "449 of Split" in one.data
    network = tiny()
    with torch.no_grad():
        next(network.parameters()).mul_(2)
    settings = Settings(method="truncate", slices=False, model="digits-cnn")
    compress(network, digits(), "params=0.5", settings=settings, directory=tmp_path / "other")
    page = write_comparison([results[1], tmp_path / "other"], tmp_path / "c.html").read_text()
    assert "one network with different weights" in page


@pytest.mark.parametrize("verb", ["report", "collapse", "plan"])
def test_a_file_of_somebody_else_is_left_alone(verb: str, results: list[Path], tmp_path: Path) -> None:
    theirs = tmp_path / "notes.html"
    theirs.write_text("<html>mine</html>")
    asked = {
        "report": results,
        "collapse": ["digits-cnn", "--samples", 64],
        "plan": ["digits-cnn", "--method", "truncate", "--budget", "params=0.5", "--weights", theirs],
    }[verb]
    assert "notes.html is there already, and rankfold did not write it" in failed(verb, *asked, "-o", theirs)
    assert theirs.read_text() == "<html>mine</html>"
    if verb == "report":
        for _ in range(2):  # a page of ours is replaced
            succeeded("report", *results, "-o", tmp_path / "ours.html")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 500])
def test_layers_that_differ_are_shown_alone_and_in_order(tmp_path: Path, width: int) -> None:
    file = tmp_path / "page.html"
    file.write_text(two("a-rather-long-name-of-a-directory"), "utf-8")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        page = Page(file, Path(folder), width)
        try:
            names = (
                "[...document.getElementById('layers').rows].filter(r => !r.hidden && r.offsetHeight)"
                ".map(r => r.cells[0].innerText)"
            )
            assert page.ask(names) == ["one", "two", "three"]
            page.ask("document.getElementById('differing').focus(); document.activeElement.click()")
            assert page.ask(names) == ["two", "three"]
            assert page.ask("document.getElementById('shown').textContent") == "2 of 3"
            page.ask(
                "var o = document.getElementById('order'); o.value = 'spread'; o.dispatchEvent(new Event('change'))"
            )
            assert page.ask(names) == ["three", "two"]  # 1.0 against 0.4, then 0.4 against 0.2
            assert page.ask("document.documentElement.scrollWidth <= window.innerWidth")
        finally:
            page.close()


def test_a_result_that_was_written_block_by_block_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"plan": {}, "needs": {}}', "utf-8")
    with pytest.raises(StoreError, match="keeps no report: evaluate it"):
        read_compared(tmp_path)


def test_a_training_is_named_as_such(tmp_path: Path) -> None:
    """It was called damaged, and compress told to run again."""
    place = tmp_path / "run"
    (place / "small").mkdir(parents=True)
    (place / "metrics.jsonl").write_text("{}\n")
    (place / "result.json").write_text("{}")
    for directory in (place, place / "small"):
        with pytest.raises(StoreError, match=r"rankfold train wrote it.*rankfold evaluate .*model\.safetensors"):
            read_compared(directory)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.9, 0.93), (0.97, 0.9725), (0.5, 0.50002), (0.99999, 1.0)])
def test_no_two_labels_of_an_axis_are_the_same(low: float, high: float) -> None:
    axes = Figure().add_subplot()
    axes.plot([0, 1], [low, high])
    percent_axis(axes.yaxis)
    labels = [axes.yaxis.get_major_formatter()(tick, 0) for tick in axes.yaxis.get_majorticklocs()]
    assert len(labels) > 2
    assert len(set(labels)) == len(labels)
