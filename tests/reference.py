"""Slow, obviously right: one backward pass per example, with the model's own logits and weight gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from graddiag.encoding import Encoded


def padded(rows: Sequence[Encoded], *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Token ids (all but the last, which predicts nothing) and attention mask, padded with token 0 on one side, [b,
    t]."""
    width = max(len(r.tokens) for r in rows) - 1
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for k, r in enumerate(rows):
        t = len(r.tokens) - 1
        at = slice(width - t, width) if left else slice(0, t)
        ids[k, at] = torch.as_tensor(r.tokens[:-1], dtype=torch.long)
        mask[k, at] = 1
    return ids, mask


def row_token_losses(model: nn.Module, rows: Sequence[Encoded], *, left: bool = False) -> list[Tensor]:
    """-log p of each target token of each row, from the model's full logits in one batch."""
    ids, mask = padded(rows, left=left)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    extra = {"position_ids": positions} if left else {}
    log_p = model(input_ids=ids, attention_mask=mask, use_cache=False, **extra).logits.log_softmax(-1)
    out = []
    for k, r in enumerate(rows):
        first = ids.shape[1] - (len(r.tokens) - 1) if left else 0
        out.append(torch.stack([-log_p[k, first + t - 1, int(r.tokens[t])] for t in range(r.start, len(r.tokens))]))
    return out


def row_gradients(model: nn.Module, rows: Sequence[Encoded], *, left: bool = False) -> list[dict[str, Tensor]]:
    """The gradient of each row's own mean loss with respect to every parameter, one backward pass per row, same
    batch."""
    parameters = dict(model.named_parameters())
    wanted = {n: p.requires_grad for n, p in parameters.items()}
    model.requires_grad_(True)
    out = []
    for k in range(len(rows)):
        loss = row_token_losses(model, rows, left=left)[k].mean()
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        found = zip(parameters.items(), grads, strict=True)
        out.append({n: torch.zeros_like(p) if g is None else g for (n, p), g in found})
    for n, p in parameters.items():
        p.requires_grad_(wanted[n])
    return out


def scores_by_position(model: nn.Module, row: Encoded, means: Mapping[str, Tensor]) -> Tensor:
    """How the row's mean loss changes when, at one position alone, every linear or embedding weight W in `means` is
    moved along its mean M (the output gets `eps_t M a_t`), [t]."""
    eps = torch.zeros(len(row.tokens) - 1, dtype=torch.float64, requires_grad=True)
    names = {id(p): n for n, p in model.named_parameters() if n in means}
    handles = []
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)) and id(module.weight) in names:
            handles.append(module.register_forward_hook(_moved(means[names[id(module.weight)]], eps)))
    loss = row_token_losses(model, [row])[0].mean()
    for handle in handles:
        handle.remove()
    (found,) = torch.autograd.grad(loss, [eps])
    return found


def _moved(mean: Tensor, eps: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        more = mean[args[0]] if isinstance(module, nn.Embedding) else args[0] @ mean.T
        return out + eps.unsqueeze(1) * more

    return hook
