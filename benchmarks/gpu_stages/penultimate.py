"""C-DLN on a GPU: table 1 of the vision transformer with measured memory, figure 1 of VGG16."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

import rankfold as rf
from gpu_stages.arrays import cifar10, noise
from gpu_stages.depths import CNN
from gpu_stages.stage import Context, stage
from rankfold import zoo
from rankfold.papers.cdln.families import VIT, Case, build
from rankfold.zoo.networks.vgg import VGG

VARIANTS = ("plain", "dln", "c-dln", "c-dln-gradient")
RANK = 10


@stage("cdln-vit", minutes=8, least=3)
def cdln_vit(context: Context) -> dict[str, Any]:
    """C-DLN, table 1: ViT of 6 blocks on CIFAR-10, four penultimate layers: accuracy, time and memory of training."""
    data = noise(32) if context.dry else cifar10(context.data)
    width, depth = (16, 1) if context.dry else (512, 6)
    recipe = replace(VIT, batch_size=16 if context.dry else 256, precision="auto", augment=None)
    cases = {v: Case("vit", v, recipe, "cifar10", width, depth) for v in (VARIANTS[::2] if context.dry else VARIANTS)}
    tenth = data.train.take(max(16, len(data.train) // 20), torch.Generator().manual_seed(0))
    began = time.monotonic()
    rf.fit(build(cases["plain"], data).to(context.device), tenth, None, replace(recipe, epochs=1))
    seconds = 20 * (time.monotonic() - began)
    epochs = 1 if context.dry else int(0.85 * context.seconds_left / (len(cases) * 1.2 * seconds))
    if epochs < 1:
        raise TimeoutError(f"an epoch takes {seconds:.0f} s, and four networks have {context.seconds_left:.0f}")
    rows = []
    for variant, case in cases.items():
        network = build(case, data).to(context.device)
        if context.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(context.device)
        began = time.monotonic()
        history = rf.fit(network, data.train, data.validation, replace(recipe, epochs=epochs))
        peak = torch.cuda.max_memory_allocated(context.device) if context.device.type == "cuda" else None
        rows.append(
            {
                "network": variant,
                "accuracy": rf.evaluate(network.eval(), data.test).accuracy,
                "validation": history.epochs[-1].validation_accuracy,
                "seconds of an epoch": round((time.monotonic() - began) / epochs, 2),
                "peak memory of training, bytes": peak,
                "parameters": sum(p.numel() for p in network.parameters()),
            }
        )
    said = ", ".join(f"{row['network']} {row['accuracy']:.2%}" for row in rows)
    return {"said": f"{epochs} epochs: {said}", "rows": rows, "epochs": epochs, "seed": 0}


@stage("cdln-updates", minutes=6, least=2)
def cdln_updates(context: Context) -> dict[str, Any]:
    """C-DLN, figures 1 and 20: singular values of the update of VGG16's penultimate layer, epoch by epoch."""
    data = noise(32) if context.dry else cifar10(context.data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = VGG(((8,), (16,), (16,), (16,), (32,)), 10)
        network = (small if context.dry else zoo.model("vgg16-bn")).to(context.device)
    site = [each.name for each in rf.sites(network)][-2]
    weight = network.get_submodule(site).weight
    start, seen, before = weight.detach().flatten(1).double().clone(), [], None
    began = time.monotonic()
    for epoch in range(1 if context.dry else 20):
        if epoch and context.seconds_left < 1.3 * (time.monotonic() - began) / epoch + 10:
            break
        recipe = replace(CNN, epochs=1, seed=epoch, batch_size=16 if context.dry else 128, weight_decay=5e-4)
        rf.fit(network, data.train, None, replace(recipe, precision="auto", warmup=0.0, schedule="constant"))
        u, s, _ = torch.linalg.svd(weight.detach().flatten(1).double() - start, full_matrices=False)
        leading = u[:, :RANK]
        moved = None if before is None else RANK - float((before.mT @ leading).square().sum())
        before = leading
        share = float(s[:RANK].square().sum() / s.square().sum())
        seen.append({"epoch": epoch + 1, "values": s[: 4 * RANK].tolist(), "share of ten": share, "moved": moved})
    accuracy = rf.evaluate(network.eval(), data.test).accuracy
    said = f"{len(seen)} epochs, {accuracy:.2%}; ten values carry {seen[-1]['share of ten']:.1%} of the update's square"
    return {"said": said, "site": site, "epochs": seen, "accuracy": accuracy, "seed": 0}
