"""Plot the gain of the paper's modules over the baseline, from the files that benchmarks/evidence.sh writes.

python benchmarks/gain.py FOLDER docs/gain.png
"""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

# For each panel, by title: the settings of evidence.sh by axis label. * is replaced by "" or "-brightened".
PANELS = {
    "labelled night people": {"20": "people20*", "40": "people40*", "100": "people100*", "200": "table2*"},
    "epochs, 200 people": {"5": "epochs5*", "15": "table2*", "45": "epochs45*"},
    "pretraining, 200 people": {"random": "backbone-random*", "bright": "table2*", "bright, dark": "backbone-dark*"},
}
STYLES = {"mdl": "C0", "nrsrd": "C3"}


def main() -> None:
    folder, output = map(Path, sys.argv[1:])
    figure = Figure(figsize=(10, 6), layout="constrained")
    rows = figure.subplots(2, len(PANELS), sharey=True)
    for row, (kind, ending) in zip(rows, (("as recorded", ""), ("brightened", "-brightened")), strict=True):
        for axes, (title, settings) in zip(row, PANELS.items(), strict=True):
            for shift, (method, color) in enumerate(STYLES.items()):
                for x, name in enumerate(settings.values()):
                    result = json.loads((folder / f"{name.replace('*', ending)}.json").read_text(encoding="utf-8"))
                    found = [d for d in result["differences"] if (d["a"], d["b"]) == ("baseline", method)]
                    for each in found:
                        middle, low, high = (100 * each[key] for key in ("mAP", "low", "high"))
                        # The two methods are shifted, so that their intervals do not hide each other.
                        place, errors = x + 0.2 * shift - 0.1, [[middle - low], [high - middle]]
                        axes.errorbar(place, middle, errors, fmt="o", color=color, capsize=3)
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_xticks(range(len(settings)), list(settings))
            axes.set_xlim(-0.5, len(settings) - 0.5)
            axes.set(title=kind, xlabel=title)
            axes.grid(axis="y", alpha=0.3)
        row[0].set_ylabel("mAP minus the baseline's")
    for method, color in STYLES.items():
        rows[0][0].plot([], [], "o", color=color, label=method)
    rows[0][0].legend()
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    main()
