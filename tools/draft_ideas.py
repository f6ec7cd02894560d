"""What other sources of drafts would give, offline, with real models.

    python tools/draft_ideas.py     # writes docs/benchmarks/draft-ideas.json

Under the coupled rule a guess stands if it equals the verifier's own draw, argmax(log p + g), and
the output never depends on it. So any source of guesses can be judged on clips that the verifier
made alone: here clips of the built-in prompts, models teacher-forced, noise as the loop draws it.
What has parameters learns or is tuned on the clips of every other prompt and is judged on the
rest. Gains are against the preset's drafter on the same clips; errors are standard errors over
clips. What is learnt from the piece so far is known `LAG` frames later, as in the loop.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from draft_sources import (
    GUIDANCE,
    SAMPLING,
    Clip,
    Counts,
    among_first,
    calibration,
    counted,
    drawn,
    fit,
    online,
    rates,
    repetition,
    said,
    short,
)
from draft_worth import Worth, prices_of, undrafted
from torch import Tensor

from specgen.checkpoints.base import LMCheckpoint
from specgen.checkpoints.registry import load_lm
from specgen.decoding.noise import Purpose, gumbels
from specgen.decoding.sampling import process
from specgen.engine import Engine, Request, load
from specgen.evaluation.runs import read_prompts

PRESETS = ("embedded", "embedded-dual", "embedded-delay")
SHORT, LONG = 12.0, 60.0  # seconds of the clips

# Making and reading clips


def make(engine: Engine, requests: Sequence[Request], cache: Path) -> list[Tensor]:
    """Tokens of the verifier (the same, whatever drafts); kept in a file."""
    path = cache / f"{engine.verifier.name}-{requests[0].duration:g}s-{len(requests)}.pt"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        torch.save([clip.codes for clip in engine.generate(requests, batch=1)], path)
    made: list[Tensor] = torch.load(path, weights_only=True)
    return made


def states(model: LMCheckpoint, prompt: str, codes: Tensor, *, guided: bool) -> list[Tensor]:
    """Hidden states of every layer at the columns that predict each token.

    Args:
        codes: `[K, T]`, one window.
        guided: with the twin of the null condition.

    Returns:
        One `[1 or 2, K, T, dim]` tensor a layer, normed as for the heads.
    """
    lm, pattern = model.lm, model.pattern.of(codes.shape[1])
    ids = [model.conditioner.tokenize(prompt).ids, []][: 1 + guided]
    memory = lm.transformer.memory(*model.conditioner(ids))
    kept: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _m, _i, out: kept.append(out))
        for block in lm.transformer.blocks
    ]
    lm.hidden(pattern.build(codes[None], lm.config.card).expand(1 + guided, -1, -1), memory)
    for hook in hooks:
        hook.remove()
    columns = torch.tensor(pattern.step_of) - 1
    return [lm.finish(x)[:, columns] for x in kept]


def logits(model: LMCheckpoint, hidden: Tensor) -> Tensor:
    """Guided logits `[K, T, card]` of hidden states `[1 or 2, K, T, dim]`."""
    heads = [model.lm.head(hidden[:, k], k) for k in range(hidden.shape[1])]
    out = torch.stack(heads, dim=1)
    return out[0] if len(out) == 1 else torch.lerp(out[1], out[0], GUIDANCE)


@torch.inference_mode()
def read(
    engine: Engine,
    models: tuple[LMCheckpoint, LMCheckpoint],
    request: Request,
    codes: Tensor,
    *,
    exits: bool,
) -> Clip:
    """What both models say of a clip, window by window."""
    verifier, drafter = models
    parts: list[Clip] = []
    for window in engine.windows(request):
        span = codes[:, window.origin : window.end]
        fresh = slice(window.start - window.origin, None)
        lead = [x[:, :, fresh] for x in states(verifier, request.prompt, span, guided=True)]
        own = states(drafter, request.prompt, span, guided=engine.settings.drafter_cfg)[-1]
        own = own[:, :, fresh]
        card, frames = verifier.lm.config.card, window.end - window.start
        noise = [
            torch.from_numpy(gumbels(request.seed, Purpose.TOKEN, k, window.start, frames, card))
            for k in range(len(codes))
        ]
        early = torch.stack([logits(verifier, x) for x in lead[:-1]]) if exits else None
        parts.append(
            Clip(
                span[:, fresh],
                torch.stack(noise),
                process(logits(verifier, lead[-1]), SAMPLING),
                logits(drafter, own),
                own[0],
                early,
                torch.stack(lead[:-1]) if exits else None,
            )
        )
    if len(parts) == 1:
        return parts[0]
    names = ("codes", "gumbel", "target", "draft", "hidden")
    return Clip(*(torch.cat([getattr(part, n) for part in parts], dim=1) for n in names))


# The verifier's first layers


def early_exits(
    model: LMCheckpoint, learn: Sequence[Clip], test: Sequence[Clip]
) -> dict[str, Tensor]:
    """Guesses from the verifier's own heads after its first layers, as they are and with a linear
    map before the heads, learnt."""
    out = {}
    dim, layers = model.lm.config.dim, model.lm.config.layers
    for layer in range(layers - 1):
        name = f"after layer {layer + 1} of {layers}"
        out[name] = rates(test, (drawn(c, c.exits[layer]) for c in test if c.exits is not None))
        turn = torch.eye(dim)

        def scores(
            clip: Clip, at: Tensor | slice, layer: int = layer, turn: Tensor = turn
        ) -> Tensor:
            assert clip.inner is not None
            return logits(model, clip.inner[layer][:, :, at] @ turn)

        fit([turn], scores, learn, rate=0.002, steps=100)
        with torch.inference_mode():
            every = slice(None)
            out[name + ", linear map"] = rates(test, (drawn(c, scores(c, every)) for c in test))
    return out


# All of it


def gather(
    engine: Engine, models: tuple[LMCheckpoint, LMCheckpoint], requests: list[Request], cache: Path
) -> list[Clip]:
    """The requests' clips, read."""
    # embedded-dual has the verifier of embedded; long pieces would take too much memory.
    exits = requests[0].duration == SHORT and engine.preset.reference != "embedded-dual"
    made = make(engine, requests, cache)
    return [read(engine, models, r, c, exits=exits) for r, c in zip(requests, made, strict=True)]


def study(
    preset: str,
    cache: Path,
    measured: dict[str, Any],
    note: Callable[[str, dict[str, Any]], None],
) -> None:
    """Every idea for one preset; each finding is noted as it comes."""
    engine = load(preset, threads=1)
    node = engine.preset.node
    assert node.drafter is not None
    models = (
        load_lm(engine.preset.fetch(node.verifier.checkpoint)),
        load_lm(engine.preset.fetch(node.drafter.checkpoint)),
    )
    prompts = list(enumerate(read_prompts().lines))
    clips = gather(engine, models, [Request(p, i, SHORT) for i, p in prompts], cache)
    learn, test = clips[::2], clips[1::2]
    plan = Worth(models[0].pattern, models[1].pattern, prices_of(preset, measured))
    guesses = [drawn(c, c.draft) for c in test]
    base = rates(test, guesses)
    kept = [(c.target + c.gumbel).argmax(dim=-1) for c in test]
    note("verifier reproduced", {"share": round(float(rates(test, kept).mean()), 6)})

    def faster(chance: Tensor, second: Sequence[float] = ()) -> dict[str, float]:
        """What an acceptance would be worth end to end, as a share of the time."""
        now = {where: plan.seconds(where, base.mean(dim=0).tolist()) for where in plan.prices}
        return {
            where: round(now[where] / plan.seconds(where, chance.tolist(), second) - 1, 4)
            for where in plan.prices
        }

    def gained(found: Tensor) -> dict[str, Any]:
        return said(found, base) | {"predicted_faster": faster(found.mean(dim=0))}

    speedup = {w: plan.alone(w) / plan.seconds(w, base.mean(dim=0).tolist()) for w in plan.prices}
    note(
        "drafter", said(base) | {"predicted_speedup": {w: round(s, 3) for w, s in speedup.items()}}
    )

    firsts = [among_first(test, count).mean(dim=0) for count in (1, 2, 3)]
    second = ((firsts[1] - firsts[0]) / (1 - firsts[0])).tolist()
    note(
        "candidates",
        {
            "among_first": {c: short(f) for c, f in zip((1, 2, 3), firsts, strict=True)},
            "predicted_faster": faster(firsts[0], second),
        },
    )

    heads = models[1].lm.heads.weight.detach()
    for name, found in calibration(
        learn, test, heads.view(*learn[0].gumbel.shape[::2], -1)
    ).items():
        note(name, gained(found))

    pieces = [Request(p, i, LONG) for i, p in prompts[1:6:4]]
    long = gather(engine, models, pieces, cache)
    drafted = [drawn(c, c.draft) for c in long]
    for what, speeds in (("bias", (0.03, 0.1)), ("heads", (0.5, 1.0, 2.0))):
        tuning = {s: float(rates(learn[:3], online(learn[:3], s, what)).mean()) for s in speeds}
        best = max(tuning, key=lambda s: tuning[s])
        found = gained(rates(test, online(test, best, what)))
        note(f"{what} learnt while decoding", found | {"rate": best, "tuning": tuning})
        taught = online(long, best, what)
        note(f"{what} learnt while decoding, 60 s", by_part(long, taught, drafted))

    note("repetition", repetition(test, guesses))
    note("repetition, 60 s", repetition(long, drafted))
    table = Counts(weight=(4.0, 4.0, 4.0, 4.0))
    for clip in learn:
        for t in range(clip.codes.shape[1]):
            table.add(clip, t)
    even, none = (64.0, 8.0, 4.0, 4.0), (math.inf,) * 4
    for name, some, counts, other in (
        ("counts of the piece", test, Counts(even), None),
        ("counts of the piece, soft", test, Counts(even, soft=True), None),
        ("counts of the piece, soft, 60 s", long, Counts(even, soft=True), None),
        ("counts of other clips", test, Counts(none), table),
        ("counts of other clips, then the piece", test, Counts((512.0, 8.0, 4.0, 4.0)), table),
    ):
        report = said(rates(some, (counted(c, None, counts.fresh(), other) for c in some)))
        worth = {"predicted_speedup_alone": undrafted(plan, report["accepted"])}
        note(name, report | worth)
    for soft in (False, True):
        tuning = {}
        for weight in (32.0, 128.0, 512.0):
            counts = Counts((math.inf, 4 * weight, weight, weight), soft)
            mixed = (counted(c, law(c), counts.fresh(), None) for c in learn[:2])
            tuning[weight] = float(rates(learn[:2], mixed).mean())
        weight = max(tuning, key=lambda w: tuning[w])
        counts = Counts((math.inf, 4 * weight, weight, weight), soft)
        found = gained(rates(test, (counted(c, law(c), counts.fresh(), None) for c in test)))
        name = "drafter and counts" + (", soft" if soft else "")
        note(name, found | {"weight": weight, "tuning": tuning})

    if test[0].exits is not None:
        layers = models[0].lm.config.layers
        for name, found in early_exits(models[0], learn, test).items():
            share, report = int(name.split()[2]) / layers, said(found)
            worth = {"predicted_speedup_alone": undrafted(plan, report["accepted"], share)}
            note(name, report | {"share_of_a_step": share} | worth)


def law(clip: Clip) -> Tensor:
    """The drafter's distributions `[K, T, card]`."""
    return process(clip.draft, SAMPLING).softmax(dim=-1)


def by_part(clips: Sequence[Clip], guesses: list[Tensor], drafted: list[Tensor]) -> dict[str, Any]:
    """Acceptance and gain in the parts of long pieces, by seconds."""
    out = {}
    for low, high in ((0, 12), (12, 30), (30, 60)):
        part = slice(low * 50, high * 50)
        found, base = (
            torch.stack(
                [
                    (g == c.codes)[:, part].double().mean(dim=1)
                    for c, g in zip(clips, some, strict=True)
                ]
            )
            for some in (guesses, drafted)
        )
        out[f"{low} to {high} s"] = said(found, base)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("presets", nargs="*", default=PRESETS)
    parser.add_argument("--cache", type=Path, default=Path("runs/draft-ideas"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/draft-ideas.json"))
    parser.add_argument("--prices", type=Path, default=Path("docs/benchmarks/cpu.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    measured = json.loads(args.prices.read_text())
    for preset in args.presets:
        every = json.loads(args.out.read_text()) if args.out.is_file() else {}
        found = every[preset] = {}

        def note(name: str, what: dict[str, Any], preset: str = preset) -> None:
            found[name] = what  # noqa: B023
            print(f"{preset}, {name}: {json.dumps(what)}", flush=True)
            args.out.write_text(json.dumps(every, indent=1) + "\n")  # noqa: B023

        study(preset, args.cache, measured, note)


if __name__ == "__main__":
    main()
