"""The whole path: two sets, a model, a report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from graddiag.data import Source
from graddiag.encoding import EncodedSet, match_targets
from graddiag.errors import UsageError
from graddiag.extraction import BATCH_TOKENS, MAX_NONFINITE, Chunk, Job, check_finite
from graddiag.extractor import Extractor
from graddiag.files import disk_named, write_json
from graddiag.mean_gradient import KnownMean
from graddiag.measurement import Place, measure
from graddiag.planning import Plan, plan
from graddiag.preparation import NOTES_FILE, How, Input, prepare
from graddiag.reporting import AUDIT, Analysis, Result, conclude, engine_notes, save_run
from graddiag.signals import PairProducts, Signals
from graddiag.strangers import measure_strangers

PAIRS = ("exact", "projected")


def compare(
    left: Input,
    right: Input,
    *,
    safety: Input | None = None,
    controls: Mapping[str, Input] | None = None,
    pairs: str = "exact",
    center: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    figures: bool = True,
    batch_tokens: int = BATCH_TOKENS,
    max_nonfinite: float = MAX_NONFINITE,
    quiet: bool = True,
    command: str = "",
    **how: Unpack[How],
) -> Result:
    """Signals of both sets, every analysis that the inputs allow, one report in the folder `out`.

    A set is a built-in name, a file, a hub id, a folder of saved signals, rows, or a table that was extracted before.
    `how` (see `How`) says with which model and blocks: `model`, `tokenizer`, `blocks`, `target`, `projection`, `dim`,
    `limit`, `max_length`, `cluster`, `dtype`, `device`, `seed` and so on. The same call again continues an
    interrupted run.

    Raises UsageError, DataError or ResourceError with what to do.
    """
    if pairs not in PAIRS:
        raise UsageError(f"There is no --pairs {pairs!r}. Allowed: {', '.join(PAIRS)}.")
    prepared = prepare(_roles(left, right, safety, controls), **how)
    names = (prepared.name("left"), prepared.name("right"), prepared.model)
    folder = Path(out) if out else default_out(*names)
    tables, products, strangers = dict(prepared.saved), None, None
    engine: tuple[str, ...] = ()
    if prepared.extractor:
        run = _Run(prepared.extractor, folder, batch_tokens, overwrite, quiet, max_nonfinite)
        measured, products, strangers = run.all(prepared.encoded, exact_pairs=pairs == "exact")
        tables |= measured
        engine = tuple(dict.fromkeys((*prepared.extractor.notes, *(() if overwrite else engine_notes(folder)))))
    kept = Analysis(
        center=center,
        seed=how.get("seed", 0),
        controls=tuple(controls or {}),
        notes=tuple(dict.fromkeys(prepared.notes)),
        engine=engine,
        command=command,
        exact_pairs=products is not None,
        strangers=strangers is not None,
    )
    save_run(folder, tables, list(prepared.saved), kept, overwrite=overwrite)
    return conclude(tables, products, kept, folder, strangers=strangers, figures=figures)


@dataclass(frozen=True)
class Extracted:
    """Saved signals of one set: the folder, the table, and what a reader must know of it."""

    out: Path
    signals: Signals
    warnings: tuple[str, ...]


def extract_to(
    source: Source,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    max_nonfinite: float = MAX_NONFINITE,
    quiet: bool = True,
    **how: Unpack[How],
) -> Extracted:
    """Signals of one set, saved in the folder `out`. Continues an interrupted run."""
    prepared = prepare({"set": source}, **how)
    if prepared.extractor is None:
        raise UsageError(f"{source} holds saved signals already: there is nothing to extract.")
    folder = Path(out) if out else default_out(prepared.name("set"), prepared.model)
    run = _Run(prepared.extractor, folder, batch_tokens, overwrite, quiet, max_nonfinite)
    chunk, _ = run.measure(Job.single(prepared.encoded["set"]), Place((folder,)), None)
    notes = (*prepared.notes, *prepared.extractor.notes)
    with disk_named(folder):
        write_json(folder / NOTES_FILE, {"notes": notes})
    return Extracted(folder, chunk.tables[0], (*chunk.tables[0].warnings, *notes))


def plan_compare(
    left: Input,
    right: Input,
    *,
    safety: Input | None = None,
    controls: Mapping[str, Input] | None = None,
    pairs: str = "exact",
    batch_tokens: int = BATCH_TOKENS,
    **how: Unpack[How],
) -> Plan:
    """What `compare` with the same arguments would cost; measures a few rows for the rate, and writes nothing."""
    prepared = prepare(_roles(left, right, safety, controls), **how)
    if prepared.extractor is None:
        raise UsageError("All sets are saved signals already: there is nothing to measure, so nothing to plan.")
    return plan(prepared.extractor, prepared.encoded, batch_tokens=batch_tokens, exact_pairs=pairs == "exact")


def default_out(*names: str) -> Path:
    """Where a run goes if nobody says otherwise: runs/ and the names."""
    name = "-".join(names)
    return Path("runs") / "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")


@dataclass(frozen=True)
class _Run:
    """Measures sets in the order that exact products need: safety first, its mean is what the other rows meet."""

    extractor: Extractor
    folder: Path
    batch_tokens: int
    overwrite: bool
    quiet: bool
    max_nonfinite: float

    def all(
        self, encoded: Mapping[str, EncodedSet], *, exact_pairs: bool
    ) -> tuple[dict[str, Signals], PairProducts | None, PairProducts | None]:
        """A table per role, and where both sides are measured here the exact products of the pairs and, if rows are
        projected, of a few strangers."""
        tables: dict[str, Signals] = {}
        known, products, strangers = None, None, None
        if "safety" in encoded:
            place = Place((self.folder / "safety",), mean=self.folder / "means")
            chunk, known = self.measure(Job.single(encoded["safety"]), place, None)
            tables["safety"] = chunk.tables[0]
        if "left" in encoded and "right" in encoded and exact_pairs:
            left, right = match_targets(encoded["left"], encoded["right"])
            encoded = {**encoded, "left": left, "right": right}
            place = Place((self.folder / "left", self.folder / "right"), self.folder / "pairs")
            chunk, _ = self.measure(Job.paired(left, right), place, known)
            (tables["left"], tables["right"]), products = chunk.tables, chunk.pairs
        for role in encoded:
            if role not in tables:
                chunk, _ = self.measure(Job.single(encoded[role]), Place((self.folder / role,)), known)
                tables[role] = chunk.tables[0]
        if "left" in encoded and "right" in encoded and self.extractor.projector.kind != "exact":
            strangers = self.strangers(encoded["left"], encoded["right"])
        return tables, products, strangers

    def strangers(self, left: EncodedSet, right: EncodedSet) -> PairProducts | None:
        """Exact products of a few rows that are no partners."""
        return measure_strangers(
            self.extractor,
            left,
            right,
            self.folder / AUDIT,
            seed=self.extractor.projector.seed,
            batch_tokens=self.batch_tokens,
            overwrite=self.overwrite,
        )

    def measure(self, job: Job, place: Place, known: KnownMean | None) -> tuple[Chunk, KnownMean | None]:
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


def _roles(left: Input, right: Input, safety: Input | None, controls: Mapping[str, Input] | None) -> dict[str, Input]:
    for name in controls or {}:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UsageError(f"A control set cannot be called {name!r}: use letters, digits, '_', '-' and '.'.")
    roles = {"left": left, "right": right} | ({"safety": safety} if safety is not None else {})
    return roles | {f"control-{name}": one for name, one in (controls or {}).items()}
