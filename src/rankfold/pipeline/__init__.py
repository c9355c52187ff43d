"""The whole job in one call: from a trained network and a budget to a smaller one, its files and its report."""

from rankfold.pipeline.analysis import SiteAnalysis, analyse
from rankfold.pipeline.curve import Point, accuracy_curve
from rankfold.pipeline.delivery import model_notes
from rankfold.pipeline.drawing import spectra_svg, write_analysis
from rankfold.pipeline.heldout import layer_errors, over_fitted
from rankfold.pipeline.job import compress, memory_sentence, summary
from rankfold.pipeline.measure import Figures, calibration_part, figures, first_example, held_out, samples_of
from rankfold.pipeline.repair import compressed_copy
from rankfold.pipeline.request import Settings, check_place, parsed
from rankfold.pipeline.result import Result
from rankfold.pipeline.slicing import slice_
from rankfold.pipeline.trainings.config import ConfigError, TrainConfig
from rankfold.pipeline.trainings.rundir import TrainResult
from rankfold.pipeline.trainings.sweep import Sweep, SweepResult, parse_sweep, sweep
from rankfold.pipeline.trainings.training import train
from rankfold.run.progress import Tell

__all__ = [
    "ConfigError",
    "Figures",
    "Point",
    "Result",
    "Settings",
    "SiteAnalysis",
    "Sweep",
    "SweepResult",
    "Tell",
    "TrainConfig",
    "TrainResult",
    "accuracy_curve",
    "analyse",
    "calibration_part",
    "check_place",
    "compress",
    "compressed_copy",
    "figures",
    "first_example",
    "held_out",
    "layer_errors",
    "memory_sentence",
    "model_notes",
    "over_fitted",
    "parse_sweep",
    "parsed",
    "samples_of",
    "slice_",
    "spectra_svg",
    "summary",
    "sweep",
    "train",
    "write_analysis",
]
