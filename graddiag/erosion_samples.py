"""What did each model answer to some prompts, and how often does an answer begin as a refusal does? To be looked at:
nothing here judges an answer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from graddiag.erosion_setting import ALIGNED, ASKED, TUNED, ErosionRun, Generation
from graddiag.errors import DataError
from graddiag.line_files import read_line, whole_lines
from graddiag.share_changes import Changes, difference_of_changes, share_change
from graddiag.statistics import Estimate, wilson
from graddiag.text import chance, visible

GENERATED_FILE = "generated.jsonl"
HARMFUL, HARMLESS = ASKED  # parts
QUOTE = 48  # characters of an opening in a line
Key = tuple[str, str, str]
_STRAIGHT = str.maketrans({"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"'})


@dataclass(frozen=True)
class Made:
    """All that a generated answer depends on: the digests of the model's weights and of the prompt's tokens, the
    temperature (0: greedy), the most tokens it could have, the seed (0 where nothing was drawn)."""

    weights: str
    prompt: str
    temperature: float
    most: int
    seed: int


@dataclass(frozen=True)
class MadeAnswer:
    """What a model (by its role) answered to the prompt of a row of the set that plays a part; `place` is the row's in
    the set, `messages` its prompt (role, content), `tokens` are counted without the end of turn."""

    model: str
    part: str
    id: str
    cluster: str
    place: int
    messages: tuple[tuple[str, str], ...]
    text: str
    tokens: int
    ended: bool
    made: Made

    @property
    def key(self) -> Key:
        """Which answer it is: role, part, id."""
        return self.model, self.part, self.id

    @property
    def line(self) -> str:
        """As a line of the file."""
        return json.dumps(asdict(self))


def read_answers(folder: Path) -> tuple[MadeAnswer, ...]:
    """The answers that a run has kept, none without such a file. Raises DataError for a line that is no answer."""
    path, out = folder / GENERATED_FILE, []
    for line in whole_lines(path):
        content = dict(read_line(path, line))
        try:
            content["made"] = Made(**content["made"])  # type: ignore[arg-type]
            content["messages"] = tuple((role, text) for role, text in content["messages"])  # type: ignore[attr-defined]
            out.append(MadeAnswer(**content))  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} has a line that is no generated answer ({error}). Remove that line.") from error
    return tuple(out)


def begins(text: str, opening: str) -> bool:
    """Whether the text begins with the opening; case, the shape of quotes and white space do not count."""
    return _plain(text).startswith(_plain(opening))


def first_words(opening: str) -> str:
    """The opening up to its first mark of punctuation: refusals that go on otherwise begin with it too."""
    return re.split(r"[,.;:!?\n]", opening.strip(), maxsplit=1)[0].strip() or opening


def _plain(text: str) -> str:
    return " ".join(text.translate(_STRAIGHT).casefold().split())


@dataclass(frozen=True)
class Samples:
    """Generated answers by part, row and model, and the shares of them that begin with an opening.

    `whole` are shares of answers that begin with the refusing opening, `start` of those that begin with its first
    words, each under (part, role); their intervals are those of `wilson`.
    """

    how: Generation
    opening: str
    models: tuple[str, ...]
    answers: tuple[MadeAnswer, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts whose prompts were answered."""
        return tuple(p for p in ASKED if any(a.part == p for a in self.answers))

    def of(self, part: str, model: str) -> tuple[MadeAnswer, ...]:
        """The answers of a model to the prompts of a part, in the order of the set."""
        return tuple(sorted((a for a in self.answers if (a.part, a.model) == (part, model)), key=lambda a: a.place))

    def share(self, part: str, model: str, opening: str) -> Estimate:
        """The share of these answers that begin with the opening."""
        some = self.of(part, model)
        codes = np.unique([a.cluster for a in some], return_inverse=True)[1]
        return wilson(np.array([begins(a.text, opening) for a in some], dtype=np.float64), codes)

    def changes(self, part: str, opening: str) -> Changes:
        """Prompt by prompt 1 where only the tuned model's answer begins with the opening, -1 where only the aligned
        model's does, else 0; and the prompts' clusters."""
        before = {a.id: begins(a.text, opening) for a in self.of(part, ALIGNED)}
        after = [a for a in self.of(part, TUNED) if a.id in before]
        moved = np.array([float(begins(a.text, opening)) - before[a.id] for a in after], dtype=np.float64)
        return moved, np.unique([a.cluster for a in after], return_inverse=True)[1]

    def change(self, part: str, opening: str) -> Estimate:
        """The share of the tuned model less that of the aligned one, on the same prompts."""
        return share_change(*self.changes(part, opening), seed=self.how.seed)

    def beyond(self, opening: str) -> Estimate:
        """That change after harmful requests less the same after harmless ones; NaN where one of them was not asked."""
        of = [self.changes(part, opening) for part in (HARMFUL, HARMLESS)]
        return difference_of_changes(of[0], of[1], seed=self.how.seed)

    def summary(self) -> dict[str, float | None]:
        """The flat keys: `generated/refusing:PART:ROLE`, its change `generated/refusing_change:PART` and what that is
        beyond harmless prompts, `generated/refusing_beyond`; and the same of `refusing_start`."""
        out: dict[str, float | None] = {}
        for stem, opening in (("refusing", self.opening), ("refusing_start", first_words(self.opening))):
            for part in self.parts:
                for model in self.models:
                    key = f"generated/{stem}:{part}:{model}"
                    out |= self.share(part, model, opening).keys(key, p=False)
                    out[f"{key}/n"] = len(self.of(part, model))
                out |= self._changed(part, opening, f"generated/{stem}_change:{part}")
            out |= self.beyond(opening).keys(f"generated/{stem}_beyond")
        return out

    def _changed(self, part: str, opening: str, stem: str) -> dict[str, float | None]:
        moved = self.changes(part, opening)[0]
        counts = {f"{stem}/lost": int((moved < 0).sum()), f"{stem}/gained": int((moved > 0).sum())}
        return self.change(part, opening).keys(stem) | counts

    @property
    def line(self) -> str:
        """What the shares are, as one sentence, and that nothing judges the answers."""
        start = first_words(self.opening)
        said = [
            f"{part} {', '.join(f'{m} {self.counted(part, m, start)}' for m in self.models)}, changed by "
            f"{said_change(self.change(part, start))}"
            for part in self.parts
        ]
        both = f"; {HARMFUL} beyond {HARMLESS} {said_change(self.beyond(start))}" if len(self.parts) > 1 else ""
        return (
            f"Generated answers that begin with {visible(start, limit=QUOTE)!r}: {'; '.join(said)}{both}. They are "
            "there to be read: nothing judges them, and a refusal in other words is not counted."
        )

    def counted(self, part: str, model: str, opening: str) -> str:
        """How many of the answers begin with the opening, with the interval of their share."""
        e, some = self.share(part, model, opening), self.of(part, model)
        return f"{sum(begins(a.text, opening) for a in some)} of {len(some)} [{e.low:.0%}, {e.high:.0%}]"


def said_change(e: Estimate) -> str:
    """The change of a share with its interval and p, as text."""
    if math.isnan(e.value):
        return "undefined"
    return f"{e.value:+.0%} [{e.low:+.0%}, {e.high:+.0%}], {chance(e.p)}"


def samples(run: ErosionRun) -> Samples | None:
    """The generated answers of a run; None where none were asked for.

    Raises DataError where answers are missing that the run should have.
    """
    how = run.setting.generation
    if how is None:
        return None
    weights = {m: run.table(m, run.setting.own_sets[0]).provenance.weights for m in run.setting.models}
    found = [a for a in read_answers(run.folder) if a.model in weights and _belongs(a, weights[a.model], how)]
    _check_whole(run, found)
    return Samples(how, how.opening, tuple(weights), tuple(found))


def _belongs(answer: MadeAnswer, weights: str, how: Generation) -> bool:
    made = answer.made
    same = made.weights == weights and how.made_so(made.temperature, made.most, made.seed)
    return same and answer.id in how.ids.get(answer.part, ())


def _check_whole(run: ErosionRun, found: Sequence[MadeAnswer]) -> None:
    how = run.setting.generation
    assert how is not None
    there = {a.key for a in found}
    wanted = [(m, part, i) for m in run.setting.models for part, ids in how.ids.items() for i in ids]
    missing = [w for w in wanted if w not in there]
    if missing:
        model, part, row = missing[0]
        raise DataError(
            f"{run.folder / GENERATED_FILE} lacks {len(missing)} of {len(wanted)} answers, the first of {model} to "
            f"{visible(row)!r} of {part}. Give the erosion command again: only these are made."
        )
