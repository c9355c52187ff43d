"""Modules whose tuned tensors go into an adapter as they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from rankfold.adapt.extraction.compare import LeftOut, moved_by, sized
from rankfold.adapt.extraction.named import Named
from rankfold.adapt.places import Places
from rankfold.sites import unwrap
from rankfold.sites.wish import fits

_MUCH = 0.1  # of the squared change: that much outside the adapter is said
_PARTS = ("base_layer", "lora_dropout", "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")


class Kept(NamedTuple):
    """``tensors`` by name; ``modules``: those that hold them, as PEFT is told; ``places``: what is left to adapt."""

    tensors: dict[str, Tensor]
    modules: tuple[str, ...]
    places: Places


def kept_whole(model: nn.Module, patterns: Sequence[str], found: Places, tuned: Named) -> Kept:
    """The tuned tensors of every module that a glob of ``patterns`` fits, those of modules inside it and buffers
    (statistics of a norm) among them: PEFT copies such a module and reads all that is in its state.

    A module that is tied to one of them comes along: PEFT unties what is stored whole, and the other would keep the
    base's tensor. Modules without parameters of their own are passed over. Raises ``ValueError`` for a pattern that
    fits none, for a module whose name ends another's, which PEFT could not tell apart, and for one of which ``tuned``
    lacks a tensor.
    """
    modules, owned = _owned(model)
    chosen: list[str] = []
    for pattern in patterns:
        matched = [name for name in sorted(owned) if fits(name, pattern)]
        if not matched:
            raise ValueError(f"whole={pattern!r} (--whole) matches {_matched(pattern, owned)}")
        chosen += [name for name in matched if name not in chosen]
    chosen = _outermost(_with_tied(chosen, owned))
    for name in chosen:
        other = _taken_too(name, modules)
        if other is not None:
            raise ValueError(
                f"{name} cannot be stored whole (--whole): PEFT finds modules by the end of their names and would "
                f"take {other} too"
            )
    state = {key: value for key, value in unwrap(model).state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    same: dict[int, list[str]] = defaultdict(list)
    for key, value in state.items():
        same[id(value)].append(key)
    wanted = {key: same[id(value)] for key, value in state.items() if _inside(key, chosen)}
    # of tied names files hold one
    held = {name: next((each for each in (name, *names) if each in tuned), None) for name, names in wanted.items()}
    read, tensors = dict[str, Tensor](), dict[str, Tensor]()
    for name, place in held.items():
        if place is None:
            raise ValueError(
                f"{tuned.title} has no tensor {name}, and PEFT reads every tensor of a module that is stored whole "
                "(--whole): store other modules whole, or give a checkpoint that has it"
            )
        if place not in read:
            read[place] = (tuned.weight if isinstance(state[name], nn.Parameter) else tuned.finite)(place)
        tensors[name] = read[place]
    left = tuple((name, why) for name, why in found.left_out if name not in tensors)
    sites = tuple(site for site in found.sites if not _inside(site.parameter, chosen))
    return Kept(tensors, tuple(chosen), Places(sites, left))


def outside(model: nn.Module, left: Sequence[LeftOut], moved: float) -> tuple[str, ...]:
    """Where much of the squared change ``moved`` is not in the adapter: what holds most of that, and what to give."""
    apart = sum(item.moved for item in left)
    if apart <= _MUCH * moved:
        return ()
    largest = max(left, key=lambda item: item.moved)
    module = largest.name.rpartition(".")[0]
    modules, owned = _owned(model)
    said = f"much of the change is not in the adapter, {apart / moved:.0%} of its square: {largest.name} alone has "
    said += f"{largest.moved / moved:.0%}"
    if module in owned and not any(_taken_too(name, modules) for name in _with_tied([module], owned)):
        said += f"; whole=[{module!r}] (--whole {module}) stores that module whole"
    return (said,)


def moved_whole(tensors: Mapping[str, Tensor], base: Named) -> float:
    """The squared change of what is stored whole, as far as the base has it; of tied names once."""
    once = {tensors[name].data_ptr(): name for name in tensors if name in base}.values()
    weights = [name for name in once if tensors[name].is_floating_point()]  # not what counts batches
    return sum(moved_by(base.finite(name), tensors[name]) for name in weights)


def resizing(tensors: Mapping[str, Tensor], base: Named) -> tuple[str, ...]:
    """What the base needs before an adapter is loaded that stores tensors of another size whole."""
    other = [
        f"{name} as {sized(tensors[name].shape)} (here {sized(base.shape(name))})"
        for name in tensors
        if name in base and base.shape(name) != tensors[name].shape
    ]
    if not other:
        return ()
    return (
        f"the base must be resized before the adapter is loaded (resize_token_embeddings of transformers): {other[0]}"
        f"{f' and {len(other) - 1} more' if len(other) > 1 else ''}",
    )


def _owned(model: nn.Module) -> tuple[list[str], dict[str, dict[str, nn.Parameter]]]:
    """The names of all modules, and of those that have parameters of their own these. A module that hangs in several
    places has a name for each, as PEFT replaces it in each; one inside a module that hangs in several has one."""
    root = unwrap(model)
    modules: dict[str, nn.Module] = {}
    seen: set[tuple[int, str]] = set()
    for name, module in root.named_modules(remove_duplicate=False):
        above, _, last = name.rpartition(".")
        place = id(root.get_submodule(above)), last
        if place not in seen:
            modules[name] = module
        seen.add(place)
    owned = {name: dict(module.named_parameters(recurse=False)) for name, module in modules.items() if name}
    return list(modules), {name: parameters for name, parameters in owned.items() if parameters}


def _inside(name: str, modules: Iterable[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _outermost(chosen: Sequence[str]) -> list[str]:
    """Without those inside another one, which holds them."""
    return [name for name in chosen if not _inside(name, chosen)]


def _matched(pattern: str, owned: Mapping[str, Iterable[str]]) -> str:
    """What a pattern that fits no module fits, and what to give."""
    named = [name for name, keys in owned.items() if any(fits(f"{name}.{key}", pattern) for key in keys)]
    if not named:
        return "no module that has parameters of its own: give a glob of module names, such as '*norm'"
    more = f" (and {len(named) - 3} more)" if len(named) > 3 else ""
    return f"parameters, and modules are stored whole, with all their parameters: give {', '.join(named[:3])}{more}"


def _with_tied(chosen: Sequence[str], owned: Mapping[str, Mapping[str, nn.Parameter]]) -> list[str]:
    """And the modules that share a parameter with one of them, unless one lies inside the other: copied together, they
    stay tied."""
    shared = {id(value) for name in chosen for value in owned[name].values()}
    tied = [
        name
        for name, parameters in owned.items()
        if name not in chosen
        and any(id(value) in shared for value in parameters.values())
        and not any(f"{one}.".startswith(f"{name}.") or f"{name}.".startswith(f"{one}.") for one in chosen)
    ]
    return [*chosen, *tied]


def _taken_too(name: str, modules: Iterable[str]) -> str | None:
    """Another module, or part of PEFT's, that PEFT would take for the one of this name: it looks at the ends of names,
    its own parts among them, without regard to dots."""
    return next((key for key in (*modules, *_PARTS) if key != name and key.endswith(name)), None)
