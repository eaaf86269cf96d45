"""From patterns to named parameter blocks, in the order of the model, and how each one's gradient can be had."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from graddiag.errors import UsageError
from graddiag.signals import Block

_HEAD = re.compile(r"(?P<pattern>.+)\[head=(?P<head>\d+)\]")
_OF_QUERY_HEADS, _OF_KEY_HEADS = ("q_proj", "o_proj"), ("k_proj", "v_proj")


class Kind(Enum):
    """How a module uses a parameter, which decides how its per-example gradient arises."""

    LINEAR = "y = x W^T"
    CONV1D = "y = x W"
    BIAS = "y = x + b"
    LOOKUP = "y = W[ids], perhaps times a constant"
    REPLAY = "anything else that a module does with its own inputs"


@dataclass(frozen=True)
class Use:
    """One module that uses a parameter."""

    module: nn.Module
    kind: Kind


@dataclass(frozen=True)
class Part:
    """A range of one dimension of a parameter: the share of one attention head."""

    dim: int
    start: int
    stop: int


@dataclass(frozen=True)
class Selected:
    """A block, its parameter, the modules that use it (several where it is tied), and the head's share of it, if
    any."""

    block: Block
    parameter: nn.Parameter
    uses: tuple[Use, ...]
    part: Part | None = None


def select_blocks(model: nn.Module, patterns: Sequence[str] | None = None) -> tuple[Selected, ...]:
    """The blocks whose parameter name, or whose module's name, matches a pattern (shell wildcards), in model order.

    Default: every linear weight inside the decoder layers; the head is none of them. `["*"]` is every parameter. A tied
    parameter counts once, under its first name. `PATTERN[head=K]` takes attention head K of the projections that match.
    Raises UsageError where a pattern matches nothing (it names the closest blocks) or a head cannot be taken.
    """
    parameters = dict(model.named_parameters())
    uses = _uses(model)
    chosen: list[tuple[str, int | None]]
    if patterns is None:
        chosen = [(n, None) for n in parameters if _is_default(n, uses[n])]
        if not chosen:
            raise UsageError("This model has no linear weights inside numbered layers. Name blocks with --blocks.")
    else:
        wanted = {pair for p in patterns for pair in _matching(p, list(parameters))}
        order = {n: k for k, n in enumerate(parameters)}
        chosen = sorted(wanted, key=lambda pair: (order[pair[0]], -1 if pair[1] is None else pair[1]))
    return tuple(_selected(n, head, parameters[n], uses[n], model) for n, head in chosen)


def _uses(model: nn.Module) -> dict[str, tuple[Use, ...]]:
    """The uses of every parameter under its first name."""
    first = {id(p): n for n, p in model.named_parameters()}
    found: dict[str, list[Use]] = {n: [] for n in first.values()}
    for module in model.modules():
        for attribute, p in module.named_parameters(recurse=False, remove_duplicate=False):
            found[first[id(p)]].append(Use(module, _kind(module, attribute)))
    return {n: tuple(u) for n, u in found.items()}


def _kind(module: nn.Module, attribute: str) -> Kind:
    linear, conv = type(module).forward is nn.Linear.forward, isinstance(module, Conv1D)
    if (linear or conv) and attribute in ("weight", "bias"):
        weight = Kind.LINEAR if linear else Kind.CONV1D
        return weight if attribute == "weight" else Kind.BIAS
    if isinstance(module, nn.Embedding) and len(inspect.signature(module.forward).parameters) == 1:
        return Kind.LOOKUP
    return Kind.REPLAY


def _is_default(name: str, uses: tuple[Use, ...]) -> bool:
    inside_a_layer = any(part.isdigit() for part in name.split("."))
    return inside_a_layer and len(uses) == 1 and uses[0].kind in (Kind.LINEAR, Kind.CONV1D)


def _matching(pattern: str, names: Sequence[str]) -> list[tuple[str, int | None]]:
    with_head = _HEAD.fullmatch(pattern)
    plain = with_head["pattern"] if with_head else pattern
    found = [n for n in names if fnmatchcase(n, plain) or fnmatchcase(n.rpartition(".")[0], plain)]
    if not found:
        known = list(dict.fromkeys([*names, *(n.rpartition(".")[0] for n in names)]))
        close = difflib.get_close_matches(plain.strip("*."), known, n=4, cutoff=0.2)
        closest = f"Closest: {', '.join(_with_like_ending(plain, known) or close or known[:4])}, ..."
        raise UsageError(f"No block matches {pattern!r}. {closest}")
    return [(n, int(with_head["head"]) if with_head else None) for n in found]


def _with_like_ending(pattern: str, known: Sequence[str]) -> list[str]:
    """Names whose last part is nearest to the pattern's last part: what a mistyped '*.oproj' meant."""
    wanted = pattern.rpartition(".")[2] or pattern
    lasts = {n: n.rpartition(".")[2] for n in known}
    near = difflib.get_close_matches(wanted, set(lasts.values()), n=2, cutoff=0.6)
    return [n for n in known if lasts[n] in near][:4]


def _selected(name: str, head: int | None, p: nn.Parameter, uses: tuple[Use, ...], model: nn.Module) -> Selected:
    if head is None:
        return Selected(Block(name, tuple(p.shape)), p, uses)
    part = _part_of_head(name, head, p, model)
    shape = list(p.shape)
    shape[part.dim] = part.stop - part.start
    return Selected(Block(f"{name}[head={head}]", tuple(shape)), p, uses, part)


def _part_of_head(name: str, head: int, p: nn.Parameter, model: nn.Module) -> Part:
    """Columns of o_proj, rows of q, k and v; k and v have key-value heads."""
    projection = name.split(".")[-2] if "." in name else ""
    config = model.config
    if projection not in (*_OF_QUERY_HEADS, *_OF_KEY_HEADS) or not isinstance(config, PretrainedConfig):
        raise UsageError(
            f"{name!r} has no heads to choose from: [head=...] goes with q_proj, k_proj, v_proj and o_proj."
        )
    sizes: Mapping[str, int | None] = config.get_text_config().to_dict()
    n_query = sizes["num_attention_heads"] or 1
    n = n_query if projection in _OF_QUERY_HEADS else sizes.get("num_key_value_heads") or n_query
    if head >= n:
        raise UsageError(f"{name!r} has heads 0 to {n - 1}, and not {head}.")
    dim = 1 if projection == "o_proj" and p.dim() > 1 else 0
    width = p.shape[dim] // n
    return Part(dim, head * width, (head + 1) * width)
