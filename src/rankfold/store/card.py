"""The README of a Hugging Face folder with factored layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rankfold.compress.planning.plan import Plan
from rankfold.store.manifest import UNFINISHED

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # OWNER/NAME on the hub


def card(model: nn.Module, plan: Plan, notes: Mapping[str, Any]) -> str:
    """How to load the model, what was done to it and what that cost; no names of anybody's folders."""
    base, (place, loader) = _base(model, notes), _loader(model)
    lines = [
        "---", "library_name: transformers", "tags: [rankfold, low-rank]",
        *([f"base_model: {base}"] if base else []), "---",
        "", f"# {base or type(model).__name__}, factored", "",
        *_unfinished(notes),
        f"{len(plan.changed)} of {len(plan.entries)} matrices are products of thin ones. To load it, install rankfold "
        "and import its plug-in first:",
        "", "```python", "import rankfold.hub", f"from {place} import {loader}", "",
        f'model = {loader}.from_pretrained("this folder")', "```", "",
        "Without `import rankfold.hub` the same line raises an error about a tensor of size 0. Never answer it with "
        "`ignore_mismatched_sizes=True`: the model would have random weights. `from_config` builds dense layers.", "",
        "PEFT takes its layers by the names that they had, once its configuration was told: "
        "`get_peft_model(model, rankfold.hub.adapters(LoraConfig(target_modules=[\"q_proj\"])))`, and to load, "
        "`PeftModel.from_pretrained(model, folder, config=rankfold.hub.adapters(LoraConfig.from_pretrained(folder)))`.",
        "",
        "| | before | after |", "|---|---|---|",
        f"| parameters | {plan.before.params:,} | {plan.after.params:,} |",
        f"| bytes | {plan.before.bytes:,} | {plan.after.bytes:,} |",
        *_figures(notes), "",
        f"Asked: {plan.asked()}; method {plan.method}, ranks {plan.rule}. `plan.json` has the rank of every matrix, "
        "`manifest.json` the hashes of all files. `rankfold export FOLDER --to dense -o dense` multiplies the factors "
        "out for software without the plug-in.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def dense_card(model: nn.Module, plan: Plan, notes: Mapping[str, Any]) -> str:
    """What a folder with the factors multiplied out is, what it was made from, and how far it is from that."""
    base, (_, loader) = _base(model, notes), _loader(model)
    lines = [
        "---", "library_name: transformers", "tags: [low-rank]", *([f"base_model: {base}"] if base else []), "---",
        "", f"# {base or type(model).__name__}, of low rank and multiplied out", "",
        *_unfinished(notes),
        f"{len(plan.changed)} of {len(plan.entries)} matrices were products of thin ones, and are stored multiplied "
        f"out: the architecture is the ordinary one, as large as before, and `{loader}.from_pretrained` loads it "
        "without rankfold. Its figures are those of the smaller network; it saves neither time nor memory.", "",
        "| | original | this |", "|---|---|---|",
        f"| parameters of the network in factors | {plan.before.params:,} | {plan.after.params:,} |",
        *_figures(notes), "",
        f"Asked: {plan.asked()}; method {plan.method}, ranks {plan.rule}.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _base(model: nn.Module, notes: Mapping[str, Any]) -> str:
    """The name on the hub of what the model was made from; empty where it has none."""
    names = (str(notes.get("model", "")), str(getattr(model, "name_or_path", "")))
    return next((name for name in names if _NAME.fullmatch(name) and not Path(name).exists()), "")


def _loader(model: nn.Module) -> tuple[str, str]:
    """The class by which a person loads the model with its head, and the module that has it: that Auto class of
    transformers which gives a model of this kind for its configuration, or else its own."""
    from transformers.models.auto import modeling_auto

    names = sorted(modeling_auto.__all__, key=lambda name: ("ForPreTraining" in name, name))  # others say more
    kinds = {name: getattr(modeling_auto, name) for name in names if name.startswith("Auto")}
    given = {name: _given(kind, type(model.config)) for name, kind in kinds.items()}
    for each in type(model).__mro__:  # of a class of one's own the one that it was made from
        if (found := next((name for name in names if each in given.get(name, ())), None)) is not None:
            return "transformers", found
    own = type(model)
    return "transformers" if own.__module__.startswith("transformers.") else own.__module__, own.__name__


def _given(auto: Any, config: type) -> tuple[type, ...]:
    """The classes that an Auto class of transformers gives for a kind of configuration."""
    found = getattr(auto, "_model_mapping", {}).get(config, ())
    return found if isinstance(found, tuple) else (found,)


def _unfinished(notes: Mapping[str, Any]) -> list[str]:
    """That the job has not ended, where it has not."""
    left = notes.get(UNFINISHED)
    return (
        [f"**Unfinished:** the job that wrote this folder has not ended; {left} is still to come.", ""] if left else []
    )


def _figures(notes: Mapping[str, Any]) -> list[str]:
    """Rows of what was measured before and after, where the notes say."""
    before, after = notes.get("before"), notes.get("figures")
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return []
    counted = {"params", "bytes", "flops", "latency_ms"}
    shown = [key for key in after if key not in counted and isinstance(after[key], int | float)]
    return [f"| {key} | {_number(before.get(key))} | {_number(after[key])} |" for key in shown]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""
