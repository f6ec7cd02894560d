"""What a command does before its work begins."""

import os
import subprocess
import sys

import pytest

COLLECTOR = """
import gc
from specgen.cli.startup import uncollected
assert gc.isenabled()
with uncollected():
    assert not gc.isenabled()
    import decimal
assert gc.isenabled() and gc.get_freeze_count() > 1000
gc.disable()
with uncollected():
    pass
assert not gc.isenabled()
try:
    gc.enable()
    with uncollected():
        raise ImportError
except ImportError:
    print("collects again:", gc.isenabled())
"""

PAGES = """
import os, sys
from specgen.cli.app import main
sys.argv = ["specgen", "--version"]
try:
    main()
finally:
    print(os.environ["THP_MEM_ALLOC_ENABLE"])
"""


def output(code: str, **environment: str) -> list[str]:
    command, fresh = [sys.executable, "-c", code], {**os.environ, **environment}
    if "THP_MEM_ALLOC_ENABLE" not in environment:
        fresh.pop("THP_MEM_ALLOC_ENABLE", None)
    done = subprocess.run(command, env=fresh, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_imports_are_not_collected_and_the_rest_is() -> None:
    assert output(COLLECTOR) == ["collects again: True"]


@pytest.mark.parametrize("asked", [{}, {"THP_MEM_ALLOC_ENABLE": "0"}])
def test_huge_pages_are_asked_for_unless_the_user_says_otherwise(asked: dict[str, str]) -> None:
    assert output(PAGES, **asked)[-1] == ("0" if asked else "1")
