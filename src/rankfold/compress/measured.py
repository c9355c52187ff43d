"""What data say of every site, as values and as a file: second moments, one small matrix for each site, and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NotRequired

import torch
from torch import Tensor
from typing_extensions import TypedDict

from rankfold.compress.spread import Spread
from rankfold.forms import Side
from rankfold.linalg import Moments
from rankfold.linalg.brief import brief
from rankfold.run.disk.container import Kind
from rankfold.run.disk.files import write_atomically


@dataclass(frozen=True)
class SiteStatistics:
    """What the data says of one site.

    ``moments`` at the layer's ``side``; ``absorber``: the BatchNorm that takes this site's output with nothing in
    between; ``metric``: how much the model's outputs move when this site's outputs do, (m, m), its diagonal (m,), or
    with a leading group axis; of a linear layer with m > n it may be (n, n): WᵀDW, all that is needed of it there.
    ``coarse``: another such metric, which ranks layers better where much is lost. ``free``: the new layer may carry a
    bias of its own, so that moments are taken about the mean. ``tokens``: both metrics are of tokens. ``parts``: the
    moments of the samples to fit to, and of those that were held back so that a forecast can be checked on them; not
    saved. ``idle``: experts that were given no token. ``side``: where moments were taken, if not where the layer says.
    """

    moments: Moments
    absorber: str | None = None
    metric: Tensor | None = None
    coarse: Tensor | None = None
    free: bool = True
    tokens: bool = False
    parts: tuple[Moments, Moments] | None = field(default=None, compare=False, repr=False)
    idle: tuple[int, ...] = field(default=(), compare=False)
    side: Side | None = None

    @property
    def covariance(self) -> Tensor:
        """Second moment of one row, (d, d) or (groups, d, d), about the mean where a bias is free."""
        total = self.moments.covariance_sum if self.free else self.moments.gram
        return total / max(self.moments.count, 1)

    @property
    def fitted(self) -> SiteStatistics | None:
        """The same of the samples to fit to alone."""
        return None if self.parts is None else replace(self, moments=self.parts[0], parts=None)

    @property
    def held_out(self) -> Tensor | None:
        """Second moment of one held-out row about the mean of the others: what a bias misses there counts too. About
        zero where no bias is free."""
        if self.parts is None:
            return None
        fitted, held = self.parts
        if not self.free:
            return held.gram / held.count
        moved = held.mean - fitted.mean
        return held.covariance_sum / held.count + moved.unsqueeze(-1) * moved.unsqueeze(-2)


@dataclass(frozen=True)
class Statistics:
    """Statistics by site name; sites that the data never reached are listed instead.

    ``model``: fingerprint of the model they were taken of ("" if that is not known). ``nats``: squared errors in the
    metric are nats of KL divergence per token. ``spread``: of the model's answers, where they can be compared; not
    saved.
    """

    sites: Mapping[str, SiteStatistics]
    samples: int
    unreached: tuple[str, ...] = ()
    model: str = ""
    nats: bool = False
    spread: Spread | None = field(default=None, compare=False)

    __repr__ = brief

    @property
    def kept(self) -> Statistics:
        """Without the parts that only forecasts need."""
        return self._with(lambda known: replace(known, parts=None))

    @property
    def decided(self) -> Statistics:
        """Without the metric that was not taken."""
        return self._with(lambda known: replace(known, coarse=None))

    @property
    def coarser(self) -> Statistics | None:
        """With the other metric in place of the one in nats; None where there is none."""
        if not any(known.coarse is not None for known in self.sites.values()):
            return None
        return replace(self._with(lambda known: replace(known, metric=known.coarse, coarse=None)), nats=False)

    def _with(self, change: Callable[[SiteStatistics], SiteStatistics]) -> Statistics:
        return replace(self, sites={name: change(known) for name, known in self.sites.items()})

    def to_bytes(self, parts: bool = False) -> bytes:
        """One safetensors file; ``load`` is the inverse. ``parts``: also what only forecasts need."""
        tensors, absorbers = {}, {}
        bound = [name for name, known in self.sites.items() if not known.free]
        for name, known in sorted(self.sites.items()):  # whatever the order in which they were read
            for key, value in known.moments.state_dict().items():
                tensors[f"{name}|{key}"] = torch.as_tensor(value)
            if known.metric is not None:
                tensors[f"{name}|metric"] = known.metric
            if known.coarse is not None:
                tensors[f"{name}|coarse"] = known.coarse
            if known.absorber is not None:
                absorbers[name] = known.absorber
            for place, moments in zip(_PARTS, known.parts or () if parts else (), strict=False):
                tensors |= {f"{name}|{place} {k}": torch.as_tensor(v) for k, v in moments.state_dict().items()}
        note = _Note(samples=self.samples, unreached=list(self.unreached), absorbers=absorbers, model=self.model)
        tokens = any(known.tokens for known in self.sites.values())
        if bound:  # an embedding of any network among them
            note["bound"] = sorted(bound)
        if tokens:
            note |= {"nats": self.nats, "tokens": tokens}
        sides = {name: known.side for name, known in sorted(self.sites.items()) if known.side is not None}
        if sides:
            note["sides"] = sides
        return _FILE.write(tensors, note)

    def save(self, path: str | Path) -> None:
        write_atomically(Path(path), self.to_bytes())

    @classmethod
    def load(cls, path: str | Path | bytes, name: str = "") -> Statistics:
        """What ``save`` wrote, from its file or its bytes; ``ValueError`` in one line if that is something else."""
        try:
            return _FILE.read(path, _built, name)
        except OSError as error:
            raise ValueError(
                f"{name or path!s}: this cannot be read as a statistics file of rankfold ({error.strerror})"
            ) from None


_PARTS = ("fitted", "held")  # before the names of the moments of a part of the samples


class _Note(TypedDict):
    samples: int
    unreached: list[str]
    absorbers: dict[str, str]
    model: NotRequired[str]
    bound: NotRequired[list[str]]
    nats: NotRequired[bool]
    tokens: NotRequired[bool]
    sides: NotRequired[dict[str, Side]]


_FILE = Kind[_Note](
    "rankfold.statistics",
    _Note,
    "a statistics file of rankfold",
    "make the plan again, with data",
)


def _built(tensors: Mapping[str, Tensor], note: _Note) -> Statistics:
    states: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        name, _, key = full.rpartition("|")
        if key in ("metric", "coarse") and not value.is_floating_point():
            raise ValueError(f"{full} is {value.dtype}, and should be numbers with a fraction")
        states.setdefault(name, {})[key] = value
    bound = frozenset(note.get("bound", ()))
    found = {
        name: SiteStatistics(
            Moments.from_state_dict(state), note["absorbers"].get(name), state.get("metric"), state.get("coarse"),
            name not in bound, note.get("tokens", False), _parts_in(state), side=note.get("sides", {}).get(name),
        )
        for name, state in states.items()
    }  # fmt: skip
    unreached, nats = tuple(note["unreached"]), note.get("nats", False)
    return Statistics(found, note["samples"], unreached, note.get("model", ""), nats)


def _parts_in(state: Mapping[str, Tensor]) -> tuple[Moments, Moments] | None:
    if not any(key.startswith(_PARTS) for key in state):
        return None
    fitted, held = (
        Moments.from_state_dict({key.removeprefix(f"{place} "): value for key, value in state.items()
                                 if key.startswith(f"{place} ")})
        for place in _PARTS
    )  # fmt: skip
    return fitted, held
