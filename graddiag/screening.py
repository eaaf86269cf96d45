"""A set of any size ranked by what learning its rows does to safety: its gradients are measured and let go."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Unpack

import numpy as np
from transformers import PreTrainedTokenizerBase

from graddiag.answers import count_repeats, told
from graddiag.data import ExampleSet, Source
from graddiag.encoding import EncodedSet, encode
from graddiag.errors import DataError, UsageError
from graddiag.extraction import BATCH_TOKENS, MAX_NONFINITE
from graddiag.jobs import Job
from graddiag.measurement import Place, measure
from graddiag.parts import PART_ROWS, check_source, read_parts, rows_as_json, set_name
from graddiag.preparation import How, Prepared, prepare
from graddiag.ranking import Scalars, check_choice, rank_rows
from graddiag.reference_means import Known, Saving, measure_references
from graddiag.screen_report import Screened, forget_screening, write_screening
from graddiag.screen_verdict import Screening

DROP = 0.1  # share of the rows to drop where nobody says
_NOTES = 8  # later parts of a long set would say the same again


def screen(
    source: Source,
    *,
    safety: Source,
    harmful: Source | None = None,
    controls: Mapping[str, Source] | None = None,
    by: str | None = None,
    drop: float = DROP,
    out: str | Path | None = None,
    overwrite: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    max_nonfinite: float = MAX_NONFINITE,
    part_rows: int = PART_ROWS,
    quiet: bool = True,
    command: str = "",
    **how: Unpack[How],
) -> Screened:
    """Every row of a set ranked by what learning it does to the loss on the safety set, and the rows to keep and drop.

    `harmful` is a set of answers that no model should give, for the matching score; `controls` are harmless sets,
    measured alike. `by` is what rows are ranked by (see `ranking.Ranking`), `drop` the share (0..1) of rows to drop.
    All products are exact. The set is read, measured and let go `part_rows` rows at a time: in memory stay some
    numbers per row, and the mean gradients of the halves of the safety set and of the harmful one. The same call
    again continues an interrupted run.

    Raises UsageError, DataError or ResourceError with what to do.
    """
    chosen = dict(controls or {})
    check_choice(by, drop, harmful=harmful is not None)
    for one in (source, *chosen.values()):
        check_source(one)
    name = set_name(source)
    prepared = prepare({"safety": safety} | ({} if harmful is None else {"harmful": harmful}), **_exact(how))
    folder = Path(out) if out else default_folder(name, prepared.model)
    saving = Saving(batch_tokens, overwrite, quiet)
    if overwrite:
        forget_screening(folder)
    known = _references(prepared, folder, saving, max_nonfinite)
    parts = _Parts(known, prepared, how, saving, max_nonfinite, part_rows)
    started = time.monotonic()
    rows = parts.rows(source, folder / "rows", how.get("cluster"))
    seconds, fresh = time.monotonic() - started, known.extractor.rows_measured
    ranking = rank_rows(rows, known.means, by=by)
    control_rows = {c: parts.rows(one, folder / f"control-{c}", None) for c, one in chosen.items()}
    found = Screening(
        ranking,
        {c: rank_rows(r, known.means, by=ranking.by) for c, r in control_rows.items()},
        name=name,
        safety=prepared.name("safety"),
        share=drop,
        rate=fresh / seconds if fresh else math.nan,
        warnings=tuple(dict.fromkeys((*prepared.notes, *known.notes, *parts.notes, *known.extractor.notes))),
        provenance=_provenance(known, prepared, command),
    )
    return write_screening(found, folder, rows_as_json(source, how.get("limit")))


def default_folder(*names: str) -> Path:
    """Where a screening goes if nobody says otherwise."""
    name = "-".join(("screen", *names))
    return Path("runs") / "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")


@dataclass(frozen=True)
class _Parts:
    """Sets on their way through the model, some rows at a time; `notes` gather what must be said of them."""

    known: Known
    prepared: Prepared
    how: How
    saving: Saving
    max_nonfinite: float
    part_rows: int
    notes: list[str] = field(default_factory=list)

    def rows(self, source: Source, folder: Path, cluster: str | None) -> Scalars:
        """The scalars of a set's rows, in its order; each part is saved in a folder of its own.

        Raises DataError for an id that occurs twice, and for too many rows that are not finite.
        """
        limit, skip = self.how.get("limit"), self.how.get("skip_bad_rows", False)
        scalars: list[Scalars] = []
        seen: set[str] = set()
        read = read_parts(source, rows=self.part_rows, limit=limit, cluster=cluster, skip_bad_rows=skip)
        for k, examples in enumerate(read):
            scalars.append(self._part(self._encoded(examples, skip=skip), folder / f"part-{k:05d}"))
            twice = seen.intersection(scalars[-1].ids)
            if twice:
                raise DataError(f"{examples.name}: the id {min(twice)!r} occurs twice. Make ids unique.")
            seen.update(scalars[-1].ids)
        whole = Scalars.concat(scalars)
        self._check_finite(whole, set_name(source))
        self._note(_repeats(whole, set_name(source)))
        return whole.clustered()

    def _encoded(self, examples: ExampleSet, *, skip: bool) -> EncodedSet:
        tokenizer, space = self.prepared.tokenizer, self.known.extractor.space
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        self._note(examples.notes)
        return encode(
            examples, tokenizer, target=space.target, max_length=space.max_length, skip_bad_rows=skip
        )  # fmt: skip

    def _part(self, encoded: EncodedSet, folder: Path) -> Scalars:
        chunk, _ = measure(self.known.extractor, Job.single(encoded), Place((folder,)), **vars(self.saving))
        table = chunk.tables[0]
        self._note([*encoded.notes, *table.warnings])
        overlap = len({r.digest for r in self.prepared.encoded["safety"].rows}.intersection(table.digests))
        if overlap:
            self._note([f"{encoded.name}: {overlap} rows are in the safety set too, and aligned with a mean of them."])
        return Scalars.of(table)

    def _check_finite(self, rows: Scalars, name: str) -> None:
        bad = [i for i, ok in zip(rows.ids, rows.finite, strict=True) if not ok]
        if len(bad) == len(rows) or len(bad) > self.max_nonfinite * len(rows):
            raise DataError(
                f"{name}: {len(bad)} of {len(rows)} rows have a loss or gradient that is not finite (ids "
                f"{', '.join(bad[:5])}); at most {self.max_nonfinite:.0%} may (--max-nonfinite). Try --dtype float32."
            )

    def _note(self, notes: Sequence[str]) -> None:
        self.notes.extend([n for n in notes if n not in self.notes][: max(_NOTES - len(self.notes), 0)])


def _repeats(rows: Scalars, name: str) -> list[str]:
    """What must be said where rows have the answer of another row."""
    n, answers = count_repeats(np.unique(np.array(rows.answers), return_inverse=True)[1])
    return [told(name, len(rows), n, answers, named=rows.names_clusters)] if n else []


def _exact(how: How) -> How:
    """Nothing is projected here; the option `cluster` speaks of the screened set's columns only."""
    exact = how.copy()
    exact["projection"] = "exact"
    exact["cluster"] = None
    return exact


def _references(prepared: Prepared, folder: Path, saving: Saving, max_nonfinite: float) -> Known:
    """The means of the safety and the harmful set. Raises UsageError for saved signals, which hold none."""
    if prepared.saved or prepared.extractor is None:
        role = next(iter(prepared.saved))
        raise UsageError(
            f"The {role} set {prepared.name(role)!r} is a folder of saved signals, and these hold no mean gradient. "
            "Give the rows themselves: a name, a file or a hub id."
        )
    return measure_references(
        prepared.extractor, prepared.encoded, folder, saving, max_nonfinite=max_nonfinite
    )  # fmt: skip


def _provenance(known: Known, prepared: Prepared, command: str) -> dict[str, object]:
    origin = known.extractor.provenance("")
    return {
        "graddiag": version("graddiag"),
        "command": command,
        "model": origin.model,
        "revision": origin.revision,
        "weights": origin.weights,
        "versions": dict(origin.versions),
        "space": asdict(known.extractor.space),
        "products": "exact",
        "references": {role: {"set": one.name, "rows": len(one.rows)} for role, one in prepared.encoded.items()},
        "finite rows of each reference mean": known.means.n,
    }
