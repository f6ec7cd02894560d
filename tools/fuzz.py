"""Fuzz what is read from outside: prompt files, manifests, sidecars, presets, a job's own records.

    python tools/fuzz.py [--inputs 20000] [--seed 0]

Each input is a good file with bytes flipped, cut out, doubled, swapped for awkward ones, or nothing
but noise; some prompt files are rows with awkward ids alone. Whatever it is, the reader answers
with rows, entries or a job, or refuses in one line (`UserError`), within seconds; no file name
that comes of it leaves the folder, and no two rows of a file share one, whatever the case of its
letters.
"""

import argparse
import json
import random
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from specgen import presets
from specgen.cli.job import read_sidecar
from specgen.errors import UserError
from specgen.jobs import manifest
from specgen.jobs.folder import JOB_NAME, NAMES_NAME, Template, belongs, claimed
from specgen.jobs.prompt_files import read_prompts
from specgen.jobs.rows import Row, name_key, rows_of, unsafe_name

AWKWARD = [
    "../../x", "/etc/passwd", "C:\\x", "nul", "CON.txt", "a" * 300, "Air", "air", "\x00", "é",
    "e\u0301", "-1", "1e999", "NaN", "null", "[]", "{}", '"', ",", "\r", "\n", "${oc.env:HOME}",
    "!!python/object:os.system", "9" * 5000, "[" * 2000, "{id.__class__}", "\ud800", "\ufeff",
    "\u2028", "\u202e", "&a *a",
]  # fmt: skip
JSONL = (
    '{"id": "a", "prompt": "a jig", "seed": 3, "duration": 1.5, "prompt_at": [[1, "air"]]}\n' * 2
)
CSV = 'id,prompt,seed,cfg\nair,"a slow, air",1,2.5\nb,a jig,,\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    entry = manifest.encode(manifest.Entry("a", "done", "f", "a.wav", "1", "2", "3", None, 1.0))
    preset = presets.find_preset("embedded")
    loaded = presets.load_preset("embedded")
    sidecar = {
        "prompt": "a jig", "seed": 1, "preset": "embedded", "preset_sha256": loaded.sha256,
        "duration_seconds": 1.0, "checkpoints": {"drafter": None}, "dtype": {"verifier": "float32"},
        "tokens_sha256": "0", "sampling": {}, "lossless": True,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds: list[tuple[str, bytes, Callable[[Path], object]]] = [
            ("p.txt", b"a jig on the violin\n# no\nan air\n", prompts),
            ("p.jsonl", JSONL.encode(), prompts),
            ("p.csv", CSV.encode(), prompts),
            ("manifest.jsonl", entry * 2, manifest.read),
            (NAMES_NAME, b"air\njig\n", lambda path: claimed(path.parent)),
            (JOB_NAME, b'{"schema": 1, "seed": 0}', owner),
            ("s.json", json.dumps(sidecar).encode(), read_sidecar),
            ("preset.yaml", preset.read_bytes(), lambda path: presets.load_preset(str(path))),
        ]
        counts: Counter[str] = Counter()
        signal.signal(signal.SIGALRM, hang)
        for i in range(options.inputs):
            file, good, read = kinds[i % len(kinds)]
            path = folder / file
            awkward = file == "p.jsonl" and random.random() < 0.3
            path.write_bytes(odd_ids() if awkward else mutated(good))
            signal.alarm(20)
            try:
                read(path)
                counts[f"{file} read"] += 1
            except UserError as error:
                counts[f"{file} refused"] += 1
                assert len(" ".join(str(error).split())) < 20_000
            except BaseException:
                print(f"input {i}, {file}: {path.read_bytes()!r}"[:3000])
                raise
            finally:
                signal.alarm(0)
        assert {p.name for p in folder.iterdir()} == {file for file, _, _ in kinds}
    print(f"{options.inputs} inputs: " + ", ".join(f"{k} {n}" for k, n in sorted(counts.items())))


def owner(path: Path) -> None:
    belongs(path.parent, {"schema": 1, "seed": 0}, overwrite=False)


def odd_ids() -> bytes:
    rows = [
        {"id": random.choice(AWKWARD) + random.choice(("", "", "X", "x")), "prompt": "a jig"}
        for _ in range(random.randrange(1, 8))
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def prompts(path: Path) -> None:
    """Read rows and name their files as a job would."""
    taken: set[str] = set()
    for row in rows_of(read_prompts(str(path)), 0):
        if isinstance(row, Row):
            assert name_key(row.id) not in taken, row.id
            taken.add(name_key(row.id))
            name = Template("{slug}-{id}").render(row, 1)
            if unsafe_name(name) is None:
                target = path.parent / f"{name}.wav"
                assert target.resolve().parent == path.parent.resolve(), name


def mutated(good: bytes) -> bytes:
    if random.random() < 0.05:
        return random.randbytes(random.randrange(200))
    content = bytearray(good)
    for _ in range(random.choice((1, 1, 1, 2, 4, 8))):
        place = random.randrange(len(content) + 1)
        end = min(len(content), place + random.randrange(12))
        how = random.randrange(5)
        if how == 0 and content:
            content[min(place, len(content) - 1)] ^= random.randrange(1, 256)
        elif how == 1:
            del content[place:end]
        elif how == 2:
            content[place:place] = content[place:end] * random.randrange(4)
        elif how == 3:
            content[place:end] = random.choice(AWKWARD).encode("utf-8", "surrogatepass")
        else:
            content = content[:place] if random.random() < 0.3 else content + content[place:]
    return bytes(content)


def hang(number: int, frame: object) -> None:
    raise TimeoutError("an input takes more than 20 s")


if __name__ == "__main__":
    main()
