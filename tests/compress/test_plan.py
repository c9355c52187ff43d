"""Plans: what is asked is what is planned; as text they survive everything that is meant and refuse what is not."""

import copy
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import network
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rankfold.compress.applying.apply import apply_
from rankfold.compress.planning.plan import Entry, Plan, statistics_path
from rankfold.compress.planning.planner import plan
from rankfold.compress.planning.profile import Calibration
from rankfold.compress.planning.profiling import profile
from rankfold.compress.ranks.asked import parse_budget
from rankfold.compress.ranks.budget import Bytes, Flops, KeepEnergy, Latency, Multiples, OfSites, Params, Ranks
from rankfold.compress.ranks.options import BudgetError
from rankfold.compress.ranks.rules import Global, Iterative, Local, Optimal, rule_named
from rankfold.costs import Cost, model_cost
from rankfold.pipeline import Settings, compress
from rankfold.pipeline.quality.smallest import smallest
from rankfold.sites import Form, fingerprint, sites

# ---- as text ---------------------------------------------------------------------------------------------------------

words = st.text(max_size=12)
counts = st.integers(0, 10**15)
floats = st.floats(0, 1e9, allow_nan=False)
fractions = st.floats(0.001, 1.0)
budgets = st.one_of(
    st.builds(Params, fractions),
    st.builds(Flops, fractions),
    st.builds(Bytes, fractions),
    st.builds(KeepEnergy, fractions),
    st.builds(Latency, fractions, st.integers(1, 512)),
    st.builds(Ranks, st.dictionaries(words, st.integers(1, 999), max_size=3)),
)
entries = st.builds(
    Entry,
    site=words,
    form=st.sampled_from(list(Form)),
    rank=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)),
    groups=st.integers(1, 64),
    predicted_error=floats,
    predicted_loss=floats,
    params=counts,
    flops=counts,
    bias=st.booleans(),
    note=words,
)
costs = st.builds(Cost, counts, counts, counts)
plans = st.builds(
    Plan,
    entries=st.lists(entries, max_size=4).map(tuple),
    budgets=st.lists(budgets, max_size=3).map(tuple),
    method=words,
    rule=words,
    fingerprint=words,
    before=costs,
    after=costs,
    calibration=st.dictionaries(words, st.one_of(words, counts, floats, st.booleans(), st.none()), max_size=3),
    left_out=st.lists(st.tuples(words, words), max_size=3).map(tuple),
    notes=st.lists(words, max_size=2).map(tuple),
)


@given(plans)
def test_any_plan_survives_its_text(made: Plan):
    text = made.to_json()
    again = Plan.from_json(text)
    assert again == made
    assert again.to_json() == text
    assert [type(budget) for budget in again.budgets] == [type(budget) for budget in made.budgets]
    assert json.loads(text)["format"] == 1
    assert len(made.table()) == len(made.entries)
    assert isinstance(made.asked(), str)


@pytest.fixture(scope="module")
def made() -> Plan:
    model, batch = network("conv_net")
    return plan(model, ["params=0.95", Ranks({"stem": 2, "block.0": 4, "head": 2})], "project", [batch])


def attempt(act):
    """(result, None), or (None, the ValueError or OSError); any other error comes through."""
    try:
        return act(), None
    except (ValueError, OSError) as error:
        return None, error


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=3), st.just([]), st.just({}), st.just([1, 2, 3])
)


def paths_of(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths_of(item, (*path, key))


@given(st.data())
def test_any_change_of_the_text_is_a_plan_or_one_line(made: Plan, data):
    """Keys removed or added, values of every type at every place: a plan that means something, or a ValueError."""
    content = json.loads(made.to_json())
    path = data.draw(st.sampled_from([p for p in paths_of(content) if p]))
    place = content
    for key in path[:-1]:
        place = place[key]
    action = data.draw(st.sampled_from(["remove", "replace", "add"]))
    if action == "remove":
        del place[path[-1]]
    elif action == "replace":
        place[path[-1]] = data.draw(JUNK)
    elif isinstance(place, dict):
        place["unheard of"] = 1
    found, error = attempt(lambda: Plan.from_json(json.dumps(content)))
    if error is not None:
        assert type(error) is ValueError
        assert "\n" not in str(error)
        assert str(error).startswith(("this is not a valid plan: ", "this is not a plan: ", "the plan has format "))
        return
    assert found.to_json()
    assert all(isinstance(entry.form, Form) and isinstance(entry.rank, int) for entry in found.entries)
    model, _ = network("conv_net")
    if found != replace(made, statistics=None):
        _, error = attempt(lambda: apply_(model, found))
        assert error is None or "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "this is not a plan: it is not JSON"),
        ("[]", "not a plan: a JSON object with 'entries'"),
        ("{}", "not a plan: a JSON object with 'entries'"),
        ("null", "not a plan"),
        ('{"entries": []}', "the plan has format None"),
        ('{"entries": [], "format": 99}', "the plan has format 99, and this version reads format 1"),
        ('{"entries": [], "format": 1}', r"not a valid plan: \w+: Field required"),
        ('{"entries": [], "format": [' + "1," * 999 + "1]}", r"^the plan has format \[1, 1[1, ]*, and this version"),
    ],
)
def test_what_is_no_plan_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_json(text)


def edited(made: Plan, change) -> str:
    content = json.loads(made.to_json())
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["entries"][0].update(rank="many"), r"entries\.0\.rank: Input should be a valid integer"),
        (lambda c: c["entries"][0].update(rank=1.5), r"entries\.0\.rank"),
        (
            lambda c: c["entries"][0].update(form="tuckre"),
            r"entries\.0\.form: .*no form named 'tuckre'",
        ),
        (lambda c: c["budgets"][0].update(keep=10**400), r"budgets\.0: .*at most 1, got 1e\+300"),
        (lambda c: c["entries"][0].update(ranks=3), r"entries\.0\.ranks: .*[Uu]nexpected"),
        (lambda c: c["entries"][0].pop("site"), r"entries\.0\.site: Field required"),
        (lambda c: c["entries"][0].update(shape=[3]), r"entries\.0\.shape"),
        (lambda c: c["budgets"][0].update(keep=0), r"budgets\.0"),
        (lambda c: c["budgets"][0].update(kind="parms"), r"budgets\.0"),
        (lambda c: c.update(statistics={}), "statistics"),
        (lambda c: c.update(comment="mine"), r"comment: .*[Uu]nexpected"),
        (lambda c: c.update(before=3), "before"),
    ],
)
def test_a_wrong_field_is_named(made, change, message):
    with pytest.raises(ValueError, match=f"not a valid plan: .*{message}") as caught:
        Plan.from_json(edited(made, change))
    assert "\n" not in str(caught.value)


@given(st.integers(0, 5000))
def test_truncated_text_is_refused(made: Plan, length: int):
    text = made.to_json()
    with pytest.raises(ValueError, match="not a plan"):
        Plan.from_json(text[: min(length, len(text) - 3)])


# ---- as files --------------------------------------------------------------------------------------------------------


def test_a_saved_plan_brings_its_statistics_along(made, tmp_path):
    made.save(tmp_path / "deep" / "plan.json")
    again = Plan.load(tmp_path / "deep" / "plan.json")
    assert again == made
    assert again.statistics.to_bytes() == made.statistics.to_bytes()
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["plan.json", "plan.statistics.safetensors"]
    model, _ = network("conv_net")
    one, two = (apply_(copy.deepcopy(model), p) for p in (made, again))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_the_statistics_of_a_renamed_plan_are_found_by_their_hash(made, tmp_path):
    path, copied = tmp_path / "plan.json", tmp_path / "other.json"
    made.save(path)
    copied.write_bytes(path.read_bytes())
    assert Plan.load(copied).statistics.to_bytes() == made.statistics.to_bytes()
    statistics_path(copied).write_bytes(b"of another plan")
    assert Plan.load(copied).statistics.to_bytes() == made.statistics.to_bytes()
    statistics_path(path).write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"other\.statistics\.safetensors: its sha256"):
        Plan.load(copied)
    statistics_path(copied).unlink()
    assert Plan.load(copied).statistics is None


def test_a_plan_without_its_statistics_still_loads(made, tmp_path):
    path = tmp_path / "plan.json"
    made.save(path)
    statistics_path(path).unlink()
    again = Plan.load(path)
    assert again == made
    assert again.statistics is None
    model, _ = network("conv_net")
    with pytest.raises(ValueError, match="beside the plan"):
        apply_(model, again)


def test_statistics_of_another_plan_are_not_taken_for_these(made, tmp_path):
    path = tmp_path / "plan.json"
    made.save(path)
    data = bytearray(statistics_path(path).read_bytes())
    data[-5] ^= 4
    statistics_path(path).write_bytes(data)
    with pytest.raises(ValueError, match=r"statistics\.safetensors: its sha256 .* holds the statistics of another"):
        Plan.load(path)
    plain = replace(made, statistics=None, method="truncate")
    plain.save(path)  # a plan that needs none, beside a file left from before
    assert Plan.load(path).statistics is None


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"{", b"[]"])
def test_files_that_are_no_plan_are_named(content, tmp_path):
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.json: ") as caught:
        Plan.load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"missing\.json: No such file or directory: give a plan"):
        Plan.load(tmp_path / "missing.json")
    with pytest.raises(ValueError, match=r"Is a directory: give a plan\.json"):
        Plan.load(tmp_path)


@pytest.mark.parametrize("broken", ["os.fsync", "os.replace"])
def test_a_crash_while_saving_leaves_the_old_plan_or_the_new_one(made, tmp_path, monkeypatch, broken):
    path = tmp_path / "plan.json"
    old = replace(made, notes=("old",), statistics=None, method="truncate")
    for fails_at in range(1, 12):
        old.save(path)
        calls = 0
        real = {"os.fsync": __import__("os").fsync, "os.replace": __import__("os").replace}[broken]

        def failing(*args, at=fails_at, real=real):
            nonlocal calls
            calls += 1
            if calls == at:
                raise OSError(28, "No space left on device")
            return real(*args)

        monkeypatch.setattr(broken, failing)
        _, error = attempt(lambda: made.save(path))
        assert error is None or error.errno == 28
        monkeypatch.undo()
        found = Plan.load(path)
        assert found in (old, made)
        if found == made:
            assert found.statistics.to_bytes() == made.statistics.to_bytes()


def test_editing_a_rank_and_replaying_it(made):
    content = json.loads(made.to_json())
    entry = next(e for e in content["entries"] if e["site"] == "head")
    assert entry["rank"] == 2
    entry["rank"] = 4
    changed = replace(Plan.from_json(json.dumps(content)), statistics=made.statistics)
    model, _ = network("conv_net")
    assert apply_(model, changed).head.rank == 4


WORKER = """
import sys, torch
from safetensors.torch import load_file, save_file
from networks import network
from rankfold.compress.applying.apply import apply_
from rankfold.compress.planning.plan import Plan
torch.set_num_threads(1)
folder, names = sys.argv[1], sys.argv[2:]
for name in names:
    network_name, method = name.split("-")
    model, _ = network(network_name)
    model.load_state_dict(load_file(f"{folder}/{network_name}.safetensors"))
    apply_(model, Plan.load(f"{folder}/{name}.json"))
    save_file({k: v.clone() for k, v in model.state_dict().items()}, f"{folder}/{name}.out.safetensors")
"""


def test_a_second_process_computes_the_same_factors_to_the_bit(tmp_path):
    expected = {}
    for name in ("conv_net", "encoder"):
        model, batch = network(name)
        save_file({k: v.clone() for k, v in model.state_dict().items()}, tmp_path / f"{name}.safetensors")
        for method in ("project", "truncate"):
            made = plan(model, "params=0.6", method, [batch])
            made.save(tmp_path / f"{name}-{method}.json")
            expected[f"{name}-{method}"] = apply_(copy.deepcopy(model), made).state_dict()
    subprocess.run(
        [sys.executable, "-c", WORKER, str(tmp_path), *expected], check=True, cwd=Path(__file__).parents[1], timeout=250
    )
    for name, state in expected.items():
        found = load_file(tmp_path / f"{name}.out.safetensors")
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], value) for key, value in state.items())


def test_planning_twice_gives_the_same_text():
    for name in ("conv_net", "encoder"):
        model, batch = network(name)
        one, two = (plan(model, ["params=0.6", "flops=0.8"], "project", [batch]) for _ in range(2))
        assert one.to_json() == two.to_json()
        assert one.statistics.to_bytes() == two.statistics.to_bytes()


# ---- fingerprints ----------------------------------------------------------------------------------------------------


def test_fingerprints_tell_architecture_from_weights():
    model, _ = network("encoder")
    here = fingerprint(model)
    assert fingerprint(nn.DataParallel(model)) == here == fingerprint(copy.deepcopy(model))
    structure, values = here.split(":")
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.encoder.layers[1].norm2.bias[3] += 1e-6
    assert fingerprint(changed).split(":")[0] == structure
    assert fingerprint(changed).split(":")[1] != values
    assert fingerprint(copy.deepcopy(model).double()).split(":")[0] != structure
    assert fingerprint(copy.deepcopy(model).to("meta")).split(":")[0] == structure
    model.train()
    assert fingerprint(model) == here
    with torch.no_grad():  # the values of two tensors exchanged are other weights
        layer = changed.encoder.layers[0]
        a, b = layer.norm1.weight.clone(), layer.norm2.weight.clone() + 1
        layer.norm2.weight.copy_(b)
        before = fingerprint(changed)
        layer.norm1.weight.copy_(b)
        layer.norm2.weight.copy_(a)
    assert fingerprint(changed) != before


# ---- budgets and rules -----------------------------------------------------------------------------------------------

RULES = [Optimal(), Optimal(probes=0), Local(), Global(), Iterative(step=40, samples=4)]


@pytest.mark.parametrize("method", ["truncate", "project", "tucker"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name}{getattr(rule, 'probes', '')}")
@pytest.mark.parametrize("budget", [["params=0.6"], ["flops=0.7", "params=0.8"], ["bytes=0.75", "energy=0.3"]], ids=str)
def test_every_rule_keeps_every_budget(budget, rule, method):
    model, batch = network("conv_net")
    if method == "tucker" and "params=0.6" in budget:
        budget = ["params=0.75"]  # the head cannot be reduced
    made = plan(model, budget, method, [batch], rule=rule)
    small = model_cost(apply_(copy.deepcopy(model), made), batch[0])
    assert small == made.after
    for text in budget:
        asked = parse_budget(text)
        if not isinstance(asked, KeepEnergy):
            assert getattr(small, asked.kind) <= asked.keep * getattr(made.before, asked.kind)
    assert made.changed
    assert made.rule == rule.name
    assert made.method == method
    if method == "truncate" and "energy=0.3" in budget:
        assert all(1 - entry.predicted_error**2 >= 0.3 - 1e-9 for entry in made.entries)


def test_the_optimal_rule_predicts_no_more_loss_than_the_others():
    model, batch = network("conv_net")
    losses = {}
    for rule in (Optimal(), Local(), Global()):
        made = plan(model, "params=0.6", "project", [batch], rule=rule)
        losses[rule.name] = sum(entry.predicted_loss for entry in made.entries)
    assert losses["optimal"] <= min(losses.values()) * (1 + 1e-6)


def test_less_than_one_rank_step_of_the_budget_is_left():
    model, batch = network("encoder")
    for budget in ("params=0.5", "flops=0.6"):
        made = plan(model, budget, "project", [batch])
        kind, fraction = budget.split("=")
        room = float(fraction) * getattr(made.before, kind) - getattr(made.after, kind)
        here = sites(model)
        steps = []
        for entry in made.changed:
            layer = here[entry.site].layer
            if entry.rank < layer.max_rank(entry.form):
                params = layer.params(entry.form, entry.rank + 1, entry.bias) - entry.params
                steps.append(params if kind == "params" else params * 10)  # ten positions, two for each multiply-add
        assert 0 <= room < 2 * min(steps)


def test_energy_alone_takes_the_cheapest_ranks_that_keep_it():
    model, batch = network("conv_net")
    made = plan(model, "energy=0.9", "truncate", [batch])
    here = sites(model)
    for entry in made.entries:
        values = torch.linalg.svdvals(here[entry.site].matrix(model).double())
        values = values.square().sum(0) if values.dim() == 2 else values.square()
        if entry.form is Form.FACTORED:
            kept = values.cumsum(0) / values.sum()
            assert entry.rank == int((kept < 0.9).sum()) + 1
            assert entry.params < here[entry.site].layer.params(Form.KEEP, 0, here[entry.site].layer.has_bias)
    assert made.changed


def test_ranks_given_by_hand_leave_the_rest_alone():
    model, batch = network("conv_net")
    made = plan(model, Ranks({"head": 3}), "truncate", [batch])
    assert [(entry.site, entry.rank) for entry in made.changed] == [("head", 3)]
    both = plan(model, [Ranks({"head": 1}), "params=0.99"], "truncate", [batch])
    assert both["head"].rank == 1
    assert both.after.params <= 0.99 * both.before.params


def test_the_table_and_the_words():
    model, batch = network("conv_net")
    made = plan(model, ["flops=0.8", "energy=0.5"], "truncate", [batch], calibration=Calibration(name="digits"))
    rows = made.table()
    assert [row["site"] for row in rows] == [site.name for site in sites(model)]
    assert next(row for row in rows if row["site"] == "block.3")["shape"] == "6×54 ×2"
    assert made.asked() == "flops ≤ 0.8 of dense, energy ≥ 0.5 in each site"
    assert made.calibration["data"] == "digits"
    assert made["head"].site == "head"
    with pytest.raises(KeyError, match="no entry for 'nothing'"):
        made["nothing"]
    assert Latency(0.5, 64).describe() == "latency ≤ 0.5 of dense at batch 64"
    assert Ranks({"a": 1}).describe() == "ranks given for 1 sites"


@pytest.mark.parametrize("kind", ["params", "flops", "bytes"])
def test_the_smallest_budget_that_can_be_reached_is_told(kind):
    model, (example, *_) = network("conv_net")
    with pytest.raises(BudgetError, match="is the smallest that can be reached") as caught:
        plan(model, f"{kind}=0.001", "truncate", example=example, rule="global")
    (smallest,) = re.findall(rf"{kind}=(\S+) is the smallest", str(caught.value))
    reached = plan(model, f"{kind}={smallest}", "truncate", example=example, rule="global")
    assert getattr(reached.after, kind) <= float(smallest) * getattr(reached.before, kind)
    with pytest.raises(BudgetError):
        plan(model, f"{kind}={float(smallest) - 2e-4}", "truncate", example=example, rule="global")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"budget": "params=0.01"},
            BudgetError,
            r"params ≤ 0.01 of dense: the budget cannot be met: .*% of the parameters",
        ),
        ({"budget": ["params=0.9", "flops=0.01"]}, BudgetError, "flops ≤ 0.01 of dense: .*cannot be met"),
        ({"budget": []}, ValueError, "no budget was given"),
        ({"budget": "params"}, ValueError, r"budget 'params' is not understood: write NAME=FRACTION"),
        ({"budget": "speed=0.5"}, ValueError, r"budget 'speed=0.5' is not understood"),
        ({"budget": "flops=50"}, ValueError, r"budget 'flops=50': flops, the share of the whole model that is"),
        ({"budget": "flop=0.5"}, ValueError, r"not understood.* did you mean flops\?"),
        ({"budget": "flops=50%"}, ValueError, r"write 0\.5 for 50 %"),
        ({"budget": "flops=half"}, ValueError, r"budget 'flops=half': 'half' is not a number"),
        ({"budget": "flops=0.5@3"}, ValueError, "not understood"),
        ({"budget": "latency=0.5@0"}, ValueError, "the batch of a latency must be"),
        ({"budget": Ranks({"headd": 3})}, ValueError, r"a rank was given for a layer 'headd': there is no site"),
        (
            {"budget": Ranks({"head": 99})},
            ValueError,
            r"head \(Linear 5×12\): rank 99 was asked for; possible ranks are 1 to 5",
        ),
        (
            {"budget": [Ranks({"head": 1}), "energy=0.9"]},
            ValueError,
            r"head .*rank 1 was asked for; possible ranks are [2-4] to 5",
        ),
        (
            {"budget": Ranks({"stem": 6}), "method": "cp"},
            ValueError,
            r"stem .*rank 6 .*possible ranks are 1, 2, 3, 4, 5, 7",
        ),
        ({"budget": Ranks({"head": 2}), "method": "cp"}, ValueError, r"head .*possible ranks are none: this method"),
        ({"method": "svd"}, ValueError, "no method named 'svd'"),
        ({"rule": "best"}, ValueError, "no rank rule named 'best'"),
        ({"method": "project", "data": None}, ValueError, "method 'project' needs data"),
        ({"rule": "iterative", "data": None}, ValueError, "the iterative rule needs data"),
        ({"data": None}, ValueError, "an input of the model is needed"),
        ({"data": []}, ValueError, "the data is empty"),
    ],
)
def test_requests_that_cannot_be_met_say_why(arguments, error, message):
    model, batch = network("conv_net")
    asked = {"budget": "params=0.7", "method": "truncate", "data": [batch], **arguments}
    with pytest.raises(error, match=message) as caught:
        plan(model, **asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Params(0.0),
        lambda: Flops(1.5),
        lambda: Bytes(-1),
        lambda: KeepEnergy(math.nan),
        lambda: Ranks({"a": 0}),
        lambda: Latency(0.5, 0),
        lambda: Local(fraction=0.0),
        lambda: Local(rank=0),
        lambda: Iterative(step=0),
        lambda: Iterative(samples=0),
        lambda: Iterative(step=2.5),
        lambda: Optimal(samples=0),
        lambda: Optimal(probes=-1),
        lambda: Calibration(samples=-3),
        lambda: Calibration(samples=0),
        lambda: Calibration(samples=2.5),
        lambda: Calibration(batch_size=0),
        lambda: Calibration(memory=0),
        lambda: Latency(0.5, batch=1.5),
        lambda: Local(fraction=0.5, rank=3),
        lambda: Local(rank=2.5),
        lambda: Flops("0.5"),
        lambda: Params("0.5"),
        lambda: Params(True),
        lambda: Ranks({"a": True}),
        lambda: Ranks({"a": 2.5}),
        lambda: Ranks({"a": torch.tensor(True)}),
        lambda: Ranks({"a": torch.tensor([1, 2])}),
        lambda: Multiples(True),
    ],
)
def test_values_out_of_range_are_refused_where_they_are_made(wrong):
    with pytest.raises(ValueError, match=r"got|in") as caught:
        wrong()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "budget",
    [
        Ranks({"0": np.int64(5)}),
        Ranks({"0": torch.tensor(5)}),
        Params(np.float32(0.5)),
        Params(torch.tensor(0.5)),
        [Params(0.5), Multiples(np.int32(2))],
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "rule", ["optimal", Local(fraction=np.float32(0.2)), Optimal(probes=torch.tensor(2))], ids=repr
)
def test_numbers_of_numpy_and_torch_go_into_a_plans_file(budget, rule, tmp_path):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(16, 16)), torch.randn(64, 16)
    made = plan(net, budget, "project", x, rule=rule, calibration=Calibration(samples=np.int64(32)))
    made.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again.budgets == made.budgets
    assert again.calibration == made.calibration


class Later(Exception):
    """Something was measured."""


@pytest.mark.parametrize(
    ("budget", "rest", "told"),
    [
        (OfSites(), {}, "does not say how small"),
        ([OfSites(), "latency=0.5"], {}, "latency is always that of the whole model"),
        (Ranks({"0": 999}), {}, "rank 999 was asked for; possible ranks are 1 to 16"),
        ([Ranks({"0": 3}), Ranks({"1": 4})], {}, "fixed ranks were given more than once"),
        (Ranks({"nothing": 3}), {}, "a rank was given for a layer 'nothing'"),
        ("params=0.5", {"rule": "iterative", "method": "sequential"}, "the iterative rule cannot choose them"),
    ],
)
@pytest.mark.parametrize("way", ["plan", "compress"])
def test_what_cannot_be_asked_is_refused_before_anything_is_measured(way, budget, rest, told, monkeypatch):
    def measured(*_, **__):
        raise Later

    for name in ("calibrate", "decompose"):
        monkeypatch.setattr(f"rankfold.compress.planning.profiling.{name}", measured)
    net, x = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)), torch.randn(64, 16)
    data = (x, x[:, :4].argmax(1))
    ways = {
        "plan": lambda: plan(net, budget, data=x, **rest),
        "compress": lambda: compress(net, (data, data), budget, settings=Settings(**rest)),
    }
    with pytest.raises(ValueError, match=told):
        ways[way]()
    with pytest.raises(Later):
        plan(net, Ranks({"0": 3}), data=x)


def test_a_figure_that_the_data_do_not_give_is_named_before_anything_is_measured(monkeypatch):
    def measured(*_, **__):
        raise Later

    monkeypatch.setattr("rankfold.compress.planning.profiling.calibrate", measured)
    net, x = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)), torch.randn(64, 16)
    data = SimpleNamespace(train=(x, x[:, :4].argmax(1)), validation=(x, x[:, :4].argmax(1)))
    with pytest.raises(BudgetError, match="'kl' was not measured: there are accuracy"):
        smallest(net, data, "kl=0.1")
    with pytest.raises(BudgetError, match="'kl' was not measured: there are accuracy"):
        compress(net, data, settings=Settings(max_drop="kl=0.1"))


def test_what_is_drawn_next_is_what_it_was():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(64, 16)
    pairs, own = TensorDataset(x, net(x).argmax(1)), torch.Generator().manual_seed(3)
    loader = DataLoader(pairs, batch_size=16, shuffle=True, generator=own)
    before = torch.get_rng_state(), own.get_state()
    for data in (pairs, loader, DataLoader(pairs, shuffle=True, batch_size=16)):
        profile(net, data).plan("params=0.8")
        smallest(net, SimpleNamespace(train=data, validation=data), 20)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert torch.equal(own.get_state(), before[1])


@given(budgets)
def test_budgets_survive_their_text(budget):
    if isinstance(budget, Ranks):
        return
    batch = f"@{budget.batch}" if isinstance(budget, Latency) else ""
    assert parse_budget(f"{budget.kind}={budget.keep!r}{batch}") == budget


def test_budgets_that_are_no_text_of_one_say_how_to_write_them():
    for text, told in {
        "params=0.5,flops=0.5": r"'0.5,flops=0.5' is not a number; give budgets one by one, as \['params=0.5', 'flops",
        "params=0,5": "'0,5' is not a number; write decimals with a point",
        "params=50%": "'50%' is not a number; write 0.5 for 50 %",
        "params": r"write NAME=FRACTION, .* did you mean params=0.5\?",
        "latency=a@64": "'a' is not a number",
    }.items():
        with pytest.raises(ValueError, match=told):
            parse_budget(text)


def test_rules_by_name():
    for rule in (Optimal(), Local(), Global(), Iterative()):
        assert rule_named(rule.name) == rule
        assert rule_named(rule) is rule


@pytest.mark.parametrize("method", ["truncate", "project", "tucker"])
def test_a_model_without_anything_to_factor(method):
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4))
    x = torch.randn(3, 4, 6, 6)
    made = plan(model, "params=1.0", method, [x])
    assert made.changed == ()
    assert made.after == made.before
    assert apply_(copy.deepcopy(model), made)(x).shape == (3, 4, 4, 4)
    with pytest.raises(BudgetError, match="cannot be met"):
        plan(model, "params=0.9", method, [x])


class OneOutput(nn.Module):
    """A regression: one layer matters, the other hardly; its output in one of several shapes."""

    def __init__(self, shape: str) -> None:
        super().__init__()
        self.shape, self.matters, self.hardly, self.last = shape, nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        with torch.no_grad():
            self.hardly.weight.mul_(1e-3)

    def forward(self, x):
        y = self.last(torch.tanh(self.matters(x)) + self.hardly(x))
        return {"columns": y, "flat": y[:, 0], "sum": y.sum(), "sign": y[:, 0] > 0}[self.shape]


@pytest.mark.parametrize("method", ["truncate", "project"])
@pytest.mark.parametrize("shape", ["columns", "flat", "sum"])
def test_single_outputs_tell_which_layer_matters(shape, method, generator):
    torch.manual_seed(0)
    model, x = OneOutput(shape), torch.randn(40, 8, generator=generator)
    made = plan(model, "params=0.6", method, [x])
    assert made["hardly"].params < made["matters"].params
    assert all(math.isfinite(entry.predicted_loss) for entry in made.entries)
    if shape != "sum" or method == "project":
        ranks = {entry.site: entry.predicted_loss for entry in made.changed}
        assert any(loss > 0 for loss in ranks.values())


def test_outputs_without_a_slope_say_what_to_do(generator):
    model, x = OneOutput("sign"), torch.randn(10, 8, generator=generator)
    with pytest.raises(ValueError, match=r"without floating-point numbers.*Optimal\(probes=0\)"):
        plan(model, "params=0.8", "truncate", [x])
    assert plan(model, "params=0.8", "truncate", [x], rule=Optimal(probes=0)).changed


def test_where_leaves_the_other_sites_out_of_the_plan():
    model, batch = network("conv_net")
    made = plan(model, "params=0.9", "project", [batch], where="block.*")
    assert [entry.site for entry in made.entries] == ["block.0", "block.3"]
    assert ("head.weight", "not selected") in made.left_out
    assert apply_(copy.deepcopy(model), made).block[0] is not None


def test_where_that_matches_no_layer_is_refused_with_the_names_that_there_are():
    model, batch = network("conv_net")
    with pytest.raises(
        ValueError, match=r"where='blok\.\*': no layer of this model matches; its layers are .*block\.0"
    ):
        plan(model, "params=0.9", "project", [batch], where="blok.*")


def test_progress_reaches_the_end_of_each_stage():
    model, batch = network("conv_net")
    told = []
    plan(model, "params=0.7", "project", [batch], progress=lambda *step: told.append(step))
    stages = {what for what, _, _ in told}
    assert {"calibrating", "decomposing"} <= stages
    assert [done == total for what, done, total in told if what == "decomposing"][-1]


def test_costs_are_kept_once_for_all_layers_alike():
    kept = []
    for blocks in (2, 6):
        net = nn.Sequential(*(layer for _ in range(blocks) for layer in (nn.Linear(12, 12), nn.Tanh())))
        known = profile(net, method="truncate", example=torch.randn(2, 12))
        made = known.plan("params=0.7")
        kept.append(len(known.counter.known))
        assert model_cost(apply_(net, made, known), torch.randn(2, 12)) == made.after
    assert kept[0] == kept[1] > 0


@pytest.mark.parametrize("share", [0.7, 0.4])
def test_what_tables_save_is_a_share_of_them(share):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(500, 32), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 500)).eval()
    x = torch.randint(0, 500, (64, 8))
    made = plan(net, f"params={share}", data=x)
    assert "0" in {entry.site for entry in made.changed}

    def held(network):
        return sum(p.numel() for layer in (network[0], network[1], network[3]) for p in layer.parameters())

    small = apply_(copy.deepcopy(net), made)
    assert made.kept_of_factorable() == pytest.approx(held(small) / held(net), abs=1e-9)
