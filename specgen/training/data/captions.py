"""Captions in plain words from what the arranger knows, and the lexicon the tokenizer shares."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml

COUNT = 4
_WORD = re.compile(r"[a-z]+|\d+(?:/\d+)?")


@cache
def lexicon() -> dict[str, Any]:
    """The packaged lexicon.yaml: `say` (state -> phrases) and `synonyms` (word -> caption word)."""
    text = resources.files(__package__).joinpath("lexicon.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def words(text: str) -> list[str]:
    """The words of a caption: letters, whole numbers, and metres such as 6/8."""
    return _WORD.findall(text.lower())


def _pick(rng: random.Random, *path: str) -> str:
    entry: Any = lexicon()["say"]
    for name in path:
        entry = entry[name]
    return str(rng.choice(entry))


def _chance(rng: random.Random, share: float) -> bool:
    return rng.random() < share


def key_phrase(state: Mapping[str, Any]) -> str:
    """Such as "d major", "b flat major", "e dorian"."""
    return f"{state['key'].lower()} {state['mode']}"


def round_bpm(bpm: float) -> int:
    """Beats a minute as captions say it: the nearest ten."""
    return int(bpm / 10 + 0.5) * 10


def _accompaniment(state: Mapping[str, Any], rng: random.Random) -> str:
    """Such as "with guitar chords and bass, no drums"; may be empty."""
    if state["accompaniment"] == "none":
        return "" if _chance(rng, 0.5) else _pick(rng, "solo")
    player = _pick(rng, "lead", state["chords"])
    parts = [_pick(rng, "chords", state["accompaniment"]).format(player=player)]
    if state["bass"]:
        parts.append(_pick(rng, "bass"))
    if state["drums"]:
        parts.append(_pick(rng, "drums"))
        if _chance(rng, 0.25):
            return "with " + _pick(rng, "drums")
        if _chance(rng, 0.2):
            return "with a " + _pick(rng, "band")
    elif _chance(rng, 0.2):
        return f"with {' and '.join(parts)}, {_pick(rng, 'no_drums')}"
    if len(parts) > 1 and _chance(rng, 0.15):
        parts = parts[:-1]
    return "with " + (
        f"{parts[0]}, {parts[1]} and {parts[2]}" if parts[2:] else " and ".join(parts)
    )


def _short(state: Mapping[str, Any], rng: random.Random) -> str:
    """Two to four words: "fiddle jig", "sad air on the flute"."""
    lead, genre = _pick(rng, "lead", state["lead"]), _pick(rng, "genre", state["genre"])
    mood, tempo = _pick(rng, "mood", state["mood"]), _pick(rng, "tempo", state["tempo"])
    forms = [
        f"{lead} {genre}",
        f"{mood} {genre} on the {lead}",
        f"{mood} {lead} {genre}",
        f"{tempo} {lead}",
        f"{mood} {lead}",
        f"{genre} in {key_phrase(state)}",
        f"{tempo} {genre}",
        f"{lead}, {mood}",
        f"solo {lead}" if state["accompaniment"] == "none" else f"{lead} and {state['chords']}",
        f"{lead} {genre} with drums" if state["drums"] else f"{lead} {genre}, no drums",
        f"{_pick(rng, 'family', state['family'])}, {genre}",
    ]
    return str(rng.choice(forms))


def _tags(state: Mapping[str, Any], rng: random.Random) -> str:
    """A list: "jig, violin, d major, fast, guitar chords, 120 bpm"."""
    tags = [_pick(rng, "genre", state["genre"]), _pick(rng, "lead", state["lead"])]
    maybe = [
        (0.5, key_phrase(state)),
        (0.5, _pick(rng, "tempo", state["tempo"])),
        (0.5, _pick(rng, "mood", state["mood"])),
        (0.2, f"{state['metre']} time"),
        (0.3, f"{round_bpm(state['bpm'])} bpm"),
        (0.6, _accompaniment(state, rng).removeprefix("with ")),
    ]
    tags += [tag for share, tag in maybe if tag and _chance(rng, share)]
    rng.shuffle(tags)
    return ", ".join(tags)


def _sentence(state: Mapping[str, Any], rng: random.Random) -> str:
    """A longer one: "a lively jig in d major on the violin with guitar chords"."""
    named = _chance(rng, 0.85)
    genre = _pick(rng, "genre", state["genre"]) if named else _pick(rng, "any_genre")
    lead = _pick(rng, "lead", state["lead"])
    adjectives = [
        phrase
        for share, phrase in (
            (0.4, _pick(rng, "tempo", state["tempo"])),
            (0.6, _pick(rng, "mood", state["mood"])),
        )
        if _chance(rng, share)
    ]
    rng.shuffle(adjectives)
    noun = " ".join([*adjectives, genre])
    key = f" in {key_phrase(state)}" if _chance(rng, 0.5) else ""
    backing = _accompaniment(state, rng) if _chance(rng, 0.7) else ""
    form = rng.randrange(5)
    solo = state["accompaniment"] == "none"
    if form == 0:
        text = f"a {noun}{key} on the {lead}"
    elif form == 1:
        text = f"a {noun} on {lead}{key}"
    elif form == 2:
        who = "solo " if solo and _chance(rng, 0.4) else "" if lead.endswith("s") else "a "
        text = f"{who}{lead} playing a {noun}{key}"
    elif form == 3:
        text = f"a {noun}{key} for {'solo ' if solo and _chance(rng, 0.4) else ''}{lead}"
    else:
        text = f"{noun} played on the {lead}{key}"
    text += f" {backing}" if backing.startswith("with") else f", {backing}" if backing else ""
    if _chance(rng, 0.2):
        text += f", {state['metre']} time"
    if _chance(rng, 0.25):
        text += f", {round_bpm(state['bpm'])} bpm"
    return text


def captions(state: Mapping[str, Any], rng: random.Random) -> list[str]:
    """Four captions of an item, of different build: short, a list of tags, and two sentences."""
    texts = [_short(state, rng), _tags(state, rng), _sentence(state, rng), _sentence(state, rng)]
    texts = [re.sub(r"\b(\w+) \1\b", r"\1", text) for text in texts]  # "a slow slow air"
    return [re.sub(r"\ba (?=[aeiou])", "an ", text) for text in texts]


def _phrases(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, Mapping):
        for part in entry.values():
            yield from _phrases(part)
    else:
        for part in entry:
            yield from _phrases(part)


@cache
def synonyms() -> dict[str, str]:
    """Words that captions never use -> caption words; bpm numbers go to the nearest one said."""
    table: dict[str, str] = dict(lexicon()["synonyms"])
    said = sorted({round_bpm(3000 / (f * n)) for f in (8, 10, 12, 14, 16) for n in (2, 3)})
    for bpm in range(40, 241):
        if bpm not in said:
            table[str(bpm)] = str(min(said, key=lambda one: abs(one - bpm)))
    return table
