"""A model as ONNX, as an exported program of torch, or multiplied out, checked by running what was made."""

from rankfold.export.dense import to_folder
from rankfold.export.errors import ExportError
from rankfold.export.onnx import to_onnx
from rankfold.export.program import to_torch_export
from rankfold.export.targets import target_latencies
from rankfold.export.torchao import to_torchao

__all__ = ["ExportError", "target_latencies", "to_folder", "to_onnx", "to_torch_export", "to_torchao"]
