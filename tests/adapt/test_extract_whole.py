"""What is stored whole beside an extracted adapter, and what has no counterpart in the base, as PEFT reads it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.adapt import extract

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
TOKENS = torch.arange(24).reshape(3, 8)


def language_model(**how) -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=40, **sizes, **how)).eval()


def nudged(model: nn.Module, *endings: str) -> nn.Module:
    """A copy with these parameters, by the ends of their names, changed a little; all where none is given."""
    tuned, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if not endings or name.endswith(endings):
                parameter += 0.005 * torch.randn(parameter.shape, generator=generator)
    return tuned


class Normed(nn.Module):
    """A batch norm, a layer that hangs in two places, and a module with a parameter beside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.norm = nn.BatchNorm1d(16)
        self.twice = nn.ModuleList([nn.Linear(16, 16)] * 2)
        self.scaled = Scaled()
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        return self.head(self.scaled(self.twice[1](torch.relu(self.twice[0](x)))))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))
        self.inner = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x)) * self.scale


def normed() -> nn.Module:
    torch.manual_seed(0)
    return Normed().eval()


@pytest.mark.parametrize("whole", [["norm"], ["norm", "twice.0"], ["scaled"], ["scaled", "scaled.inner", "norm"]])
def test_all_that_is_in_the_state_of_a_module_kept_whole_is_stored(whole, tmp_path):
    base = normed()
    tuned = nudged(base)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        tuned.train()(3 * x)  # statistics
        for name, parameter in tuned.named_parameters():
            if not name.startswith((*whole, "twice" if "twice.0" in whole else "-", "head.w", "first.w")):
                parameter.copy_(base.get_parameter(name))
        if "norm" not in whole:
            tuned.norm.load_state_dict(base.norm.state_dict())
    tuned.eval()
    found = extract(base, tuned, "rank=16", whole=whole)
    read = peft.PeftModel.from_pretrained(copy.deepcopy(base), found.save(tmp_path)).eval()
    torch.testing.assert_close(read(x), tuned(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read.merge_and_unload()(x), tuned(x), rtol=1e-4, atol=1e-5)
    assert found.left_out == ()


def test_what_is_stored_whole_serves_the_steps_of_tuning():
    base = normed()
    tuned = nudged(base)
    data = torch.randn(64, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        tuned.train()(3 * data)
    found = extract(base, tuned.eval(), "rank=1", whole=["norm"], data=data, tune=4)
    assert "norm.running_mean" in found.adapter.whole
    assert found.tuned is not None


def test_batches_that_were_counted_are_no_change():
    base = normed()
    tuned = nudged(base, "head.weight")
    tuned.norm.num_batches_tracked += 10_000
    found = extract(base, tuned, "rank=2")
    assert {item.name: item.moved for item in found.left_out} == {"norm.num_batches_tracked": 0.0}
    assert not any("not in the adapter" in note for note in found.notes)
    assert extract(base, tuned, "rank=2", whole=["norm"]).moved == pytest.approx(found.moved)


def test_a_module_of_which_a_tensor_is_missing_is_not_stored_whole():
    base = normed()
    state = {name: value for name, value in nudged(base).state_dict().items() if name != "norm.running_var"}
    with pytest.raises(ValueError, match=r"has no tensor norm.running_var, and PEFT reads every tensor"):
        extract(base, state, "rank=2", whole=["norm"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
@pytest.mark.parametrize("which", ["base", "tuned"])
def test_values_that_are_not_finite_are_refused_outside_the_adapter_too(name, value, which):
    models = {"base": language_model(), "tuned": nudged(language_model())}
    models[which].get_parameter(name).data.view(-1)[0] = value
    with pytest.raises(ValueError, match=rf"^{name} in LlamaForCausalLM: 1 of \d+ values are NaN or infinite"):
        extract(models["base"], models["tuned"], "rank=2")
    with pytest.raises(ValueError, match=r"values are NaN or infinite"):
        extract(models["base"], models["tuned"], "rank=2", whole=["*norm", "*embed_tokens"])


def test_tensors_that_the_base_has_not_must_be_finite_too():
    base = normed()
    state = nudged(base).state_dict() | {"more.weight": torch.tensor([1.0, float("nan")])}
    with pytest.raises(ValueError, match=r"^more.weight in a state dict: 1 of 2 values are NaN or infinite"):
        extract(base, state, "rank=2")


def test_a_mask_of_infinities_that_both_have_is_no_fault():
    base = normed()
    base.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
    assert "mask" not in {item.name for item in extract(base, nudged(base), "rank=2").left_out}


@pytest.fixture
def grown() -> tuple[nn.Module, nn.Module]:
    """A model with a head of its own, and a tuned one with two tokens more."""
    base = language_model()
    tuned = nudged(base)
    tuned.resize_token_embeddings(42)
    return base, tuned.eval()


def test_new_tokens_are_left_out_of_a_head_that_is_not_tied_too(grown):
    base, tuned = grown
    told = {item.name: item.why for item in extract(base, tuned, "rank=2", whole=["*norm"]).left_out}
    assert told == {
        "model.embed_tokens.weight": "an embedding; the tuned model has 2 rows more (new tokens)",
        "lm_head.weight": "a layer; the tuned model has 2 rows more (new tokens)",
    }
    with pytest.raises(ValueError, match=r"has more rows in LlamaForCausalLM: give the base as many"):
        extract(base, tuned, "rank=2", data=TOKENS, tune=2)


@pytest.mark.parametrize("files", [True, False])
def test_new_tokens_are_stored_whole_for_a_base_that_was_resized(grown, files, tmp_path):
    base, tuned = grown
    for name, model in (("base", base), ("tuned", tuned)):
        model.save_pretrained(tmp_path / name)
    sources = (tmp_path / "base", tmp_path / "tuned") if files else grown
    found = extract(*sources, "rank=16", whole=["lm_head", "*embed_tokens", "*norm"])
    assert found.left_out == ()
    assert "the base must be resized before the adapter is loaded" in found.notes[0]
    resized = copy.deepcopy(base)
    resized.resize_token_embeddings(42)
    read = peft.PeftModel.from_pretrained(resized, found.save(tmp_path / "out")).eval()
    tokens = TOKENS + 18
    torch.testing.assert_close(read(tokens).logits, tuned(tokens).logits, rtol=1e-4, atol=1e-5)


def test_only_rows_may_be_more(grown):
    base, _ = grown
    tuned = nudged(base)
    tuned.lm_head = nn.Linear(18, 42, bias=False)
    with pytest.raises(ValueError, match=r"lm_head.weight is 40×16 in .* and 42×18 in .* architectures differ"):
        extract(base, tuned, "rank=2")


def test_where_nothing_of_low_rank_is_left_that_is_said(tmp_path):
    base = language_model()
    found = extract(base, nudged(base, "norm.weight"), "rank=2", whole=["*norm"])
    with pytest.raises(ValueError, match=r"PEFT needs at least one layer of low rank .* stored whole"):
        found.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"no layer is left to adapt, as each is stored whole \(--whole\)"):
        extract(base, nudged(base), "rank=2", whole=["*proj", "lm_head"])


def test_a_budget_that_what_is_whole_exceeds_is_told_so():
    base = language_model()
    with pytest.raises(
        rf.BudgetError,
        match=r"stored whole takes 640 of the 500 numbers allowed, and rank 1 .* 32: allow at least 672 numbers",
    ):
        extract(base, nudged(base), "params=500", whole=["*embed_tokens"])
    assert extract(base, nudged(base), "params=672", whole=["*embed_tokens"]).params <= 672


def test_parameters_that_belong_to_no_layer_are_no_buffers():
    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.prompt = nn.Linear(4, 4), nn.Parameter(torch.ones(1, 2, 4))
            self.register_buffer("seen", torch.ones(2))

    base = Free()
    tuned = nudged(base)
    tuned.seen += 1
    told = {item.name: item.why for item in extract(base, tuned, "rank=2").left_out}
    assert "dimension" in told["prompt"] or "code of its own" in told["prompt"]
    assert told["seen"] == "a buffer"
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MixtralConfig(vocab_size=40, **sizes, num_key_value_heads=1, num_local_experts=3)
    torch.manual_seed(0)
    base = transformers.MixtralForCausalLM(config).eval()
    told = {item.name: item.why for item in extract(base, nudged(base), "rank=2").left_out}
    experts = [why for name, why in told.items() if ".experts." in name]
    assert experts == ["a parameter of three dimensions"] * 2
    assert "a buffer" not in told.values()
