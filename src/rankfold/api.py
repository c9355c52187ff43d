"""The public names, one by one; what ``rankfold`` itself offers."""

# ruff: noqa: F401  # re-exported by rankfold/__init__.py

from rankfold.adapt import deep_lora_
from rankfold.compress.allocate import BudgetError
from rankfold.compress.apply import ApplyError, apply_
from rankfold.compress.bottlenecks import Bottlenecks, bottlenecks
from rankfold.compress.budget import Bytes, Flops, KeepEnergy, Latency, Params, Ranks
from rankfold.compress.finetune import finetune, finetune_recipe
from rankfold.compress.maxnorm import MaxNorm
from rankfold.compress.narrowed import SliceError
from rankfold.compress.nuclear import NuclearBall
from rankfold.compress.plan import Entry, Plan
from rankfold.compress.planner import Calibration, plan
from rankfold.compress.relu import ActivationAware
from rankfold.compress.repair import reestimate_
from rankfold.compress.rules import Global, Iterative, Local, Optimal
from rankfold.compress.sequential import Sequential
from rankfold.compress.tune import tune_
from rankfold.costs import Cost, latencies, model_cost
from rankfold.induce import cdln_, fold_, overparametrize_
from rankfold.layers import LowRankConv, LowRankLinear
from rankfold.pipeline.slicing import slice_
from rankfold.record import SpectrumRecorder
from rankfold.sites import Form, Site, SiteList, sites
from rankfold.spectrum import Spectrum, spectrum
from rankfold.store import Stored, StoreError, load, save
from rankfold.train import Distill, Recipe, evaluate, fit
