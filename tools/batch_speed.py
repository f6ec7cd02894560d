"""Many prompts in one command against one after the other: speed, and the same tokens.

    python tools/batch_speed.py [--rows 200] [--sample 12] [--identity all]

Rows of 2 to 12 s, as many short as long ones on a scale of logarithms. First a sample of them is
made one by one by one loaded engine, with one thread and with two, nothing written; then all of
them by one `specgen generate --prompts` command, its start and its files counted; then one by one
again (`--batch 1`), to compare each row's tokens and audio. On two quiet cores of the kind in
docs/speed.md this takes under 15 minutes; nothing else should run meanwhile.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import specgen
from specgen.audio.files import tokens_sha256
from specgen.jobs.prompt_files import read_prompts
from specgen.jobs.rows import Row, rows_of

WORDS = ("jig", "reel", "air", "march", "waltz")
INSTRUMENTS = ("violin", "flute", "accordion", "trumpet", "piano")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--sample", type=int, default=12)
    parser.add_argument("--shortest", type=float, default=2.0)
    parser.add_argument("--longest", type=float, default=12.0)
    parser.add_argument("--preset", default="embedded")
    parser.add_argument("--identity", choices=("all", "sample"), default="all")
    parser.add_argument("options", nargs="*", help="more options of the job, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts = folder / "prompts.jsonl"
        write(prompts, options)
        rows = [row for row in rows_of(read_prompts(str(prompts)), 0) if isinstance(row, Row)]
        seconds = sum(row.options["duration"] for row in rows)
        picked = rows[options.rows // options.sample // 2 :: options.rows // options.sample]
        base: list[float] = []
        for threads in (1, 2):
            pace, alone = one_by_one(picked, options.preset, threads)
            base.append(pace)
            print(f"one by one, {threads} threads: {pace:.2f} x real time, {len(picked)} rows")
        command = [*job(prompts, options.preset), *options.options]
        took, batched = run(command, folder / "batched")
        pace = seconds / took
        print(f"one command: {seconds:.0f} s of audio in {took:.0f} s, {pace:.2f} x real time")
        print(f"  {pace / base[0]:.2f} times one by one with one thread, ", end="")
        print(f"{pace / base[1]:.2f} times with two", flush=True)
        same = sum(batched[one][0] == tokens for one, tokens in alone.items())
        print(f"same tokens as one by one in one engine: {same} of {len(alone)}")
        if options.identity == "all":
            took, single = run([*command, "--batch", "1"], folder / "single")
            apart = sorted(one for one, files in batched.items() if single[one] != files)
            same = len(batched) - len(apart)
            print(f"same tokens and audio one by one: {same} of {len(batched)} ({took:.0f} s)")
            tokens = [one for one in apart if single[one][0] != batched[one][0]]
            print(f"  other audio: {apart}; other tokens: {tokens} (tools/near_ties.py)")
            assert len(batched) == options.rows
        assert same == (options.rows if options.identity == "all" else len(alone))


def write(prompts: Path, options: argparse.Namespace) -> None:
    rows, span = options.rows, options.longest / options.shortest
    with prompts.open("w") as file:
        for i in range(rows):
            share = i * 7919 % rows / max(1, rows - 1)  # 7919 is a prime: shares in no order
            row = {
                "id": f"r{i:04d}",
                "prompt": f"a {WORDS[i % 5]} on the {INSTRUMENTS[i // 5 % 5]}",
                "duration": round(options.shortest * math.pow(span, share), 2),
            }
            file.write(json.dumps(row) + "\n")


def one_by_one(rows: list[Row], preset: str, threads: int) -> tuple[float, dict[str, str]]:
    """Seconds of audio a second, and the sha256 of each row's tokens."""
    engine = specgen.load(preset, threads=threads)
    assert torch.get_num_threads() == threads
    requests = [specgen.Request(r.prompt, r.seed, r.options["duration"], r.id) for r in rows]
    list(engine.generate([specgen.Request("a jig", 1, 0.5)]))  # what is done but once
    began = time.perf_counter()
    clips = [clip for request in requests for clip in engine.generate([request], batch=1)]
    spent = time.perf_counter() - began
    hashes = {str(c.request.id): tokens_sha256(c.codes.numpy().astype("<i2")) for c in clips}
    return sum(clip.seconds for clip in clips) / spent, hashes


def job(prompts: Path, preset: str) -> list[str]:
    command = [sys.executable, "-m", "specgen.cli.app", "generate", "--prompts", str(prompts)]
    return [*command, "--preset", preset]


def run(command: list[str], out: Path) -> tuple[float, dict[str, tuple[str, str]]]:
    """Seconds that a job takes, and (sha256 of the tokens, of the audio) by row."""
    began = time.perf_counter()
    subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - began
    records = [json.loads(path.read_text()) for path in out.glob("r*.json")]
    lines = map(json.loads, (out / "manifest.jsonl").read_text().splitlines())
    audio = {line["id"]: line["sha256"] for line in lines}
    return took, {r["id"]: (r["tokens_sha256"], audio[r["id"]]) for r in records}


if __name__ == "__main__":
    main()
