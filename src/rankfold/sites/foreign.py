"""Weights that are no ordinary tensors: quantised, sharded over processes, of another library, or inside TorchScript.

They are listed with the reason, never factored, and counted by the tensors that hold them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rankfold.sites.site import SiteList

QUANTIZED = "quantized: compress first, quantize afterwards"
PREPARED = "prepared for quantization, whose observers change with every pass: compress first, prepare afterwards"
TORCHSCRIPT = "TorchScript: compress the network first, and script or trace it afterwards"
SHARDED = (
    "sharded over processes ({}): gather the whole weights first (get_model_state_dict of "
    "torch.distributed.checkpoint.state_dict, with full_state_dict=True), and compress on one process"
)
PARTITIONED = "partitioned by DeepSpeed: gather the whole weights first (deepspeed.zero.GatheredParameters)"
_REFUSED = (SHARDED.partition(" (")[0], PARTITIONED, PREPARED)
_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32)


def why_foreign(module: nn.Module) -> str | None:
    """Why the weights of this very module cannot be factored as they are stored; None for ordinary ones."""
    if isinstance(module, torch.jit.ScriptModule):
        return TORCHSCRIPT
    if is_packed(type(module)) or _holds_scaled_integers(module):
        return QUANTIZED
    if _is_observed(module):
        return PREPARED
    reasons = (why_tensor(parameter) for parameter in module._parameters.values() if parameter is not None)
    return next((reason for reason in reasons if reason), None)


def why_tensor(parameter: Tensor) -> str | None:
    """Why this parameter is no ordinary tensor, or None."""
    kind = type(parameter)
    names = {base.__name__ for base in kind.__mro__}
    if "DTensor" in names or "FlatParameter" in names:
        return SHARDED.format("DTensor" if "DTensor" in names else "FSDP")
    if hasattr(parameter, "ds_id"):
        return PARTITIONED
    if is_lazy(parameter) or "FakeTensor" in names or not _own_functions(kind):
        return None
    library = kind.__module__.partition(".")[0]
    return f"a tensor of {library} ({kind.__name__}), quantized or packed: compress first, convert afterwards"


def _own_functions(kind: type) -> bool:
    """Whether a class of tensors computes in ways of its own."""
    own = kind.__mro__[: kind.__mro__.index(nn.Parameter if issubclass(kind, nn.Parameter) else Tensor)]
    return any({"__torch_dispatch__", "__torch_function__"} & vars(base).keys() for base in own)


def is_packed(kind: type[nn.Module]) -> bool:
    """Whether these are quantised layers of torch, which keep their weight out of parameters and buffers."""
    return any(callable(getattr(kind, name, None)) for name in ("weight", "get_weight"))


def _holds_scaled_integers(module: nn.Module) -> bool:
    """Whether a layer keeps a matrix as whole numbers, and scales beside it."""
    held = {name: x for name, x in (*module._parameters.items(), *module._buffers.items()) if x is not None}
    whole = any(x.dtype in _INTEGERS and not is_lazy(x) and x.dim() > 1 for x in held.values())
    return whole and any("scale" in name or name == "SCB" for name in held)


def _is_observed(module: nn.Module) -> bool:
    watched = any(name in module._modules for name in ("activation_post_process", "weight_fake_quant"))
    return watched and "weight" in module._parameters


def check_ordinary(found: SiteList) -> None:
    """``ValueError`` for a model that cannot be measured as it stands: a script, in pieces, or under observation."""
    if found.left_out and not found.items and all(why == TORCHSCRIPT for _, why in found.left_out):
        raise ValueError(f"the model is {TORCHSCRIPT}")
    for name, why in found.left_out:
        if why.startswith(_REFUSED):
            raise ValueError(f"{name} is {why}")


def check_gathered(name: str, tensor: Tensor) -> None:
    """``ValueError`` for a tensor in pieces, of which this process holds one."""
    reason = why_tensor(tensor)
    if reason is not None and reason.startswith(_REFUSED):
        raise ValueError(f"{name} is {reason}")


def stored(tensor: Tensor) -> Iterator[Tensor]:
    """The ordinary tensors that hold the values of this one. ``ValueError`` for one of which others hold a part."""
    check_gathered("a weight", tensor)
    if hasattr(type(tensor), "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:  # type: ignore[attr-defined]
            yield from stored(getattr(tensor, name))
    elif tensor.is_quantized:
        yield tensor.int_repr()
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            yield torch.tensor([tensor.q_scale(), tensor.q_zero_point()], dtype=torch.float64)
        else:
            yield from (tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points())
    else:
        yield tensor


def packed(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, Tensor]:
    """What quantised layers of torch, among ``modules`` with their names, keep out of parameters and buffers, by name;
    each tensor once."""
    found: dict[str, Tensor] = {}
    for path, module in modules:
        if not is_packed(type(module)):
            continue
        known = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
        for key, value in module.state_dict().items():
            if key in known:
                continue
            for number, tensor in enumerate(_inside(value)):
                found.setdefault(f"{path}.{key}.{number}".lstrip("."), tensor)
    return {name: tensor for name, tensor in found.items() if _first(name, tensor, found)}


def _first(name: str, tensor: Tensor, found: Mapping[str, Tensor]) -> bool:
    place = (tensor.data_ptr(), tensor.shape)
    return next(n for n, other in found.items() if (other.data_ptr(), other.shape) == place) == name


def _inside(value: Any) -> Iterator[Tensor]:
    """Every tensor in what a state dict holds: packed weights are objects of torch's own."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, torch.ScriptObject):
        yield from _inside(value.__getstate__())
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _inside(part)
