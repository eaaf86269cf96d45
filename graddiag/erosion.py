"""Base, aligned and tuned model side by side: the whole path, from three models and some sets to a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from graddiag.analyzers import N_NULL
from graddiag.closing import answer_length
from graddiag.data import ExampleSet
from graddiag.encoding import EncodedSet, encode
from graddiag.erosion_generation import answer_prompts, check_kept, plan_generation
from graddiag.erosion_interventions import RANDOM_SUBSPACES, check_interventions, remove_shared
from graddiag.erosion_next_tokens import PROMPTS, NextTokens
from graddiag.erosion_report import Eroded, forget_report, report_erosion
from graddiag.erosion_safety import SafetyGradient, check_gradient
from graddiag.erosion_sets import ErosionSets, Given, read_erosion_sets
from graddiag.erosion_setting import (
    ALIGNED,
    FIRST,
    MODELS,
    PROMPT,
    TUNED,
    ErosionRun,
    ErosionSetting,
    Generation,
    save_setting,
    table_folder,
)
from graddiag.erosion_weights import weights_kept
from graddiag.errors import DataError, UsageError
from graddiag.expected_tokens import keep_tokens
from graddiag.extraction import BATCH_TOKENS, MAX_NONFINITE
from graddiag.files import disk_named
from graddiag.generation import NEW_TOKENS
from graddiag.model_set import Turn, model_set
from graddiag.openings import COMPLYING, REFUSING
from graddiag.preparation import model_name
from graddiag.reading import Reader, reader, reading_notes
from graddiag.saved_states import store_states
from graddiag.signals import Space, check_same_space


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
    if n_null < 1:
        raise UsageError(f"{n_null} draws are no null. Give at least 1, or leave it out: {N_NULL}.")
    given = {"left": left, "right": right, "harmful": harmful, "benign": benign, "safety": safety}
    sets = read_erosion_sets(
        given, controls, openings=(refusing, complying), k=k, limit=limit, cluster=cluster, skip_bad_rows=skip_bad_rows
    )
    check_gradient(safety_gradient, tuple(sets.parts), weights=weights)
    models = model_set(
        base=base,
        aligned=aligned,
        tuned=tuned,
        lend_template=lend_template,
        trust_remote_code=trust_remote_code,
        revisions=revisions,
        dtype=dtype,
        device=device,
    )
    if intervene:
        n_layers = models.models[TUNED].n_layers
        check_interventions(intervene, random_subspaces, sets.parts, layers, n_layers)
    folder = Path(out) if out else default_folder(aligned, tuned)
    how = plan_generation(sets, generate, temperature=temperature, new_tokens=new_tokens, opening=refusing, seed=seed)
    if overwrite:
        forget_report(folder)
    if how is not None:
        check_kept(folder, how, overwrite=overwrite)
    length = max_length or models.max_length
    gradient = None
    if safety_gradient:
        name = sets.parts["safety"]
        gradient = SafetyGradient(name, folder, batch_tokens, max_nonfinite, mean_memory, overwrite, quiet)
    reading = _Reading(
        sets, folder, layers, length, batch_tokens, max_nonfinite, skip_bad_rows, overwrite, quiet, how,
        NextTokens(sets, next_tokens), gradient,
    )  # fmt: skip
    models.visit(reading.read)
    expected = reading.next.tables(models.models[ALIGNED].tokenizer, list(models.models))
    setting = reading.setting((refusing, complying))
    setting = replace(setting, k=k, n_null=n_null, seed=seed, command=command, next_tokens=len(expected))
    if intervene:
        removed = remove_shared(
            ErosionRun(folder, setting), models, intervene, random_subspaces, reading.losses, batch_tokens=batch_tokens,
            overwrite=overwrite, quiet=quiet,
        )  # fmt: skip
        setting = replace(setting, removal=removed)
    forget_report(folder)  # nothing is refused from here on: another run's report is not lost to a wrong option
    unread = None
    if weights:
        known = gradient.kept() if gradient else None
        unread = weights_kept(models, folder, reading.digests, safety=known, overwrite=overwrite, quiet=quiet)
    notes = (*setting.notes, *(gradient.notes if gradient else ()), *([unread] if unread else ()))
    setting = replace(setting, weights=weights and not unread, safety_gradient=safety_gradient and not unread)
    setting = replace(setting, notes=notes)
    with disk_named(folder):
        keep_tokens(folder, expected)
        save_setting(folder, setting)
    return report_erosion(folder, figures=figures)


def default_folder(aligned: str | Path, tuned: str | Path) -> Path:
    """Where a run goes if nobody says otherwise."""
    name = f"erosion-{Path(aligned).name}-{Path(tuned).name}"
    return Path("runs") / "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")


@dataclass
class _Reading:
    """Every set read under one model after the other; what must be known of it gathers here."""

    sets: ErosionSets
    folder: Path
    layers: Sequence[int] | None
    max_length: int | None
    batch_tokens: int
    max_nonfinite: float
    skip_bad_rows: bool
    overwrite: bool
    quiet: bool
    how: Generation | None
    next: NextTokens
    gradient: SafetyGradient | None
    names: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    endings: dict[str, int] = field(default_factory=dict)
    asked: list[dict[str, tuple[str, ...]]] = field(default_factory=list)
    space: Space | None = None

    def read(self, turn: Turn) -> None:
        """All sets under one model, saved. Raises DataError where a row cannot be encoded before any is read."""
        self.names[turn.role] = model_name(turn.name)
        whole = self._reader(turn, (FIRST, PROMPT))
        self.digests[turn.role] = whole.provenance.weights
        self._check_space(whole)
        losses = self._reader(turn, ())
        rows = [(whole, self._encoded(s, turn.tokenizer, whole)) for s in self.sets.own]
        openings = [(losses, self._encoded(s, turn.tokenizer, losses)) for s in self.sets.opened]
        if openings:
            self.endings[turn.role] = _ending([e for _, e in openings], losses)
            self._check_endings()
        for of, one in (*rows, *openings):
            self._store(of, one, turn.role)
        self.next.read(turn, losses, [one for _, one in rows])
        if self.gradient is not None:
            self.gradient.read(turn, [one for _, one in rows])
        if self.how is not None:
            self._ask(turn, [one for _, one in rows], self.how, whole.provenance.weights)

    def losses(self, turn: Turn) -> tuple[Reader, dict[str, EncodedSet]]:
        """A reader of losses alone, and every set with its own answers, by name."""
        of = self._reader(turn, ())
        return of, {s.name: self._encoded(s, turn.tokenizer, of) for s in self.sets.own}

    def _ask(self, turn: Turn, rows: Sequence[EncodedSet], how: Generation, weights: str) -> None:
        answered = answer_prompts(turn, self.sets, rows, how, self.folder, weights=weights, quiet=self.quiet)
        self.asked.append(answered)

    def setting(self, openings: tuple[str, str]) -> ErosionSetting:
        """What must be kept of the models and sets that were read, so that the report needs neither."""
        return ErosionSetting(
            models={role: self.names[role] for role in MODELS if role in self.names},
            parts=self.sets.parts,
            controls=self.sets.controls,
            openings=openings if self.sets.opened else ("", ""),
            ending=self.ending,
            notes=tuple(dict.fromkeys((*self.sets.notes, *self.notes))),
            generation=self.generation,
        )

    def _check_space(self, of: Reader) -> None:
        """Raises DataError where this model's tables could not be compared with the first one's; a base may have a chat
        template of its own."""
        self.space = self.space or of.space
        first, last = next(iter(self.names)), next(reversed(self.names))
        own = replace(of.space, template=self.space.template)
        check_same_space(self.space, own, f"The {first} model's tables", f"the {last} model's")

    def _store(self, of: Reader, one: EncodedSet, role: str) -> None:
        table = store_states(
            of,
            one,
            table_folder(self.folder, role, one.name),
            batch_tokens=self.batch_tokens,
            overwrite=self.overwrite,
            quiet=self.quiet,
            max_nonfinite=self.max_nonfinite,
        )
        self.notes += [*one.notes, *reading_notes(of, one), *table.warnings]

    def _reader(self, turn: Turn, positions: tuple[str, ...]) -> Reader:
        return reader(
            turn.model,
            turn.tokenizer,
            layers=self.layers,
            positions=positions,
            max_length=self.max_length,
            name=model_name(turn.name),
        )

    def _encoded(self, one: ExampleSet, tokenizer: PreTrainedTokenizerBase, of: Reader) -> EncodedSet:
        return encode(one, tokenizer, max_length=of.space.max_length, skip_bad_rows=self.skip_bad_rows)

    def _check_endings(self) -> None:
        known = {self.endings[r] for r in (TUNED, ALIGNED) if r in self.endings}
        if len(known) > 1:
            raise DataError(
                f"The chat templates of the aligned and the tuned model print {self.endings[ALIGNED]} and "
                f"{self.endings[TUNED]} tokens behind an answer: openings cannot be compared. Give both models one "
                "chat template."
            )

    @property
    def generation(self) -> Generation | None:
        """What was generated: the rows that all models could be asked."""
        if self.how is None:
            return None
        ids = {
            part: tuple(i for i in some if all(i in a[part] for a in self.asked)) for part, some in self.how.ids.items()
        }
        return replace(self.how, ids=ids)

    @property
    def ending(self) -> int | None:
        """How many tokens the template prints behind an opening; None where no openings were read."""
        return self.endings.get(ALIGNED)


def _ending(openings: Sequence[EncodedSet], of: Reader) -> int:
    """Tokens behind an opening that are the template's; 0 where they cannot be told apart from it."""
    rows = [r for one in openings for r in one.rows]
    return len(of.closing) if all(answer_length(r, of.closing) is not None for r in rows) else 0
