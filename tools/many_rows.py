"""A job of many rows, one in a hundred bad: counted, and its memory while it goes on.

    python tools/many_rows.py [--rows 10000] [--duration 0.1]

One process, whose memory is told after every thousand clips, so that a run that is stopped has
figures too.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

BAD = (
    {"id": "../../x", "prompt": "a jig"},
    {"prompt": ""},
    {"prompt": "a jig", "duration": -1},
    {"prompt": "a jig", "continue_from": "gone.wav"},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--duration", type=float, default=0.1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        prompts, out = Path(name) / "prompts.jsonl", Path(name) / "job"
        with prompts.open("w") as file:
            for i in range(options.rows):
                row = {"id": f"r{i}", "prompt": f"a jig on the violin {i % 7}"}
                bad = {**row, **BAD[i // 100 % 4]}
                file.write(json.dumps(bad if i % 100 == 50 else row) + "\n")
        command = [sys.executable, "-m", "specgen.cli.app", "generate", "--prompts", str(prompts)]
        began = time.perf_counter()
        command += ["--out", str(out), "-d", str(options.duration), "--workers", "1"]
        with (Path(name) / "errors").open("w+") as errors:
            job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            assert job.stdout is not None
            for i, _ in enumerate(job.stdout, 1):
                if i % 1000 == 0 or i == 100:
                    spent = time.perf_counter() - began
                    print(f"{i} clips, {spent:.0f} s: {resident(job.pid)} MB", flush=True)
            code = job.wait()
            errors.seek(0)
            told = errors.read()
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
        counts = Counter(line["status"] for line in lines)
        assert code == 1 and "Traceback" not in told, told[-2000:]
        assert len({line["id"] for line in lines}) == options.rows
        assert counts["failed"] == sum(i % 100 == 50 for i in range(options.rows))
        assert len(list(out.glob("*.wav"))) == counts["done"]
    print(f"{options.rows} rows: {dict(counts)}, exit 1, {seconds:.0f} s, peak {peak:.0f} MB")


def resident(pid: int) -> int:
    """MB of memory that a process holds. Linux."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1024
    return 0


if __name__ == "__main__":
    main()
