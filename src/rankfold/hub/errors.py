"""What can be wrong with a model of transformers; one line with the remedy."""

from rankfold.run.disk.pretrained import FolderError


class HubError(FolderError):
    """A model or folder of transformers that cannot be read, saved or changed as asked; one line with the remedy."""
