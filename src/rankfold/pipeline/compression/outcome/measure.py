"""The figures of a model: how well it answers, what it costs, how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from rankfold.batches import arguments, batches_of, forward, inputs_of
from rankfold.costs import Cost, Example, evaluating, latencies, model_cost
from rankfold.costs.decoding import generates, prompt_latencies
from rankfold.linalg.brief import brief
from rankfold.objectives import Evaluation, Figure, Objective
from rankfold.train import evaluate
from rankfold.train.feed import InMemory, in_memory
from rankfold.zoo.samples import Samples
from rankfold.zoo.split import Split
from rankfold.zoo.text import Texts


@dataclass(frozen=True)
class Figures:
    """What ``rankfold evaluate`` prints.

    ``score``: what the objective says on one split, its judging figure first; ``flops`` for one sample, two per
    multiply-add; ``bytes`` of parameters and buffers; ``latency_ms``: median milliseconds of one forward of one
    sample on this machine; of models that generate text also ``prefill_ms``, of reading the prompt, and ``decode_ms``,
    of one more token after it. ``latencies``: the same for other batch sizes; not part of ``to_dict``.
    """

    score: Evaluation
    params: int
    flops: int
    bytes: int
    latency_ms: float
    prefill_ms: float | None = None
    decode_ms: float | None = None
    latencies: Mapping[int, float] = field(default_factory=dict)

    __repr__ = brief

    @property
    def judged(self) -> Figure:
        """The figure that decides which of two networks is better."""
        return self.score.judged

    @property
    def prompts(self) -> dict[str, float]:
        """``prefill_ms`` and ``decode_ms``, where they were measured."""
        return {name: ms for name in ("prefill_ms", "decode_ms") if (ms := getattr(self, name)) is not None}

    @property
    def accuracy(self) -> float:
        """Share of right answers in [0, 1]; ``AttributeError`` for objectives without one."""
        return self.score.accuracy

    @property
    def loss(self) -> float:
        """What training would minimise; of classifiers in nats."""
        return self.score.loss

    def to_dict(self) -> dict[str, Any]:
        """Every figure by its name, the judging one first, then the loss and what the model costs."""
        values = asdict(self)
        del values["latencies"], values["score"]
        values = {name: value for name, value in values.items() if value is not None}
        return self.score.values | {"loss": self.score.loss} | values


def figures(
    models: Mapping[str, nn.Module],
    split: Any,
    example: Any,
    *,
    batches: tuple[int, ...] = (1,),
    scores: Mapping[str, Evaluation] | None = None,
    objective: Objective | str | None = None,
    teacher: nn.Module | None = None,
) -> dict[str, Figures]:
    """Figures of each model on ``split``; latencies are measured in turns, so that a noisy machine treats all alike.

    ``batches`` are the batch sizes that are timed, 1 always among them. ``scores`` spares evaluating again.
    ``objective`` and ``teacher`` as in ``rankfold.train.evaluate``. Models of one structure (fine-tuned ones) differ in
    nothing that takes time, so that it is timed once for all of them. Cost: one pass over ``split`` for each model, and
    at most four seconds for each structure and batch size.
    """
    known = scores or {}
    scored = {
        name: known.get(name) or evaluate(model, split, objective=objective, teacher=teacher)
        for name, model in models.items()
    }
    costs: dict[str, Cost] = {name: model_cost(model, example) for name, model in models.items()}
    first = _first_alike(models)
    distinct = {name: models[name] for name in dict.fromkeys(first.values())}
    timed = {batch: latencies(distinct, example, batch=batch) for batch in sorted({1, *batches})}
    told = all(generates(model, example) for model in distinct.values())
    prompts = prompt_latencies(distinct, example) if told else {}
    return {
        name: Figures(
            scored[name],
            costs[name].params,
            costs[name].flops,
            costs[name].bytes,
            timed[1][first[name]],
            latencies={batch: times[first[name]] for batch, times in timed.items()},
            **prompts.get(first[name], {}),
        )
        for name in models
    }


def _first_alike(models: Mapping[str, nn.Module]) -> dict[str, str]:
    """For each name the first whose model has the same modules, settings and shapes, dtypes and places of tensors."""
    known: dict[Any, str] = {}
    return {name: known.setdefault(_structure(model), name) for name, model in models.items()}


def _structure(model: nn.Module) -> Any:
    tensors = (*model.named_parameters(), *model.named_buffers())
    return repr(model), tuple((name, x.shape, x.dtype, x.device, x.stride()) for name, x in tensors)


def first_example(model: nn.Module, data: Any) -> Example:
    """The first sample of ``data`` as the model takes it; ``ValueError`` if it does not, or if there is none."""
    for batch in batches_of(data, 2, 2):
        with evaluating(model):
            try:
                forward(model, batch)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise ValueError(f"the model cannot take the data (one batch is {_shapes(batch)}): {reason}") from error
        break
    for batch in batches_of(data, 1, 1):
        return Example.of(inputs_of(model, batch))
    raise ValueError("the data is empty: give at least one batch")


def _shapes(batch: Any) -> str:
    args, kwargs = arguments(batch)
    return ", ".join(
        "×".join(map(str, value.shape)) for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)
    )


def held_out(data: Any) -> tuple[Any, str]:
    """The split that results are reported on, and its name: test where there is one, else validation."""
    test = getattr(data, "test", None)
    return (data.validation, "validation") if test is None else (test, "test")


def protocol(evaluation: Evaluation, part: Any) -> str:
    """How perplexity was measured on ``part``, in words; empty for other figures and data."""
    if evaluation.judged.name != "perplexity" or not isinstance(part, Texts) or "line" in part.cut:
        return ""
    return (
        f"perplexity over {len(part):,} {part.cut} that do not overlap, without special tokens; the first of each is "
        f"not predicted, {evaluation.count:,} are; perplexity_error is the standard error over windows"
    )


def samples_of(part: Any, asked: int) -> int:
    """How many samples of a ``calibration_part`` there are to use: all of it, or as many as were asked for."""
    return min(asked, len(part)) if hasattr(part, "take") and hasattr(part, "__len__") else asked


def calibration_part(train: Any, samples: int, seed: int) -> Any:
    """``samples`` samples drawn from ``train`` if it is in memory (a ``rankfold.zoo.Split``, tensors alone, in a tuple
    or in a ``TensorDataset``, and what else ``rankfold.train.feed`` indexes); else ``train``.

    Data sorted by class would otherwise calibrate on a few classes alone.
    """
    generator = torch.Generator().manual_seed(seed)
    if isinstance(train, Split | Samples):
        return train.take(min(samples, len(train)), generator)
    held = in_memory(train)
    tensors = train.tensors if isinstance(train, TensorDataset) else _tensors(held)
    if not tensors or any(len(tensor) != len(tensors[0]) for tensor in tensors):
        return train
    index = torch.randperm(len(tensors[0]), generator=generator)[:samples]
    taken = tuple(tensor[index.to(tensor.device)] for tensor in tensors)
    if isinstance(train, torch.Tensor):
        return taken[0]
    if isinstance(train, TensorDataset):
        return TensorDataset(*taken)
    if isinstance(train, tuple) or held is None:
        return taken
    return _Drawn(taken[0], taken[1] if len(taken) > 1 else None, held.normalize)


def _tensors(held: InMemory | None) -> tuple[torch.Tensor, ...]:
    return () if held is None else (held.inputs,) if held.labels is None else (held.inputs, held.labels)


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Some samples of what is in memory in a class of its own."""

    inputs: torch.Tensor
    labels: torch.Tensor | None
    normalize: Callable[[torch.Tensor], torch.Tensor]
