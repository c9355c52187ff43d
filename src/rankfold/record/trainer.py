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

        def _record_last(self, state: Any, control: Any) -> None:
            """While the model still holds the weights of the last step: afterwards the best ones may be put back."""
            over = 0 < state.max_steps <= state.global_step or control.should_training_stop
            if steps is not None and over:
                self._record(state)

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._record(state)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if steps is not None and state.global_step % steps == 0:
                self._record(state)
            self._record_last(state, control)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if steps is None:
                self._record(state)
            self._record_last(state, control)

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._record_last(state, control)  # early stopping decides here

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._record_last(state, control)
            place = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if state.is_world_process_zero and place.is_dir():
                recorder.save(place / FILE)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not (args.load_best_model_at_end and state.best_model_checkpoint):  # else these are older weights
                self._record(state)
            if state.is_world_process_zero:
                recorder.frame()  # waits, and raises what went wrong

    return Recording()
