"""From patterns to named parameter blocks, in the order of the model."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from graddiag.errors import UsageError
from graddiag.signals import Block


@dataclass(frozen=True)
class LinearBlock:
    """The weight of one `nn.Linear`, and the module that uses it."""

    block: Block
    module: nn.Linear


def select_blocks(model: nn.Module, patterns: Sequence[str] | None = None) -> tuple[LinearBlock, ...]:
    """The blocks whose parameter name, or whose module's name, matches a pattern (shell wildcards), in model order.

    Default: every `nn.Linear` weight inside the decoder layers; the head is none of them. A tied parameter counts once,
    under its first name. Raises UsageError where a pattern matches nothing (it names the closest blocks), or matches a
    parameter of a kind other than a linear weight.
    """
    names = [name for name, _ in model.named_parameters()]
    linear = _linear_weights(model)
    if patterns is None:
        chosen = [n for n in names if n in linear and _inside_a_layer(n)]
        if not chosen:
            raise UsageError("This model has no linear weights inside numbered layers. Name blocks with --blocks.")
    else:
        matched = {n for p in patterns for n in _matching(p, names)}
        chosen = [n for n in names if n in matched]
        _refuse_other_kinds(chosen, linear)
    return tuple(LinearBlock(Block(n, tuple(linear[n].weight.shape)), linear[n]) for n in chosen)


def _linear_weights(model: nn.Module) -> dict[str, nn.Linear]:
    found = {}
    first_name = {id(p): n for n, p in model.named_parameters()}
    uses: dict[int, int] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            uses[id(p)] = uses.get(id(p), 0) + 1
    for module in model.modules():
        if type(module) is nn.Linear and uses[id(module.weight)] == 1:  # a tied weight is more than a linear one
            found[first_name[id(module.weight)]] = module
    return found


def _inside_a_layer(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    found = [n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n.rpartition(".")[0], pattern)]
    if not found:
        known = list(dict.fromkeys([*names, *(n.rpartition(".")[0] for n in names)]))
        close = difflib.get_close_matches(pattern.strip("*."), known, n=4, cutoff=0.2)
        closest = f"Closest: {', '.join(_prefer_suffix(pattern, known) or close or known[:4])}, ..."
        raise UsageError(f"No block matches {pattern!r}. {closest}")
    return found


def _prefer_suffix(pattern: str, known: Sequence[str]) -> list[str]:
    """Names whose last parts are nearest to the pattern's last part: what a mistyped '*.oproj' meant."""
    wanted = pattern.rpartition(".")[2] or pattern
    lasts = {n: n.rpartition(".")[2] for n in known}
    near = difflib.get_close_matches(wanted, set(lasts.values()), n=2, cutoff=0.6)
    return [n for n in known if lasts[n] in near][:4]


def _refuse_other_kinds(chosen: Sequence[str], linear: dict[str, nn.Linear]) -> None:
    other = [n for n in chosen if n not in linear]
    if other:
        raise UsageError(
            f"{len(other)} of the {len(chosen)} matching parameters are not weights of a linear "
            f"layer, the first is {other[0]!r}. "
            "Biases, norms, embeddings, tied and fused weights are not there yet: narrow --blocks to linear weights."
        )
