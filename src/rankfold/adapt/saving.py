"""The updates that a model was trained with, written as an ordinary LoRA adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from rankfold.adapt.deep_lora import updates
from rankfold.adapt.finite import finite_pair
from rankfold.adapt.peft_format import Adapter, write_adapter
from rankfold.adapt.places import hung, unread
from rankfold.sites import unwrap


def save_adapter(
    model: nn.Module,
    directory: str | Path,
    *,
    base_model: str = "",
    tolerance: float = 0.0,
    uniform: bool = False,
) -> Path:
    """Write the updates of ``model`` as an ordinary LoRA adapter.

    ``adapter_model.safetensors`` and ``adapter_config.json``, for ``peft.PeftModel.from_pretrained(base, directory)``
    and whatever else reads LoRA; peft is not needed to write them.

    Args:
        model: with updates.
        directory: made if it is missing.
        base_model: the name or path of the base model, to note.
        tolerance: singular values of an update of at most this fraction of its largest are left out, so that layers get
            ranks of their own (``rank_pattern``, ``alpha_pattern``).
        uniform: all get the largest of these ranks by zeros, and one alpha, for readers that know one rank and one
            alpha alone; the updates stay what they are.

    Returns:
        The directory.

    Raises:
        ValueError: a model without updates, or a layer that hangs in several places: PEFT would adapt the first of them
            alone. A convolution with dilation or another padding than zeros, of which PEFT forgets the setting. A layer
            of ``nn.TransformerEncoderLayer`` whose fused kernel would not see the adapter. An adapter that is there
            already and that rankfold did not write.
        NonFiniteError: an update with values that are NaN or infinite, with the layer's name.

    Example:
        >>> net = rf.deep_lora_(nn.Sequential(nn.Linear(16, 8)), rank=2)
        >>> sorted(file.name for file in rf.adapt.save_adapter(net, "adapter").iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    return write_adapter(adapter_of(model, base_model=base_model, tolerance=tolerance), directory, uniform=uniform)


def adapter_of(model: nn.Module, *, base_model: str = "", tolerance: float = 0.0) -> Adapter:
    """The updates of ``model`` as a value; arguments and errors as in ``save_adapter``."""
    found = updates(model)
    if not found:
        raise ValueError("the model has no adapters to save: call deep_lora_ on it first, and save before merging")
    if not 0 <= tolerance < 1:
        raise ValueError(
            f"tolerance, a share of the largest singular value, must be at least 0 and below 1, got {tolerance!r}"
        )
    _check_places(model, found)
    for name, adapted in found.items():
        finite_pair(name, adapted.matrices())
    pairs = {}
    for name, adapted in found.items():
        why = unread(unwrap(model), name, adapted.base)
        if why is not None:
            raise ValueError(
                f"{name}: {why}: merge the updates with merge_ and save the weights of the model, or leave the layer "
                "out of the adaptation with where="
            )
        a, b = adapted.lora(tolerance)
        dtype = adapted.matrices()[0].dtype
        pairs[name] = (a.to(dtype), b.to(dtype))
    return Adapter(
        pairs,
        next(iter(found.values())).scaling,
        kernels={name: adapted.kernel for name, adapted in found.items() if adapted.kernel},
        stored_transposed=all(adapted.stored_transposed for adapted in found.values()),
        base_model=base_model,
    )


def _check_places(model: nn.Module, found: Mapping[str, nn.Module]) -> None:
    """``ValueError`` for an adapted layer that hangs in several places.

    PEFT replaces a layer where it first meets it.
    """
    places = hung(model)
    for adapted in found.values():
        if len(places[adapted]) > 1:
            raise ValueError(
                f"{places[adapted][0]} is the same layer as {', '.join(places[adapted][1:])}, and PEFT would "
                "adapt only the first of these places: merge the updates with merge_ and save the weights of "
                "the model, or give each place a layer of its own before deep_lora_"
            )
