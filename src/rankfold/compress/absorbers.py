"""Which BatchNorm takes a layer's output with nothing in between, so that it can carry a change of the layer's bias."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from rankfold.observe import before, first_of


class Absorbers:
    """Watches a model run: ``produced`` at every site, ``taken`` at every BatchNorm.

    An output that is changed in place on the way (``nn.ReLU(inplace=True)``) is the same object with another version.
    """

    def __init__(self) -> None:
        self._outputs: dict[int, tuple[weakref.ref[Tensor], int, str]] = {}
        self._calls: Counter[str] = Counter()
        self._pairs: Counter[tuple[str, str]] = Counter()

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
        """Call ``taken`` at every BatchNorm among named ``modules`` that has running statistics, within the block."""
        norms: dict[nn.Module, Callable[..., None]] = {
            module: self._hook(path) for path, module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)
        }
        with before(None, norms):
            yield

    def _hook(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if getattr(module, "running_mean", None) is not None:
                self.taken(path, first_of(args, kwargs))

        return hook

    def of(self, site: str) -> str | None:
        """The BatchNorm that took every output of ``site``, and nothing else; None if there is none."""
        for (source, norm), count in self._pairs.items():
            if source == site and count == self._calls[site] == self._calls[norm]:
                return norm
        return None
