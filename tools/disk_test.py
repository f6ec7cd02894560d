"""Jobs on file systems that fill up, turn read-only or go away. Linux, as root (it mounts tmpfs).

    python tools/disk_test.py [--rows 12] [--duration 0.5]

Everything happens below a folder of its own. Printed: what became of the rows, and the exit codes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--duration", type=float, default=0.5)
    options = parser.parse_args()
    if os.geteuid():
        sys.exit("needs root, to mount")
    with tempfile.TemporaryDirectory() as name:
        prompts = Path(name) / "prompts.txt"
        prompts.write_text("".join(f"a jig on the violin {i}\n" for i in range(options.rows)))
        disk = Path(name) / "disk"
        disk.mkdir()
        command = [sys.executable, "-m", "specgen.cli.app", "generate", "--prompts", str(prompts)]
        command += ["-d", str(options.duration), "--batch", "2", "--out", str(disk / "job")]
        for case in (full, read_only, read_only_midway, unmounted):
            mount("-t", "tmpfs", "-o", "size=64m", "none", str(disk))
            try:
                case(command, disk, options.rows)
            finally:
                subprocess.run(["umount", "-l", str(disk)], capture_output=True)


def full(command: list[str], disk: Path, rows: int) -> None:
    clip = 40_000  # bytes of a half-second clip's three files, roughly
    mount("-o", f"remount,size={64 + rows // 2 * clip // 1024}k", str(disk))
    done = run(command)
    counts = tally(disk / "job")
    assert done.returncode == 1, done
    assert 0 < counts.get("done", 0) < rows and "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    torn = [p.name for p in (disk / "job").glob("*.wav") if not p.with_suffix(".json").exists()]
    assert not torn and not list((disk / "job").glob(".*.tmp"))
    mount("-o", "remount,size=64m", str(disk))
    again = run(command)
    assert again.returncode == 0 and tally(disk / "job") == {"done": rows}
    print(f"full: exit 1, {counts}; {done.stderr.splitlines()[-1]}")
    print(f"  with room again: {again.stderr.splitlines()[-1]}")


def read_only(command: list[str], disk: Path, rows: int) -> None:
    mount("-o", "remount,ro", str(disk))
    done = run(command)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done
    print(f"read-only: exit 2, {done.stderr.strip()}")


def read_only_midway(command: list[str], disk: Path, rows: int) -> None:
    done = disturbed(command, disk, lambda: mount("-o", "remount,ro", str(disk), check=False))
    # A file system with a file open for writing (the manifest) is busy, and stays as it is.
    print(f"read-only midway: exit {done.returncode}, {tally(disk / 'job')}")
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr


def unmounted(command: list[str], disk: Path, rows: int) -> None:
    done = disturbed(command, disk, lambda: subprocess.run(["umount", "-l", str(disk)], check=True))
    assert done.returncode == 1 and "Traceback" not in done.stderr, done
    assert not list(disk.iterdir())  # nothing was written below the empty mount point
    print(f"unmounted: exit 1, {done.stderr.splitlines()[-1]}")
    print(f"  {done.stderr.splitlines()[-2]}")


def disturbed(
    command: list[str], disk: Path, act: Callable[[], object]
) -> "subprocess.CompletedProcess[str]":
    """Run a job and act once its first clip is there."""
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]
    while not list((disk / "job").glob("[!.]*.json")) and process.poll() is None:
        time.sleep(0.02)
    act()
    _, told = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, "", told)


def run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True)


def mount(*arguments: str, check: bool = True) -> None:
    subprocess.run(["mount", *arguments], check=check, capture_output=True)


def tally(job: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for line in (job / "manifest.jsonl").read_text().splitlines():
        status = json.loads(line)["status"]
        counts[status] = counts.get(status, 0) + 1
    return counts


if __name__ == "__main__":
    main()
