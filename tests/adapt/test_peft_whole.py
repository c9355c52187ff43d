"""Tensors beside the factors of an adapter that PEFT wrote: what is kept is loaded again by PEFT, the rest is told."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import rankfold as rf
from rankfold.adapt import combine, read_adapter

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
TOKENS = torch.arange(24).reshape(3, 8)
pytestmark = pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`", "ignore:Model has `tie_word_embeddings", "ignore:Could not find a config"
)


def llama(rows: int = 40, **how) -> nn.Module:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **how))
    if rows != 40:
        model.resize_token_embeddings(rows)
    return model.eval()


def classifier(kind: str) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, max_position_embeddings=60)
    return getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()


def trained(model: nn.Module, place, seed: int = 1, how=None, **config):
    """The model that PEFT trained and saved, everything that trains a little changed."""
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=3, **config)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(place, **(how or {}))
    return adapted


def read_again(found, base: nn.Module, place) -> nn.Module:
    return peft.PeftModel.from_pretrained(base, found.save(place)).eval()


CASES = {
    "a head of several layers": (
        lambda: classifier("Roberta"), {"target_modules": ["query"], "task_type": "SEQ_CLS"}, {}
    ),
    "a head of one layer": (lambda: classifier("Bert"), {"target_modules": ["query"], "task_type": "SEQ_CLS"}, {}),
    "blocks": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["mlp", "lm_head"]}, {}),
    "tied": (
        lambda: llama(tie_word_embeddings=True),
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {},
    ),
    "embeddings that were resized": (
        lambda: llama(42), {"target_modules": ["q_proj"]}, {"save_embedding_layers": True}
    ),
    "an embedding that is adapted": (llama, {"target_modules": ["q_proj", "embed_tokens"]}, {}),
    "an embedding and its head that are adapted": (
        lambda: llama(tie_word_embeddings=True),
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_peft_saved_beside_the_factors_is_loaded_again(case, tmp_path):
    make, config, how = CASES[case]
    wanted = trained(make(), tmp_path / "1", how=how, **config)
    found = combine([tmp_path / "1"], "rank=64")
    read = read_again(found, make(), tmp_path / "2")
    torch.testing.assert_close(read(TOKENS).logits, wanted(TOKENS).logits, rtol=1e-4, atol=1e-5)
    again = combine([tmp_path / "2"], "rank=64")  # what is written is read as what was read
    assert again.adapter.whole.keys() == found.adapter.whole.keys()
    assert set(again.adapter.saved) == set(found.adapter.saved)


def test_a_copy_of_the_base_is_neither_counted_nor_written(tmp_path):
    trained(llama(), tmp_path / "1", target_modules=["q_proj", "embed_tokens"])
    found = combine([tmp_path / "1"], "params=0.5")
    assert found.model_params == 2 * 3 * 32 + 3 * 56
    assert 0 < found.params <= found.model_params / 2
    assert [(item.name, item.why) for item in found.left_out] == [
        ("model.embed_tokens.base_layer.weight", "a copy of the base's own tensor, saved beside an update of it")
    ]
    found.save(tmp_path / "2")
    assert not any("base_layer" in name for name in load_file(tmp_path / "2" / "adapter_model.safetensors"))


def test_a_budget_that_what_is_saved_whole_exceeds_is_told_so(tmp_path):
    trained(llama(), tmp_path / "1", target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(rf.BudgetError, match=r"what is stored whole takes 640 of the 500 numbers allowed, .* 672"):
        combine([tmp_path / "1"], "params=500")
    assert combine([tmp_path / "1"], "params=672").params == 672


@pytest.mark.parametrize("kind", ["Roberta", "Bert"])
def test_several_classifiers_become_one_without_their_heads(kind, tmp_path):
    for seed in 1, 2:
        trained(classifier(kind), tmp_path / str(seed), seed, target_modules=["query"], task_type="SEQ_CLS")
    found = combine([tmp_path / "1", tmp_path / "2"], "rank=8")
    assert all("classifier" in item.name for item in found.left_out)
    read = read_again(found, classifier(kind), tmp_path / "both")
    with torch.no_grad():
        assert not torch.equal(read(TOKENS).logits, classifier(kind)(TOKENS).logits)


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.embed_tokens.token_adapter.trainable_tokens_delta", "odd"]
)
def test_a_tensor_of_no_module_that_is_saved_is_refused(name, tmp_path):
    trained(llama(), tmp_path, target_modules=["q_proj"])
    file = tmp_path / "adapter_model.safetensors"
    save_file(load_file(file) | {f"base_model.model.{name}": torch.ones(16)}, file)
    with pytest.raises(ValueError, match=f"{name} is no part of an ordinary LoRA adapter, and of no module") as error:
        read_adapter(tmp_path)
    assert "\n" not in str(error.value)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)

    def forward(self, x):
        return self.out(self.attention(x, x, x, need_weights=False)[0])


def attending() -> nn.Module:
    torch.manual_seed(0)
    return Attending().eval()


def test_both_parts_of_an_attention_module_keep_one_rank(tmp_path):
    wanted = trained(attending(), tmp_path / "1", target_modules=["attention", "out"])
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))
    read = read_again(combine([tmp_path / "1"], "rank=3"), attending(), tmp_path / "2")
    torch.testing.assert_close(read(x), wanted(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"attention is an attention module, whose two parts PEFT keeps at one rank"):
        combine([tmp_path / "1"], "params=16").save(tmp_path / "3")
    assert not (tmp_path / "3").exists()
    config = json.loads((tmp_path / "2" / "adapter_config.json").read_text())
    assert config["r"] == 3
