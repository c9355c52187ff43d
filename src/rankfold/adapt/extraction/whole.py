"""Modules whose tuned tensors go into an adapter as they are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rankfold.adapt.extraction.compare import keys_of, read_weight
from rankfold.adapt.places import Places
from rankfold.run.disk.tensors import Checkpoint
from rankfold.sites import unwrap
from rankfold.sites.wish import fits

_PARTS = ("base_layer", "lora_dropout", "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")


def kept_whole(
    model: nn.Module, patterns: Sequence[str], found: Places, tuned: Checkpoint
) -> tuple[dict[str, Tensor], Places]:
    """The tuned tensors of every module that a glob of ``patterns`` fits, by name, and what is left to adapt.

    Modules without parameters of their own are passed over. Raises ``ValueError`` for a pattern that fits none, and for
    a module whose name ends another's, which PEFT could not tell apart.
    """
    modules = dict(unwrap(model).named_modules())
    owners = {
        name for name, module in modules.items() if name and next(module.parameters(recurse=False), None) is not None
    }
    chosen: list[str] = []
    for pattern in patterns:
        matched = [name for name in sorted(owners) if fits(name, pattern)]
        if not matched:
            raise ValueError(f"whole={pattern!r} (--whole) matches no module that has parameters of its own")
        chosen += [name for name in matched if name not in chosen]
    for name in chosen:
        # PEFT looks at the ends of names, its own parts among them, without regard to dots
        other = next((key for key in (*modules, *_PARTS) if key != name and key.endswith(name)), None)
        if other is not None:
            raise ValueError(
                f"{name} cannot be stored whole (--whole): PEFT finds modules by the end of their names and would "
                f"take {other} too"
            )
    names = [f"{name}.{key}" for name in chosen for key, _ in modules[name].named_parameters(recurse=False)]
    keys = keys_of(names, tuned)
    tensors = {name: read_weight(tuned, keys[name]) for name in names if name in keys}
    left = tuple((name, why) for name, why in found.left_out if name not in tensors)
    return tensors, Places(tuple(site for site in found.sites if site.name not in chosen), left)
