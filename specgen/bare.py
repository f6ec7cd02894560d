"""Modules without weights of their own, to take over a checkpoint's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
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
