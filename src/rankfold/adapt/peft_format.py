"""Adapters on the disk as PEFT reads and writes them: ordinary LoRA, whatever made it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import pad

from rankfold.linalg.brief import brief
from rankfold.run.disk.container import packed, read_object
from rankfold.run.disk.files import write_atomically
from rankfold.run.disk.foreign import foreign
from rankfold.run.disk.tensors import Checkpoint

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MARK = "rankfold"  # in the metadata of weights that are ours
_PREFIX = "base_model.model."
_PAIR = re.compile(r"(?P<name>.+)\.lora_(?P<embedding>embedding_)?(?P<key>[AB])(\.weight)?")
_BASE_COPY = re.compile(r".+\.base_layer\.(weight|bias)")
_BROKEN = "train or save the adapter again"
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
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Adapter:
    """Updates of low rank by layer name: ``scaling`` · B A of ``pairs`` A (r, n) and B (m, r), as matrices.

    ``kernels``: (C_in, k, …) of those that are convolutions; ``lookups``: those of embeddings, whose update is stored
    transposed; ``stored_transposed``: every layer keeps its weight as (n, m). ``whole``: tensors that are given as they
    are in place of those of the base, by name; ``saved``: the modules that hold them, as PEFT is told
    (``modules_to_save``; by default those that own the tensors). ``base_copies``: names of tensors of the base that
    PEFT had saved beside LoRA on them, and that are no part of this. ``magnitudes``: of DoRA, the norm (m,) that
    each row of a weight has when the update was added.
    """

    pairs: Mapping[str, Pair]
    scaling: float = 1.0
    kernels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    lookups: frozenset[str] = frozenset()
    stored_transposed: bool = False
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    base_model: str = ""
    task: str | None = None
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)
    saved: tuple[str, ...] = ()
    base_copies: tuple[str, ...] = ()

    __repr__ = brief

    @property
    def ranks(self) -> dict[str, int]:
        return {name: len(a) for name, (a, _) in self.pairs.items()}

    @property
    def params(self) -> int:
        """Numbers that are stored."""
        factors = sum(part.numel() for pair in self.pairs.values() for part in pair)
        return factors + sum(tensor.numel() for tensor in (*self.whole.values(), *self.magnitudes.values()))

    def padded(self) -> Adapter:
        """The same updates, every layer at the largest rank, by zeros."""
        most = max(self.ranks.values(), default=0)
        pairs = {
            name: (pad(a, (0, 0, 0, most - len(a))), pad(b, (0, most - len(a)))) for name, (a, b) in self.pairs.items()
        }
        return replace(self, pairs=pairs)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, (a, b) in self.pairs.items():
            if name in self.lookups:
                yield f"{_PREFIX}{name}.lora_embedding_A", a
                yield f"{_PREFIX}{name}.lora_embedding_B", b
                continue
            kernel = self.kernels.get(name)
            yield f"{_PREFIX}{name}.lora_A.weight", a if kernel is None else a.reshape(len(a), *kernel)
            points = () if kernel is None else (1,) * (len(kernel) - 1)
            yield f"{_PREFIX}{name}.lora_B.weight", b.reshape(*b.shape, *points)
        for name, norms in self.magnitudes.items():
            yield f"{_PREFIX}{name}.lora_magnitude_vector", norms
        for name, tensor in self.whole.items():
            yield f"{_PREFIX}{name}", tensor

    def _config(self) -> dict[str, Any]:
        ranks = self.ranks
        rank = Counter(ranks.values()).most_common(1)[0][0]
        names = [re.escape(name) for name in ranks]
        config: dict[str, Any] = {
            "peft_type": "LORA",
            "task_type": self.task,
            "base_model_name_or_path": self.base_model or None,
            "inference_mode": True,
            "r": rank,
            "lora_alpha": self.scaling * rank,
            # full names, each anchored: a bare one would also match the end of a longer one
            "target_modules": "|".join(names),
            "rank_pattern": {f"^{re.escape(name)}": r for name, r in ranks.items() if r != rank},
            "alpha_pattern": {f"^{re.escape(name)}": self.scaling * r for name, r in ranks.items() if r != rank},
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": self.stored_transposed,
            "init_lora_weights": True,
        }
        if self.magnitudes:
            config["use_dora"] = True
        if self.whole:
            config["modules_to_save"] = sorted(self.saved or {name.rpartition(".")[0] for name in self.whole})
        return config


def write_adapter(adapter: Adapter, directory: str | Path, *, uniform: bool = False) -> Path:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json`` for ``peft.PeftModel.from_pretrained(base,
    directory)`` and whatever else reads LoRA; peft is not needed. Layers of rank 0 are left out, as PEFT knows none.

    ``uniform``: every layer gets the largest rank by zeros, and one alpha, for readers that know one rank and one alpha
    alone. Returns the directory. Raises ``ValueError`` where no layer has an update, for parts of one attention module
    at different ranks, and for an adapter that is there already and that rankfold did not write.
    """
    adapter = replace(adapter, pairs={name: pair for name, pair in adapter.pairs.items() if len(pair[0])})
    if not adapter.pairs and adapter.whole:
        raise ValueError(
            "PEFT needs at least one layer of low rank in an adapter, and no layer has an update: all that changed is "
            "stored whole. Give the tuned checkpoint itself"
        )
    if not adapter.pairs:
        raise ValueError("no layer has an update, so there is no adapter to write: train the adapter first")
    adapter = adapter.padded() if uniform else adapter
    _check_attention(adapter.ranks)
    place = Path(directory)
    check_adapter_place(place)
    write_atomically(place / WEIGHTS, packed(dict(adapter._tensors()), {"format": "pt", _MARK: "adapter"}))
    write_atomically(place / CONFIG, (json.dumps(adapter._config(), indent=1) + "\n").encode())
    return place


def _check_attention(ranks: Mapping[str, int]) -> None:
    """PEFT gives the two parts of an adapted ``nn.MultiheadAttention`` one rank, that of the outer name."""
    for name, rank in ranks.items():
        outer, inner, _ = name.partition(".base_layer.")
        if inner and ranks.get(outer) != rank:
            raise ValueError(
                f"{outer} is an attention module, whose two parts PEFT keeps at one rank, and they have rank "
                f"{ranks.get(outer, 0)} and {rank} here: give a budget of one rank (rank=) that both reach"
            )


def check_adapter_place(directory: Path) -> None:
    """``ValueError``, before any work, where an adapter would replace one that rankfold did not write."""
    there = [directory / name for name in (WEIGHTS, CONFIG) if (directory / name).exists()]
    if there and not _marked(directory / WEIGHTS):
        raise ValueError(foreign(there[0]))


def _marked(file: Path) -> bool:
    try:
        with safe_open(file, "pt") as opened:
            return _MARK in (opened.metadata() or {})
    except (OSError, SafetensorError):
        return False


def is_adapter(path: str | Path) -> bool:
    """Whether it is a folder that PEFT wrote, or that looks like one."""
    return (Path(path) / CONFIG).is_file()


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
    weights = Checkpoint(place / WEIGHTS)
    parts: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    copies: list[str] = []
    lookups = set()
    for key in weights.names:
        bare = key.removeprefix(_PREFIX)
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
        if set(both) != {"A", "B"} or both["A"].shape[0] != both["B"].shape[1]:
            raise ValueError(f"{place}: the matrices A and B of {name} are missing or do not fit each other: {_BROKEN}")
        a, b = both["A"], both["B"]
        if a.dim() > 2:
            kernels[name] = tuple(a.shape[1:])
        pairs[name] = _scaled(a.flatten(1), b.flatten(1), scaling_of(config, name, len(a)))
    return Adapter(
        pairs, 1.0, kernels, frozenset(lookups), bool(config.get("fan_in_fan_out")), whole,
        config.get("base_model_name_or_path") or "", config.get("task_type"), saved=_saved(place, config, whole),
        base_copies=tuple(copies),
    )  # fmt: skip


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
        raise ValueError(
            f"{place}: a DoRA adapter also scales columns, so its update is not of low rank: merge it into its "
            "base (merge_and_unload of PEFT) and extract from the two checkpoints"
        )
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
    patterns = config.get("alpha_pattern") or {}
    # the first that fits the end of the name, as PEFT looks it up
    alpha = next(
        (patterns[key] for key in patterns if re.match(rf"(.*\.)?({key})$", name)), config.get("lora_alpha", 8)
    )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
