"""FLOPs of everything that runs, as ``torch.utils.flop_counter`` counts them, and of what that does not know."""

from __future__ import annotations

from collections import Counter as Counts
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rankfold.sites import Call

aten = torch.ops.aten
_JAGGED = "NestedTensor"  # torch's class of tensors whose rows have lengths of their own


@dataclass(frozen=True, eq=False)
class _Marked:
    """A call of a site's layer. ``flops``: of the call alone, without gradients that are taken of it later."""

    site: str
    call: Call
    flops: int


class Counter(TorchDispatchMode):
    """Counts two for each multiply-add, where only shapes matter; ``unknown`` names the operations it cannot count.

    The formulas are those of ``torch.utils.flop_counter.FlopCounterMode``, and some that it lacks. That one also takes
    normalisations and activations apart in search of products, for which torch imports its compiler (two seconds and
    200 MB); here only operations that are made of others by torch's definition are taken apart.

    A forward that takes gradients itself, as of an energy, makes the products of its layers again. Autograd numbers all
    operations and tells which one it takes the gradient of: those between ``now`` and ``mark`` belong to a call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.unknown: set[str] = set()
        self._made = _number()
        self._within: dict[int, int] = {}  # an operation of a backward pass: the one whose gradient it is part of
        self._gradients = Counts[int]()  # FLOPs, by the operation that they are the gradient of
        self._marked: dict[int, _Marked] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would wrap the method below, and import the compiler for the wrapping

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if any(kind.__name__ == _JAGGED for kind in types):
            return NotImplemented  # it calls the operations on its values, which are seen then
        kwargs, packet = kwargs or {}, func._overloadpacket
        formula, nested = _formula(packet), any(isinstance(each, Tensor) and each.is_nested for each in args)
        if formula is None and _composite(func) and not nested:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        of = self._gradient_of()
        out = func(*args, **kwargs)
        there = None if formula is None or nested else _there(args)
        if formula is not None and there is not None:
            flops = int(formula(*args, **kwargs, out_val=out) * there)
            self.total += flops
            if of is not None:
                self._gradients[of] += flops
        elif formula is not None or _may_multiply(packet, nested):
            self.unknown.add(str(packet))
        return out

    def _gradient_of(self) -> int | None:
        """The operation whose gradient is being taken; what has been made since the last look is part of that."""
        node, made = torch._C._current_autograd_node(), _number()
        of = None if node is None else node._sequence_nr()
        if of is not None:
            self._within.update(dict.fromkeys(range(self._made, made), of))
        self._made = made
        return of

    def now(self) -> tuple[int, int]:
        return _number(), self.total

    def mark(self, since: tuple[int, int], site: str, call: Call) -> None:
        """What ran since then was this call; of calls inside of one another, the inner one ends first."""
        marked = _Marked(site, call, self.total - since[1])
        for number in range(since[0], _number()):
            self._marked.setdefault(number, marked)

    def again(self) -> Iterator[tuple[str, Call]]:
        """Each call that was marked, once for every time that gradients took as much as the call itself."""
        flops = defaultdict[_Marked, int](int)
        for number, each in self._gradients.items():
            while number not in self._marked and number in self._within:
                number = self._within[number]
            if number in self._marked:
                flops[self._marked[number]] += each
        for marked, taken in flops.items():
            yield from [(marked.site, marked.call)] * round(taken / marked.flops if marked.flops else 0)


def _number() -> int:
    return torch.autograd._get_sequence_nr()


def _composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@cache
def _formula(packet: Any) -> Callable[..., int] | None:
    """That of an operation, or of the one that it does in place (``addmm_``)."""
    found = FORMULAS.get(packet) or flop_registry.get(packet)
    namespace, _, name = packet._qualified_op_name.partition("::")
    if found is not None or namespace != "aten" or not name.endswith("_"):
        return found
    ordinary = getattr(aten, name.removesuffix("_"), None)
    return FORMULAS.get(ordinary) or flop_registry.get(ordinary)


def _there(args: tuple) -> Fraction | None:
    """Which share of the numbers there is in a product with one sparse matrix; None of more of them, whose product
    depends on where these numbers are."""
    sparse = [each for each in args if type(each) in (Tensor, nn.Parameter) and each.layout is not torch.strided]
    if len(sparse) != 1:
        return None if sparse else Fraction(1)
    (matrix,) = sparse
    values = matrix._values() if matrix.layout is torch.sparse_coo else matrix.values()
    return Fraction(values.numel(), max(matrix.numel(), 1))


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Scores and weighted sum, masked places too; keys and values may have fewer heads than queries."""
    *many, length, width = query.shape
    return 2 * prod(many) * length * key.shape[-2] * (width + value.shape[-1])


def _onednn_lstm(x: Tensor, w_input: Tensor, w_hidden: Tensor, *_: Any, **__: Any) -> int:
    return 2 * prod(x.shape[:-1]) * (w_input.numel() + w_hidden.numel())


def _cudnn_rnn(x: Tensor, weights: list[Tensor], *_: Any, **__: Any) -> int:
    return 2 * prod(x.shape[:-1]) * sum(w.numel() for w in weights if w.dim() == 2)


def _bilinear(first: Tensor, weight: Tensor, second: Tensor, *_: Any, **__: Any) -> int:
    """x₁ᵀ W x₂ for each output: the first product, then the second. ``first`` and ``second`` are (N, n₁), (N, n₂)."""
    outputs, n_1, n_2 = weight.shape[-3:]
    rows = first.numel() // n_1
    return 2 * rows * outputs * n_2 * (n_1 + 1)


def _product_with_vector(matrix: Tensor, vector: Tensor, *_: Any, **__: Any) -> int:
    return 2 * matrix.numel()


def _plus_product_with_vector(_: Any, matrix: Tensor, vector: Tensor, *__: Any, **___: Any) -> int:
    return 2 * matrix.numel()


def _plus_product(_: Any, a: Tensor, b: Tensor, *__: Any, **___: Any) -> int:
    """Of one pair of matrices, or of several whose products are summed."""
    return 2 * a.numel() * b.shape[-1]


def _plus_outer_product(_: Any, a: Tensor, b: Tensor, *__: Any, **___: Any) -> int:
    return 2 * a.numel() * b.numel()


def _convolution_over_time(_: Any, weight: Tensor, *__: Any, out_val: Any = None, **___: Any) -> int:
    """``weight`` (k, C_in, C_out)."""
    return 2 * out_val.numel() * weight.shape[0] * weight.shape[1]


def _dot(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    return 2 * a.numel()


def _grouped(a: Tensor, b: Tensor, *_: Any, out_val: Any = None, **__: Any) -> int:
    """Experts: each row of ``a`` (T, n) by the matrix of its group; or groups along the axis that is summed over."""
    if a.dim() == 2 and b.dim() == 2:
        return 2 * a.shape[0] * a.shape[1] * b.shape[1]
    return 2 * out_val.numel() * a.shape[-1]


def _integers(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    return 2 * a.shape[0] * a.shape[1] * b.shape[1]


def _quantized_linear(x: Tensor, *_: Any, out_val: Any = None, **__: Any) -> int:
    return 2 * out_val.numel() * x.shape[-1]


def _quantized_convolution(_: Tensor, weights: Any, *__: Any, out_val: Any = None, **___: Any) -> int:
    return 2 * out_val.numel() * prod(weights.unpack()[0].shape[1:])


def _formulas() -> dict[Any, Callable[..., int]]:
    found: dict[Any, Callable[..., int]] = {}
    formulas: dict[str, Any] = {
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
        "_scaled_dot_product_flash_attention": _attention,
        "_scaled_dot_product_efficient_attention": _attention,
        "_scaled_dot_product_cudnn_attention": _attention,
        "_scaled_dot_product_fused_attention_overrideable": _attention,
        "mkldnn_rnn_layer": _onednn_lstm,
        "_cudnn_rnn": _cudnn_rnn,
        "_trilinear": _bilinear,
        "mv": _product_with_vector,
        "addmv": _plus_product_with_vector,
        "addbmm": _plus_product,
        "_addmm_activation": _plus_product,
        "addr": _plus_outer_product,
        "conv_tbc": _convolution_over_time,
        "dot": _dot,
        "vdot": _dot,
        "_grouped_mm": _grouped,
        "_int_mm": _integers,
    }
    for name, formula in formulas.items():
        if hasattr(aten, name):  # not every version of torch has every one
            found[getattr(aten, name)] = formula
    quantized = torch.ops.quantized
    found |= {
        getattr(quantized, f"linear{kind}"): _quantized_linear for kind in ("", "_relu", "_dynamic", "_relu_dynamic")
    }
    found |= {
        getattr(quantized, f"conv{dims}d{kind}"): _quantized_convolution for dims in (1, 2, 3) for kind in ("", "_relu")
    }
    return found


FORMULAS = _formulas()

_OWN = ("aten", "prim", "prims", "profiler", "debugprims", "c10d", "_c10d_functional", "rngprims")
_MULTIPLY = (
    "linalg_", "_linalg", "_fft", "fft_", "_cdist", "cdist", "cholesky", "triangular_solve", "lu_", "_lu", "miopen",
    "mkldnn_linear", "mkldnn_convolution", "_native_multi_head", "_transformer_encoder", "_weight_int", "_sparse",
    "sspaddmm", "_thnn_fused", "quantized_", "geqrf", "householder", "ormqr", "grid_sampler", "_pdist", "hspmm", "smm",
    "sparse_sampled", "_cslt", "_foreach_mm", "_mixed_dtypes", "_dyn_quant", "_scaled_grouped", "_scaled_mm", "_triton",
    "_cudnn_attention", "cudnn_convolution", "slow_conv", "_conv_depthwise", "conv_depthwise", "_nnpack", "_lstm_mps",
    "_mps_convolution", "fbgemm_linear", "_compute_linear_combination", "_wrapped_",
)  # fmt: skip
"""Beginnings of the names of torch's operations that do more than one step for each number, and have no formula."""
_OF_OTHERS = ("linear", "matmul", "scaled_dot_product", "conv", "einsum")
_ONE_STEP = ("linalg_vector_norm", "linalg_cross", "linalg_diagonal")  # as sums and products of numbers are


def _may_multiply(packet: Any, nested: bool = False) -> bool:
    """Whether an operation without a formula may hold multiply-adds: a stranger's, or one of torch's that does.
    ``nested``: it was given nested tensors, of which it is not taken apart."""
    namespace, _, name = packet._qualified_op_name.partition("::")
    if nested and name.lstrip("_").startswith(_OF_OTHERS):
        return True
    return namespace not in _OWN or (name.startswith(_MULTIPLY) and not name.startswith(_ONE_STEP))
