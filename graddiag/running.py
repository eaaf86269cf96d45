"""All sets of a run measured in the order that exact products need; blocks take turns where their means do not fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from graddiag._shards import Identity
from graddiag.adam import OptimizerState
from graddiag.edits import SIDES, SUFFIX
from graddiag.encoding import EncodedSet, match_targets
from graddiag.extraction import check_finite
from graddiag.extractor import Extractor
from graddiag.files import disk_named, read_json, write_json
from graddiag.jobs import Chunk, Job
from graddiag.mean_gradient import KnownMean
from graddiag.measurement import Place, measure
from graddiag.signals import PairProducts, Signals
from graddiag.store import is_store, save_pairs, save_signals
from graddiag.turns import groups, parse_bytes, products_side_by_side, side_by_side

TURNS_FILE = "turns.json"
FREE_SHARE = 0.5  # of the memory that is free: the rest is for the model's activations and the buffers of a batch

Turns = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Measurements:
    """A table per role, and the exact products of the pairs where both sides were measured here, by their folder."""

    tables: Mapping[str, Signals]
    products: Mapping[str, PairProducts]


@dataclass(frozen=True)
class Run:
    """Measures sets: safety first, its mean is what the other rows meet.

    With several `turns`, each group of blocks is measured as if it were all (folders `turn-1`, `turn-2`, ...): the mean
    safety gradient of the group, then the other sets against it, with their norms, rows and products of pairs, the
    backward pass stopping below the group's lowest block. Only one group's mean is in memory. The tables are then put
    side by side; that gives what one turn would have given. Each turn costs a forward pass more, and can be continued.
    """

    extractor: Extractor
    folder: Path
    batch_tokens: int
    overwrite: bool
    quiet: bool
    max_nonfinite: float
    token_scores: bool = False
    optimizer: OptimizerState | None = None
    turns: Turns = ()

    def all(self, encoded: Mapping[str, EncodedSet], *, exact_pairs: bool) -> Measurements:
        """All sets by role; a role "set" is saved in the folder itself, any other in a folder of its name."""
        if len(self.turns) < 2:
            return self._together(encoded, exact_pairs=exact_pairs)
        parts = []
        with disk_named(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / TURNS_FILE, {"turns": self.turns})
        for k, names in enumerate(self.turns, start=1):
            some = self.extractor.only(names)
            part = replace(self, extractor=some, folder=self.folder / f"turn-{k}", turns=())
            parts.append(part._together(encoded, exact_pairs=exact_pairs))
            self.extractor.notes.extend(n for n in some.notes if n not in self.extractor.notes)
        return self._joined(parts)

    def _joined(self, parts: Sequence[Measurements]) -> Measurements:
        """The turns' tables side by side, saved where those of one turn would be."""
        tables = {role: side_by_side([p.tables[role] for p in parts]) for role in parts[0].tables}
        n = int(tables["safety"].finite.sum())
        for role, table in tables.items():
            tables[role] = replace(table, reference=table.reference and replace(table.reference, n=n))
        for role, table in tables.items():
            check_finite(table, self.max_nonfinite)
            save_signals(self._place(role), table, overwrite=self.overwrite)
        products = {}
        for folder, (a, b) in couples(tables).items():
            if folder in parts[0].products:
                products[folder] = products_side_by_side([p.products[folder] for p in parts])
                self._save_products(folder, tables[a], tables[b], products[folder])
        return Measurements(tables, products)

    def _save_products(self, folder: str, left: Signals, right: Signals, products: PairProducts) -> None:
        names = f"{left.provenance.data} and {right.provenance.data}"
        digest = dict(zip(right.ids, right.digests, strict=True))
        of_left = zip(left.ids, left.clusters, left.digests, strict=True)
        known = set(products.left_ids)
        rows = [(i, cluster, f"{d} {digest[i]}") for i, cluster, d in of_left if i in known]
        about = Identity(left.space, replace(left.provenance, data=names))
        save_pairs(self.folder / folder, about, rows, products, overwrite=self.overwrite)

    def _together(self, encoded: Mapping[str, EncodedSet], *, exact_pairs: bool) -> Measurements:
        """All blocks of the extractor at once."""
        tables: dict[str, Signals] = {}
        known, products, sets = None, {}, dict(encoded)
        if "safety" in encoded:
            place = Place((self._place("safety"),), mean=self.folder / "means")
            chunk, mean = self._measure(Job.single(encoded["safety"]), place, None)
            tables["safety"] = chunk.tables[0]
            assert mean is not None
            state = self.optimizer.at_hand(self.extractor.blocks) if self.optimizer else None
            known = mean.wanting(token_scores=self.token_scores, optimizer=state)
        for folder, roles in couples(encoded).items() if exact_pairs else ():
            new = [r for r in roles if r not in tables]
            matched = dict(zip(roles, match_targets(*(sets[r] for r in roles)), strict=True))
            sets |= {r: matched[r] for r in new}
            job = Job.paired(*(sets[r] for r in roles)).touching([k for k, r in enumerate(roles) if r in new])
            place = Place(tuple(self._place(r) if r in new else None for r in roles), self.folder / folder)
            chunk, _ = self._measure(job, place, known)
            tables |= zip(new, chunk.tables, strict=True)
            products[folder] = chunk.pairs
        for role in encoded:
            if role not in tables:
                chunk, _ = self._measure(Job.single(encoded[role]), Place((self._place(role),)), known)
                tables[role] = chunk.tables[0]
        return Measurements(tables, products)

    def _place(self, role: str) -> Path:
        return self.folder if role == "set" else self.folder / role

    def _measure(self, job: Job, place: Place, known: KnownMean | None) -> tuple[Chunk, KnownMean | None]:
        """The job, saved and checked for rows that are not finite."""
        result = measure(
            self.extractor,
            job,
            place,
            batch_tokens=self.batch_tokens,
            known=known,
            overwrite=self.overwrite,
            quiet=self.quiet,
        )
        for table in result[0].tables:
            check_finite(table, self.max_nonfinite)
        return result


def couples(roles: Collection[str]) -> dict[str, tuple[str, str]]:
    """The two sides of each comparison among the roles that are there, by the folder of their exact products.

    An edited side takes the place of the side as it was given; where that one is saved signals, there are no products.
    """
    out = {"pairs": SIDES}
    left, right = (s + SUFFIX if s + SUFFIX in roles else s for s in SIDES)
    if (left, right) != SIDES:
        out["pairs" + SUFFIX] = (left, right)
    return {folder: pair for folder, pair in out.items() if set(pair) <= set(roles)}


def turns_for(
    extractor: Extractor, folder: Path | None, mean_memory: str | int | None, *, safety: bool, optimizer: bool
) -> Turns:
    """The groups of blocks that take turns; one of all blocks where their means fit, or no safety set is measured.

    A parameter takes the bytes of the safety sum and of the mean, and with an optimizer those of its two moments. The
    budget is `mean_memory`, else what an earlier call of the same run in `folder` settled on, else half of the memory
    that is free on the first block's device. Raises UsageError where it is no number of bytes, or too small for one
    block.
    """
    names = tuple(b.block.name for b in extractor.blocks)
    if not safety:
        return (names,)
    if mean_memory is None and folder and (settled := _settled(folder, names)):
        return settled
    budget = (
        memory_for_means(extractor.blocks[0].parameter.device) if mean_memory is None else parse_bytes(str(mean_memory))
    )
    number = 8 if extractor.model.dtype == torch.float64 else 4  # bytes; means and moments are in float32 or better
    return groups(extractor.space.blocks, budget, number * (4 if optimizer else 2))


def _settled(folder: Path, names: tuple[str, ...]) -> Turns | None:
    """The turns that an earlier call began with, so that a continued run does not depend on what is free now."""
    if (folder / TURNS_FILE).is_file():
        kept: list[list[str]] = read_json(folder / TURNS_FILE)["turns"]  # type: ignore[assignment]
        turns = tuple(map(tuple, kept))
        return turns if tuple(n for t in turns for n in t) == names else None
    return (names,) if is_store(folder / "safety") else None


def memory_for_means(device: torch.device) -> int:
    """Half of the bytes that are free on a device."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(FREE_SHARE * free)
