"""The whole job in one call: from a trained network and a budget to a smaller one, its files and its report.

Each name is imported when it is first used: a short command need not wait for the libraries of a long one.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankfold.pipeline.analysis import SiteAnalysis, analyse
    from rankfold.pipeline.carry import Carrying, carry_out_
    from rankfold.pipeline.compression.job import compress
    from rankfold.pipeline.compression.outcome.curve import Point, quality_curve
    from rankfold.pipeline.compression.outcome.delivery import model_notes
    from rankfold.pipeline.compression.outcome.heldout import layer_errors, over_fitted
    from rankfold.pipeline.compression.outcome.measure import (
        Figures,
        calibration_part,
        figures,
        first_example,
        held_out,
        protocol,
        samples_of,
    )
    from rankfold.pipeline.compression.outcome.remarks import memory_sentence, summary
    from rankfold.pipeline.compression.outcome.result import Result
    from rankfold.pipeline.compression.repair import compressed_copy
    from rankfold.pipeline.compression.request import Settings, check_place
    from rankfold.pipeline.drawing import spectra_svg, write_analysis
    from rankfold.pipeline.needs import BoundError, Needs
    from rankfold.pipeline.slicing import slice_
    from rankfold.pipeline.streaming import Streamed, stream
    from rankfold.pipeline.trainings.config import ConfigError, TrainConfig
    from rankfold.pipeline.trainings.rundir import TrainResult
    from rankfold.pipeline.trainings.sweep import Sweep, SweepResult, parse_sweep, sweep
    from rankfold.pipeline.trainings.training import train
    from rankfold.run.progress import Tell

_ROOMS = {
    "analysis": ("SiteAnalysis", "analyse"),
    "carry": ("Carrying", "carry_out_"),
    "compression.outcome.curve": ("Point", "quality_curve"),
    "compression.outcome.delivery": ("model_notes",),
    "drawing": ("spectra_svg", "write_analysis"),
    "compression.outcome.heldout": ("layer_errors", "over_fitted"),
    "compression.job": ("compress",),
    "compression.outcome.measure": (
        "Figures",
        "calibration_part",
        "figures",
        "first_example",
        "held_out",
        "protocol",
        "samples_of",
    ),
    "compression.outcome.remarks": ("memory_sentence", "summary"),
    "compression.repair": ("compressed_copy",),
    "compression.request": ("Settings", "check_place"),
    "compression.outcome.result": ("Result",),
    "needs": ("BoundError", "Needs"),
    "slicing": ("slice_",),
    "streaming": ("Streamed", "stream"),
    "trainings.config": ("ConfigError", "TrainConfig"),
    "trainings.rundir": ("TrainResult",),
    "trainings.sweep": ("Sweep", "SweepResult", "parse_sweep", "sweep"),
    "trainings.training": ("train",),
}
_HOME = {name: f"{__name__}.{room}" for room, names in _ROOMS.items() for name in names}
_HOME["Tell"] = "rankfold.run.progress"

__all__ = [
    "BoundError",
    "Needs",
    "Streamed",
    "stream",
    "Carrying",
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
    "quality_curve",
    "analyse",
    "calibration_part",
    "carry_out_",
    "check_place",
    "compress",
    "compressed_copy",
    "figures",
    "first_example",
    "held_out",
    "layer_errors",
    "memory_sentence",
    "model_notes",
    "protocol",
    "over_fitted",
    "parse_sweep",
    "samples_of",
    "slice_",
    "spectra_svg",
    "summary",
    "sweep",
    "train",
    "write_analysis",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
