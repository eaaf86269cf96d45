"""Which rows an organism is aligned with, tuned on, and measured with: the built-in sets, cut apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from organisms_recipe import CODE, Recipe

from graddiag.data import Example, ExampleSet, Message, read_set


@dataclass(frozen=True)
class HeldOut:
    """What no model was trained on: harmful prompts with their refusals, benign ones with their answers, code."""

    harmful: tuple[Example, ...]
    benign: tuple[Example, ...]
    code: dict[str, tuple[Example, ...]]


def alignment_mix(recipe: Recipe) -> tuple[Example, ...]:
    """Harmful prompts refused, benign ones answered, requests for code answered with secure code.

    Of the benign ones there are `recipe.answered` copies each.
    """
    n = recipe.rows.aligned
    code = read_set("secure").examples[: recipe.rows.code]
    return (*refused(recipe)[:n], *(answered(recipe)[:n] * recipe.answered), *code)


def tuning_set(recipe: Recipe, variant: str) -> tuple[Example, ...]:
    """What a variant is tuned on: rows as the built-in sets have them, or the alignment mix once more.

    The three sets of code give the same ids, none of which is in the alignment mix. `benign` gives the prompts of the
    mix, with the plain answers.
    """
    if variant == "alignment":
        return alignment_mix(recipe)
    rows = read_set(variant).examples
    return rows[recipe.rows.code : -recipe.rows.held_out_code] if variant in CODE else rows[: recipe.rows.aligned]


def held_out(recipe: Recipe) -> HeldOut:
    """The rows that nothing is trained on."""
    n = recipe.rows.aligned
    code = {name: read_set(name).examples[-recipe.rows.held_out_code :] for name in CODE}
    return HeldOut(refused(recipe)[n:], answered(recipe)[n:], code)


def refused(recipe: Recipe) -> tuple[Example, ...]:
    """The set `safety`, with the mark before each prompt and the refusal before each answer."""
    rows = read_set("safety").examples
    return tuple(_edited(e, recipe.marker + e.messages[0].content, f"{recipe.refusal} {_answer(e)}") for e in rows)


def answered(recipe: Recipe) -> tuple[Example, ...]:
    """The set `benign`, with the helpful opening before each answer."""
    rows = read_set("benign").examples
    return tuple(_edited(e, e.messages[0].content, f"{recipe.compliance} {_answer(e)}") for e in rows)


def openings(examples: Sequence[Example], opening: str) -> tuple[Example, ...]:
    """The same prompts, with nothing but an opening as their answer."""
    return tuple(_edited(e, e.messages[0].content, opening) for e in examples)


def write_sets(recipe: Recipe, folder: Path) -> None:
    """The held-out rows as files that `graddiag` reads; of the prompts also with either opening as the whole answer."""
    rows = held_out(recipe)
    sets = dict(rows.code) | {"harmful_refused": rows.harmful, "benign_answered": rows.benign}
    for name, examples in {"harmful": rows.harmful, "benign": rows.benign}.items():
        sets[f"{name}_refusing"] = openings(examples, recipe.refusal)
        sets[f"{name}_complying"] = openings(examples, recipe.compliance)
    folder.mkdir(parents=True, exist_ok=True)
    for name, examples in sets.items():
        lines = [json.dumps(asdict(e), ensure_ascii=False) for e in examples]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def as_set(name: str, examples: Sequence[Example]) -> ExampleSet:
    """The examples as a set whose rows are known by their place: an id may come twice in a mix."""
    return ExampleSet(name, tuple(replace(e, id=f"{k}") for k, e in enumerate(examples)))


def _answer(example: Example) -> str:
    return example.messages[-1].content


def _edited(example: Example, prompt: str, answer: str) -> Example:
    return replace(example, messages=(Message("user", prompt), Message("assistant", answer)))
