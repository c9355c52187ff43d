"""What recording every epoch costs on MNIST: processor time of training and of recording, measured in one run.

    RANKFOLD_DATA=… python benchmarks/collapse_overhead.py --epochs 3

784-256-256-256-10 with tanh, 55,000 images, batches of 256, one thread. A record: spectra, updates and subspaces of
every layer, and the probe on 512 images (clusters, neural collapse, and the chain of bounds with every cut).
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise

import torch
from torch import nn

from rankfold.collapse import CollapseProbe
from rankfold.record import SpectrumRecorder
from rankfold.zoo import load_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--data", default="mnist")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = load_data(arguments.data)
    widths = (data.train.inputs[0].numel(), 256, 256, 256, 10)
    layers: list[nn.Module] = [nn.Flatten()]
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=2e-3)
    generator = torch.Generator().manual_seed(0)
    for decay in (None, 2e-3):
        training = recording = 0.0
        probe = CollapseProbe(data.train, decay=decay)
        with SpectrumRecorder(model, probe=probe) as recorder:
            recorder.step(0)
            recorder.frame()  # the first record warms everything up
            for epoch in range(1, arguments.epochs + 1):
                began = time.process_time()
                for images, labels in data.train.batches(256, shuffle=True, generator=generator):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(images), labels).backward()
                    optimizer.step()
                between = time.process_time()
                recorder.step(epoch)
                recorder.frame()  # waits for the decompositions in the background: their time counts too
                training, recording = training + between - began, recording + time.process_time() - between
        what = "clusters and neural collapse" if decay is None else "and the chain of bounds"
        print(
            f"{what}: training {training / arguments.epochs:.2f} s an epoch, "
            f"recording {recording / arguments.epochs:.3f} s: {100 * recording / training:.1f} %"
        )


if __name__ == "__main__":
    main()
