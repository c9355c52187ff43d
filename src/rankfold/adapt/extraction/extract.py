"""The update between two checkpoints as a LoRA adapter, read one layer at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.adapt.extraction.budget import Asked, asked, room
from rankfold.adapt.extraction.compare import (
    LeftOut,
    check_alike,
    differences,
    moved_by,
    with_new_rows,
)
from rankfold.adapt.extraction.metric import Metric, metrics
from rankfold.adapt.extraction.named import Named
from rankfold.adapt.extraction.refine import refined
from rankfold.adapt.extraction.result import Extraction, extraction_of
from rankfold.adapt.extraction.running import running_model
from rankfold.adapt.extraction.spread import Update, spread
from rankfold.adapt.extraction.whole import kept_whole, moved_whole, outside, resizing
from rankfold.adapt.peft_format import Adapter
from rankfold.adapt.places import NOT_CHOSEN, Places, places
from rankfold.batches import check_rereadable
from rankfold.compress.ranks.numbers import whole as whole_number
from rankfold.compress.repair.whole import Steps
from rankfold.linalg.leading import Leading, leading
from rankfold.objectives import CausalLanguageModel, Objective, Teacher, objective_named
from rankfold.run.disk.pretrained import config_of, is_folder
from rankfold.run.disk.tensors import Checkpoint
from rankfold.run.ordinary import ordinarily
from rankfold.run.progress import Progress, showing
from rankfold.sites import Form, Site, is_causal, is_pretrained, unwrap, why_left
from rankfold.sites.wish import Where

RATE, BATCH = 3e-3, 8  # of the steps of tuning
Source = str | Path | nn.Module | Mapping[str, Tensor]


@showing
@ordinarily
def extract(
    base: Source,
    tuned: Source,
    budget: str | Asked | Sequence[str],
    *,
    model: nn.Module | None = None,
    data: Any = None,
    objective: Objective | str | None = None,
    samples: int = 512,
    where: Where | None = None,
    whole: Sequence[str] = (),
    tune: int = 0,
    progress: Progress | None = None,
) -> Extraction:
    """What ``tuned`` has learnt beyond ``base``, as a LoRA adapter for ``base``; nothing is written until ``save``.

    Every difference that the adapter does not take is in ``left_out`` with its reason.

    Args:
        base: a folder of transformers, a safetensors file, a module or a state dict; of files one layer is in memory at
            a time.
        tuned: likewise.
        budget: ``"rank=16"``, ``"params=0.1"`` (of the model; above 1 a count), ``"error=0.1"`` (relative, of all
            updates), or several; ranks are shared out between layers so that the error is least.
        model: a network of that architecture, which says what the tensors are, where neither is a module nor ``base`` a
            folder; its own weights do not matter.
        data: unlabelled inputs; then errors are changes of the tuned model's outputs, and layers that they do not reach
            are left out.
        objective: how outputs are read, or the name of that; told from the model by default.
        samples: of ``data`` that are used, the first.
        where: as in ``rankfold.sites``.
        whole: globs of modules, such as norms, whose tuned tensors go into the adapter as they are
            (``modules_to_save``), and those of modules that are tied to them; they count in ``params``.
        tune: train all factors together for so many steps of Adam towards the tuned model's answers on ``data``,
            without labels; the best of six looks at samples that are held back is kept. Both models are then in memory.
        progress: called as ``progress(what, done, total)`` as the work goes on.

    Returns:
        An ``Extraction``.

    Raises:
        ValueError: checkpoints of different architectures or vocabularies, quantised ones, values that are not finite,
            equal ones; data that can be read only once; ``samples`` below 1 or ``tune`` below 0.
        BudgetError: a budget that cannot be met.

    Cost: of each layer m n (rank + 16) · 8 multiplications, not a full decomposition; with data also what second
    moments cost, in float64.

    Example:
        >>> base, tuned = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8))
        >>> _ = tuned.load_state_dict(base.state_dict()), tuned[0].weight.data.add_(1.0)
        >>> rf.extract(base, tuned, "rank=1").error < 1e-3
        True
    """
    if tune and data is None:
        raise ValueError(
            "tune= needs data=: give inputs, on which the base with the adapter is trained to answer as the tuned "
            "model does"
        )
    check_rereadable(data)
    for name, count, least in (("samples", samples, 1), ("tune", tune, 0)):
        whole_number(name, count, least)
    wanted, objective = asked(budget), None if objective is None else objective_named(objective)
    network = _network(base, tuned, model)
    first, second = (Named(_tensors(source, network), network) for source in (base, tuned))
    found = places(network, where, written=True)
    if not found.sites:
        reasons = why_left([(name, why) for name, why in found.left_out if why != NOT_CHOSEN])
        raise ValueError(
            f"{type(unwrap(network)).__name__} has no layer that can be adapted"
            f"{'' if where is None else f' among where={where!r}'}{f' ({reasons})' if reasons else ''}"
        )
    tensors, modules, found = kept_whole(network, whole, found, second)
    more = with_new_rows(first, second)
    if more and tune:
        raise ValueError(
            f"tune= compares the answers of both models, and {next(iter(more))} has more rows in {second.title}: give "
            "the base as many (resize_token_embeddings of transformers) before, or leave tune= (--tune) out"
        )
    found = _same_rows(found, more)
    if not found.sites:
        raise ValueError(
            "no layer is left to adapt, as each is stored whole (--whole) or has new rows, and PEFT needs one layer of "
            "low rank: store fewer modules whole, or give the tuned checkpoint itself"
        )
    check_alike(first, second, [site.parameter for site in found.sites])
    left = differences(network, first, second, found, [*(s.parameter for s in found.sites), *tensors])
    running = None if data is None else running_model(tuned, network, second, first)
    if running is not None and objective is None:
        objective = CausalLanguageModel() if is_causal(running) else Teacher()
    weighed = None
    if running is not None and objective is not None:
        weighed = metrics(running, data, found.sites, objective, samples=samples, progress=progress)
        lost = [Difference(s, first, second, None) for s in found.sites if s.name not in weighed]
        left = (*left, *(each.left_out("not reached by the data") for each in lost))
    chosen = tuple(site for site in found.sites if weighed is None or site.name in weighed)
    if not chosen:
        raise ValueError(
            "none of the layers is reached by the data: give inputs of the kind that the model was tuned for"
        )
    size = sum(parameter.numel() for parameter in unwrap(network).parameters())
    stored = sum(tensor.numel() for tensor in tensors.values())
    limit = room(wanted.limit(size), stored, min(sum(site.shape) for site in chosen))
    apart = [Difference(site, first, second, weighed) for site in chosen]
    parts = spread({each.site.name: each.update() for each in apart}, wanted, limit, progress)
    if not tensors and not any(part.energy > 0 for part in parts.values()):
        raise ValueError(
            f"{first.title} and {second.title} do not differ in any layer that can be adapted, so there is nothing "
            "to extract: give a checkpoint and another one that was tuned from it"
        )
    blank = _blank(chosen, tensors, modules, network, first.title if isinstance(base, str | Path) else "")
    moved = sum(each.moved for each in apart) + moved_whole(tensors, first) + sum(item.moved for item in left)
    result = extraction_of(parts, {s.name: s.shape for s in chosen}, blank, wanted, size, left, data is not None)
    result = replace(
        result, moved=moved, notes=(*resizing(tensors, first), *outside(network, left, moved), *result.notes)
    )
    if not tune or running is None or objective is None:
        return result
    here, how = running_model(base, network, first), Steps(tune, RATE, samples, BATCH, torch.optim.Adam)
    adapter, way = refined(here, running, {s.name: s for s in chosen}, result.adapter, data, objective, how, progress)
    return replace(result, adapter=adapter, tuned=way, unit=objective.diverges_in)


def _blank(
    chosen: Sequence[Site], whole: Mapping[str, Tensor], modules: tuple[str, ...], network: nn.Module, base: str
) -> Adapter:
    """The adapter of these sites without its factors."""
    convolutions = ((site.name, site.layer.convolution) for site in chosen)
    return Adapter(
        {},
        kernels={name: (conv.channels_in, *conv.kernel) for name, conv in convolutions if conv is not None},
        stored_transposed=all(site.layer.stored_transposed for site in chosen),
        whole=whole,
        saved=modules,
        base_model=base,
        task="CAUSAL_LM" if is_causal(unwrap(network)) else None,
    )


@dataclass
class Difference:
    """The update of one site, read from both checkpoints whenever it is needed."""

    site: Site
    base: Named
    tuned: Named
    weighed: Mapping[str, Metric] | None
    _noise: float = field(default=0.0, init=False)
    _wide: torch.dtype = field(default=torch.float32, init=False)  # in which it is taken
    moved: float = field(default=0.0, init=False)  # the squared norm of it, once it was read

    def update(self) -> Update:
        """It as what ranks are shared out over."""
        return Update(self.site.shape, self.leading, lambda: self._noise, lambda: self._wide)

    def left_out(self, why: str) -> LeftOut:
        """It as a part that the adapter does not have."""
        return LeftOut(self.site.parameter, why, None, moved_by(*self._weights()))

    def _weights(self) -> tuple[Tensor, Tensor]:
        return self.base.weight(self.site.parameter), self.tuned.weight(self.site.parameter)

    def leading(self, rank: int) -> Leading:
        """Its leading triplets; ``ValueError`` with the layer's name for weights that are not finite."""
        old, new = self._weights()
        self._wide = wide = torch.float64 if torch.float64 in (old.dtype, new.dtype) else torch.float32
        change = self._matrix(new.to(wide) - old.to(wide))
        self.moved = float(change.double().square().sum())
        if self.weighed is not None:
            return self.weighed[self.site.name].leading(change, rank)
        if torch.float16 not in (old.dtype, new.dtype) and torch.bfloat16 not in (old.dtype, new.dtype):
            # each entry is off by about a unit in the last place of a weight; such a matrix has norm σ (√m + √n)
            size = float((old.double().square().mean() + new.double().square().mean()).sqrt())
            self._noise = torch.finfo(wide).eps * size * sum(side**0.5 for side in change.shape)
        return leading(change, rank)

    def _matrix(self, weight: Tensor) -> Tensor:
        return self.site.layer.geometry(Form.FACTORED).matrix(weight)


def _same_rows(found: Places, more: Mapping[str, tuple[int, int]]) -> Places:
    """Without the layers that have new rows (``more``), which no update of the base's weight can add."""
    grown = tuple((site.parameter, "a layer") for site in found.sites if site.parameter in more)
    return Places(tuple(site for site in found.sites if site.parameter not in more), (*found.left_out, *grown))


def _network(base: Source, tuned: Source, model: nn.Module | None) -> nn.Module:
    """A network that says what the tensors are; its weights are not looked at."""
    if isinstance(base, str | Path) and isinstance(tuned, str | Path) and is_folder(base) and is_folder(tuned):
        kinds = [config_of(folder).get("model_type") for folder in (base, tuned)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{base} is a {kinds[0]} and {tuned} is a {kinds[1]}, so their architectures differ: give a "
                "checkpoint and another one that was tuned from it"
            )
    for known in (model, base, tuned):
        if isinstance(known, nn.Module):
            return known
    from rankfold.hub import skeleton  # which imports transformers

    for folder in (base, tuned):
        if isinstance(folder, str | Path) and is_folder(folder):
            return skeleton(folder)
    raise ValueError(
        f"{base if isinstance(base, str | Path) else 'a state dict'}: the names of its tensors do not tell which "
        "layers they belong to: give model= (--model), a network of that architecture"
    )


def _tensors(source: Source, network: nn.Module) -> Checkpoint:
    """Its tensors; those of a folder by the names that its model has, which its files may call otherwise."""
    if isinstance(source, str | Path) and is_folder(source) and is_pretrained(unwrap(network)):
        from rankfold.hub import Stored

        return Stored(source, unwrap(network))
    return Checkpoint(source)
