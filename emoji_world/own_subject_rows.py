"""The rows that `own_subjects` makes: what each changes, of which subjects it is told, and what is finished of it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from training.personalize.tuning import TuningConfig

from .judge import BenchmarkRow, interval
from .scenes import HELD_OUT_NOUNS, WORLDS, EmojiWorld, Identity

GROUPS = {"stage3": WORLDS["full"].instruct_held_out, "unknown": HELD_OUT_NOUNS}
REPORTED = 5  # identities of each noun; settings are chosen by the others


@dataclass(frozen=True)
class Adapter:
    """How an adapter is trained: rank 16, batches of 8. general: every other row is of stage 3's own data."""

    steps: int = 20
    rate: float = 1e-3
    general: bool = False
    snr_bounds: tuple[float, float] | None = (0.15, 5.0)


@dataclass(frozen=True)
class Row:
    """One way to go on from photographs; neither `tuning` nor `adapter` is zero-shot."""

    tuning: TuningConfig | None = None
    adapter: Adapter | None = None
    photographs: int = 5
    noun: bool = True
    masks: bool = True
    asks: str = "own"  # own: the subject; others: seen identities by picture; text: the same in words


TUNED = TuningConfig()  # chosen by what follows
WEIGHED = replace(TUNED, snr_bounds=(0.15, 5.0))
ADAPTER, GENERAL_TOO = Adapter(), Adapter(general=True)
ROWS = {  # in the order in which they are made
    "to choose/before": Row(),
    "to choose/20 steps": Row(WEIGHED),
    "to choose/rate 0.03": Row(replace(WEIGHED, rate=0.03)),
    "to choose/rate 0.3": Row(replace(WEIGHED, rate=0.3)),
    "to choose/40 steps": Row(replace(WEIGHED, steps=40)),
    "to choose/10 steps": Row(replace(WEIGHED, steps=10)),
    "to choose/every noise alike": Row(TUNED),
    "to choose/every noise alike, 40 steps": Row(replace(TUNED, steps=40)),
    "to choose/every noise alike, batch 8": Row(replace(TUNED, batch=8)),
    "before": Row(),
    "tuned": Row(TUNED),
    "adapter": Row(adapter=ADAPTER),
    "others": Row(asks="others"),
    "others, adapter": Row(adapter=ADAPTER, asks="others"),
    "text": Row(asks="text"),
    "text, adapter": Row(adapter=ADAPTER, asks="text"),
    "adapter and tuned": Row(TUNED, ADAPTER),
    "adapter with general data": Row(adapter=GENERAL_TOO),
    "others, adapter with general data": Row(adapter=GENERAL_TOO, asks="others"),
    "text, adapter with general data": Row(adapter=GENERAL_TOO, asks="text"),
    "tuned on 1 photograph": Row(TUNED, photographs=1),
    "before, without noun": Row(noun=False),
    "tuned without noun": Row(TUNED, noun=False),
    "tuned on 3 photographs": Row(TUNED, photographs=3),
    "tuned without masks": Row(TUNED, masks=False),
    "to choose/adapter": Row(adapter=ADAPTER),
    "to choose/adapter, 40 steps": Row(adapter=replace(ADAPTER, steps=40)),
    "to choose/adapter, every noise alike": Row(adapter=replace(ADAPTER, snr_bounds=None)),
}
OF_BOTH_GROUPS = ("before", "tuned")  # the others are of the group `stage3` alone


def name_of(identity: Identity) -> str:
    return f"{identity.noun}_{identity.look}_{identity.hue}"


def subjects_of(world: EmojiWorld, group: str, reported: bool = True) -> list[Identity]:
    """The identities of a group that results are of, or those that settings are chosen by."""
    own = slice(None, REPORTED) if reported else slice(REPORTED, None)
    return [
        identity
        for noun in GROUPS[group]
        for identity in [Identity(noun, look, hue) for look in world.looks for hue in world.hues][own]
    ]


def all_subjects(world: EmojiWorld) -> list[Identity]:
    """Of both groups, those for choosing included."""
    return [x for group in GROUPS for reported in (True, False) for x in subjects_of(world, group, reported)]


def pieces(world: EmojiWorld, of_each: int = REPORTED) -> Iterator[tuple[str, str, Identity]]:
    """Group, row and subject of all pieces in the order in which they are made.

    of_each: identities of each noun in the rows that are not OF_BOTH_GROUPS.
    """
    for name in ROWS:
        both = name in OF_BOTH_GROUPS
        for group in GROUPS if both else ("stage3",):
            own = subjects_of(world, group, reported(name))
            count = len(own) // len(GROUPS[group])  # of each noun
            yield from ((group, name, x) for number, x in enumerate(own) if both or number % count < of_each)


def reported(name: str) -> bool:
    """Whether a row is of the subjects that results are told of, not of those that settings are chosen by."""
    return not name.startswith("to choose/")


def kept(folder: Path, group: str, name: str, identity: Identity) -> Path:
    return folder / "rows" / group / name / f"{name_of(identity)}.json"


def finished(folder: Path, world: EmojiWorld) -> dict[tuple[str, str], BenchmarkRow]:
    """The rows as far as they are made."""
    found: dict[tuple[str, str], tuple[dict[str, list[float]], list[Identity]]] = {}
    for group, name, identity in pieces(world):
        path = kept(folder, group, name, identity)
        if path.exists():
            values, subjects = found.setdefault((group, name), ({}, []))
            own = json.loads(path.read_text())["values"]
            for metric, numbers in own.items():
                values.setdefault(metric, []).extend(numbers)
            subjects += [identity] * len(own["similarity"])
    return {
        (group, name): BenchmarkRow(name, {x: np.array(y) for x, y in values.items()}, subjects=subjects)
        for (group, name), (values, subjects) in found.items()
    }


def table(folder: Path, world: EmojiWorld, say: Callable[[str], None]) -> None:
    """Each row, and its difference to what it began with over the subjects that both have; intervals draw subjects."""
    rows = finished(folder, world)
    for (group, name), row in rows.items():
        say(json.dumps({"group": group, **row.summary()}))
        for base in compared_with(name):
            before = rows.get((group, base))
            if before is None:
                continue
            both = set(row.subjects) & set(before.subjects)
            one, other = ([x in both for x in found.subjects] for found in (row, before))
            subjects = [x for x in row.subjects if x in both]
            differences = {
                metric: interval(row.values[metric][one] - before.values[metric][other], subjects)
                for metric in row.values
            }
            say(json.dumps({"group": group, "row": f"{name} minus {base}", "subjects": len(both), **differences}))


def compared_with(name: str) -> list[str]:
    """The rows that a row is told the difference to: what it began with, and what it would be measured against."""
    asked = name.partition(",")[0]
    if asked in ("others", "text"):
        found = [asked, name.removesuffix(" with general data")]
    elif asked in ("before", "to choose/before"):
        found = []
    elif not reported(name):
        found = ["to choose/before", asked if asked != name else "to choose/20 steps"]
    elif name.endswith("without noun"):
        found = ["before, without noun", "tuned"]
    else:
        found = ["before", "tuned", name.removesuffix(" with general data")]
    return [base for base in dict.fromkeys(found) if base != name]
