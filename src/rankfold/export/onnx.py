"""A model as ONNX."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.costs import Example
from rankfold.export.check import Run, exported
from rankfold.export.errors import ExportError, first_line, quiet
from rankfold.export.outputs import in_a_row
from rankfold.export.trace import Traced, answer, flat, ready
from rankfold.export.written import Written
from rankfold.run.disk.files import write_atomically
from rankfold.run.progress import Tell

_LARGEST = 2**31 - 1  # a protocol buffer holds no more
_RUN = (torch.float32, torch.float64, torch.float16)  # in which onnxruntime computes on a CPU
_WHO = "onnxruntime"


def to_onnx(model: nn.Module, example: Any, path: str | Path, *, tell: Tell | None = None) -> Written:
    """Write ``model`` as ONNX, and compare what was written with it.

    The batch is free, and so is every other axis (length of a sequence, height, width) at which the model itself runs
    at other sizes than the example's. Inputs have the names of the arguments of ``forward``; outputs those that the
    model gives them, ``output`` or ``output_0`` … without any. Caches and losses are left out. Factored layers stay
    factored. The file is written whole or not at all.

    Args:
        model: any module.
        example: one input with its batch axis, or a tuple or mapping of arguments.
        path: of the file.
        tell: what is being done, a sentence for each step.

    Returns:
        The largest absolute difference to onnxruntime, on random input of two batch sizes and of other sizes of every
        free axis (on rows of the example, where the model does not answer random input in numbers): a number, whose
        ``inputs`` tell the axes of every input, those that are free by a name.

    Raises:
        ExportError: onnx packages missing, a precision in which onnxruntime does not compute on a CPU, a model that
            torch cannot trace, a result that differs by more than rounding, more than 2 GB.

    Cost: tracing, and a few forward passes of both.

    Example:
        >>> from rankfold.export import to_onnx
        >>> to_onnx(nn.Sequential(nn.Linear(4, 2)), torch.zeros(1, 4), "net.onnx") < 1e-4
        True
    """
    (data, _), written = graph_of(model, example, tell)
    write_atomically(Path(path), data)
    return written


def graph_of(model: nn.Module, example: Any, tell: Tell | None = None) -> tuple[tuple[bytes, Run], Written]:
    """What ``to_onnx`` writes, a way to run it, and what it gives back."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"ONNX needs {', '.join(missing)}: pip install 'rankfold[onnx]'")
    root, example = ready(model, example)
    output = answer(root, example)
    _check_precision(root, example, output)
    return exported(root, in_a_row, example, output, _made, _WHO, tell or Tell())


def _check_precision(root: nn.Module, example: Example, output: Any) -> None:
    if any(tensor.is_complex() for tensor in (*flat(example), *in_a_row(output))):
        raise ExportError(
            "the model takes or gives complex numbers, which onnxruntime does not know: export a module that calls "
            "torch.view_as_complex on what goes in and torch.view_as_real on what comes out, or use torch-export"
        )
    for tensor in (*root.parameters(), *root.buffers(), *flat(example)):
        if tensor.is_floating_point() and tensor.dtype not in _RUN:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ExportError(
                f"the model computes in {kind}, which onnxruntime does not know on a CPU, so that the file could "
                "not be checked: export model.float() instead"
            )


def _made(traced: Traced, names: Sequence[str]) -> tuple[tuple[bytes, Run], Run]:
    """The file with a way to run it, and this way."""
    # torch's optimizer computes what is constant: it would store small matrices of whole numbers in floats
    codes = any(x.dtype in (torch.int8, torch.uint8) for x in traced.program.state_dict.values())
    how: dict[str, Any] = {"dynamo": True, "verbose": False, "output_names": list(names), "optimize": not codes}
    with quiet():
        try:
            written = torch.onnx.export(traced.program, **how)
        except Exception as error:  # the exporter raises exceptions of many kinds, with pages of text
            raise ExportError(
                f"torch cannot write this model as ONNX: {first_line(error)}; torch-export may work for it"
            ) from error
    assert written is not None
    proto = written.model_proto
    strip_(proto)
    _name_axes(proto, traced)
    if proto.ByteSize() > _LARGEST:
        raise ExportError("the model is larger than 2 GB, which one ONNX file cannot hold: use torch-export")
    data: bytes = proto.SerializeToString()
    run = _session(data, traced)
    return (data, run), run


def strip_(proto: Any) -> None:
    """Take away what the exporter notes of where each part came from, at every depth: paths and lines of the program
    that was traced, which tell of whoever wrote the file and may be half of a small one. Names stay."""
    for field, value in proto.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            proto.ClearField(field.name)
        elif field.message_type is not None:
            for part in value if isinstance(value, Iterable) else (value,):
                strip_(part)


def _name_axes(proto: Any, traced: Traced) -> None:
    """Call free axes by what they are instead of by torch's symbols, also within expressions."""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param.isdigit():  # fixed after all
                axis.dim_value = int(axis.dim_param)
            elif axis.dim_param:
                axis.dim_param = traced.named(axis.dim_param)


def _session(data: bytes, traced: Traced) -> Run:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # what fails is raised too
    try:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises exceptions of its own for each fault
        raise _cannot_run(error, traced) from error
    asked = [node.name for node in session.get_inputs()]

    def run(given: Example) -> list[Tensor]:
        every = {name: x.detach().cpu().numpy() for name, x in zip(traced.inputs, flat(given), strict=True)}
        try:
            outputs = session.run(None, {name: every[name] for name in asked})
        except Exception as error:
            raise _cannot_run(error, traced) from error
        return [torch.as_tensor(output) for output in outputs]

    return run


def _cannot_run(error: Exception, traced: Traced) -> ExportError:
    wide = all(x.dtype == torch.float32 for x in traced.program.state_dict.values() if x.is_floating_point())
    remedy = "" if wide else "export model.float(), for which it knows more operations; "
    return ExportError(
        f"onnxruntime cannot run the exported file: {first_line(error)}; {remedy}torch-export may work for this model"
    )
