"""A model as ONNX or as an exported program of torch, checked by running what was made."""

from rankfold.export.errors import ExportError
from rankfold.export.onnx import to_onnx
from rankfold.export.program import to_torch_export

__all__ = ["ExportError", "to_onnx", "to_torch_export"]
