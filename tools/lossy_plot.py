"""What lossy modes buy and cost, as a figure and a table, from a comparison's results.

    specgen compare embedded 'embedded --lossy typical:0.1' ... --report runs/lossy
    python tools/lossy_plot.py runs/lossy/results.json docs/figures/lossy.png

A line a kind, a point a threshold, intervals of 95 %. Tokens a pass do not depend on how busy the
machine is, the times do.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read(path: Path) -> tuple[Row, list[Row]]:
    """The lossless side, and the lossy ones, most lenient last: what the figure shows of each."""
    document = json.loads(path.read_text())
    heard = {row["label"]: row for row in document["quality"]}
    pace = {row["label"]: row for row in document["speed"]}
    rows = []
    for side in document["sides"]:
        label = side["label"]
        kind, _, threshold = (side["sampling"]["lossy"] or ":nan").partition(":")
        rows.append(
            {
                "kind": kind,
                "threshold": float(threshold),
                "acceptance": side["acceptance"],
                "tokens": side["tokens_per_pass"],
                "clips": heard[label]["clips"],
                "distance": heard[label]["to_first"],
                "agreement": heard[label]["text_agreement"],
                "speedup": pace[label]["speedup"],
            }
        )
    first, *lossy = rows
    return first, sorted(lossy, key=lambda row: (row["kind"], -row["threshold"]))


def span(figure: Row | None, digits: int = 2) -> str:
    """A figure's interval."""
    if figure is None:
        return "-"
    low, high = figure["interval_95"]
    return f"{low:.{digits}f} to {high:.{digits}f}"


def table(first: Row, rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| mode | accepted | tokens a pass | times as fast | kernel | Fréchet | p (kernel) |"
        " text agreement |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| lossless | {first['acceptance']:.0%} | {first['tokens']:.2f} | 1 | 0 | 0 | |"
        f" {span(first['agreement'])} |",
    ]
    for row in rows:
        far = row["distance"]
        lines.append(
            f"| `{row['kind']}:{row['threshold']:g}` | {row['acceptance']:.0%} "
            f"| {row['tokens']:.2f} | {span(row['speedup'])} | {span(far['kernel'])} "
            f"| {span(far['frechet'], 1)} | {far['p']['kernel']:.2g} | {span(row['agreement'])} |"
        )
    return "\n".join(lines)


def draw(first: Row, rows: list[Row], out: Path) -> None:
    """Tokens a verifier pass over kernel distance."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for i, kind in enumerate(sorted({row["kind"] for row in rows})):
        part = [row for row in rows if row["kind"] == kind]
        kernel = [row["distance"]["kernel"] for row in part]
        x, y = [k["value"] for k in kernel], [row["tokens"] for row in part]
        ends = [
            [k["value"] - k["interval_95"][0] for k in kernel],
            [k["interval_95"][1] - k["value"] for k in kernel],
        ]
        axes.plot([0.0, *x], [first["tokens"], *y], color=f"C{i}", linewidth=1.5, label=kind)
        axes.errorbar(x, y, xerr=ends, fmt="o", color=f"C{i}", elinewidth=0.8, capsize=2)
        for row, where in zip(part, x, strict=True):
            text = f"{row['threshold']:g}"
            spot = (where, row["tokens"])
            axes.annotate(text, spot, textcoords="offset points", xytext=(6, 6), fontsize=9)
    axes.plot([0], [first["tokens"]], "k*", markersize=11, label="lossless")
    axes.set_xlabel(f"kernel distance to the lossless clips ({first['clips']} a side)")
    axes.set_ylabel("tokens a verifier pass")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    first, rows = read(args.results)
    draw(first, rows, args.out)
    print(table(first, rows))


if __name__ == "__main__":
    main()
