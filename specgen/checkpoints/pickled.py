"""Files written by `torch.save`, read without running anything in them.

`torch.load(weights_only=True)` builds tensors and plain containers and refuses everything else.
Before that the archive's directory is looked at: `torch.save` never compresses, so a file that
claims to hold more than its own size is a bomb.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

from specgen.errors import UserError

EXPORT = "audiocraft.utils.export.export_lm"


def read_pickled(path: Path) -> dict[str, Any]:
    """The mapping that a `torch.save` file holds: tensors and plain values, on the CPU.

    Raises:
        UserError: a missing, truncated or corrupt file; one that unpacks to more than it is; one
            that holds code or live objects (as audiocraft's training checkpoints do).
    """
    import torch

    if not path.is_file():
        raise UserError(f"weights {path} are missing: fetch or export the checkpoint again")
    check_archive(path)
    try:
        # Into memory, not mapped: a mapped pickle could be changed under our hands.
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from None
    except (RuntimeError, EOFError, OSError, ValueError, TypeError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"weights {path} are corrupt ({reason}): fetch them again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no mapping of names to values: name another file")
    return {str(key): value for key, value in values.items()}


def check_archive(path: Path) -> None:
    """Refuse what is no archive of `torch.save`, by its directory alone.

    Raises:
        UserError: not a zip, truncated, compressed, or declaring more than the file's size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError) as error:
        raise UserError(
            f"weights {path} are truncated or no file of torch.save ({error}): fetch them again"
        ) from None
    declared = sum(member.file_size for member in members)
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or declared > path.stat().st_size:
        raise UserError(
            f"{path} unpacks to {declared:,} bytes, more than it is, which torch.save never "
            "does: it was made to fill memory, do not use it"
        )


def training_checkpoint(path: Path) -> UserError:
    """What to say of a file that audiocraft's trainer wrote."""
    return UserError(
        f"{path} is a training checkpoint of audiocraft, which holds live objects: export it with "
        f"{EXPORT}('{path.name}', 'state_dict.bin')"
    )


def _refused(path: Path, message: str) -> UserError:
    if "omegaconf" in message.lower():
        return training_checkpoint(path)
    named = next((w for w in message.replace("`", " ").split("GLOBAL ")[1:]), "").split(" ")[0]
    what = f" ({named})" if named else ""
    return UserError(
        f"{path} holds code{what}, not just tensors: it was not loaded; use weights in safetensors "
        "or an export of audiocraft"
    )
