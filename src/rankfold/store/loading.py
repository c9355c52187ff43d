"""Loading what ``save`` wrote: into a fresh dense model, or, of a Hugging Face folder, as it is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load as from_safetensors
from torch import nn
from torch.nn.parameter import is_lazy

from rankfold.batches import copied
from rankfold.compress.applying.check import ApplyError
from rankfold.compress.planning.plan import Plan
from rankfold.layers.pivoted import misplaced
from rankfold.linalg.brief import brief
from rankfold.run.disk.container import FAULTS, metadata, parsed, said
from rankfold.run.disk.pretrained import FolderError
from rankfold.run.ordinary import ordinarily
from rankfold.sites import sites, unwrap
from rankfold.store.manifest import BOTTLENECKS, PLAN, PRETRAINED, TENSORS, StoreError, Unfinished, opened, unfinished
from rankfold.store.ours import ALIASES

if TYPE_CHECKING:
    from rankfold.compress.slicing.bottlenecks import Bottlenecks


@dataclass(frozen=True)
class Stored:
    """What ``rankfold.load`` gives back.

    Attributes:
        model: the network.
        plan: that it follows.
        notes: that were kept with it (name, measurements).
        bottlenecks: what is needed to slice the model; None where it was saved without.

    Example:
        >>> plan = rf.plan(nn.Sequential(nn.Linear(8, 8)), "params=0.9", "truncate", example=torch.randn(1, 8))
        >>> rf.Stored(nn.Identity(), plan, {"made by": "me"}).notes["made by"]
        'me'
    """

    model: nn.Module
    plan: Plan
    notes: Mapping[str, Any]
    bottlenecks: Bottlenecks | None = None

    __repr__ = brief


@ordinarily
def load(directory: str | Path, model: nn.Module | None = None) -> Stored:
    """Load a saved model into ``model``, a fresh dense model of the same architecture, in place.

    Every file is checked against the manifest first. Parameters take the dtype they were saved in; a model on the meta
    device is filled. On any error ``model`` is left as found. What a job left that has not ended is loaded with a
    warning.

    Args:
        directory: that ``rankfold.save`` or a command wrote.
        model: dense; may be left out for a Hugging Face folder, whose configuration says what to build.

    Returns:
        A ``Stored``.

    Raises:
        StoreError: one line that names the file or the tensor: missing, damaged, foreign, or of another architecture.

    Cost: reading the files, and their hashes.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(2, 8)
        >>> plan = rf.plan(net, rf.Ranks({"0": 2}), "truncate", example=x)
        >>> _ = rf.save(rf.apply_(net, plan), plan, "small")
        >>> torch.equal(rf.load("small", nn.Sequential(nn.Linear(8, 8))).model(x), net(x))
        True
    """
    directory = Path(directory)
    manifest, contents = opened(directory)
    if (said_of := unfinished(directory, manifest.get("notes", {}))) is not None:
        warnings.warn(said_of, Unfinished, stacklevel=3)
    try:
        plan = Plan.from_json(contents[PLAN].decode())
        known = _bottlenecks(contents[BOTTLENECKS]) if BOTTLENECKS in contents else None
        given = None if manifest["format"] == PRETRAINED else _state(contents.pop(TENSORS))
    except FAULTS as error:
        raise StoreError(
            f"{directory}: damaged, or not written by rankfold ({said(error)}): save the model again"
        ) from None
    if given is None:
        contents.clear()
        loaded = _pretrained(directory, None if model is None else type(unwrap(model)))
        if model is None:
            return Stored(loaded, plan, manifest.get("notes", {}), known)
        given = loaded.state_dict(keep_vars=True)  # what is tied is one object
    if model is None:
        raise StoreError(
            f"{directory}: it does not hold the architecture: give a fresh dense model to fill, load(directory, model)"
        )
    from rankfold.compress.applying.apply import shape_  # with all methods, which reading plain weights does not need

    try:
        _check_fit(shape_(_without_values(unwrap(model)), plan), given, directory)
        shape_(model, plan)
    except ApplyError as error:
        raise StoreError(f"{directory}: it was saved from another model: {error}{_twice(model, plan)}") from None
    _fill_(unwrap(model), given)
    return Stored(model, plan, manifest.get("notes", {}), known)


def _bottlenecks(content: bytes) -> Bottlenecks:
    from rankfold.compress.slicing.bottlenecks import Bottlenecks  # with much that others do not need

    return Bottlenecks.from_bytes(content, BOTTLENECKS)


def _twice(model: nn.Module, plan: Plan) -> str:
    """What to do where the plan names parts of layers: it is the second one of a network that was factored before."""
    names = {site.name for site in sites(unwrap(model))}
    for entry in plan.changed:
        if entry.site not in names and any(entry.site.startswith(f"{name}.") for name in names):
            return (
                "; it was compressed a second time, and this plan tells of that alone: give the network as it was "
                "after the first time (rankfold.load of its own directory)"
            )
    return ""


def _state(data: bytes) -> dict[str, torch.Tensor]:
    state = from_safetensors(data)
    aliases = parsed(metadata(data).get(ALIASES, "{}"))
    return state | {name: state[source] for name, source in aliases.items()}


def _pretrained(directory: Path, given: type | None) -> nn.Module:
    """The model of a Hugging Face folder whose files have been checked; of the class ``given`` where it is that."""
    from rankfold import hub

    try:
        return hub.opened(directory, given)
    except FolderError as error:
        raise StoreError(str(error)) from None


def _without_values(root: nn.Module) -> nn.Module:
    """A copy on the meta device, on which a plan is tried; buffers that are not saved stay where they are."""
    memo: dict[int, Any] = {}
    for name, tensor in root.state_dict(keep_vars=True).items():
        if is_lazy(tensor):
            raise StoreError(f"{name}: it has no shape yet, as a lazy module before its first call: run the model once")
        if isinstance(tensor, nn.Parameter):
            memo[id(tensor)] = nn.Parameter(tensor.detach().to("meta"), tensor.requires_grad)
        elif isinstance(tensor, torch.Tensor):
            memo[id(tensor)] = tensor.detach().to("meta")
    return copied(root, memo)


def _check_fit(root: nn.Module, state: Mapping[str, torch.Tensor], directory: Path) -> None:
    here = root.state_dict(keep_vars=True)
    missing, foreign = sorted(here.keys() - state.keys()), sorted(state.keys() - here.keys())
    if missing or foreign:
        raise StoreError(
            f"{directory}: it was saved from another model: {len(missing)} tensors are missing "
            f"({', '.join(missing[:3])}), and {len(foreign)} do not belong to this one ({', '.join(foreign[:3])})"
            f"{_unfolded(foreign)}"
        )
    for name, wanted in here.items():
        if wanted.shape != state[name].shape:
            raise StoreError(
                f"{directory}: {name} has the shape {tuple(state[name].shape)}, and the model needs "
                f"{tuple(wanted.shape)}"
            )
        given = state[name].dtype
        if wanted.dtype != given and not (wanted.is_floating_point() and given.is_floating_point):
            kinds = (str(dtype).removeprefix("torch.") for dtype in (given, wanted.dtype))
            raise StoreError(f"{directory}: {name} is {', and the model needs '.join(kinds)}")
    if said := _parted(here, state):
        raise StoreError(f"{directory}: {said}")
    if said := misplaced(root, state):
        raise StoreError(f"{directory}: {said}: it is damaged, or was made by another program: save the model again")
    hollow = [name for name, buffer in root.named_buffers() if buffer.is_meta and name not in here]
    if hollow:
        raise StoreError(
            f"{directory}: {hollow[0]} is not saved (a buffer with persistent=False), and the model is on the "
            "meta device, without values: build it on a real device"
        )


def _parted(here: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> str:
    """One line where names that share a tensor ``here`` have different values in ``state``; "" where none do."""
    first: dict[int, str] = {}
    for name, tensor in here.items():
        other = first.setdefault(id(tensor), name)
        one, two = state[other], state[name]
        if one is not two and (one.dtype != two.dtype or not one.equal(two)):
            return (
                f"{other} and {name} are one tensor in the model, and two that differ in what was saved: load it into "
                "a model whose weights are not tied there"
            )
    return ""


def _unfolded(foreign: Sequence[str]) -> str:
    """What to do where a network was saved, by an earlier release, while layers were in training at low rank."""
    ends = (".left", ".core", ".right")
    if not any(".parametrizations." in name or name.endswith(ends) for name in foreign):
        return ""
    return "; layers of it were in training at low rank: fold it before it is saved (rankfold.fold_)"


def _fill_(root: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    _make_room_(root, {id(tensor): state[name] for name, tensor in root.state_dict(keep_vars=True).items()})
    root.load_state_dict(dict(state))


def _make_room_(root: nn.Module, wanted: Mapping[int, torch.Tensor]) -> None:
    """New tensors where the ones here are on the meta device, of another dtype, or cannot be written into, as an
    expanded one, whose entries lie in one place. What was one tensor when it was saved is one object again, also where
    it is not here: ``model.to("meta")`` unties parameters, and a count of the plan holds for tied ones alone."""
    found: dict[tuple[int, bool, torch.device], torch.Tensor] = {}
    for module in root.modules():
        groups: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for group in groups:
            for key, old in group.items():
                if old is None or id(old) not in wanted:
                    continue
                like, is_parameter = wanted[id(old)], isinstance(old, nn.Parameter)
                device = torch.device("cpu") if old.is_meta else old.device
                one = id(like), is_parameter, device
                if one not in found:
                    found[one] = old
                    if old.is_meta or old.dtype != like.dtype or _overlaps(old):
                        new = torch.empty_like(like, device=device, requires_grad=False)
                        found[one] = nn.Parameter(new, old.requires_grad) if is_parameter else new
                group[key] = found[one]


def _overlaps(tensor: torch.Tensor) -> bool:
    """Whether several of its entries lie in one place in memory: torch refuses to write into it."""
    reach = 0  # how far the axes with shorter steps go
    for step, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)) if tensor.numel() > 1 else ():
        if size > 1 and step <= reach:
            return True
        reach += step * (size - 1)
    return False
