"""Plain data from YAML into dataclasses; unknown, missing or ill-typed keys are errors."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from specgen.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_DEEPEST = 100  # of nested mappings and lists


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML file holds (plain scalars, lists, mappings: no tags, no interpolation).

    Raises:
        UserError: missing or unreadable file, or something else than a mapping.
    """
    try:
        values = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: check the path") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not readable YAML ({reason}): mend the file") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping of names to values: mend the file")
    return {str(key): value for key, value in values.items()}


def _parse(text: str) -> Any:
    """A YAML document, by libyaml where it is there: twenty times as fast.

    Its composer recurses without a limit and takes the interpreter down on a hostile file; its
    parser does not, so the depth is looked at first.
    """
    if not yaml.__with_libyaml__:
        return yaml.safe_load(text)
    depth = 0
    for event in yaml.parse(text, yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"nested deeper than {_DEEPEST}")
    return yaml.load(text, yaml.CSafeLoader)


def from_plain(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build a dataclass (of dataclasses, tuples, mappings and scalars) from plain data.

    Args:
        cls: the dataclass.
        values: one value a field; fields with a default may be left out.
        where: what the values are, for messages, such as a file's path.

    Raises:
        UserError: unknown or missing keys, wrong types, or values the dataclass refuses.
    """
    built = _read(cls, values, where)
    assert isinstance(built, cls)
    return built


def to_plain(value: Any) -> Any:
    """The inverse of `from_plain`: dataclasses as mappings, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(one) for one in value]
    return value


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        options = [one for one in arguments if one is not type(None)]
        return _read(options[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(typing.cast(type, kind), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_read(arguments[0], one, f"{where}[{i}]") for i, one in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        return {
            _read(arguments[0], key, f"{where} key"): _read(arguments[1], one, f"{where}.{key}")
            for key, one in value.items()
        }
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if origin is None and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    name = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise UserError(f"{where} must be of type {name}, got {value!r:.60}: mend the value")


def _read_dataclass(cls: type, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise UserError(f"{where} must be a mapping, got {value!r:.60}: mend the value")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = [str(key) for key in value if key not in fields]
    if unknown:
        known = ", ".join(fields)
        raise UserError(f"{where}: unknown key {unknown[0]!r}; known keys: {known}")
    missing = [
        name
        for name, f in fields.items()
        if name not in value
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where}: key {missing[0]!r} is missing: add it")
    hints = typing.get_type_hints(cls)
    arguments = {name: _read(hints[name], one, f"{where}: {name}") for name, one in value.items()}
    try:
        return cls(**arguments)
    except ValueError as error:
        raise UserError(f"{where}: {error}: mend the value") from None


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
