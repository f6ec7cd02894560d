"""16 bit on a CPU: tried in another process, refused in one line where the CPU faults on it."""

import os
import sys

import pytest
import torch

from specgen import devices
from specgen.errors import UserError

CPU = torch.device("cpu")


def test_a_cpu_that_dies_of_16_bit_is_found_out_in_another_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "_PROBE", "import os; os.kill(os.getpid(), 4)  # {0}: SIGILL")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    with pytest.raises(UserError, match=r"--dtype float32$") as caught:
        devices.choose_dtype("bfloat16", CPU)
    assert "\n" not in str(caught.value)
    assert "ONEDNN_MAX_CPU_ISA" not in os.environ


def test_amx_that_faults_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = "import os; os.environ.get('ONEDNN_MAX_CPU_ISA') or os.kill(os.getpid(), 4)  # {0}"
    monkeypatch.setattr(devices, "_PROBE", probe)
    monkeypatch.setattr(devices.os, "environ", dict(os.environ))
    devices.os.environ.pop("ONEDNN_MAX_CPU_ISA", None)
    monkeypatch.delitem(sys.modules, "specgen.cli.app", raising=False)
    with pytest.raises(UserError, match="ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16"):
        devices.choose_dtype("bfloat16", CPU)
    assert "ONEDNN_MAX_CPU_ISA" not in devices.os.environ
    monkeypatch.setitem(sys.modules, "specgen.cli.app", devices)
    assert devices.choose_dtype("bfloat16", CPU) is torch.bfloat16
    assert devices.os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE_BF16"


def files(monkeypatch: pytest.MonkeyPatch, held: dict[str, str], cpus: int) -> None:
    monkeypatch.setattr(devices, "_lines", lambda path: held.get(path, "").splitlines())
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: set(range(cpus)), raising=False)


def test_cores_are_counted_once_and_within_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    held = {siblings.format(cpu): f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}
    files(monkeypatch, held, 8)
    assert devices.cores() == 4
    files(monkeypatch, held, 3)  # of the 8 it may use three
    assert devices.cores() == 3
    for quota, cores in (("max 100000", 4), ("250000 100000", 3), ("50000 100000", 1)):
        files(monkeypatch, {**held, "/sys/fs/cgroup/cpu.max": quota}, 8)
        assert devices.cores() == cores
    files(monkeypatch, {}, 2)
    assert devices.cores() == 2


def test_a_small_model_takes_one_thread_and_a_large_one_what_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files(monkeypatch, {}, 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert devices.choose_threads(1_000_000) == 1
    assert devices.choose_threads(500_000_000) == 6
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert devices.choose_threads(500_000_000) == 2


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
