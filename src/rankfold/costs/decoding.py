"""Time of a language model, apart: reading a prompt, and one further token after it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rankfold.batches import evaluating
from rankfold.costs.clock import latencies
from rankfold.costs.example import Example, with_batch
from rankfold.sites import is_pretrained, unwrap


def generates(model: nn.Module, example: Any) -> bool:
    """Whether it is a model of transformers that goes on from a prompt, and ``example`` (input_ids) is one."""
    root: Any = unwrap(model)
    ids = Example.of(example).kwargs.get("input_ids")
    decoder = is_pretrained(root) and root.can_generate() and not root.config.is_encoder_decoder
    return decoder and isinstance(ids, Tensor) and ids.dim() == 2 and ids.shape[1] > 1


def prompt_latencies(models: Mapping[str, nn.Module], example: Any) -> dict[str, dict[str, float]]:
    """Median milliseconds of each model, measured in turns: ``prefill_ms`` of reading a prompt and ``decode_ms`` of one
    more token, at batch 1.

    The prompt are the ``input_ids`` of ``example`` less the last one, which is the further token; it is read from the
    cache of keys and values that the prompt has left. Empty where a model keeps no such cache.
    """
    ids = with_batch(Example.of(example), 1).kwargs["input_ids"]
    prompt, token = {"input_ids": ids[:, :-1]}, {"input_ids": ids[:, -1:]}
    after = {}
    for name, model in models.items():
        with evaluating(model):
            place = next(model.parameters()).device
            cache = _cache_of(model(input_ids=prompt["input_ids"].to(place), use_cache=True))
        if not hasattr(cache, "crop"):
            return {}
        after[name] = _Next(model, cache)
    reading = latencies({name: _Prompt(model) for name, model in models.items()}, prompt)
    try:
        further = latencies(after, token)
    except (RuntimeError, ValueError):  # a cache that cannot be taken back, as of sliding windows
        return {}
    return {name: {"prefill_ms": reading[name], "decode_ms": further[name]} for name in models}


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
