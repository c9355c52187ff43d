"""Modules whose tuned tensors go into an adapter as they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from rankfold.adapt.extraction.compare import LeftOut, keys_of, read_weight
from rankfold.adapt.places import Places
from rankfold.run.disk.tensors import Checkpoint
from rankfold.sites import unwrap
from rankfold.sites.wish import fits

_MUCH = 0.1  # of the squared change: that much outside the adapter is said
_PARTS = ("base_layer", "lora_dropout", "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")


def kept_whole(
    model: nn.Module, patterns: Sequence[str], found: Places, tuned: Checkpoint
) -> tuple[dict[str, Tensor], Places]:
    """The tuned tensors of every module that a glob of ``patterns`` fits, by name, and what is left to adapt.

    A module that is tied to one of them comes along: PEFT unties what is stored whole, and the other would keep the
    base's tensor. Modules without parameters of their own are passed over. Raises ``ValueError`` for a pattern that
    fits none, and for a module whose name ends another's, which PEFT could not tell apart.
    """
    modules, owned = _owned(model)
    chosen: list[str] = []
    for pattern in patterns:
        matched = [name for name in sorted(owned) if fits(name, pattern)]
        if not matched:
            raise ValueError(f"whole={pattern!r} (--whole) matches {_matched(pattern, owned)}")
        chosen += [name for name in matched if name not in chosen]
    chosen = _with_tied(chosen, owned)
    for name in chosen:
        other = _taken_too(name, modules)
        if other is not None:
            raise ValueError(
                f"{name} cannot be stored whole (--whole): PEFT finds modules by the end of their names and would "
                f"take {other} too"
            )
    same: dict[int, list[str]] = defaultdict(list)
    for name, parameters in owned.items():
        for key, parameter in parameters.items():
            same[id(parameter)].append(f"{name}.{key}")
    wanted = {f"{name}.{key}": same[id(value)] for name in chosen for key, value in owned[name].items()}
    keys = keys_of([name for names in wanted.values() for name in names], tuned)
    # of tied names files hold one
    held = {name: next((keys[each] for each in (name, *names) if each in keys), None) for name, names in wanted.items()}
    read = {key: read_weight(tuned, key) for key in dict.fromkeys(held.values()) if key is not None}
    tensors = {name: read[key] for name, key in held.items() if key is not None}
    left = tuple((name, why) for name, why in found.left_out if name not in tensors)
    return tensors, Places(tuple(site for site in found.sites if site.name not in chosen), left)


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


def _owned(model: nn.Module) -> tuple[list[str], dict[str, dict[str, nn.Parameter]]]:
    """The names of all modules, and of those that have parameters of their own these."""
    modules = dict(unwrap(model).named_modules())
    owned = {name: dict(module.named_parameters(recurse=False)) for name, module in modules.items() if name}
    return list(modules), {name: parameters for name, parameters in owned.items() if parameters}


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
