"""A checkpoint of any format into the native one."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from specgen.checkpoints import native, registry
from specgen.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from specgen.codec.embedded import EmbeddedCodec
    from specgen.codec.encodec import EncodecCodec

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        folder: where.
        parts: what it holds: `language model`, `codec`, `text encoder`.
        dtype: of the language model's weights.
        size: bytes in all.
    """

    folder: Path
    parts: tuple[str, ...]
    dtype: str
    size: int


def convert(
    source: Path, target: Path, dtype: str | None = None, *, overwrite: bool = False
) -> Converted:
    """Write a checkpoint folder, with its codec and text encoder where they came with it.

    The folder appears whole or not at all.

    Args:
        source: a folder of any format.
        target: the folder to make.
        dtype: of the language model's weights; None is float16 where that loses nothing, else
            float32. A codec stays in float32.
        overwrite: replace a checkpoint that is there.

    Raises:
        UserError: an unreadable source, an unknown dtype, a target that is in the way, or a disk
            that cannot be written.
    """
    import torch

    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown; known: {', '.join(DTYPES)}")
    check_target(target, overwrite=overwrite)
    model = registry.load_lm(source)
    chosen = dtype or ("float16" if halves(model.lm) else "float32")
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        native.save_lm(model, partial, getattr(torch, chosen))
        parts = ["language model"]
        if registry.has_codec(source):
            codec, _ = registry.load_codec(source, model.codec)
            _save_codec(codec, partial / "codec")
            parts.append("codec")
        if (partial / native.TEXT_FOLDER).is_dir():
            parts.append("text encoder")
        if target.is_dir():
            shutil.rmtree(target)
        partial.replace(target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return Converted(target, tuple(parts), chosen, size)


def _save_codec(codec: EmbeddedCodec | EncodecCodec, folder: Path) -> None:
    from specgen.codec.embedded import EmbeddedCodec, save_codec

    if isinstance(codec, EmbeddedCodec):
        save_codec(codec, folder)
    else:
        codec.save(folder)


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a target that would be lost or cannot be made.

    Raises:
        UserError: it exists; with `overwrite` only if it is no checkpoint of ours.
    """
    if not target.parent.is_dir():
        raise UserError(f"{target.parent} does not exist: make it first")
    if not target.exists() and not target.is_symlink():
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{target} exists: name another folder, or add --overwrite")
    if target.is_symlink() or not (target / native.CONFIG_NAME).is_file():
        raise UserError(f"{target} is no checkpoint of specgen and is kept: name another folder")


def halves(module: nn.Module) -> bool:
    """Whether every weight is a float16 number."""
    return all(bool((p.half().to(p.dtype) == p).all()) for p in module.parameters())
