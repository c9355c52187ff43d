"""The public names, one by one; what ``rankfold`` itself offers."""

# ruff: noqa: F401  # re-exported by rankfold/__init__.py

from rankfold.adapt import Debora, Extraction, GeoLora, debora_, deep_lora_, extract, geolora_, restore_
from rankfold.compress.applying.apply import apply_
from rankfold.compress.applying.check import ApplyError
from rankfold.compress.methods import register_method
from rankfold.compress.methods.maxnorm import MaxNorm
from rankfold.compress.methods.nuclear import NuclearBall
from rankfold.compress.methods.relu import ActivationAware
from rankfold.compress.methods.sequential import Sequential
from rankfold.compress.planning.plan import Entry, Plan
from rankfold.compress.planning.planner import plan
from rankfold.compress.planning.profile import Calibration, Profile
from rankfold.compress.planning.profiling import profile
from rankfold.compress.ranks.asked import register_budget
from rankfold.compress.ranks.budget import (
    Bytes,
    Flops,
    KeepEnergy,
    Latency,
    Multiples,
    OfSites,
    Params,
    Ranks,
    Resource,
)
from rankfold.compress.ranks.options import BudgetError
from rankfold.compress.ranks.rules import Global, Iterative, Local, Optimal, register_rule
from rankfold.compress.repair.batchnorm import reestimate_
from rankfold.compress.repair.finetune import finetune, finetune_recipe
from rankfold.compress.repair.tune import tune_
from rankfold.compress.slicing.bottlenecks import Bottlenecks, bottlenecks
from rankfold.compress.slicing.narrowed import SliceError
from rankfold.costs import Cost, latencies, model_cost
from rankfold.induce import (
    Condition,
    Cuttlefish,
    Dlrt,
    FrobeniusDecay,
    LearningCompression,
    Maestro,
    Pufferfish,
    SparseFactors,
    Spread,
    cdln_,
    dlrt_,
    fold_,
    overparametrize_,
)
from rankfold.layers import LowRankConv, LowRankLinear
from rankfold.objectives import (
    CausalLanguageModel,
    Classification,
    Embedding,
    Evaluation,
    Figure,
    MaskedLanguageModel,
    MultiLabel,
    Objective,
    ObjectiveError,
    Regression,
    Teacher,
    TokenClassification,
    objective,
)
from rankfold.pipeline.advice.look import Advice, advise
from rankfold.pipeline.quality.smallest import Smallest, smallest
from rankfold.pipeline.robustness.study import Robustness, robustness
from rankfold.pipeline.slicing import slice_
from rankfold.pipeline.streaming import Streamed, stream
from rankfold.record import SpectrumRecorder
from rankfold.sites import Form, Site, SiteList, sites, untie_
from rankfold.spectrum import Spectrum, spectrum
from rankfold.store import Stored, StoreError, load, save
from rankfold.train import Distill, Recipe, evaluate, fit
from rankfold.zoo.text import text
