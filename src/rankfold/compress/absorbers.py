"""Which BatchNorm takes a layer's output with nothing in between, and alone, so that it can carry a change of its bias.

That nothing else reads the output (a connection past the BatchNorm, a list of features) is tried: with the layer's
output and the BatchNorm's running mean shifted alike, the network must give what it gave, next to what it gives where
the output alone is shifted. It is tried in float32: what half precision rounds away would hide a connection.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import divisible, evaluating, mapped, samples_of, tensors_in
from rankfold.objectives.answer import named_tensors
from rankfold.observe import after, before, first_of

_FEW = 8  # samples on which it is tried
_SAME = 1e-3  # of the largest output, and of what one shift without the other does to it
_ROUNDED = 32  # times the rounding of the largest output: of sums, where a mean is moved by about its own size

Pair = tuple[str, str]  # a layer and the BatchNorm behind it


class Absorbers:
    """Watches a model run: ``produced`` at every site, ``taken`` at every BatchNorm.

    An output that is changed in place on the way (``nn.ReLU(inplace=True)``) is the same object with another version.
    """

    def __init__(self) -> None:
        self._outputs: dict[int, tuple[weakref.ref[Tensor], int, str]] = {}
        self._calls: Counter[str] = Counter()
        self._pairs: Counter[Pair] = Counter()
        self._modules: dict[str, nn.Module] = {}
        self._given: Any = None  # a few samples as the model was called with them

    def produced(self, site: str, output: Tensor) -> None:
        self._calls[site] += 1
        if not output.is_inference():  # those have no version
            self._outputs[id(output)] = weakref.ref(output), output._version, site

    def taken(self, norm: str, x: Tensor) -> None:
        self._calls[norm] += 1
        if id(x) in self._outputs:
            output, version, site = self._outputs[id(x)]
            if output() is x and x._version == version:
                self._pairs[site, norm] += 1

    @contextmanager
    def watching(self, modules: Iterable[tuple[str, nn.Module]]) -> Iterator[None]:
        """Call ``taken`` at every BatchNorm that has running statistics, within the block. ``modules``: all of a model
        by their names, the model itself first."""
        self._modules = dict(modules)
        norms: dict[nn.Module, Callable[..., None]] = {
            module: self._hook(path)
            for path, module in self._modules.items()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        }
        begun = {self._modules[""]: lambda *called: self._begun(*called[1:])}
        with before(None, norms), before(None, begun, first=True):
            yield

    def _hook(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if getattr(module, "running_mean", None) is not None:
                self.taken(path, first_of(args, kwargs))

        return hook

    def _begun(self, args: tuple, kwargs: dict) -> None:
        if self._given is None:
            self._given = _few(args, kwargs)

    def of(self, site: str) -> str | None:
        """The BatchNorm that took every output of ``site``, and nothing else, and that alone reads it; None if there is
        none. Cost: once for all sites three passes of a few samples, and more where outputs are read elsewhere."""
        return self._alone.get(site)

    @cached_property
    def _alone(self) -> dict[str, str]:
        pairs = [
            (site, norm)
            for (site, norm), count in self._pairs.items()
            if count == self._calls[site] == self._calls[norm]
        ]
        if not pairs or self._given is None:
            return {}
        with suppress(RuntimeError, ValueError, TypeError, IndexError), evaluating(self._modules[""]):
            usual = self._outputs_with(())
            return dict(self._unread(pairs, usual)) if usual else {}  # where nothing is seen, nothing is known
        return {}  # a model of a fixed batch

    def _unread(self, pairs: Sequence[Pair], usual: list[Tensor]) -> list[Pair]:
        """Those of the pairs between which nothing else reads."""
        if _alike(usual, self._outputs_with(pairs), self._outputs_with(pairs, norms=False)):
            return list(pairs)
        half = len(pairs) // 2
        return [each for part in (pairs[:half], pairs[half:]) if half for each in self._unread(part, usual)]

    def _outputs_with(self, pairs: Sequence[Pair], norms: bool = True) -> list[Tensor]:
        """What the model gives where what is handed on between the layers and BatchNorms of ``pairs`` is shifted;
        without ``norms`` the outputs of these layers alone."""
        root = self._modules[""]
        with ExitStack() as stack:
            for number, (site, norm) in enumerate(pairs):
                stack.enter_context(_shifted(self._modules[site], self._modules[norm], number, norms))
            state = (*root.named_parameters(), *root.named_buffers())
            single = {name: _single(tensor) for name, tensor in state if tensor is not _single(tensor)}
            output = torch.func.functional_call(root, single, *mapped(self._given, _single))
        return [tensor.detach().clone() for _, tensor in named_tensors(output) if tensor.is_floating_point()]


def _few(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    size = next((tensor.shape[0] for tensor in tensors_in((args, kwargs)) if tensor.dim()), 0)
    return samples_of((args, kwargs), size, slice(_FEW)) if divisible((args, kwargs), size) else (args, kwargs)


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@contextmanager
def _shifted(layer: nn.Module, norm: nn.Module, seed: int, norms: bool) -> Iterator[None]:
    """The layer's output and, with ``norms``, the running mean, both further by about what that mean and the deviation
    are."""
    mean, deviation = norm.get_buffer("running_mean"), norm.get_buffer("running_var").sqrt()
    drawn = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed)).to(mean)
    wide = _single(mean)
    shift = drawn * (wide.abs() + deviation)

    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        return output + shift.to(output).reshape(-1, *(1,) * (output.dim() - 2))

    norm._buffers["running_mean"] = wide + shift if norms else mean
    try:
        with after(None, {layer: hook}):
            yield
    finally:
        norm._buffers["running_mean"] = mean


def _alike(usual: Sequence[Tensor], both: Sequence[Tensor], alone: Sequence[Tensor]) -> bool:
    """Whether ``both`` shifts leave the outputs as they are, next to what one ``alone`` makes of them."""
    return len(usual) == len(both) == len(alone) and all(map(_same, usual, both, alone))


def _same(usual: Tensor, both: Tensor, alone: Tensor) -> bool:
    if not usual.shape == both.shape == alone.shape or not usual.numel():
        return usual.shape == both.shape
    size, moved, other = (float(x.abs().max()) for x in (usual, both - usual, alone - usual))
    return moved <= max(_ROUNDED * torch.finfo(usual.dtype).eps * size, _SAME * min(size, other))
