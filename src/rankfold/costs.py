"""What a model costs: parameters, FLOPs, bytes, and measured latency; of the whole, or of one site in one form.

FLOPs count two for each multiply-add, as ``torch.utils.flop_counter`` does, for one sample; published tables often
count one. Fractions are the same either way.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import UninitializedParameter

from rankfold.batches import mapped, moved, tensors_in
from rankfold.flops import FlopCount
from rankfold.sites import Call, Form, Site, SiteList, split_attention, unwrap

# parameters of a model, and elements of its input, with which it is run for real to count its FLOPs
_REALLY = 20_000_000, 1_000_000


@dataclass(frozen=True)
class Cost:
    """Parameters (count), FLOPs (for one sample, two per multiply-add), bytes (parameters and buffers)."""

    params: int
    flops: int
    bytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.flops + other.flops, self.bytes + other.bytes)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.params - other.params, self.flops - other.flops, self.bytes - other.bytes)


@dataclass(frozen=True)
class Example:
    """One input of a model, as its positional and keyword arguments, and how many samples it holds."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    samples: int

    @classmethod
    def of(cls, example: Any) -> Example:
        """From a tensor, a tuple of positional arguments or a mapping of keyword arguments (batch first)."""
        if isinstance(example, Example):
            return example
        if isinstance(example, Mapping):
            args, kwargs = (), dict(example)
        else:
            args, kwargs = (tuple(example) if isinstance(example, tuple | list) else (example,)), {}
        tensors = list(tensors_in((args, kwargs)))
        if not tensors:
            raise ValueError("the example input holds no tensor: give a tensor, a tuple of arguments or a dict")
        return cls(args, kwargs, tensors[0].shape[0] if tensors[0].dim() else 1)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Example:
        return Example(moved(self.args, device, dtype), moved(self.kwargs, device, dtype), self.samples)

    def fitting(self, model: nn.Module) -> Example:
        """On the model's device and in its floating dtype."""
        parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
        return self if parameter is None else self.to(parameter.device, parameter.dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode and no gradients inside; every module's own mode restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, mode in modes:
            module.training = mode


def _count(model: nn.Module, example: Example, sites: SiteList | None) -> tuple[int, dict[str, list[Call]]]:
    calls: dict[str, list[Call]] = defaultdict(list)
    handles = []
    for site in sites or ():

        def record(module, args, kwargs, output, name=site.name):
            first = args[0] if args else next(iter(kwargs.values()))
            calls[name].append(Call(tuple(first.shape), tuple(output.shape)))

        handles.append(model.get_submodule(site.name).register_forward_hook(record, with_kwargs=True))
    try:
        with FlopCount() as counter, sdpa_kernel(SDPBackend.MATH):
            model(*example.args, **example.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return counter.total, dict(calls)


def _ghost(model: nn.Module) -> nn.Module:
    """A copy on the meta device; no value is copied on the way."""
    memo: dict[int, Any] = {id(b): b.detach().to("meta") for b in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    return copy.deepcopy(model, memo).to("meta")


def trace(model: nn.Module, example: Any, sites: SiteList | None = None) -> tuple[int, dict[str, list[Call]]]:
    """FLOPs of the whole model for one sample, and the calls of every site with their shapes, for one forward.

    A small model runs once for real. A large one runs on a copy on the meta device, without computing anything, for
    which torch imports its compiler (two seconds, 200 MB); where a model's own code needs values (control flow that
    depends on data) it runs for real too. Sites that are never called are missing from the result.
    """
    model, example = unwrap(model), Example.of(example)
    ways = (_really, _on_meta) if _small(model, example) else (_on_meta, _really)
    errors: dict[Any, Exception] = {}
    for way in ways:
        try:
            flops, calls = way(model, example, sites)
            return flops // example.samples, calls
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            errors[way] = error
            parameter = next(model.parameters(), None)
            if parameter is not None and parameter.is_meta:
                raise
    raise errors[_really]


def _small(model: nn.Module, example: Example) -> bool:
    """Whether one forward takes less than the import of the compiler, and every weight is there to compute with."""
    if any(isinstance(p, UninitializedParameter) or p.is_meta for p in model.parameters()):
        return False
    weights = sum(p.numel() for p in model.parameters())
    inputs = sum(x.numel() for x in tensors_in((example.args, example.kwargs)))
    return weights <= _REALLY[0] and inputs <= _REALLY[1]


def _really(model: nn.Module, example: Example, sites: SiteList | None) -> tuple[int, dict[str, list[Call]]]:
    with evaluating(model), split_attention(model):
        return _count(model, example.fitting(model), sites)


def _on_meta(model: nn.Module, example: Example, sites: SiteList | None) -> tuple[int, dict[str, list[Call]]]:
    ghost = _ghost(model)
    with evaluating(ghost), split_attention(ghost), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _count(ghost, example.fitting(ghost).to("meta"), sites)


def storage(model: nn.Module) -> tuple[int, int]:
    """(parameters, bytes of parameters and buffers) of a model; shared tensors count once.

    Raises ``ValueError`` for a parameter that has no shape yet.
    """
    model = unwrap(model)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"{name} has no shape yet: run the model once first (lazy module)")
    params = sum(p.numel() for p in model.parameters())
    return params, sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def model_cost(model: nn.Module, example: Any) -> Cost:
    """Parameters, FLOPs for one sample, and bytes of ``model``."""
    params, size = storage(model)
    return Cost(params, trace(model, example)[0], size)


def site_cost(
    site: Site, form: Form, rank: int, calls: Sequence[Call], samples: int, element_size: int, bias: bool
) -> Cost:
    """What one site costs in one form at one rank; ``bias`` says whether the layer carries one in that form."""
    params = site.layer.params(form, rank, bias)
    return Cost(params, site.layer.flops(form, rank, calls) // samples, params * element_size)


def with_batch(example: Any, batch: int) -> Example:
    """The example repeated or cut to ``batch`` samples along the first axis of each of its batched tensors."""
    example = Example.of(example)

    def resize(x: Tensor) -> Tensor:
        if not x.dim() or x.shape[0] != example.samples:
            return x
        return x[torch.arange(batch, device=x.device) % example.samples]

    return Example(mapped(example.args, resize), mapped(example.kwargs, resize), batch)


def latencies(
    models: Mapping[str, nn.Module], example: Any, *, batch: int = 1, rounds: int = 15, seconds: float = 2.0
) -> dict[str, float]:
    """Median milliseconds of one forward of each model, measured in turns so that a noisy machine treats all alike.

    At least three rounds; at most ``rounds`` or about ``seconds`` for each model, whichever ends first.
    """
    example = with_batch(example, batch)
    times: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        with evaluating(model):
            once(model, example)
    start = time.perf_counter()
    for turn in range(rounds):
        for name, model in models.items():
            with evaluating(model):
                times[name].append(once(model, example))
        if turn >= 2 and time.perf_counter() - start > seconds * len(models):
            break
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def once(model: nn.Module, example: Example) -> float:
    """Seconds of one forward, waiting for an accelerator where there is one."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    example = example.fitting(model)
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    wait()
    start = time.perf_counter()
    model(*example.args, **example.kwargs)
    wait()
    return time.perf_counter() - start
