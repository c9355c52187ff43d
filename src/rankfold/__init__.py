"""Find, induce and exploit low-rank structure in deep networks."""

# ruff: noqa: F405  # the names come from rankfold.api

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankfold.api import *  # noqa: F403

__all__ = [
    "ActivationAware",
    "Advice",
    "ApplyError",
    "Bottlenecks",
    "BudgetError",
    "Bytes",
    "Calibration",
    "CausalLanguageModel",
    "Classification",
    "Condition",
    "Cost",
    "Cuttlefish",
    "Debora",
    "Distill",
    "Dlrt",
    "Embedding",
    "Entry",
    "Evaluation",
    "Extraction",
    "Figure",
    "Flops",
    "Form",
    "FrobeniusDecay",
    "GeoLora",
    "Global",
    "Iterative",
    "KeepEnergy",
    "Latency",
    "LearningCompression",
    "Local",
    "LowRankConv",
    "LowRankLinear",
    "Maestro",
    "MaskedLanguageModel",
    "MaxNorm",
    "MultiLabel",
    "Multiples",
    "NuclearBall",
    "Objective",
    "OfSites",
    "ObjectiveError",
    "Optimal",
    "Params",
    "Plan",
    "Profile",
    "Pufferfish",
    "Ranks",
    "Recipe",
    "Resource",
    "Regression",
    "Robustness",
    "Sequential",
    "Site",
    "SiteList",
    "SliceError",
    "Smallest",
    "SparseFactors",
    "Spectrum",
    "SpectrumRecorder",
    "Spread",
    "StoreError",
    "Stored",
    "Streamed",
    "Teacher",
    "TokenClassification",
    "advise",
    "apply_",
    "bottlenecks",
    "cdln_",
    "debora_",
    "deep_lora_",
    "dlrt_",
    "evaluate",
    "extract",
    "finetune",
    "finetune_recipe",
    "fit",
    "fold_",
    "geolora_",
    "latencies",
    "load",
    "model_cost",
    "objective",
    "overparametrize_",
    "plan",
    "profile",
    "reestimate_",
    "register_budget",
    "register_method",
    "register_rule",
    "restore_",
    "robustness",
    "save",
    "sites",
    "slice_",
    "smallest",
    "spectrum",
    "stream",
    "text",
    "tune_",
    "untie_",
]


_ROOMS = frozenset(
    {"adapt", "collapse", "export", "forms", "hub", "linalg", "pipeline", "recover", "testing", "zoo"}
)  # with public names


class _Package(ModuleType):
    """Imports the public names when the first of them is used, so that ``rankfold --help`` need not wait for torch; and
    rooms with public names of their own, so that ``rankfold.hub.to_dense`` is found after ``import rankfold`` alone.

    Names that are also rooms of the package (``sites``, ``spectrum``) are the functions, whatever was imported before.
    """

    def __getattr__(self, name: str) -> Any:
        if name in _ROOMS:
            return importlib.import_module(f"rankfold.{name}")
        raise AttributeError(f"module 'rankfold' has no attribute {name!r}")

    def __getattribute__(self, name: str) -> Any:
        if name in super().__getattribute__("__all__"):
            return getattr(importlib.import_module("rankfold.api"), name)
        return super().__getattribute__(name)


sys.modules[__name__].__class__ = _Package
