"""Adapters as PEFT knows them, and how they are written for it: ordinary LoRA, whatever made it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import pad

from rankfold.adapt.finite import finite_pair
from rankfold.linalg.brief import brief
from rankfold.run.disk.container import packed
from rankfold.run.disk.files import write_together
from rankfold.run.disk.foreign import foreign

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NOTE = "extraction.json"  # beside them, of an adapter that was extracted or cut
_MARK = "rankfold"  # in the metadata of weights that are ours
PREFIX = "base_model.model."
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
                yield f"{PREFIX}{name}.lora_embedding_A", a
                yield f"{PREFIX}{name}.lora_embedding_B", b
                continue
            kernel = self.kernels.get(name)
            yield f"{PREFIX}{name}.lora_A.weight", a if kernel is None else a.reshape(len(a), *kernel)
            points = () if kernel is None else (1,) * (len(kernel) - 1)
            yield f"{PREFIX}{name}.lora_B.weight", b.reshape(*b.shape, *points)
        for name, norms in self.magnitudes.items():
            yield f"{PREFIX}{name}.lora_magnitude_vector", norms
        for name, tensor in self.whole.items():
            yield f"{PREFIX}{name}", tensor

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


def write_adapter(
    adapter: Adapter, directory: str | Path, *, uniform: bool = False, note: Mapping[str, Any] | None = None
) -> Path:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json`` for ``peft.PeftModel.from_pretrained(base,
    directory)`` and whatever else reads LoRA; peft is not needed. Layers of rank 0 are left out, as PEFT knows none.

    ``uniform``: every layer gets the largest rank by zeros, and one alpha, for readers that know one rank and one alpha
    alone. ``note``: for ``extraction.json`` beside the two. All files are replaced together: a full disk leaves those
    of an earlier adapter as they were. Returns the directory. Raises ``ValueError`` where no layer has an update, for
    parts of one attention module at different ranks, and for an adapter that is there already and that rankfold did not
    write; ``NonFiniteError`` for an update with values that are not finite.
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
    for name, pair in adapter.pairs.items():
        finite_pair(name, pair)
    _check_attention(adapter.ranks)
    place = Path(directory)
    check_adapter_place(place)
    files = {WEIGHTS: packed(dict(adapter._tensors()), {"format": "pt", _MARK: "adapter"})}
    if note is not None:
        files[NOTE] = _json(note)
    stale = [NOTE] if note is None and is_marked(place / WEIGHTS) else []
    write_together(place, files, CONFIG, _json(adapter._config()), without=stale)
    return place


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()


def outer_name(name: str) -> str:
    """The name by which PEFT finds the rank and the alpha of a layer: an adapted ``nn.MultiheadAttention`` has two
    layers, the second of them inside the first, and both go by the name of the module itself."""
    return name.partition(".base_layer.")[0]


def _check_attention(ranks: Mapping[str, int]) -> None:
    """PEFT gives the two parts of an adapted ``nn.MultiheadAttention`` one rank, that of the outer name."""
    for name, rank in ranks.items():
        outer = outer_name(name)
        if ranks.get(outer) != rank:
            raise ValueError(
                f"{outer} is an attention module, whose two parts PEFT keeps at one rank, and they have rank "
                f"{ranks.get(outer, 0)} and {rank} here: give a budget of one rank (rank=) that both reach"
            )


def check_adapter_place(directory: Path) -> None:
    """``ValueError``, before any work, where an adapter would replace one that rankfold did not write."""
    there = [directory / name for name in (WEIGHTS, CONFIG) if (directory / name).exists()]
    if there and not is_marked(directory / WEIGHTS):
        raise ValueError(foreign(there[0]))


def is_marked(file: Path) -> bool:
    """Whether rankfold wrote these weights of an adapter."""
    try:
        with safe_open(file, "pt") as opened:
            return _MARK in (opened.metadata() or {})
    except (OSError, SafetensorError):
        return False


def is_adapter(path: str | Path) -> bool:
    """Whether it is a folder that PEFT wrote, or that looks like one."""
    return (Path(path) / CONFIG).is_file()
