"""Advice: measured on real networks, honest about what does not pay, and in words that follow from the numbers."""

from __future__ import annotations

import copy
import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from digits import digits, tiny, trained, write_weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

import rankfold as rf
from rankfold.cli.main import app
from rankfold.cli.printing import typed
from rankfold.cli.verbs.analysis.advise import print_advice
from rankfold.costs import Cost
from rankfold.costs.times import Milliseconds
from rankfold.objectives import Figure
from rankfold.pipeline.advice.found import Advice, Saved, Tried
from rankfold.pipeline.advice.look import advise
from rankfold.pipeline.advice.spending import profiled_within
from rankfold.pipeline.advice.words import commands, sentences
from rankfold.run.progress import Tell
from rankfold.train import choose, counted

ACCURACY = Figure("accuracy", 0.9, unit="fraction")
OLD = {1: 6.0, 64: 60.0}


def point(flops: float, value: float, drop: float, ms: float = 5.0, interval=(0.0, 0.02)) -> Tried:
    layers = (Saved("conv", "spatial", 4, 0.3, 0.2), Saved("head", "factored", 2, 0.001, 0.1))
    return Tried(flops, flops + 0.02, replace(ACCURACY, value=value), drop, interval, {1: ms, 64: 10 * ms}, OLD, layers)


def advice(*tried: Tried, **changed) -> Advice:
    made = Advice(
        Cost(1000, 2000, 4000), 3, (0.8, 0.97), ((0.2, "lstm", "a layer of its own kind"),), ACCURACY,
        tried, 0.01, (256, 500), True,
    )  # fmt: skip
    return replace(made, **changed)


def test_the_smallest_that_keeps_its_quality_is_recommended() -> None:
    found = advice(point(0.9, 0.899, 0.001), point(0.6, 0.893, 0.007), point(0.45, 0.85, 0.05))
    assert found.best is found.tried[1]
    said = " ".join(sentences(found))
    assert "Yes: without any training 40 % of the FLOPs and 38 % of the parameters can go" in said
    assert "89.30 % instead of 90.00 % on 500 validation samples (worse by 0.7, 95 % interval 0 to 2 points)" in said
    assert "Without 55 % of the FLOPs it would be 85.00 %" in said
    assert "20 % of the parameters cannot, such as lstm: a layer of its own kind." in said
    assert "1.20 times as fast at batch 1, 1.20 times as fast at batch 64" in said
    assert "conv (30 % of all)" in said
    assert "head" not in said
    lines = [line for _, line in commands(found, "net", "--data mine:data")]
    assert lines[0] == "rankfold compress net --data mine:data --budget flops=0.6 -o small"
    assert "--budget flops=0.45 --finetune-epochs 5" in lines[2]


def test_tables_are_no_layers_that_save_time_and_spreads_that_overlap_tell_nothing() -> None:
    said = " ".join(sentences(advice(point(0.6, 0.893, 0.007), tables=0.4)))
    assert "40 % of the parameters are in tables that are looked up" in said
    near = replace(
        point(0.6, 0.893, 0.007),
        latencies={1: Milliseconds(6.0, (5.8, 6.3))},
        beside={1: Milliseconds(6.1, (6.2, 6.4))},
    )
    assert "measured: no clear difference at batch 1 (6.1 ms before, 6 after)." in " ".join(sentences(advice(near)))
    apart = replace(near, latencies={1: Milliseconds(5.0, (4.9, 5.1))})
    assert "1.22 times as fast at batch 1" in " ".join(sentences(advice(apart)))


def test_parameters_may_be_what_is_to_be_small() -> None:
    one = replace(point(0.6, 0.893, 0.007), params=0.5)
    other = replace(point(0.7, 0.893, 0.007), params=0.4, flops=0.7)
    found = advice(one, other, tables=0.4, by="params", untried=(0.3,))
    assert (found.best, replace(found, by="flops").best) == (other, one)
    said = " ".join(sentences(found))
    assert "Yes, as far as the 2 budgets that there was time for: without any training 60 % of the param" in said
    assert "60 % of the parameters and 30 % of the FLOPs can go" in said
    first = " ".join(sentences(replace(found, tried=(one,))))
    assert "Yes, as far as the one budget that there was time for: without" in first
    assert "the budgets below take from them too, which saves no time" in said
    assert "Time ran out: 30 % of the parameters was not tried" in said
    assert "Most parameters are saved in conv (20 % of all), head (10 % of all)." in said
    lines = [line for _, line in commands(found, "net")]
    assert lines[0] == "rankfold compress net --budget params=0.4 -o small"
    assert lines[1] == "rankfold compress net --max-drop 1 --smallest params -o small"
    with pytest.raises(ValueError, match="by, what is to be small, must be one of flops, params, bytes, got 'time'"):
        rf.advise(nn.Linear(4, 4), (torch.rand(8, 4), torch.rand(8, 4)), by="time")


def test_a_network_that_is_all_table_is_small_by_its_parameters_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(100, 16), nn.Flatten(), nn.Linear(64, 4, bias=False))
    net[0].weight.data = torch.randn(100, 4) @ torch.randn(4, 16)  # of rank 4: most of it is for nothing
    x = torch.randint(100, (96, 4))
    data = SimpleNamespace(train=x[:64], validation=x[64:])
    found = rf.advise(net, data, by="params", seconds=600, batches=())
    assert [p.params for p in found.tried] == sorted((p.params for p in found.tried), reverse=True)
    assert found.best is not None
    assert 0.3 < found.best.params < 0.45
    assert found.best.layers[0].site == "0"
    told = f"can go (the FLOPs grow by {100 * (found.best.flops - 1):.3g} %)"
    assert told in " ".join(sentences(found))


def test_a_network_with_a_table() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(100, 16), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))
    x, y = torch.randint(100, (96, 4)), torch.randint(3, (96,))
    told: list[str] = []
    found = rf.advise(net, ((x[:64], y[:64]), (x[64:], y[64:])), seconds=1, tell=Tell(say=told.append))
    whole = sum(p.numel() for p in net.parameters())
    assert (found.sites, found.tables) == (2, pytest.approx(1600 / whole))
    assert found.covered[0] == pytest.approx((whole - 1600) / whole)
    assert told[0] == "objective: classification (one class index for each sample)"


class TwoHeads(nn.Module):
    """One network whose answers are told in words: scores, and something that nobody judges."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fine, self.coarse = nn.Linear(8, 24), nn.Linear(24, 4), nn.Linear(24, 2)

    def forward(self, x):
        x = self.body(x).relu()
        return {"logits": self.fine(x), "shoe": self.coarse(x)}


def test_the_objective_is_told_in_the_words_of_compress() -> None:
    torch.manual_seed(0)
    x, y, told = torch.randn(96, 8), torch.randint(4, (96,)), list[str]()
    data = SimpleNamespace(train=(x[:64], y[:64]), validation=(x[64:], y[64:]))
    rf.advise(TwoHeads(), data, seconds=0.1, tell=Tell(say=told.append))
    assert told[0] == str(choose(TwoHeads(), data.train, None))
    assert "of the model's 2 outputs logits counts, and shoe may change unseen: all count with" in told[0]
    rf.advise(TwoHeads(), data, seconds=0.1, objective="teacher", tell=Tell(say=told.append))
    rf.advise(TwoHeads(), SimpleNamespace(**vars(data), objective="teacher"), seconds=0.1, tell=Tell(say=told.append))
    assert told[-2:] == ["objective: teacher (as asked)", "objective: teacher (as the data say)"]


def test_commands_can_be_pasted_with_their_patterns() -> None:
    given = [("--weights", Path("my weights.pt")), ("--data", None), ("--only", "layer*"), ("--exclude", "head")]
    assert typed(given) == "--weights 'my weights.pt' --only 'layer*' --exclude head"


def test_it_says_no_where_nothing_is_good_enough_or_nothing_can_be_factored() -> None:
    found = advice(point(0.9, 0.8, 0.1), point(0.6, 0.5, 0.4))
    assert found.best is None
    said = " ".join(sentences(found))
    assert "Not without training: removing 10 % of the FLOPs already leaves accuracy at 80.00 %" in said
    assert "more than the 1 point that may be lost" in said
    assert "Yes" not in said
    nothing = advice(sites=0, covered=(0.0, 0.0))
    assert next(iter(sentences(nothing))) == "No: no layer of this network can be factored."
    assert any("Nothing smaller" in each for each in sentences(nothing))


def test_where_nothing_smaller_was_tried_the_command_that_searches_is_named() -> None:
    """``advise`` takes --max-drop too, and does not search further for it."""
    assert "Nothing smaller was tried: compress --max-drop searches further." in sentences(advice(point(0.9, 0.8, 0.0)))


def test_smaller_is_not_called_faster_where_it_is_not() -> None:
    found = advice(point(0.6, 0.9, 0.0, ms=6.0), point(0.3, 0.9, 0.0, ms=7.0))
    said = " ".join(sentences(found))
    assert "smaller, but not faster on this machine" in said
    assert not any("latency" in line for _, line in commands(found, "net"))
    mixed = advice(replace(point(0.6, 0.9, 0.0), latencies={1: 7.0, 64: 30.0}))
    assert "faster at some batch sizes only: 0.86 times as fast at batch 1, 2.00" in " ".join(sentences(mixed))
    lines = [line for _, line in commands(mixed, "net")]
    assert lines[-1] == "rankfold compress net --budget latency=0.8@64 -o small"  # not at batch 1, where it is slower
    assert any("--budget latency=0.8 " in line for _, line in commands(advice(point(0.6, 0.9, 0.0)), "net"))


def test_no_gain_is_told_where_no_difference_is_clear() -> None:
    old = {1: Milliseconds(6.0, (5.0, 9.0)), 64: Milliseconds(60.0, (55.0, 70.0))}
    new = {1: Milliseconds(7.4, (5.5, 9.5)), 64: Milliseconds(51.0, (45.0, 56.0))}
    found = advice(replace(point(0.6, 0.9, 0.0), latencies=new, beside=old))
    assert (found.best.faster, found.best.slower) == ((), ())
    said = " ".join(sentences(found))
    assert "smaller, and no clear gain in time was measured: no clear difference at batch 1 (6 ms before, 7.4" in said
    assert "faster at" not in said
    assert not any("latency" in line for _, line in commands(found, "net"))
    clear = {1: Milliseconds(7.4, (7.0, 8.0)), 64: Milliseconds(51.0, (45.0, 54.0))}
    clearly = replace(found.best, latencies=clear, beside={**old, 1: Milliseconds(6.0, (5.9, 6.1))})
    assert (clearly.faster, clearly.slower) == ((64,), (1,))


def test_in_the_table_each_network_is_told_beside_the_original_that_was_timed_with_it(capsys) -> None:
    """The machine was four times as slow for the second: its milliseconds say nothing beside those of the first."""
    old = Milliseconds(24.0, (22.0, 26.0))
    busy = replace(point(0.6, 0.9, 0.0), latencies={1: Milliseconds(20.0, (19.0, 21.0))}, beside={1: old})
    unclear = replace(busy, latencies={1: Milliseconds(23.0, (19.0, 26.0))})
    print_advice(advice(replace(point(0.9, 0.9, 0.0), latencies={1: 5.0}, beside={1: 6.0}), busy, unclear), "net", "")
    lines = capsys.readouterr().out.splitlines()
    first = next(index for index, line in enumerate(lines) if "at batch 1" in line and "FLOPs" in line.split())
    ends = [
        "at batch 1",
        "24.000 (22.000–26.000) ms",
        "1.20 times as fast",
        "1.20 times as fast",
        "no clear difference",
    ]
    assert [line.split("  ")[-1].strip() for line in lines[first : first + 5]] == ends


def test_figures_in_their_own_unit() -> None:
    perplexity = Figure("perplexity", 40.0, higher=False)
    tried = Tried(0.7, 0.7, replace(perplexity, value=40.5), 0.5, (0.2, 0.8), {1: 5.0}, {1: 6.0}, ())
    found = advice(tried, start=perplexity, allowed=0.8)
    said = " ".join(sentences(found))
    assert "perplexity is 40.5 instead of 40.0" in said
    assert "(worse by 0.5, 95 % interval 0.2 to 0.8)" in said
    assert "--max-drop 0.8 " in list(commands(found, "lm"))[1][1]


def test_what_there_was_no_time_for_is_said() -> None:
    untimed = replace(point(0.9, 0.9, 0.0), latencies={}, beside={})
    found = advice(point(0.6, 0.9, 0.0), untimed, untried=(0.45, 0.3), untimed=(64,))
    said = " ".join(sentences(found))
    assert "Time ran out: 45 % and 30 % of the FLOPs were not tried, and a batch of 64 was not timed (--sec" in said
    assert not any("Time ran out" in each for each in sentences(advice(point(0.9, 0.9, 0.0))))
    assert "times as fast" not in " ".join(sentences(advice(untimed, untimed=(1,))))


class Clock:
    """Time that passes with the calls of ``slow`` alone: a second for each sample of each forward pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from rankfold.pipeline.advice import spending

        self.now, self.batches = 0.0, []
        monkeypatch.setattr(spending.time, "perf_counter", lambda: self.now)

    def watch(self, network: nn.Module) -> nn.Module:
        network.register_forward_pre_hook(lambda module, args: self.add(len(args[0])))
        return network

    def add(self, samples: int) -> None:
        self.batches.append(samples)
        self.now += samples


def test_quality_comes_first_and_the_time_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward pass takes a second a sample: 800 seconds do for every budget and batches of one, and 64 is left
    out; in 200 some budgets are left out, and it is told."""
    torch.manual_seed(0)
    x = torch.randn(300, 16)
    data = SimpleNamespace(train=x, validation=x[:100])

    def look(seconds: float) -> Advice:
        clock = Clock(monkeypatch)
        network = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16)).eval()
        made = rf.advise(clock.watch(network), data, seconds=seconds, max_drop=100)
        assert made.seconds == clock.now <= 1.2 * seconds
        return made

    whole = look(800)
    assert len(whole.tried) == 5
    assert (whole.untried, whole.untimed) == ((), (64,))
    assert all(set(p.latencies) <= {1} for p in whole.tried)
    assert 1 in whole.best.latencies
    short = look(200)
    assert 2 <= len(short.tried) < 5
    assert len(short.tried) + len(short.untried) == len(whole.tried)


def test_a_language_model_is_told_with_its_divergence() -> None:
    from networks import network

    model, batch = network("llama")
    data = SimpleNamespace(train=[batch], validation=[batch])
    made = rf.advise(model, data, seconds=0.01, max_drop=100)
    assert all(p.kl > 0 for p in made.tried)
    assert f"KL {made.best.kl:.3g} nats a token from the original" in " ".join(sentences(made))
    assert made.to_dict()["tried"][0]["kl"] == made.tried[0].kl


@pytest.fixture(scope="module")
def found() -> Advice:
    return rf.advise(trained(), digits(), seconds=600)  # as many samples as there are


def test_samples_are_counted_and_not_their_values() -> None:
    torch.manual_seed(0)
    net, x, y = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)), torch.randn(120, 6), torch.randn(120, 3)
    found = rf.advise(net, SimpleNamespace(train=(x[:80], y[:80]), validation=(x[80:], y[80:])), seconds=600)
    assert found.samples[1] == 40
    better = advice(
        Tried(0.7, 0.7, Figure("r2", 0.8), -0.01, (-0.02, 0.01), {1: 5.0}, {1: 6.0}, ()), start=Figure("r2", 0.79)
    )
    assert "(no worse: it rises by 0.01, 95 % interval -0.01 to 0.02)" in " ".join(sentences(better))


def test_what_it_says_was_measured(found: Advice) -> None:
    model, data = trained(), digits()
    assert found.cost == rf.model_cost(model, torch.rand(1, 1, 8, 8))
    assert found.samples[1] == len(data.validation)
    whole = rf.evaluate(model, data.validation)
    assert found.start.value == pytest.approx(whole.accuracy)
    assert [p.flops for p in found.tried] == sorted((p.flops for p in found.tried), reverse=True)
    for p in found.tried:
        assert p.drop == pytest.approx(found.start.value - p.figure.value)
        assert p.interval[0] <= p.drop <= p.interval[1]
        assert 0 < sum(layer.flops for layer in p.layers) <= 1 - p.flops + 1e-9
    assert found.covered[1] > 0.95
    assert found.best is not None


def test_the_model_is_left_as_it_was_and_the_test_split_closed() -> None:
    network = tiny()
    before = copy.deepcopy(network.state_dict())
    data = SimpleNamespace(train=digits().train, validation=digits().validation)  # without a test split
    made = rf.advise(network, data, seconds=1, max_drop=5)
    assert made.allowed == 0.05
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
    assert not network.training


def test_without_labels_it_is_judged_by_the_original() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8)).eval()
    data = SimpleNamespace(train=torch.randn(300, 16), validation=torch.randn(200, 16))
    made = rf.advise(network, data, seconds=1)
    assert not made.labelled
    assert made.tried
    assert not any("finetune" in line for _, line in commands(made, "own:net"))
    assert all(isinstance(sentence, str) for sentence in sentences(made))


def test_targets_that_tell_nothing_are_refused_as_compress_refuses_them() -> None:
    """It judged by the original, and recommended commands that ended in this error."""
    x, y = torch.randn(96, 16), torch.randn(96, 3)
    network, data = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8)), ((x[:64], y[:64]), (x[64:], y[64:]))
    with pytest.raises(ValueError, match=r"train data: targets of shape \(\d+, 3\), float32, do not fit outputs of"):
        rf.advise(network, data, seconds=0.1)
    assert not rf.advise(network, data, seconds=0.1, objective="teacher").labelled


def test_what_cannot_be_factored_is_named_with_its_share() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(300, 16), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(x).mean(1))

    torch.manual_seed(0)
    inputs, labels = torch.randint(300, (200, 5)), torch.randint(4, (200,))
    data = SimpleNamespace(train=[(inputs, labels)], validation=[(inputs, labels)])
    made = rf.advise(Looks().eval(), data, seconds=1)
    assert made.covered[0] < 0.05 or made.obstacles == ()
    if made.obstacles:
        assert made.obstacles[0][0] > 0.9
        assert "table" in made.obstacles[0][1]


def test_from_the_command_line(tmp_path) -> None:
    weights = write_weights(tmp_path / "digits.safetensors")
    arguments = ["advise", "digits-cnn", "--weights", str(weights), "--seconds", "3", "--max-drop", "2"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "layers that can be factored" in done.output
    lines = [line.strip() for line in done.output.splitlines() if line.strip().startswith("rankfold ")]
    assert lines
    for line in lines:
        assert str(weights) in line
        helped = CliRunner().invoke(app, [*shlex.split(line)[1:], "--help"])
        assert helped.exit_code == 0
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert told["allowed"] == 0.02
    assert told["advice"]
    assert {"flops", "params", "bytes", "value", "drop", "interval", "latency_ms", "original_ms", "layers"} == set(
        told["tried"][0]
    )


def test_the_passes_over_validation_are_one_for_each_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from rankfold.pipeline.advice import look as module

    seen = []
    monkeypatch.setattr(module, "counted", lambda *a, **k: seen.append(1) or counted(*a, **k))
    made = rf.advise(tiny(), digits(), seconds=2)
    assert len(seen) == len(made.tried) + 1


def test_of_a_network_that_has_learnt_nothing_there_is_no_advice() -> None:
    from rankfold import zoo

    torch.manual_seed(0)
    made = rf.advise(zoo.model("digits-cnn").eval(), digits(), seconds=1)
    assert made.unlearned
    assert made.best is None
    said = list(sentences(made))
    assert "no better than chance" in said[-1]
    assert "(--weights)?" in said[-1]
    assert not any("Yes" in each for each in said)
    assert not list(commands(made, "digits-cnn"))


def test_the_data_may_be_a_tuple_of_parts_and_nothing_without_parts():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)), torch.randn(40, 16)
    y = (x[:, 0] > 0).long()
    assert rf.advise(net, ((x, y), (x, y)), seconds=0.01).sites == 2
    with pytest.raises(ValueError, match=r"the data are a Tensor: give an object with train, validation and test"):
        rf.advise(net, x)


@pytest.mark.parametrize("form", ["pair", "batches", "loader"])
def test_validation_is_judged_in_as_many_groups_whatever_its_form(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rankfold.pipeline.advice import look as module

    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)), torch.randn(320, 8)
    y, groups = (x[:, 0] > 0).long(), []
    validation = {
        "pair": (x, y),
        "batches": [(x[:200], y[:200]), (x[200:], y[200:])],
        "loader": DataLoader(TensorDataset(x, y), batch_size=160),
    }[form]

    def counting(*args, **settings):
        groups.append(len(found := counted(*args, **settings)))
        return found

    monkeypatch.setattr(module, "counted", counting)
    made = rf.advise(net, SimpleNamespace(train=(x, y), validation=validation), seconds=2, batches=())
    assert made.samples[1] == 320
    assert set(groups) == {32}


@pytest.mark.parametrize(
    ("most", "said"),
    [
        (-1.0, "must be 0 or more"), (float("nan"), "must be 0 or more"), ("much", "must be 0 or more"),
        ("kl=0.1", "the judging figure alone"), (100.0, "can get worse by at most"),
    ],
)  # fmt: skip
def test_a_drop_that_is_none_is_refused(most: float | str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rf.advise(tiny(), digits(), max_drop=most, seconds=0.01)


def test_a_drop_may_be_a_text() -> None:
    assert rf.advise(tiny(), digits(), max_drop="0.5", seconds=0.01).allowed == 0.005


def test_a_profile_is_given_as_many_samples_as_its_passes_allow():
    for forwards in (45.0, 450.0, 93 * 128.0, 20000.0):
        samples = profiled_within(forwards)
        assert 18 * samples + 75 * min(samples, 128) == pytest.approx(forwards)
        assert 9 * profiled_within(forwards, tokens=True) == pytest.approx(forwards)


def test_a_tied_weight_is_counted_and_listed_once():
    first, second = nn.Linear(24, 24), nn.Linear(24, 24)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(24, 4))
    x = torch.randn(64, 24)
    found = advise(model, SimpleNamespace(train=x[:48], validation=x[48:]), seconds=0.1)
    tied = [(share, name) for share, name, why in found.obstacles if "tied" in why]
    assert tied == [(24 * 24 / found.cost.params, "0.weight")]
