"""`specgen verify`: does a preset keep the promises on this machine?"""

import json
import sys
from typing import Annotated

import typer

from specgen import presets
from specgen.errors import UserError


def verify(
    preset: Annotated[str, typer.Argument(help="A preset's name, or a YAML file.")] = "embedded",
    dtype: Annotated[
        str | None,
        typer.Option(help="float32,bfloat16: formats to try. Left out: float32, on a GPU both."),
    ] = None,
    clips: Annotated[int, typer.Option(min=1, help="Clips whose tokens are compared.")] = 8,
    duration: Annotated[float, typer.Option("--duration", "-d", help="Seconds of each.")] = 4.0,
    short_clips: Annotated[
        int, typer.Option(min=0, help="Very short clips for the distribution test; 0: none.")
    ] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Of the first clip.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Clips decoded together.")] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check that drafting leaves a preset's music alone: exit code 0 if every promise holds.

    Makes the same clips with the verifier alone and with its drafter, and compares them token by
    token; then compares the statistics of many very short clips made with different seeds. In
    float32 the tokens must be the same but for rounding ties; in 16 bit their share is reported.
    """
    loaded = presets.load_preset(preset)
    dtypes = _dtypes(dtype, device)

    from specgen.evaluation.comparison import Plan
    from specgen.evaluation.runs import read_prompts
    from specgen.evaluation.verification import verify as check_all

    lines = read_prompts().lines
    plan = Plan(
        lines[: min(clips, len(lines))],
        seeds=-(-clips // len(lines)),
        first_seed=seed,
        duration=duration,
        batch=batch,
        device=device,
        threads=threads,
        short_clips=short_clips,
        embedder="",
    )
    checks = check_all(loaded, dtypes, plan, _say)
    ok = not any(check.ok is False for check in checks)
    if as_json:
        rows = [check.as_dict() for check in checks]
        print(json.dumps({"preset": loaded.name, "ok": ok, "checks": rows}))
    else:
        for check in checks:
            mark = {True: "kept", False: "BROKEN", None: "noted"}[check.ok]
            print(f"{mark:7}{check.name}: {check.text}")
        kept = "keeps its promises here" if ok else "BREAKS a promise here"
        print(f"{loaded.name} {kept}")
    if not ok:
        raise typer.Exit(1)


def _dtypes(text: str | None, device: str) -> tuple[str, ...]:
    if text is None:
        from specgen.devices import choose_device

        on_gpu = choose_device(device).type == "cuda"
        return ("float32", "bfloat16") if on_gpu else ("float32",)
    dtypes = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    wrong = [d for d in dtypes if d not in presets.DTYPES]
    if wrong:
        known = ", ".join(presets.DTYPES)
        raise UserError(f"--dtype {wrong[0]!r} is unknown; known: {known}")
    return dtypes


def _say(text: str) -> None:
    print(f"specgen: {text}", file=sys.stderr, flush=True)
