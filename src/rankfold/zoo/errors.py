"""The one exception of the zoo: its text is a sentence for the person who typed the command."""


class ZooError(ValueError):
    """A model, a weight file or a data set that cannot be had; one line: the cause and the remedy."""
