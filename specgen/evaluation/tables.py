"""A comparison's document in plain words."""

from __future__ import annotations

from typing import Any

from specgen.evaluation.two_sample import Figure

Document = dict[str, Any]
_FEW_SIDES = 3  # up to which every side has sentences of its own


def figure_text(row: dict[str, Any] | None, digits: int = 2) -> str:
    """A figure of the document for a table; `-` where there is none."""
    if row is None:
        return "-"
    low, high = row["interval_95"]
    return Figure(row["value"], low, high, row["clips"]).text(digits)


def percent(share: float | None, digits: int = 2) -> str:
    """A share; only what is exactly all or nothing is called 100 % or 0 %."""
    if share is None:
        return "-"
    if share in (0, 1):
        return f"{share:.0%}"
    least = 10 ** -(digits + 2)
    return f"{min(max(share, least), 1 - least):.{digits}%}"


def p_text(p: float) -> str:
    return f"p = {p:.2g}"


def sentences(document: Document) -> list[str]:
    """What was found, most important first; many sides are summed up."""
    few = len(document["sides"]) <= _FEW_SIDES
    said = [_identity(row) for row in document["identity"] if few or row["holds"] is not None]
    said += _each_side(document) if few else _all_sides(document)
    lossy = [row["label"] for row in document["sides"] if not row["lossless"]]
    if lossy:
        said.append(f"LOSSY by choice: {', '.join(lossy)}.")
    if document["interrupted"]:
        said.append("The run was interrupted: these are the clips made until then.")
    return said


def verdict(document: Document) -> str:
    """The whole comparison in a few words."""
    if not passed(document):
        return "A promise is broken"
    if document["failures"]:
        return "Some clips could not be made"
    if document["interrupted"]:
        return "Interrupted: what was made until then"
    return "Every promise is kept"


def highlights(document: Document) -> list[Document]:
    """Of every side but the first, what most want to know: `label`, and `figures` as value and
    meaning. Empty for so many sides that tables say it better."""
    first = document["sides"][0]["label"]
    if len(document["sides"]) > _FEW_SIDES + 1:
        return []
    made = []
    for side in document["sides"][1:]:
        label = side["label"]
        figures = [
            (percent(row["tokens_identical_share"]), f"of the tokens as {first}")
            for row in document["identity"]
            if row["b"] == label
        ]
        for row in document["quality"]:
            if row["label"] == label and row["to_first"]:
                figures.append(("Differs" if _seen(row) else "The same", "to the tagger's ear"))
        for row in document["speed"]:
            if row["label"] == label and row["speedup"]:
                figures.append((f"{row['speedup']['value']:.2f} x", f"the speed of {first}"))
        made.append({"label": label, "lossless": side["lossless"], "figures": figures})
    return made


def _each_side(document: Document) -> list[str]:
    said = [_likelihood(row) for row in document["likelihood"]]
    said += [_distribution(row, "clips") for row in _drawn(document)]
    said += [_distribution(row, "very short clips") for row in document["short"]]
    said += [text for row in document["quality"] if (text := _quality(row))]
    return said + [t for row in document["speed"][1:] if (t := _speed(row, document["speed"][0]))]


def _all_sides(document: Document) -> list[str]:
    """One sentence a question, naming the sides."""
    first = document["sides"][0]["label"]
    heard = [row for row in document["quality"] if row["to_first"]]
    questions = [
        ("draw from another law than their verifier's", document["likelihood"], _differs),
        (f"differ from {first} in token statistics", _drawn(document), _differs),
        (f"differ from {first} to the tagger's ear", heard, _seen),
    ]
    said = []
    for what, rows, test in questions:
        yes = [row.get("b") or row["label"] for row in rows if test(row)]
        no = [row.get("b") or row["label"] for row in rows if not test(row)]
        if rows:
            said.append(f"Sides that {what}: {_list(yes)}. Not: {_list(no)}.")
    quick = [row for row in document["speed"][1:] if row["speedup"]]
    if quick:
        best = max(quick, key=lambda row: float(row["speedup"]["value"]))
        said.append(f"Fastest: {_speed(best, document['speed'][0])}")
    return said


def _list(labels: list[str]) -> str:
    return ", ".join(labels) or "none"


def _drawn(document: Document) -> list[Document]:
    """Tests of clips that are not the same on both sides; the same tokens need no test."""
    return [row for row in document["distribution"] if any(row["total_variation"].values())]


def _differs(row: Document) -> bool:
    return bool(row["differs"])


def _seen(row: Document) -> bool:
    return any(p <= 0.01 for p in row["to_first"]["p"].values())


def _identity(row: Document) -> str:
    clips = f"{row['clips_identical']} of {row['clips']} clips"
    share = percent(row["tokens_identical_share"])
    head = f"{row['b']} against {row['a']}: {clips} and {share} of the tokens are identical"
    if row["holds"] is True and not row["first_differences"]:
        return f"{head}, as promised."
    if row["holds"] is True:
        return f"{head}; every difference begins at a rounding tie, as promised in float32."
    if row["holds"] is False:
        return f"{head}; a difference that is no rounding tie breaks the promise: this is a fault."
    if row["expected_identical"]:
        return f"{head}; in 16 bit only the distribution is promised."
    return f"{head}; these sides need not be identical."


def _likelihood(row: Document) -> str:
    low, high = row["interval_95"]
    if row["differs"]:
        return (
            f"{row['label']} does NOT draw from its verifier's law: its tokens are "
            f"{row['excess_nats']:+.3f} nats more surprising than they should be "
            f"({low:+.3f} to {high:+.3f}, {p_text(row['p'])})."
        )
    return (
        f"{row['label']} draws from its verifier's law as far as {row['tokens']:,} tokens show: "
        f"{row['excess_nats']:+.3f} nats off ({low:+.3f} to {high:+.3f}); "
        f"{row['detectable_nats']:.3f} would have been caught with a probability of 90 %."
    )


def _distribution(row: Document, what: str) -> str:
    verdict = "differ" if row["differs"] else "cannot be told apart"
    text = (
        f"Token statistics of {row['clips']} {what} a side: {row['b']} and {row['a']} {verdict} "
        f"({p_text(row['p'])})"
    )
    if row["differs"]:
        return f"{text}; most in {row['worst']}."
    if row["detectable_shift"] is not None:
        text += (
            f"; a bias of {row['detectable_shift']:.0%} of the tokens would have been caught "
            f"with a probability of {row['power']:.0%}"
        )
    elif row["power"] is not None:
        text += "; too few clips to catch even a large bias, so this says little"
    return f"{text}."


def _quality(row: Document) -> str | None:
    to_first = row["to_first"]
    if to_first is None:
        return None
    p = to_first["p"]
    names = {"frechet": "Fréchet distance", "kernel": "kernel distance", "tag_shift": "tags"}
    seen = [names[key] for key in names if p[key] <= 0.01]
    text = f"To the tagger's ear {row['label']} "
    if seen:
        return f"{text}differs from {to_first['against']} ({', '.join(seen)})."
    return f"{text}does not differ from {to_first['against']}."


def _speed(row: Document, first: Document) -> str | None:
    if row["speedup"] is None:
        return None
    low, high = row["speedup"]["interval_95"]
    return (
        f"{row['label']} is {row['speedup']['value']:.2f} times as fast as {first['label']} "
        f"({low:.2f} to {high:.2f}, {row['rounds']} rounds in turn)."
    )


def passed(document: Document) -> bool:
    """Whether every promise holds: identity, and no lossless side that follows another law."""
    broken = any(row["holds"] is False for row in document["identity"])
    tests = document["distribution"] + document["short"]
    biased = any(row["differs"] and promised(document, row) for row in tests)
    off = any(row["differs"] and row["lossless"] for row in document["likelihood"])
    return not broken and not biased and not off


def promised(document: Document, row: Document) -> bool:
    """Whether two sides are promised to follow one law: lossless, same verifier, same sampling."""
    a, b = (next(s for s in document["sides"] if s["label"] == row[key]) for key in "ab")
    keys = ("temperature", "top_k", "top_p", "cfg")
    return (
        a["lossless"]
        and b["lossless"]
        and (a["checkpoints"] or {}).get("verifier") == (b["checkpoints"] or {}).get("verifier")
        and all(a["sampling"][key] == b["sampling"][key] for key in keys)
    )
