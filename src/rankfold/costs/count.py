"""What a model costs: parameters, FLOPs, bytes; of the whole, or of one site in one form."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import UninitializedParameter

from rankfold.batches import as_found, copied, evaluating, explained, place_of, tensors_in, unmasked
from rankfold.costs.cost import Cost
from rankfold.costs.counter import Counter
from rankfold.costs.example import Example
from rankfold.costs.reads import Calls, Read, WeightReads
from rankfold.layers.rounded import WholeNumbers
from rankfold.linalg.brief import brief
from rankfold.sites import Call, Form, Site, SiteList, held_fast, opened, packed, stored, unwrap

# parameters of a model, and elements of its input, with which it is run for real to count its FLOPs
_REALLY = 20_000_000, 1_000_000


class UncountedWarning(UserWarning):
    """Operations whose FLOPs are not known ran in the model: its count is too small by theirs."""


@dataclass(frozen=True)
class Traced:
    """What one forward told. ``flops``: of one sample. ``calls``: of every site, with their shapes.

    ``calls`` hold reads of a weight too that a factored layer answers at the thin cost, and a call once more for every
    gradient that the forward itself takes of it. ``others``: sites whose weight is read in another way, with the reason
    for keeping them. ``unknown``: operations that nobody can count. ``read``: what each call of a site was given; equal
    for one tensor, and for views of the same numbers in the same shape.
    """

    flops: int
    calls: Mapping[str, Sequence[Call]]
    others: Mapping[str, str]
    unknown: tuple[str, ...]
    read: Mapping[str, Sequence[Read]] = field(default_factory=dict)

    __repr__ = brief

    def kept(self, sites: SiteList) -> SiteList:
        """The sites, of which those in ``others`` can only be kept."""
        items = [
            site if why is None else replace(site, forms=frozenset({Form.KEEP}), note=why)
            for site, why in ((site, self.others.get(site.name)) for site in sites)
        ]
        return replace(sites, items=tuple(items))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the count must know."""
        return (uncounted(self.unknown),) if self.unknown else ()


def _count(model: nn.Module, example: Example, sites: Sequence[Site]) -> Traced:
    layers = [(site, model.get_submodule(site.name)) for site in sites]
    counter = Counter()
    reads = WeightReads(layers, counter)
    with (
        Calls(layers, reads) as calls,
        counter,
        sdpa_kernel(SDPBackend.MATH),
        reads,
        explained(model.named_modules),
    ):
        model(*example.args, **example.kwargs)
    seen = {s.name: [*calls.seen.get(s.name, ()), *reads.calls.get(s.name, ())] for s in sites}
    for name, call in counter.again():
        seen[name].append(call)
    held = held_fast(model)
    for site, layer in layers:
        where = held.get(id(layer)) or (held.get(id(site.layer.weight(layer))) if site.name in reads.calls else None)
        if where is not None and seen[site.name]:
            reads.others.setdefault(site.name, f"{where} holds it for itself, and would go on with the dense layer")
    seen = {name: found for name, found in seen.items() if found}
    return Traced(counter.total, seen, dict(reads.others), tuple(sorted(counter.unknown)), dict(calls.read))


def _ghost(model: nn.Module) -> nn.Module:
    """A copy on the meta device; no value is copied on the way."""
    memo: dict[int, Any] = {id(b): b.detach().to("meta") for b in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    return copied(model, memo).to("meta")


def measure(model: nn.Module, example: Any, sites: SiteList | None = None) -> Traced:
    """FLOPs of the whole model for one sample, and how the weight of every site is used, in one forward.

    A small model runs once for real. A large one runs on a copy on the meta device, without computing anything, for
    which torch imports its compiler (two seconds, 200 MB); where a model's own code needs values (control flow that
    depends on data) it runs for real too. Sites that are never used are missing from ``calls``.
    """
    model, example = unwrap(model), Example.of(example)
    found, failed = tuple(sites or ()), None
    for way in (_really, _on_meta) if _small(model, example) else (_on_meta, _really):
        try:
            traced = way(model, example, found)
            return replace(traced, flops=traced.flops // example.samples)
        except Exception as error:  # a stranger's forward may fail without values in any way; its own fault fails again
            if (place := place_of(model.modules())) is not None and place.is_meta:
                bare = replace(example, kwargs=unmasked(example.kwargs))
                if bare.kwargs.keys() == example.kwargs.keys():
                    raise
                return measure(model, bare, sites)
            failed = error if way is _really else failed
    assert failed is not None
    raise failed


def _small(model: nn.Module, example: Example) -> bool:
    """Whether one forward takes less than the import of the compiler, and every weight is there to compute with."""
    if any(isinstance(p, UninitializedParameter) or p.is_meta for p in model.parameters()):
        return False
    weights = sum(p.numel() for p in model.parameters())
    inputs = sum(x.numel() for x in tensors_in((example.args, example.kwargs)))
    return weights <= _REALLY[0] and inputs <= _REALLY[1]


def _really(model: nn.Module, example: Example, sites: Sequence[Site]) -> Traced:
    with evaluating(model), as_found(model), opened(model):
        return _count(model, example.fitting(model.modules()), sites)


def _on_meta(model: nn.Module, example: Example, sites: Sequence[Site]) -> Traced:
    ghost = _ghost(model)
    with evaluating(ghost), opened(ghost), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _count(ghost, example.fitting(ghost.modules()).to("meta"), sites)


def storage(model: nn.Module) -> tuple[int, int]:
    """(parameters, bytes of parameters and buffers) of a model; shared tensors count once.

    What quantised layers keep out of both counts too, and a weight takes the bytes of the tensors that hold it. Weights
    that are whole numbers in buffers are parameters here, their scales are not.

    Raises ``ValueError`` for a parameter that has no shape yet.
    """
    model = unwrap(model)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"{name} has no shape yet, as a lazy module before its first call: run the model once")
    hidden = packed(model.named_modules()).values()
    whole = sum(each.numbers for each in model.modules() if isinstance(each, WholeNumbers))
    params = whole + sum(p.numel() for p in model.parameters()) + sum(x.numel() for x in hidden if x.dim())
    held = (part for tensor in (*model.parameters(), *model.buffers(), *hidden) for part in stored(tensor))
    return params, sum(part.numel() * part.element_size() for part in held)


def trace(model: nn.Module, example: Any, sites: SiteList | None = None) -> tuple[int, Mapping[str, Sequence[Call]]]:
    """FLOPs of the whole model for one sample, and the calls of every site; see ``measure``."""
    traced = measure(model, example, sites)
    return traced.flops, traced.calls


def model_cost(model: nn.Module, example: Any) -> Cost:
    """Parameters, FLOPs for one sample, and bytes of ``model``.

    Warns (``UncountedWarning``) of operations whose FLOPs nobody knows, which count 0: those of other libraries, and
    decompositions and transforms of torch.

    Args:
        model: any module.
        example: one input with its batch axis, or a tuple or mapping of arguments.

    Returns:
        A ``Cost``.

    Raises:
        ValueError: an input that the model cannot take.

    Cost: one forward pass of one sample.

    Example:
        >>> rf.model_cost(nn.Sequential(nn.Linear(10, 20), nn.ReLU()), torch.zeros(1, 10)).flops
        400
    """
    params, size = storage(model)
    traced = measure(model, example)
    if traced.unknown:
        warnings.warn(uncounted(traced.unknown), UncountedWarning, stacklevel=2)
    return Cost(params, traced.flops, size)


def uncounted(unknown: Sequence[str]) -> str:
    """One sentence naming operations without a count."""
    return (
        f"no formula is known for the FLOPs of {', '.join(unknown)}, which count 0 here: the model costs more than "
        "is told"
    )


def check(said: Cost, model: nn.Module, example: Any) -> str:
    """Whether ``model`` costs what a plan says; an empty text, or one sentence naming every number that differs.

    ``said``: ``plan.after``. ``example``: the input that the plan was counted on, as in ``Example.of``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncountedWarning)
        found = model_cost(model, example)
    differing = [
        f"{getattr(found, name):,} {unit} instead of the planned {getattr(said, name):,}"
        for name, unit in (("params", "parameters"), ("flops", "FLOPs"), ("bytes", "bytes"))
        if getattr(found, name) != getattr(said, name)
    ]
    return f"the compressed model takes {' and '.join(differing)}" if differing else ""


def site_cost(
    site: Site, form: Form, rank: int, calls: Sequence[Call], samples: int, element_size: int, bias: bool
) -> Cost:
    """What one site costs in one form at one rank; ``bias`` says whether the layer carries one in that form."""
    params = site.layer.params(form, rank, bias)
    size = form.bytes(site.layer, rank, bias, element_size)
    return Cost(params, site.layer.flops(form, rank, calls) // samples, size)
