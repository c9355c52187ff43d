"""A model as ONNX or as an exported program of torch, checked by running what was made."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.costs import Example, evaluating, with_batch
from rankfold.objectives import main_tensor
from rankfold.run.files import write_atomically
from rankfold.sites import is_pretrained, unwrap

_LARGEST = 2**31 - 1  # a protocol buffer holds no more


class ExportError(ValueError):
    """The model cannot be exported, or what was exported computes something else; one line with the remedy."""


def to_onnx(model: nn.Module, example: Any, path: str | Path) -> float:
    """Write ``model`` as ONNX with a dynamic batch size; returns the largest absolute difference to onnxruntime.

    ``example``: an input as in ``rankfold.costs.Example.of``; of a model of transformers that takes tokens their number
    is dynamic too, and an attention mask is one of its inputs. Factored layers stay factored. Compared on random
    input of two sizes. Raises ``ExportError``: onnx packages missing, a model that torch cannot trace, a
    result that differs by more than rounding, more than 2 GB. The file is written whole or not at all.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"ONNX needs {', '.join(missing)}: pip install 'rankfold[onnx]'")
    root = unwrap(model)
    example = _full(root, Example.of(example))
    program = _traced(root, example)
    with _quiet():
        try:
            exported = torch.onnx.export(program, dynamo=True, verbose=False)
        except Exception as error:  # the exporter raises exceptions of many kinds, with pages of text
            raise ExportError(f"torch cannot write this model as ONNX: {_first_line(error)}") from error
    assert exported is not None
    proto = exported.model_proto
    _name_batch(proto)
    if proto.ByteSize() > _LARGEST:
        raise ExportError("the model is larger than 2 GB, which one ONNX file cannot hold: use torch-export")
    data = proto.SerializeToString()
    difference = max(_onnx_difference(root, data, given) for given in _sizes(root, example))
    write_atomically(Path(path), data)
    return difference


def _name_batch(proto: Any) -> None:
    """Call the free axes ``batch`` and ``sequence``, which torch may name after symbols of its own."""
    names = dict[str, str]()
    for value in proto.graph.input:
        for place, axis in enumerate(value.type.tensor_type.shape.dim):
            if axis.dim_param:
                names.setdefault(axis.dim_param, "sequence" if place else "batch")
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in names:
                axis.dim_param = names[axis.dim_param]


def to_torch_export(model: nn.Module, example: Any, path: str | Path) -> float:
    """Write ``model`` as a ``.pt2`` of ``torch.export`` with a dynamic batch size; returns as ``to_onnx``.

    The program is compared in memory, before it is written; a file of this kind can run code when it is loaded, so
    this library never loads one.
    """
    root = unwrap(model)
    example = _full(root, Example.of(example))
    program = _traced(root, example)
    run = program.module()
    differences = []
    for given in _sizes(root, example):
        with evaluating(root), _without_cache(root):
            expected = main_tensor(root(*given.args, **given.kwargs))
            found = main_tensor(run(*given.args, **given.kwargs))
        differences.append(_difference(expected, found, "the exported program"))
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer)
    write_atomically(Path(path), buffer.getvalue())
    return max(differences)


def to_folder(model: nn.Module, example: Any, directory: str | Path) -> tuple[int, float]:
    """Write a model of transformers as a Hugging Face folder with its factors multiplied out, which loads anywhere and
    saves no space; returns the bytes written and the largest absolute difference of the outputs.

    ``ExportError`` for any other model, for a directory in which there is something already, and where a layer has
    gained a bias for which the architecture has no place.
    """
    root, directory = unwrap(model), Path(directory)
    if not is_pretrained(root):
        raise ExportError(
            "only models of transformers are multiplied out into a folder: load it, and save its state dict"
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ExportError(f"{directory}: there is something already: give a directory that is new or empty")
    from rankfold import hub

    try:
        dense = hub.to_dense(root)
        files = hub.files_of(dense)
    except hub.HubError as error:
        raise ExportError(str(error)) from None
    differences = []
    for given in _sizes(root, _full(root, Example.of(example))):
        with evaluating(root), evaluating(dense):
            expected, found = (main_tensor(m(*given.args, **given.kwargs)) for m in (root, dense))
        differences.append(_difference(expected, found, "the dense model"))
    for name in sorted(files, key=lambda name: name == "config.json"):  # last, so that half a folder is none
        write_atomically(directory / name, files[name])
    return sum(map(len, files.values())), max(differences)


def _traced(root: nn.Module, example: Example) -> torch.export.ExportedProgram:
    """The model as a graph, in eval mode, with the first axis of every batched tensor free, and that of tokens."""
    given = with_batch(example, 2)  # a batch of 1 would be taken for a constant
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    tokens = torch.export.Dim("sequence", min=2, max=_longest(root)) if _reads_tokens(root, given) else None
    shapes = torch.export.ShapesCollection()
    for value in (*given.args, *given.kwargs.values()):
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == given.samples:
            shapes[value] = {0: batch} | ({1: tokens} if tokens is not None and value.dim() > 1 else {})
    with evaluating(root), _without_cache(root), _quiet():
        try:
            return torch.export.export(
                root,
                given.args,
                dict(given.kwargs),
                dynamic_shapes=shapes.dynamic_shapes(root, given.args, dict(given.kwargs)),
                strict=False,
            )
        except Exception as error:  # tracing runs the user's own forward, and torch raises exceptions of many kinds
            raise ExportError(f"torch cannot trace this model: {_first_line(error)}") from error


def _reads_tokens(root: nn.Module, example: Example) -> bool:
    """Whether the inputs are tokens of a model of transformers, and their number free."""
    ids = example.kwargs.get("input_ids")
    return is_pretrained(root) and isinstance(ids, Tensor) and ids.dim() == 2


def _tokens(root: Any) -> int:
    return root.get_input_embeddings().num_embeddings


def _longest(root: Any) -> int:
    found = getattr(root.config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 2 else 1 << 20


def _full(root: nn.Module, example: Example) -> Example:
    """The example with an attention mask beside its tokens, which whoever runs padded batches must give."""
    if not _reads_tokens(root, example) or "attention_mask" in example.kwargs:
        return example
    if "attention_mask" not in inspect.signature(root.forward).parameters:
        return example
    mask = torch.ones_like(example.kwargs["input_ids"])
    return Example(example.args, {**example.kwargs, "attention_mask": mask}, example.samples)


def _sizes(root: nn.Module, example: Example) -> Iterator[Example]:
    """Random inputs of two batch sizes, and where tokens are free of two lengths, some of them padded."""
    for batch in (3, 1):
        given = with_batch(_random(example), batch)
        if not _reads_tokens(root, given):
            yield given
            continue
        ids: Any = given.kwargs["input_ids"]
        known = _tokens(root)
        drawn = torch.randint(known, ids.shape, generator=torch.Generator().manual_seed(0)).to(ids)
        given = Example(given.args, {**given.kwargs, "input_ids": drawn}, batch)
        kept = max(2, ids.shape[1] - 2 * batch)
        cut = {name: x[:, :kept] if isinstance(x, Tensor) and x.dim() > 1 else x for name, x in given.kwargs.items()}
        mask = cut.get("attention_mask")
        if isinstance(mask, Tensor) and batch > 1:
            mask[-1, kept // 2 :] = 0
        yield Example(given.args, cut, batch)


@contextlib.contextmanager
def _without_cache(root: Any) -> Iterator[None]:
    """Within the block a model of transformers keeps nothing for a next token, which would be outputs of the graph."""
    config = root.config if is_pretrained(root) and hasattr(root.config, "use_cache") else None
    before = None if config is None else config.use_cache
    if config is not None:
        config.use_cache = False
    try:
        yield
    finally:
        if config is not None:
            config.use_cache = before


def _random(example: Example) -> Example:
    """Normal noise where the example has floats; integers as they are."""
    generator = torch.Generator().manual_seed(0)

    def noise(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return torch.randn(value.shape, generator=generator).to(value)
        return value

    wide = with_batch(example, 3)
    return Example(tuple(map(noise, wide.args)), {k: noise(v) for k, v in wide.kwargs.items()}, 3)


def _onnx_difference(root: nn.Module, data: bytes, given: Example) -> float:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_inputs()]
        tensors = [x for x in (*given.args, *given.kwargs.values()) if isinstance(x, Tensor)]
        outputs = session.run(None, {name: x.cpu().numpy() for name, x in zip(names, tensors, strict=True)})
    except Exception as error:  # onnxruntime raises exceptions of its own for each fault
        raise ExportError(f"onnxruntime cannot run what was exported: {_first_line(error)}") from error
    with evaluating(root), _without_cache(root):
        expected = main_tensor(root(*given.args, **given.kwargs))
    return _difference(expected, torch.from_numpy(outputs[0]), "onnxruntime")


def _difference(expected: Tensor, found: Tensor, who: str) -> float:
    if expected.shape != found.shape:
        raise ExportError(f"{who} gives {tuple(found.shape)} where the model gives {tuple(expected.shape)}")
    worst = float((expected.cpu().double() - found.cpu().double()).abs().max())
    scale = max(float(expected.abs().max()), 1.0)
    allowed = min(2000 * torch.finfo(expected.dtype).eps, 0.1) * scale
    if not worst <= allowed:
        raise ExportError(f"{who} differs from the model by {worst:.3g} on random input (outputs up to {scale:.3g})")
    return worst


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporters warn about their own insides, in the log and on standard output."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
