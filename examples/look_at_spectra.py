"""How does weight decay change the rank of trained weights? Train the digits network twice, and compare the spectra.

    python examples/look_at_spectra.py [DIR]

With DIR the spectra are also drawn: one picture and one table of numbers for each weight decay.
"""

from __future__ import annotations

import sys

import rankfold as rf
from rankfold import zoo
from rankfold.pipeline import analyse, write_analysis
from rankfold.train import fit


def main() -> None:
    data = zoo.load_data("digits")
    columns: dict[float, dict[str, rf.Spectrum]] = {}
    for decay in (0.0, 0.03):
        network = zoo.model("digits-cnn")
        fit(network, data.train, data.validation, rf.Recipe(3, batch_size=32, learning_rate=0.05, weight_decay=decay))
        rows, found = analyse(network, data.train, samples=256)
        columns[decay] = {row.site.name: row.spectrum for row in rows}
        print(f"weight decay {decay}: validation accuracy {rf.evaluate(network, data.validation).accuracy:.1%}")
        for row in rows:
            outputs = "" if row.output_ranks is None else f", outputs {row.output_ranks[0]}"
            print(f"  {row.site.title}: 90 % of the energy in {row.weight_ranks[0]} directions{outputs}")
        for file in write_analysis(rows, found, f"{sys.argv[1]}/decay-{decay}") if len(sys.argv) > 1 else ():
            print(f"  wrote {file}")

    without, with_decay = columns.values()
    for name, spectrum in without.items():
        print(f"{name}: stable rank {spectrum.stable_rank:.1f} without decay, {with_decay[name].stable_rank:.1f} with")


if __name__ == "__main__":
    main()
