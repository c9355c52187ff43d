"""Whether the files of a folder hold what is built from its configuration: names and shapes of tensors, no values."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankfold.hub.errors import HubError
from rankfold.hub.stored import Stored
from rankfold.run.disk.container import FAULTS, said
from rankfold.run.disk.tensors import Checkpoint
from rankfold.sites import factored_sites

_POOLER = "pooler"  # what ``add_pooling_layer`` builds, in every encoder of transformers that has the argument
_SHOWN = 3


def built(kind: Any, config: Any, names: Iterable[str]) -> Any:
    """A network of ``kind`` without weights, on the meta device, as files with the tensors ``names`` fill it, in the
    types that ``from_pretrained`` gives it."""
    from rankfold.hub.folder import quietly

    with quietly(), torch.device("meta"):
        make = kind._from_config if hasattr(kind, "_from_config") else kind.from_config
        return _typed_(make(config, **without_pooler(kind, names))).eval()


def _typed_(model: Any) -> Any:
    """``model`` with what transformers keeps in float32 in half precision, too: in T5 what would overflow."""
    from transformers.core_model_loading import build_glob_alternation

    types = model._get_dtype_plan(model.config.dtype)
    if types:
        pattern, groups, _ = build_glob_alternation(list(types))
        for name, tensor in model.state_dict(keep_vars=True).items():
            if (found := pattern.search(name)) is not None and tensor.is_floating_point():
                tensor.data = tensor.data.to(types[groups[str(found.lastgroup)]])
    return model


def without_pooler(kind: Any, names: Iterable[str]) -> dict[str, bool]:
    """The option of ``kind`` that leaves the pooler out, where the files hold none: it would be random."""
    takes = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    return {"add_pooling_layer": False} if takes and not any(_POOLER in name.split(".") for name in names) else {}


def drop_pooler_(model: Any, names: Iterable[str]) -> None:
    """Take a pooler away that the files do not hold, and that would be random."""
    if without_pooler(type(model), names) and getattr(model, _POOLER, None) is not None:
        setattr(model, _POOLER, None)


def check_whole(directory: str | Path, kind: Any) -> None:
    """``HubError``, which names tensors, where the files of a folder with factored layers do not hold what ``kind``
    becomes by its configuration: one is missing, has another shape, or belongs to nothing.

    Reads the headers alone, and builds the network without weights.
    """
    from rankfold.hub.quantizer import RankfoldConfig, RankfoldQuantizer

    directory = Path(directory)
    try:
        config = kind.config_class.from_pretrained(directory, local_files_only=True)
        asked = getattr(config, "quantization_config", None)
        files = Checkpoint(directory)
        fresh = built(kind, config, files.names)
        if asked is not None:
            quantizer = RankfoldQuantizer(RankfoldConfig.from_dict(asked))
            quantizer._process_model_before_weight_loading(fresh)
        stored = Stored(directory, fresh)
        shapes = {name: stored.shape(name) for name in fresh.state_dict() if name in stored}
    except (OSError, *FAULTS) as error:
        raise HubError(f"{directory}: what was written cannot be read back ({said(error)})") from None
    missing, other = _compared(fresh, shapes)
    used = shapes.keys() | {piece.stored for made in stored.made.values() for piece in made.pieces}
    poison = asked["poison"] if asked else None
    foreign = sorted(name for name in set(files.names) - used if stored.called.get(name, name) != poison)
    if missing or other or foreign:
        raise HubError(
            f"{kind.__name__}: what would be written does not hold what its configuration says, so nothing was "
            f"written: {told(missing, other, foreign)}: apply the plan to a fresh model and save again, or report it"
        )


def _compared(fresh: nn.Module, shapes: dict[str, tuple[int, ...]]) -> tuple[list[str], list[str]]:
    """Which tensors of ``fresh`` are in no file under any of their names, and which have another shape there."""
    alike: dict[int, list[str]] = defaultdict(list)
    state = fresh.state_dict(keep_vars=True)
    for name, tensor in state.items():
        alike[id(tensor)].append(name)
    # tied ones are filled by others, and what transformers never saves, tables of sines, is computed anew
    apart = {*getattr(fresh, "all_tied_weights_keys", {}), *(getattr(fresh, "_keys_to_ignore_on_save", None) or ())}
    missing = [
        names[0] for names in alike.values() if not any(name in shapes for name in names) and names[0] not in apart
    ]
    return missing, [name for name, shape in shapes.items() if tuple(state[name].shape) != shape]


def told(missing: Collection[str], other: Collection[str], foreign: Collection[str]) -> str:
    """``2 tensors are missing (a, b), and 1 belongs to no layer (c)``."""
    kinds = ((missing, "missing"), (other, "of another shape"), (foreign, "in no layer of the network"))
    return ", and ".join(
        f"{len(names)} {'tensor is' if len(names) == 1 else 'tensors are'} {what} "
        f"({', '.join(sorted(names)[:_SHOWN])}{', …' if len(names) > _SHOWN else ''})"
        for names, what in kinds
        if names
    )


def refuse_random(model: Any, info: Any, declared: Collection[str], directory: str) -> None:
    """``HubError`` after transformers read a folder with factored layers, where one of its layers was filled at random.

    ``info``: with ``missing_keys`` and ``unexpected_keys``. Another class than the one saved may lack a head, or bring
    one that is to be trained; but no layer that the two share may have other tensors than those in the files.
    """
    modules, body = dict(model.named_modules()), f"{getattr(model, 'base_model_prefix', '')}."
    same = type(model).__name__ in (getattr(model.config, "architectures", None) or ())
    factored = {*declared, *(site.name for site in factored_sites(model))}

    def layer_of(key: str) -> str:
        """The layer that a tensor belongs to by its name: the innermost there is, or the factored one around it. Where
        a body alone is loaded, names in the files begin with what the body is called there."""
        parts = key.removeprefix(body).split(".") if key.split(".")[0] not in modules else key.split(".")
        starts = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        around = next((start for start in starts if start in factored), None)
        return around or next((start for start in reversed(starts) if start in modules), "")

    missing = [key for key in info.missing_keys if same or layer_of(key) in factored]
    foreign = [
        key for key in info.unexpected_keys
        if (owner := layer_of(key)) in factored or (owner and not list(modules[owner].children()))
    ]  # fmt: skip
    if missing or foreign:
        raise HubError(
            f"{directory}: its files do not hold what its configuration says, so layers would have random weights: "
            f"{told(missing, (), foreign)}: download the folder again; if rankfold wrote it by slice, slice again with "
            "this version"
        )
