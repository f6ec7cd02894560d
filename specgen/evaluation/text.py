"""A comparison's document as tables for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from specgen.evaluation.tables import figure_text, percent, sentences
from specgen.evaluation.two_sample import FEW, FEW_NOTE

Document = dict[str, Any]
Body = tuple[list[str], list[list[str]]]
Table = tuple[str, list[str], list[list[str]]]


def by_codebook(row: dict[str, Any]) -> str:
    """Acceptance of every codebook; `-` where nothing was drafted."""
    if row["acceptance"] is None:
        return "-"
    return " ".join(percent(share, 0) for share in row["acceptance_per_codebook"])


def tables(document: Document) -> list[Table]:
    """Title, headings and rows of every table that has rows."""
    made = [
        ("Sides", *_sides(document)),
        ("Identity", *_identity(document)),
        ("Likelihood under the verifier", *_likelihood(document)),
        ("Distribution of tokens", *_distribution(document)),
        ("Sound", *_sound(document)),
        ("Distance to the recordings", *_to_recordings(document)),
        (f"Distance to {document['sides'][0]['label']}", *_to_first(document)),
        ("Speed", *_speed(document)),
    ]
    return [table for table in made if table[2]]


def _sides(document: Document) -> Body:
    heads = ["side", "lossless", "clips", "failed", "accepted", "by codebook", "tokens a pass"]
    rows = [
        [
            row["label"],
            "yes" if row["lossless"] else "LOSSY",
            str(row["clips"]),
            str(row["failed"]),
            percent(row["acceptance"], 0),
            by_codebook(row),
            "-" if row["tokens_per_pass"] is None else f"{row['tokens_per_pass']:.2f}",
        ]
        for row in document["sides"]
    ]
    return heads, rows


def _identity(document: Document) -> Body:
    heads = ["sides", "clips the same", "tokens the same", "by codebook", "promised"]
    rows = [
        [
            f"{row['a']} | {row['b']}",
            f"{row['clips_identical']} of {row['clips']}",
            percent(row["tokens_identical_share"]),
            " ".join(map(percent, row["per_codebook"])),
            {True: "yes, and kept", False: "yes, and BROKEN", None: "no"}[row["holds"]],
        ]
        for row in document["identity"]
    ]
    return heads, rows


def _distribution(document: Document) -> Body:
    heads = ["sides", "of", "p", "verdict", "would catch", "in"]
    rows = []
    for name in ("distribution", "short"):
        for row in document[name]:
            shift, power = row["detectable_shift"], row["power"]
            rows.append(
                [
                    f"{row['a']} | {row['b']}",
                    f"{row['clips']} clips of {row['frames']} frames",
                    f"{row['p']:.3g}",
                    f"differ ({row['worst']})" if row["differs"] else "no difference",
                    "-" if shift is None else f"a shift of {shift:.0%}",
                    "-" if power is None else f"{power:.0%} of runs",
                ]
            )
    return heads, rows


def _likelihood(document: Document) -> Body:
    heads = ["side", "tokens", "nats off", "p", "verdict", "would catch"]
    rows = []
    for row in document["likelihood"]:
        low, high = row["interval_95"]
        rows.append(
            [
                row["label"],
                f"{row['tokens']:,}",
                f"{row['excess_nats']:+.3f} ({low:+.3f} to {high:+.3f})",
                f"{row['p']:.3g}",
                "another law" if row["differs"] else "no bias seen",
                f"{row['detectable_nats']:.3f} nats",
            ]
        )
    return heads, rows


def _sound(document: Document) -> Body:
    heads = ["side", "clips", "text agreement", "loudness LUFS", "dynamics dB", "centroid Hz"]
    heads.append("tag KL between its seeds")
    rows = [
        [
            row["label"],
            str(row["clips"]),
            figure_text(row["text_agreement"]),
            figure_text(row["loudness_lufs"], 1),
            figure_text(row["dynamics_db"], 1),
            figure_text(row["centroid_hz"], 0),
            figure_text(row["tag_kl_between_seeds"]),
        ]
        for row in document["quality"]
    ]
    return heads, rows


def _to_recordings(document: Document) -> Body:
    heads = ["side", "Fréchet", "extrapolated", "kernel", "KL of mean tags", "spectrum dB"]
    keys = ("frechet", "frechet_infinity", "kernel", "tag_shift")
    rows = [
        [
            row["label"],
            *(figure_text(found[key]) for key in keys),
            figure_text(found["spectrum_db"], 1),
        ]
        for row in document["quality"]
        if (found := row["to_recordings"])
    ]
    return heads, rows


def _to_first(document: Document) -> Body:
    heads = [
        "side",
        "Fréchet",
        "kernel",
        "tag KL",
        "spectrum dB",
        "p Fréchet",
        "p kernel",
        "p tags",
    ]
    rows = [
        [
            row["label"],
            *(figure_text(found[key]) for key in ("frechet", "kernel", "tag_kl")),
            figure_text(found["spectrum_db"], 1),
            *(f"{found['p'][key]:.2g}" for key in ("frechet", "kernel", "tag_shift")),
        ]
        for row in document["quality"]
        if (found := row["to_first"])
    ]
    return heads, rows


def _speed(document: Document) -> Body:
    heads = ["side", "seconds", "x real time", "times as fast", "rounds"]
    rows = []
    for row in document["speed"]:
        if row["seconds"] is None:
            continue
        gain = row["speedup"]
        text = "-"
        if gain:
            low, high = gain["interval_95"]
            text = f"{gain['value']:.2f} ({low:.2f} to {high:.2f})"
        pace = f"{row['audio_seconds_per_second']:.2f}"
        rows.append([row["label"], f"{row['seconds']:.1f}", pace, text, str(row["rounds"])])
    return heads, rows


def render(document: Document, width: int | None = None) -> str:
    """Sentences, then tables."""
    from rich.console import Console
    from rich.table import Table as RichTable

    out = io.StringIO()
    console = Console(file=out, width=width or 160, highlight=False, markup=False)
    for sentence in sentences(document):
        console.print(f"- {sentence}")
    for title, heads, rows in tables(document):
        table = RichTable(title=title, title_justify="left", box=None, pad_edge=False)
        for head in heads:
            table.add_column(head, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print()
        console.print(table)
    for line in _extra(document):
        console.print(line)
    return out.getvalue().rstrip()


def _extra(document: Document) -> Iterable[str]:
    for row in document["identity"]:
        for d in row["first_differences"][:3]:
            margin = "" if d["margin"] is None else f", margin {d['margin']:.2g}"
            yield (
                f"first difference of {d['id']}: frame {d['frame']}, codebook {d['codebook']}, "
                f"tokens {d['tokens'][0]} and {d['tokens'][1]}{margin}"
            )
    if any(row["clips"] < FEW for row in document["quality"]):
        yield FEW_NOTE
    yield from (f"note: {note}" for note in document["notes"])
    yield from (f"failed: {line}" for line in document["failures"])
