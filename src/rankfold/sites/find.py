"""Finding the sites of a model, and saying why every other parameter is left out."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import UninitializedParameter

from rankfold.forms import Form, Layer
from rankfold.layers.experts import SplitExperts
from rankfold.observe import PAGES, Pages
from rankfold.sites.foreign import TORCHSCRIPT, check_gathered, packed, stored, why_foreign
from rankfold.sites.kinds.acting import acts_as
from rankfold.sites.kinds.convolution import read_convolution
from rankfold.sites.kinds.dynamic import is_dynamic, read_dynamic
from rankfold.sites.kinds.embedding import read_embedding, why_whole
from rankfold.sites.kinds.experts import read_experts
from rankfold.sites.kinds.linear import read_linear
from rankfold.sites.opened import opened, opener_of, why_closed
from rankfold.sites.product import factors_of, products, why_anew
from rankfold.sites.site import Site, SiteList
from rankfold.sites.wish import NOT_SELECTED, Names, Where, check_patterns, wanted

FOLD_FIRST = "parametrized: fold first (rankfold.fold_)"
_LOOKUPS = 16  # after two of them rows are short enough
Reader = Callable[[nn.Module], Layer | None]
_OWN: list[Reader] = []
_LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_BUILT_IN: tuple[Reader, ...] = (read_dynamic, read_linear, read_convolution, read_embedding, read_experts)


def register_reader(reader: Reader) -> Reader:
    """Make a layer type known: ``reader(module)`` gives its layer object, or None for any other module. The latest
    reader is asked first. Returns the reader, so that it serves as a decorator."""
    _OWN.insert(0, reader)
    return reader


def _own_layer(module: nn.Module) -> Layer | None:
    """What a reader of one's own says of a module; ``TypeError`` for what is no layer object."""
    for reader in _OWN:
        layer = reader(module)
        if layer is not None and not isinstance(layer, Layer):
            raise TypeError(
                f"reader {getattr(reader, '__name__', reader)}: for a {type(module).__name__} it must return a "
                f"layer object (rankfold.forms.Layer) or None, and returned a {type(layer).__name__}"
            )
        if layer is not None:
            return layer
    return None


def read_layer(module: nn.Module) -> Layer | None:
    """The layer object of a module that computes with one matrix, or None."""
    own = _own_layer(module)
    return own or next((layer for reader in _BUILT_IN if (layer := reader(module)) is not None), None)


CUT_ELSEWHERE = (
    "its in_proj is tied to a layer that holds it in one piece, and cannot be taken apart: rankfold.untie_(model) "
    "gives each its own"
)
MERGE_FIRST = (
    "inside a PEFT adapter, which writes into this weight when it merges: merge first (model.merge_and_unload()), or "
    "compress the base model and adapt its factors"
)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile`` wrappers."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.get_submodule("module")
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model.get_submodule("_orig_mod")
        else:
            return model


def sites(model: nn.Module, where: Where | None = None) -> SiteList:
    """Every matrix of ``model`` that can be measured or factored, and every other parameter with its reason.

    Shared modules and tied parameters are recognised by identity. Nothing in the model changes; no data are needed;
    works on the meta device.

    Args:
        model: any module.
        where: narrows the choice: a glob over module paths (``"blocks.*.fc?"``; that of a block, ``"blocks.0"``, stands
            for all inside, and any of the names of a module that hangs in several places), several in a
            ``rankfold.sites.Names(only, exclude)``, or a predicate ``(name, module)``. None: all.

    Returns:
        The sites in the order of the modules; ``left_out`` names every other parameter, ``reducible`` the sites that a
        form can make smaller.

    Raises:
        ValueError: a pattern that fits no layer.

    Cost: a walk over the modules.

    Example:
        >>> net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
        >>> [(site.name, site.shape) for site in rf.sites(net)]
        [('0', (30, 20)), ('2', (4, 30))]
    """
    model = unwrap(model)
    composed = tuple(
        f"{path}.".lstrip(".")
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.MultiheadAttention) and (products(module) or products(module.out_proj))
    )
    adapted = tuple(f"{path}." for path, module in model.named_modules(remove_duplicate=False) if is_peft(module))
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    with opened(model):
        found = _sites(model, where, composed, adapted)
        inside = {  # biases of experts, which are no sites, by the names that they have in the model as it is
            f"{path}.{key}": own[id(bias)]
            for path, module in model.named_modules()
            if isinstance(module, SplitExperts)
            for key, bias in module._parameters.items()
            if bias is not None
        }
    return replace(found, left_out=tuple((inside.get(name, name), why) for name, why in found.left_out))


def is_peft(module: nn.Module) -> bool:
    """Whether this is a layer of PEFT around another, or around copies of one, told without importing it."""
    return any(
        kind.__name__ in ("BaseTunerLayer", "AuxiliaryTrainingWrapper", "ModulesToSaveWrapper")
        and kind.__module__.startswith("peft.")
        for kind in type(module).__mro__
    )


def _sites(model: nn.Module, where: Where | None, composed: tuple[str, ...], adapted: tuple[str, ...]) -> SiteList:
    names: dict[nn.Module, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        names[module].append(path)
    owners: dict[int, list[str]] = defaultdict(list)
    for module, paths in names.items():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                owners[id(parameter)].append(f"{paths[0]}.{key}".lstrip("."))

    found, left_out, covered, there = [], [], set(), list[str]()
    for module, paths in names.items():
        path = paths[0]
        if path == "" and _only_holds(module):
            continue
        reason = _why_not(module, path)
        layer = None if reason else read_layer(module)
        of_matrix = layer is not None and (reason := _why_no_site(layer)) is not None
        layer = None if of_matrix else layer
        if layer is not None and isinstance(module, NonDynamicallyQuantizableLinear):
            layer, reason = None, "read by its attention module, which does not call it"
        if layer is not None:
            there += paths
        if layer is not None and where is not None and not wanted(where, paths, module):
            layer, reason = None, NOT_SELECTED
        if layer is None:
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    left_out.append((f"{path}.{key}".lstrip("."), _why_left_out(module, parameter, reason, of_matrix)))
            if reason and reason != TORCHSCRIPT and all(each is None for each in module._parameters.values()):
                left_out.append((path, reason))
            continue
        parameter_name, composed_here = f"{path}.{layer.parameter}", bool(products(module))
        bias = module._parameters.get("bias")
        tied: tuple[str, ...] = ()
        if not composed_here:  # a product would be formed to be looked at
            tied = tuple(other for other in owners[id(layer.weight(module))] if other != parameter_name)
        covered.add(parameter_name)
        if getattr(module, "bias", None) is not None:
            covered.add(f"{path}.bias")
        forms, note = layer.forms, ""
        if is_dynamic(module) or composed_here or path.startswith(composed):
            forms, note = frozenset({Form.KEEP}), FOLD_FIRST
        if composed_here:
            covered |= {f"{path}.parametrizations.weight.original{i}" for i in range(len(factors_of(module, "weight")))}
            tied = _same_product(module, names)
        elif path.startswith(adapted):
            forms, note = frozenset({Form.KEEP}), MERGE_FIRST
        elif tied:
            forms, note = frozenset({Form.KEEP}), _tied(tied, layer.weight(module))
        elif biased := [other for other in owners[id(bias)] if other != f"{path}.bias"]:
            forms, note = frozenset({Form.KEEP}), f"its bias is {_tied(tuple(biased), bias)}"
        elif layer.lookup and (whole := why_whole(module)) is not None:
            forms, note = frozenset({Form.KEEP}), whole
        found.append(Site(path, parameter_name, layer, forms, tied, tuple(paths[1:]), note))
    left = tuple((p, why) for p, why in left_out if p not in covered)
    if where is not None:
        check_patterns(where, there, left)
    return SiteList(tuple(found), left)


def _tied(others: tuple[str, ...], weight: torch.Tensor) -> str:
    untied = f"rankfold.untie_(model) gives each its own, {weight.numel():,} parameters more"
    return f"tied to {', '.join(others)}: factoring one would store both ({untied})"


def _only_holds(root: nn.Module) -> bool:
    """Whether the model itself is nothing but its parts."""
    return next(root.children(), None) is not None and not root._parameters and not hasattr(root, "parametrizations")


def _same_product(module: nn.Module, names: dict[nn.Module, list[str]]) -> tuple[str, ...]:
    """The weights of other layers that are products of the same factors."""
    first = factors_of(module, "weight")[0]
    others = ((other, paths[0]) for other, paths in names.items() if other is not module)
    return tuple(
        f"{path}.weight" for other, path in others if products(other) and factors_of(other, "weight")[0] is first
    )


def missed(model: nn.Module, where: Where | None) -> str:
    """A sentence where ``where`` fits no site of a model that has some; else an empty text."""
    names = [] if where is None or len(sites(model, where)) else [site.name for site in sites(model)]
    if not names:
        return ""
    given = f"where={where!r}" if isinstance(where, str | Names) else "where"
    return f"{given} matches no layer of the model: its layers are {', '.join(names[:5])}{', …' * (len(names) > 5)}"


def _why_not(module: nn.Module, path: str) -> str | None:
    """Why a module of which a matrix might be expected gives no site."""
    if (foreign := why_foreign(module)) is not None:
        return foreign
    if path and opener_of(module) is not None:  # all that can be are open here
        return why_closed(module) or CUT_ELSEWHERE
    if (anew := why_anew(module)) is not None:
        return anew
    if any(isinstance(p, UninitializedParameter) for p in module._parameters.values()):
        return "it has no shape yet, as a lazy module before its first call: run the model once"
    weight = module._parameters.get("weight")
    if weight is not None and not (weight.dtype.is_floating_point):
        return f"its weight is {weight.dtype}: only real floating-point weights are factored"
    if weight is not None and weight.numel() == 0:
        return "zero-size weight"
    known = isinstance(module, (*_LAYERS, nn.Embedding, nn.EmbeddingBag)) and _own_layer(module) is None
    if weight is None and known and isinstance(_beside_parameters(module), torch.Tensor):
        return "its weight is a buffer or a plain tensor: make it a parameter first (nn.Parameter)"
    for base in _LAYERS:
        if isinstance(module, base) and not acts_as(module, base) and _own_layer(module) is None:
            return f"{type(module).__name__} overrides the forward of {base.__name__}"
    if "forward" in vars(module) and weight is not None and weight.dim() > 1:
        return "its forward was replaced from outside: remove that wrapper first"
    if path == "" and (read_layer(module) is not None or opener_of(module) is not None):
        return "the model is this one layer, which cannot be replaced in itself: wrap it in nn.Sequential(layer)"
    return None


def _beside_parameters(module: nn.Module) -> object:
    return module._buffers.get("weight", vars(module).get("weight"))


def _why_no_site(layer: Layer) -> str | None:
    m, n = layer.shape
    if layer.groups > 1 and min(m, n) == 1:
        return "depthwise: every group already has rank 1"
    if min(m, n) < 2 and not layer.lookup:
        return f"a {m}×{n} matrix has rank 1 already"
    return None


def _why_left_out(module: nn.Module, parameter: torch.Tensor, reason: str | None, of_matrix: bool) -> str:
    """A reason that is that of the matrix alone is not that of the bias beside it."""
    return reason if reason and not (of_matrix and parameter.dim() < 2) else _why_parameter(module, parameter)


def _why_parameter(module: nn.Module, parameter: torch.Tensor) -> str:
    if parameter.dim() < 2:
        return "a vector: nothing to factor"
    if isinstance(module, SplitExperts):
        return "a vector for each expert: nothing to factor"
    kind, holds = type(module).__name__, isinstance(module, nn.ParameterList | nn.ParameterDict)
    by = f"the code around a {kind}" if holds else f"{kind} in code of its own"
    return f"used by {by}, in which it cannot be replaced"


def fingerprint(model: nn.Module) -> str:
    """``architecture:weights``: hashes of names, shapes and dtypes, and of the values, of parameters and buffers.

    Buffers that training updates (BatchNorm statistics) count too. Cost: one pass over the parameters.
    """
    structure, values = hashlib.sha256(), hashlib.sha256()
    for name, tensor in _everything(model):
        structure.update(_line(name, tensor, tensor.dtype))
        for part in () if tensor.is_meta else stored(tensor):
            flat = part.detach().cpu().contiguous().flatten().view(torch.uint8)
            values.update(flat.numpy().data)
    return f"{structure.hexdigest()[:16]}:{values.hexdigest()[:16]}"


def architecture(model: nn.Module, floating: torch.dtype) -> str:
    """The first half of the fingerprint, as if every real number were of the dtype ``floating``."""
    structure = hashlib.sha256()
    for name, tensor in _everything(model):
        structure.update(_line(name, tensor, floating if tensor.is_floating_point() else tensor.dtype))
    return structure.hexdigest()[:16]


def _line(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> bytes:
    return f"{name}{tuple(tensor.shape)}{dtype};".encode()


def _everything(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by their names, where weights stay on the disk by those that they have in the file."""
    root = unwrap(model)
    pages: Pages | None = getattr(root, PAGES, None)
    known, earlier = {**packed(root.named_modules()), **root.state_dict()}, {} if pages is None else pages.earlier
    tables = ((name, m) for name, m in root.named_modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag))
    bounded = {f"{name}.weight".lstrip("."): m for name, m in tables if m.max_norm is not None}
    for name, here in sorted((earlier.get(name, name), name) for name in known):
        tensor = known[here]
        if isinstance(tensor, torch.Tensor):
            tensor = tensor if pages is None else pages.value(here, tensor)
            check_gathered(name, tensor)
            yield name, _shortened(tensor, bounded[here]) if here in bounded else tensor


def _shortened(table: torch.Tensor, embedding: Any) -> torch.Tensor:
    """A table once every row was looked up: with ``max_norm`` each look-up shortens rows, in the weight itself, and
    again those that rounding left too long."""
    if table.is_meta:
        return table
    found, rows = table.detach().clone(), torch.arange(len(table), device=table.device)
    for _ in range(_LOOKUPS):
        before = found.clone()
        torch.embedding_renorm_(found, rows, embedding.max_norm, embedding.norm_type)
        if torch.equal(found, before):
            break
    return found
