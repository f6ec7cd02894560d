"""Devices and dtypes by name, checked before they can fail in the middle of something."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch

from specgen.errors import UserError


def choose_device(name: str) -> torch.device:
    """A device by name; `auto` is the first CUDA card if there is one.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UserError(
                f"device {name} is not here: torch {torch.__version__} sees {count} CUDA devices; "
                "use --device cpu"
            )
    return device


_PROBE = (
    "import torch; a = torch.ones(64, 64, dtype=torch.{0}); "
    "torch.nn.functional.linear(a[:2], a); torch.nn.functional.linear(a, a)"
)


_LIMIT, _NO_AMX = "ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16"
_SMALL = 50_000_000  # parameters up to which one CPU thread is fastest (docs/speed.md)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """A dtype by name. On a CPU, 16 bit is tried in another process first: CPUs that advertise AMX
    and fault on it die with an illegal instruction. Where that happens and leaving AMX out helps,
    the command line tells oneDNN so, which listens until its first product; a Python program may
    have had one, so it is told to.

    Raises:
        UserError: unknown, or this CPU cannot do it.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise UserError(f"dtype {name!r} is unknown; use {', '.join(known)}")
    if device.type == "cpu" and name != "float32":
        code = _probe(name)
        helps = code and _LIMIT not in os.environ and not _probe(name, {_LIMIT: _NO_AMX})
        if helps and "specgen.cli.app" in sys.modules:
            os.environ[_LIMIT] = _NO_AMX
        elif code:
            remedy = f", or set {_LIMIT}={_NO_AMX} and try again" if helps else ""
            raise UserError(
                f"{name} products fail on this CPU (exit {code}); use --dtype float32{remedy}"
            )
    return known[name]


def _probe(name: str, changes: Mapping[str, str] | None = None) -> int:
    """How a process ends that multiplies in a dtype, its environment changed."""
    command = [sys.executable, "-c", _PROBE.format(name)]
    environment = {**os.environ, **(changes or {})}
    return subprocess.run(command, capture_output=True, env=environment).returncode


def choose_threads(parameters: int) -> int:
    """CPU threads for a model of so many parameters: one for a small model, whose products are
    shorter than waking another thread; else a core each. `OMP_NUM_THREADS` decides where it is set.
    """
    if parameters <= _SMALL:
        return 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) else cores()


def cores() -> int:
    """Physical cores that this process may use: its affinity, hardware threads of one core counted
    once, and no more than the container's quota."""
    own = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    found = {tuple(_lines(topology.format(cpu)) or [str(cpu)]) for cpu in own}
    quota, _, period = next(iter(_lines("/sys/fs/cgroup/cpu.max")), "").partition(" ")
    if quota.isdecimal() and period.isdecimal():
        return max(1, min(len(found), math.ceil(int(quota) / int(period))))
    return max(1, len(found))


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device; on a CPU also within the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0].isdigit():
        free = min(free, max(0, int(limit[0]) - int(used[0])))
    return free


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def describe_device(device: torch.device) -> str:
    """The device in words: `cpu: <processor>` or `cuda: <card>`."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"cpu: {_processor()}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of what decides the result."""
    try:
        own = metadata.version("specgen")
    except metadata.PackageNotFoundError:
        own = "unknown"
    return {"specgen": own, "torch": torch.__version__, "python": platform.python_version()}
