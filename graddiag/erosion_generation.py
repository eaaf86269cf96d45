"""Every model of a run answers some prompts; what it said is kept line by line, and is not asked again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from graddiag.encoding import Encoded, EncodedSet
from graddiag.erosion_samples import GENERATED_FILE, Key, Made, MadeAnswer, read_answers
from graddiag.erosion_sets import ErosionSets
from graddiag.erosion_setting import ASKED, Generation
from graddiag.errors import DataError, UsageError
from graddiag.files import disk_named
from graddiag.generation import NEW_TOKENS, generate_answers
from graddiag.interrupt import Interrupted, deferred_stop
from graddiag.line_files import append_lines, write_lines
from graddiag.model_set import Turn
from graddiag.progress import Progress
from graddiag.signals import digest_of


def plan_generation(
    sets: ErosionSets, n: int, *, temperature: float = 0.0, new_tokens: int = NEW_TOKENS, opening: str, seed: int
) -> Generation | None:
    """The first `n` rows of the sets whose prompts are answered; None where that is 0.

    Raises UsageError for numbers that cannot be meant, and where there is no set to ask from.
    """
    if n < 0 or new_tokens < 1 or not 0 <= temperature < float("inf"):
        raise UsageError(
            f"{n} prompts, temperature {temperature}, {new_tokens} new tokens: give 0 prompts or more, a temperature "
            "of 0 or above, and at least 1 token."
        )
    if not n:
        return None
    by_name = {s.name: s for s in sets.own}
    ids = {part: tuple(e.id for e in by_name[sets.parts[part]].examples[:n]) for part in ASKED if part in sets.parts}
    if not ids:
        raise UsageError("Answers are generated to the prompts of --safety and --benign, and both are none. Name one.")
    return Generation(ids, opening, float(temperature), new_tokens, seed)


def check_kept(folder: Path, how: Generation | None, *, overwrite: bool) -> None:
    """Raises DataError where the folder has answers that were made otherwise; with `overwrite` they are removed."""
    if how is None:
        return
    kept = read_answers(folder)
    same = [a for a in kept if how.made_so(a.made.temperature, a.made.most, a.made.seed)]
    if len(same) == len(kept):
        return
    if not overwrite:
        other = next(a for a in kept if a not in same).made
        raise DataError(
            f"{folder / GENERATED_FILE} has {len(kept) - len(same)} answers made otherwise (temperature "
            f"{other.temperature:g}, {other.most} tokens, seed {other.seed}). Choose another --out, or replace them "
            "with --overwrite."
        )
    _write(folder, same)


@dataclass
class Asking:
    """Every model answers prompts in its turn; `asked` are the ids of the rows that each could be asked, by part."""

    sets: ErosionSets
    how: Generation
    folder: Path
    quiet: bool
    asked: list[dict[str, tuple[str, ...]]] = field(default_factory=list)

    def read(self, turn: Turn, encoded: Sequence[EncodedSet], *, weights: str) -> None:
        """The answers of one model, whose weights have this digest, kept. Raises as `answer_prompts`."""
        answered = answer_prompts(turn, self.sets, encoded, self.how, self.folder, weights=weights, quiet=self.quiet)
        self.asked.append(answered)

    @property
    def generation(self) -> Generation:
        """What was generated: the rows that all models could be asked."""
        ids = {
            part: tuple(i for i in some if all(i in a[part] for a in self.asked)) for part, some in self.how.ids.items()
        }
        return replace(self.how, ids=ids)


def answer_prompts(
    turn: Turn, sets: ErosionSets, encoded: Sequence[EncodedSet], how: Generation, folder: Path, *, weights: str,
    quiet: bool,
) -> dict[str, tuple[str, ...]]:  # fmt: skip
    """The model's answers to the prompts that it has not answered yet, each kept as soon as it is made; the ids of all
    rows that could be asked, by part (a bad row that was left out is not among them).

    Raises Interrupted after a signal, when the answers that were made are kept.
    """
    wanted = _wanted(turn.role, sets, encoded, how, weights)
    there = _kept(folder, wanted)
    todo = [w for key, w in wanted.items() if key not in there]
    progress = Progress(f"{turn.role}: answers", len(todo) * how.new_tokens, quiet=quiet)
    with deferred_stop() as stop, disk_named(folder):
        for one in todo:
            append_lines(folder / GENERATED_FILE, [_answered(turn, one, encoded[0].max_length).line])
            progress.advance(how.new_tokens)
            if stop.number:
                raise Interrupted(stop.number)
    progress.finish()
    return {part: tuple(w.blank.id for w in wanted.values() if w.blank.part == part) for part in how.ids}


def _kept(folder: Path, wanted: Mapping[Key, _Wanted]) -> set[Key]:
    """Which of the answers are there; those of other weights or another prompt go, since the model's tables were
    replaced too, else they were refused. One whose row has another place or cluster now is the same answer."""
    kept = read_answers(folder)
    same = {a.key: wanted[a.key].answered(a) for a in kept if a.key in wanted and wanted[a.key].blank.made == a.made}
    now = [same.get(a.key, a) for a in kept if a.key in same or a.key not in wanted]
    if now != list(kept):
        _write(folder, now)
    return set(same)


@dataclass(frozen=True)
class _Wanted:
    """A prompt as tokens, and the answer to it without what the model has to say."""

    row: Encoded
    blank: MadeAnswer

    def answered(self, like: MadeAnswer) -> MadeAnswer:
        """This answer with what was said in another."""
        return replace(self.blank, text=like.text, tokens=like.tokens, ended=like.ended)


def _wanted(
    role: str, sets: ErosionSets, encoded: Sequence[EncodedSet], how: Generation, weights: str
) -> dict[Key, _Wanted]:
    """The answers to be had, by their key, in the order of the sets."""
    examples = {s.name: {e.id: e for e in s.examples} for s in sets.own}
    rows = {e.name: {r.id: r for r in e.rows} for e in encoded}
    out = {}
    for part, ids in how.ids.items():
        name = sets.parts[part]
        for place, i in enumerate(ids):
            if i in rows[name]:
                row, example = rows[name][i], examples[name][i]
                messages = tuple((m.role, m.content) for m in example.messages[:-1])
                seed = how.seed if how.temperature else 0
                made = Made(
                    weights, digest_of(map(str, row.tokens[: row.start])), how.temperature, how.new_tokens, seed
                )
                blank = MadeAnswer(role, part, i, row.cluster, place, messages, "", 0, False, made)
                out[blank.key] = _Wanted(row, blank)
    return out


def _answered(turn: Turn, one: _Wanted, max_length: int) -> MadeAnswer:
    """The answer; no more tokens than fit behind the prompt."""
    made = one.blank.made
    most = max(1, min(made.most, max_length - one.row.start))
    (sample,) = generate_answers(
        turn.model, turn.tokenizer, [one.row], temperature=made.temperature, max_new_tokens=most, seed=made.seed
    )
    return replace(one.blank, text=sample.text, tokens=len(sample.tokens), ended=sample.ended)


def _write(folder: Path, answers: Sequence[MadeAnswer]) -> None:
    with disk_named(folder):
        write_lines(folder / GENERATED_FILE, [a.line for a in answers])
