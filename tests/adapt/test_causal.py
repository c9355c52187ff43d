"""Which networks are language models, whatever their classes are called."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rankfold.adapt import extract
from rankfold.objectives import CausalLanguageModel
from rankfold.sites import is_causal
from rankfold.store.card import _loader

transformers = pytest.importorskip("transformers")


def small(kind: type) -> nn.Module:
    torch.manual_seed(0)
    config = kind.config_class()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    named = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0} | sizes
    return kind(type(config)(**named)).eval()


class Mine(transformers.GPT2LMHeadModel):
    pass


class OwnForCausalLM(nn.Linear):
    pass


def test_language_models_are_told_as_transformers_tells_them():
    causal = [transformers.GPT2LMHeadModel, transformers.BertLMHeadModel, transformers.LlamaForCausalLM, Mine]
    other = [transformers.GPT2Model, transformers.GPT2ForSequenceClassification, transformers.BertForMaskedLM]
    for kind in causal + other:
        assert is_causal(small(kind)) == (kind in causal), kind
        place, loader = _loader(small(kind))
        assert place == "transformers"
        assert (loader == "AutoModelForCausalLM") == (kind in causal), (kind, loader)
    assert is_causal(OwnForCausalLM(2, 2))
    assert not is_causal(nn.Linear(2, 2))


def test_gpt2_is_extracted_as_a_language_model(tmp_path):
    peft = pytest.importorskip("peft")
    base = small(transformers.GPT2LMHeadModel)
    base.save_pretrained(tmp_path / "base")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for block in tuned.transformer.h:
            block.mlp.c_fc.weight.add_(0.3 * torch.randn_like(block.mlp.c_fc.weight))
    data = [{"input_ids": ids} for ids in torch.randint(0, 40, (8, 6)).split(4)]
    found = extract(tmp_path / "base", tuned, "rank=2", data=data)
    assert found.adapter.task == "CAUSAL_LM"
    told = extract(tmp_path / "base", tuned, "rank=2", data=data, objective=CausalLanguageModel())
    torch.testing.assert_close(found.adapter.pairs, told.adapter.pairs)
    found.save(tmp_path / "adapter")
    model = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert isinstance(model, peft.PeftModelForCausalLM)
