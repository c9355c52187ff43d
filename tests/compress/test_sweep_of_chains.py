"""The sweep over a chain of blocks: what it costs, and that it is what running the whole network would give."""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
from networks import network
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import rankfold as rf
from rankfold.compress.layerwise import kept, layers, rounds
from rankfold.compress.methods.sequential import Sequential
from rankfold.observe import Chain, Span

WIDTH, GROUPS = 12, 4


class Block(nn.Module):
    """A decoder block of today: no biases, root mean square norms, a gated network; a mask and ``turn`` come beside."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(WIDTH, 2 * WIDTH, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x, mask=None, turn=None):
        h = self.norm1(x)
        q, k, v = self.q(h) * turn, self.k(h) * turn, self.v(h)
        h = x + self.o(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        n = self.norm2(h)
        return h + self.down(nn.functional.silu(self.gate(n)) * self.up(n))


class Decoder(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.embed = nn.Embedding(40, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.norm = nn.RMSNorm(WIDTH)

    def forward(self, tokens):
        length = tokens.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        turn = torch.linspace(1, 2, length, dtype=self.embed.weight.dtype).cos().unsqueeze(1)
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, mask=mask, turn=turn)
        return self.norm(x) @ self.embed.weight.T


def decoder(depth, batches=9, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Decoder(depth).double().eval()
        data = [{"tokens": torch.randint(0, 40, (4, 9))} for _ in range(batches)]
    return model, data


BLOCKS = Sequential(kept=False)


def planned(model, data, ranks=6, method=BLOCKS, **more):
    names = [site.name for site in rf.sites(model).reducible if site.kind != "Embedding"]
    asked = rf.Ranks(dict.fromkeys(names, ranks))
    return rf.plan(model, asked, method, data, calibration=rf.Calibration(batch_size=4), **more)


@pytest.fixture
def passes(monkeypatch):
    """What every fit says that it has taken."""
    told, original = [], rounds.fit_layers

    def spy(task, entries):
        made = original(task, entries)
        told.append(made)
        return made

    monkeypatch.setattr(rounds, "fit_layers", spy)
    return told


@pytest.mark.parametrize("depth", [2, 5])
def test_a_block_takes_one_pass_for_each_group_and_two_more(depth, passes, monkeypatch):
    """Counted by the fit, and by the blocks themselves."""
    model, data = decoder(depth)
    calls, inside = Counter(), []
    original = Block.forward

    def counted(self, *args, **kwargs):
        calls["blocks"] += bool(inside)
        return original(self, *args, **kwargs)

    fit = layers._Fit.run

    def run(self, few):
        inside.append(1)
        try:
            return fit(self, few)
        finally:
            inside.clear()

    monkeypatch.setattr(Block, "forward", counted)
    monkeypatch.setattr(layers._Fit, "run", run)
    planned(model, data)
    (made,) = passes
    assert (made.passes.blocks, made.passes.groups) == (depth, GROUPS * depth)
    assert made.passes.fitting == (GROUPS + 2) * depth
    assert 0 < made.passes.held_out <= 2 * depth
    held_out = 1  # of nine batches one in eight
    # behind the last block nothing is fitted: there its last pass is over the held-out samples alone
    last = len(data)
    assert calls["blocks"] == (GROUPS + 2) * depth * len(data) - last + made.passes.held_out * held_out


@pytest.mark.parametrize("beyond", [False, True])
def test_moments_go_with_the_last_layer_that_needs_them(beyond, monkeypatch):
    """Of a block with layers that read four tensors those of four are there (of outputs: of each layer its own), and at
    its end none."""
    model, data = decoder(2)
    seen, let_go = [], layers.Sweep.let_go

    def spy(self, names):
        before = len(self.aside) + len(self.moments)
        let_go(self, names)
        seen.append((before, len(self.aside) + len(self.moments), sorted(names)[0].rpartition(".")[2]))

    monkeypatch.setattr(layers.Sweep, "let_go", spy)
    if beyond:
        monkeypatch.setattr(layers._Fit, "_fits", lambda self, group: False)
    planned(model, data)
    assert [each[2] for each in seen] == 2 * ["k", "o", "gate", "down"]
    assert [each[:2] for each in seen] == 2 * [(6 if beyond else 4, 3), (3, 2), (2, 1), (1, 0)]


def whole(root, batch, sites):
    """The chain of a network that cannot be cut."""
    from rankfold.observe import find_chain

    found = find_chain(root, batch, sites)
    groups = tuple(group for span in found.spans for group in span.groups)
    return Chain(found.calls, (Span(None, None, groups),))


def from_the_beginning(root, batch, sites):
    """The same, and no pass of it can be cut."""
    return replace(whole(root, batch, sites), steady=False)


@pytest.mark.parametrize("kind", ["decoder", "conv_net", "encoder", "gpt2", "vit"])
def test_factors_are_those_of_a_sweep_that_runs_the_whole_network(kind, monkeypatch, passes):
    if kind == "decoder":
        model, data = decoder(3)
    else:
        model, batch = network(kind, torch.float64)
        data = [batch] * 4
    budget, made = "params=0.7", []
    for chain in (None, whole, from_the_beginning):
        if chain is not None:
            monkeypatch.setattr(layers, "find_chain", chain)
        made.append(rf.plan(model, budget, Sequential(), data, calibration=rf.Calibration(batch_size=4)))
    assert passes[0].passes.blocks > passes[1].passes.blocks == passes[2].passes.blocks == 1
    assert made[0].changed
    for other in made[1:]:
        assert [(e.site, e.form, e.rank) for e in made[0].entries] == [(e.site, e.form, e.rank) for e in other.entries]
        for name, fitted in other.factors.items():
            for a, b in zip(fitted.factors.parts, made[0].factors[name].factors.parts, strict=True):
                torch.testing.assert_close(a @ a.mT, b @ b.mT, atol=1e-6, rtol=1e-6)


class Added(nn.Module):
    """Branches of the inputs alone, whose sum goes through a ReLU: the border lies behind the first that is called."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 32)), nn.Linear(16, 32)
        self.out = nn.Linear(32, 8)

    def forward(self, x):
        parts = dict(zip("abc", x.chunk(3, -1), strict=True))
        total = 0
        for name in self.order:
            total = getattr(self, name)(parts[name]) + total
        return self.out(torch.relu(total))


@pytest.mark.parametrize("order", ["abc", "cba", "ba"])
def test_behind_a_border_a_sum_is_followed_to_the_activation_behind_it(order, monkeypatch):
    torch.manual_seed(0)
    model, made = Added(order).double(), []
    x = torch.randn(256, 48, dtype=torch.float64)
    last = {"a": "a", "b": "b.1", "c": "c"}
    ranks = rf.Ranks({last[name]: 5 for name in order})
    for chain in (None, whole):
        if chain is not None:
            monkeypatch.setattr(layers, "find_chain", chain)
        made.append(rf.plan(model, ranks, rf.ActivationAware(rounds=1), x, calibration=rf.Calibration(batch_size=32)))
    for name in ranks.ranks:
        assert "loss behind relu -" in made[0][name].certificate
        for one, other in zip(*(plan.factors[name].factors.parts for plan in made), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


class Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("depth", [2, 4])
def test_a_block_is_computed_once_in_each_network(depth, monkeypatch):
    """Whatever groups it has: each pass of the compressed block goes on where the one before was cut. What takes the
    output of a layer is computed once more, when this is followed to what stands behind it: here the attention."""
    model, data = decoder(depth)
    counted, fit = Counted(), layers._Fit.run

    def run(self, few):
        with counted:
            return fit(self, few)

    monkeypatch.setattr(layers._Fit, "run", run)
    planned(model, data)
    held_out = depth + 2  # the network of one shot, and the last block of both
    assert counted.seen["aten::_safe_softmax"] == 3 * depth * len(data) + held_out


def test_targets_are_what_the_original_gives_not_what_the_compressed_network_would(monkeypatch):
    """In a chain of linear layers, with as many samples as one likes: theorem 3.1, layer by layer, by hand."""
    torch.manual_seed(0)
    original = Sequential.solve
    monkeypatch.setattr(
        Sequential, "solve", lambda self, *asked: original(self, *asked[:-1], None)
    )  # all outputs alike
    model = nn.Sequential(*(nn.Linear(10, 10, bias=False) for _ in range(3))).double()
    x = torch.randn(4096, 10).double() @ torch.randn(10, 10).double()
    data = list(x.split(512))
    plan = planned(model, data, 5, Sequential(kept=False, one_shot=False))
    small = rf.apply_(copy.deepcopy(model), plan)
    seen = there = x
    for layer, new in zip(model, small, strict=True):
        wanted = layer(there)
        with torch.no_grad():
            centred, target = seen - seen.mean(0), wanted - wanted.mean(0)
            basis = torch.linalg.qr(centred)[0]
            u, s, vh = torch.linalg.svd(basis.mT @ target, full_matrices=False)
            best = basis @ (u[:, :5] * s[:5]) @ vh[:5] + wanted.mean(0)
            there, seen = wanted, new(seen)
            assert (seen - wanted).norm() < 1.02 * (best - wanted).norm()
            assert (seen - wanted).norm() > 0.999 * (best - wanted).norm()


def test_full_rank_is_the_model_itself():
    model, data = decoder(2)
    small = rf.apply_(copy.deepcopy(model), planned(model, data, WIDTH))
    with torch.no_grad():
        torch.testing.assert_close(small(**data[0]), model(**data[0]), atol=1e-6, rtol=1e-6)


def test_layers_without_a_bias_get_none_in_a_language_model(passes):
    model, batch = network("llama")
    rows = [{key: value for key, value in batch.items() if key != "labels"}] * 8
    plan = rf.plan(model, "params=0.7", Sequential(), rows, objective=rf.CausalLanguageModel())
    assert plan.changed
    assert not any(entry.bias for entry in plan.entries)
    assert all(fitted.factors.shift is None for fitted in plan.factors.values())
    small = rf.apply_(copy.deepcopy(model), plan)
    before = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert {name for name, _ in small.named_parameters() if name.endswith("bias")} == before


def test_activations_go_to_disk_where_memory_is_short_and_are_gone_afterwards(tmp_path, monkeypatch):
    model, data = decoder(2)
    free = planned(model, data)
    written, original = [], kept.write_tensors
    monkeypatch.setattr(kept, "available", lambda: 1000)
    monkeypatch.setattr(kept, "write_tensors", lambda path, *rest, **how: written.append(path) or original(path, *rest))
    tight = planned(model, data, directory=tmp_path)
    assert len(written) > 2 * len(data)
    assert not any(path.exists() for path in written)
    assert not list(tmp_path.rglob("activations-*"))
    for name, fitted in free.factors.items():
        assert all(map(torch.equal, fitted.factors.parts, tight.factors[name].factors.parts))


def test_too_small_a_disk_is_told_before_anything_is_fitted(tmp_path, monkeypatch):
    model, data = decoder(2)
    monkeypatch.setattr(kept, "available", lambda: 1000)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2000))
    solved = []
    monkeypatch.setattr(Sequential, "solve", lambda *args: solved.append(args))
    with pytest.raises(OSError, match="bytes will be needed there, and 2,000 are free: free some space"):
        planned(model, data, directory=tmp_path)
    assert not solved


class Interrupt(Exception):
    pass


def test_after_an_interruption_finished_blocks_are_not_fitted_again(tmp_path, monkeypatch):
    model, data = decoder(3)
    straight = planned(model, data)
    solved, original = [], Sequential.solve
    monkeypatch.setattr(
        Sequential, "solve", lambda self, site, *more: solved.append(site.name) or original(self, site, *more)
    )

    def stop(what, done, total):
        if what == "fitting" and done == 14:  # two blocks of seven sites
            raise Interrupt

    with pytest.raises(Interrupt):
        planned(model, data, directory=tmp_path, progress=stop)
    assert len(solved) == 14
    again = planned(model, data, directory=tmp_path)
    assert len(solved) == 21
    assert all(name.startswith("blocks.2.") for name in solved[14:])
    assert again == straight
    for name, fitted in straight.factors.items():
        assert all(map(torch.equal, fitted.factors.parts, again.factors[name].factors.parts))


class Branches(nn.Module):
    """Which layers are called depends on the data."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        x = self.a(x).relu()
        return self.c(self.b(x).relu()) if len(x) > 2 else self.c(x)


def test_a_network_whose_calls_depend_on_the_data_is_run_from_its_beginning(passes):
    torch.manual_seed(0)
    data = list(torch.randn(96, 8).split(12))
    plan = planned(Branches(), data, 4)
    assert passes[0].passes.blocks == 1
    assert {entry.site for entry in plan.changed} >= {"a", "c"}


def test_padding_counts_nowhere():
    model, batch = network("bert")
    batch = {key: value for key, value in batch.items() if key != "labels"}
    assert not bool(batch["attention_mask"].all())
    torch.manual_seed(0)
    other = dict(batch)
    noise = torch.randint(0, 60, batch["input_ids"].shape)
    other["input_ids"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], noise)
    plans = [planned(model, [each] * 4, 2) for each in (batch, other)]
    for name, fitted in plans[0].factors.items():
        for a, b in zip(fitted.factors.parts, plans[1].factors[name].factors.parts, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
