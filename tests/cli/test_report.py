"""The HTML report: nothing fetched, nothing injected, nothing left out, pictures that draw the data."""

import ast
import json
import math
import re
import stat
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rankfold.report
from rankfold.cli.printing import percent as typed_percent
from rankfold.costs import Milliseconds
from rankfold.report import CurvePoint, FigureKind, LayerRow, ReportData, plots, render, summary, write_report
from rankfold.report.quantities import bytes_of, count, decimal, integer, milliseconds, percent, points, times, title

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></svg></title><b>",
    "' onload='x",
    "$\\frac{1}{$",
    "{{ 7*7 }}{% endif %}",
    "层.重量 é \u202e #000001 &amp;",
]
VOID = {"meta", "br", "wbr", "img", "link", "input", "hr"}


def layer(number: int = 0, **changes) -> LayerRow:
    values = [math.exp(-0.1 * (number + 1) * i) for i in range(16)]
    return replace(
        LayerRow(
            f"blocks.{number}.conv", "Conv2d", (16, 16, 3, 3), "factored", 6 + number, 16, 2304, 960, 4_000_000,
            2_000_000, 0.1 + 0.02 * number, 0.11 + 0.03 * number, values, "bias corrected",
        ),
        **changes,
    )  # fmt: skip


def full() -> ReportData:
    before = {
        "accuracy": 0.9173,
        "loss": 0.3412,
        "params": 269_722,
        "flops": 81_102_080,
        "bytes": 1_084_936,
        "latency_ms": {64: 41.73, 1: 3.912},
    }
    compressed = before | {"accuracy": 0.8046, "params": 120_000, "flops": 40_551_040, "bytes": 486_000}
    compressed["latency_ms"] = {1: 4.105, 64: 29.6}
    return ReportData(
        title="resnet20 on cifar10",
        asked="At most 50 % of the FLOPs.",
        before=before,
        compressed=compressed,
        finetuned=compressed | {"accuracy": 0.9112, "loss": 0.3389},
        layers=[layer(i) for i in range(5)] + [layer(5, form="keep", rank=None, measured_error=None)],
        skipped=[("bn1.weight", "a vector"), ("head.weight", "tied to embedding.weight")],
        curve=[
            CurvePoint(method, share, share - 0.05, 0.9 - cost * (1 - share) ** 2)
            for method, cost in (("project", 0.3), ("truncate", 1.2))
            for share in (0.3, 0.5, 0.7, 0.9)
        ],
        history=[
            {"epoch": i, "train_loss": 1 / i, "validation_loss": 1.1 / i, "validation_accuracy": 0.9 - 0.1 / i}
            for i in range(1, 6)
        ],
        best_epoch=4,
        settings={"model": "resnet20", "seed": 0},
        environment={"torch": "2.13.0"},
    )


@cache
def full_page() -> str:
    return render(full())


class Page(HTMLParser):
    """Tags in balance, ids, attributes and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data


def pictures(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)]


def drawn(picture: ElementTree.Element, colour: str, at_least: int = 2) -> list[list[tuple[float, float]]]:
    """The lines of one colour in a picture, as points in its coordinates (y grows downwards)."""
    lines = []
    for path in picture.iter("path"):
        style = path.get("style", "")
        if f"stroke: var(--{colour})" in style and "fill: none" in style:
            numbers = [float(x) for x in re.findall(r"-?\d+\.?\d*", path.get("d", ""))]
            line = list(zip(numbers[::2], numbers[1::2], strict=True))
            if len(line) >= at_least:
                lines.append(line)
    return lines


# --- the page as a whole ----------------------------------------------------------------------------------


def test_page_is_whole_and_says_everything():
    data = full()
    page = Page(full_page())
    for row in data.layers:
        assert page.text.count(row.name) >= 2, "in the table and over its spectrum"
    for text in (
        data.title,
        data.asked,
        *(part for pair in data.skipped for part in pair),
        *(point.method for point in data.curve),
        "resnet20",
        "2.13.0",
        "91.73\u00a0%",
        "80.46\u00a0%",
        "91.12\u00a0%",
        "40.55\u00a0M",
        "120.0\u00a0k",
        "486.0\u00a0kB",
        "29.60\u00a0ms",
        "bias corrected",
        "epoch 4",
    ):
        assert text in page.text, text
    assert page.text.index("Asked") < page.text.index("Reached") < page.text.index("Accuracy")
    assert page.tags.count("svg") == 6 + 1 + 2 + 2


def test_batches_stand_in_numerical_order():
    text = Page(full_page()).text
    assert text.index("Latency, batch 1") < text.index("Latency, batch 64")
    assert [row[0] for row in summary.latency_rows({"latency_ms": {"64": 1, "8": 1}}, {"latency_ms": {1: 1}})] == [
        "1",
        "8",
        "64",
    ]


def test_nothing_is_fetched_and_nothing_runs():
    html = full_page()
    page = Page(html)
    assert "http" not in html.replace("http-equiv", "")
    assert not {"script", "link", "img", "iframe", "object", "base", "image"} & set(page.tags)
    assert not {"src", "srcset", "action", "background"} & {name for name, _ in page.attributes}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    assert all(value and value.startswith("#") for name, value in page.attributes if name == "href")


def test_pictures_are_sound_named_and_apart():
    html = full_page()
    page = Page(html)
    assert len(set(page.ids)) == len(page.ids)
    references = set(re.findall(r"url\(#([^)]*)\)", html)) | set(re.findall(r'href="#([^"]*)"', html))
    assert references <= set(page.ids)
    for picture in pictures(html):
        assert picture.get("role") == "img"
        assert len(picture.get("aria-label", "")) > 10
        assert picture.get("viewBox")


def test_every_colour_is_defined_for_light_and_dark():
    html = full_page()
    assert not re.search(r"#0000[01]\d", html), "a colour of the drawing stayed"
    light, dark = re.findall(r":root \{\s*(?:color-scheme: light dark;)?([^}]*--paper[^}]*)\}", html)
    for name in set(re.findall(r"var\(--([\w-]+)\)", html)):
        assert f"--{name}:" in light, name
        assert f"--{name}:" in dark, name
    in_pictures = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", in_pictures)) <= {
        "none",
        *(f"var(--{name})" for name in ("ink", "muted", "rule", "fill", *(f"series-{i}" for i in range(1, 7)))),
    }


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(name):
    data = replace(
        full(),
        title=name,
        asked=name,
        layers=[layer(0, name=name, kind=name, note=name, form=name)],
        skipped=[(name, name)],
        curve=[CurvePoint(name, 0.5, 0.5, 0.9)],
        settings={name: name},
        environment={name: name},
    )
    page = Page(render(data))
    assert not {"script", "img"} & set(page.tags)
    assert page.tags.count("svg") == page.tags.count("figure") == 1 + 1 + 2 + 2
    assert not [attribute for attribute, _ in page.attributes if attribute.startswith("on")]
    assert page.text.count(name) == 17
    assert any(attribute == "aria-label" and name in (value or "") for attribute, value in page.attributes)


def test_the_same_values_give_the_same_page():
    assert render(full()) == full_page()


# --- parts that may be missing ----------------------------------------------------------------------------


def test_without_data_and_fine_tuning():
    data = ReportData("a title", "asked", {"params": 10}, {"params": 5})
    page = Page(render(data))
    assert "no labelled data" in page.text
    assert "50.0\u00a0%" in page.text
    assert "Fine-tuned" not in page.text
    for heading in ("Layers", "Spectra", "Fine-tuning", "Left out", "Accuracy against budget", "Settings"):
        assert heading not in page.text
    assert Page(render(replace(data, before={}, compressed={}))).tags.count("table") == 0


def test_values_that_are_unknown_or_not_finite_are_dashes():
    nothing = dict.fromkeys(("accuracy", "loss", "params", "flops", "bytes", "latency_ms"))
    data = replace(full(), before=nothing, compressed=nothing | {"loss": math.nan, "flops": 5}, finetuned=None)
    data = replace(
        data,
        layers=[layer(0, flops_before=None, flops_after=None, predicted_error=None, measured_error=math.inf)],
        curve=[CurvePoint("project", None, 0.5, 0.9), CurvePoint("project", None, 0.7, 0.9)],
        history=[{"epoch": 1, "train_loss": math.nan, "validation_accuracy": 0.5}],
    )
    page = Page(render(data))
    assert not re.search(r"\b(nan|None|inf)\b", page.text)
    assert page.tags.count("svg") == 1 + 1 + 1


@pytest.mark.parametrize(
    ("spectrum", "drawable"),
    [([], False), ([0.0, 0.0], False), ([1.0, math.nan], False), ([3.0], True), ([1.0, 0.0], True), ([2.0] * 9, True)],
)
def test_odd_spectra(spectrum, drawable):
    data = replace(full(), layers=[layer(0, spectrum=spectrum, rank=1, full_rank=max(1, len(spectrum)))])
    page = Page(render(data))
    assert ("no spectrum" in page.text) != drawable
    assert data.layers[0].name in page.text


# --- what is drawn ----------------------------------------------------------------------------------------


def falls(line: list[tuple[float, float]]) -> bool:
    """From left to right and never upwards."""
    return all(x < u and y <= v for (x, y), (u, v) in pairwise(line))


@settings(max_examples=15, deadline=None)
@given(values=st.lists(st.floats(1e-9, 1e6), min_size=2, max_size=1500), draw=st.data())
def test_a_spectrum_is_drawn_falling_with_its_rank_in_place(values, draw):
    values = sorted(values, reverse=True)
    rank = draw.draw(st.integers(1, len(values)))
    (picture,) = plots.spectra([layer(0, spectrum=values, rank=rank, full_rank=len(values))])
    svg = ElementTree.fromstring(picture)
    (line,) = drawn(svg, "series-1")
    assert falls(line)
    left, right = line[0][0], line[-1][0]
    ((mark, _), (same, _)) = drawn(svg, "series-2")[0]
    assert mark == same
    assert math.isclose(mark, left + (rank - 1) / (len(values) - 1) * (right - left), abs_tol=0.01)
    assert f"rank {rank} of {len(values)} kept" in svg.get("aria-label", "")


def test_the_check_of_falling_lines_rejects_a_rising_one():
    (picture,) = plots.spectra([layer(0, spectrum=[0.1, 0.5, 1.0], rank=None)])
    (line,) = drawn(ElementTree.fromstring(picture), "series-1")
    assert len(line) == 3
    assert not falls(line)
    assert drawn(ElementTree.fromstring(picture), "series-2") == []


def test_spectra_share_one_scale():
    steep, flat = (
        drawn(ElementTree.fromstring(picture), "series-1")[0]
        for picture in plots.spectra([layer(0, spectrum=[1, 1e-1, 1e-4]), layer(1, spectrum=[7, 0.7, 0.7])])
    )
    assert steep[0][1] == flat[0][1]
    assert steep[1][1] == flat[1][1] < steep[2][1]


def test_curves_have_one_line_for_each_method_through_its_points():
    data = replace(full(), curve=full().curve[::-1])
    for quantity, picture in plots.budget_curves(data):
        svg = ElementTree.fromstring(picture)
        for number, method in ((1, "truncate"), (2, "project")):
            (line,) = drawn(svg, f"series-{number}")
            accuracies = sorted(p.value for p in data.curve if p.method == method)
            assert len(line) == len(accuracies) == 4
            assert all(x < u and y > v for (x, y), (u, v) in pairwise(line)), quantity
            heights = [(a - accuracies[0]) / (accuracies[-1] - accuracies[0]) for a in accuracies]
            drawn_heights = [(line[0][1] - y) / (line[0][1] - line[-1][1]) for _, y in line]
            assert heights == pytest.approx(drawn_heights, abs=1e-3)


def test_more_methods_than_colours_stay_apart():
    data = replace(full(), curve=[CurvePoint(f"method {i}", s, s, s) for i in range(8) for s in (0.4, 0.8)])
    assert len(plots.methods(data.curve)) == 8
    svg = ElementTree.fromstring(plots.budget_curves(data)[0][1])
    styles = [p.get("style", "") for p in svg.iter("path") if "stroke: var(--series-1)" in p.get("style", "")]
    assert len({style for style in styles if "fill: none" in style}) == 2


def test_errors_are_drawn_above_the_diagonal_where_measured_exceeds_predicted():
    rows = [layer(0, predicted_error=0.1, measured_error=0.2), layer(1, predicted_error=0.1, measured_error=0.05)]
    svg = ElementTree.fromstring(plots.errors(rows))
    dots = [(float(use.get("x")), float(use.get("y"))) for use in svg.iter("use") if "series-1" in use.get("style", "")]
    (x, above), (u, below) = dots
    assert x == u
    ((left, bottom), (right, top)) = drawn(svg, "muted")[-1]
    on_diagonal = bottom + (x - left) / (right - left) * (top - bottom)
    assert above < on_diagonal < below
    assert plots.errors([layer(0, predicted_error=0.0, measured_error=0.0)]) is None


def test_of_rounding_no_ratio_is_taken():
    """A layer that is exact was marked as worse than foretold."""
    near = layer(0, predicted_error=1.7e-8, measured_error=1.5e-7, rounding=9.5e-7)
    assert summary.error_ratio(near) is None
    assert summary.error_ratio(replace(near, rounding=0.0)) == pytest.approx(8.8, abs=0.1)
    assert summary.predictions([near]) == ""
    page = render(replace(full(), layers=[near, layer(1)]))
    assert page.count("exact to rounding") == 1
    assert "8.82×" not in page


# --- words and numbers ------------------------------------------------------------------------------------


def test_three_lines_for_a_reader_in_a_hurry():
    data = full()
    plain = {name: getattr(summary, name)(data).replace("\u00a0", " ") for name in ("reached", "quality")}
    assert plain["reached"] == (
        "50.0 % of the FLOPs (40.55 M), 44.5 % of the parameters (120.0 k) and 44.8 % of the bytes (486.0 kB) kept; "
        "0.95× as fast at batch 1 and 1.41× as fast at batch 64."
    )
    assert plain["quality"] == "91.73 % before, 80.46 % after compression, 91.12 % after fine-tuning (−0.61 points)."
    assert summary.predictions(data.layers) == (
        "Measured error is 1.21× the prediction in the median of 5 layers; furthest from it is "
        "blocks.4.conv with 1.28×."
    )
    assert summary.predictions([]) == ""
    assert summary.reached(ReportData("", "", {}, {})) == "Sizes were not measured."


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_no_number_is_not_told_as_one_that_was_not_measured(value: float) -> None:
    broken = ReportData("", "", {"accuracy": 0.9}, {"accuracy": value})
    said = summary.quality(broken).replace("\u00a0", " ")
    assert said == f"90.00 % before, no finite number ({value}) after compression."
    assert summary.quality(replace(broken, before={})) == f"no finite number ({value}) after compression."
    assert summary.quality(replace(broken, before={}, compressed={})) == "Not measured: no labelled data were given."


def test_times_whose_quartiles_overlap_are_no_clear_difference():
    before = {"latency_ms": {1: Milliseconds(3.0, (2.9, 3.1)), 64: Milliseconds(6.0, (1.7, 6.1))}}
    after = {"latency_ms": {1: Milliseconds(2.0, (1.9, 2.1)), 64: Milliseconds(2.0, (1.6, 2.1))}}
    data = ReportData("", "", before, after)
    said = summary.reached(data).replace("\u00a0", " ")
    assert said == "1.50× as fast at batch 1 and no clear difference in time (6.000 and 2.000 ms) at batch 64."
    clear, chance = re.findall(r"Latency, batch.*?</tr>", render(data), flags=re.DOTALL)
    assert ("66.7\u00a0%" in clear, "bar" in clear) == (True, True)
    assert "no clear difference" in chance
    assert not any(mark in chance for mark in ("33.3", "bar", "off"))  # a bar or a colour would be of chance alone
    slower = replace(data, before=after, compressed=before)
    clear, chance = re.findall(r"Latency, batch.*?</tr>", render(slower), flags=re.DOTALL)
    assert (" off" in clear, " off" in chance) == (True, False)


def test_parameters_of_tied_layers_are_counted_once():
    data = full()
    rows = [*data.layers[:-1], replace(data.layers[-1], tied_to=data.layers[0].name)]
    text = Page(render(replace(data, layers=rows))).text
    assert text.count(f"tied to {data.layers[0].name}") == 1
    assert "tied to" not in Page(render(replace(data, skipped=()))).text


def test_figures_are_written_as_people_write_them():
    names = {"kl": "KL", "mean_iou": "Mean IoU", "perplexity_error": "Perplexity error", "rmse": "RMSE", "r2": "R²"}
    assert {name: title(FigureKind(name)) for name in names} == names


def test_numbers_are_readable():
    plain = lambda text: text.replace("\u00a0", " ")  # noqa: E731
    assert [plain(count(n)) for n in (0, 7, 999, 1000, 269_722, 40_551_040, 1.5e12, None, math.nan)] == [
        "0", "7", "999", "1.000 k", "269.7 k", "40.55 M", "1.500 T", "–", "–",
    ]  # fmt: skip
    assert [plain(count(n, "B")) for n in (12, 999_999, 1_084_936)] == ["12 B", "1.000 MB", "1.085 MB"]
    assert [decimal(x) for x in (0.0, 0.0123456, 12.345, 1.2e-7, 1234.5, None)] == [
        "0", "0.0123", "12.3", "1.2e-07", "1234", "–",
    ]  # fmt: skip
    assert [plain(percent(x)) for x in (0.4957, 1.0, -2e-4, None)] == ["49.6 %", "100.0 %", "0.0 %", "–"]
    assert typed_percent(-2e-4) == "0.0 %"
    assert [plain(milliseconds(x)) for x in (0.0432, 3.912, 41.731, 1234.5)] == [
        "0.043 ms", "3.912 ms", "41.73 ms", "1234 ms",
    ]  # fmt: skip
    assert (times(1.3247), times(None), integer(40_551_040), integer(None)) == ("1.32×", "–", "40,551,040", "–")
    assert [plain(points(x)) for x in (-0.0061, 0.0, 0.012)] == ["−0.61 points", "+0.00 points", "+1.20 points"]


# --- the file ---------------------------------------------------------------------------------------------


def test_the_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "folder" / "report.html"
    assert write_report(full(), str(path)) == path
    assert path.read_text(encoding="utf-8") == full_page()
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRUSR
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        write_report(replace(full(), layers=["not a layer"]), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_values_that_went_through_json_are_as_good(tmp_path):
    data = full()
    again = replace(
        data, **{k: json.loads(json.dumps(getattr(data, k))) for k in ("before", "compressed", "finetuned")}
    )
    assert render(again) == full_page()


def test_the_room_knows_no_other_room_than_spectrum():
    for file in Path(rankfold.report.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                room = (module or "").split(".")
                assert room[0] != "rankfold" or room[1] in ("report", "spectrum"), (file.name, module)


SIZES = {
    "2GB": 2e9, "2gb": 2e9, "2G": 2e9, " 2 g ": 2e9, "1.5 mb": 1.5e6, ".5k": 500, "2gib": 2 * 2**30, "2 GiB": 2 * 2**30,
    "1MIB": 2**20, "2Gi": 2 * 2**30, "1.5e9": 1.5e9, "1e-3 TB": 1e9, "640": 640,
    "640 B": 640, count(4_000_000_000, "B"): 4e9,
}  # fmt: skip


@pytest.mark.parametrize("text", SIZES)
def test_an_amount_of_memory_is_read_as_people_write_it(text):
    assert bytes_of(text) == SIZES[text]


@pytest.mark.parametrize("text", ["", "much", "-2GB", "0", "0.5", "nan", "inf", "2 GiG", "2GBB", "2 i", "GB", "1,5GB"])
def test_what_is_no_amount_of_memory_is_refused_with_examples(text):
    with pytest.raises(ValueError, match=r"is not an amount of memory: write 500MB, 2GB, 2GiB, or a number of bytes"):
        bytes_of(text)
