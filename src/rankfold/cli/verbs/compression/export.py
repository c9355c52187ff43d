"""``rankfold export``: a saved model as ONNX, as an exported program, or multiplied out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rankfold.cli.checks import check_idle, check_is_file
from rankfold.cli.options import DataName, Download, Json, Threads


class Target(StrEnum):
    onnx = "onnx"
    torch_export = "torch-export"
    dense = "dense"


_GGUF = "--to dense writes a folder that llama.cpp's convert_hf_to_gguf.py makes a GGUF file of"
_HOW = {  # docs/runtimes.md
    "gguf": _GGUF, "llama.cpp": _GGUF, "vllm": "it loads the folder that --to dense writes",
    "transformers": "it loads DIR itself after `import rankfold.hub`, and without it the folder that --to dense writes",
    "openvino": "it runs the file that --to onnx writes", "onnxruntime": "it runs the file that --to onnx writes",
}  # fmt: skip


def _target(name: str) -> Target:
    """A format, or how to come to what is none: click's own words name only the formats."""
    if name in set(Target):
        return Target(name)
    how = _HOW.get(name.lower().replace("llamacpp", "llama.cpp"))
    more = "" if how is None else f" For {name}: {how} (docs/runtimes.md)."
    raise typer.BadParameter(f"{name!r} is not one of {', '.join(repr(str(each)) for each in Target)}.{more}")


def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A directory that compress or apply wrote.")],
    to: Annotated[Target, typer.Option(help="The format.", parser=_target, metavar=f"[{'|'.join(Target)}]")],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", help="The file to write; with --to dense, a folder.")
    ],
    factory: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="The network that DIR was made from, if it is code of yours."),
    ] = None,
    data: DataName = None,
    download: Download = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Export with every axis free that the model leaves free. What was written is compared with the model. dense is a
    Hugging Face folder with the factors multiplied out: it loads anywhere and saves no space.
    """
    from rankfold.cli.choices import set_threads
    from rankfold.cli.printing import count, print_json
    from rankfold.cli.saved import open_saved
    from rankfold.export import to_folder, to_onnx, to_torch_export
    from rankfold.run.progress import Talk
    from rankfold.store.card import dense_card

    if data is None:
        check_idle("without --data", download=download)
    if to is not Target.dense:
        check_is_file(out, "model.onnx" if to is Target.onnx else "model.pt2")
    set_threads(threads)
    with Talk() as talk:
        loaded = open_saved(directory, factory, data, download, talk, own_data=False)
        talk.say(f"exporting {loaded.spec}")
        if to is Target.dense:
            stored = loaded.stored
            told = "" if stored is None else dense_card(stored.model, stored.plan, stored.notes)
            size, difference = to_folder(loaded.model, loaded.needed_example(), out, told)
            if as_json:
                print_json({"directory": str(out), "format": to.value, "bytes": size, "max_abs_difference": difference})
            else:
                print(
                    f"{out}: {count(size)} bytes; can be loaded without rankfold, and differs from the model by at "
                    f"most {difference:.2g}"
                )
            return
        write = to_onnx if to is Target.onnx else to_torch_export
        written = write(loaded.model, loaded.needed_example(), out, tell=talk.tell)
    size = out.stat().st_size
    if as_json:
        said = {"file": str(out), "format": to.value, "bytes": size, "max_abs_difference": written}
        print_json(said | {"inputs": written.inputs, "at_most": written.at_most})
        return
    ran = "onnxruntime" if to is Target.onnx else "the exported program"
    print(f"{out}: {count(size)} bytes; {ran} differs from the model by at most {written:.2g} on random input")
    print("inputs, with the axes that are free, at sizes that the model itself takes, by their names:")
    print(*(f"  {line}" for line in written.sizes), sep="\n")
