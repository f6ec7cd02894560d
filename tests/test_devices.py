"""16 bit on a CPU: tried in another process, refused in one line where the CPU faults on it."""

import pytest
import torch

from specgen import devices
from specgen.errors import UserError

CPU = torch.device("cpu")


def test_a_cpu_that_dies_of_16_bit_is_found_out_in_another_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "_PROBE", "import os; os.kill(os.getpid(), 4)  # {0}: SIGILL")
    with pytest.raises(UserError, match="ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16") as caught:
        devices.choose_dtype("bfloat16", CPU)
    assert "float32" in str(caught.value) and "\n" not in str(caught.value)


def test_a_cpu_that_can_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_PROBE", "assert '{0}' == 'bfloat16'")
    assert devices.choose_dtype("bfloat16", CPU) is torch.bfloat16


def test_float32_and_cuda_need_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_PROBE", "raise SystemExit(1)")
    assert devices.choose_dtype("float32", CPU) is torch.float32
    assert devices.choose_dtype("float16", torch.device("cuda")) is torch.float16


def test_auto_finds_a_device() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert devices.choose_device("auto").type == expected
