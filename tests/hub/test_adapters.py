"""LoRA beside factored layers: merged at any rank, and not lost where it is not merged."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.sites import Form, narrow_, narrower, pair

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

import rankfold.hub as hub  # noqa: E402

NAME = "model.layers.0.mlp.up_proj"
IDS = torch.arange(16).reshape(2, 8)


def compressed(form: Form = Form.FACTORED):
    """A network whose one layer, 32 → 64, has rank 18, and the plan."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    plan = rf.plan(model, rf.Ranks({NAME: 18}), "truncate", example={"input_ids": IDS})
    entries = [rf.Entry(**(vars(e) | {"form": form})) if e.site == NAME else e for e in plan.entries]
    plan = plan.with_entries(tuple(entries))
    return rf.apply_(model, plan), plan


def adapted(model, rank: int = 16):
    config = peft.LoraConfig(target_modules=["up_proj"], r=rank, lora_alpha=2 * rank, init_lora_weights=False)
    return peft.get_peft_model(model, hub.adapters(config)).eval()


@torch.no_grad()
def answer(model):
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("form", [Form.FACTORED, Form.PIVOTED])
@pytest.mark.parametrize(("rank", "merged"), [(8, 26), (16, 32), (60, 32)])
def test_what_would_pass_the_full_rank_is_merged_at_the_full_one(form, rank, merged, tmp_path):
    small, _ = compressed(form)
    model = adapted(copy.deepcopy(small), rank)
    wanted, before = answer(model), answer(small)
    assert float((wanted - before).abs().max()) > 1e-2
    model.merge_adapter()
    torch.testing.assert_close(answer(model), wanted, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(answer(model), wanted, rtol=1e-4, atol=1e-5)
    layer = model.base_model.model.get_submodule(NAME).get_base_layer()
    assert all(map(torch.equal, layer.state_dict().values(), small.get_submodule(NAME).state_dict().values()))
    whole = model.merge_and_unload()
    assert whole.get_submodule(NAME).rank == merged
    whole.save_pretrained(tmp_path)
    loaded = type(whole).from_pretrained(tmp_path).eval()
    assert torch.equal(answer(loaded), answer(whole))
    torch.testing.assert_close(answer(loaded), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", [Form.FACTORED, Form.PIVOTED])
@pytest.mark.parametrize("rank", [8, 16])
def test_a_network_that_is_moved_while_an_adapter_is_merged_gets_its_layers_back_as_it_is_now(form, rank):
    small, _ = compressed(form)
    model = adapted(copy.deepcopy(small), rank)
    model.merge_adapter()
    model.to(torch.float64).unmerge_adapter()
    layer = model.base_model.model.get_submodule(NAME).get_base_layer()
    before = small.get_submodule(NAME).to(torch.float64).state_dict()
    for name, value in layer.state_dict().items():
        assert value.dtype == before[name].dtype
        torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-6)
    answer(model)


def test_a_rank_that_no_folder_is_loaded_with_is_refused_before_anything_is_written(tmp_path):
    small, plan = compressed()
    layer = small.get_submodule(NAME)
    (right, left), more = pair(layer), torch.randn(16, 32)
    narrow_(layer, narrower(layer, torch.cat([right, more]), torch.cat([left, torch.zeros(64, 16)], 1)))
    said = (
        r"up_proj \(Linear 64×32\) cannot be stored as factored of rank 34, as its matrix has no more than 32: factor"
    )
    with pytest.raises(hub.HubError, match=said):
        small.save_pretrained(tmp_path / "small")
    assert not list((tmp_path / "small").glob("*.safetensors"))
    with pytest.raises(rf.StoreError, match="of rank 34"):
        rf.save(small, plan, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("which", ["outer", "inner"])
def test_an_adapter_that_is_not_merged_is_not_thrown_away(which, tmp_path):
    small, plan = compressed()
    outer = adapted(small, 4)
    model = outer if which == "outer" else outer.base_model.model
    said = r"up_proj is a layer of PEFT: take merge_and_unload\(\) of the PEFT model, or unload\(\) without the adapter"
    for refused in (hub.to_dense, hub.files_of):
        with pytest.raises(hub.HubError, match=said):
            refused(model)
    with pytest.raises(rf.StoreError, match=said):
        rf.save(model, plan, tmp_path / "small")
    assert not (tmp_path / "small").exists()
    wanted = answer(outer)
    torch.testing.assert_close(answer(hub.to_dense(outer.merge_and_unload())), wanted, rtol=1e-4, atol=1e-5)


def test_nor_is_an_update_of_this_library():
    small, _ = compressed()
    model = rf.deep_lora_(small, 2, where="*.o_proj", epsilon=0.5)
    wanted = answer(model)
    for refused in (hub.to_dense, hub.files_of):
        with pytest.raises(hub.HubError, match=r"o_proj has an update beside it: call rankfold\.adapt\.merge_ on"):
            refused(model)
    dense = hub.to_dense(rf.adapt.merge_(model))
    assert isinstance(dense.get_submodule(NAME), nn.Linear)
    torch.testing.assert_close(answer(dense), wanted, rtol=1e-4, atol=1e-5)
