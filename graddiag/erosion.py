"""Base, aligned and tuned model side by side: the whole path, from three models and some sets to a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from graddiag.analyzers import N_NULL
from graddiag.answer_tokens import check_same_answers
from graddiag.erosion_generation import Asking, check_kept, plan_generation
from graddiag.erosion_interventions import RANDOM_SUBSPACES, check_interventions, remove_shared
from graddiag.erosion_next_tokens import PROMPTS, NextTokens
from graddiag.erosion_reading import Reading
from graddiag.erosion_report import Eroded, forget_report, report_erosion
from graddiag.erosion_safety import SafetyGradient, check_gradient
from graddiag.erosion_sets import Given, read_erosion_sets
from graddiag.erosion_setting import ALIGNED, TUNED, ErosionRun, ErosionSetting, Generation, save_setting
from graddiag.erosion_weights import weights_kept
from graddiag.errors import UsageError
from graddiag.expected_tokens import keep_tokens
from graddiag.extraction import BATCH_TOKENS, MAX_NONFINITE
from graddiag.files import disk_named
from graddiag.generation import NEW_TOKENS
from graddiag.model_set import ModelSet, model_set
from graddiag.openings import COMPLYING, REFUSING


def erode(
    *,
    aligned: str | Path,
    tuned: str | Path,
    base: str | Path | None = None,
    left: Given = "insecure",
    right: Given = "educational",
    harmful: Given = "insecure",
    benign: Given = "benign",
    safety: Given = "safety",
    controls: Mapping[str, Given] | None = None,
    refusing: str = REFUSING,
    complying: str = COMPLYING,
    layers: Sequence[int] | None = None,
    k: int | None = None,
    n_null: int = N_NULL,
    weights: bool = True,
    safety_gradient: bool = False,
    mean_memory: str | int | None = None,
    lend_template: bool = False,
    revisions: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    dtype: str | None = None,
    device: str | None = None,
    limit: int | None = None,
    max_length: int | None = None,
    cluster: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    skip_bad_rows: bool = False,
    max_nonfinite: float = MAX_NONFINITE,
    seed: int = 0,
    generate: int = 0,
    temperature: float = 0.0,
    new_tokens: int = NEW_TOKENS,
    next_tokens: int = PROMPTS,
    intervene: Sequence[int] = (),
    random_subspaces: int = RANDOM_SUBSPACES,
    out: str | Path | None = None,
    overwrite: bool = False,
    figures: bool = True,
    quiet: bool = True,
    command: str = "",
) -> Eroded:
    """What fine-tuning did to an aligned model, on given sets: behaviour, refusals, alignment direction, shared
    dimension, each with its control.

    Models are names, folders or hub ids, adapters too; they are loaded one after the other. `harmful` are answers that
    should not be given, `benign` harmless ones, their control; `controls` are further harmless sets (None: `secure`
    where `harmful` is the built-in `insecure`, which has the same requests). The prompts of `safety` are the harmful
    requests of the refusal score, which compares the openings `refusing` and `complying`. `left` and `right` are the
    sets whose shifts are compared. `cluster` (COLUMN or "mod:N") says what rows of every set have in common, the unit
    of resampling. A set that is None is left out, and with it what needs it; without `base` there is
    no alignment direction. `layers` are those whose states are read (all by default), `k` the components of a subspace
    (None: counted), `n_null` the draws of each null of their overlap. With `weights` the update of the weights is
    compared too, read from the models' files a tensor at a time; where that cannot be done a warning says why. With
    `safety_gradient`, the update is also held against the mean gradient of `safety` under the aligned model, whose
    blocks take turns where their means need more than `mean_memory` (half of the free memory by default).
    `lend_template` gives the base the aligned model's tokenizer and chat template; `revisions` of hub ids are by role.

    With `generate`, every model answers the first so many prompts of `safety` and of `benign` (greedy, or drawn at the
    `temperature`, at most `new_tokens` tokens); the answers are kept in `out`, and nothing judges them. After the first
    `next_tokens` prompts of each, the most probable first tokens of the models are read.

    With `intervene`, the space that the shifts of `left` and `right` share is removed from the tuned model's states
    behind these layers, fitted on one half of the clusters and read on the other: what does that change in harmful
    answers, in harmless ones, and how much does each of `random_subspaces` of two kinds?

    Losses and states of every set are saved in `out`, in MODEL-SET folders; the same call again continues an
    interrupted run. Raises UsageError, DataError or ResourceError with what to do, before anything long where the input
    shows it.
    """
    check_draws(n_null)
    given = {"left": left, "right": right, "harmful": harmful, "benign": benign, "safety": safety}
    sets = read_erosion_sets(
        given, controls, openings=(refusing, complying), k=k, limit=limit, cluster=cluster, skip_bad_rows=skip_bad_rows
    )
    check_gradient(safety_gradient, tuple(sets.parts), weights=weights)
    models = model_set(
        base=base, aligned=aligned, tuned=tuned, lend_template=lend_template, trust_remote_code=trust_remote_code,
        revisions=revisions, dtype=dtype, device=device,
    )  # fmt: skip
    check_interventions(intervene, random_subspaces, sets.parts, layers, models.models[TUNED].n_layers)
    how = plan_generation(sets, generate, temperature=temperature, new_tokens=new_tokens, opening=refusing, seed=seed)
    length = max_length or models.max_length
    check_same_answers(models, (*sets.own, *sets.opened), max_length=length, skip_bad_rows=skip_bad_rows)
    folder = Path(out) if out else default_folder(aligned, tuned)
    _make_room(folder, how, overwrite=overwrite)
    gradient = SafetyGradient(
        sets.parts["safety"], folder, batch_tokens, max_nonfinite, mean_memory, overwrite, quiet
    ) if safety_gradient else None  # fmt: skip
    reading = Reading(
        sets, folder, layers, length, batch_tokens, max_nonfinite, skip_bad_rows, overwrite,
        quiet, Asking(sets, how, folder, quiet) if how else None, NextTokens(sets, next_tokens), gradient,
    )  # fmt: skip
    models.visit(reading.read)
    setting = replace(reading.setting((refusing, complying)), k=k, n_null=n_null, seed=seed, command=command)
    removal = remove_shared(
        ErosionRun(folder, setting), models, intervene, random_subspaces, reading.losses, batch_tokens=batch_tokens,
        overwrite=overwrite, quiet=quiet,
    )  # fmt: skip
    return _finished(reading, replace(setting, removal=removal), models, weights=weights, figures=figures)


def _make_room(folder: Path, how: Generation | None, *, overwrite: bool) -> None:
    """With `overwrite` what is there is no run any more. Raises DataError for answers that were made otherwise."""
    if overwrite:
        forget_report(folder)
    check_kept(folder, how, overwrite=overwrite)


def _finished(reading: Reading, setting: ErosionSetting, models: ModelSet, *, weights: bool, figures: bool) -> Eroded:
    """Compares the weights, writes what the report needs beside the tables, and the report.

    Nothing is refused from here on, so that the report of another run is not lost to a wrong option before.
    """
    folder, gradient, unread = reading.folder, reading.gradient, None
    forget_report(folder)
    if weights:
        safety = gradient.kept() if gradient else None
        unread = weights_kept(
            models, folder, reading.digests, safety=safety, overwrite=reading.overwrite, quiet=reading.quiet
        )
    expected = reading.next.tables(models.models[ALIGNED].tokenizer, list(models.models))
    setting = replace(
        setting,
        weights=weights and not unread,
        safety_gradient=gradient is not None and not unread,
        next_tokens=len(expected),
        notes=(*setting.notes, *(gradient.notes if gradient else ()), *([unread] if unread else ())),
    )
    with disk_named(folder):
        keep_tokens(folder, expected)
        save_setting(folder, setting)
    return report_erosion(folder, figures=figures)


def check_draws(n: int) -> None:
    """Raises UsageError where a null has no draws."""
    if n < 1:
        raise UsageError(f"{n} draws are no null. Give at least 1, or leave it out: {N_NULL}.")


def default_folder(aligned: str | Path, tuned: str | Path) -> Path:
    """Where a run goes if nobody says otherwise."""
    name = f"erosion-{Path(aligned).name}-{Path(tuned).name}"
    return Path("runs") / "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")
