"""The one exception of training: data or a checkpoint that cannot be used, told before any work."""


class TrainingError(ValueError):
    """One sentence: the cause and the remedy."""
