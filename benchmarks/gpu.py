"""Everything that is to be measured on a CUDA machine, in one command that can be run again.

    python benchmarks/gpu.py [--device cuda] [--out docs/benchmarks] [--steps tests,synthetic,...]

Each step runs in a process of its own, with a time budget, and writes one file; a step whose file
is there is passed over (`--redo` runs it again). All budgets together are nine minutes. Nothing is
downloaded: where packages are missing, `make gpu-wheels` fetches them beforehand on a machine with
a network, and they travel in build/wheels.

    tests      pytest tests/gpu                                                gpu-tests.json
    synthetic  the reference's four rows at full size, acceptance given        gpu-synthetic.json
    batch      a small pair at batch 1, 2, 4, 8                                gpu-batch.json
    graphs     the same verifiers alone without CUDA graphs (SPECGEN_GRAPHS=off) gpu-graphs-off.json
    peers      plain decoding at full size beside audiocraft and transformers  gpu-peers.json
    memory     the large pair, caches made for 10 and 30 s, under a 16 GB cap  gpu-memory.json
    training   a mid-size pair, trained on tokens the embedded model makes     gpu-training.json
    trained    that pair, so with an acceptance of its own                     gpu-trained.json
    summary    all of it in a page                                             gpu.md
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / "build" / "wheels"
NEEDED = {  # module -> package, of those that a machine with torch may lack
    "omegaconf": "omegaconf",
    "cffi": "cffi",
    "pycparser": "pycparser",
    "soundfile": "soundfile",
    "soxr": "soxr",
    "audiocraft": "audiocraft",
}
TOTAL_SECONDS = 540.0


@dataclass(frozen=True)
class Size:
    """How large the measurements are; `tiny` is for tests of this file on a CPU."""

    pairs: tuple[str, ...]
    batch_pair: str
    peers: str
    memory: str
    acceptances: tuple[str, ...]
    seconds: float
    repeats: int
    batches: str
    lengths: str
    clips: int
    clip_seconds: float
    training_seconds: float
    frames: str


FULL = Size(
    pairs=("large:flatten,large:delay", "large:delay,small:delay"),
    batch_pair="medium:delay,small:delay",
    peers="large:delay",
    memory="large:flatten,large:delay",
    acceptances=("0.7", "0.85"),
    seconds=0.8,
    repeats=2,
    batches="1,2,4,8",
    lengths="10,30",
    clips=192,
    clip_seconds=8.0,
    training_seconds=40.0,
    frames="1,2,4,auto",
)
TINY = Size(
    pairs=("tiny:flatten,tiny:delay",),
    batch_pair="tiny:delay,tiny:delay",
    peers="tiny:delay",
    memory="tiny:flatten,tiny:delay",
    acceptances=("0.7",),
    seconds=0.2,
    repeats=1,
    batches="1,2",
    lengths="0.4",
    clips=2,
    clip_seconds=0.4,
    training_seconds=1.0,
    frames="1",
)


@dataclass(frozen=True)
class Run:
    """The options of a run.

    Attributes:
        device: where.
        out: folder of the results; `work`: of what is made on the way.
        size: how large.
    """

    device: str
    out: Path
    work: Path
    size: Size

    def bench(self, name: str, *arguments: str, peers: bool = False) -> list[str]:
        """A command of `specgen bench` that writes `name`."""
        return [
            *(sys.executable, "-m", "specgen.cli.app", "bench", *arguments),
            *("--device", self.device, "--output-file", str(self.out / name)),
            *(("--peer", ",".join(_peers())) if peers else ()),
        ]


@dataclass(frozen=True)
class Step:
    """A step: what it writes, how long it may take, its commands, and what their environment has
    beyond that of the others."""

    writes: str
    budget: float
    commands: Callable[[Run], list[list[str]]]
    environment: dict[str, str] = field(default_factory=dict)


def _tests(run: Run) -> list[list[str]]:
    report = run.work / "tests.xml"
    test = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-p", "no:cacheprovider"]
    here = [sys.executable, str(Path(__file__)), "--count", str(report), "--out", str(run.out)]
    return [[*test, f"--junit-xml={report}"], here]


def _synthetic(run: Run) -> list[list[str]]:
    size = run.size
    shapes = [part for pair in size.pairs for part in ("--synthetic", pair)]
    given = [part for value in size.acceptances for part in ("--acceptance", value)]
    options = ["-d", str(size.seconds), "-r", str(size.repeats), "--draft-frames", "1,auto"]
    return [run.bench("gpu-synthetic.json", *shapes, *given, *options)]


def _graphs(run: Run) -> list[list[str]]:
    size = run.size
    verifiers = dict.fromkeys(pair.partition(",")[0] for pair in size.pairs)
    shapes = [part for shape in verifiers for part in ("--synthetic", shape)]
    options = ["-d", str(size.seconds), "-r", str(size.repeats)]
    return [run.bench("gpu-graphs-off.json", *shapes, *options)]


def _batch(run: Run) -> list[list[str]]:
    size = run.size
    shape = ["--synthetic", size.batch_pair, "--acceptance", size.acceptances[0]]
    options = ["-d", str(size.seconds), "-r", str(size.repeats), "--draft-frames", "2"]
    return [run.bench("gpu-batch.json", *shape, *options, "--batch", size.batches)]


def _peers_step(run: Run) -> list[list[str]]:
    size = run.size
    shape = ["--synthetic", size.peers, "-d", str(size.seconds), "-r", str(size.repeats)]
    return [run.bench("gpu-peers.json", *shape, peers=True)]


def _memory(run: Run) -> list[list[str]]:
    script = Path(__file__).with_name("capped.py")
    options = ["--pair", run.size.memory, "--seconds", run.size.lengths]
    out = ["--device", run.device, "--output", str(run.out / "gpu-memory.json")]
    return [[sys.executable, str(script), *options, *out]]


def _training(run: Run) -> list[list[str]]:
    size, script = run.size, Path(__file__).with_name("midsize.py")
    return [
        [
            *(sys.executable, str(script), "--device", run.device, "--work", str(run.work)),
            *("--clips", str(size.clips), "--clip-seconds", str(size.clip_seconds)),
            *("--seconds", str(size.training_seconds)),
            *("--scale", "full" if size is FULL else "tiny"),
            *("--output", str(run.out / "gpu-training.json")),
        ]
    ]


def _trained(run: Run) -> list[list[str]]:
    size = run.size
    pair = [str(run.work / "midsize.yaml"), "-d", str(min(size.clip_seconds, 2.0))]
    options = ["-r", str(size.repeats), "--rule", "coupled,mixed", "--draft-frames", size.frames]
    return [run.bench("gpu-trained.json", *pair, *options)]


def _summary(run: Run) -> list[list[str]]:
    script = Path(__file__).with_name("summary.py")
    return [[sys.executable, str(script), str(run.out), str(run.out / "gpu.md")]]


STEPS = {
    "tests": Step("gpu-tests.json", 40.0, _tests),
    "training": Step("gpu-training.json", 140.0, _training),
    "trained": Step("gpu-trained.json", 70.0, _trained),
    "synthetic": Step("gpu-synthetic.json", 105.0, _synthetic),
    "graphs": Step("gpu-graphs-off.json", 45.0, _graphs, {"SPECGEN_GRAPHS": "off"}),
    "memory": Step("gpu-memory.json", 35.0, _memory),
    "peers": Step("gpu-peers.json", 55.0, _peers_step),
    "batch": Step("gpu-batch.json", 40.0, _batch),
    "summary": Step("gpu.md", 5.0, _summary),
}


def _peers() -> list[str]:
    """The peers that can be imported here."""
    from importlib.util import find_spec

    return [name for name in ("audiocraft", "transformers") if find_spec(name) is not None]


def ready(path: Path) -> bool:
    """Whether a step's file is there and is no note of a failure."""
    if not path.is_file():
        return False
    if path.suffix != ".json":
        return True
    try:
        return "failed" not in json.loads(path.read_text())
    except ValueError:
        return False


def write(path: Path, value: dict[str, Any]) -> None:
    """Write JSON; the file appears whole."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)


def perform(name: str, run: Run, environment: dict[str, str]) -> bool:
    """Run a step within its budget; returns whether its file is there."""
    step, began = STEPS[name], time.monotonic()
    target = run.out / step.writes
    environment = {**environment, **step.environment}
    reason = ""
    for command in step.commands(run):
        left = step.budget - (time.monotonic() - began)
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        try:
            if process.wait(timeout=max(left, 0.1)):
                reason = f"exit code {process.returncode}: {' '.join(command[1:6])} ..."
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
            os.killpg(process.pid, signal.SIGKILL)  # the step's own session, and nothing else
            process.wait()
            if isinstance(error, KeyboardInterrupt):
                raise
            reason = f"stopped at its budget of {step.budget:g} s"
        if reason and name != "tests":
            break
    spent = time.monotonic() - began
    if reason and not ready(target) and target.suffix == ".json":
        write(target, {"schema": 1, "step": name, "failed": reason, "seconds": spent})
    state = reason or "done"
    print(f"{name}: {state} in {spent:.0f} s", flush=True)
    return ready(target) and not reason


def packages(work: Path) -> dict[str, str]:
    """The environment that steps run in, with the wheels that travelled along unpacked."""
    from importlib.util import find_spec

    paths = [str(ROOT)]
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    site = work / "packages"
    if missing and WHEELS.is_dir():
        where = ["--no-index", "--find-links", str(WHEELS), "--no-deps", "--target", str(site)]
        for package in missing:  # one by one: audiocraft may be left out
            subprocess.run(
                [sys.executable, "-m", "pip", "install", "--quiet", *where, package], check=False
            )
    if site.is_dir():
        paths.append(str(site))
        sys.path.append(str(site))
    before = os.environ.get("PYTHONPATH")
    paths += [before] if before else []
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def count_tests(report: Path, out: Path) -> None:
    """Turn pytest's report into gpu-tests.json."""
    import xml.etree.ElementTree as ElementTree

    sys.path.insert(0, str(ROOT))
    from specgen.benchmarking.results import commit, versions

    root = ElementTree.parse(report).getroot()
    suite = root if root.tag == "testsuite" else root.find("testsuite")
    assert suite is not None
    counts = {
        name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")
    }
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    seconds = float(suite.get("time", "0"))
    found: dict[str, Any] = {"schema": 1, "commit": commit(), "versions": versions(), **counts}
    write(out / "gpu-tests.json", {**found, "seconds": seconds, "not_passed": failed})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench-gpu")
    parser.add_argument("--steps", default=",".join(STEPS))
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="for all steps")
    parser.add_argument("--redo", action="store_true", help="run steps whose files are there, too")
    parser.add_argument("--count", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    out, work = args.out.resolve(), args.work.resolve()
    if args.count is not None:
        count_tests(args.count, out)
        return 0
    wanted = [name for name in args.steps.split(",") if name]
    unknown = [name for name in wanted if name not in STEPS]
    if unknown:
        print(f"error: step {unknown[0]!r} is unknown; use {', '.join(STEPS)}", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    run = Run(args.device, out, work, FULL if args.size == "full" else TINY)
    environment = packages(work)
    began, left = time.monotonic(), []
    for name in wanted:
        target = out / STEPS[name].writes
        made = name != "training" or (work / "midsize.yaml").is_file()
        if ready(target) and made and not args.redo and name != "summary":
            print(f"{name}: {target.name} is there")
        elif time.monotonic() - began + STEPS[name].budget > args.seconds and name != "summary":
            print(f"{name}: no time left for it; run the command again")
            left.append(name)
        elif not perform(name, run, environment):
            left.append(name)
    if left:
        print(f"not done: {', '.join(left)}; run the command again for what is missing")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
