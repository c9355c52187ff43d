"""Multiplying out: an ordinary model of transformers again, which loads anywhere and saves no space."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import copied
from rankfold.hub.declared import check_merged, check_ours
from rankfold.hub.errors import HubError
from rankfold.hub.quantizer import RankfoldQuantizer
from rankfold.layers.experts import Enter, Leave
from rankfold.layers.shared import SharedNext
from rankfold.sites import opened


def to_dense(model: nn.Module) -> nn.Module:
    """A dense copy of a model of transformers with factored layers; the model itself stays as it is.

    Every product is formed in float64 and rounded once. A model without factored layers is copied.

    Args:
        model: of transformers.

    Returns:
        The copy, which loads anywhere and saves no space.

    Raises:
        HubError: a layer has gained a bias for which the architecture has no place, or an adapter is not merged.

    Cost: the dense model beside the small one.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2, num_key_value_heads=2)
        >>> model = LlamaForCausalLM(config)
        >>> plan = rf.plan(model, rf.Ranks({"model.layers.0.mlp.up_proj": 2}), "truncate",
        ...                example={"input_ids": torch.zeros(1, 4, dtype=torch.long)})
        >>> rf.hub.to_dense(rf.apply_(model, plan)).model.layers[0].mlp.up_proj
        Linear(in_features=8, out_features=8, bias=False)
    """
    check_merged(model)
    small: Any = model
    quantizer = getattr(small, "hf_quantizer", None)
    if not isinstance(quantizer, RankfoldQuantizer):
        check_ours(small)
        return copied(model)
    config = copy.deepcopy(small.config)
    del config.quantization_config
    with torch.device("meta"):
        dense = type(small)(config)
    names = {id(parameter): name for name, parameter in dense.named_parameters()}
    with opened(dense):
        whole = {name: names[id(p)] for name, p in dense.named_parameters() if id(p) in names}
        state = _multiplied_out(small, dense, quantizer.quantization_config.sites)
    state = {whole.get(name, name): value for name, value in state.items()}
    dense.load_state_dict(state, strict=False, assign=True)  # strict but for buffers, and names of tied weights
    dense.tie_weights()
    for path, buffer in list(dense.named_buffers()):
        if buffer.is_meta:  # not saved, made where the model was built
            parent, _, name = path.rpartition(".")
            dense.get_submodule(parent)._buffers[name] = small.get_buffer(path).detach().clone()
    for name, tensor in (*dense.named_parameters(), *dense.named_buffers()):
        if tensor.is_meta:
            raise HubError(
                f"the factored model has no values for {name}, which the dense one needs: save the model again with "
                "this version"
            )
    if getattr(small, "generation_config", None) is not None:
        dense.generation_config = copy.deepcopy(small.generation_config)
    return dense.train(small.training)


@torch.no_grad()
def _multiplied_out(small: nn.Module, dense: nn.Module, named: Any) -> dict[str, Tensor]:
    inside = tuple(f"{name}." for name in named)
    state = {key: value.detach().clone() for key, value in small.state_dict().items() if not key.startswith(inside)}
    for name in named:
        if name.startswith(inside):  # a factor that was factored once more
            continue
        layer: Any = small.get_submodule(name)
        wanted = dense.get_submodule(name)
        weight, bias = _values(layer), getattr(layer, "bias", None)
        if _transposes(wanted, layer):
            weight = weight.mT
        state[f"{name}.weight"] = weight.to(layer.weight.dtype).contiguous()
        if bias is None:
            continue
        if getattr(wanted, "bias", None) is None:
            raise HubError(
                f"{name}: its factors carry a bias, for which a {type(small).__name__} has no place: compress "
                "with a method that adds none (truncate), or use the folder itself with import rankfold.hub"
            )
        state[f"{name}.bias"] = bias.detach().clone()
    return state


def _transposes(wanted: nn.Module, layer: nn.Module) -> bool:
    """Whether the dense layer stores the transpose of what its factored one gives as its weight."""
    if isinstance(wanted, Enter | Leave):
        return wanted.transposed
    return isinstance(layer, nn.Linear) and not isinstance(wanted, nn.Linear)


def _values(layer: Any) -> Tensor:
    """The dense weight as the architecture stores it, formed in float64."""
    wide = copy.deepcopy(layer).double()
    if isinstance(wide, SharedNext):
        wide.first.double()
    return wide.weight.clone()
