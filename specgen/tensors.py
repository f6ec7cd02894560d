"""Modules without weights of their own, to take over a checkpoint's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _Undrawn(TorchFunctionMode):
    """`torch.nn.init` leaves tensors as they are."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextlib.contextmanager
def bare(device: str = "meta") -> Iterator[None]:
    """Modules made in here lie on `device` and draw no weights.

    Drawing on the meta device does no work, but the first draw imports torch's compiler: 1.7 s.
    """
    with torch.device(device), _Undrawn():
        yield


def upload(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """`values` as an int64 tensor on `device`.

    A plain copy to a CUDA card waits for everything that was queued there before; one from pinned
    memory is queued like the rest, so that a draft needs no synchronisation.
    """
    if device.type != "cuda":
        return torch.tensor(values, device=device)
    return torch.tensor(values, pin_memory=True).to(device, non_blocking=True)


def pick(table: Tensor, index: Sequence[int]) -> Tensor:
    """`table[index]`: a copy of a few rows. On the CPU numpy makes it, for a third of the cost."""
    if table.device.type != "cpu":
        return table[upload(index, table.device)]
    return torch.from_numpy(table.numpy()[index])


def place(table: Tensor, index: Sequence[int], values: Tensor) -> None:
    """`table[index] = values`, likewise."""
    if table.device.type != "cpu":
        table[upload(index, table.device)] = values
    else:
        table.numpy()[index] = values.numpy()
