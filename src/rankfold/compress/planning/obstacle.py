"""What stands in the way of a budget: the parts of a network that stay as large as they are, named by their kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from torch import nn

from rankfold.compress.planning.profile import Profile
from rankfold.compress.ranks.budget import Budget, Bytes, KeepEnergy, Multiples, Params, Ranks, Resource
from rankfold.compress.ranks.options import Option
from rankfold.costs import CALLED
from rankfold.sites import NOT_SELECTED, Form, Site, packed, stored

_NAMED = 0.05  # of the whole network: smaller parts are not worth a word
_SHOWN = 2  # parts that are named at most
_OWN = "parameter"  # the kind of what lies in no layer
_UNITS = CALLED | {"latency": "time"}


@dataclass
class _Part:
    """Layers that are alike in why they are not smaller."""

    cost: float = 0.0
    names: list[str] = field(default_factory=list)


def obstacle(
    known: Profile,
    choices: Mapping[str, Sequence[Option]],
    axis: int,
    budget: Resource,
    whole: float,
    lacking: float,
    of_sites: bool = False,
    asked: Sequence[Budget] = (),
) -> str:
    """Why ``budget`` cannot be met, and what can be, in words, both in the fractions that were asked for.

    ``choices``: the options of every site, whose costs at ``axis`` the budget bounds. ``whole``: what the whole network
    costs there, or, where the budget is ``of_sites``, the layers in ``choices``, which are those that it is of.
    ``lacking``: by how much the cheapest choice is above the limit. ``asked``: all budgets, this one among them.
    """
    unit, parts = _UNITS.get(budget.kind, budget.kind), defaultdict[tuple[str, str], _Part](_Part)
    outside = () if of_sites else _outside(known, choices, budget, whole)
    once = isinstance(budget, Params | Bytes)
    for name, kind, why, cost in (*_kept(known, choices, axis, asked, once), *outside):
        part = parts[kind, why]
        part.cost += cost
        part.names += [name] if name else []
    shares = sorted(((part.cost / whole, key, part) for key, part in parts.items() if whole), key=lambda item: -item[0])
    large = [(why, _said(share, unit, kind, why, part)) for share, (kind, why), part in shares if share >= _NAMED]
    said, left = [words for _, words in large[:_SHOWN]], any(why == NOT_SELECTED for why, _ in large)
    floor = budget.keep + lacking / whole if whole else 1.0
    least = sum(min(option.costs[axis] for option in group) for group in choices.values() if _smaller(group, axis))
    if not said or least > 0.5 * floor * whole:
        share = _percent(least / whole if whole else 1.0)
        those = f"they take {share} of their" if of_sites else f"the layers that can be factored take {share} of the"
        said.append(f"{those} {unit} even at the smallest ranks that are allowed")
    smallest = ceil(1e4 * floor) / 1e4  # four digits, never less
    advice = ""
    if smallest < 1:
        advice = f"{replace(budget, keep=smallest).text} is the smallest that can be reached: ask for that"
    more = ("or " if advice else "") + "let more layers be factored" if left else ""
    return "; ".join(filter(None, ("; ".join(said), ", ".join(filter(None, (advice, more))))))


def _smaller(group: Sequence[Option], axis: int) -> bool:
    """Whether some option costs less than the first: the layer as it is or, where its rank was given, the only one."""
    return any(option.costs[axis] < group[0].costs[axis] for option in group)


def _kept(
    known: Profile, choices: Mapping[str, Sequence[Option]], axis: int, asked: Sequence[Budget], once: bool
) -> Iterator[tuple[str, str, str, float]]:
    """(name, kind, why, cost) of the sites that no option makes cheaper; ``once``: of those that are tied the first."""
    told = set[str]()  # layers whose weight is that of one before
    for site in known.sites:
        group = choices.get(site.name, ())
        if not group or _smaller(group, axis) or (once and site.name in told):
            continue
        told |= {name.rpartition(".")[0] for name in site.tied_to}
        yield site.name, site.kind, _reason(known, site, group, asked), group[0].costs[axis]


def _reason(known: Profile, site: Site, group: Sequence[Option], asked: Sequence[Budget]) -> str:
    """Why no option of a site is smaller."""
    ranks = next((each.ranks for each in asked if isinstance(each, Ranks)), None)
    if ranks is not None and site.name in ranks:
        return "its rank was given"
    why = site.note or known.unsolved.get(site.name, "")
    if why:
        return why
    if site.forms == {Form.KEEP}:
        return "never factored"
    if not known.candidates.get(site.name):
        return f"method {known.method.name!r} cannot factor it"
    if ranks is not None:
        return "kept, as no rank was given"
    if len(group) == 1:
        beside = " and ".join(each.describe() for each in asked if isinstance(each, KeepEnergy | Multiples))
        return f"{beside or 'the other budgets'} allow no smaller rank: ask for less of that"
    return "no rank that is allowed makes it smaller"


def _outside(
    known: Profile, choices: Mapping[str, Sequence[Option]], budget: Resource, whole: float
) -> Iterator[tuple[str, str, str, float]]:
    """The same of what is no site: by parameter where parameters are counted, else in one sum."""
    # not the first option of each: where its rank was given that is a smaller one than the layer as it is
    rest = whole - sum(known.counter.kept((budget,), known.sites[name])[0] for name in choices)
    if isinstance(budget, Params | Bytes) and known.model is not None:
        parameters, reasons = dict(known.model.named_parameters(remove_duplicate=False)), dict[str, str]()
        seen = {id(parameters.get(name)) for site in known.sites for name in site.tied_to}
        left = [(name, why) for name, why in known.sites.left_out if name in parameters]
        for name, why in sorted(left, key=lambda item: -parameters[item[0]].numel()):
            size, owner = parameters[name], name.rpartition(".")[0]
            if id(size) in seen:  # of another part as well
                continue
            seen.add(id(size))
            cost = size.numel() * (size.element_size() if isinstance(budget, Bytes) else 1)
            rest -= cost
            if not owner:  # of the model itself, which is no layer
                yield name, _OWN, why, cost
                continue
            # a bias is in the way for the reason of its matrix
            yield owner, type(known.model.get_submodule(owner)).__name__, reasons.setdefault(owner, why), cost
        for name, why in known.sites.left_out:
            if name not in parameters:  # a quantised layer, whose weights are no parameters
                layer = known.model.get_submodule(name)
                cost = _held([(name, layer)], budget)
                rest -= cost
                yield name, type(layer).__name__, why, cost
    if rest > 0:
        yield "", "", "outside of the layers that can be factored" + _example(known), rest


def _held(layers: Sequence[tuple[str, nn.Module]], budget: Resource) -> int:
    """What quantised layers take, as ``costs.storage`` counts it."""
    hidden = packed(layers).values()
    if isinstance(budget, Bytes):
        return sum(part.nbytes for tensor in hidden for part in stored(tensor))
    return sum(tensor.numel() for tensor in hidden if tensor.dim())


def _example(known: Profile) -> str:
    """The largest part that is no site, and why."""
    if known.model is None:
        return ""
    parameters, sizes = dict(known.model.named_parameters(remove_duplicate=False)), dict[tuple[str, str], int]()
    for name, why in known.sites.left_out:
        if name not in parameters:  # a quantised layer, whose weights are no parameters
            sizes[name, why] = _held([(name, known.model.get_submodule(name))], Params(1.0))
        elif parameters[name].dim() > 1 and why != NOT_SELECTED:
            sizes[name.rpartition(".")[0] or name, why] = parameters[name].numel()
    if not sizes:
        return ""
    largest, why = max(sizes, key=lambda part: sizes[part])
    kind = _OWN if largest in parameters else type(known.model.get_submodule(largest)).__name__
    return f", such as {largest} ({kind}: {why.removeprefix(f'{kind}: ')})"


def _said(share: float, unit: str, kind: str, why: str, part: _Part) -> str:
    names = list(dict.fromkeys(part.names))
    if not kind:
        return f"{_percent(share)} of the {unit} are {why}"
    if kind == _OWN:
        some = f"a {_OWN} of the model itself" if len(names) == 1 else f"{len(names)} {_OWN}s of the model itself"
        return f"{_percent(share)} of the {unit} are in {some} ({names[0]}{', …' if len(names) > 1 else ''}): {why}"
    what = f"{_article(kind)} {kind} ({names[0]})" if len(names) == 1 else f"{len(names)} × {kind} ({names[0]}, …)"
    return f"{_percent(share)} of the {unit} are in {what}: {why.removeprefix(f'{kind}: ')}"


def _article(kind: str) -> str:
    letters = kind[:1].upper() in "AEIO" or (kind[:2].isupper() and kind[:1] in "AEFHILMNORSX")
    return "an" if letters else "a"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %"
