"""Time of a language model, apart: reading a prompt, and one further token after it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from rankfold.batches import evaluating
from rankfold.costs.clock import latencies
from rankfold.costs.example import Example, with_batch
from rankfold.sites import is_pretrained, unwrap

Phase = Literal["forward", "prefill", "decode"]


def generates(model: nn.Module, example: Any) -> bool:
    """Whether it is a model of transformers that goes on from a prompt, and ``example`` (input_ids) is one."""
    root: Any = unwrap(model)
    ids = Example.of(example).kwargs.get("input_ids")
    decoder = is_pretrained(root) and root.can_generate() and not root.config.is_encoder_decoder
    return decoder and isinstance(ids, Tensor) and ids.dim() == 2 and ids.shape[1] > 1


def phased(model: nn.Module, example: Any, phase: Phase, batch: int) -> tuple[nn.Module, Example]:
    """What runs in this phase, as a module around ``model``, and its input for ``batch`` samples.

    "forward": the model as it is. The prompt are the ``input_ids`` of ``example`` less the last one, which is the
    further token; "decode" reads that one from the cache of keys and values that the prompt has left. Cost of "decode":
    one forward pass over the prompt. Raises ``ValueError`` for a model that does not go on from a prompt, or keeps no
    cache that can be taken back.
    """
    if phase == "forward":
        return model, with_batch(example, batch)
    if not generates(model, example):
        raise ValueError(
            f"latency of {phase} is measured only of decoders of transformers, on input_ids of at least two "
            "tokens: for this model leave the phase out (latency=0.8 or latency=0.8@64)"
        )
    ids = with_batch(Example.of(example), batch).kwargs["input_ids"]
    if phase == "prefill":
        return _Prompt(model), Example.of({"input_ids": ids[:, :-1]})
    with evaluating(model):
        prompt = Example.of({"input_ids": ids[:, :-1]}).fitting(model.modules())
        cache = _cache_of(model(**prompt.kwargs, use_cache=True))
        step, token = _Next(model, cache), Example.of({"input_ids": ids[:, -1:]})
        try:
            step(**token.fitting(model.modules()).kwargs)
        except (AttributeError, RuntimeError, ValueError):  # none at all, or as of sliding windows
            raise ValueError(
                "latency of decode cannot be measured: the cache of this model cannot be cut back by one token, "
                "so that the same token cannot be timed several times; leave the phase out (latency=0.8 or "
                "latency=0.8@64)"
            ) from None
    return step, token


def tokens_in(example: Example, phase: Phase) -> Example:
    """The input whose calls of layers are those of this phase, for a model that is run without a cache."""
    if phase == "forward":
        return example
    ids = example.kwargs["input_ids"]
    return Example.of({"input_ids": ids[:, :-1] if phase == "prefill" else ids[:, -1:]})


def prompt_latencies(models: Mapping[str, nn.Module], example: Any, batch: int = 1) -> dict[str, dict[str, float]]:
    """Median milliseconds of each model, measured in turns: ``prefill_ms`` of reading a prompt and ``decode_ms`` of one
    more token, for ``batch`` sequences. Empty where a model keeps no cache that can be taken back."""
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    phases: tuple[Phase, ...] = ("prefill", "decode")
    for phase in phases:
        try:
            running = {name: phased(model, example, phase, batch) for name, model in models.items()}
        except ValueError:
            return {}
        given = next(each for _, each in running.values())
        times = latencies({name: module for name, (module, _) in running.items()}, given, batch=batch)
        for name, ms in times.items():
            found[name][f"{phase}_ms"] = ms
    return found


def _cache_of(output: Any) -> Any:
    """What a forward has kept for the next token, by whichever name this version of transformers calls it."""
    return next((output[key] for key in ("cache", "past_key_values") if key in output), None)


class _Prompt(nn.Module):
    """Keeps the cache too, as whoever generates does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Any:
        return self.model(input_ids=input_ids, use_cache=True)


class _Next(nn.Module):
    """One token after a prompt; the cache is left as found, by taking views of it."""

    def __init__(self, model: nn.Module, cache: Any) -> None:
        super().__init__()
        self.model, self.cache = model, cache
        names = inspect.signature(unwrap(model).forward).parameters
        self.name = "cache" if "cache" in names else "past_key_values"

    def forward(self, input_ids: Tensor) -> Any:
        output = self.model(input_ids=input_ids, use_cache=True, **{self.name: self.cache})
        self.cache.crop(-1)
        return output
