"""The results of benchmarks/gpu.py in a page: what was measured, and what was not.

python benchmarks/summary.py FOLDER OUT.md
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

GOALS = (  # of the project, for a GPU
    "plain large delay at 70 % of the measured copy bandwidth or better",
    "5 times audiocraft eager",
    "dual-pattern at least 2.5 times the graphed verifier, with a trained pair",
    "small to large at least 1.5 times",
    "large + large under 15 GB",
)


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """A results file; None where it is not there or not whole."""
    try:
        found = json.loads((folder / name).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _number(value: float | None, form: str = "{:.2f}") -> str:
    return "-" if value is None else form.format(value)


def rows(document: dict[str, Any]) -> list[str]:
    """The rows of a results file of `specgen bench`, as a Markdown table."""
    out = [
        "| row | s | batch | rule | draft frames | seconds | x real time | accepted | "
        "tokens/pass | speed-up | of copy | peak GB |",
        "|---" * 12 + "|",
    ]
    for row in document["rows"]:
        share, peak = row["bandwidth_fraction"], row["peak_memory_bytes"]
        cells = [
            row["label"],
            f"{row['duration_seconds']:g}",
            str(row["batch"]),
            row["acceptance_rule"] or "-",
            str(row["draft_frames"] or "-"),
            f"{row['seconds']['median']:.3f}",
            _number(row["audio_seconds_per_second"]),
            _number(row["acceptance"] and 100 * row["acceptance"], "{:.0f} %"),
            _number(row["tokens_per_pass"]),
            _number(row["speedup"]),
            _number(share and 100 * share, "{:.0f} %"),
            _number(peak and peak / 1e9),
        ]
        out.append("| " + " | ".join(cells) + " |")
    return out


def bench_part(title: str, document: dict[str, Any] | None) -> list[str]:
    """A section of the page from a results file of `specgen bench`."""
    if document is None or "rows" not in document:
        return [f"## {title}", "", _missing(document), ""]
    machine = document["machine"]
    where = (machine.get("gpu") or {}).get("name") or machine["processor"]
    marked = "**SYNTHETIC**: random weights, acceptance given. " if document["synthetic"] else ""
    copied = document.get("copy_bytes_per_second")
    speed = f", measured copy {copied / 1e9:.0f} GB/s" if copied else ""
    head = f"{marked}{where}{speed}, commit {document['commit'] or '-'}."
    return [f"## {title}", "", head, "", *rows(document), ""]


NOTHING = 0.03  # of the time: a difference that two runs of one program have


def graphs(on: dict[str, Any] | None, off: dict[str, Any] | None) -> list[str]:
    """What CUDA graphs are worth: the same verifier alone, with them and without."""
    out = ["## Without CUDA graphs", ""]
    if off is None or "rows" not in off or on is None or "rows" not in on:
        return [*out, _missing(off), ""]

    def alone(document: dict[str, Any]) -> dict[tuple[Any, ...], float]:
        return {
            (row["verifier"], row["duration_seconds"], row["batch"]): row["seconds"]["median"]
            for row in document["rows"]
            if row["drafter"] is None and row["package"] == "specgen"
        }

    with_graphs, without = alone(on), alone(off)
    both = [key for key in without if key in with_graphs]
    for key in both:
        times = without[key] / with_graphs[key]
        out.append(
            f"- {key[0]}, {key[1]:g} s, batch {key[2]}: {with_graphs[key]:.3f} s with, "
            f"{without[key]:.3f} s without: {times:.2f} times"
        )
    if on["machine"]["device"] == "cpu":
        out += ["", "On a CPU: there are no graphs, what differs is chance."]
    elif all(abs(without[key] / with_graphs[key] - 1) < NOTHING for key in both):
        out += ["", "SPECGEN_GRAPHS=off changes nothing here: no graphs, or no such switch."]
    return [*out, ""]


def _missing(document: dict[str, Any] | None) -> str:
    return "UNMEASURED" + (f": {document['failed']}" if document and "failed" in document else "")


def page(folder: Path) -> str:
    """The whole page."""
    out = ["# On a GPU", "", "Written by `make bench-gpu`. Goals: " + "; ".join(GOALS) + ".", ""]
    tests = load(folder, "gpu-tests.json")
    if tests is None or "tests" not in tests:
        out += ["Tests: " + _missing(tests), ""]
    else:
        bad = tests["failures"] + tests["errors"]
        passed = tests["tests"] - bad - tests["skipped"]
        out += [f"Tests: {passed} passed, {bad} failed, {tests['skipped']} skipped.", ""]
    out += bench_part("A pair trained on the spot", load(folder, "gpu-trained.json"))
    training = load(folder, "gpu-training.json")
    if training is not None and "models" in training:
        made = training["tokens"]
        out.append(
            f"Trained on {made['clips']} clips of {made['frames']} frames made by "
            f"{made['made_by']}: "
            + "; ".join(
                f"{name} {m['parameters'] / 1e6:.0f} M parameters, {m['steps']} steps in "
                f"{m['seconds']:.0f} s, {m['held_out_nats']:.2f} nats held out"
                for name, m in training["models"].items()
            )
            + "."
        )
        out.append("")
    out += bench_part("Full size", load(folder, "gpu-synthetic.json"))
    out += graphs(load(folder, "gpu-synthetic.json"), load(folder, "gpu-graphs-off.json"))
    out += bench_part("Beside other packages", load(folder, "gpu-peers.json"))
    out += bench_part("Batches", load(folder, "gpu-batch.json"))
    memory = load(folder, "gpu-memory.json")
    out += ["## Memory", ""]
    measured = [
        piece for piece in (memory or {}).get("pieces", []) if piece["peak_bytes"] is not None
    ]
    if memory is None or not measured:
        return "\n".join([*out, _missing(memory), ""])
    for piece in measured:
        fits = "fits" if piece["fits"] else "does NOT fit"
        out.append(
            f"- {memory['label']}, caches for {piece['duration_seconds']:g} s: {fits} under "
            f"{memory['cap_bytes'] / 1e9:.0f} GB; peak {piece['peak_bytes'] / 1e9:.2f} GB, "
            f"predicted {piece['predicted_bytes'] / 1e9:.2f} GB."
        )
    out.append("")
    return "\n".join(out)


def main() -> None:
    folder, target = map(Path, sys.argv[1:3])
    partial = target.with_name(target.name + ".tmp")
    partial.write_text(page(folder))
    os.replace(partial, target)


if __name__ == "__main__":
    main()
