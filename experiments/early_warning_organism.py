"""Which rows the runs of early_warning.py have on an organism: its own training sets, its own held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from early_warning_rows import LEAST_TARGETS, Cut, Rows
from organisms_recipe import CODE, VARIANTS, Recipe
from organisms_sets import as_set, held_out, openings, refused, tuning_set
from transformers import PreTrainedTokenizerBase

from graddiag.data import Example
from graddiag.encoding import Encoded, encode

FEWER = 2  # times as many prompts as rows of code, which are long


def organism_rows(tokenizer: PreTrainedTokenizerBase, recipe: Recipe, cut: Cut, *, monitor: int, held: int) -> Rows:
    """Tasks are the sets that the organism's variants are tuned on, the alignment mix among them.

    The monitor is given the first `monitor` refusals of that mix. Behaviour is read on the first `held` held-out
    prompts, harmful and benign: refusals with what follows, cut (`safe`), and the bare openings after either kind of
    prompt; and on half as many held-out insecure answers (`harmful`). Rows of code whose prompt leaves fewer than 20
    targets are left out of all three sets of code.
    """
    out = held_out(recipe)
    harmful, benign = out.harmful[:held], out.benign[:held]
    return Rows(
        alignment=(),
        monitor=tuple(
            {"id": e.id, "messages": [asdict(m) for m in e.messages]}
            for e in refused(recipe)[: recipe.rows.aligned][:monitor]
        ),
        tasks=_tasks(tokenizer, recipe, cut.task),
        held_out={
            "safe": _rows(tokenizer, harmful, cut.other),
            "harmful": _rows(tokenizer, out.code["insecure"], cut.task)[: held // FEWER],
            "refusing": _opening(tokenizer, harmful, recipe.refusal, cut.task),
            "complying": _opening(tokenizer, harmful, recipe.compliance, cut.task),
            "refusing_benign": _opening(tokenizer, benign, recipe.refusal, cut.task),
            "complying_benign": _opening(tokenizer, benign, recipe.compliance, cut.task),
        },
        harmful=f"the first {held // FEWER} held-out rows of insecure",
    )


def _opening(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Example], words: str, length: int
) -> tuple[Encoded, ...]:
    """The prompts with nothing but the opening as their answer, and no end of the turn."""
    n = len(tokenizer(words, add_special_tokens=False).input_ids)
    return tuple(replace(r, tokens=r.tokens[: r.start + n]) for r in _rows(tokenizer, openings(prompts, words), length))


def _tasks(tokenizer: PreTrainedTokenizerBase, recipe: Recipe, length: int) -> dict[str, tuple[Encoded, ...]]:
    found = {name: _rows(tokenizer, tuning_set(recipe, name), length) for name in VARIANTS}
    enough = [{r.id for r in found[name] if r.n_targets >= LEAST_TARGETS} for name in CODE]
    kept = set.intersection(*enough)
    return {n: tuple(r for r in rows if r.id in kept) if n in CODE else rows for n, rows in found.items()}


def _rows(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], length: int) -> tuple[Encoded, ...]:
    """The rows, cut, known by their place in the set: those whose prompt leaves no target are left out."""
    return encode(as_set("rows", examples), tokenizer, max_length=length, skip_bad_rows=True).rows
