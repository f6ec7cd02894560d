"""tools/peers_at_length.py: that every side really decodes behind a cache of that length."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from specgen.benchmarking import audiocraft_peer, transformers_peer
from specgen.lm.cache import Span

FOLDER = Path(__file__).parents[2] / "tools"
LENGTH, STEPS = 40, 9


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if not (audiocraft_peer.installed() and transformers_peer.installed()):
        pytest.skip("needs audiocraft and transformers (make peers)")
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("peers_at_length")


def test_all_sides_take_the_same_steps(script: ModuleType) -> None:
    rows = script.measure("tiny", [LENGTH], STEPS + script.SKIPPED + 1, 1)

    counts = {row["side"]: len(row["step_ms_samples"]) for row in rows}
    assert set(counts.values()) <= {STEPS, STEPS + 1, STEPS + 2, STEPS + 3, STEPS + 4}, counts
    assert {"specgen", "audiocraft", "transformers"} < set(counts)
    assert all(row["step_ms"] > 0 and row["length"] == LENGTH for row in rows)
    assert "| 40 | specgen |" in script.table(rows)


def test_every_package_reads_a_cache_of_the_length_asked_for(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def spy(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        if k.shape[-2] > 20:  # not the condition
            reads.append(k.shape[-2])
        return attention(q, k, v, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    model = script.weights("tiny", exact=True)
    both = torch.randn(2, 20, model.config.dim)
    for build in (script.audiocraft, script.transformers, script.ours):
        run = build(model, both)
        reads.clear()
        marks = run(LENGTH, STEPS)
        name = build.__name__
        assert marks and LENGTH <= min(reads) <= LENGTH + 5, (name, reads)
        assert LENGTH + STEPS <= max(reads) <= LENGTH + STEPS + 5, (name, reads)


def test_a_skipped_pass_is_the_long_one_alone(script: ModuleType) -> None:
    model = script.weights("tiny", exact=True)
    fed: list[int] = []
    original = Span.of.__func__  # type: ignore[attr-defined]

    def of(cls: type[Span], starts: Any, size: int, *args: Any) -> Span:
        fed.append(size)
        made: Span = original(cls, starts, size, *args)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Span, "of", classmethod(of))
        script.ours(model, torch.randn(2, 20, model.config.dim))(LENGTH, STEPS)
    assert set(fed) == {1} and len(fed) >= STEPS
