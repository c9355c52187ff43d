"""``rankfold recover``: from a file of entries or measurements to factors, figures and predictions in a directory."""

from rankfold.pipeline.recovery.completing import complete
from rankfold.pipeline.recovery.implicit import rank_unseen
from rankfold.pipeline.recovery.sensing import sense
from rankfold.pipeline.recovery.streamed import complete_mapped

__all__ = ["complete", "complete_mapped", "rank_unseen", "sense"]
