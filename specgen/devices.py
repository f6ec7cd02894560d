"""Devices and dtypes by name, checked before they can fail in the middle of something."""

from __future__ import annotations

import platform
import subprocess
import sys
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


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """A dtype by name. On a CPU, 16 bit is tried in another process first: CPUs that advertise AMX
    and fault on it die with an illegal instruction.

    Raises:
        UserError: unknown, or this CPU cannot do it.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise UserError(f"dtype {name!r} is unknown; use {', '.join(known)}")
    if device.type == "cpu" and name != "float32":
        probe = subprocess.run([sys.executable, "-c", _PROBE.format(name)], capture_output=True)
        if probe.returncode:
            raise UserError(
                f"{name} products fail on this CPU (exit {probe.returncode}); use --dtype "
                "float32, or set ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 and try again"
            )
    return known[name]


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
