"""The HTML report: one file that opens from disk, with everything it shows inside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specgen import __version__
from specgen.audio import files
from specgen.errors import UserError
from specgen.evaluation import pictures
from specgen.evaluation.comparison import Outcome
from specgen.evaluation.pictures import Line, curves
from specgen.evaluation.runs import Made, Run
from specgen.evaluation.tables import highlights, passed, percent, sentences, verdict
from specgen.evaluation.text import by_codebook, tables
from specgen.evaluation.two_sample import FEW, FEW_NOTE

NAME = "index.html"
TEMPLATE = "report.html.j2"
_MEANING = {
    "Sides": "How much of what the drafter guessed the verifier let stand.",
    "Identity": "Clips and tokens that are the same on both sides, prompts and seeds being equal.",
    "Likelihood under the verifier": "0 nats off is what tokens drawn from the verifier's own law "
    "are, whatever made them.",
    "Distribution of tokens": "Whether the sides' tokens follow one law, and which shift of it "
    "would have been caught.",
    "Distance to the recordings": "Small is near. Between the first two rows lies what a model of "
    "these tokens can reach.",
    "Speed": "Sides take turns, batch by batch. For figures to quote use specgen bench.",
}


@dataclass
class Sounds:
    """Sounds and their pictures, each once however many players share it."""

    stored: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, wave: NDArray[Any], rate: int) -> str:
        """The key under which the page finds it."""
        key = hashlib.sha256(np.ascontiguousarray(wave).tobytes()).hexdigest()[:12]
        if key not in self.stored:
            self.stored[key] = {
                "sound": pictures.sound(wave, rate),
                "picture": pictures.spectrogram(wave, rate),
            }
        return key


def render(values: dict[str, Any]) -> str:
    """The template with these values.

    Raises:
        UserError: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise UserError(
            "the report needs Jinja2; pip install 'specgen[evaluate]', or leave out --report"
        ) from None
    loader = PackageLoader("specgen.evaluation")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    empty = {
        "verdict": "",
        "highlights": [],
        "sentences": [],
        "passed": True,
        "tables": [],
        "footnote": "",
        "plots": [],
        "groups": [],
        "map_note": "",
        "notes": [],
        "sounds": {},
    }
    return environment.get_template(TEMPLATE).render({**empty, **values})


def write_comparison(folder: Path, outcome: Outcome, players: int) -> Path:
    """Write `index.html` and `results.json`; returns the page's path.

    Args:
        folder: made if need be.
        outcome: of the comparison.
        players: clips a side that the page has players for.
    """
    page = comparison_page(outcome.document, outcome.runs, players)
    folder.mkdir(parents=True, exist_ok=True)
    with files.together(folder / "results.json", folder / NAME) as (results, file):
        text = json.dumps(outcome.document, indent=1, ensure_ascii=False) + "\n"
        results.write(text.encode())
        file.write(page.encode())
    return folder / NAME


def comparison_page(document: dict[str, Any], runs: Sequence[Run], players: int) -> str:
    """The page of a comparison."""
    sounds = Sounds()
    groups = [_group(i, runs, sounds) for i in _shown(runs, players)]
    sides = [row["label"] for row in document["sides"]]
    count = len(document["prompts"]) * document["seeds"]
    about = (
        f"{count} clips of {document['duration_seconds']:g} s a side "
        f"({len(document['prompts'])} prompts x {document['seeds']} seeds), specgen {__version__}, "
        f"{document['machine']['processor']}, {document['made'][:16].replace('T', ' ')} UTC"
    )
    few = any(row["clips"] < FEW for row in document["quality"])
    return render(
        {
            "title": _title(sides),
            "about": about,
            "verdict": verdict(document),
            "highlights": highlights(document),
            "sentences": sentences(document),
            "passed": passed(document) and not document["failures"],
            "tables": [(*table, _MEANING.get(table[0], "")) for table in tables(document)],
            "footnote": FEW_NOTE if few else "",
            "plots": plots(document),
            "groups": groups,
            "map_note": f"Beside {sides[0]}, orange marks what differs from it.",
            "notes": [*document["notes"], *(f"failed: {line}" for line in document["failures"])],
            "sounds": sounds.stored,
        }
    )


def _title(sides: Sequence[str]) -> str:
    if len(sides) <= 3:
        return " | ".join(sides)
    return f"{sides[0]} and {len(sides) - 1} other ways"


def _shown(runs: Sequence[Run], players: int) -> list[int]:
    """Clips to play: spread over those that any side made."""
    made = sorted({i for run in runs for i in run.clips})
    if len(made) <= players:
        return made
    return [made[i * len(made) // players] for i in range(players)]


def _group(index: int, runs: Sequence[Run], sounds: Sounds) -> dict[str, Any]:
    clips = [(run, run.clips[index]) for run in runs if index in run.clips]
    request = clips[0][1].request
    base = runs[0].clips.get(index)
    return {
        "title": f"{request.prompt} (seed {request.seed})",
        "clips": [_card(run.label, clip, base, sounds) for run, clip in clips],
    }


def _card(label: str, clip: Made, base: Made | None, sounds: Sounds) -> dict[str, Any]:
    """What the page shows of a clip."""
    lines = []
    stats = clip.sidecar["stats"]
    if stats["acceptance"] is not None:
        lines.append(
            f"accepted {percent(stats['acceptance'], 0)} (by codebook {by_codebook(stats)}), "
            f"{stats['tokens_per_pass']:.2f} tokens a pass"
        )
    if base is None or base is clip or base.codes.shape != clip.codes.shape:
        picture = pictures.token_map(clip.codes, int(clip.codes.max()) + 1)
        alt = "tokens"
    else:
        same = float((base.codes == clip.codes).mean())
        picture, alt = pictures.difference_map(base.codes, clip.codes), "token differences"
        lines.append(f"{percent(same)} of the tokens as on the first side")
    return {
        "label": label,
        "lossless": clip.sidecar["lossless"],
        "sound": sounds.add(clip.wave, clip.rate),
        "map": picture,
        "map_alt": alt,
        "lines": lines,
    }


def plots(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Acceptance over time, and speed against distance where sides are lossy."""
    made = [curve] if (curve := lossy_curve(document)) else []
    lines = []
    for row in document["sides"]:
        over_time = row["acceptance_over_time"] or []
        step = document["duration_seconds"] / max(len(over_time), 1)
        points = [((i + 0.5) * step, a) for i, a in enumerate(over_time) if a is not None]
        if len(points) > 1:
            lines.append(Line(row["label"], tuple(points)))
    if lines:
        svg = curves(lines, "seconds into the clip", "accepted share", y_from=0.0)
        note = "Share of drafted tokens that the verifier accepted, by place in the clip."
        names = [line.name for line in lines]
        made.append({"title": "Acceptance over time", "svg": svg, "names": names, "note": note})
    return made


def lossy_curve(document: dict[str, Any]) -> dict[str, Any] | None:
    """What lossy modes buy and cost: a line a kind, a point a threshold; None without such sides.

    Across: the kernel distance to the first side, 0 for what only chance tells apart. Up: how many
    times faster than the first side.
    """
    heard = {row["label"]: row["to_first"] for row in document["quality"]}
    pace = {row["label"]: row["seconds"] for row in document["speed"]}
    first = document["sides"][0]["label"]
    found: dict[str, list[tuple[float, float, float, str]]] = {}
    for row in document["sides"]:
        label, lossy = row["label"], row["sampling"]["lossy"]
        if lossy and heard.get(label) and pace.get(label) and pace.get(first):
            kind, _, threshold = lossy.partition(":")
            kernel = heard[label]["kernel"]["value"]
            point = (float(threshold), kernel, pace[first] / pace[label], threshold)
            found.setdefault(kind, []).append(point)
    if not found:
        return None
    lines = []
    for kind, points in found.items():
        points.sort(reverse=True)  # from strict to lenient, after the lossless point
        places = ((0.0, 1.0), *((x, y) for _, x, y, _ in points))
        lines.append(Line(kind, places, labels=("", *(text for *_, text in points))))
    clips = min(row["clips"] for row in document["quality"])
    note = (
        f"Every point is a threshold; {first} is at distance 0 and speed 1. Distances of {clips} "
        "clips a side; their intervals are in the table."
    )
    if clips < FEW:
        note += f" With fewer than {FEW} clips the places across are rough."
    return {
        "title": "Speed against distance of the lossy modes",
        "svg": curves(lines, "kernel distance", "times as fast", y_from=1.0),
        "names": list(found),
        "note": note,
    }


def clips_page(clips: Sequence[tuple[str, Made]], title: str) -> str:
    """The page of single clips: label and clip; those of one prompt and seed stand side by side."""
    sounds = Sounds()
    groups: dict[tuple[str, int], list[tuple[str, Made]]] = {}
    for label, clip in clips:
        groups.setdefault((clip.request.prompt, clip.request.seed), []).append((label, clip))
    rows = [_stats_row(label, clip) for label, clip in clips]
    heads = [
        "clip",
        "lossless",
        "seconds",
        "accepted",
        "by codebook",
        "tokens a pass",
        "x real time",
    ]
    return render(
        {
            "title": title,
            "about": f"{len(clips)} clips, specgen {__version__}",
            "tables": [("Clips", heads, rows, "")],
            "groups": [
                {
                    "title": f"{prompt} (seed {seed})",
                    "clips": [_card(label, clip, group[0][1], sounds) for label, clip in group],
                }
                for (prompt, seed), group in groups.items()
            ],
            "map_note": "Of clips of one prompt and seed, orange marks what differs.",
            "sounds": sounds.stored,
        }
    )


def _stats_row(label: str, clip: Made) -> list[str]:
    stats, pace = clip.sidecar["stats"], clip.sidecar["timings"]["audio_seconds_per_second"]
    per_pass = stats["tokens_per_pass"]
    return [
        label,
        "yes" if clip.sidecar["lossless"] else "LOSSY",
        f"{len(clip.wave) / clip.rate:.1f}",
        percent(stats["acceptance"], 0),
        by_codebook(stats),
        "-" if per_pass is None else f"{per_pass:.2f}",
        f"{pace:.2f}",
    ]
