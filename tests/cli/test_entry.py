"""The `specgen` command itself: what it loads before it knows what is asked of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

from specgen.cli.entry import load_ahead

LOADS = """
import sys
from specgen.cli.entry import load_ahead
thread = load_ahead(sys.argv[1:])
assert thread is not None
thread.join()
assert "torch" not in sys.modules
assert "libtorch_cpu.so" in open("/proc/self/maps").read()
import torch
print((torch.ones(3) @ torch.ones(3)).item())
"""


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["generate", "--help"], ["presets", "list"], ["--version"]]
)
def test_what_needs_no_torch_loads_none(arguments: Sequence[str]) -> None:
    assert load_ahead(arguments) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="dlopen of Linux")
def test_torch_works_from_the_library_that_was_loaded_ahead() -> None:
    if load_ahead(["generate", "a jig"]) is None:
        pytest.skip("a CUDA build of torch: left to itself")
    command = [sys.executable, "-c", LOADS, "generate", "a jig"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "3.0"), run.stderr


def test_a_mistake_is_answered_while_the_library_still_loads() -> None:
    code = "import sys; from specgen.cli.entry import main; main()"
    for _ in range(3):
        run = subprocess.run(
            [sys.executable, "-c", code, "generate", "a jig", "--no-such-option"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 2 and run.stderr.startswith("specgen: error: No such option")
