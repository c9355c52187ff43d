"""Adapters that PEFT wrote, or rankfold, read from the disk."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankfold.adapt.peft_format import CONFIG, PREFIX, WEIGHTS, Adapter, is_marked, outer_name
from rankfold.run.disk.container import read_object
from rankfold.run.disk.tensors import Checkpoint

_BIN = "adapter_model.bin"
_PAIR = re.compile(r"(?P<name>.+)\.lora_(?P<embedding>embedding_)?(?P<key>[AB])(\.weight)?")
_BASE_COPY = re.compile(r".+\.base_layer\.(weight|bias)")
_BROKEN = "train or save the adapter again"
DORA = (
    "a DoRA adapter also scales columns, so its update is not of low rank: merge it into its base (merge_and_unload of "
    "PEFT) and extract from the two checkpoints"
)
# starts that PEFT takes off the base, so that the update is one of what is left of it
_OFF_THE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
# settings by which the product of two matrices is not what is added to a weight
_NO_PRODUCT = {
    "alora_invocation_tokens": "works only behind certain tokens",
    "use_bdlora": "stores the blocks of a matrix side by side",
    "use_qalora": "works on means of its inputs",
    "kasa_config": "cuts the small directions of its base off",
    "arrow_config": "chooses between several adapters for each token",
}
# settings by which an adapter changes what is no weight of a layer that LoRA knows
_NO_LAYER = {
    "trainable_token_indices": "rows of an embedding themselves",
    "target_parameters": "parameters that belong to no linear layer, such as those of experts",
}


def read_adapter(directory: str | Path) -> Adapter:
    """A LoRA adapter that PEFT wrote, or ``write_adapter``; ``scaling`` is 1, as each layer's own is in its B.

    rsLoRA, patterns of ranks and of alphas, convolutions, embeddings and modules to save are understood. Raises
    ``ValueError`` in one line for other adapters (DoRA: its update is no product of two matrices; PiSSA and others that
    are updates of another base; trained rows of an embedding, and parameters of no layer), tensors that belong neither
    to LoRA nor to what is saved whole, damaged files, and values that are not finite.
    """
    place = Path(directory)
    try:
        config = read_object(place / CONFIG, "the configuration of an adapter", _BROKEN)
    except OSError as error:
        raise ValueError(f"{place / CONFIG}: {error.strerror}: give the folder of an adapter that PEFT wrote") from None
    _check_plain(place, config)
    weights = Checkpoint(_weights(place))
    parts: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    copies: list[str] = []
    lookups = set()
    for key in weights.names:
        bare = key.removeprefix(PREFIX)
        tensor = weights.read(key)
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{place}: {bare} holds values that are NaN or infinite: {_BROKEN}")
        found = _PAIR.fullmatch(bare)
        if found is None:
            if ".lora_" in bare:
                raise ValueError(
                    f"{place}: {bare} is no part of an ordinary LoRA adapter: merge the adapter into its base and "
                    "extract from the two checkpoints"
                )
            if _BASE_COPY.fullmatch(bare):
                copies.append(bare)
            else:
                whole[bare] = tensor
            continue
        parts.setdefault(found["name"], {})[found["key"]] = tensor
        if found["embedding"]:
            lookups.add(found["name"])
    pairs, kernels = {}, {}
    for name, both in parts.items():
        _check_fit(place, name, both)
        a, b = both["A"], both["B"]
        if a.dim() > 2:
            kernels[name] = tuple(a.shape[1:])
        pairs[name] = _scaled(a.flatten(1), b.flatten(1), scaling_of(config, name, len(a)))
    if is_marked(place / WEIGHTS):
        _check_together(place, config, {name: len(a) for name, (a, _) in pairs.items()})
    return Adapter(
        pairs, 1.0, kernels, frozenset(lookups), bool(config.get("fan_in_fan_out")), whole,
        config.get("base_model_name_or_path") or "", config.get("task_type"), saved=_saved(place, config, whole),
        base_copies=tuple(copies),
    )  # fmt: skip


def _weights(place: Path) -> Path:
    """The file of the weights; one of an earlier PEFT where there is no other, which ``Checkpoint`` then refuses with
    what helps."""
    earlier = place / _BIN
    return earlier if earlier.is_file() and not (place / WEIGHTS).exists() else place / WEIGHTS


def _check_fit(place: Path, name: str, both: Mapping[str, Tensor]) -> None:
    """``ValueError`` where there is no A and B of one rank, or where their product is no update of the weight."""
    a, b = both.get("A"), both.get("B")
    if a is None or b is None or len(a) != b.shape[1]:
        # PEFT lets every group read all inputs, so that what it adds is no grouped convolution
        if a is not None and b is not None and b.dim() > 2 and len(a) % b.shape[1] == 0:
            raise ValueError(
                f"{place}: {name} is a convolution in {len(a) // b.shape[1]} groups, and what PEFT adds to it reads "
                "the inputs of all groups, so that it is no update of its weight: train an adapter without this layer"
            )
        raise ValueError(f"{place}: the matrices A and B of {name} are missing or do not fit each other: {_BROKEN}")


def _check_together(place: Path, config: Mapping[str, Any], ranks: Mapping[str, int]) -> None:
    """``ValueError`` for files of rankfold of which one was replaced without the other, as a machine that stops in
    between leaves them: alphas are those of other ranks then."""
    for name, rank in ranks.items():
        told = _of_layer(config, "rank_pattern", name, config.get("r"))
        if told != rank:
            raise ValueError(
                f"{place}: {name} has rank {rank} in {WEIGHTS} and {told} in {CONFIG}, so that one of them is of an "
                f"earlier adapter: {_BROKEN}"
            )


def _scaled(a: Tensor, b: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """A and ``scaling`` times B, in float32 where half precision would round the product."""
    wide = torch.promote_types(b.dtype, torch.float32)
    product = scaling * b.to(wide)
    if torch.equal(product.to(b.dtype).to(wide), product):
        return a, product.to(b.dtype)
    return a.to(wide), product


def _saved(place: Path, config: Mapping[str, Any], whole: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The modules that hold ``whole``: those that the configuration names, and embeddings and heads, which PEFT also
    saves by themselves, as matrices with their bias. ``ValueError`` for any other tensor."""
    named = list(dict.fromkeys(config.get("modules_to_save") or ()))
    for name in whole:
        parts = name.split(".")
        modules = [".".join(parts[:depth]) for depth in range(1, len(parts))]
        if any(module.endswith(ending) for module in modules for ending in named):  # as PEFT finds them
            continue
        owner = ".".join(parts[:-1])
        matrix = whole.get(f"{owner}.weight")
        if not owner or parts[-1] not in ("weight", "bias") or matrix is None or matrix.dim() != 2:
            raise ValueError(
                f"{place}: {name} is no part of an ordinary LoRA adapter, and of no module that is saved whole "
                "(modules_to_save): merge the adapter into its base and extract from the two checkpoints"
            )
        named.append(owner)
    return tuple(named)


def _check_plain(place: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise ValueError(
            f"{place}: the adapter is of type {config.get('peft_type')}, and only LORA is read: merge it into its "
            "base (merge_and_unload of PEFT) and extract from the two checkpoints"
        )
    if config.get("use_dora"):
        raise ValueError(f"{place}: {DORA}")
    if config.get("layer_replication"):
        raise ValueError(
            f"{place}: the adapter repeats layers of its base (layer_replication), so that several updates belong "
            "to one weight: PEFT runs it unmerged, and no adapter of the base can hold what it does"
        )
    for setting, what in _NO_PRODUCT.items():
        if config.get(setting):
            raise ValueError(
                f"{place}: the adapter {what} ({setting}), so that it is no product of two matrices added to a weight: "
                "give an ordinary LoRA adapter"
            )
    for setting, what in _NO_LAYER.items():
        if config.get(setting):
            raise ValueError(
                f"{place}: the adapter also trains {what} ({setting}): merge it into its base (merge_and_unload of "
                "PEFT) and extract from the two checkpoints"
            )
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_OFF_THE_BASE):
        raise ValueError(
            f"{place}: the adapter started with init_lora_weights={start}, which takes its start off the base, so that "
            "it is no update of the base itself: save it from the training once more, with "
            "path_initial_model_for_weight_conversion of PEFT, which makes it one"
        )
    if config.get("bias", "none") != "none":
        raise ValueError(
            f"{place}: the adapter also changes biases (bias={config['bias']}): merge it into its base "
            "(merge_and_unload of PEFT) and extract from the two checkpoints"
        )


def scaling_of(config: Mapping[str, Any], name: str, rank: int) -> float:
    """What PEFT multiplies the product of a layer's two matrices with: alpha / r, or alpha / √r of rsLoRA."""
    alpha = float(_of_layer(config, "alpha_pattern", name, config.get("lora_alpha", 8)))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_layer(config: Mapping[str, Any], patterns: str, name: str, otherwise: Any) -> Any:
    """The value of the first pattern that fits the end of the layer's name, as PEFT looks it up."""
    known, asked = config.get(patterns) or {}, outer_name(name)
    return next((known[key] for key in known if re.match(rf"(.*\.)?({key})$", asked)), otherwise)
