"""Embeddings: tables of low rank, in which a row weighs as often as it is looked up."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold import costs
from rankfold.compress.methods import method_named
from rankfold.compress.statistics import calibrate
from rankfold.layers import LowRankEmbedding, PivotedEmbedding
from rankfold.sites import Form, sites
from rankfold.sites.kinds.embedding import read_embedding
from rankfold.testing import check_reader

ROWS, WIDTH = 40, 12


class Net(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.words, self.head = nn.Embedding(ROWS, WIDTH, **settings), nn.Linear(WIDTH, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids)).mean(1)


def drawn(count: int = 256, seed: int = 0) -> Tensor:
    """Ids of which a few come often; half of the rows never."""
    chances = torch.cat([1 / torch.arange(1, 1 + ROWS // 2), torch.zeros(ROWS - ROWS // 2)])
    return torch.multinomial(chances, 6 * count, True, generator=torch.Generator().manual_seed(seed)).reshape(-1, 6)


@pytest.mark.parametrize("layer", [
    nn.Embedding(9, 6), nn.Embedding(5, 8), nn.Embedding(9, 6, padding_idx=2),
    nn.EmbeddingBag(9, 6, mode="sum"), nn.EmbeddingBag(9, 6, mode="mean"),
], ids=repr)  # fmt: skip
def test_every_form_obeys_the_laws(layer):
    check_reader(read_embedding, layer.double(), torch.tensor([[0, 3, 2], [4, 1, 0]]))


class Bags(nn.Module):
    def __init__(self):
        super().__init__()
        self.bags = nn.EmbeddingBag(ROWS, WIDTH, mode="sum")

    def forward(self, ids: Tensor, starts: Tensor) -> Tensor:
        return self.bags(ids, starts)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("form", ["factored", "pivoted"])
@pytest.mark.parametrize(("model", "given"), [
    (Net(padding_idx=3), (drawn(4),)), (Bags(), (drawn(2).flatten(), torch.tensor([0, 5, 5]))),
], ids=["Embedding", "EmbeddingBag"])  # fmt: skip
def test_torchscript_compiles_what_is_factored(model, given, form):
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, "params=0.8", "truncate", example=given, forms=[form]))
    torch.testing.assert_close(torch.jit.script(small)(*given), small(*given))


def test_an_embedding_still_takes_no_offsets():
    with pytest.raises(TypeError, match="belong to an EmbeddingBag"):
        LowRankEmbedding(nn.Embedding(9, 6), 2)(torch.arange(4), torch.tensor([0, 2]))


def test_a_site_is_the_transposed_table():
    site = sites(nn.ModuleDict({"e": nn.Embedding(9, 4)}))["e"]
    assert site.shape == (4, 9)
    assert site.forms == {Form.KEEP, Form.FACTORED, Form.PIVOTED}
    model = nn.ModuleDict({"e": nn.Embedding(9, 4)})
    assert torch.equal(site.matrix(model), model["e"].weight.T)


@pytest.mark.parametrize("form", [Form.FACTORED, Form.PIVOTED])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_of_any_kind_are_sums_of_what_is_looked_up(mode, form):
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(ROWS, WIDTH, mode=mode, padding_idx=3, include_last_offset=True).double()
    model = nn.ModuleList([bag])
    rank = WIDTH - (form is Form.PIVOTED)
    with torch.no_grad():  # of a rank that either form holds
        bag.weight[:, -1] = bag.weight[:, 0]
    site = sites(model)["0"]
    factors = method_named("truncate").decompose(site, Form.FACTORED, bag.weight.detach(), None).factors(rank)
    small = site.layer.skeleton(bag, form, rank, False)
    site.layer.write_(small, form, factors)
    ids, offsets = torch.randint(ROWS, (10,)), torch.tensor([0, 4, 4, 10])
    given = [(ids.reshape(2, 5),), (ids, offsets)]
    if mode == "sum":
        given.append((ids, offsets, torch.randn(10, dtype=torch.float64)))
    for arguments in given:
        torch.testing.assert_close(small(*arguments), bag(*arguments), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["project", "truncate"])
def test_full_rank_reproduces_the_original(method):
    torch.manual_seed(0)
    model, data = Net().double().eval(), drawn()
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, rf.Ranks({"words": WIDTH}), method, data))
    assert isinstance(small.words, LowRankEmbedding)
    everything = torch.arange(ROWS).reshape(-1, 1)  # rows that were never looked up, too
    with torch.no_grad():
        torch.testing.assert_close(small(everything), model(everything), rtol=1e-9, atol=1e-9)


def test_the_factors_are_the_best_for_the_frequencies():
    """Against the truncated decomposition of the table whose rows are scaled by the roots of their frequencies."""
    torch.manual_seed(0)
    model, data = Net().double().eval(), drawn()
    known = calibrate(model, [data], sites(model), metric_samples=0).sites["words"]
    site, table = sites(model)["words"], model.words.weight.detach()
    shares = torch.bincount(data.flatten(), minlength=ROWS) / data.numel()
    decomposition = method_named("project").decompose(site, Form.FACTORED, table, known)
    for rank in (1, 4, 9):
        right, left = decomposition.factors(rank).parts
        lost = float((shares * (table - (left @ right).mT).square().sum(1)).sum())
        best = float(torch.linalg.svdvals(shares.sqrt().unsqueeze(1) * table)[rank:].square().sum())
        assert lost == pytest.approx(best, rel=1e-6)


def test_rows_that_come_often_lose_less():
    torch.manual_seed(0)
    model, data = Net().eval(), drawn(1024)
    error = {}
    for method in ("project", "truncate"):
        small = rf.apply_(copy.deepcopy(model), rf.plan(model, rf.Ranks({"words": 5}), method, data))
        test = drawn(512, seed=1)
        with torch.no_grad():
            error[method] = float((small(test) - model(test)).square().mean())
    assert error["project"] < 0.5 * error["truncate"]


@pytest.mark.parametrize("form", [Form.FACTORED, Form.PIVOTED])
def test_costs_are_counted(form):
    model, data = Net().eval(), drawn()
    plan = rf.plan(model, rf.Ranks({"words": 4}), data=data)
    plan = plan.with_entries(tuple(
        rf.Entry(**(vars(entry) | {"form": form})) if entry.site == "words" else entry for entry in plan.entries
    ))  # fmt: skip
    small = rf.apply_(copy.deepcopy(model), plan)
    pivoted = form is Form.PIVOTED
    assert type(small.words) is (PivotedEmbedding if pivoted else LowRankEmbedding)
    assert sum(p.numel() for p in small.words.parameters()) == 4 * (ROWS + WIDTH - (4 if pivoted else 0))
    found, before = costs.model_cost(small, data[:1]), costs.model_cost(model, data[:1])
    assert found.flops - before.flops == 2 * 6 * 4 * (WIDTH - (4 if pivoted else 0))


def test_a_row_of_padding_stays_zero_and_learns_nothing():
    torch.manual_seed(0)
    model, data = Net(padding_idx=0).eval(), drawn()
    small = rf.apply_(model, rf.plan(model, rf.Ranks({"words": 4}), data=data))
    assert small.words.padding_idx == small.words.down.padding_idx == 0
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    for _ in range(3):
        small(data).square().sum().backward()
        assert not bool(small.words.down.weight.grad[0].any())
        optimizer.step()
    assert not bool(small.words(torch.zeros(1, dtype=torch.long)).any())
    assert small.words.bias is None


def test_a_table_that_is_rescaled_as_it_is_read_is_kept():
    site = sites(nn.ModuleDict({"e": nn.Embedding(9, 4, max_norm=1.0)}))["e"]
    assert site.forms == {Form.KEEP}
    assert "max_norm" in site.note


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.body = nn.Embedding(ROWS, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, ROWS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.body(self.words(ids))))


def test_tied_tables_are_kept_until_they_are_untied_and_the_price_is_said():
    torch.manual_seed(0)
    model, data = Tied().eval(), drawn()
    assert f"untie_(model) gives each its own, {ROWS * WIDTH} parameters more" in sites(model)["words"].note
    before, expected = costs.storage(model)[0], model(data)
    assert rf.untie_(model) is model
    assert costs.storage(model)[0] == before + ROWS * WIDTH
    assert torch.equal(model(data), expected)
    assert {site.name for site in sites(model).reducible} == {"words", "body", "head"}
    assert rf.plan(model, "params=0.6", data=data).after.params <= 0.6 * (before + ROWS * WIDTH)


def test_an_optimizer_that_does_not_know_the_copies_is_warned_of():
    model = Tied()
    early = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"\(SGD\) holds words.weight, and not the copies .* after untie_"):
        rf.untie_(model)
    assert early.param_groups
    rf.untie_(Tied())  # warnings are errors here


def test_a_table_that_is_multiplied_by_elsewhere_is_kept():
    class Reading(Tied):
        def __init__(self):
            super().__init__()
            del self.head

        def forward(self, ids):
            return torch.tanh(self.body(self.words(ids))) @ self.words.weight.T

    plan = rf.plan(Reading().eval(), "params=0.9", data=drawn())
    entry = next(entry for entry in plan.entries if entry.site == "words")
    assert entry.form is Form.KEEP
    assert "its weight is read by" in entry.note


def test_saved_and_loaded_also_in_a_model_of_transformers(tmp_path):
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = rf.untie_(LlamaForCausalLM(config).eval())
    ids = torch.randint(60, (64, 8))
    plan = rf.plan(model, rf.Ranks({"model.embed_tokens": 6, "lm_head": 7}), data=[{"input_ids": ids}])
    small = rf.apply_(model, plan)
    rf.save(small, plan, tmp_path / "small")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    assert isinstance(again.model.embed_tokens, LowRankEmbedding)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, small(ids).logits)
    net, data = Net().eval(), drawn()
    plan = rf.plan(net, "params=0.6", data=data)
    small = rf.apply_(copy.deepcopy(net), plan)
    rf.save(small, plan, tmp_path / "net")
    assert torch.equal(rf.load(tmp_path / "net", net).model(data), small(data))


def test_a_plan_that_gives_a_table_a_bias_is_refused():
    model, data = Net().eval(), drawn()
    plan = rf.plan(model, rf.Ranks({"words": 3}), data=data)
    entries = tuple(rf.Entry(**(vars(e) | {"bias": True})) if e.site == "words" else e for e in plan.entries)
    with pytest.raises(rf.ApplyError, match="no place for a bias"):
        rf.apply_(model, plan.with_entries(entries))


def test_factors_of_a_table_are_tuned_too():
    torch.manual_seed(0)
    model, data = Net().eval(), drawn()
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, rf.Ranks({"words": 3}), data=data))
    was = {name: value.clone() for name, value in small.state_dict().items()}
    rf.tune_(small, model, data, objective="teacher", steps=5)
    changed = {name for name, value in small.state_dict().items() if not torch.equal(value, was[name])}
    assert {"words.down.weight", "words.up.weight"} <= changed
    assert "head.weight" not in changed
