"""EnCodec's tensors under one set of names: transformers', with weight norm multiplied out."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# The two parts of a weight-normed tensor: the old form, and that of torch's parametrisations.
_PARTS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
# audiocraft wraps a convolution twice and keeps layers in `model`, codebooks in `vq`.
_RENAMED = (
    (re.compile(r"^(encoder|decoder)\.model\."), r"\1.layers."),
    (re.compile(r"\.(conv|convtr)\.\1\."), ".conv."),
    (re.compile(r"^quantizer\.vq\.layers\.(\d+)\._codebook\."), r"quantizer.layers.\1.codebook."),
)


def from_audiocraft_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """audiocraft's `EncodecModel` state under transformers' names."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, replacement in _RENAMED:
            name = pattern.sub(replacement, name)
        renamed[name] = value
    return renamed


def fold_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with every pair of magnitude and direction as the one weight they stand for.

    Either part without the other is left as it is: it will not fit, and be named.
    """
    folded = dict(state)
    for magnitude, direction in _PARTS:
        for name in [n for n in folded if n.endswith("." + magnitude)]:
            stem = name.removesuffix(magnitude)
            if stem + direction in folded:
                g, v = folded.pop(name), folded.pop(stem + direction)
                # In float32 whatever the file holds, by torch's own function.
                folded[stem + "weight"] = torch._weight_norm(v.float(), g.float(), 0)
    return folded
