"""Which sets three models are read on: what plays which part, each set once, prompts with other openings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from graddiag.data import ExampleSet, Source, read_set
from graddiag.erosion_setting import OPENINGS, opened_name
from graddiag.errors import DataError, UsageError
from graddiag.openings import with_opening

Given = Source | None
OPENED = ("safety", "benign")  # the parts whose prompts are read with both openings: harmful, then harmless requests
STAND_IN, MATCHED = "insecure", "secure"  # vulnerable answers, and secure ones to the same requests


@dataclass(frozen=True)
class ErosionSets:
    """The sets to be read, `own` with their own answers and `opened` with openings in their place; `parts` says which
    set plays a part, and `controls` are the further harmless ones."""

    own: tuple[ExampleSet, ...]
    opened: tuple[ExampleSet, ...]
    parts: Mapping[str, str]
    controls: tuple[str, ...]
    notes: tuple[str, ...]


def read_erosion_sets(
    given: Mapping[str, Given],
    controls: Mapping[str, Given] | None,
    *,
    openings: tuple[str, str],
    k: int | None = None,
    limit: int | None = None,
    cluster: str | None = None,
    skip_bad_rows: bool = False,
) -> ErosionSets:
    """The sets of these parts, without those that are None; a set that plays several parts is there once. `cluster`
    says what a cluster is in all of them, as for `read_set`.

    Raises UsageError where no set is left, or two different ones have one name, DataError for rows that cannot be used
    and for a set compared in `k` components that has no more rows than that.
    """
    chosen = {part: one for part, one in given.items() if one is not None}
    further = {c: s for c, s in _controls(chosen, controls).items() if s is not None}
    if not chosen:
        raise UsageError("There is no set to read the models on. Name one: harmful, benign, safety, or left and right.")
    shelf = _Shelf({}, {}, limit, cluster, skip_bad_rows)
    parts = {part: shelf.name(part, one) for part, one in chosen.items()}
    extra = tuple(dict.fromkeys(shelf.name(c, one) for c, one in further.items()))
    own = shelf.sets
    _check_rows(own, parts, k)
    opened = [
        with_opening(own[parts[part]], text, opened_name(parts[part], which))
        for part in OPENED
        if "safety" in parts and part in parts
        for which, text in zip(OPENINGS, openings, strict=True)
    ]
    clash = {s.name for s in opened} & own.keys()
    if clash:
        raise UsageError(f"A set is called {min(clash)!r}, which is what a set with openings is called. Rename it.")
    notes = tuple(n for s in own.values() for n in s.notes) + _stand_in(chosen)
    return ErosionSets(tuple(own.values()), tuple(opened), parts, extra, notes)


@dataclass(frozen=True)
class _Shelf:
    """The sets that were read, by name, and the sources that they came from."""

    sets: dict[str, ExampleSet]
    sources: dict[str, Source]
    limit: int | None
    cluster: str | None
    skip_bad_rows: bool

    def name(self, part: str, source: Source) -> str:
        """The name of the set of a source, read if it is not there yet. Raises UsageError for a name that is taken."""
        for name, known in self.sources.items():
            if known is source or (isinstance(source, (str, Path)) and str(known) == str(source)):
                return name
        read = read_set(source, limit=self.limit, cluster=self.cluster, skip_bad_rows=self.skip_bad_rows)
        name = _plain(part if read.name == "examples" else read.name)
        if name in self.sets:
            raise UsageError(
                f"Two different sets are called {name!r} ({self.sources[name]!r} and {source!r}). Rename one file."
            )
        self.sets[name], self.sources[name] = replace(read, name=name), source
        return name


def _plain(name: str) -> str:
    """The name as a part of a folder's name and of a key."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.") or "set"


def _check_rows(sets: Mapping[str, ExampleSet], parts: Mapping[str, str], k: int | None) -> None:
    for part in ("left", "right"):
        if k is not None and part in parts and len(sets[parts[part]].examples) <= k:
            n = len(sets[parts[part]].examples)
            raise DataError(
                f"{parts[part]} ({part}) has {n} rows, and {k} components need more rows than that. Give more rows, or "
                "a smaller k."
            )


def _controls(chosen: Mapping[str, Source], controls: Mapping[str, Given] | None) -> Mapping[str, Given]:
    if controls is not None:
        return controls
    return {MATCHED: MATCHED} if _stands_in(chosen) else {}


def _stands_in(chosen: Mapping[str, Source]) -> bool:
    harmful = chosen.get("harmful")
    return isinstance(harmful, str) and harmful == STAND_IN


def _stand_in(chosen: Mapping[str, Source]) -> tuple[str, ...]:
    if not _stands_in(chosen):
        return ()
    return (
        f"harmful: the built-in set {STAND_IN!r} (vulnerable code) stands for answers that should not be given; what "
        "it shows is about code. Name answers of your own to harmful requests for more.",
    )
