"""Checkpoints of the Hugging Face hub: `hub:OWNER/NAME@REVISION`.

Only the files that are read are fetched, one format of a repository that holds several. What is in
the local cache is not asked for again.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from specgen.errors import UserError

PREFIX = "hub:"
_SAFE = ("config.json", "generation_config.json", "tokenizer.json", "preprocessor_config.json")
_EXPORT = ("state_dict.bin", "compression_state_dict.bin")
_NATIVE = ("config.yaml", "*.safetensors", "codec/*", "text_encoder/*")
_NAME = re.compile(r"^[\w.-]+(?:/[\w.-]+)?$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")


@dataclass(frozen=True)
class Reference:
    """A repository of models on the hub; `revision` is a commit, tag or branch."""

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """`hub:OWNER/NAME` or `hub:OWNER/NAME@REVISION`.

        Raises:
            UserError: something else.
        """
        name, _, revision = text.removeprefix(PREFIX).partition("@")
        bad = not _NAME.match(name) or ".." in text or (revision and not _NAME.match(revision))
        if not text.startswith(PREFIX) or bad:
            raise UserError(f"{text!r} is no hub reference: write hub:OWNER/NAME@REVISION")
        return cls(name, revision or None)

    @property
    def pinned(self) -> bool:
        """Whether it always means the same files."""
        return self.revision is not None and _COMMIT.match(self.revision) is not None

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "")


def cached(reference: Reference) -> Path | None:
    """The folder of a reference in the local cache; None if its weights are not there whole.

    Asks no network.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        return None
    try:
        folder = Path(
            snapshot_download(
                reference.repository, revision=reference.revision, local_files_only=True
            )
        )
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        return None
    return folder if complete(folder) else None


def complete(folder: Path) -> bool:
    """Whether a folder holds all the weights of one format."""
    if (folder / "model.safetensors.index.json").is_file():
        from specgen.checkpoints.huggingface import shards

        try:
            return all(path.is_file() for path in shards(folder))
        except UserError:
            return False
    if not folder.is_dir():
        return False
    kept = any((folder / name).is_file() for name in ("config.yaml", "config.json"))
    if kept and (folder / "model.safetensors").is_file():
        return True
    return all((folder / name).is_file() for name in _EXPORT)


def fetch(reference: Reference) -> Path:
    """The folder of a reference, downloaded if it is not in the local cache.

    Progress goes to stderr. `HF_HUB_OFFLINE=1` keeps it off the network.

    Raises:
        UserError: offline, private, not found, nothing readable in it, or a broken download.
    """
    found = cached(reference)
    if found is not None:
        return found
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(
            f"{reference} is on the hub, which is reached through huggingface_hub: "
            "pip install 'specgen[musicgen]'"
        )
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    get = f"hf download {reference.repository}"
    get += f" --revision {reference.revision}" if reference.revision else ""
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{reference} is not in the local cache and HF_HUB_OFFLINE is set: run '{get}' where "
            "there is a network, or unset it"
        )
    try:
        names = HfApi().list_repo_files(reference.repository, revision=reference.revision)
        wanted = patterns(names, reference)
        return Path(
            snapshot_download(
                reference.repository, revision=reference.revision, allow_patterns=wanted
            )
        )
    except RevisionNotFoundError:
        raise UserError(
            f"{reference.repository} has no revision {reference.revision} on the hub: check it"
        ) from None
    except GatedRepoError:
        raise UserError(
            f"{reference.repository} asks for consent first: give it at https://huggingface.co/"
            f"{reference.repository}, then run 'hf auth login'"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{reference.repository} is not on the hub, or is private: check the name, or run "
            "'hf auth login' if it is yours"
        ) from None
    except HFValidationError as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{reference} is no hub repository ({reason}): check the name") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"cannot fetch {reference} ({reason}): check the network, or run '{get}' where there "
            "is one"
        ) from None


def patterns(names: Iterable[str], reference: Reference) -> list[str]:
    """Which files of a repository to fetch: one format, the safest that is there.

    Raises:
        UserError: it holds no format that is read.
    """
    files = set(names)
    if "config.yaml" in files and "model.safetensors" in files:
        return list(_NATIVE)
    weights = sorted(n for n in files if re.match(r"^model(-\d+-of-\d+)?\.safetensors", n))
    if "config.json" in files and weights:
        return [*_SAFE, *weights]
    if set(_EXPORT) <= files:
        return list(_EXPORT)
    raise UserError(
        f"{reference} holds no MusicGen weights that are read (safetensors with config.json, or "
        "audiocraft's state_dict.bin and compression_state_dict.bin): name another repository"
    )
