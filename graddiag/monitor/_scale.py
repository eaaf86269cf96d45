"""From the gradient of a batch's loss to that of each example's own mean loss: with what weight did a token count?"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from graddiag.errors import DataError
from graddiag.monitor._inputs import IGNORED, Inputs
from graddiag.startcheck import limit_for

_LOGITS_AT_ONCE = 2**25  # 128 MiB of float32
_SURE = 1e-12  # mean square of (1 - p): below it a batch is known by heart, and its gradient says nothing of weights

Hook = Callable[[Callable[[Tensor], None]], Callable[[Tensor], None]]


class TokenWeights:
    """The weight of each example's target tokens in what was sent backward.

    The model's own loss is the mean over all targets of the batch, or their sum over `num_items_in_batch`; what was
    done with it afterwards (divided by the accumulation, multiplied by a GradScaler) is the gradient that arrives at
    it. Where that loss is not there, not used, or not such a mean, the weights are read off the gradient of the logits,
    `w (softmax - onehot)`; where a fused head gives no logits but the log-probabilities of the labels (TRL), off that
    of those, `w`.
    """

    def __init__(self, inputs: Inputs, output: object, guarded: Hook) -> None:
        self._inputs = inputs
        loss, logits = loss_and_logits(output)
        self.token_losses: Float[Tensor, " m"] | None = None
        self._dtype = torch.float32
        self._factor: float | None = None
        self._label_grads: Tensor | None = None
        self._fused = False
        log_probs = log_probs_of(output)
        if logits is not None and logits.shape[:2] == inputs.targets.shape:
            self._dtype = logits.dtype
            self._at, self._labels = _places(inputs, logits.device)
            self.token_losses = _token_losses(logits.detach(), self._at, self._labels)
            logits.register_hook(guarded(self._label_grad))  # type: ignore[no-untyped-call]
        elif log_probs is not None and len(log_probs) == len(inputs.targets):
            self._dtype, self._fused = log_probs.dtype, True
            self._at = _places(inputs, log_probs.device)[0]
            self.token_losses = -log_probs.detach()[self._at]
            log_probs.register_hook(guarded(self._label_grad))  # type: ignore[no-untyped-call]
        if loss is not None and loss.requires_grad and self._is_the_mean(loss):
            loss.register_hook(guarded(self._loss_grad))  # type: ignore[no-untyped-call]

    @property
    def arrived(self) -> bool:
        """Whether the backward pass has come by."""
        return self._factor is not None or self._label_grads is not None

    def losses(self) -> Float[np.ndarray, " n"]:
        """Mean loss of each example, nats per token; NaN where the model gave no logits."""
        if self.token_losses is None:
            return np.full(len(self._inputs.segments), np.nan)
        means: np.ndarray = self._sums(self.token_losses) / self._inputs.counts
        return means

    def of_tokens(self) -> tuple[Float[np.ndarray, " _"], ...]:
        """The losses of each example's target tokens, nats; NaN where the model gave no logits."""
        if self.token_losses is None:
            return tuple(np.full(n, np.nan) for n in self._inputs.counts)
        owner, values = self._inputs.example_of_target, self.token_losses.double().cpu().numpy()
        return tuple(values[owner == k] for k in range(len(self._inputs.segments)))

    def factors(self) -> Float[np.ndarray, " n"]:
        """What the recorded gradient of each example must be multiplied with to be that of its own mean loss.

        Raises DataError where the tokens of an example did not count alike.
        """
        if self._factor is not None:
            weights = np.full(len(self._inputs.segments), self._factor / self._divisor())
        elif self._label_grads is not None and self.token_losses is not None:
            # What a token's loss has as gradient there: p - 1 at its label's logit, -1 at its log-probability.
            shape = torch.expm1(-self.token_losses.double())
            weights = self._fitted(self._label_grads, torch.full_like(shape, -1) if self._fused else shape)
        else:
            raise DataError(
                "No gradient arrived at the model's loss or logits, so the weight of a token in the batch's loss is "
                "not known. Call backward() inside monitor.step, on a loss that the model or its logits gave."
            )
        with np.errstate(divide="ignore"):
            factors: np.ndarray = 1 / (weights * self._inputs.counts)
        return factors

    def _divisor(self) -> float:
        return self._inputs.items or float((self._inputs.targets != IGNORED).sum())

    def _is_the_mean(self, loss: Tensor) -> bool:
        """Whether the model's loss is the sum over targets over what it should be divided by, as far as can be told."""
        if self.token_losses is None:
            return True
        mine, theirs = float(self.token_losses.double().sum()) / self._divisor(), float(loss.detach())
        return not np.isfinite(theirs) or abs(mine - theirs) <= limit_for(self._dtype) * abs(mine)

    def _loss_grad(self, grad: Tensor) -> None:
        self._factor = (self._factor or 0.0) + float(grad)

    def _label_grad(self, grad: Tensor) -> None:
        """Takes the gradient at the labels' logits, or at their log-probabilities."""
        if self._factor is None:
            found = (grad[self._at] if self._fused else grad[(*self._at, self._labels)]).double()
            self._label_grads = found if self._label_grads is None else self._label_grads + found

    def _fitted(self, found: Tensor, shape: Tensor) -> Float[np.ndarray, " n"]:
        """Least squares of `w shape` to the gradient at each label, a weight w per example."""
        if not self._inputs.segments:
            return np.zeros(0)
        known = self._sums(shape.square())
        total, sure = self._sums(found * shape), known < _SURE * self._inputs.counts
        weights = total / np.where(sure, 1, known)
        weights[sure] = np.nan
        off = self._sums((found - shape * torch.from_numpy(self._of_tokens(weights)).to(shape.device)).square())
        size = self._sums(found.square())
        bad = off > limit_for(self._dtype) ** 2 * size
        if bad.any() or sure.all():
            raise DataError(
                f"The target tokens of example {int(bad.argmax())} of the batch did not count alike in the loss that "
                "was sent backward, so its gradient is not that of a mean over its tokens. The monitor reads losses "
                "that are (weighted sums of) means of cross entropies over an example's tokens; label smoothing, "
                "weights per token and losses of other kinds are not."
            )
        weights[sure] = np.nanmean(weights)
        return weights

    def _of_tokens(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
        owner = self._inputs.example_of_target
        return np.where(owner < 0, 0.0, np.nan_to_num(values)[owner])

    def _sums(self, tokens: Float[Tensor, " m"]) -> Float[np.ndarray, " n"]:
        """The sum of a number per target over each example."""
        owner, n = self._inputs.example_of_target, len(self._inputs.segments)
        values = tokens.double().cpu().numpy()
        return np.bincount(owner[owner >= 0], weights=values[owner >= 0], minlength=n)


def loss_and_logits(output: object) -> tuple[Tensor | None, Tensor | None]:
    """The loss and the logits in what a model gave, each None where it is not there."""
    if isinstance(output, Mapping):
        values = [output.get("loss"), output.get("logits")]
    else:
        values = list(output[:2]) if isinstance(output, (list, tuple)) else [output]
    tensors = [x for x in values if isinstance(x, Tensor) and x.is_floating_point()]
    return next((x for x in tensors if x.dim() == 0), None), next((x for x in tensors if x.dim() == 3), None)


def log_probs_of(output: object) -> Tensor | None:
    """The log-probabilities [r, t] of the labels in what a model with a fused head gave, None where it has none."""
    found = output.get("log_probs") if isinstance(output, Mapping) else None
    return found if isinstance(found, Tensor) and found.dim() == 2 and found.requires_grad else None


def _places(inputs: Inputs, device: torch.device) -> tuple[tuple[Tensor, Tensor], Tensor]:
    rows, columns = np.nonzero(inputs.targets != IGNORED)
    labels = inputs.targets[rows, columns].astype(np.int64)
    r, c, y = (torch.from_numpy(x).to(device) for x in (rows, columns, labels))
    return (r, c), y


def _token_losses(logits: Float[Tensor, "r t v"], at: tuple[Tensor, Tensor], labels: Tensor) -> Float[Tensor, " m"]:
    step = max(1, _LOGITS_AT_ONCE // logits.shape[2])
    rows, columns = at
    parts = []
    with torch.no_grad():
        for k in range(0, len(labels), step):
            part = logits[rows[k : k + step], columns[k : k + step]]
            wide = part if part.dtype == torch.float64 else part.float()
            parts.append(torch.nn.functional.cross_entropy(wide, labels[k : k + step], reduction="none"))
    return torch.cat(parts) if parts else logits.new_zeros(0)
