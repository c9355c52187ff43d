"""The stages of ``gpu.py``, by name, in the order in which they run."""

from gpu_stages import equal, vgg16  # noqa: F401  # each registers itself
from gpu_stages.stage import STAGES, Context, Stage, stage

__all__ = ["STAGES", "Context", "Stage", "stage"]
