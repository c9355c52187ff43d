"""A recorder inside the Trainer of transformers, whose loop is its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankfold.record.recorder import SpectrumRecorder

FILE = "spectra.safetensors"


def trainer_callback(recorder: SpectrumRecorder, steps: int | None = None) -> Any:
    """See ``SpectrumRecorder.callback``."""
    from transformers import TrainerCallback

    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ValueError(f"steps must be a whole number of at least 1, or None for every epoch, got {steps!r}")

    class Recording(TrainerCallback):
        """Labels are epochs, or with ``steps`` numbers of steps."""

        def _record(self, state: Any) -> None:
            label = float(state.global_step) if steps is not None else round(float(state.epoch or 0.0), 6)
            if state.is_world_process_zero and label > recorder.last:
                recorder.step(label)

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._record(state)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if steps is not None and state.global_step % steps == 0:
                self._record(state)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if steps is None:
                self._record(state)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            place = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if state.is_world_process_zero and place.is_dir():
                recorder.save(place / FILE)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._record(state)
            if state.is_world_process_zero:
                recorder.frame()  # waits, and raises what went wrong

    return Recording()
