"""A network whose weights stay on the disk: a part of them is read for as long as that part runs.

The network itself lies on the meta device, and is cut into the spans of its chain (``rankfold.observe.chain``). What a
span needs is what belongs to the modules that are called in it: known beforehand, so that nothing is read twice while
the span runs, and nothing is there that does not run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from rankfold.batches import copied, forward, unmasked
from rankfold.linalg.brief import brief
from rankfold.observe.calls import called_names
from rankfold.observe.chain import Chain, Span, find_chain

T = TypeVar("T")
GROUPS = 4  # in one span: as many as a block of a transformer has
PAGES = "_rankfold_pages"  # the attribute by which a network has them


class Sink(Protocol):
    """Where what has become of a span goes, so that it need not stay in memory."""

    def put(self, number: int, tensors: Mapping[str, Tensor], note: Any) -> None:
        """Keep the new tensors of span ``number`` with a ``note``, plain values, on the disk."""
        ...

    def ready(self, number: int) -> tuple[Mapping[str, Tensor], Any] | None:
        """What was put there before, by an earlier process perhaps; None for nothing, or for what is damaged."""
        ...


class PagesError(ValueError):
    """A network that cannot be read a part at a time; one line with the remedy."""


@dataclass(eq=False)
class Pages:
    """``names``: of the parameters of ``network``, which lies on the meta device, each with the name by which ``read``
    gives its values. ``earlier``: names of those that had others before something was taken apart, with these.
    ``buffers``: the values of its buffers by name, which are small and stay. ``sink``: see ``Sink``.
    ``watched``: batches that go along when the network is fitted; ``scores``: what was seen of them then."""

    network: nn.Module
    names: Mapping[str, str]
    read: Callable[[str], Tensor]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    sink: Sink | None = None
    watched: Sequence[Any] = ()
    scores: Any = None
    chain: Chain = field(default_factory=lambda: Chain((), ()))
    parts: list[frozenset[str]] = field(default_factory=list)  # by span: parameters that it needs
    held: list[tuple[nn.Module, str, nn.Parameter]] = field(default_factory=list)
    earlier: Mapping[str, str] = field(default_factory=dict)

    __repr__ = brief

    def __post_init__(self) -> None:
        vars(self.network)[PAGES] = self

    def __deepcopy__(self, memo: Any) -> None:
        """A copy of the network has none: its weights are read together with those of the original."""

    def value(self, name: str, tensor: Tensor) -> Tensor:
        """What the parameter or buffer of this name holds, where ``tensor`` stands in its place."""
        if name in self.names:
            return self.read(self.names[name]).to(tensor.dtype)
        return self.buffers.get(name, tensor)

    def cut(self, batch: Any, sites: Collection[str]) -> None:
        """Find the spans, between ``sites``, in a pass without values. ``batch``: few samples.

        Raises ``PagesError`` for a network whose forward needs values, and for one that cannot be cut.
        """
        self.chain = self._without_values(batch, lambda ghost, given: find_chain(ghost, given, sites, GROUPS))
        kind = type(self.network).__name__
        if not self.chain.spans:
            raise PagesError(
                f"{kind}: the data reach none of the layers that may be factored: give other data, or choose other "
                "layers"
            )
        self.parts = _needs(self.network, self.chain, self.names)
        for name, value in self.buffers.items():
            parent, _, own = name.rpartition(".")
            self.network.get_submodule(parent)._buffers[own] = value

    def answer(self, batch: Any) -> Any:
        """What the network gives for a batch, without values; to be asked before it is cut. Raises ``PagesError``."""
        return self._without_values(batch, forward)

    def _without_values(self, batch: Any, run: Callable[[nn.Module, Any], T]) -> T:
        """Masks are looked into by some models, and decide no call of a module: without them it is tried again."""
        ghost, bare = copied(self.network), unmasked(batch)
        for given in (batch, bare):
            try:
                return run(ghost, given)
            except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
                if given is bare:
                    raise PagesError(
                        f"{type(self.network).__name__} needs its weights before the blocks can be told apart "
                        f"({(str(error).splitlines() or [''])[0][:120]}): compress it as a whole, without a "
                        "bound of memory"
                    ) from error
        raise AssertionError

    def turn(self, number: int, *others: nn.Module) -> None:
        """Read what span ``number`` needs, in ``network`` and in ``others``, where weights of these names are still
        missing; what another span needed is let go."""
        self.let_go()
        ready: dict[Any, Tensor] = {}
        for name in sorted(self.parts[number]):
            path, _, own = name.rpartition(".")
            for network in (self.network, *others):
                try:
                    module = network.get_submodule(path)
                except AttributeError:  # taken apart
                    continue
                old = module._parameters.get(own)
                if old is None or not old.is_meta:
                    continue
                key = self.names[name], old.dtype
                if key not in ready:
                    ready[key] = self.value(name, old)
                module._parameters[own] = nn.Parameter(ready[key], old.requires_grad)
                self.held.append((module, own, old))

    def let_go(self) -> None:
        """Nothing stays in memory."""
        for module, own, old in self.held:
            if module._parameters.get(own) is not None:
                module._parameters[own] = old
        self.held.clear()

    def sizes(self) -> list[int]:
        """Bytes of each span."""
        known = dict(self.network.named_parameters(remove_duplicate=False))
        return [
            sum({self.names[name]: known[name].numel() * known[name].element_size() for name in part}.values())
            for part in self.parts
        ]


def bytes_in(chain: Chain) -> list[int]:
    """By span: bytes of all that the modules called in it give, for the samples that the chain was found by."""
    return [sum(chain.calls[n].size for n in _inside(chain, number)) for number in range(len(chain.spans))]


def _times(chain: Chain) -> list[tuple[float, float]]:
    """When each span begins and ends, in moments of the forward pass."""
    ends = [chain.calls[span.end.call].end if span.end is not None else float("inf") for span in chain.spans]
    return list(zip([0.0, *ends[:-1]], ends, strict=True))


def _inside(chain: Chain, number: int) -> Iterator[int]:
    begin, end = _times(chain)[number]
    return (n for n, call in enumerate(chain.calls) if call.end > begin and call.begin < end)


def _needs(network: nn.Module, chain: Chain, names: Mapping[str, str]) -> list[frozenset[str]]:
    """By span, the parameters that belong to modules called in it, or to parts of these that are not called."""
    sites = frozenset(call.name for call in chain.calls if call.site)
    called = set(called_names(network, sites).values())
    when = [{chain.calls[n].name for n in _inside(chain, number)} for number in range(len(chain.spans))]
    ever: set[str] = set().union(*when)
    found: list[set[str]] = [set() for _ in chain.spans]
    for name in names:
        owner = name.rpartition(".")[0]
        while owner and (owner not in called or owner not in ever):
            owner = owner.rpartition(".")[0]
        if not owner and "." in name:  # never called
            continue
        for number, here in enumerate(when):
            if not owner or owner in here:
                found[number].add(name)
    return [frozenset(part) for part in found]


def spans_of(chain: Chain, changed: Collection[str]) -> tuple[Span, ...]:
    """The spans of ``chain`` with those of their sites that are ``changed``."""
    kept = [[tuple(n for n in group if n in changed) for group in span.groups] for span in chain.spans]
    return tuple(replace(s, groups=tuple(filter(None, groups))) for s, groups in zip(chain.spans, kept, strict=True))
