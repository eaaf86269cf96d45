"""From an optimizer, live or saved, to Adam's state under the names of the model's blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from graddiag._digests import bytes_digest
from graddiag._saved_optimizer import Entry, Settings, read_entries
from graddiag.adam import Moments, OptimizerState
from graddiag.blocks import Selected
from graddiag.errors import UsageError
from graddiag.gradients import wide
from graddiag.signals import digest_of

_STATE_KEYS = {"step", "exp_avg", "exp_avg_sq"}

Source = torch.optim.Optimizer | str | Path


def read_optimizer(source: Source, model: nn.Module, blocks: Sequence[Selected]) -> OptimizerState:
    """Adam's state of the chosen blocks, from a live optimizer, a saved `state_dict`, or a Trainer's checkpoint folder.

    A live optimizer's parameters are found by identity. A saved state counts them: by the names that it holds where it
    has some, else in the model's order, in a Trainer's case first the parameters with weight decay, then those without;
    every shape is checked. Decoupled weight decay, gradient clipping and the learning rate are not part of a step here.

    Raises UsageError or DataError for an optimizer that is not Adam or AdamW, a state that does not fit the model, and
    blocks without state.
    """
    entries = read_entries(Path(source), model) if isinstance(source, (str, Path)) else _live(source, model)
    parameters = {id(p): n for n, p in model.named_parameters()}
    names = {b.block.name: parameters[id(b.parameter)] for b in blocks}
    missing = [b for b, n in names.items() if n not in entries or not entries[n].state]
    if missing:
        raise UsageError(
            f"The optimizer has no state for {len(missing)} of {len(blocks)} chosen blocks, the first is "
            f"{missing[0]!r}: it was frozen, or has had no gradient yet. Choose trained blocks with --blocks, or leave "
            "--optimizer out."
        )
    chosen = {n: entries[n] for n in names.values()}
    notes = _check_settings(chosen)
    moments = {b.block.name: _moments(names[b.block.name], chosen, b) for b in blocks}
    decoupled = all(e.group.get("decoupled_weight_decay", True) for e in chosen.values())
    return OptimizerState("AdamW" if decoupled else "Adam", _digest(moments), moments, notes)


def _live(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Entry]:
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps the one that it was given
    if not isinstance(inner, (torch.optim.Adam, torch.optim.AdamW)):
        raise UsageError(
            f"{type(inner).__module__}.{type(inner).__name__} is not torch's Adam or AdamW, and only their steps are "
            "known here. Leave the optimizer out: alignment of the gradients needs none."
        )
    names = {id(p): n for n, p in model.named_parameters()}
    found = [(names.get(id(p)), p, g) for g in inner.param_groups for p in g["params"]]
    own = {"decoupled_weight_decay": isinstance(inner, torch.optim.AdamW)}  # older versions of torch do not say
    entries = {n: Entry(inner.state.get(p, {}), own | g) for n, p, g in found if n is not None}
    if not entries:
        raise UsageError(
            f"None of the optimizer's {len(found)} parameters is one of this model. Pass the model that it trains."
        )
    return entries


def _check_settings(entries: Mapping[str, Entry]) -> tuple[str, ...]:
    """What must be said about the groups' settings. Raises UsageError for those under which a step is another one."""
    notes = []
    rates = {_number(e.group, "lr") for e in entries.values()}
    if len(rates) > 1:
        raise UsageError(
            f"The chosen blocks have different learning rates ({', '.join(f'{r:g}' for r in sorted(rates))}), and "
            "a step is given per unit of one. Choose blocks of one group with --blocks."
        )
    for name, entry in entries.items():
        _check_kind(name, entry)
        if _number(entry.group, "weight_decay") and "decoupled_weight_decay" not in entry.group:
            notes.append("The saved optimizer does not say how its weight decay works; it is taken for AdamW's.")
    return tuple(dict.fromkeys(notes))


def _check_kind(name: str, entry: Entry) -> None:
    keys, group = set(map(str, entry.state)), entry.group
    if keys != _STATE_KEYS or "amsgrad" not in group:
        raise UsageError(
            f"The optimizer keeps {sorted(keys)} of {name!r}: this is not the state of torch's Adam or AdamW "
            f"({sorted(_STATE_KEYS)}). 8-bit states and other optimizers have no Adam form here: leave it out."
        )
    odd = [f"{k}=True" for k in ("amsgrad", "maximize") if group.get(k)]
    if (decay := _number(group, "weight_decay")) and group.get("decoupled_weight_decay") is False:
        odd.append(f"weight_decay={decay:g} added to the gradient (Adam's, not AdamW's)")
    if odd:
        raise UsageError(f"The optimizer has {' and '.join(odd)}, and such a step is not known here: leave it out.")


def _number(settings: Settings, key: str) -> float:
    value = settings[key]
    return float(value.item() if isinstance(value, Tensor) else value)  # type: ignore[arg-type]


def _moments(name: str, entries: Mapping[str, Entry], b: Selected) -> Moments:
    state, group = entries[name].state, entries[name].group
    first, second, betas = state["exp_avg"], state["exp_avg_sq"], group["betas"]
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    assert isinstance(betas, (tuple, list))
    eps = _number(group, "eps")
    if not eps > 0:
        raise UsageError(f"The optimizer has eps={eps:g}: where a gradient was always 0, its step is undefined.")
    whole = Moments(first, second, int(_number(state, "step")), float(betas[0]), float(betas[1]), eps)
    return whole.share(b.part)


def _digest(moments: Mapping[str, Moments]) -> str:
    """A digest of all that the steps of these blocks depend on; the same for a live optimizer and its saved state."""
    return digest_of(
        f"{name} {m.step} {m.beta1} {m.beta2} {m.eps} {bytes_digest(wide(m.first))} {bytes_digest(wide(m.second))}"
        for name, m in moments.items()
    )
