"""The ``weight`` of a factored layer: a tensor that is a product of factors, multiplied out only where it must be.

Code that nobody here wrote reads ``layer.weight.dtype``, calls ``F.linear(x, layer.weight)``, or writes into it. Here
shape, dtype and device are known without computing, linear maps run on the factors at their cost, everything else sees
the product, and writing is refused, since the product is not stored anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from rankfold.layers.weights.answers import ANSWERS, stored_in
from rankfold.layers.weights.errors import refuse
from rankfold.layers.weights.operations import CASTS, LOOKS, SAME, TURNS, casts, name_of, only_seen, turns, writes
from rankfold.layers.weights.rule import Rule


def weight_of(rule: Rule, factors: Sequence[Tensor]) -> Tensor:
    """The weight that ``factors`` stand for: a ``FactoredWeight``, or the product where torch needs a plain tensor.

    That is while ``torch.compile`` traces, which does not trace the making of tensor subclasses, and inside transforms
    of ``torch.func``. Gradients reach the factors whichever way the weight is used.
    """
    if torch.compiler.is_dynamo_compiling() or torch._C._are_functorch_transforms_active():
        return rule.dense(factors)
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if torch.is_grad_enabled() and not tracing and any(f.requires_grad for f in factors):
        return _Formed.apply(rule, *factors)
    return FactoredWeight(rule, factors)


class FactoredWeight(Tensor):
    """A weight known by its factors. Made by ``weight_of`` at each read of ``layer.weight``; keeps no copy."""

    rule: Rule
    factors: tuple[Tensor, ...]
    _is_param = True  # what ``isinstance(…, nn.Parameter)`` asks, as code written for the dense layer may

    @staticmethod
    def __new__(cls, rule: Rule, factors: Sequence[Tensor]) -> FactoredWeight:
        first = factors[0]
        # torch would let ``other.data = weight`` take the memory that this has not got; of another layout it refuses
        made = Tensor._make_wrapper_subclass(
            cls, rule.shape(factors), dtype=first.dtype, device=first.device, layout=torch.sparse_coo
        )
        made.rule, made.factors = rule, tuple(factors)
        return made

    def __init__(self, rule: Rule, factors: Sequence[Tensor]) -> None:
        super().__init__()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if name in LOOKS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        first = next(iter(args), next(iter(kwargs.values()), None))
        if isinstance(first, FactoredWeight) and name in ANSWERS:
            return ANSWERS[name](first, *args[1:], **kwargs)
        if (written := _written(name, args, kwargs)) is not None:
            refuse(written, name)
        if isinstance(first, FactoredWeight) and (turned := _turned(first, name, func, args, kwargs)) is not None:
            return turned
        for weight in pytree.tree_leaves((args, kwargs)):
            if isinstance(weight, FactoredWeight) and (thin := weight.rule.thin(func, args, kwargs, weight)):
                return thin.run(thin.input, weight.factors)
        return _multiplied_out(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Below the functions of torch, where only compiled code arrives; gradients take the way of ``_Formed``."""
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return FactoredWeight(args[0].rule, [f.detach() for f in args[0].factors])
        _refuse_written(func, args)
        args, kwargs = pytree.tree_map_only(FactoredWeight, FactoredWeight.product, (args, kwargs or {}))
        return func(*args, **kwargs)

    @property
    def _is_hf_initialized(self) -> bool:
        """What transformers asks before it draws a weight that no file had: not this one, where its factors had."""
        stored = [factor for factor in self.factors if not isinstance(factor, Product)]  # others are computed
        return all(getattr(stored_in(factor), "_is_hf_initialized", False) for factor in stored)

    def _use_count(self) -> NoReturn:
        """What torch.utils.swap_tensors asks before it swaps."""
        refuse(self, "swap_tensors")

    def product(self) -> Tensor:
        """The weight multiplied out, an ordinary tensor with the strides that were told; differentiable."""
        return self.rule.dense(self.factors).contiguous()

    def mapped(self, func: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The weight of the factors after ``func``: another dtype or device."""
        return weight_of(self.rule, [func(f, *args, **kwargs) for f in self.factors])


class _Formed(torch.autograd.Function):
    """The weight as a function of its factors, so that a gradient with respect to it reaches them."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, *factors: Tensor) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(*factors)
        return FactoredWeight(rule, factors)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            factors = [f.view_as(f) if f.requires_grad else f for f in ctx.saved_tensors]
            wanted = [f for f in factors if f.requires_grad]
            product = ctx.rule.dense(factors)
            found = iter(torch.autograd.grad(product, wanted, grads[0], create_graph=again))
        return None, *(next(found) if f.requires_grad else None for f in factors)


def _refuse_written(func: Any, args: Sequence[Any]) -> None:
    """Below the functions of torch: refuse what an operation would write into. Collectives do not say what they write:
    those whose name ends in an underscore into their first argument."""
    name = func.__name__.partition(".")[0]
    into = func.namespace == "c10d" and name.endswith("_")
    given = [v for i, (a, v) in enumerate(zip(func._schema.arguments, args)) if a.is_write or (into and not i)]
    for value in pytree.tree_leaves(given):
        if isinstance(value, FactoredWeight | Product):
            refuse(value, name)


def _written(name: str, args: Sequence[Any], kwargs: Any) -> FactoredWeight | Product | None:
    """The weight, or what shares memory with its product, that an operation would write into."""
    first = args[:1] if args else list(kwargs.values())[:1]
    where: list[Any] = [kwargs.get("out")]
    if writes(name) or kwargs.get("inplace") is True:
        where += [*first, kwargs.get("tensor")]
    return next((w for w in pytree.tree_leaves(where) if isinstance(w, FactoredWeight | Product)), None)


def _turned(weight: FactoredWeight, name: str, func: Any, args: Sequence[Any], kwargs: Any) -> Tensor | None:
    """The result of an operation that leaves the weight a product of factors, or None."""
    if name in SAME and not kwargs and len(args) == 1:
        return weight
    if name in TURNS and turns(name, args, kwargs, weight.dim()):
        rule = weight.rule.turned()
        return None if rule is None else weight_of(rule, [f.mT for f in reversed(weight.factors)])
    if name in CASTS and casts(name, args, kwargs):
        return weight.mapped(func, *args[1:], **kwargs)
    return None


def _stand_in(weight: FactoredWeight) -> Tensor:
    """A tensor of the weight's shape, dtype and device without values of its own."""
    return weight.factors[0].detach().new_zeros(()).expand(weight.rule.shape(weight.factors))


def _multiplied_out(func: Any, args: Any, kwargs: Any) -> Any:
    """``func`` of the products. What shares memory with one stays guarded, so that writing there is refused too."""
    formed: dict[int, Tensor] = {}

    def product(weight: FactoredWeight) -> Tensor:
        return formed.setdefault(id(weight), weight.product())

    name = name_of(func)

    def given(weight: FactoredWeight) -> Tensor:
        return _stand_in(weight) if only_seen(name, args, weight) else product(weight)

    called = pytree.tree_map_only(FactoredWeight, given, (args, kwargs))
    return _guarded(func(*called[0], **called[1]), formed.values())


class Product(Tensor):
    """A product that was formed for a reader, or a view of it: ordinary memory that refuses to be written to.

    ``weight.data``, ``weight[:3]``: what is written there would be lost, as it would not reach the factors.
    """

    computed = True

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if name in LOOKS or name in _OF_ANY_TENSOR:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if name == "__deepcopy__":
            return _plain(args[0]).detach().clone()
        if (written := _written(name, args, kwargs)) is not None:
            refuse(written, name)
        called = pytree.tree_map_only(Product, _plain, (args, kwargs))
        given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Product)]
        return _guarded(func(*called[0], **called[1]), given)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Below the functions of torch, where collectives arrive that take tensors past ``__torch_function__``."""
        _refuse_written(func, args)
        with torch._C._DisableTorchDispatch():
            return func(*args, **(kwargs or {}))

    def _use_count(self) -> NoReturn:
        refuse(self, "swap_tensors")

    def set_(self, *args: Any, **kwargs: Any) -> NoReturn:  # torch does not hand it to __torch_function__
        refuse(self, "set_")


_OF_ANY_TENSOR = frozenset({"requires_grad.get", "requires_grad_", "is_leaf.get", "grad.get", "retains_grad.get"})


@torch.jit.unused
def guarded(made: Tensor) -> Tensor:
    """``made``, a tensor that is computed at each read, as one that refuses to be written to."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return made
    return made.as_subclass(Product)


def _plain(product: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return product.as_subclass(Tensor)


def _guarded(result: Any, products: Iterable[Tensor]) -> Any:
    """``result``, in which everything that shares memory with one of ``products`` is a ``Product``."""
    with torch._C.DisableTorchFunctionSubclass():
        memory = {product.untyped_storage()._cdata for product in products}

    def guarded(value: Tensor) -> Tensor:
        if type(value) is Tensor and value.layout is torch.strided and value.untyped_storage()._cdata in memory:
            return value.as_subclass(Product)
        return value

    if hasattr(result, "setflags"):  # a numpy array of the product's memory
        result.setflags(write=False)
    return pytree.tree_map_only(Tensor, guarded, result)
