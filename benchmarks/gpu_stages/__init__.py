"""The stages of ``gpu.py``, by name, in the order in which they run: of most worth first."""

# each registers itself
from gpu_stages import equal, vgg16  # noqa: F401  # isort: skip
from gpu_stages import depths, penultimate, blocks  # noqa: F401  # isort: skip
from gpu_stages.stage import STAGES, Context, Stage, stage

ORDER = (
    "equal", "vgg16", "vgg16-products", "resnet20", "block-7b", "decode", "vit", "cdln-vit", "cdln-updates",
)  # fmt: skip
if set(ORDER) != set(STAGES):
    raise AssertionError(f"a stage has no place in the order: {set(ORDER) ^ set(STAGES)}")
_found = dict(STAGES)
STAGES.clear()
STAGES.update({name: _found[name] for name in ORDER})

__all__ = ["STAGES", "Context", "Stage", "stage"]
