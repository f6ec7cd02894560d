"""What a tagger hears: how far apart two sides are, and whether they fit the prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specgen.evaluation.musicnn import TAGS

# Words of a prompt that a tag of the tagger stands for; the others say nothing it could hear.
HEARD = {
    "violin": ("violin", "fiddle"),
    "cello": ("cello",),
    "flute": ("flute", "recorder", "whistle"),
    "guitar": ("guitar",),
    "harp": ("harp",),
    "harpsichord": ("harpsichord",),
    "piano": ("piano",),
    "drums": ("drums", "percussion"),
    "slow": ("slow", "adagio"),
    "fast": ("fast", "quick", "presto"),
}


def divergences(p: NDArray[Any], q: NDArray[Any]) -> NDArray[np.float64]:
    """KL(p || q) of every clip in nats, summed over independent tags: `[N, tags]` twice to `[N]`.

    The tags are not exclusive, so each is a yes-or-no variable of its own.
    """
    p, q = (np.clip(np.asarray(x, np.float64), 1e-6, 1 - 1e-6) for x in (p, q))
    each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    total: NDArray[np.float64] = each.sum(axis=1)
    return total


def named(prompt: str) -> NDArray[np.bool_]:
    """`[tags]`: which tags the prompt asks for."""
    words = set(re.findall(r"[a-z]+", prompt.lower()))
    return np.array([any(word in words for word in HEARD.get(tag, ())) for tag in TAGS])


def text_agreement(tags: NDArray[Any], wanted: NDArray[np.bool_]) -> float:
    """How well posteriors fit the prompts: 1 is perfect, 0.5 is chance.

    The chance that a clip whose prompt names a tag scores higher on it than one whose prompt does
    not (area under the ROC curve), over all such pairs of clips, averaged over tags that some
    prompts name and some do not. NaN if there is no such tag.

    Args:
        tags: `[N, tags]` posteriors.
        wanted: `[N, tags]`, from `named`.
    """
    areas = []
    for column, asked in zip(np.asarray(tags).T, wanted.T, strict=True):
        if asked.all() or not asked.any():
            continue
        yes, no = column[asked, None], column[~asked]
        areas.append(float(((yes > no) + 0.5 * (yes == no)).mean()))
    return float(np.mean(areas)) if areas else float("nan")


def wanted(prompts: Sequence[str]) -> NDArray[np.bool_]:
    """`[N, tags]`: `named` for every prompt."""
    return np.stack([named(prompt) for prompt in prompts])
