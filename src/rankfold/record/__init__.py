"""What happens to the spectra of a network while it is trained, in whatever loop trains it."""

from rankfold.record.recorder import RecordError, SpectrumRecorder

__all__ = ["RecordError", "SpectrumRecorder"]
