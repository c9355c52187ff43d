"""The table of a machine: what it knows is not timed again, what it does not know is; no other machine's is read."""

import copy
import json
import threading

import pytest
import torch
from networks import network
from test_latency import Clock, quiet
from test_latency import Machine as Planned
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import rankfold as rf
from rankfold.compress.methods import method_named
from rankfold.compress.planning import decide
from rankfold.compress.planning.candidates import decompose
from rankfold.compress.ranks import timing
from rankfold.compress.ranks.asked import budget_from, parse_budget
from rankfold.compress.ranks.budget import Latency
from rankfold.compress.ranks.latency import meet_latency, paired
from rankfold.compress.ranks.options import BudgetError
from rankfold.compress.ranks.timing import ALIKE, site_timing
from rankfold.costs import Example
from rankfold.costs.curve import Curve, curves
from rankfold.costs.decoding import phased, prompt_latencies
from rankfold.costs.law import Point, law_of
from rankfold.costs.machine import Machine, arithmetic
from rankfold.costs.table import LatencyTable, Spot, file_of
from rankfold.sites import Form, LinearLayer, opened, sites


@pytest.fixture(autouse=True)
def few_turns(monkeypatch):
    """The clock of these tests says the same every time."""
    monkeypatch.setattr(timing, "TURNS", 2)


SHAPES = ((16, 16), (64, 16), (16, 64), (64, 64), (96, 128), (128, 128))


def planted(weights: int, widths: int, rows: int) -> float:
    """Milliseconds by the law, on the machine of these tests."""
    return rows**0.5 * (0.01 + 1e-4 * weights + 1e-4 * widths)


def measured(file, rows=(1, 4, 64), forms=(Form.FACTORED, Form.PIVOTED), how="float32") -> LatencyTable:
    """A table in which every time follows the planted law."""
    table = LatencyTable.of(file)
    for many in rows:
        for m, n in SHAPES:
            layer = LinearLayer("Linear", (m, n), has_bias=False)
            times = {
                (form, rank): planted(layer.params(form, rank, False), m + n + rank, many)
                for form in forms
                for rank in (2, min(m, n) // 2, min(m, n) - 1)
            }
            table.add(Spot.linear("Linear", (m, n), many, how), curves(planted(m * n, m + n, many), times))
    table.save()
    return table


def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 90), nn.ReLU(), nn.Linear(90, 60), nn.ReLU(), nn.Linear(60, 40)).eval()


def timing_of(model, example, timer, table, batch=4, phase="forward"):
    found, example = sites(model), Example.of(example)
    with opened(model):
        candidates = decompose(model, found, method_named("truncate"), None, quiet).candidates
        return found, site_timing(
            model, found, candidates, example, batch, quiet, phase=phase, table=table, timer=timer
        )


def test_a_covered_network_is_not_timed_and_its_times_are_the_laws(tmp_path):
    table, clock = measured(tmp_path / "t.json"), Clock()
    found, times = timing_of(layers(), torch.randn(2, 40), clock, table)
    assert clock.calls == []
    first = found["0"]
    assert times(first, Form.KEEP, 0) == pytest.approx(planted(3600, 130, 4))
    assert times(first, Form.FACTORED, 8) == pytest.approx(planted(8 * 130, 138, 4))
    assert times(first, Form.PIVOTED, 8) == pytest.approx(planted(8 * 122, 138, 4))
    assert "layer times of 3 of 3 kinds of layer" in times.said
    assert "3 by its law, off by 0 %" in times.said


def test_what_the_table_has_not_is_timed_once_and_kept(tmp_path):
    table, clock, model = measured(tmp_path / "t.json"), Clock(), layers().append(nn.Linear(40, 300))
    found, times = timing_of(model, torch.randn(2, 40), clock, table)
    timed = {layer.out_features for layer, _ in clock.calls if isinstance(layer, nn.Linear)}
    assert timed == {300}
    assert times(found["5"], Form.KEEP, 0) == pytest.approx(1e3 * 1e-6 * 12000)
    again, clock = LatencyTable.of(tmp_path / "t.json"), Clock(lambda layer: 7.0)
    known = timing_of(model, torch.randn(2, 40), clock, again)[1]
    assert clock.calls == []
    assert known(found["5"], Form.FACTORED, 9) == times(found["5"], Form.FACTORED, 9)


def test_times_that_cannot_be_kept_are_a_warning(tmp_path):
    (tmp_path / "file").touch()
    table = LatencyTable.of(tmp_path / "file" / "t.json")
    with pytest.warns(UserWarning, match="the times of layers could not be kept"):
        found, times = timing_of(layers(), torch.randn(2, 40), Clock(), table)
    assert times(found["0"], Form.KEEP, 0) > 0


def test_rows_between_and_beyond_those_that_were_timed(tmp_path):
    table, clock = measured(tmp_path / "t.json", rows=(1, 4, 64)), Clock()
    timing_of(layers(), torch.randn(2, 40), clock, table, batch=16)  # between: by the law
    assert clock.calls == []
    assert table.law("Linear", "keep", "float32").at(16, 3600, 130) == pytest.approx(planted(3600, 130, 16))
    timing_of(layers(), torch.randn(2, 40), clock, table, batch=65)  # beyond
    assert clock.calls != []


@pytest.mark.parametrize("other", ["arithmetic", "kind", "form"])
def test_times_of_something_else_are_not_taken(other, tmp_path):
    how = "bfloat16" if other == "arithmetic" else "float32"
    table = measured(tmp_path / "t.json", how=how, forms=(Form.FACTORED,) if other == "form" else tuple(FORMS))
    model = network("conv_net")[0] if other == "kind" else layers()
    inputs = network("conv_net")[1][0] if other == "kind" else torch.randn(2, 40)
    clock = Clock()
    timing_of(model, inputs, clock, table)
    assert clock.calls != []


FORMS = (Form.FACTORED, Form.PIVOTED)


def test_other_layers_are_known_where_they_are_the_very_same(tmp_path):
    model, (inputs, _) = network("conv_net")
    table, clock = LatencyTable.of(tmp_path / "t.json"), Clock()
    found, times = timing_of(model, inputs, clock, table)
    assert clock.calls != []
    clock = Clock(lambda layer: 7.0)
    known = timing_of(model, inputs, clock, LatencyTable.of(tmp_path / "t.json"))[1]
    assert clock.calls == []
    for site in found.reducible:
        assert known(site, Form.KEEP, 0) == times(site, Form.KEEP, 0)
    timing_of(model, inputs, clock, LatencyTable.of(tmp_path / "t.json"), batch=5)
    assert clock.calls != []


def test_of_layers_alike_a_few_are_timed():
    model = nn.Sequential(*(nn.Linear(12, 12) for _ in range(6))).eval()
    clock = Clock()
    timing_of(model, torch.randn(2, 12), clock, None)
    assert len({id(layer) for layer, _ in clock.calls if layer in set(model)}) == ALIKE == 2


def test_the_law_is_found_and_knows_its_bounds_and_its_error():
    points = [Point(8, (m, n), m * n, m + n, 1 + 0.01 * m * n + 0.1 * (m + n)) for m, n in SHAPES]
    law = law_of(points)
    assert law.numbers[8] == pytest.approx((1, 0.01, 0.1))
    assert law.error == pytest.approx(0, abs=1e-9)
    assert law.covers(8, (50, 50))
    assert not law.covers(8, (200, 200))
    assert not law.covers(8, (15, 16))
    assert not law.covers(9, (50, 50))
    wrong = law_of([p._replace(ms=p.ms * (2 if p.shape == (64, 64) else 1)) for p in points])
    assert wrong.worst > 0.3
    assert law_of(points[:2]) is None


def test_another_machine_or_a_damaged_file_is_refused_in_words(tmp_path, monkeypatch):
    file = tmp_path / "t.json"
    measured(file)
    kept = json.loads(file.read_text())
    for what, value in (("device", "Abacus"), ("version", "1.0"), ("threads", 3)):
        file.write_text(json.dumps(kept | {"machine": kept["machine"] | {what: value}}))
        with pytest.raises(ValueError, match=r"measured on another machine .*doctor --latency --table FILE"):
            LatencyTable.of(file)
    for text in ("{", "[]", json.dumps(kept | {"rows": 3}), json.dumps({})):
        file.write_text(text)
        with pytest.raises(ValueError, match="this is no latency table, or it is damaged"):
            LatencyTable.of(file)
    monkeypatch.setenv("RANKFOLD_LATENCY", str(file))
    with pytest.raises(ValueError, match="damaged"):
        rf.plan(layers(), "latency=0.9@4", "truncate", example=torch.randn(2, 40))


def test_each_machine_has_its_own_file_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("RANKFOLD_LATENCY", raising=False)
    monkeypatch.setenv("RANKFOLD_CACHE", str(tmp_path))
    here = Machine.here()
    others = [Machine(here.device, here.version, here.threads + 1), Machine("Abacus", here.version, here.threads)]
    files = {file_of(machine) for machine in (here, *others)}
    assert len(files) == 3
    assert all(file.parent == tmp_path / "latency" for file in files)
    assert LatencyTable.kept() is None
    measured(file_of(here))
    assert len(LatencyTable.kept().curves) == 3 * len(SHAPES)


def test_two_writers_lose_nothing(tmp_path):
    tables = [LatencyTable.of(tmp_path / "t.json") for _ in range(4)]
    for number, table in enumerate(tables):
        table.add(Spot.linear("Linear", (8, 8), number + 1, "float32"), {Form.KEEP: Curve(1.0)})
    threads = [threading.Thread(target=table.save) for table in tables]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {spot.rows for spot in LatencyTable.of(tmp_path / "t.json").curves} == {1, 2, 3, 4}
    assert [each.name for each in tmp_path.iterdir()] == ["t.json"]


def test_arithmetic_is_that_of_autocast():
    weight = torch.zeros(2)
    assert arithmetic(weight) == "float32"
    with torch.autocast("cpu", torch.bfloat16):
        assert arithmetic(weight) == "float32 by bfloat16"


# language models


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), {"input_ids": torch.arange(9).unsqueeze(0)}


@pytest.mark.parametrize(("phase", "tokens"), [("forward", 9), ("prefill", 8), ("decode", 1)])
def test_layers_are_timed_with_the_tokens_of_the_phase(llama, phase, tokens):
    model, example = llama
    clock, state = Clock(), copy.deepcopy(model.state_dict())
    found, times = timing_of(model, example, clock, None, batch=3, phase=phase)
    assert {tuple(shape[:2]) for _, shape in clock.calls} == {(3, tokens)}
    assert times(found["model.layers.0.mlp.up_proj"], Form.KEEP, 0) == pytest.approx(1e-3 * 32 * 48)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_decoding_is_the_next_token_and_leaves_its_cache(llama):
    model, example = llama
    step, token = phased(model, example, "decode", 2)
    ids = example["input_ids"].expand(2, -1)
    with torch.no_grad():
        once, twice = (step(**token.kwargs).logits for _ in range(2))
        torch.testing.assert_close(once[:, -1], model(input_ids=ids).logits[:, -1])
    assert torch.equal(once, twice)
    assert set(prompt_latencies({"a": model}, example, 2)["a"]) == {"prefill_ms", "decode_ms"}
    assert paired({"a": model, "b": model}, Example.of(example), phase="decode", seconds=0.0)["b"] > 0


def test_a_decode_budget_is_met_and_refused_from_end_to_end(llama, tmp_path, monkeypatch):
    """On a machine on which time is weights, by its table: no layer is timed, .6 of the time is met, .1 is not."""
    model, example = llama
    table = tmp_path / "t.json"
    kept, clock = LatencyTable.of(table), Clock()
    timing_of(model, example, Clock(), kept, batch=1, phase="decode")
    monkeypatch.setenv("RANKFOLD_LATENCY", str(table))
    asked = []

    def measure(models, example, *, batch, phase):
        asked.append((batch, phase))
        return {name: 1e-3 * sum(p.numel() for p in each.parameters()) for name, each in models.items()}

    monkeypatch.setitem(site_timing.__kwdefaults__, "timer", clock)
    monkeypatch.setitem(meet_latency.__kwdefaults__, "measure", measure)
    monkeypatch.setattr(
        decide,
        "latencies",
        lambda models, example, batch: measure({"dense": model}, example, batch=batch, phase="decode"),
    )
    known = rf.profile(model, method="truncate", example=example)
    plan = known.plan("latency=0.6@decode")
    assert clock.calls == []
    assert set(asked) == {(1, "decode")}
    assert "of dense at batch 1 of decode" in plan.notes[0]
    assert str(table) in plan.notes[-1]
    small = rf.apply_(copy.deepcopy(model), plan, known)
    whole = sum(p.numel() for p in model.parameters())
    assert 0.5 * whole < sum(p.numel() for p in small.parameters()) <= 0.6 * whole
    with pytest.raises(BudgetError, match=r"latency=0\.\d+@decode is the smallest that was reached"):
        known.plan("latency=0.1@decode")


def test_where_nothing_is_faster_the_refusal_says_so():
    machine = Planned(lambda rank: 1.1)
    with pytest.raises(BudgetError, match="none of the compressed networks that were tried is faster"):
        machine.meet()


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("latency=0.5", Latency(0.5)), ("latency=0.5@64", Latency(0.5, 64)),
        ("latency=0.5@decode", Latency(0.5, 1, "decode")), ("latency=0.5@decode:4", Latency(0.5, 4, "decode")),
        ("latency=0.5@prefill", Latency(0.5, 1, "prefill")),
    ],
)  # fmt: skip
def test_budgets_are_written_as_they_are_read(text, budget):
    assert parse_budget(text) == budget
    assert budget.text == text
    assert budget_from(vars(budget)) == budget


def test_phases_that_there_are_not(llama):
    with pytest.raises(ValueError, match="after @ give a batch size, prefill, decode"):
        parse_budget("latency=0.5@encode")
    for place in ("decode:", "decode:x", "prefill:-1", "²", ""):
        with pytest.raises(ValueError, match=f"decode:4 for four sequences; got '{place}'$"):
            parse_budget(f"latency=0.5@{place}")
    with pytest.raises(ValueError, match="forward, prefill or decode"):
        Latency(0.5, 1, "encode")
    for model, example in (
        (layers(), torch.randn(2, 40)),
        (llama[0], {"input_ids": torch.zeros(1, 1, dtype=torch.long)}),
    ):
        with pytest.raises(ValueError, match="input_ids of at least two tokens"):
            rf.plan(model, "latency=0.9@decode", "truncate", example=example)
