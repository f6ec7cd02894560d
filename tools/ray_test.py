"""Ray as a job's engine: two actors, one killed in the middle; the clips must be the local ones.

pip install -c constraints.txt 'specgen[ray]'
python tools/ray_test.py [--rows 40] [--duration 1]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KEYS = ("id", "status", "fingerprint", "path", "sha256", "tokens_sha256")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--duration", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts = folder / "prompts.txt"
        prompts.write_text("".join(f"a jig on the violin {i}\n" for i in range(options.rows)))
        common = ["--prompts", str(prompts), "--duration", str(options.duration), "--batch", "2"]
        local, local_seconds = timed(start(common, folder / "local"))
        assert local == 0, local
        on_ray = start([*common, "--engine", "ray", "--actors", "2"], folder / "ray")
        began = time.perf_counter()
        while len(list((folder / "ray").glob("*.wav"))) < options.rows // 4:
            assert on_ray.poll() is None, "ended before an actor could be killed"
            time.sleep(0.1)
        actors = working()
        before = len(list((folder / "ray").glob("*.wav")))
        os.kill(actors[0], signal.SIGKILL)
        code = on_ray.wait()
        seconds = time.perf_counter() - began
        assert code == 0, code
        one, two = (results(folder / which) for which in ("local", "ray"))
        assert one == two and len(two) == options.rows
    print(
        f"{options.rows} rows: local {local_seconds:.0f} s; 2 Ray actors {seconds:.0f} s, one of "
        f"{len(actors)} killed after {before} clips; the same files and tokens"
    )


def start(arguments: list[str], out: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "specgen.cli.app", "generate", *arguments, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def timed(process: "subprocess.Popen[bytes]") -> tuple[int, float]:
    began = time.perf_counter()
    return process.wait(), time.perf_counter() - began


def working() -> list[int]:
    """Process ids of Ray's map workers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::MapWorker(MapBatches(Maker))"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    assert found, "no actor is running"
    return found


def results(folder: Path) -> set[tuple[object, ...]]:
    text = (folder / "manifest.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert len({line["id"] for line in lines}) == len(lines)
    return {tuple(line[key] for key in KEYS) for line in lines}


if __name__ == "__main__":
    main()
