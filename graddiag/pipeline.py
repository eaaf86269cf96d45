"""The whole path: two sets, a model, a report."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

from torch.optim import Optimizer

from graddiag.capacity import check_capacity
from graddiag.data import Source
from graddiag.edits import edits_of
from graddiag.encoding import EncodedSet, match_targets
from graddiag.errors import UsageError
from graddiag.extraction import BATCH_TOKENS, MAX_NONFINITE, check_safety_given, state_for
from graddiag.files import disk_named, write_json
from graddiag.pilot import Choice, choose, kept_choice
from graddiag.planning import Plan, plan, size_of
from graddiag.preparation import NOTES_FILE, How, Input, Prepared, chosen_by_user, prepare, settle
from graddiag.projection import make_projector
from graddiag.reporting import (
    AUDIT,
    EDITED_AUDIT,
    EDITED_PAIRS,
    PAIRS,
    Analysis,
    Result,
    conclude,
    engine_notes,
    forget_run,
    save_run,
)
from graddiag.running import Run, couples, turns_for
from graddiag.signals import PairProducts, Signals
from graddiag.strangers import measure_strangers
from graddiag.token_texts import keep_texts

PAIR_KINDS = ("exact", "projected")


def compare(
    left: Input,
    right: Input,
    *,
    safety: Input | None = None,
    controls: Mapping[str, Input] | None = None,
    strip_left: str | None = None,
    strip_right: str | None = None,
    append_left: str | None = None,
    append_right: str | None = None,
    pairs: str = "exact",
    center: bool = False,
    token_scores: bool = False,
    optimizer: Optimizer | str | Path | None = None,
    mean_memory: str | int | None = None,
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
    `limit`, `max_length`, `cluster`, `dtype`, `device`, `seed` and so on. Where neither `projection` nor `dim` is given
    and no set is saved signals, a pilot chooses them (`pilot.choose`). The same call again continues an interrupted
    run, with the same choice. With `token_scores`, the saved signals of all sets but safety have their product with the
    mean safety gradient by position. With an `optimizer` (live, or where its state is saved: a file, or a Trainer's
    checkpoint folder), alignment is also that of what each row adds to Adam's next step. Where the mean safety gradient
    needs more than `mean_memory` bytes (default: half of what is free), blocks take turns, see `running.Run`.

    With `strip_left` and so on, a text is taken from the end of every last user turn of that side, or put there (see
    `Edit`), and the same comparison runs once more with these prompts: `edited/...` in the summary. A side that is not
    edited keeps its signals; only exact products of pairs need its gradients again.

    Raises UsageError, DataError or ResourceError with what to do.
    """
    check_safety_given(safety is not None, token_scores=token_scores, optimizer=optimizer is not None)
    if pairs not in PAIR_KINDS:
        raise UsageError(f"There is no --pairs {pairs!r}. Allowed: {', '.join(PAIR_KINDS)}.")
    edits = edits_of(strip_left=strip_left, strip_right=strip_right, append_left=append_left, append_right=append_right)
    prepared = prepare(_roles(left, right, safety, controls), edits=edits, **how)
    folder = Path(out) if out else default_out(prepared.name("left"), prepared.name("right"), prepared.model)
    if overwrite:
        forget_run(folder)
    found, choice = _Found({}, {}, {}), None
    engine: tuple[str, ...] = ()
    if _leaves_the_choice(prepared, how):
        prepared, choice = _chosen(prepared, folder, batch_tokens=batch_tokens, overwrite=overwrite, quiet=quiet)
    extractor = settle(prepared, folder, batch_tokens=batch_tokens, overwrite=overwrite)
    if extractor:
        check_capacity(size_of(extractor, prepared.encoded, prepared.saved))
        has_safety = "safety" in prepared.encoded
        check_safety_given(has_safety, token_scores=token_scores, optimizer=optimizer is not None)
        state = state_for(extractor, optimizer)
        turns = turns_for(extractor, folder, mean_memory, safety=has_safety, optimizer=state is not None)
        run = Run(extractor, folder, batch_tokens, overwrite, quiet, max_nonfinite, token_scores, state, turns)
        found = _measured(run, prepared.encoded, exact_pairs=pairs == "exact")
        engine = tuple(dict.fromkeys((*extractor.notes, *(() if overwrite else engine_notes(folder)))))
    kept = Analysis(
        center=center,
        seed=how.get("seed", 0),
        controls=tuple(controls or {}),
        notes=tuple(dict.fromkeys((*prepared.notes, *([choice.note] if choice and choice.note else [])))),
        engine=engine,
        command=command,
        exact_pairs=bool(found.products),
        edits=edits,
        strangers=AUDIT in found.strangers,
        edited_strangers=EDITED_AUDIT in found.strangers,
    )
    tables = {**prepared.saved, **found.tables}
    keep_texts(folder, prepared.texts)
    save_run(folder, tables, list(prepared.saved), kept, overwrite=overwrite)
    return conclude(tables, found.products, kept, folder, strangers=found.strangers, figures=figures)


@dataclass(frozen=True)
class _Found:
    """What was measured: tables by role, exact products of pairs and of rows that are no partners, by their folder."""

    tables: Mapping[str, Signals]
    products: Mapping[str, PairProducts]
    strangers: Mapping[str, PairProducts]


def _measured(run: Run, encoded: Mapping[str, EncodedSet], *, exact_pairs: bool) -> _Found:
    """All sets; and where rows are projected, the exact products that the projection is audited with."""
    done = run.all(encoded, exact_pairs=exact_pairs)
    projected = run.extractor.space.projection != "exact"
    strangers = _strangers(run, encoded, exact_pairs=exact_pairs) if projected else {}
    return _Found(done.tables, done.products, strangers)


def _strangers(run: Run, encoded: Mapping[str, EncodedSet], *, exact_pairs: bool) -> dict[str, PairProducts]:
    """Exact products of a few rows that are no partners, by their folder, of each comparison measured here."""
    audit_of = {PAIRS: AUDIT, EDITED_PAIRS: EDITED_AUDIT}
    found = {}
    for folder, roles in couples(encoded).items():
        sides = [encoded[role] for role in roles]
        left, right = match_targets(*sides) if exact_pairs else sides
        at = run.folder / audit_of[folder]
        found[audit_of[folder]] = measure_strangers(
            run.extractor, left, right, at, batch_tokens=run.batch_tokens, overwrite=run.overwrite
        )
    return {name: products for name, products in found.items() if products is not None}


@dataclass(frozen=True)
class Extracted:
    """Saved signals of one set: the folder, the table, and what a reader must know of it."""

    out: Path
    signals: Signals
    warnings: tuple[str, ...]


def extract_to(
    source: Source,
    *,
    safety: Source | None = None,
    token_scores: bool = False,
    optimizer: Optimizer | str | Path | None = None,
    mean_memory: str | int | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    max_nonfinite: float = MAX_NONFINITE,
    quiet: bool = True,
    **how: Unpack[How],
) -> Extracted:
    """Signals of one set, saved in the folder `out`. Continues an interrupted run.

    With a `safety` set, whose own signals are saved inside that folder, rows have their exact products with its mean
    gradient; with `token_scores` these by position too, with an `optimizer` those of its steps too.
    """
    check_safety_given(safety is not None, token_scores=token_scores, optimizer=optimizer is not None)
    prepared = prepare({"set": source} | ({} if safety is None else {"safety": safety}), **how)
    check_safety_given("safety" in prepared.encoded, token_scores=token_scores, optimizer=optimizer is not None)
    if prepared.extractor is None or "set" in prepared.saved:
        raise UsageError(f"{source} holds saved signals already: there is nothing to extract.")
    folder = Path(out) if out else default_out(prepared.name("set"), prepared.model)
    extractor = settle(prepared, folder, batch_tokens=batch_tokens, overwrite=overwrite)
    assert extractor is not None
    state = state_for(extractor, optimizer)
    turns = turns_for(extractor, folder, mean_memory, safety=safety is not None, optimizer=state is not None)
    run = Run(extractor, folder, batch_tokens, overwrite, quiet, max_nonfinite, token_scores, state, turns)
    signals = run.all(prepared.encoded, exact_pairs=False).tables["set"]
    notes = (*prepared.notes, *extractor.notes)
    keep_texts(folder, prepared.texts)
    with disk_named(folder):
        write_json(folder / NOTES_FILE, {"notes": notes})
    return Extracted(folder, signals, (*signals.warnings, *notes))


def plan_compare(
    left: Input,
    right: Input,
    *,
    safety: Input | None = None,
    controls: Mapping[str, Input] | None = None,
    strip_left: str | None = None,
    strip_right: str | None = None,
    append_left: str | None = None,
    append_right: str | None = None,
    pairs: str = "exact",
    token_scores: bool = False,
    optimizer: Optimizer | str | Path | None = None,
    mean_memory: str | int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    **how: Unpack[How],
) -> Plan:
    """What `compare` with the same arguments would cost; measures a few rows for the rate, and writes nothing."""
    edits = edits_of(strip_left=strip_left, strip_right=strip_right, append_left=append_left, append_right=append_right)
    prepared = prepare(_roles(left, right, safety, controls), edits=edits, **how)
    if prepared.extractor is None:
        raise UsageError("All sets are saved signals already: there is nothing to measure, so nothing to plan.")
    choice = None
    if _leaves_the_choice(prepared, how):
        prepared, choice = _chosen(prepared, None, batch_tokens=batch_tokens)
    assert prepared.extractor is not None
    measured, adam = "safety" in prepared.encoded, optimizer is not None
    check_safety_given(measured, token_scores=token_scores, optimizer=adam)
    turns = turns_for(prepared.extractor, None, mean_memory, safety=measured, optimizer=adam)
    exact = pairs == "exact"
    size = size_of(prepared.extractor, prepared.encoded, prepared.saved)
    cost = plan(
        prepared.extractor, prepared.encoded, turns, size, batch_tokens=batch_tokens, exact_pairs=exact, adam=adam
    )
    return replace(cost, projection=choice.sentence, note=choice.note) if choice else cost


def _leaves_the_choice(prepared: Prepared, how: How) -> bool:
    """Whether a pilot is to choose the projection: nobody says which, and no saved table has one."""
    return prepared.extractor is not None and not prepared.saved and not chosen_by_user(how)


def _chosen(
    prepared: Prepared, folder: Path | None, *, batch_tokens: int, overwrite: bool = False, quiet: bool = True
) -> tuple[Prepared, Choice]:
    """The same sets, to be measured with the projection that the pilot chose, and that choice; kept in `folder`."""
    extractor, encoded = prepared.extractor, prepared.encoded
    assert extractor is not None
    if folder is None:
        choice = choose(extractor, encoded, batch_tokens=batch_tokens)
    else:
        choice = kept_choice(folder, extractor, encoded, batch_tokens=batch_tokens, overwrite=overwrite)
    if not quiet:
        print(choice.sentence, file=sys.stderr)
    projector = make_projector(choice.kind, choice.dim, extractor.space.seed)
    return replace(prepared, extractor=extractor.with_projector(projector)), choice


def default_out(*names: str) -> Path:
    """Where a run goes if nobody says otherwise: runs/ and the names."""
    name = "-".join(names)
    return Path("runs") / "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")


def _roles(left: Input, right: Input, safety: Input | None, controls: Mapping[str, Input] | None) -> dict[str, Input]:
    for name in controls or {}:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UsageError(f"A control set cannot be called {name!r}: use letters, digits, '_', '-' and '.'.")
    roles = {"left": left, "right": right} | ({"safety": safety} if safety is not None else {})
    return roles | {f"control-{name}": one for name, one in (controls or {}).items()}
