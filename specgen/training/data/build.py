"""The data set from start to end: tunes, arrangements, audio by shards, captions and index.

`python -m specgen.training.data.build presets/train/data.yaml`
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specgen.errors import UserError, command
from specgen.training.data.arrange import FRAME_RATE, ITEM_FRAMES, Item, arrange, seeded
from specgen.training.data.captions import captions
from specgen.training.data.render import SAMPLE_RATE, Synth
from specgen.training.data.tunes import Score, Tune, corpus_folder, play, read_scores

ITEM_SAMPLES = ITEM_FRAMES * SAMPLE_RATE // FRAME_RATE
SHARD_ITEMS = 50
_VERSION = 2  # raise when arranging or rendering changes: shards of another version are not reused


@dataclass(frozen=True)
class Recipe:
    """What presets/train/data.yaml says. `first_hours` of audio also go to `first_out`, early."""

    seed: int
    hours: float
    out: Path
    soundfont: Path
    workers: int = 2
    captions: int = 4
    first_hours: float = 0.0
    first_out: Path | None = None


def read_recipe(values: Mapping[str, Any]) -> Recipe:
    """A checked recipe; raises UserError for unknown, missing or senseless values."""
    kinds: dict[str, type | tuple[type, ...]] = {
        "seed": int,
        "hours": (int, float),
        "out": str,
        "soundfont": str,
        "workers": int,
        "captions": int,
        "first_hours": (int, float),
        "first_out": str,
    }
    for name, value in values.items():
        if name not in kinds:
            raise UserError(f"data recipe: unknown key {name!r}; known: {', '.join(kinds)}")
        if not isinstance(value, kinds[name]) or isinstance(value, bool):
            raise UserError(f"data recipe: {name} has the wrong type: {value!r}")
    missing = [name for name in ("seed", "hours", "out", "soundfont") if name not in values]
    if missing:
        raise UserError(f"data recipe: {', '.join(missing)} missing; see presets/train/data.yaml")
    for name in ("hours", "workers", "captions"):
        if name in values and values[name] <= 0:
            raise UserError(f"data recipe: {name} must be above 0, not {values[name]}")
    paths = {
        name: Path(values[name]) for name in ("out", "soundfont", "first_out") if name in values
    }
    return Recipe(**{**values, **paths})


def _likeness(tune: Tune) -> tuple[str, tuple[int, ...]]:
    """What tells that two records are one tune: the title's letters, the opening's intervals."""
    title = re.sub(r"[^a-z]", "", re.sub(r"\b(the|a|an)\b", "", tune.score.title.lower()))
    pitches = [note.pitch for note in tune.notes[:13]]
    return title, tuple(b - a for a, b in itertools.pairwise(pitches))


def split_tunes(tunes: Sequence[Tune], seed: int) -> dict[str, str]:
    """Tune id -> train, valid or test (94/3/3); tunes of like title or opening stay together."""
    parent = list(range(len(tunes)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    seen: dict[object, int] = {}
    for i, tune in enumerate(tunes):
        for mark in _likeness(tune):
            parent[root(i)] = root(seen.setdefault(mark, i))
    splits: dict[str, str] = {}
    for i, tune in enumerate(tunes):
        draw = seeded("split", seed, tunes[root(i)].score.id).random()
        splits[tune.score.id] = "train" if draw < 0.94 else "valid" if draw < 0.97 else "test"
    return splits


def plan_items(scores: Iterable[Score], count: int, seed: int) -> list[tuple[str, int]]:
    """`count` pairs (tune id, take) in shuffled order; rare genres are drawn more often.

    A tune is drawn with weight 1/sqrt(tunes of its genre), without return, until all have been
    taken once; then again with the next take.
    """
    known = [(score.id, score.genre) for score in scores]
    share = Counter(genre for _, genre in known)
    plan: list[tuple[str, int]] = []
    take = 0
    while len(plan) < count:
        rng = seeded("plan", seed, take)
        # Efraimidis & Spirakis 2006: the largest u^(1/w) are a weighted draw without return.
        drawn = sorted(known, key=lambda one: rng.random() ** (share[one[1]] ** 0.5), reverse=True)
        plan += [(tune, take) for tune, _ in drawn[: count - len(plan)]]
        take += 1
    seeded("order", seed).shuffle(plan)
    return plan


def _write(path: Path, data: bytes) -> None:
    """Write by temporary file and rename, so that a file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".tmp")
    part.write_bytes(data)
    os.replace(part, path)


def _lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records).encode()


def _render_shard(job: tuple[Path, list[Item], Path]) -> Path:
    """Write a shard's audio, then its descriptions (which tell that the shard is done).

    Each shard has its own synthesiser: fluidsynth keeps some state from item to item, and so a
    shard comes out the same whichever process makes it and whatever came before.
    """
    path, items, soundfont = job
    synth = Synth(soundfont)
    audio = b"".join(synth.render(item).tobytes() for item in items)
    synth.close()
    _write(path.with_suffix(".i16"), audio)
    rows = ({"id": one.id, "tune": one.tune, "state": one.state} for one in items)
    _write(path.with_suffix(".jsonl"), _lines(rows))
    return path


def assemble(shards: Sequence[Path], out: Path, splits: Mapping[str, str], recipe: Recipe) -> int:
    """Join finished shards into `out`/audio.i16 and index.jsonl (captions included); item count."""
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    part = out / "audio.i16.tmp"
    with part.open("wb") as audio:
        for shard in shards:
            audio.write(shard.with_suffix(".i16").read_bytes())
            for line in shard.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines():
                one = json.loads(line)
                texts = captions(one["state"], seeded("captions", recipe.seed, one["id"]))
                place = {"offset": len(rows) * ITEM_SAMPLES, "length": ITEM_SAMPLES}
                split = {"split": splits[one["tune"]]}
                head = {"id": one["id"], "tune": one["tune"]}
                said = {"state": one["state"], "captions": texts[: recipe.captions]}
                rows.append({**head, **split, **place, **said})
    os.replace(part, out / "audio.i16")
    _write(out / "index.jsonl", _lines(rows))
    _write(out / "READY", b"")
    return len(rows)


def build_dataset(recipe: Mapping[str, Any]) -> None:
    """Make the data set of a recipe: `out`/audio.i16 and `out`/index.jsonl.

    Finished shards are kept under `out`/shards and not rendered again. Raises UserError when
    abc2midi, fluidsynth, the soundfont or music21 is missing, or the recipe is wrong.
    """
    plan = read_recipe(recipe)
    Synth(plan.soundfont).close()  # what is missing is said at once, and by this process
    tunes = {tune.score.id: tune for tune in play(read_scores(corpus_folder()))}
    splits = split_tunes(list(tunes.values()), plan.seed)
    count = max(1, round(plan.hours * 3600 / (ITEM_FRAMES / FRAME_RATE)))
    pairs = plan_items((tune.score for tune in tunes.values()), count, plan.seed)
    print(f"data: {len(tunes)} tunes, {count} items", file=sys.stderr)

    mark = hashlib.sha256(f"{_VERSION} {plan.seed} {pairs}".encode()).hexdigest()[:12]
    folder = plan.out / "shards" / mark
    shards = [folder / f"{i:04d}" for i in range(-(-count // SHARD_ITEMS))]
    first = -(-round(plan.first_hours * 3600 * FRAME_RATE / ITEM_FRAMES) // SHARD_ITEMS)
    jobs = (
        (path, [arrange(tunes[tune], take, plan.seed) for tune, take in part], plan.soundfont)
        for i, path in enumerate(shards)
        if not path.with_suffix(".jsonl").exists()
        for part in (pairs[i * SHARD_ITEMS : (i + 1) * SHARD_ITEMS],)
    )
    with multiprocessing.Pool(plan.workers) as pool:
        early = plan.first_out
        for path in pool.imap(_render_shard, jobs):
            print(f"data: shard {path.name} of {len(shards)}", file=sys.stderr, flush=True)
            if early is not None and first and path >= shards[min(first, len(shards)) - 1]:
                assemble(shards[:first], early, splits, plan)
                early = None
    made = assemble(shards, plan.out, splits, plan)
    print(f"data: {made} items in {plan.out}", file=sys.stderr)


@command
def main(arguments: Sequence[str]) -> None:
    """Command line: one recipe path."""
    from omegaconf import OmegaConf

    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        raise UserError("usage: python -m specgen.training.data.build presets/train/data.yaml")
    values = OmegaConf.to_container(OmegaConf.load(arguments[0]))
    if not isinstance(values, dict):
        raise UserError(f"{arguments[0]}: a recipe is a mapping of names to values")
    build_dataset({str(name): value for name, value in values.items()})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
