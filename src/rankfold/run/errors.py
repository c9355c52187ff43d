"""How an error is told to a person."""


class UsageError(ValueError):
    """What can be seen to be wrong from the words alone that were given: the command line ends with 2, not 1."""


def one_line(error: BaseException) -> str:
    """The text of an error without line breaks; of one that was not meant for a person, with its type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | OSError) and text else f"{type(error).__name__}: {text}"
