"""Layers of a class of their own that do what the class does that they derive from, as those that cast their weights.

What a forward does cannot be read from its name: it is tried, on a copy of the layer with a few weights of its own, and
compared with the class of torch. The layer itself is never called.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.sites.product import ordinary_class

INPUTS, OUTPUTS = 3, 5  # of the copy, for each group
BATCH = 2


def overrides(kind: type, base: type) -> bool:
    return any(
        getattr(kind, name, None) is not getattr(base, name, None) for name in ("forward", "_conv_forward", "__call__")
    )


@torch.no_grad()
def acts_as(module: Any, base: Any) -> bool:
    """Whether ``module``, of a class derived from ``base``, gives what ``base`` gives, in training and evaluation mode.

    Tried with small weights of its dtype, on the processor also where the layer is nowhere (meta), at two sizes of
    input. False for what has other parameters, buffers or modules than ``base``, for another result, another type of
    result or an error, and for attributes that cannot be copied. Cost: eight calls of a few hundred multiplications
    where a forward is overridden, none else.
    """
    if not isinstance(module, base):
        return False
    kind: Any = ordinary_class(module)
    if not overrides(kind, base):
        return True
    if kind.__call__ is not nn.Module.__call__ or not _is_plain(module) or not module.weight.is_floating_point():
        return False
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=()):
        try:
            copy = _small(module, kind, generator)
            plain = _small(module, base, torch.Generator().manual_seed(0))
            return all(
                _equal(kind.forward(copy.train(mode), x), base.forward(plain.train(mode), x))
                for x in _inputs(copy, generator)
                for mode in (True, False)
            )
        except Exception:  # of somebody's own code, which may raise anything
            return False


def _is_plain(module: nn.Module) -> bool:
    known = module._parameters.keys() <= {"weight", "bias"}
    return known and not module._buffers and module._modules.keys() <= {"parametrizations"}


def _small(module: Any, kind: type[nn.Module], generator: torch.Generator) -> Any:
    """A layer of ``kind`` with copies of the attributes of ``module`` and a few weights."""
    copy: Any = object.__new__(kind)
    nn.Module.__init__(copy)
    apart = vars(nn.Module()).keys() | {"parametrizations"}
    own = {name: value for name, value in vars(module).items() if name not in apart}
    vars(copy).update(deepcopy(own, {id(module): copy}))  # a forward may note in them what it was given
    groups = getattr(module, "groups", 1)
    inputs, outputs = INPUTS * groups, OUTPUTS * groups
    if isinstance(module, nn.Linear):
        copy.in_features, copy.out_features, shape = inputs, outputs, (outputs, inputs)
    else:
        copy.in_channels, copy.out_channels = inputs, outputs
        first = (inputs, OUTPUTS) if module.transposed else (outputs, INPUTS)
        shape = (*first, *module.kernel_size)
    dtype = module.weight.dtype

    def drawn(*size: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(size, generator=generator, device="cpu").to(dtype), requires_grad=False)

    copy.weight = drawn(*shape)
    copy.bias = None if module.bias is None else drawn(outputs)
    return copy


def _inputs(copy: Any, generator: torch.Generator) -> list[Tensor]:
    if isinstance(copy, nn.Linear):
        shapes = [(BATCH, copy.in_features), (BATCH, 3, copy.in_features)]
    else:
        reach = [(size - 1) * step + 1 for size, step in zip(copy.kernel_size, copy.dilation, strict=True)]
        shapes = [(BATCH, copy.in_channels, *(size + more for size in reach)) for more in (3, 4)]
    return [torch.randn(shape, generator=generator, device="cpu").to(copy.weight.dtype) for shape in shapes]


def _equal(given: Any, wanted: Tensor) -> bool:
    if not isinstance(given, Tensor) or given.shape != wanted.shape or given.dtype != wanted.dtype:
        return False
    near = 64 * torch.finfo(wanted.dtype).eps
    return torch.allclose(given, wanted, rtol=near, atol=near)
