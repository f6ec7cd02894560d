"""A picture of a run: speed-up and acceptance of every row."""

from __future__ import annotations

import os
from pathlib import Path

from specgen.benchmarking.rows import Document, Row
from specgen.errors import UserError

SUFFIXES = (".png", ".svg")
INSTALL = "pip install 'specgen[train]'"


def check(path: Path) -> None:
    """Refuse a picture that could not be written, before anything is measured.

    Raises:
        UserError: another suffix, no such folder, or matplotlib is missing.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"--plot {path} must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--plot: cannot write in {path.parent}; create it or choose another")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(f"--plot needs matplotlib; {INSTALL}") from None


def name(row: Row) -> str:
    """A row in a line: label, draft length, batch, length."""
    parts = [row.label]
    if row.draft_frames is not None:
        frames = "" if row.draft_frames == "auto" else " frames"
        parts.append(f"{row.acceptance_rule}, {row.draft_frames}{frames}")
    if row.acceptance_given is not None:
        values = row.acceptance_given
        shown = values[:1] if len(set(values)) == 1 else values
        source = "" if row.acceptance_source == "given" else f" of {row.acceptance_source}"
        parts.append("given acceptance " + " ".join(f"{v:.2g}" for v in shown) + source)
    parts.append(f"{row.duration_seconds:g} s, batch {row.batch}")
    return "\n".join(parts)


def draw(document: Document, path: Path) -> None:
    """Write the picture; an older one stays until the new one is whole.

    Raises:
        UserError: no row has a speed-up to draw.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in document.rows if row.speedup is not None]
    if not rows:
        raise UserError("--plot: no row has a speed-up to draw; name a preset with a drafter")
    places = range(len(rows))
    height = 1.2 + 0.75 * len(rows)
    figure, (left, right) = pyplot.subplots(
        1, 2, sharey=True, figsize=(11, height), layout="constrained"
    )
    left.barh(
        places,
        [row.speedup for row in rows],
        xerr=[row.speedup_error or 0.0 for row in rows],
        color="tab:blue",
    )
    left.axvline(1.0, color="black", linewidth=0.8)
    left.set_xlabel("times as fast as the verifier alone")
    left.set_yticks(places, [name(row) for row in rows], fontsize=8)
    left.invert_yaxis()
    drawn = max((len(row.acceptance_per_codebook or []) for row in rows), default=0)
    for k in range(drawn):
        values = [
            (row.acceptance_per_codebook[k] if row.acceptance_per_codebook else None)
            for row in rows
        ]
        right.barh(
            [place + 0.8 * ((k + 0.5) / drawn - 0.5) for place in places],
            [100 * (value or 0.0) for value in values],
            height=0.8 / drawn,
            label=f"k{k + 1}",
        )
    right.set_xlim(0, 100)
    right.set_xlabel("guesses accepted, %, by codebook")
    if drawn:
        right.legend(fontsize=8)
    machine = document.machine
    gpu = machine.get("gpu")
    where = gpu["name"] if gpu else machine["processor"]
    marked = "SYNTHETIC (random weights, acceptance given)   " if document.synthetic else ""
    figure.suptitle(f"{marked}{where}, {document.commit or 'no commit'}", fontsize=9)
    partial = path.with_name(path.name + ".tmp")
    figure.savefig(partial, format=path.suffix[1:], dpi=120)
    pyplot.close(figure)
    os.replace(partial, path)
