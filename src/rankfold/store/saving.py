"""Saving compressed models: safetensors and JSON in a directory, hashed, written atomically.

    DIR/plan.json            what became of every site
    DIR/model.safetensors    the state dict of the compressed model
    DIR/bottlenecks.safetensors    what is needed to slice it without data, where that was measured
    DIR/manifest.json        sha256 of every file, the model's name, and what was measured

The tensors can be read without rankfold: ``….down.weight`` (r, n) and ``….up.weight`` (m, r) for each factored layer;
of a pivoted one ``….up.rest.weight`` (m − r, r) and ``….up.order`` (m): the weight is [down; rest·down][order]. A
model of transformers becomes a folder of its own kind, with plan and manifest beside (``rankfold.hub``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from rankfold.compress.planning.plan import Plan
from rankfold.layers import InTraining
from rankfold.run.disk.container import packed
from rankfold.run.disk.pretrained import FolderError
from rankfold.sites import QUANTIZED, Form, is_pretrained, products, unwrap, why_tensor
from rankfold.store import manifest
from rankfold.store.manifest import BOTTLENECKS, FORMAT, PLAN, PRETRAINED, TENSORS, StoreError
from rankfold.store.ours import ALIASES, check_files, check_ours

if TYPE_CHECKING:
    from rankfold.compress.slicing.bottlenecks import Bottlenecks


def save(
    model: nn.Module,
    plan: Plan | None = None,
    directory: str | Path | None = None,
    *,
    notes: Mapping[str, Any] | None = None,
    bottlenecks: Bottlenecks | None = None,
    tokenizer: Any = None,
) -> Path:
    """Save a model that ``plan`` was applied to, fine-tuned or not.

    A crash or a full disk leaves the old one or the new, whole. A model of transformers is saved as a Hugging Face
    folder, which ``from_pretrained`` loads after ``import rankfold.hub``.

    Args:
        model: with the layers of the plan.
        plan: that was applied; needed.
        directory: needed; made if it is missing; what rankfold saved there before is replaced.
        notes: JSON-able facts to keep (``model``: the name it can be built from, measurements).
        bottlenecks: from ``rankfold.bottlenecks``, which make it possible to slice the model later without data; about
            a tenth to a half of the model's own bytes.
        tokenizer: saved in a Hugging Face folder; by default what lies beside the weights in the folder that the model
            came from.

    Returns:
        The directory.

    Raises:
        StoreError: no plan, no directory, notes that are no JSON, a plan that was not applied, layers in training that
            were not folded, adapters that were not merged, bottlenecks that were measured on other weights, or a
            directory with weights or a configuration that rankfold did not write.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8))
        >>> plan = rf.plan(net, rf.Ranks({"0": 2}), "truncate", example=torch.randn(1, 8))
        >>> sorted(file.name for file in rf.save(rf.apply_(net, plan), plan, "small").iterdir())
        ['manifest.json', 'model.safetensors', 'plan.json']
    """
    if not isinstance(plan, Plan):  # before a directory is missed: save(model, "x") is asked for by who has no plan
        raise StoreError(
            f"save needs the plan that was applied, got {type(plan).__name__}: a network that was folded with "
            "fold_(keep=True) has none: fold it without keep, then rankfold.plan(model, rankfold.Ranks(ranks), "
            "'truncate', example=x) and rankfold.apply_ give the same layers, and the plan"
        )
    if directory is None:
        raise StoreError("save needs a directory behind the plan: rankfold.save(model, plan, 'small')")
    directory, root, notes = Path(directory), unwrap(model), manifest.checked_notes(notes)
    check_ours(directory, root)
    _check_folded(root)
    state, aliases = _tensors(root)
    for entry in plan.changed:
        own = f"{entry.site}.{'up.rest.weight' if entry.members else entry.form.parameter}"
        if entry.form is not Form.DENSE and own not in state.keys() | aliases.keys():
            raise StoreError(f"{entry.site}: it is {entry.form} in the plan and not in the model: apply the plan first")
    files = {PLAN: plan.to_json().encode()}
    if is_pretrained(root):
        files = _folder(root, plan, notes, tokenizer) | files
    else:
        files[TENSORS] = packed(state, {"format": "pt", ALIASES: json.dumps(aliases)})
    if bottlenecks is not None:
        from rankfold.compress.slicing.bottlenecks import belongs  # with much that whoever saves without needs not

        if not belongs(bottlenecks.mark, model):
            raise StoreError("the bottlenecks were measured on other weights: measure them again before saving")
        files[BOTTLENECKS] = bottlenecks.to_bytes()
    check_files(directory, files)
    manifest.write(directory, files, notes, PRETRAINED if is_pretrained(root) else FORMAT)
    return directory


def _check_folded(root: nn.Module) -> None:
    """``StoreError`` for layers in training, which no fresh network has."""
    for name, module in root.named_modules():
        if products(module) or (isinstance(module, InTraining) and module.prepared):  # others are inside of adapters
            raise StoreError(
                f"{name}: its weight is in training as a product of factors, which a fresh network has no place for: "
                "fold the model first (rankfold.fold_)"
            )


def _folder(root: nn.Module, plan: Plan, notes: Mapping[str, Any], tokenizer: Any) -> dict[str, bytes]:
    """The files of a Hugging Face folder, with a card."""
    from rankfold import hub
    from rankfold.store.card import card

    try:
        files = hub.files_of(root, tokenizer)
    except FolderError as error:
        raise StoreError(str(error)) from None
    return files | {"README.md": card(root, plan, notes).encode()}


def _tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The state dict with every tensor once, and which further names share which tensor."""
    state: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            raise StoreError(
                f"{name}: state of type {type(tensor).__name__} cannot be saved as a tensor: save the model "
                "before it is quantized"
            )
        reason = why_tensor(tensor) or (QUANTIZED if tensor.is_quantized else None)
        if reason is not None:
            raise StoreError(f"{name}: {reason}; only ordinary tensors can be saved")
        if is_lazy(tensor):
            raise StoreError(f"{name}: it has no shape yet, as a lazy module before its first call: run the model once")
        if tensor.is_meta:
            raise StoreError(f"{name}: it is on the meta device, without values: load the weights first")
        key = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            state[name] = tensor
    return state, aliases
