"""Compiled leaves: the same numbers but for rounding, and one line where nothing compiles."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from specgen.engine import Request, load
from specgen.errors import UserError
from specgen.lm import compiled


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler here")
def test_compiled_leaves_make_the_same_tokens(tiny: str) -> None:
    request = Request("a slow air on the flute", 5, 0.2)
    plain, quick = (load(tiny, draft=False, compile=which) for which in (False, True))
    (expected,), (made,) = plain.generate([request]), quick.generate([request])
    assert torch.equal(expected.codes, made.codes)
    assert (plain.sidecar(expected)["compiled"], quick.sidecar(made)["compiled"]) == (False, True)


def test_without_a_compiler_there_is_one_line(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CXX", "CC"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match=r"--compile needs a compiler \(g\+\+"):
        load(tiny, compile=True)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: name)
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="triton"):
        compiled.check_compiler(torch.device("cuda"))
