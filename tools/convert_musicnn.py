"""Turn the musicnn wheel's weights into the safetensors file that specgen ships.

    pip download --no-deps musicnn==0.1.0
    python tools/convert_musicnn.py musicnn-0.1.0-py3-none-any.whl specgen/evaluation/musicnn

Reads the TensorFlow checkpoint without TensorFlow: the `.index` file is a LevelDB table (sorted
blocks of prefix-compressed keys) whose values are `BundleEntryProto` messages that point into the
data file (tensorflow/core/protobuf/tensor_bundle.proto). Writes `model.safetensors` (float32 for
vectors and the front end, whose rounding would show most; float16 for the rest) and `LICENSE` (ISC,
as the wheel has it).
"""

from __future__ import annotations

import argparse
import math
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

MODEL = "musicnn/MTT_musicnn/"
MAGIC = 0xDB4775248B80FB57
FLOAT32 = 1  # DataType.DT_FLOAT


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A base-128 number and the place behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def block(table: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the table block that a handle (offset, size) names."""
    start, at = varint(handle, 0)
    size, _ = varint(handle, at)
    if table[start + size] != 0:
        raise ValueError("the index is compressed")
    data = table[start : start + size]
    (restarts,) = struct.unpack("<I", data[-4:])
    end, at, key = size - 4 * (restarts + 1), 0, b""
    while at < end:
        shared, at = varint(data, at)
        unshared, at = varint(data, at)
        length, at = varint(data, at)
        key = key[:shared] + data[at : at + unshared]
        at += unshared
        yield key, data[at : at + length]
        at += length


def message(data: bytes) -> dict[int, list[int | bytes]]:
    """The fields of a protocol buffer message."""
    fields: dict[int, list[int | bytes]] = {}
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        value: int | bytes
        match tag & 7:
            case 0:
                value, at = varint(data, at)
            case 2:
                size, at = varint(data, at)
                value, at = data[at : at + size], at + size
            case 5:
                value, at = data[at : at + 4], at + 4
            case kind:
                raise ValueError(f"wire type {kind} is not expected here")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def variables(index: bytes, data: bytes) -> dict[str, NDArray[np.float32]]:
    """The float32 variables of a checkpoint with one data file."""
    footer = index[-48:]
    if struct.unpack("<Q", footer[-8:])[0] != MAGIC:
        raise ValueError("not a checkpoint index")
    _, at = varint(footer, 0)
    _, at = varint(footer, at)  # the first handle is the meta index's
    found = {}
    for _, handle in block(index, footer[at:]):
        for key, value in block(index, handle):
            entry = message(value)
            if not key or entry.get(1) != [FLOAT32]:
                continue  # the header, and counters
            shape = [
                int(message(bytes(dim))[1][0])  # type: ignore[arg-type]
                for part in entry[2]
                for dim in message(bytes(part)).get(2, [])  # type: ignore[arg-type]
            ]
            (offset,) = entry.get(4, [0])
            assert isinstance(offset, int)
            array = np.frombuffer(data, "<f4", math.prod(shape), offset).reshape(shape)
            found[key.decode()] = array
    return found


def turned(name: str, kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """A kernel `[time, frequency, in, out]` or `[in, out]` in torch's order."""
    if kernel.ndim == 2:
        return kernel.T
    if name.startswith("middle"):  # it spans all features: a convolution over time alone
        return kernel[:, :, 0].transpose(2, 1, 0)
    return kernel.transpose(3, 2, 0, 1)


def torch_names(found: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.generic]]:
    """Variables under the names and in the layout of `specgen.evaluation.musicnn.Musicnn`."""
    layers = ["front.0", "front.1", "front.2", "front.3", "front.4", "middle.0", "middle.1"]
    convs = [*layers, "middle.2"]
    norms = ["input_norm", *(f"{name}.norm" for name in convs), "pool_norm", "dense_norm"]
    renamed = {}
    kinds = {"gamma": "weight", "beta": "bias"}
    kinds |= {"moving_mean": "running_mean", "moving_variance": "running_var"}
    for stem, names in (
        ("conv2d", [f"{n}.conv" for n in convs]),
        ("batch_normalization", norms),
        ("dense", ["dense", "tags"]),
    ):
        for i, name in enumerate(names):
            old = stem if i == 0 else f"{stem}_{i}"
            for key, array in found.items():
                scope, _, leaf = key.rpartition("/")
                if scope.rpartition("/")[2] != old or leaf not in ("kernel", "bias", *kinds):
                    continue
                if stem == "batch_normalization":
                    renamed[f"{name}.{kinds[leaf]}"] = array
                elif leaf == "bias":
                    renamed[f"{name}.bias"] = array
                else:
                    kind = np.float32 if name.startswith("front") else np.float16
                    renamed[f"{name}.weight"] = turned(name, array).astype(kind)
    return {key: np.ascontiguousarray(array) for key, array in renamed.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(args.wheel) as wheel:
        index, data = (wheel.read(f"{MODEL}.{name}") for name in ("index", "data-00000-of-00001"))
        licence = next(n for n in wheel.namelist() if n.endswith("LICENSE.md"))
        (args.folder / "LICENSE").write_bytes(wheel.read(licence))
    weights = torch_names(variables(index, data))
    save_file(weights, args.folder / "model.safetensors", {"source": "musicnn 0.1.0, MTT_musicnn"})
    (args.folder / "model.safetensors").chmod(0o644)
    print(f"{len(weights)} tensors, {sum(w.nbytes for w in weights.values()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
