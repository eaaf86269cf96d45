"""A base, an aligned and a tuned model: do they fit together, and how are they loaded one after another?"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graddiag._adapter import take_adapter
from graddiag._digests import rules_digest, weights_digest
from graddiag.errors import DataError, UsageError
from graddiag.models import load_base, with_adapter
from graddiag.outline import Outline, outline

ROLES = ("base", "aligned", "tuned")

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Turn:
    """One model of a set while it is loaded: its role, its name as it was given, and the tokenizer to use with it."""

    role: str
    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class ModelSet:
    """Models by their role, found to fit together, none of them loaded. `max_length` is the shortest context of them:
    rows must be cut alike under all."""

    models: Mapping[str, Outline]
    max_length: int | None
    dtype: str | None = None
    device: str | None = None

    def visit(self, use: Callable[[Turn], T]) -> dict[str, T]:
        """What `use` makes of each model, by role. A model is loaded for its turn and let go after it.

        Models that share a base are adapters put on it one after another: it is in memory once, and read from disk once
        unless an adapter brings whole modules of its own. `use` must not keep the model. Raises as `load_model`, and
        whatever `use` raises.
        """
        found: dict[str, T] = {}
        for roles in _sharing(self.models):
            self._visit_base(roles, use, found)
            gc.collect()  # models hold cycles: without it two would be in memory
        return {role: found[role] for role in self.models}

    def _visit_base(self, roles: Sequence[str], use: Callable[[Turn], T], found: dict[str, T]) -> None:
        base: PreTrainedModel | None = None
        digest = ""
        for k, role in enumerate(roles):
            one = self.models[role]
            if base is None:
                gc.collect()
                base = load_base(one.base, dtype=self.dtype, device=self.device)[0]
                digest = weights_digest(base) if len(roles) - k > 1 else ""
            model = base if one.adapter is None else with_adapter(base, one.adapter)
            found[role] = use(Turn(role, one.name, model, one.tokenizer))
            if one.adapter is not None and k + 1 < len(roles):
                base = take_adapter(model)
                base = base if weights_digest(base) == digest else None
            del model


def model_set(
    *,
    base: str | Path | None = None,
    aligned: str | Path | None = None,
    tuned: str | Path | None = None,
    lend_template: bool = False,
    trust_remote_code: bool = False,
    revisions: Mapping[str, str] | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> ModelSet:
    """The models of these names, each as `load_model` takes it; `revisions` of hub ids are by role.

    With `lend_template` the base is given the aligned model's tokenizer, with its chat template. No weights are loaded.
    Raises UsageError where no model is named or there is nobody to lend, DataError for models of different widths or
    depths, a model without chat template, and an adapter for another base. Whether their tokenizers read the same
    answers alike depends on the answers (`graddiag.answer_tokens`).
    """
    named = {r: n for r, n in zip(ROLES, (base, aligned, tuned), strict=True) if n is not None}
    if not named:
        raise UsageError("No model is named. Give at least one of --base, --aligned and --tuned.")
    at = revisions or {}
    found = {
        r: outline(n, revision=at.get(r), trust_remote_code=trust_remote_code and r in at) for r, n in named.items()
    }
    _check_shapes(found)
    _check_adapters(found)
    if lend_template:
        found["base"] = _lent(found)
    _check_templates(found)
    contexts = [o.context for o in found.values() if o.context]
    return ModelSet(found, min(contexts, default=None), dtype, device)


def _sharing(models: Mapping[str, Outline]) -> list[list[str]]:
    """Roles whose models have one base, together; a base itself comes before the adapters on it."""
    groups: dict[str, list[str]] = {}
    for role, one in models.items():
        groups.setdefault(one.weights_at, []).append(role)
    return [sorted(g, key=lambda r: models[r].adapter is not None) for g in groups.values()]


def _check_shapes(models: Mapping[str, Outline]) -> None:
    (first, a), *others = models.items()
    for role, b in others:
        if (a.width, a.n_layers) != (b.width, b.n_layers):
            raise DataError(
                f"{first} ({a.name}) has {a.n_layers} layers of width {a.width} and {role} ({b.name}) has {b.n_layers} "
                f"of width {b.width}: layers cannot be matched. Give models of one architecture and size."
            )


def _check_adapters(models: Mapping[str, Outline]) -> None:
    """An adapter's base is a model of the set, or that of another adapter of it: else the difference between the models
    is not what the adapter learned."""
    for role, one in models.items():
        others = {o.weights_at for r, o in models.items() if r != role}
        if one.adapter is not None and others and one.weights_at not in others:
            known = ", ".join(f"{r} ({o.name})" for r, o in models.items() if r != role)
            raise DataError(
                f"{role} ({one.name}) is an adapter for {one.base}, which none of the other models is or goes on: "
                f"{known}. Give the model that the adapter was trained on."
            )


def _lent(models: Mapping[str, Outline]) -> Outline:
    """The base with the aligned model's tokenizer."""
    if not {"base", "aligned"} <= models.keys():
        raise UsageError("--lend-template gives the base the aligned model's chat template: name both models.")
    base, aligned = models["base"], models["aligned"]
    if rules_digest(base.tokenizer) != rules_digest(aligned.tokenizer):
        raise DataError(
            f"The tokenizers of base ({base.name}) and aligned ({aligned.name}) turn text into different tokens: a "
            "lent chat template would be read otherwise. Give two models of one family."
        )
    highest = max(aligned.tokenizer.get_vocab().values())
    if highest >= base.vocabulary:
        raise DataError(
            f"base ({base.name}) has embeddings for {base.vocabulary} tokens, and the tokenizer of aligned "
            f"({aligned.name}) has tokens up to {highest}: its chat template cannot be lent."
        )
    return replace(base, tokenizer=aligned.tokenizer)


def _check_templates(models: Mapping[str, Outline]) -> None:
    for role, one in models.items():
        try:
            one.tokenizer.get_chat_template()
        except ValueError as error:
            raise DataError(
                f"{role} ({one.name}) has no chat template, so conversations cannot be rendered for it. "
                "--lend-template gives a base that of the aligned model."
            ) from error
