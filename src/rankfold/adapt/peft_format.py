"""Adapters on the disk as PEFT reads them: ordinary LoRA, whatever the depth they were trained with."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from torch import nn
from torch.nn.functional import pad

from rankfold.adapt.deep_lora import updates
from rankfold.run.container import packed
from rankfold.run.files import write_atomically
from rankfold.sites import unwrap


def save_adapter(
    model: nn.Module,
    directory: str | Path,
    *,
    base_model: str = "",
    tolerance: float = 0.0,
    uniform: bool = False,
) -> Path:
    """Write the updates of ``model`` as an ordinary LoRA adapter; returns the directory.

    ``adapter_model.safetensors`` and ``adapter_config.json``, for ``peft.PeftModel.from_pretrained(base, directory)``
    and whatever else reads LoRA; peft is not needed to write them. ``base_model``: the name or path of the base model
    to note. ``tolerance``: singular values of an update of at most this fraction of its largest are left out, so that
    layers get ranks of their own (``rank_pattern``, ``alpha_pattern``). ``uniform``: all get the largest of these ranks
    by zeros, and one alpha, for readers that know one rank and one alpha alone; the updates stay what they are. Raises
    ``ValueError`` for a model without adapters, and for a layer that hangs in several places: PEFT would adapt the
    first of them alone.
    """
    found = updates(model)
    if not found:
        raise ValueError("the model has no adapters: deep_lora_ first, and save before merging")
    if not 0 <= tolerance < 1:
        raise ValueError(
            f"tolerance is a fraction of the largest singular value, at least 0 and below 1: {tolerance!r}"
        )
    _check_places(model, found)
    pairs = {name: adapted.lora(tolerance) for name, adapted in found.items()}
    if uniform:
        most = max(len(a) for a, _ in pairs.values())
        pairs = {name: (pad(a, (0, 0, 0, most - len(a))), pad(b, (0, most - len(a)))) for name, (a, b) in pairs.items()}
    ranks = {name: len(a) for name, (a, _) in pairs.items()}
    tensors = {
        f"base_model.model.{name}.lora_{key}.weight": matrix.to(found[name].factors[0].dtype)
        for name, pair in pairs.items()
        for key, matrix in zip("AB", pair, strict=True)
    }
    rank = Counter(ranks.values()).most_common(1)[0][0]
    scaling = next(iter(found.values())).scaling
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": scaling * rank,
        # full names, each anchored: a bare one would also match the end of a longer one
        "target_modules": "|".join(re.escape(name) for name in found),
        "rank_pattern": {f"^{re.escape(name)}": r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{re.escape(name)}": scaling * r for name, r in ranks.items() if r != rank},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": all(adapted.stored_transposed for adapted in found.values()),
        "init_lora_weights": True,
    }
    place = Path(directory)
    write_atomically(place / "adapter_model.safetensors", packed(tensors, {"format": "pt"}))
    write_atomically(place / "adapter_config.json", (json.dumps(config, indent=1) + "\n").encode())
    return place


def _check_places(model: nn.Module, found: Mapping[str, nn.Module]) -> None:
    """``ValueError`` for an adapted layer that hangs in several places.

    PEFT replaces a layer where it first meets it. One inside a block that is itself shared hangs in one place.
    """
    places: dict[nn.Module, list[str]] = defaultdict(list)
    for path, parent in unwrap(model).named_modules():
        for name, child in parent._modules.items():
            if child is not None:
                places[child].append(f"{path}.{name}".lstrip("."))
    for adapted in found.values():
        if len(places[adapted]) > 1:
            raise ValueError(
                f"{places[adapted][0]} is the same layer as {', '.join(places[adapted][1:])}: of such a layer PEFT "
                "would adapt the first place alone. merge_ the updates and save the weights of the model, or give each "
                "place a layer of its own before deep_lora_"
            )
