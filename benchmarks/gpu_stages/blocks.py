"""Large layers: the matrices of a block of a 7B model factored on the device, and its forms decoding token by token."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

import rankfold as rf
from gpu_stages.stage import Context, stage

# name → (outputs, inputs): one block of LLaMA-7B
SHAPES = {"q": (4096, 4096), "o": (4096, 4096), "gate": (11008, 4096), "down": (4096, 11008)}
KEPT = (0.8, 0.6, 0.4)


@stage("block-7b", minutes=3)
def block_7b(context: Context) -> dict[str, Any]:
    """Layers of a 7B model's block projected on 8,192 tokens: seconds, memory, and relative error at three sizes."""
    divide = 64 if context.dry else 1
    rows, wrong = [], []
    for name, (m, n) in list(SHAPES.items())[:: 3 if context.dry else 1]:
        m, n = m // divide, n // divide
        generator = torch.Generator(context.device).manual_seed(0)
        model = nn.Sequential(nn.Linear(n, m, bias=False, device=context.device, dtype=torch.float32)).eval()
        with torch.no_grad():
            model[0].weight.copy_(torch.randn(m, n, generator=generator, device=context.device) / n**0.5)
        tokens = _tokens(8192 // divide, n, context, generator)
        if context.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(context.device)
        began = time.monotonic()
        known = rf.profile(model, [tokens], example=tokens[:1])
        rank = {kept: max(1, int(kept * m * n / (m + n))) for kept in KEPT}
        errors = {str(kept): _error(model, known, each, tokens) for kept, each in rank.items()}
        rows.append({"layer": name, "shape": [m, n], "seconds": round(time.monotonic() - began, 2), "errors": errors})
        if context.device.type == "cuda":
            rows[-1]["peak bytes"] = torch.cuda.max_memory_allocated(context.device)
        if sorted(errors.values()) != list(errors.values()):
            wrong.append(f"{name}: errors do not rise as ranks fall: {errors}")
    said = ", ".join(f"{row['layer']} {row['seconds']} s" for row in rows)
    return {"said": said, "wrong": wrong, "rows": rows, "seed": 0}


def _tokens(count: int, n: int, context: Context, generator: torch.Generator) -> Tensor:
    """With a decaying spectrum, as activations have."""
    scale = torch.logspace(0, -2, n, device=context.device)
    return torch.randn(count, n, generator=generator, device=context.device) * scale


def _error(model: nn.Module, known: Any, rank: int, tokens: Tensor) -> float:
    import copy

    small = rf.apply_(copy.deepcopy(model), known.plan(rf.Ranks({"0": rank})))
    with torch.no_grad():
        whole = model(tokens)
        return float((small(tokens) - whole).norm() / whole.norm())


@stage("decode", minutes=2)
def decode(context: Context) -> dict[str, Any]:
    """One token through a 7B block's layer, dense and in two factors, replayed as a CUDA graph: microseconds."""
    divide = 64 if context.dry else 1
    rows, wrong = [], []
    kind = torch.bfloat16 if context.device.type == "cuda" else torch.float32
    for name, (m, n) in SHAPES.items():
        m, n = m // divide, n // divide
        dense = nn.Linear(n, m, bias=False, device=context.device, dtype=kind)
        x = torch.randn(1, n, device=context.device, dtype=kind)
        times = {"dense": _micro(dense, x, context)}
        for kept in KEPT:
            r = max(1, int(kept * m * n / (m + n)))
            pair = nn.Sequential(nn.Linear(n, r, bias=False), nn.Linear(r, m, bias=False)).to(context.device, kind)
            times[f"factored, {kept:g}"] = _micro(pair, x, context)
        if not all(value > 0 for value in times.values()):
            wrong.append(f"{name}: a time of 0: {times}")
        rows.append({"layer": name, "shape": [m, n], "microseconds": times})
    said = ", ".join(f"{row['layer']} {row['microseconds']['dense']:.0f} µs dense" for row in rows)
    return {"said": said, "wrong": wrong, "rows": rows}


@torch.no_grad()
def _micro(module: nn.Module, x: Tensor, context: Context) -> float:
    """The median of replays, each of a hundred calls; without a GPU of plain calls."""
    calls, repeats = (3, 3) if context.dry else (100, 20)
    for _ in range(3):
        module(x)
    if context.device.type != "cuda":
        return 1e6 * sorted(_timed(lambda: [module(x) for _ in range(calls)]) for _ in range(repeats))[1] / calls
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        module(x)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        for _ in range(calls):
            module(x)
    found = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(1000 * begin.elapsed_time(end) / calls)
    return sorted(found)[len(found) // 2]


def _timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
