"""What an operation of torch does with a weight, told by its name: looks, turns, casts, writes.

Asked of factored weights, and of dense ones to tell what will become of a read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def name_of(func: Any) -> str:
    """The name of a function of torch; ``T.get`` and ``data.set`` for attributes, ``broadcast_`` for a collective that
    writes into its first argument."""
    name = getattr(func, "__name__", "")
    if name in _COLLECTIVES and getattr(func, "__module__", "").startswith("torch.distributed"):
        return f"{name}_"
    if name in ("__get__", "__set__", "__delete__"):
        return f"{getattr(func.__self__, '__name__', '')}.{name.strip('_')}"
    return name


_COLLECTIVES = frozenset(
    {"broadcast", "all_reduce", "all_reduce_coalesced", "reduce", "recv", "irecv", "scatter", "reduce_scatter"}
)
LOOKS = frozenset(
    {f"{name}.get" for name in (
        "shape", "dtype", "device", "ndim", "is_cuda", "is_cpu", "is_meta", "is_quantized",
        "is_nested", "is_mps", "is_xpu", "is_xla", "is_mkldnn", "is_sparse_csr", "itemsize", "names",
        "_version", "output_nr", "grad_fn", "name", "_backward_hooks", "_is_param", "_base",
    )}
    | {
        "size", "dim", "ndimension", "numel", "nelement", "element_size", "__len__",
        "is_floating_point", "is_complex", "is_signed", "get_device", "is_inference", "is_conj",
        "is_neg", "__hash__", "is_pinned", "has_names", "__dir__", "is_tensor", "is_same_size",
    }
)  # fmt: skip
"""Reads that compute nothing."""

SAME = frozenset({"contiguous", "__copy__"})
TURNS = frozenset({"T.get", "mT.get", "t", "transpose", "swapaxes", "swapdims", "H.get", "mH.get", "adjoint"})
CASTS = frozenset({"to", "type", "float", "double", "half", "bfloat16", "cpu", "cuda", "type_as"})
STAYS = SAME | TURNS | CASTS
"""Operations whose result is a weight of factors again."""

_INPLACE = frozenset({f"__i{name}__" for name in (
    "add", "sub", "mul", "truediv", "div", "floordiv", "pow", "and", "or", "xor", "mod", "lshift", "rshift", "matmul",
)} | {"__setitem__", "data.set", "grad.set"})  # fmt: skip


def writes(name: str) -> bool:
    """Whether an operation of this name writes into its first argument."""
    return name in _INPLACE or (name.endswith("_") and not name.endswith("__")) or name.endswith(".set")


def turns(name: str, args: Sequence[Any], kwargs: Any, dims: int) -> bool:
    """Whether this is the transposition of a matrix."""
    if dims != 2 or kwargs:
        return False
    return len(args) == 1 or (len(args) == 3 and {args[1] % 2, args[2] % 2} == {0, 1})


def casts(name: str, args: Sequence[Any], kwargs: Any) -> bool:
    """Whether only dtype or device change, to a real floating dtype."""
    if kwargs.get("memory_format") is not None:
        return False
    given = [*args[1:], *kwargs.values()]
    dtypes = [x if isinstance(x, torch.dtype) else x.dtype for x in given if isinstance(x, torch.dtype | Tensor)]
    asks = name == "type" and not dtypes  # for its type, or for one by name
    return not asks and all(dtype.is_floating_point for dtype in dtypes)


_LIKE = re.compile(r".+_like|new_.+")
_LIKE_THE_OTHER = frozenset({"to", "type_as", "view_as", "expand_as", "reshape_as"})


def only_seen(name: str, args: Sequence[Any], weight: Any) -> bool:
    """Whether shape, dtype and device of the weight are all that the operation asks for."""
    first = bool(args) and args[0] is weight
    return (_LIKE.fullmatch(name) is not None and first) or (name in _LIKE_THE_OTHER and bool(args) and not first)
