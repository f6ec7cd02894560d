"""Quantised weights: the numbers they stand for, their bytes, and what they may not change."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from specgen.benchmarking.cases import Sweep, expand, quantized
from specgen.checkpoints.pairing import inspect
from specgen.cli.app import run
from specgen.engine import Request, load
from specgen.errors import UserError
from specgen.jobs.plan import fingerprint as row_fingerprint
from specgen.lm.packed import PackedHeads, PackedLinear
from specgen.lm.quantized import QuantizedLinear, check_kind, quantize_
from specgen.presets import fingerprint, load_preset, parse_quantize
from tests.lm.test_packed import half_model, logits

pytest.importorskip("torchao")

EMBEDDED = "ac503441822f3827"
ERROR = {"int8": 0.5 / 127, "fp8": 2.0**-4}  # of a row's largest weight; half a step of e4m3


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_product_uses_the_rounded_weights(kind: str) -> None:
    torch.manual_seed(1)
    weight, bias, x = torch.randn(48, 32), torch.randn(48), torch.randn(3, 32)
    layer = QuantizedLinear(weight, bias, kind=kind)
    largest = weight.abs().amax(dim=1, keepdim=True)
    error = (layer.weight - weight).abs()
    assert error.max() > 0 and (error <= 1.01 * ERROR[kind] * largest).all()
    with torch.inference_mode():
        assert torch.allclose(layer(x), F.linear(x, layer.weight, bias), atol=1e-5)
    assert 48 * 32 <= layer.nbytes - bias.nbytes <= 48 * 32 + 48 * 16  # a few numbers a row beside


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_quantised_model_decodes_by_blocks_and_is_not_packed(kind: str) -> None:
    plain, small = half_model(), half_model()
    quantize_(small, kind)
    bytes_before_packing = small.weight_bytes()
    small.pack()
    assert small.weight_bytes() == bytes_before_packing < 0.6 * plain.weight_bytes()
    assert small.parameter_count() == plain.parameter_count()
    assert isinstance(small.heads, PackedHeads)
    assert not any(isinstance(m, PackedLinear) for m in small.modules())
    one, block = logits(small, (1,) * 8), logits(small, (3, 5))
    assert (one - block).abs().max() < 1e-4
    assert 0 < (one - logits(plain, (8,))).abs().max() < 0.5


@pytest.mark.parametrize("name", ["dual", "delay"])
def test_a_quantised_drafter_never_changes_the_tokens(tiny_folder: Path, name: str) -> None:
    preset = str(tiny_folder / f"{name}.yaml")
    request = Request("a slow air on the flute", 5, 0.8)
    plain, small = load(preset), load(preset, quantize="drafter=int8")
    assert small.drafter is not None and plain.drafter is not None
    assert small.drafter.quantize == "int8" and small.verifier.quantize == "none"
    (before,), (after,) = plain.generate([request]), small.generate([request])
    assert after.stats.drafted and torch.equal(before.codes, after.codes)
    assert small.sidecar(after)["quantize"] == {"verifier": "none", "drafter": "int8"}


def test_a_quantised_verifier_is_another_model_and_says_so(tiny: str) -> None:
    plain, small = load(tiny), load(tiny, quantize="verifier=int8")
    assert small.verifier.name == f"{plain.verifier.name} int8"
    request = plain.check(Request("a jig", 1, 0.2))
    assert row_fingerprint(plain, request, {}) != row_fingerprint(small, request, {})
    drafted = next(small.generate([request])).codes
    alone = load(tiny, quantize="verifier=int8", draft=False)
    assert torch.equal(drafted, next(alone.generate([request])).codes)


def test_generate_records_it_and_makes_it_again(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "one.wav"
    made = ["generate", "a jig", "-p", tiny, "--seed", "1", "-d", "0.2", "-o", str(clip)]
    assert run([*made, "--quantize", "verifier=int8,drafter=int8"]) == 0
    assert "the verifier's weights are int8" in capsys.readouterr().err
    sidecar = clip.with_suffix(".json")
    both = {"verifier": "int8", "drafter": "int8"}
    assert json.loads(sidecar.read_text())["quantize"] == both
    again = tmp_path / "two.wav"
    assert run(["generate", "--from-sidecar", str(sidecar), "-o", str(again)]) == 0
    assert "the same tokens" in capsys.readouterr().err
    assert json.loads(again.with_suffix(".json").read_text())["quantize"] == both


@pytest.mark.parametrize("text", ["int8", "drafter=int4", "codec=int8", "drafter=int8,drafter=fp8"])
def test_what_cannot_be_understood_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--quantize"):
        parse_quantize(text)


def test_fp8_needs_a_card() -> None:
    with pytest.raises(UserError, match=r"compute capability 8\.9.*use int8"):
        check_kind("fp8", torch.device("cpu"))
    check_kind("int8", torch.device("cpu"))


def test_without_torchao_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tiny: str) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UserError, match=r"pip install 'specgen\[quant\]'"):
        load(tiny, quantize="drafter=int8")


def test_a_preset_can_ask_for_it(tiny: str) -> None:
    text = Path(tiny).read_text()
    mine = Path(tiny).with_name("quantised.yaml")
    mine.write_text(text.replace("{checkpoint: drafter}", "{checkpoint: drafter, quantize: int8}"))
    preset, plain = load_preset(str(mine)), load_preset(tiny)
    assert preset.sha256 != plain.sha256
    sides, before = ({side.role: side for side in inspect(p)} for p in (preset, plain))
    assert sides["drafter"].name.endswith(" int8")
    assert sides["drafter"].weights < before["drafter"].weights


def test_the_key_left_out_leaves_the_hash_of_old_presets() -> None:
    # recorded before presets had the key; clips made then can be made again
    assert load_preset("embedded").sha256.startswith(EMBEDDED)


def test_bench_sweeps_it_and_shares_the_verifier(tiny: str) -> None:
    presets = quantized([load_preset(tiny)], ["drafter=none", "drafter=int8"])
    assert [p.sha256 for p in presets] == [fingerprint(p.node) for p in presets]
    cases = expand(presets, Sweep(draft_frames=(2,)))
    alone = [c for c in cases if c.draft is None and not c.drafter_alone]
    pairs = [c for c in cases if c.draft is not None]
    assert len(alone) == 1 and len(pairs) == 2
    assert {c.reference for c in pairs} == {alone[0].reference}
    assert [c.label.endswith(", drafter int8") for c in pairs] == [False, True]
    assert sum(c.drafter_alone for c in cases) == 2
