"""``rankfold recover``: from a file of entries or measurements to factors, figures and predictions in a directory."""

from rankfold.pipeline.recovery.completing import complete
from rankfold.pipeline.recovery.implicit import rank_unseen
from rankfold.pipeline.recovery.sensing import sense
from rankfold.pipeline.recovery.streamed import check_memory, complete_mapped
from rankfold.pipeline.recovery.writing import check_ours

__all__ = ["check_memory", "check_ours", "complete", "complete_mapped", "rank_unseen", "sense"]
