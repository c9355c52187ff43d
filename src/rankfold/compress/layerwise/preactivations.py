"""What takes a layer's output: through BatchNorm and additions to the activation behind it, seen while the model runs.

The output y of a site, times the scale of the BatchNorms on the way, plus everything else that is added (their shift,
the other branch of a residual block), is the *pre-activation* that the rest of the network sees. It is what a
compressed layer should reproduce, and the place where errors of an earlier layer can be made good.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rankfold.batches import tensors_in
from rankfold.observe import Enough

_ADDITIONS: set[Callable] = {
    torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__,
}  # fmt: skip
_ACTIVATIONS: dict[Callable, str] = {
    F.relu: "relu", torch.relu: "relu", torch.relu_: "relu", Tensor.relu: "relu", Tensor.relu_: "relu",
    F.leaky_relu: "leaky_relu", F.gelu: "gelu", F.silu: "silu",
}  # fmt: skip


# what only looks at a tensor
_LOOKS: set[Callable] = {Tensor.detach, Tensor.clone, torch.clone, torch.detach, Tensor.new_zeros}


@dataclass
class Followed:
    """The pre-activation behind one call of a site.

    ``scale`` (m,): what the site's output was multiplied with on the way; None for nothing. ``activation`` "" if none
    was met: then ``pre`` is as far as the way could be followed.
    """

    pre: Tensor
    scale: Tensor | None
    activation: str
    slope: float


class Following(TorchFunctionMode):
    """Follows the outputs of some sites within a ``with`` block; ``produced`` is called when one is there.

    ``calls``: how often these are called; the forward pass ends with ``Enough`` once all have been, and each output has
    been followed to its end. None: it does not. Shared layers are followed from their last call on. What is followed is
    the first reader of a tensor: of a residual stream, which is added to again and again, the first sum. Memory: one
    tensor for each site.
    """

    def __init__(self, calls: int | None = None) -> None:
        super().__init__()
        self.calls = calls
        self.begin()

    def begin(self) -> None:
        """Forget what was followed: another pass begins."""
        self.found: dict[str, Followed] = {}
        self.count = 0
        self._tracked: dict[int, tuple[weakref.ref[Tensor], dict[str, Tensor | None]]] = {}

    def produced(self, site: str, output: Tensor) -> None:
        self.count += 1
        self._track(output, {site: None})

    def _settled(self) -> bool:
        """Whether nothing more is to be seen."""
        return self.count == self.calls and not self._open()

    def _open(self) -> bool:
        return any(known() is not None for known, _ in self._tracked.values())

    def waits(self, args: tuple, kwargs: dict) -> bool:
        """Whether an output is there that nothing has taken yet, nor will a call that is given these."""
        with torch._C.DisableTorchFunction():
            given = any(self._scales(each) for each in tensors_in((args, kwargs)))
        return not given and self._open()

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _LOOKS or getattr(func, "__name__", "") in ("__get__", "__repr__"):
            return func(*args, **kwargs)
        first = self._scales(args[0]) if args else self._scales(kwargs.get("input"))
        if first and func in _ACTIVATIONS:
            self._activated(first, func, args, kwargs)
        other = self._scales(args[1]) if func in _ADDITIONS and len(args) > 1 else None
        output = func(*args, **kwargs)
        if any(isinstance(each, Tensor) for each in (output if isinstance(output, tuple | list) else (output,))):
            for value in _given(args, kwargs):
                self._tracked.pop(id(value), None)
        if func is F.batch_norm and first:
            scale = _batch_norm_scale(args, kwargs)
            if scale is not None:
                self._track(output, {site: scale if known is None else known * scale for site, known in first.items()})
        elif func in _ADDITIONS and (first or other) and isinstance(output, Tensor) and "alpha" not in kwargs:
            self._track(output, (first or {}) | (other or {}))
        elif func is F.dropout and first and not _training(args, kwargs):
            self._track(output, first)
        if self._settled():
            raise Enough
        return output

    def _scales(self, value: Any) -> dict[str, Tensor | None] | None:
        if isinstance(value, Tensor) and id(value) in self._tracked:
            reference, scales = self._tracked[id(value)]
            return scales if reference() is value else None
        return None

    def _track(self, output: Tensor, scales: dict[str, Tensor | None]) -> None:
        self._tracked[id(output)] = weakref.ref(output), scales
        for site, scale in scales.items():
            self.found[site] = Followed(output.detach().clone(), scale, "", 0.0)

    def _activated(self, scales: Iterable[str], func: Callable, args: tuple, kwargs: dict) -> None:
        name = _ACTIVATIONS[func]
        slope = float(args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01)) if name == "leaky_relu" else 0.0
        for site in scales:
            known = self.found[site]
            if not known.activation:
                known.activation, known.slope = name, slope


def _given(args: tuple, kwargs: dict) -> Iterator[Any]:
    for value in (*args, *kwargs.values()):
        yield from value if isinstance(value, tuple | list) else (value,)


def _batch_norm_scale(args: tuple, kwargs: dict) -> Tensor | None:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, args, strict=False)) | kwargs
    variance = given.get("running_var")
    if given.get("training") or variance is None:
        return None
    scale = (variance.double() + given.get("eps", 1e-5)).rsqrt()
    weight = given.get("weight")
    return scale if weight is None else scale * weight.detach().double()


def _training(args: tuple, kwargs: dict) -> bool:
    return bool(args[2] if len(args) > 2 else kwargs.get("training", True))
