"""Crash test of `specgen generate --prompts`: killed at random, files damaged, resumed.

    python tools/crash_test.py [--rounds 30] [--rows 24] [--duration 0.5] [--workers 2]

Each round starts the same command, kills it (SIGKILL) after a random time (every third time one of
its workers first, which the job has to get over), and damages some of what lies there: clips,
tokens, sidecars and manifest lines are truncated, flipped or deleted. No worker may live on without
its parent. When a round ends by itself, the next one starts in an empty folder. After the last
round the job runs to its end. Then every row must be there once, with the tokens and the audio of a
job that nobody disturbed.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

WORDS = ("jig", "reel", "air", "march", "waltz")
INSTRUMENTS = ("violin", "flute", "accordion", "trumpet", "piano")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--duration", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts = folder / "prompts.txt"
        lines = [f"a {WORDS[i % 5]} on the {INSTRUMENTS[i // 5 % 5]}" for i in range(options.rows)]
        prompts.write_text("\n".join(lines) + "\n")
        began = time.perf_counter()
        whole = run(prompts, folder / "whole", options).wait()
        usual = time.perf_counter() - began
        assert whole == 0, whole
        counts = torture(prompts, folder / "whole", folder / "job", options, usual)
        code = run(prompts, folder / "job", options).wait()
        assert code == 0, code
        compare(folder / "whole", folder / "job", options.rows)
    told = ", ".join(f"{what} {n}" for what, n in sorted(counts.items()))
    print(f"{options.rounds} rounds of {options.rows} rows: {told}; at the end all rows right")


def run(prompts: Path, out: Path, options: argparse.Namespace) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "specgen.cli.app", "generate", "--prompts", str(prompts)]
    command += ["--out", str(out), "--duration", str(options.duration), "--batch", "4"]
    command += ["--workers", str(options.workers)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def torture(
    prompts: Path, whole: Path, out: Path, options: argparse.Namespace, usual: float
) -> "Counter[str]":
    counts: Counter[str] = Counter()
    for turn in range(options.rounds):
        job = run(prompts, out, options)
        workers: list[int] = []
        try:
            code = job.wait(random.uniform(0.3, 1.0) * usual)
        except subprocess.TimeoutExpired:
            workers = children(job.pid)
            if turn % 3 == 2 and (able := [pid for pid in workers if is_worker(pid)]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random.choice(able), signal.SIGKILL)
                counts["workers killed"] += 1
                with contextlib.suppress(subprocess.TimeoutExpired):
                    job.wait(random.uniform(0.0, 0.5) * usual)
                workers += children(job.pid)
        code = job.poll()
        if code is None:
            job.send_signal(signal.SIGKILL)
            job.wait()
            counts["killed"] += 1
            left = alive(workers)
            assert not left, f"workers live on: {left}"
        else:
            assert code == 0, code
            counts["ended by themselves"] += 1
            compare(whole, out, options.rows)
            shutil.rmtree(out)
        if not out.is_dir():
            continue
        found = [p for p in out.iterdir() if p.suffix in (".wav", ".npy", ".json", ".jsonl")]
        found = [p for p in found if not p.name.startswith(".") and p.stat().st_size]
        for path in random.sample(found, min(len(found), random.randint(0, 5))):
            counts[damage(path)] += 1
        if random.random() < 0.3 and (out / "manifest.jsonl").exists():
            damage(out / "manifest.jsonl")
            counts["manifest damaged"] += 1
    return counts


def is_worker(pid: int) -> bool:
    """Whether a process is a worker, not what multiprocessing starts beside them."""
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def children(parent: int) -> list[int]:
    """Process ids of what a job has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


def alive(pids: list[int], patience: float = 10.0) -> list[int]:
    """Those of some processes that are still there after a while."""

    def there(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    end = time.monotonic() + patience
    while (left := [pid for pid in pids if there(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def damage(path: Path) -> str:
    how = random.choice(("truncated", "flipped", "deleted"))
    content = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    elif how == "truncated" or not content:
        path.write_bytes(content[: random.randrange(len(content) + 1)])
    else:
        for _ in range(random.randint(1, 3)):
            content[random.randrange(len(content))] ^= random.randrange(1, 256)
        path.write_bytes(content)
    return how


def compare(whole: Path, job: Path, rows: int) -> None:
    def lines(folder: Path) -> list[dict[str, object]]:
        text = (folder / "manifest.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    one, two = lines(whole), lines(job)
    assert len(one) == len(two) == rows, (len(one), len(two), rows)
    key = ("id", "status", "fingerprint", "path", "sha256")
    assert {tuple(x[k] for k in key) for x in one} == {tuple(x[k] for k in key) for x in two}
    for line in two:
        for suffix in ("wav", "npy"):
            name = Path(str(line["path"])).with_suffix(f".{suffix}").name
            assert (whole / name).read_bytes() == (job / name).read_bytes(), name
        sidecar = json.loads((job / name).with_suffix(".json").read_text())
        assert sidecar["fingerprint"] == line["fingerprint"]
    left = [p.name for p in job.iterdir() if p.name.endswith(".tmp")]
    assert not left, left
    assert len(list(job.glob("*.wav"))) == rows


if __name__ == "__main__":
    main()
