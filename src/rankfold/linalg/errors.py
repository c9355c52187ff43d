"""What can be wrong with a matrix before, or while, it is decomposed."""


class NonFiniteError(ValueError):
    """The matrix holds NaN or infinity (torch would return a silent NaN spectrum)."""


class NotMaterialisedError(ValueError):
    """The tensor lives on the meta device: it has a shape and no values."""


class NotConvergedError(ArithmeticError):
    """Every LAPACK driver of the fallback chain failed."""
