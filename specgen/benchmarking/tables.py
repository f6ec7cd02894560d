"""One document, five formats."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from specgen.benchmarking.rows import SCHEMA, Document, Row
from specgen.benchmarking.timing import ratio

FORMATS = ("table", "md", "csv", "json", "jsonl")
_WIDTH = 1000  # where there is no terminal: as wide as it needs


def render(document: Document, form: str, *, width: int | None = None) -> str:
    """The document in one of `FORMATS`, without a newline at the end.

    Args:
        document: what to show.
        form: table and md start with the static card; csv and jsonl hold the rows alone.
        width: columns of a terminal, for `table`.

    Raises:
        ValueError: an unknown format.
    """
    match form:
        case "json":
            return document.json()
        case "jsonl":
            return "\n".join(json.dumps(_flat(document, r), allow_nan=False) for r in document.rows)
        case "csv":
            return _csv(document)
        case "md" | "table":
            parts = [static_card(document, form), findings(document, form, width=width)]
            return "\n".join(parts)
    raise ValueError(f"format {form!r} is unknown; known: {', '.join(FORMATS)}")


def card(document: Document) -> str:
    """The static card (machine, versions, models, what memory allows) and notes on the run."""
    return "\n".join([static_card(document), *_notes(document)])


def static_card(document: Document, form: str = "table") -> str:
    """What is known before anything is timed; `form` is table or md."""
    machine, settings = document.machine, document.settings
    gpu = machine.get("gpu")
    where = f"{machine['device']}, {machine['processor']}, {machine['cores']} cores"
    lines = ["SYNTHETIC: random weights, acceptance given"] if document.synthetic else []
    lines += [
        f"device: {where}, threads {machine['threads']}" + (f", {_gpu(gpu)}" if gpu else ""),
        f"load average at the start: {_number(machine['load_average'])}",
        "versions: " + ", ".join(f"{k} {v or '-'}" for k, v in document.versions.items()),
        f"commit: {document.commit or '-'}",
    ]
    if document.copy_bytes_per_second is not None:
        speed = document.copy_bytes_per_second / 1e9
        lines.append(f"measured copy: {speed:.1f} GB/s, reads and writes both counted")
    lines += [_model(name, model) for name, model in document.models.items()]
    lines.append(
        f"{settings['repeats']} timed runs a row after {settings['warmup']} of warm-up, in turn; "
        f"run i decodes seed {settings['seed']} + i x batch of {len(settings['prompts'])} prompts; "
        "seconds are of decoding alone, speed-up is over the same verifier alone"
    )
    return "\n".join(_bullet(form) + line for line in lines)


def _gpu(gpu: dict[str, Any]) -> str:
    known = [f"{gpu['name']} {gpu['memory_bytes'] / 1e9:.0f} GB"]
    known += [f"{name} {gpu[name]}" for name in ("cuda", "driver") if gpu.get(name)]
    return ", ".join(known)


def _bullet(form: str) -> str:
    return "- " if form == "md" else ""


def _model(name: str, model: dict[str, Any]) -> str:
    text = (
        f"model {name}: {model['parameters'] / 1e6:.1f} M parameters, "
        f"{model['bytes'] / 1e6:.1f} MB, {model['pattern']}, {model['dtype']}"
    )
    if "pass_bytes" not in model:
        return text
    return (
        f"{text}; a step reads {model['pass_bytes'] / 1e6:.1f} MB of weights: at the speed of the "
        f"copy at most {model['ceiling_audio_seconds_per_second']:.3g} x real time alone"
    )


def _notes(document: Document, form: str = "table") -> list[str]:
    """What is known after."""
    lines = []
    conditions = [r.condition_seconds for r in document.rows if r.condition_seconds is not None]
    if conditions:
        codec = document.codec_seconds
        lines.append(
            f"apart from decoding: conditions up to {max(conditions):.3f} s"
            + ("" if codec is None else f", codec {codec:.3f} s a clip")
        )
    sources = dict.fromkeys(r.acceptance_source for r in document.rows if r.acceptance_source)
    lines += [f"acceptance of synthetic rows: {source}" for source in sources]
    lines += automatic(document.rows)
    lines += [f"WARNING: {text}" for text in document.warnings]
    return [_bullet(form) + line for line in lines]


def automatic(rows: Sequence[Row]) -> list[str]:
    """How far each `auto` row is from the best fixed draft length measured beside it."""
    said = []
    for auto in rows:
        fixed = [r for r in rows if r.draft_frames != "auto" and _setting(r) == _setting(auto)]
        if auto.draft_frames != "auto" or not fixed:
            continue
        best = min(fixed, key=lambda r: r.seconds["median"])
        clock = _beside(auto.seconds["samples"], best.seconds["samples"])
        said.append(
            f"{auto.label}, {auto.duration_seconds:g} s, batch {auto.batch}, "
            f"{auto.acceptance_rule}: auto {clock} against the best fixed length, "
            f"{best.draft_frames} frames{_in_process_time(auto, best)}"
        )
    return said


def _in_process_time(auto: Row, best: Row) -> str:
    if not (auto.cpu_seconds and best.cpu_seconds):
        return ""
    return f" ({_beside(auto.cpu_seconds, best.cpu_seconds)} in process time)"


def _beside(ours: list[float], theirs: list[float]) -> str:
    """How much longer rounds took than those of another row, in percent."""
    value, error = ratio(ours, theirs)
    return f"{100 * (value - 1):+.1f}" + ("" if error is None else f" ± {100 * error:.1f}") + " %"


def _setting(row: Row) -> tuple[object, ...]:
    """What two rows share that differ in their draft length alone."""
    return (
        row.label,
        row.drafter,
        row.batch,
        row.duration_seconds,
        row.acceptance_rule,
        tuple(row.draft_temperatures or ()),
        tuple(row.acceptance_given or ()),
    )


def findings(document: Document, form: str, *, width: int | None = None) -> str:
    """What `static_card` does not say: notes, the measured rows, and what the cost model says."""
    parts = [grid(form, *cells(document.rows), left=4, width=width)]
    predicted = [row for row in document.rows if row.predicted is not None]
    if predicted:
        parts += [_PREDICTED, grid(form, *prediction_cells(predicted), left=2, width=width)]
    return "\n\n".join(["\n".join(_notes(document, form)), *parts])


_PREDICTED = (
    "PREDICTED by the cost model from the prices of single rounds, timed between the runs, and the "
    "acceptance, tokens taken as independent; not measurements:"
)


def prediction_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the predictions, each beside what was measured."""
    titles = ["row", "draft frames", "draft step ms", "verify pass ms", "tokens/pass predicted"]
    titles += ["measured", "seconds PREDICTED", "measured", "off by"]
    lines = []
    for row in rows:
        found = row.predicted
        assert found is not None
        passes = [f"{n}: {1000 * s:.2f}" for n, s in found["verify_pass_seconds"].items()]
        chosen = f" (predicted best {found['draft_frames']:g})"
        lines.append(
            [
                row.label,
                f"{row.draft_frames}{chosen if row.draft_frames == 'auto' else ''}",
                f"{1000 * found['draft_step_seconds']:.2f}",
                " ".join(passes),
                _number(found["tokens_per_pass"]),
                _number(row.tokens_per_pass),
                f"{found['seconds']:.3f}",
                f"{row.seconds['median']:.3f}",
                f"{100 * found['relative_error']:+.0f} %",
            ]
        )
    return titles, lines


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the readable table; columns that say nothing are left out."""
    codebooks = max((len(r.acceptance_per_codebook or []) for r in rows), default=0)
    columns: list[tuple[str, list[str]]] = [
        ("row", [r.label for r in rows]),
        ("draft model", [r.drafter or "-" for r in rows]),
        ("candidate model", [r.verifier for r in rows]),
        ("patterns", [_patterns(r) for r in rows]),
        ("s of audio", [f"{r.duration_seconds:g}" for r in rows]),
        ("batch", [str(r.batch) for r in rows]),
        ("rule", [_rule(r) for r in rows]),
        ("draft frames", ["-" if r.draft_frames is None else str(r.draft_frames) for r in rows]),
        ("draft temp.", [_temperatures(r) for r in rows]),
        ("seconds", [_seconds(r) for r in rows]),
        ("x real time", [f"{r.audio_seconds_per_second:.2f}" for r in rows]),
        ("tokens/s", [f"{r.tokens_per_second:.0f}" for r in rows]),
        ("accepted", [_percent(r.acceptance) for r in rows]),
    ]
    for k in range(codebooks):
        values = [(r.acceptance_per_codebook or [None] * codebooks)[k] for r in rows]
        columns.append((f"k{k + 1}", [_percent(v) for v in values]))
    columns += [
        ("given", [_given(r) for r in rows]),
        ("tokens/pass", [_number(r.tokens_per_pass) for r in rows]),
        ("speed-up", [_speedup(r) for r in rows]),
        ("in process time", [_number(r.speedup_cpu_time) for r in rows]),
        ("of copy speed", [_percent(r.bandwidth_fraction) for r in rows]),
        ("peak GB", [_giga(r.peak_memory_bytes) for r in rows]),
        ("counted GB", [_giga(r.memory_bytes) for r in rows]),
        ("lossless", ["yes" if r.lossless else "NO" for r in rows]),
        ("identical", [_percent(r.identical, 1) for r in rows]),
    ]
    shown = [(t, c) for t, c in columns if any(cell != "-" for cell in c)]
    return [t for t, _ in shown], [list(line) for line in zip(*(c for _, c in shown), strict=True)]


def _patterns(row: Row) -> str:
    if row.drafter_pattern is None:
        return row.verifier_pattern
    return f"{row.drafter_pattern} -> {row.verifier_pattern}"


def _rule(row: Row) -> str:
    if row.synthetic:
        return f"{row.acceptance_rule or ''} SYNTHETIC".strip()
    return row.acceptance_rule or "-"


def _temperatures(row: Row) -> str:
    if row.draft_temperatures is None:
        return "-"
    return " ".join(f"{t:g}" for t in row.draft_temperatures) or "1"


def _seconds(row: Row) -> str:
    text = f"{row.seconds['median']:.3f}"
    return text if row.spread is None else f"{text} ± {row.spread:.3f}"


def _speedup(row: Row) -> str:
    if row.speedup is None:
        return "-"
    error = "" if row.speedup_error is None else f" ± {row.speedup_error:.2f}"
    return f"{row.speedup:.2f}{error}"


def _given(row: Row) -> str:
    if row.acceptance_given is None:
        return "-"
    values = row.acceptance_given
    shown = values[:1] if len(set(values)) == 1 else values
    return " ".join(f"{100 * value:.0f}" for value in shown) + " %"


def _giga(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e9:.2f}"


def _percent(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def grid(
    form: str,
    titles: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    left: int,
    width: int | None = None,
) -> str:
    """Titles and lines as Markdown (md) or spaced out; the first `left` columns are words."""
    if form == "md":
        return _markdown(titles, lines)
    return _table(titles, lines, width or _WIDTH, left)


def _markdown(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in [titles, *lines]]
    out = ["| " + " | ".join(line) + " |" for line in escaped]
    out.insert(1, "|" + "---|" * len(titles))
    return "\n".join(out)


def _table(titles: Sequence[str], lines: Sequence[Sequence[str]], width: int, left: int) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for i, title in enumerate(titles):
        table.add_column(title, justify="left" if i < left else "right", overflow="fold")
    for line in lines:
        table.add_row(*line)
    text = io.StringIO()
    Console(file=text, width=width, highlight=False, markup=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _flat(document: Document, row: Row) -> dict[str, Any]:
    """A row that says by itself where it comes from."""
    return {
        "schema": SCHEMA,
        "commit": document.commit,
        "processor": document.machine["processor"],
        "device": document.machine["device"],
        "threads": document.machine["threads"],
        **asdict(row),
    }


def _csv(document: Document) -> str:
    """Nested values spread over columns such as `seconds_median`; lists joined by blanks."""
    lines = [_spread(_flat(document, row)) for row in document.rows]
    titles = list(dict.fromkeys(key for line in lines for key in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, titles, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().rstrip("\n")


def _spread(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= _spread(value, f"{prefix}{key}_")
        elif isinstance(value, list):
            out[prefix + key] = " ".join("" if v is None else str(v) for v in value)
        else:
            out[prefix + key] = value
    return out
