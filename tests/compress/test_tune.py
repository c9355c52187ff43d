"""Blocks tuned to what they give in the original network."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from networks import network
from torch import nn

import rankfold as rf
from rankfold.compress.repair import whole
from rankfold.compress.repair.blocks import blocks, blocks_of_both, blocks_off, noted
from rankfold.compress.repair.tune import tune_
from rankfold.compress.repair.turning import Turning


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(width, width), nn.BatchNorm1d(width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.b(torch.relu(self.norm(self.a(x))))


def three() -> tuple[nn.Module, list[torch.Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 16), *(Block(16) for _ in range(3)), nn.Linear(16, 4))
        data = list(torch.randn(256, 10).split(64))
        model.train()(data[0])
    return model.eval(), data


def test_blocks_come_nearer_and_nothing_else_changes():
    model, data = three()
    plan = rf.plan(model, "params=0.6", "sequential", data)
    small = rf.apply_(copy.deepcopy(model), plan)
    before, coarse = copy.deepcopy(small.state_dict()), copy.deepcopy(small)
    told = tune_(small, model, data, steps=40, batch_size=64)
    assert [each.block for each in told] == ["1", "2", "3"]
    assert all(each.after <= each.before for each in told)
    assert sum(each.after < 0.95 * each.before for each in told) >= 2
    with torch.no_grad():
        wanted, was, now = (torch.cat([net[:4](x) for x in data]) for net in (model, coarse, small))
    assert (now - wanted).norm() < 0.95 * (was - wanted).norm()
    factored = {name for name, module in small.named_modules() if isinstance(module, rf.LowRankLinear)}
    for key, value in small.state_dict().items():
        inside = any(key.startswith(f"{name}.") for name in factored) and key.split(".")[0] in {"1", "2", "3"}
        assert inside or torch.equal(value, before[key]), key
    assert all(p.requires_grad and p.grad is None for p in small.parameters())
    assert not small.training


@pytest.mark.parametrize("by", ["blocks", "whole"])
def test_frozen_parameters_stay_and_gradients_are_left_as_found(by):
    model, data = three()
    frozen = model[2].a.weight.requires_grad_(False)  # and so are its factors
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, "params=0.6", "truncate", data))
    assert not any(parameter.requires_grad for parameter in (small[2].a.down.weight, small[2].a.up.weight))
    small[3].requires_grad_(False)
    for parameter in small.parameters():
        if parameter.requires_grad or parameter is small[3].b.bias:
            parameter.grad = torch.full_like(parameter, 3.0)
    held = {name: parameter.grad for name, parameter in small.named_parameters()}
    before = {name: parameter.detach().clone() for name, parameter in small.named_parameters()}
    flags = {name: parameter.requires_grad for name, parameter in small.named_parameters()}
    told = tune_(small, model, data, steps=20, batch_size=64, by=by, train="all" if by == "whole" else "factors")
    assert [each.block for each in told] == ([""] if by == "whole" else ["1", "2"])
    moved = {name for name, parameter in small.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved
    assert all(flags[name] for name in moved)
    for name, parameter in small.named_parameters():
        assert parameter.requires_grad == flags[name]
        assert parameter.grad is held[name]
        assert parameter.grad is None or bool((parameter.grad == 3).all())
    assert not frozen.requires_grad


def test_a_network_that_is_frozen_as_a_whole_is_tuned():
    model, data = three()
    model.requires_grad_(False)
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, "params=0.6", "truncate", data))
    told = tune_(small, model, data, steps=20, batch_size=64)
    assert any(each.after < each.before for each in told)
    assert not any(parameter.requires_grad for parameter in small.parameters())


def test_a_block_that_gains_nothing_is_left_as_it_was(monkeypatch):
    monkeypatch.setattr("rankfold.compress.repair.tune.Turning", partial(Turning, reach=float("inf")))
    model, data = three()
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, "params=0.6", "sequential", data))
    before = copy.deepcopy(small.state_dict())
    told = tune_(small, model, data, steps=5, learning_rate=1e3)
    assert all(each.after == each.before for each in told)
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())


@pytest.mark.parametrize("name", ["conv_net", "encoder", "gpt2", "llama"])
def test_networks_of_other_people_are_tuned(name):
    model, batch = network(name)
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, "params=0.8", "project", [batch]))
    told = tune_(small, model, [batch], steps=8)
    assert told
    assert all(0 <= each.after <= each.before for each in told)


class Recurring(nn.Module):
    """Its state, which the network resets, stays with it from call to call, as that of RecurrentGemma does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.state = nn.Linear(16, 16), None

    def forward(self, x):
        self.state = torch.tanh(self.layer(x)) + (0 if self.state is None else self.state)
        return self.state


class Reset(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.last = nn.ModuleList([Recurring(), Recurring()]), nn.Linear(16, 4)

    def forward(self, x):
        for block in self.blocks:
            block.state = torch.zeros_like(x)
            x = block(x)
        return self.last(x)


def test_blocks_that_keep_a_state_begin_with_that_of_the_network():
    torch.manual_seed(0)
    model, data = Reset().eval(), [torch.randn(16, 16), torch.randn(16, 16)]
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, rf.Ranks({"blocks.0.layer": 4}), data=data))
    with torch.no_grad():
        pairs = [(torch.tanh(small.blocks[0].layer(x)), torch.tanh(model.blocks[0].layer(x))) for x in data]
    off = sum(float((a - b).square().sum() / b.square().sum()) for a, b in pairs) / len(pairs)
    (told,) = tune_(small, model, data, steps=6, batch_size=16)
    assert told.before == pytest.approx(off, rel=1e-4)
    assert told.after < told.before


class Counting(Recurring):
    """It gives as many rows as it has computed, as what predicts how long a sound lasts does."""

    def forward(self, x):
        found = self.layer(x)
        return found[: 1 + int((found > 0).all(1).sum())]


def test_blocks_whose_sizes_depend_on_values_are_refused():
    torch.manual_seed(0)
    model, data = nn.Sequential(Counting(), nn.Linear(16, 16)).eval(), [torch.randn(16, 16)]
    small = copy.deepcopy(model)
    small[0].layer = rf.LowRankLinear(16, 4, 16)
    nn.init.constant_(small[0].layer.up.bias, 9.0)
    with pytest.raises(ValueError, match=r"a Counting gives 16 × 16 numbers where that of the original gives 1 × 16"):
        tune_(small, model, data, steps=2)


def test_a_model_without_blocks_is_one():
    model = nn.Module()
    model.layer = nn.Linear(3, 3)
    assert blocks(model, ("layer.down",)) == ("",)


def test_an_ordinary_model_is_refused():
    model, data = three()
    with pytest.raises(ValueError, match="compress it first"):
        tune_(model, model, data)


class Speaker(nn.Module):
    """Tokens to scores of tokens."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed, self.a = nn.Embedding(30, 16), nn.Linear(16, 32, bias=False)
            self.drop, self.b = nn.Dropout(0.5), nn.Linear(32, 30, bias=False)

    def forward(self, input_ids, attention_mask=None):
        return 3 * self.b(self.drop(torch.tanh(self.a(self.embed(input_ids)))))


def speaking(count: int = 128, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(0, 30, (count, 12), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": part} for part in ids.split(16)]


def spoken(budget: str = "params=0.6") -> tuple[nn.Module, nn.Module, list]:
    model, data = Speaker().eval(), speaking()
    return model, rf.apply_(copy.deepcopy(model), rf.plan(model, budget, data=data, objective=LM)), data


LM = rf.CausalLanguageModel()


@torch.no_grad()
def apart(small: nn.Module, model: nn.Module, data: list) -> float:
    return float(torch.cat([LM.divergence(small(**b), model(**b), b) for b in data]).mean())


def test_factors_are_tuned_as_a_whole_without_labels():
    model, small, data = spoken("params=0.4")
    with torch.no_grad():
        for parameter in small.a.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    before, was = apart(small, model, speaking(64, 5)), copy.deepcopy(small.state_dict())
    original = copy.deepcopy(model.state_dict())
    (told,) = tune_(small, model, data, objective=LM, steps=90, batch_size=16, learning_rate=0.03)
    assert told.block == ""
    assert told.step > 0
    assert told.after < 0.7 * told.before
    assert apart(small, model, speaking(64, 5)) < 0.7 * before
    for key, value in small.state_dict().items():
        assert torch.equal(value, was[key]) == (key == "embed.weight" or key.endswith("order")), key
    assert all(torch.equal(value, original[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in (*small.parameters(), *model.parameters()))
    assert not small.training


@pytest.mark.parametrize("room", [None, 0], ids=["kept", "no room"])
def test_the_original_answers_each_judge_once_where_there_is_room(room, monkeypatch):
    if room is not None:
        monkeypatch.setattr("rankfold.compress.repair.whole.available", lambda: room)
    model, small, data = spoken()
    before, told, asked = copy.deepcopy(small), [], []
    model.register_forward_hook(lambda *_: asked.append(1))
    looked = [small.register_forward_hook(lambda *_: told.append(1))]
    way = tune_(small, model, data, objective=LM, steps=12, batch_size=16)
    judges = (len(told) - 12) // 7  # looks: six, and one at the start
    assert judges > 0
    assert len(asked) == 12 + judges * (1 if room is None else 7)
    looked[0].remove()
    if room is not None:  # and the same comes of it
        monkeypatch.undo()
        assert tune_(before, model, data, objective=LM, steps=12, batch_size=16) == way


def test_labels_are_not_looked_at():
    model, small, data = spoken()
    other = copy.deepcopy(small)
    labelled = [{**batch, "labels": torch.randint(0, 30, batch["input_ids"].shape)} for batch in data]
    tune_(small, model, data, objective=LM, steps=4)
    tune_(other, model, labelled, objective=LM, steps=4)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), other.parameters(), strict=True))


def test_the_step_is_chosen_on_what_is_held_out():
    """What is tuned to says the contrary of what is held out: then nothing is changed."""
    model, small, data = spoken()
    before, seen = copy.deepcopy(small.state_dict()), []
    held = data[-1]["input_ids"]

    class Contrary(rf.CausalLanguageModel):
        def distances(self, output, taught, batch=None, temperature=1.0, scales=None):
            value, count = super().distances(output, taught, batch, temperature, scales)
            judged = any(torch.equal(row, one) for row in batch["input_ids"] for one in held)
            seen.append(judged)
            return (value if judged else -value), count

    (told,) = tune_(small, model, data, objective=Contrary(), steps=12)
    assert told.step == 0
    assert told.after == told.before
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())
    assert seen.count(False) == 12  # no step on what is held out


def test_everything_is_trained_where_that_is_asked_and_padding_counts_nowhere():
    model, small, _ = spoken()
    ids = torch.randint(0, 30, (32, 12), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[:, 8:] = 0
    padded = [{"input_ids": a, "attention_mask": b} for a, b in zip(ids.split(4), mask.split(4), strict=True)]
    short = [
        {"input_ids": a[:, :8], "attention_mask": b[:, :8]} for a, b in zip(ids.split(4), mask.split(4), strict=True)
    ]
    found = []
    for data in (padded, short):
        tuned = copy.deepcopy(small)
        (told,) = tune_(tuned, model, data, objective=LM, train="all", steps=6, batch_size=4)
        assert not torch.equal(tuned.embed.weight, small.embed.weight)
        found.append(told)
    assert found[0].before == pytest.approx(found[1].before, rel=1e-4)
    assert found[0].after == pytest.approx(found[1].after, rel=1e-3)


def test_large_tables_of_scores_are_compared_in_chunks(monkeypatch):
    from rankfold.objectives import compare
    from rankfold.objectives.answer import Answer

    scores = torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(0))
    counted = torch.ones(3, 5, dtype=torch.bool)
    counted[0, 3:] = False
    then = Answer(torch.randn(3, 5, 11), True, counted)
    found = []
    for chunk in (1 << 22, 25):  # two rows at a time
        monkeypatch.setattr(compare, "CHUNK", chunk)
        given = scores.clone().requires_grad_()
        value, count = compare.distance(Answer(given, True, counted), then, 2.0, None)
        value.backward()
        found.append((value.detach(), given.grad))
        assert count == 13
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(("objective", "size"), [("teacher", 32), ("embedding", 32), ("causal-lm", 2)])
def test_a_step_of_the_whole_sees_enough_answers(objective, size):
    """A vector for a sample says one thing; a text says as many as it has tokens."""
    model = network("llama" if objective == "causal-lm" else "bert")[0]
    ids = torch.randint(1, 12, (96, 8), generator=torch.Generator().manual_seed(0))
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, "params=0.8", data=[{"input_ids": ids[:16]}]))
    sizes = []
    hook = small.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])) if torch.is_grad_enabled() else None,
        with_kwargs=True,
    )
    tune_(small, model, [{"input_ids": ids}], objective=objective, steps=2)
    hook.remove()
    assert (len(sizes), max(sizes)) == (2, size)  # a part that is left over is smaller


def test_blocks_of_a_language_model_and_the_whole_of_any_other():
    """``by`` says what is trained at once, whatever the objective."""
    model, batch = network("llama")
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, "params=0.7", data=[batch]))
    other, held = copy.deepcopy(small), [batch, batch]
    told = tune_(small, model, held, objective=LM, by="blocks", steps=12)
    assert [each.block for each in told] == ["model.layers.0", "model.layers.1"]
    assert all(each.step is None and each.after <= each.before for each in told)
    assert any(each.after < each.before for each in told)
    blocked = {key for key, value in small.state_dict().items() if not torch.equal(value, other.state_dict()[key])}
    assert blocked
    assert all(key.startswith("model.layers.") for key in blocked)
    model, data = three()
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, "params=0.6", "project", data))
    (whole,) = tune_(small, model, data, by="whole", steps=24, batch_size=32)
    assert whole.block == ""
    assert whole.after < whole.before


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"train": "all"}, "train must be 'factors'"),
        ({"train": "head"}, "got 'head'"),
        ({"by": "layers"}, "by must be 'whole' or 'blocks', got 'layers'"),
        ({"by": "blocks", "objective": LM, "train": "all"}, "train must be 'factors'"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0: .* leave tune_ out"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"samples": 2.5}, "samples must be a whole number of at least 1, got 2.5"),
        ({"learning_rate": -0.1}, "learning_rate must be above 0 and finite"),
    ],
)
def test_what_cannot_be_trained_is_said(how, said):
    model, small, data = spoken()
    with pytest.raises(ValueError, match=said):
        tune_(small, model, data, **({"steps": 1} | how))


def test_an_original_that_cannot_be_one_is_refused():
    model, data = three()
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, "params=0.6", "truncate", data))
    with pytest.raises(ValueError, match="the same network"):
        tune_(small, small, data)
    with pytest.raises(ValueError, match=r"original must be a network .* is a str"):
        tune_(small, "model", data)
    with pytest.raises(ValueError, match="the original has no block 1"):
        tune_(small, nn.ModuleDict({"other": model}), data)


class Texts(nn.Module):
    """Tokens in, scores out, with blocks between; padding gets nonsense, as attention would leave it."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.start, self.end = nn.Embedding(30, 16), nn.Linear(16, 30, bias=False)
        self.layers = nn.ModuleList(Block(16) for _ in range(depth))

    def forward(self, input_ids, attention_mask=None):
        x = self.start(input_ids)
        for layer in self.layers:
            x = layer(x.flatten(0, 1)).reshape(x.shape)
        return self.end(x)


def texts() -> tuple[nn.Module, list[dict[str, torch.Tensor]], nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Texts().eval()
        data = [{"input_ids": torch.randint(30, (2, 6))} for _ in range(64)]
    plan = rf.plan(model, "params=0.6", data=data, objective=LM, where=lambda name, _: "layers" in name)
    return model, data, rf.apply_(copy.deepcopy(model), plan)


def block_errors(small: nn.Module, model: nn.Module, data) -> float:
    names = blocks_of_both(small, model)
    with torch.no_grad(), noted(small, names) as now, noted(model, names) as then:
        for batch in data:
            small(**batch), model(**batch)
    return float(blocks_off(now, then, data[0]))


def test_the_whole_is_tuned_with_an_eye_on_its_blocks(monkeypatch):
    """In as many steps the blocks come nearer than the answers alone bring them."""
    model, data, small = texts()
    found = {}
    for weight in (0.0, 1.0):
        monkeypatch.setattr("rankfold.compress.repair.whole.BESIDE", weight)
        tuned = copy.deepcopy(small)
        (told,) = tune_(tuned, model, data, objective=LM, steps=60, batch_size=2, samples=None)
        found[weight] = told.after, block_errors(tuned, model, data)
        assert all(not module._forward_hooks for net in (tuned, model) for module in net.modules())
    assert found[1.0][1] < 0.99 * found[0.0][1]
    assert found[1.0][0] < 1.05 * found[0.0][0]


def test_how_far_blocks_are_off_is_a_share_and_padding_counts_nowhere():
    x, wanted = torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    batch = {"input_ids": mask, "attention_mask": mask}
    pairs = [(x[i, j], wanted[i, j]) for i in range(2) for j in range(5) if mask[i, j]]
    naive = sum(float((a - b).square().sum() / b.square().sum()) for a, b in pairs) / len(pairs)
    assert float(blocks_off({"a": [x]}, {"a": [wanted]}, batch)) == pytest.approx(naive, rel=1e-5)
    assert float(blocks_off({"a": [3e4 * x]}, {"a": [3e4 * wanted]}, batch)) == pytest.approx(naive, rel=1e-5)
    garbage = torch.where(mask.bool()[..., None], x, torch.full_like(x, 1e6))
    assert float(blocks_off({"a": [garbage]}, {"a": [wanted]}, batch)) == pytest.approx(naive, rel=1e-5)
    maps, then = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    each = [float((a - b).square().sum() / b.square().sum()) for a, b in zip(maps, then)]
    both = blocks_off({"a": [maps], "b": [x[:, :1]]}, {"a": [then], "b": [wanted]}, batch)  # b has another shape
    assert float(both) == pytest.approx(sum(each) / 2, rel=1e-5)
    assert float(blocks_off({"a": [maps]}, {}, batch)) == 0.0


def test_networks_without_blocks_are_tuned_by_their_answers_alone():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(64, 16)
    small = rf.apply_(copy.deepcopy(net), rf.plan(net, "params=0.6", data=x))
    assert not blocks_of_both(small, net)
    (told,) = rf.tune_(small, net, x, steps=20, objective="teacher", batch_size=8)
    assert told.after < told.before


def test_how_far_a_step_reaches_does_not_depend_on_how_much_gradients_are_clipped(monkeypatch):
    """What is promised and what there is to win are told in one unit: else the larger gradients are, the longer."""
    model, data = three()
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, "params=0.6", "project", data))
    trained = [p for module in small.modules() if isinstance(module, rf.LowRankLinear) for p in module.parameters()]

    def first_move(most: float) -> torch.Tensor:
        moves = []

        class Noted(Turning):
            def step(self, closure=None):
                before = [p.detach().clone() for p in trained]
                super().step(closure)
                moves.append(torch.cat([(p.detach() - b).flatten() for p, b in zip(trained, before, strict=True)]))

        monkeypatch.setattr(whole, "CLIP", most)
        how = whole.Steps(1, 1.0, None, 64, Noted)  # a rate so high that the reach alone decides
        start = [p.detach().clone() for p in trained]
        whole.tune_whole_(small, model, trained, data, rf.Teacher(), how)
        for parameter, value in zip(trained, start, strict=True):
            parameter.data.copy_(value)
        return moves[0]

    torch.testing.assert_close(first_move(1e-4), first_move(1e4))


@pytest.mark.parametrize("objective", [None, "regression"])
def test_inputs_and_targets_in_two_tensors_are_one_batch(objective):
    """Targets as wide as the inputs were read as a second batch of these."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)).eval()
        x, y = torch.randn(64, 16), 100 * torch.randn(64, 16)
    small = rf.apply_(copy.deepcopy(net), rf.plan(net, "params=0.6", data=(x, y)))
    other, seen = copy.deepcopy(small), []
    hook = net.register_forward_pre_hook(lambda module, args: seen.append(float(args[0].abs().max())))
    told = tune_(small, net, (x, y), steps=3, objective=objective)
    hook.remove()
    assert seen
    assert max(seen) == pytest.approx(float(x.abs().max()))
    assert told == tune_(other, net, [(x, y)], steps=3, objective=objective)


class Chosen(nn.Module):
    """Blocks of which each batch goes through one."""

    def __init__(self, used: int = 2) -> None:
        super().__init__()
        self.blocks, self.used = nn.ModuleList(Block(12) for _ in range(3)), used

    def forward(self, x):
        return self.blocks[int(x[0, 0] > 0) if self.used > 1 else 0](x)


def chosen(used: int = 2) -> tuple[nn.Module, nn.Module, list[torch.Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, data = Chosen(used).eval(), [torch.randn(32, 12) for _ in range(4)]
    for number, x in enumerate(data):
        x[0, 0] = number % 2 - 0.5
    ranks = {f"blocks.{i}.{name}": 4 for i in range(3) for name in "ab"}
    plan = rf.plan(model, rf.Ranks(ranks), "truncate", example=data[0])
    return model, rf.apply_(copy.deepcopy(model), plan), data


def test_a_block_learns_from_the_batches_that_reach_it():
    model, small, data = chosen()
    with torch.no_grad():
        pairs = [[(small.blocks[i](x), model.blocks[i](x)) for x in data[i::2]] for i in (0, 1)]
    off = [sum(float((a - b).square().sum() / b.square().sum()) for a, b in each) / len(each) for each in pairs]
    before = copy.deepcopy(small.blocks[2].state_dict())
    with pytest.warns(UserWarning, match=r"^blocks\.2: no sample of the data reaches this block in both") as warned:
        told = tune_(small, model, data, steps=6, batch_size=32)
    assert [str(each.filename) for each in warned] == [__file__]
    assert [each.block for each in told] == ["blocks.0", "blocks.1"]
    assert [each.before for each in told] == pytest.approx(off, rel=1e-4)
    assert all(each.after < each.before for each in told)
    assert all(torch.equal(value, before[key]) for key, value in small.blocks[2].state_dict().items())


def test_a_block_that_the_original_alone_reaches_has_no_example():
    model, small, data = chosen()
    small.used = 1  # the compressed network sends all through the first one
    with pytest.warns(UserWarning, match="reaches this block"):
        (told,) = tune_(small, model, data, steps=4, batch_size=32)
    assert told.block == "blocks.0"
    with pytest.warns(UserWarning, match="reaches this block"):
        assert tune_(small, model, data[1::2], steps=4, batch_size=32) == ()
    with pytest.raises(ValueError, match="data is empty"):
        tune_(small, model, [], steps=4)


class Three(nn.Module):
    """Three layers that read one tensor, and the row space of 8 directions."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.o, self.e = nn.Linear(32, 64), nn.Linear(64, 6)
        base = torch.randn(8, 32) / 6
        for layer in (self.q, self.k, self.v):
            layer.weight.data.copy_(torch.randn(32, 8) @ base)

    def forward(self, x):
        return self.e(self.o(torch.tanh(self.q(x)) * torch.sigmoid(self.k(x)) + self.v(x).relu()).relu())


def sharing() -> tuple[nn.Module, nn.Module, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Three().eval(), torch.randn(128, 32)
    plan = rf.plan(model, "params=0.45", data=x, forms=["shared", "factored"])
    assert [str(plan[name].form) for name in "qkvo"] == ["shared"] * 3 + ["factored"]
    return model, rf.apply_(copy.deepcopy(model), plan), x


def moved(small: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {key for key, value in small.state_dict().items() if not torch.equal(value, before[key])}


@pytest.mark.parametrize("objective", ["teacher", None], ids=["whole", "blocks"])
def test_layers_that_share_a_factor_are_tuned(objective):
    model, small, x = sharing()
    before = copy.deepcopy(small.state_dict())
    (told,) = tune_(small, model, x, steps=16, objective=objective)
    assert told.after < told.before
    shared = {"q.down.weight", *(f"{name}.up.{part}" for name in "qkv" for part in ("bias", "rest.weight"))}
    assert moved(small, before) == {*shared, "o.down.weight", "o.up.weight", "o.up.bias"}


class Apart(nn.Module):
    """Two blocks, of which the layers of one share a factor with a layer of the other."""

    def __init__(self, three: Three) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([One(three.q, three.k, three.o), Other(three.v)])
        self.e = three.e

    def forward(self, x):
        return self.e(self.blocks[0](x, self.blocks[1](x)))


class One(nn.Module):
    def __init__(self, q: nn.Module, k: nn.Module, o: nn.Module) -> None:
        super().__init__()
        self.q, self.k, self.o = q, k, o

    def forward(self, x, v):
        return self.o(torch.tanh(self.q(x)) * torch.sigmoid(self.k(x)) + v).relu()


class Other(nn.Module):
    def __init__(self, v: nn.Module) -> None:
        super().__init__()
        self.v = v

    def forward(self, x):
        return self.v(x).relu()


def test_what_a_block_shares_with_another_one_stays_in_both():
    model, small, x = sharing()
    model, small = Apart(model), Apart(small)
    before = copy.deepcopy(small.state_dict())
    (told,) = tune_(small, model, x, steps=8)
    assert told.block == "blocks.0"
    assert told.after < told.before
    assert moved(small, before) == {f"blocks.0.o.{part}" for part in ("down.weight", "up.weight", "up.bias")}


@pytest.mark.parametrize("method", ["tucker", "cp"])
def test_convolutions_of_more_than_two_factors_are_tuned(method):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4)).eval()
        x = torch.randn(32, 3, 8, 8)
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, rf.Ranks({"2": 4}), method, x))
    before = copy.deepcopy(small.state_dict())
    (told,) = tune_(small, model, x, steps=12)
    assert told.after < told.before
    assert moved(small, before) == {key for key in before if key.startswith("2.")}
