"""The tensors of safetensors files, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specgen.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


class SafeTensors(Mapping[str, "Tensor"]):
    """The tensors of some safetensors files, each read when it is asked for.

    Args:
        paths: the files.
        prefix: only names that start with it, and without it.

    Raises:
        UserError: a missing or corrupt file.
    """

    def __init__(self, paths: list[Path], prefix: str = "") -> None:
        from safetensors import SafetensorError, safe_open

        self.prefix = prefix
        self._files: dict[str, Any] = {}
        for path in paths:
            if not path.is_file():
                raise UserError(f"weights {path} are missing: fetch the checkpoint again")
            try:
                opened = safe_open(path, framework="pt")
            except (SafetensorError, OSError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise UserError(
                    f"weights {path} are corrupt ({reason}): fetch them again"
                ) from None
            names: list[str] = opened.keys()  # type: ignore[no-untyped-call]
            for name in names:
                if name.startswith(prefix):
                    self._files[name.removeprefix(prefix)] = opened

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(self.prefix + name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
