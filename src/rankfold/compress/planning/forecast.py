"""What a plan as a whole is expected to lose: one number, its unit, how far it may be off, or why there is none.

Whoever prints or writes a forecast takes it from here: the sum of what each layer is expected to cost alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rankfold.objectives.units import in_words

if TYPE_CHECKING:
    from rankfold.compress.planning.plan import Plan

SEEN, UNSEEN = "forecast_seen", "forecast_unseen"  # in what a plan says of its calibration
_EDITED = "forms, ranks or biases were changed since it was made: rankfold.plan with Ranks makes one for these ranks"
_WITHOUT_DATA = "no data were used, so that nothing is known of the outputs: plan with data and method 'project'"
_ENERGY = (
    "layers were compared by the energy that they lose, not by what becomes of the outputs: method 'project' with data "
    "forecasts that, where the network can be differentiated"
)


@dataclass(frozen=True)
class Total:
    """``value`` in ``unit`` (None: there is none, and ``why``). ``seen``, ``unseen``: the same from the samples that
    factors were fitted to alone, and from those that were held back; None where none were. ``probe``: what the network
    as a whole has lost on a few tokens of the calibration data, where it was tried: the better number."""

    value: float | None
    unit: str = ""
    seen: float | None = None
    unseen: float | None = None
    why: str = ""
    probe: float | None = None

    @property
    def sentence(self) -> str:
        """What is forecast, or why nothing is, without a full stop."""
        if self.value is None:
            return f"none: {self.why}"
        said = f"{self.value:.3g} {in_words(self.unit)} (what the layers cost one by one, added up"
        if self.seen is not None and self.unseen is not None:
            said += f"; {self.seen:.3g} on the samples fitted to, {self.unseen:.3g} on those held back"
        if self.probe is not None:
            return f"{said}); the whole, tried on a few tokens of the calibration data, loses {self.probe:.3g}"
        return f"{said})"

    @property
    def brief(self) -> str:
        """A few words."""
        return "none" if self.value is None else f"{self.value:.3g} {self.unit}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``--json`` prints them."""
        values = {name: getattr(self, name) for name in self.__annotations__}
        return {key: value for key, value in values.items() if key == "value" or value not in ("", None)}


def total_of(plan: Plan) -> Total:
    """The forecast of a plan."""
    if plan.edited:
        return Total(None, why=_EDITED)
    told: Mapping[str, Any] = plan.calibration
    if "unit" not in told:
        return Total(None, why=_ENERGY if told.get("samples") else _WITHOUT_DATA)
    value = sum((entry.predicted_loss for entry in plan.entries), 0.0)
    return Total(value, told["unit"], told.get(SEEN), told.get(UNSEEN), probe=told.get("probe"))
