"""Extraction: what was merged comes out again, ranks are the best of all choices, and what is left out is said."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections import Counter

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import rankfold as rf
from rankfold.adapt import Extraction, extract, read_adapter
from rankfold.run.disk.tensors import Checkpoint


class Network(nn.Module):
    """Convolutions, linear layers, an embedding, a norm, and a layer that hangs in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.conv = nn.Conv1d(6, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 20)
        self.down = nn.Linear(20, 8, bias=False)
        self.shared = nn.ModuleList([nn.Linear(8, 8)] * 2)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.conv(self.table(tokens).mT).mT)
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(self.shared[1](self.shared[0](x)).mean(1))


def network(seed: int = 0) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Network().eval()


RANKS = {"conv": 2, "up": 3, "down": 1, "head": 2}


def merged(model: nn.Module, ranks: dict[str, int] = RANKS, size: float = 0.1, seed: int = 1) -> nn.Module:
    """A copy with random updates of these ranks."""
    tuned, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, rank in ranks.items():
            weight = tuned.get_submodule(name).weight
            left = torch.randn(len(weight), rank, generator=generator)
            right = torch.randn(rank, weight[0].numel(), generator=generator)
            weight += size * (left @ right).reshape(weight.shape)
    return tuned


def changed(found: Extraction, base: nn.Module) -> nn.Module:
    """``base`` with the adapter in its weights."""
    model = copy.deepcopy(base)
    with torch.no_grad():
        for name, (a, b) in found.adapter.pairs.items():
            weight = model.get_submodule(name).weight
            weight += (b @ a).reshape(weight.shape)
        for name, tensor in found.adapter.whole.items():
            model.get_parameter(name).copy_(tensor)
    return model


def test_what_was_merged_comes_out_at_its_own_rank():
    base = network()
    tuned = merged(base)
    found = extract(base, tuned, "rank=4")
    assert found.adapter.ranks == RANKS
    assert {layer.name: layer.params for layer in found.layers} == {
        "conv": 2 * (8 + 18), "up": 3 * 28, "down": 28, "head": 2 * 13
    }  # fmt: skip
    again = changed(found, base)
    for name in RANKS:
        whole, got = ((m.get_submodule(name).weight - base.get_submodule(name).weight).detach() for m in (tuned, again))
        assert float((got - whole).norm() / whole.norm()) < 1e-5
    assert found.notes == ("every update fits into the budget at its full rank: nothing had to be left out",)
    assert extract(base, tuned, "error=0.001").adapter.ranks == RANKS


def dense(base: nn.Module, size: float = 0.02, seed: int = 2) -> nn.Module:
    """A copy of which every parameter has changed."""
    tuned, generator = copy.deepcopy(base), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for index, parameter in enumerate(tuned.parameters()):
            parameter += size * (1 + index) * torch.randn(parameter.shape, generator=generator)
    return tuned


def spectra(base: nn.Module, tuned: nn.Module) -> dict[str, Tensor]:
    return {
        name: torch.linalg.svdvals(
            (tuned.get_submodule(name).weight - base.get_submodule(name).weight).detach().double().flatten(1)
        ).square()
        for name in RANKS
    }


@pytest.mark.parametrize("numbers", [30, 100, 171])
def test_ranks_are_the_best_of_all_choices(numbers):
    base = network()
    tuned = dense(base)
    squares = spectra(base, tuned)
    prices = {"conv": 26, "up": 28, "down": 28, "head": 13}
    best = min(
        sum(float(squares[name][r:].sum()) for name, r in zip(RANKS, choice))
        for choice in itertools.product(*(range(len(squares[name]) + 1) for name in RANKS))
        if sum(r * prices[name] for name, r in zip(RANKS, choice)) <= numbers
    )
    found = extract(base, tuned, f"params={numbers}")
    assert found.params <= numbers
    total = sum(float(s.sum()) for s in squares.values())
    assert found.error == pytest.approx((best / total) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("error", [0.3, 0.8])
def test_an_error_is_met_with_the_fewest_numbers(error):
    base = network()
    tuned = dense(base)
    squares = spectra(base, tuned)
    prices = {"conv": 26, "up": 28, "down": 28, "head": 13}
    allowed = error**2 * sum(float(s.sum()) for s in squares.values())
    fewest = min(
        sum(r * prices[name] for name, r in zip(RANKS, choice))
        for choice in itertools.product(*(range(len(squares[name]) + 1) for name in RANKS))
        if sum(float(squares[name][r:].sum()) for name, r in zip(RANKS, choice)) <= allowed
    )
    found = extract(base, tuned, f"error={error}")
    assert found.params == fewest
    assert found.error <= error


def test_budgets_hold_together_and_some_are_impossible():
    base = network()
    tuned = dense(base)
    found = extract(base, tuned, ["params=100", "rank=1"])
    assert max(found.adapter.ranks.values()) == 1
    assert found.params <= 100
    with pytest.raises(rf.BudgetError, match=r"error=0.1 cannot be reached at rank 1, where the error is 0\.\d+"):
        extract(base, tuned, ["error=0.1", "rank=1"])
    with pytest.raises(rf.BudgetError, match=r"error=0.1 takes [0-9,]+ numbers, and 50 are allowed"):
        extract(base, tuned, ["error=0.1", "params=50"])
    with pytest.raises(rf.BudgetError, match="12 numbers are too few for rank 1 in any layer"):
        extract(base, tuned, "params=12")


@pytest.mark.parametrize(
    "budget",
    ["rank=0", "rank=1.5", "params=-1", "error=1", "flops=0.5", "rank", "params=nan", [], ["rank=1", "rank=2"]],
)
def test_budgets_that_mean_nothing(budget):
    with pytest.raises(ValueError, match="budget"):
        extract(network(), network(), budget)


def test_all_that_is_left_out_is_said():
    base = network()
    tuned = dense(base)
    told = {item.name: item for item in extract(base, tuned, "rank=2").left_out}
    assert {name: item.why for name, item in told.items()} == {
        "table.weight": "an embedding",
        "conv.bias": "a bias, which is no matrix",
        "norm.weight": "a vector",
        "norm.bias": "a vector; it is all zeros in the base",
        "up.bias": "a bias, which is no matrix",
        "shared.0.weight": "the same layer as shared.1: PEFT would adapt only the first place",
        "shared.0.bias": "a bias, which is no matrix",
        "shared.1.weight": "the same layer as shared.1: PEFT would adapt only the first place",
        "shared.1.bias": "a bias, which is no matrix",
        "head.bias": "a bias, which is no matrix",
    } | {name: told[name].why for name in ("shared.1.weight", "shared.1.bias")}
    before, after = base.norm.weight.detach(), tuned.norm.weight.detach()
    assert told["norm.weight"].change == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-5)
    same = copy.deepcopy(tuned)
    same.norm.load_state_dict(base.norm.state_dict())
    assert not any(item.name.startswith("norm") for item in extract(base, same, "rank=2").left_out)


def test_modules_are_kept_whole_and_count():
    base = network()
    tuned = dense(base)
    found = extract(base, tuned, "params=100", whole=["norm"])
    assert set(found.adapter.whole) == {"norm.weight", "norm.bias"}
    assert found.params <= 100
    assert not any(item.name.startswith("norm") for item in found.left_out)
    assert torch.equal(changed(found, base).norm.weight, tuned.norm.weight)
    with pytest.raises(ValueError, match=r"'nor' \(--whole\) matches no module"):
        extract(base, tuned, "params=100", whole=["nor"])

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.block = nn.LayerNorm(8), nn.ModuleDict({"norm": nn.LayerNorm(8), "fc": nn.Linear(8, 8)})

    with pytest.raises(ValueError, match=r"norm cannot be stored whole .* block\.norm too"):
        extract(Inner(), Inner(), "rank=2", whole=["norm"])


def test_errors_are_those_of_the_outputs_where_data_are_given():
    """Of one linear layer whose outputs are the model's the metric is exact up to its ridge."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 7)).eval()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned[0].weight += 0.1 * torch.randn(7, 12)
    data = torch.randn(400, 12) * torch.logspace(0, -2, 12)
    plain, known = extract(base, tuned, "rank=2"), extract(base, tuned, "rank=2", data=data, samples=400)
    wanted = (tuned(data) - base(data)).detach()

    @torch.no_grad()
    def error(found: Extraction) -> float:
        return float((changed(found, base)(data) - base(data) - wanted).norm() / wanted.norm())

    assert known.norm == "outputs"
    assert known.error == pytest.approx(error(known), rel=0.05)
    best = torch.linalg.svdvals(wanted.double()).square()
    assert error(known) < 1.02 * float(best[2:].sum() / best.sum()) ** 0.5
    assert error(plain) > 1.5 * error(known)


def test_a_layer_that_the_data_do_not_reach_is_left_out():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.used(x)

    base = Two().eval()
    found = extract(base, dense(base), "rank=2", data=torch.randn(64, 6))
    assert set(found.adapter.ranks) == {"used"}
    assert ("idle.weight", "not reached by the data") in {(item.name, item.why) for item in found.left_out}


def test_tuning_brings_the_answers_nearer_and_leaves_the_models_alone():
    base = network()
    tuned = dense(base, 0.05)
    before = [copy.deepcopy(model.state_dict()) for model in (base, tuned)]
    tokens = torch.randint(11, (160, 9), generator=torch.Generator().manual_seed(0))
    held = torch.randint(11, (64, 9), generator=torch.Generator().manual_seed(1))
    plain = extract(base, tuned, "rank=1", data=tokens)
    better = extract(base, tuned, "rank=1", data=tokens, tune=60)
    assert better.adapter.ranks == plain.adapter.ranks
    assert better.tuned is not None
    assert better.tuned.after < better.tuned.before
    assert better.unit == better.to_dict()["tuned"]["unit"] == "squared change"

    @torch.no_grad()
    def off(found: Extraction) -> float:
        return float((changed(found, base)(held) - tuned(held)).norm())

    assert off(better) < 0.85 * off(plain)
    for model, kept in zip((base, tuned), before):
        assert list(model.state_dict()) == list(kept)
        assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="tune= needs data="):
        extract(base, tuned, "rank=1", tune=3)


def test_files_are_read_a_tensor_at_a_time_and_once(tmp_path, monkeypatch):
    base = network()
    tuned = dense(base)
    for name, model in (("base", base), ("tuned", tuned)):
        state = {k: v for k, v in model.state_dict().items() if not k.startswith("shared.1")}
        save_file(state, tmp_path / f"{name}.safetensors")
    reads: Counter[tuple[str, str]] = Counter()
    real = Checkpoint.read
    monkeypatch.setattr(
        Checkpoint, "read", lambda self, name: (reads.update([(self.title, name)]), real(self, name))[1]
    )
    found = extract(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", "rank=2", model=network(5))
    assert set(reads.values()) == {1}
    assert found.adapter.ranks == extract(base, tuned, "rank=2").adapter.ranks
    with pytest.raises(
        ValueError, match="the names of its tensors do not tell which layers they belong to: give model="
    ):
        extract(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", "rank=2")


def test_an_update_is_decomposed_deeper_only_where_its_rank_is_larger():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(400, 400, bias=False), nn.Linear(400, 400, bias=False))
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned[0].weight += torch.randn(400, 120) @ torch.randn(120, 400)
        tuned[1].weight += 1e-3 * torch.randn(400, 2) @ torch.randn(2, 400)
    found = extract(base, tuned, f"params={100 * 800}")
    assert found.adapter.ranks == {"0": 100, "1": 0} or sum(found.adapter.ranks.values()) == 100
    assert found.adapter.ranks["0"] >= 98


FAULTS = {
    "another shape": (lambda m: setattr(m, "up", nn.Linear(9, 20)), "up.weight is 20×8 in .* and 20×9 .* differ"),
    "a layer is missing": (lambda m: delattr(m, "down"), "has no tensor down.weight"),
    "not finite": (lambda m: m.up.weight.data[0].fill_(float("nan")), r"up.weight in Network: 8 of 160 values are NaN"),
    "other tokens": (lambda m: setattr(m, "table", nn.Embedding(17, 6)), "table.weight has 11 rows .* vocabular"),
    "fewer tokens": (
        lambda m: setattr(m, "table", nn.Embedding(9, 6, _weight=m.table.weight.data[:9])), "vocabularies differ"
    ),
    "integers": (
        lambda m: setattr(m.up, "weight", nn.Parameter(torch.ones(20, 8, dtype=torch.int8), requires_grad=False)),
        "Network is quantised .up.weight.",
    ),
    "scales": (lambda m: m.up.register_buffer("weight_scale", torch.ones(20)), "is quantised .up.weight_scale."),
    "nothing": (lambda m: None, "do not differ in any layer"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_extracted_is_told_in_one_line(fault):
    base = network()
    tuned = copy.deepcopy(base)
    FAULTS[fault][0](tuned)
    with pytest.raises(ValueError, match=FAULTS[fault][1]) as error:
        extract(base, tuned, "rank=2", model=base)
    assert "\n" not in str(error.value)


def test_new_tokens_are_left_out_and_counted():
    base = network()
    tuned = merged(base)
    tuned.table = nn.Embedding(13, 6, _weight=torch.cat([base.table.weight.data, torch.randn(2, 6)]))
    (item,) = (item for item in extract(base, tuned, "rank=2", model=base).left_out if item.name == "table.weight")
    assert item.why == "an embedding; the tuned model has 2 rows more (new tokens)"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small language model and one that was tuned, in shards, as folders of transformers."""
    transformers = pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("folders")
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(config).eval()
    names = [name for name, module in base.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    tuned = merged(base, {name: 1 + index % 3 for index, name in enumerate(names)})
    base.save_pretrained(place / "base")
    tuned.save_pretrained(place / "tuned", max_shard_size="10KB")
    return place, base, tuned, names


def test_folders_of_shards_and_every_reader(folders, tmp_path):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    place, base, tuned, names = folders
    assert len(list((place / "tuned").glob("*.safetensors"))) > 1
    found = rf.extract(place / "base", place / "tuned", "rank=4")
    assert found.adapter.ranks == {name: 1 + index % 3 for index, name in enumerate(names)}
    assert {item.name for item in found.left_out} == set()
    tokens = torch.randint(40, (3, 7), generator=torch.Generator().manual_seed(0))
    wanted = tuned(tokens).logits
    for uniform in (False, True):
        out = found.save(tmp_path / f"adapter{uniform}", uniform=uniform)
        by_peft = peft.PeftModel.from_pretrained(copy.deepcopy(base), out).eval()
        torch.testing.assert_close(by_peft(tokens).logits, wanted, rtol=1e-4, atol=1e-5)
        by_transformers = transformers.LlamaForCausalLM.from_pretrained(place / "base")
        by_transformers.load_adapter(str(out))
        torch.testing.assert_close(by_transformers.eval()(tokens).logits, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(by_peft.merge_and_unload()(tokens).logits, wanted, rtol=1e-4, atol=1e-5)
    config = json.loads((tmp_path / "adapterTrue" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (3, 3, {}, {})
    assert config["base_model_name_or_path"] == str(place / "base")
    assert json.loads((tmp_path / "adapterTrue" / "extraction.json").read_text())["budget"] == "rank=4"


def test_folders_whose_files_call_tensors_otherwise_than_the_model(tmp_path):
    """transformers renames as it loads and saves (a head ``embed_out`` is ``lm_head`` in the model)."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoXConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    base = transformers.GPTNeoXForCausalLM(config).eval()
    head = next(name for name, module in base.named_modules() if module is base.get_output_embeddings())
    inside = next(name for name in dict(base.named_modules()) if name.endswith("query_key_value"))
    tuned = merged(base, {head: 2, inside: 1})
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned", max_shard_size="4KB")
    found = rf.extract(tmp_path / "base", tmp_path / "tuned", "rank=4")
    assert {name: r for name, r in found.adapter.ranks.items() if r} == {head: 2, inside: 1}
    assert found.left_out == ()
    tokens = torch.randint(40, (3, 7), generator=torch.Generator().manual_seed(0))
    loaded = transformers.GPTNeoXForCausalLM.from_pretrained(tmp_path / "base")
    read = peft.PeftModel.from_pretrained(loaded, found.save(tmp_path / "out")).eval()
    torch.testing.assert_close(read(tokens).logits, tuned(tokens).logits, rtol=1e-4, atol=1e-5)


def test_norms_kept_whole_are_read_by_peft(folders, tmp_path):
    peft = pytest.importorskip("peft")
    _, base, tuned, _ = folders
    tuned = copy.deepcopy(tuned)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "norm" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    found = extract(base, tuned, "rank=4", whole=["*norm"])
    assert len(found.adapter.whole) == 5
    tokens = torch.randint(40, (3, 7), generator=torch.Generator().manual_seed(0))
    read = peft.PeftModel.from_pretrained(copy.deepcopy(base), found.save(tmp_path / "out")).eval()
    torch.testing.assert_close(read(tokens).logits, tuned(tokens).logits, rtol=1e-4, atol=1e-5)
    again = read_adapter(tmp_path / "out")
    assert again.whole.keys() == found.adapter.whole.keys()


def test_other_architectures_of_folders(folders, tmp_path):
    transformers = pytest.importorskip("transformers")
    place, *_ = folders
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match=r"is a llama and .* is a gpt2, so their architectures differ"):
        extract(place / "base", tmp_path / "gpt2", "rank=2")


def test_layers_that_are_stored_transposed(tmp_path):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2)).eval()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.transformer.h[0].attn.c_attn.weight += 0.1 * torch.randn(16, 2) @ torch.randn(2, 48)
    found = extract(base, tuned, "rank=4")
    assert {name: r for name, r in found.adapter.ranks.items() if r} == {"transformer.h.0.attn.c_attn": 2}
    tokens = torch.arange(12)[None]
    read = peft.PeftModel.from_pretrained(copy.deepcopy(base), found.save(tmp_path)).eval()
    torch.testing.assert_close(read(tokens).logits, tuned(tokens).logits, rtol=1e-4, atol=1e-5)


def test_convolutions_are_read_by_peft(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)).eval()
    tuned = merged(base, {"0": 3, "3": 2})
    found = extract(base, tuned, "rank=3")
    x = torch.randn(4, 3, 8, 8)
    read = peft.PeftModel.from_pretrained(copy.deepcopy(base), found.save(tmp_path)).eval()
    torch.testing.assert_close(read(x), tuned(x), rtol=1e-4, atol=1e-4)
    assert re.fullmatch(r"0\|3", json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"])


@pytest.mark.parametrize(
    ("setting", "why"),
    [({"padding_mode": "reflect", "padding": 1}, "padding_mode 'reflect'"), ({"dilation": 2}, r"dilation \(2, 2\)")],
)
def test_convolutions_that_peft_reads_wrong_are_left_out_and_not_written(setting, why, tmp_path):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(3, 8, 3, **setting), nn.Conv2d(8, 4, 1)).eval()
    tuned = merged(base, {"0": 3, "1": 2})
    found = extract(base, tuned, "rank=2")
    assert list(found.adapter.ranks) == ["1"]
    (left,) = (each for each in found.left_out if each.name == "0.weight")
    assert re.search(why, left.why)
    assert left.change > 0
    for module in rf.debora_(copy.deepcopy(base), {"0": 2}, 1.0), rf.geolora_(copy.deepcopy(base), 2):
        with pytest.raises(ValueError, match=rf"^0: .*{why}.*merge_"):
            rf.adapt.save_adapter(module, tmp_path / "adapter")


def test_a_torch_file_is_refused_with_the_line_that_rewrites_it(tmp_path):
    file = tmp_path / "base.pt"
    torch.save(nn.Linear(4, 4).state_dict(), file)
    with pytest.raises(ValueError, match=r"save_file\(torch.load\('.*base.pt', weights_only=True\), FILE\)"):
        rf.extract(file, file, "rank=1", model=nn.Sequential(nn.Linear(4, 4)))


def tuned_everywhere(model):
    """A copy of which every parameter was tuned, its table the most."""
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(tuned.named_parameters()):
            drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter += (0.05 if "embed" in name else 0.02) * drawn
    return tuned


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings", "ignore:Input and output embeddings")
@pytest.mark.parametrize(("pattern", "files"), [("*embed_tokens", True), ("lm_head", False)])
def test_what_is_tied_to_a_module_kept_whole_comes_along(folders, tmp_path, pattern, files):
    peft = pytest.importorskip("peft")
    place, base, *_ = folders
    tuned = tuned_everywhere(base)
    tuned.save_pretrained(tmp_path / "tuned")
    sources = (place / "base", tmp_path / "tuned") if files else (base, tuned)
    found = extract(*sources, "rank=16", whole=[pattern, "*norm"])
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= found.adapter.whole.keys()
    assert found.left_out == ()
    config = found.save(tmp_path / "out") / "adapter_config.json"
    written = json.loads(config.read_text())
    tokens = torch.randint(40, (3, 7), generator=torch.Generator().manual_seed(0))
    for tying in False, True:  # both ways of PEFT to hold the two
        config.write_text(json.dumps(written | {"ensure_weight_tying": tying}))
        read = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "out").eval()
        torch.testing.assert_close(read(tokens).logits, tuned(tokens).logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(read.merge_and_unload()(tokens).logits, tuned(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("files", [True, False])
def test_the_note_names_what_holds_most_of_the_change_outside(folders, tmp_path, files):
    base = copy.deepcopy(folders[1])
    base.model.norm.weight.data *= 0.01
    tuned = tuned_everywhere(base)
    tuned.model.norm.weight.data += 0.1  # the largest relative change, and little of the whole
    for name, model in (("base", base), ("tuned", tuned)):
        model.save_pretrained(tmp_path / name)
    first = dict(base.named_parameters())
    changes = {n: float((p.data - first[n].data).double().square().sum()) for n, p in tuned.named_parameters()}
    found = extract(*((tmp_path / "base", tmp_path / "tuned") if files else (base, tuned)), "rank=2")
    assert max(found.left_out, key=lambda item: item.change).name == "model.norm.weight"
    assert found.moved == pytest.approx(sum(changes.values()), rel=1e-4)
    assert {item.name: item.moved for item in found.left_out if item.moved} == {
        name: pytest.approx(changes[name], rel=1e-4) for name in changes if "embed" in name or "norm" in name
    }
    assert {item.name: item.why for item in found.left_out if not item.moved} == (
        {} if files else {"lm_head.weight": "tied to model.embed_tokens.weight"}
    )
    (note,) = found.notes
    share = changes["model.embed_tokens.weight"] / sum(changes.values())
    assert f"model.embed_tokens.weight alone has {share:.0%}" in note
    assert "(--whole model.embed_tokens)" in note
    assert extract(base, tuned, "rank=2", whole=["model.embed_tokens"]).notes == ()
    assert extract(base, tuned, "rank=2", whole=["model.embed_tokens"]).moved == pytest.approx(found.moved)


def test_a_pattern_of_parameters_is_told_the_module(folders):
    _, base, tuned, _ = folders
    with pytest.raises(ValueError, match=r"matches parameters, and modules .*: give model.layers.1.self_attn.q_proj$"):
        extract(base, tuned, "rank=2", whole=["model.layers.1.self_attn.q_proj.weight"])
    with pytest.raises(ValueError, match=r"give a glob of module names"):
        extract(base, tuned, "rank=2", whole=["nothing"])


def test_an_objective_may_be_given_by_its_name():
    base = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).eval()
    tuned, data = merged(base, {"0": 3, "2": 3}), torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    by_name = extract(base, tuned, "rank=1", data=data, objective="classification")
    assert by_name.error == extract(base, tuned, "rank=1", data=data, objective=rf.objectives.Classification()).error
    assert by_name.error != extract(base, tuned, "rank=1", data=data).error
    with pytest.raises(rf.objectives.ObjectiveError, match="did you mean classification"):
        extract(base, tuned, "rank=1", data=data, objective="clasification")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": iter([torch.zeros(4, 6)])}, "can be read only once"),
        ({"data": torch.zeros(4, 6), "samples": 0}, "samples must be a whole number of at least 1, got 0"),
        ({"data": torch.zeros(4, 6), "tune": -3}, "tune must be a whole number of at least 0, got -3"),
        ({"data": torch.zeros(4, 6), "tune": 2.5}, "tune must be a whole number of at least 0, got 2.5"),
    ],
)
def test_data_and_counts_are_looked_at_first(given, said):
    base = nn.Sequential(nn.Linear(6, 8))
    with pytest.raises(ValueError, match=said):
        extract(base, merged(base, {"0": 1}), "rank=1", **given)
