"""The `specgen` command: the command line is imported while torch's libraries load beside it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

DECODING = ("generate", "bench", "compare", "verify")  # commands that will need torch


def main() -> None:
    """Run `specgen` with the process's arguments."""
    loading = load_ahead(sys.argv[1:])
    try:
        from specgen.cli import app

        app.main()
    finally:
        if loading is not None:
            loading.join()  # to exit while constructors run would be undefined


def load_ahead(arguments: Sequence[str]) -> Thread | None:
    """Begin to load torch's largest library where a command will need it and help is not asked for.

    That takes 0.3 s, during which the imports of the command line keep another processor busy. Only
    the dynamic linker is at work, in the order in which torch itself would ask for it; if it finds
    something amiss, torch's own import will say so.
    """
    if not arguments or arguments[0] not in DECODING or {"-h", "--help"} & set(arguments):
        return None
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations or not sys.platform.startswith("linux"):
        return None
    libraries = Path(spec.submodule_search_locations[0]) / "lib"
    if (libraries / "libtorch_cuda.so").exists():
        return None  # torch puts those libraries' own libraries in order first
    thread = Thread(target=_open, args=(libraries,), daemon=True)
    thread.start()
    return thread


def _open(libraries: Path) -> None:
    # dlopen by a foreign call, which lets go of the interpreter; ctypes.CDLL(path) keeps it.
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    shared = bytes(libraries / "libtorch_global_deps.so")
    if dlopen(shared, os.RTLD_GLOBAL | os.RTLD_LAZY):
        dlopen(bytes(libraries / "libtorch_cpu.so"), os.RTLD_LOCAL | os.RTLD_LAZY)
