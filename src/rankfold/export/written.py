"""What was written: how near it is to the model, and at which sizes it runs."""

from __future__ import annotations

from collections.abc import Mapping


class Written(float):
    """The largest absolute difference to the model, a number; and the sizes of what goes in.

    ``inputs``: the axes of every input by its name, a number where the size is fixed, and where it is free the name of
    the axis, or an expression of such names. ``at_most``: the largest size of those free ones that have one.
    """

    inputs: dict[str, tuple[int | str, ...]]
    at_most: dict[str, int]

    def __new__(
        cls, difference: float, inputs: Mapping[str, tuple[int | str, ...]], at_most: Mapping[str, int]
    ) -> Written:
        made = super().__new__(cls, difference)
        made.inputs, made.at_most = dict(inputs), dict(at_most)
        return made

    @property
    def sizes(self) -> list[str]:
        """A line for each input: its name and its axes."""
        return [
            f"{name} ({', '.join(self._told(axis) for axis in axes)}{',' if len(axes) == 1 else ''})"
            for name, axes in self.inputs.items()
        ]

    def _told(self, axis: int | str) -> str:
        return f"{axis} up to {self.at_most[axis]}" if isinstance(axis, str) and axis in self.at_most else str(axis)
