"""Where a compressed model runs: the same small network in every runtime that is installed, beside torch.

    pip install openvino lm-eval   # as many as wanted
    python benchmarks/runtimes.py --out runtimes.json

A llama of two blocks and a convolutional network, random, are compressed and given to each runtime as they are, or as
their dense export; what comes out is compared with torch. A runtime that is missing is named. The table of the page
docs/runtimes.md is what this has printed.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import rankfold as rf
import rankfold.hub
from rankfold.export import to_onnx, to_torch_export

IDS = torch.arange(12).reshape(2, 6)
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def language_model() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 49, 10),
    ).eval()  # fmt: skip


def compressed(model: nn.Module, example: object) -> tuple[nn.Module, rf.Plan]:
    plan = rf.plan(model, "params=0.6", "truncate", example=example)
    return rf.apply_(copy.deepcopy(model), plan), plan


class Case:
    """Both networks compressed, what they answer, and a folder to write in."""

    def __init__(self, place: Path) -> None:
        self.place, self.text = place, language_model()
        self.small_text, plan = compressed(self.text, {"input_ids": IDS})
        self.small_images, _ = compressed(convolutions(), IMAGES)
        rf.save(self.small_text, plan, place / "small")
        with torch.no_grad():
            self.logits, self.scores = self.small_text(IDS).logits, self.small_images(IMAGES)

    def onnx(self) -> tuple[Path, Path]:
        """The files of the language model and of the convolutions, written once."""
        files = self.place / "text.onnx", self.place / "images.onnx"
        if not files[0].exists():
            to_onnx(self.small_text, {"input_ids": IDS}, files[0])
            to_onnx(self.small_images, IMAGES, files[1])
        return files


def far(found: Tensor, expected: Tensor) -> float:
    return float((torch.as_tensor(found) - expected).abs().max())


def with_transformers(case: Case) -> float:
    with torch.no_grad():
        return far(AutoModelForCausalLM.from_pretrained(case.place / "small").eval()(IDS).logits, case.logits)


def with_dense_export(case: Case) -> float:
    """A program that does not import rankfold reads the folder."""
    dense = rankfold.hub.to_dense(AutoModelForCausalLM.from_pretrained(case.place / "small"))
    dense.save_pretrained(case.place / "dense")
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM; "
        "torch.save(AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()(torch.arange(12).reshape(2, 6)).logits"
        ".detach(), sys.argv[2])"
    )
    found = case.place / "dense.pt"
    subprocess.run([sys.executable, "-c", code, str(case.place / "dense"), str(found)], check=True)
    return far(torch.load(found, weights_only=True), case.logits)


def with_compile(case: Case) -> float:
    with torch.no_grad():
        texts = far(torch.compile(case.small_text)(IDS).logits, case.logits)
        return max(texts, far(torch.compile(case.small_images)(IMAGES), case.scores))


def with_program(case: Case) -> float:
    texts = to_torch_export(case.small_text, {"input_ids": IDS}, case.place / "text.pt2")
    return max(texts, to_torch_export(case.small_images, IMAGES, case.place / "images.pt2"))


def with_onnxruntime(case: Case) -> float:
    import onnxruntime

    found = []
    for file, given, expected in zip(case.onnx(), (IDS, IMAGES), (case.logits, case.scores), strict=True):
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        found.append(far(session.run(None, {name: given.numpy()})[0], expected))
    return max(found)


def with_openvino(case: Case) -> float:
    import openvino

    found = []
    for file, given, expected in zip(case.onnx(), (IDS, IMAGES), (case.logits, case.scores), strict=True):
        network = openvino.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found.append(far(network(given.numpy())[0], expected))
    return max(found)


def with_lm_eval(case: Case) -> float:
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({chr(97 + i): i for i in range(26)} | {"?": 26}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="?")
    tokenizer.save_pretrained(case.place / "small")
    judge = HFLM(pretrained=str(case.place / "small"), device="cpu", batch_size=1, dtype="float32")
    said = judge.loglikelihood([Request("abc", "def")])[0][0]
    with torch.no_grad():
        logits = case.small_text(torch.arange(6).unsqueeze(0)).logits.log_softmax(-1)
    return abs(said - float(logits[0, 2:5].gather(1, torch.tensor([[3], [4], [5]])).sum()))


class Request:
    """One question of lm-eval."""

    def __init__(self, context: str, continuation: str) -> None:
        self.args = context, continuation


RUNTIMES: dict[str, tuple[str, Callable[[Case], float]]] = {
    "transformers": ("transformers", with_transformers),
    "transformers, dense export": ("transformers", with_dense_export),
    "torch.compile": ("torch", with_compile),
    "torch.export": ("torch", with_program),
    "onnxruntime": ("onnxruntime", with_onnxruntime),
    "OpenVINO": ("openvino", with_openvino),
    "lm-eval": ("lm_eval", with_lm_eval),
}


def rows(place: Path) -> Iterator[dict[str, object]]:
    case = Case(place)
    for name, (package, run) in RUNTIMES.items():
        try:
            known = version(package)
        except PackageNotFoundError:
            yield {"runtime": name, "missing": package}
            continue
        yield {"runtime": name, "version": known, "difference": run(case)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    asked, found = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as place:
        for row in rows(Path(place)):
            found.append(row)
            print(json.dumps(row), flush=True)
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
