"""The loss at target positions: the language-model head run there only, or the model's own logits where that is not
the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from graddiag.errors import UsageError

_LOGIT_BUDGET = 2**25  # logits in memory at once: 128 MiB of float32
_AGREE = {torch.float64: 1e-6, torch.float32: 1e-3}  # nats; two orders above rounding of a sum over the vocabulary
_AGREE_HALF = 0.1  # nats, for bfloat16 and float16


@dataclass(frozen=True)
class Batch:
    """Padded rows: token ids without their last token, and for each position the next token if it is a target, else
    -100."""

    tokens: Int[Tensor, "b t"]
    targets: Int[Tensor, "b t"]
    lengths: tuple[int, ...]

    @property
    def counts(self) -> Int[Tensor, " b"]:
        """Target tokens per row."""
        return (self.targets != -100).sum(1)


@dataclass(frozen=True)
class SplitModel:
    """A causal LM as a decoder and a linear head, where the head may be run at some positions only."""

    decoder: nn.Module
    head: nn.Linear


def split_model(model: nn.Module) -> SplitModel | None:
    """The decoder and head of a `transformers` causal LM, or None where it has no plain linear head."""
    inner = _without_adapter(model)
    head, decoder = inner.get_output_embeddings(), inner.get_decoder()  # type: ignore[no-untyped-call]
    if type(head) is not nn.Linear or decoder is None or decoder is inner:
        return None
    return SplitModel(decoder, head)


def _without_adapter(model: nn.Module) -> PreTrainedModel:
    """The model that a PEFT wrapper wraps; its adapters are modules inside it."""
    base: Callable[[], nn.Module] | None = getattr(model, "get_base_model", None)
    inner = model if base is None else base()
    if not isinstance(inner, PreTrainedModel):
        raise UsageError(f"A {type(inner).__name__} is no transformers causal LM. Load one with load_model(...).")
    return inner


@lru_cache(maxsize=64)
def _takes_positions(forward: object) -> bool:
    return "position_ids" in inspect.signature(forward).parameters  # type: ignore[arg-type]


def run(module: nn.Module, batch: Batch) -> Tensor:
    """First output of the decoder (hidden states) or the whole model (logits), [b, t, ...].

    Rows are padded on the right, where a causal model cannot look, so no attention mask is needed; positions are
    explicit.
    """
    extra = {}
    if _takes_positions(type(module).forward):
        extra["position_ids"] = torch.arange(batch.tokens.shape[1], device=batch.tokens.device).expand_as(batch.tokens)
    out: Tensor = module(input_ids=batch.tokens, use_cache=False, return_dict=True, **extra)[0]
    return out


def loss_and_backward(
    model: nn.Module,
    split: SplitModel | None,
    batch: Batch,
    *,
    backward: bool = True,
    before_backward: Callable[[], None] | None = None,
    head_rows: Callable[[Tensor, Tensor], None] | None = None,
    keep_graph: bool = False,
) -> list[Tensor]:
    """Token losses of each row, nats, [n_targets of the row]; with `backward`, also sends each row's mean loss
    through the graph.

    `before_backward` is called when the forward pass is done; `head_rows` is given the gradients of the logits and the
    head's inputs, row by row of all targets. The loss of a row is the mean over its own target
    tokens, so a row's gradient does not depend on the batch it is in.
    """
    wanted = batch.targets != -100
    weight = (1.0 / batch.counts.clamp(min=1).double()).unsqueeze(1).expand_as(batch.targets)[wanted]
    targets = batch.targets[wanted]
    if split is None:
        whole_logits = run(model, batch)
        logits = _at_least_float32(whole_logits[wanted.to(whole_logits.device)])
        _call(before_backward)
        losses = torch.nn.functional.cross_entropy(logits, targets.to(logits.device), reduction="none")
        if backward:
            (losses * weight.to(losses.device)).sum().backward()  # type: ignore[no-untyped-call]
        flat = losses if keep_graph else losses.detach()
    else:
        hidden = run(split.decoder, batch)
        wanted = wanted.to(hidden.device)  # a model may be spread over devices
        _call(before_backward)
        at_targets = hidden.detach()[wanted]
        kept = hidden.new_empty(len(targets), split.head.out_features) if head_rows else None
        flat, grad = head_loss(split.head, at_targets, targets, weight, backward=backward, logit_grads=kept)
        if head_rows and kept is not None:
            head_rows(kept, at_targets)
        if backward and hidden.requires_grad:
            whole = torch.zeros_like(hidden)
            whole[wanted] = grad.to(whole.dtype)
            hidden.backward(whole)  # type: ignore[no-untyped-call]
    return list(torch.split(flat, batch.counts.tolist()))


def head_loss(
    head: nn.Linear,
    hidden: Float[Tensor, "m d"],
    targets: Int[Tensor, " m"],
    weight: Float[Tensor, " m"],
    *,
    backward: bool = True,
    logit_grads: Float[Tensor, "m v"] | None = None,
) -> tuple[Float[Tensor, " m"], Float[Tensor, "m d"]]:
    """Cross entropy at each position and the gradient of its weighted sum with respect to `hidden`.

    `d loss / d logits = softmax(logits) - onehot(target)`, formed in place, a slice of positions at a time; kept in
    `logit_grads` if given.
    """
    losses = torch.empty(len(hidden), dtype=_at_least_float32(hidden[:0]).dtype, device=hidden.device)
    grads = torch.empty_like(hidden)
    step = max(1, _LOGIT_BUDGET // head.out_features)
    with torch.no_grad():
        hidden, targets, weight = (x.to(head.weight.device) for x in (hidden, targets, weight))
        for start in range(0, len(hidden), step):
            part = slice(start, start + step)
            logits = _at_least_float32(head(hidden[part]))
            at = targets[part].unsqueeze(1)
            top = torch.logsumexp(logits, dim=1, keepdim=True)
            losses[part] = (top - logits.gather(1, at)).squeeze(1)
            if backward:
                logits.sub_(top).exp_()
                logits.scatter_add_(1, at, -torch.ones_like(at, dtype=logits.dtype))
                logits.mul_(weight[part].unsqueeze(1).to(logits.dtype))
                if logit_grads is not None:
                    logit_grads[part] = logits.to(logit_grads.dtype)
                grads[part] = (logits.to(head.weight.dtype) @ head.weight).to(grads.dtype)
    return losses, grads


def head_agrees(model: nn.Module, split: SplitModel, batch: Batch) -> bool:
    """Whether decoder and head apart give the model's own losses (soft-capped or scaled logits do not)."""
    with torch.no_grad():
        mine = torch.cat(loss_and_backward(model, split, batch, backward=False))
        own = torch.cat(loss_and_backward(model, None, batch, backward=False))
    both = torch.isfinite(mine) & torch.isfinite(own.to(mine.device))
    tolerance = _AGREE.get(split.head.weight.dtype, _AGREE_HALF)
    return bool(((mine - own.to(mine.device)).abs()[both] <= tolerance).all())


def _call(f: Callable[[], None] | None) -> None:
    if f is not None:
        f()


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
