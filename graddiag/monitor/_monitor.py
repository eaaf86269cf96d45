"""Which steps are probed, and what an error of ours does to the training loop: nothing."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graddiag.blocks import Selected, select_blocks
from graddiag.data import Source, read_set
from graddiag.encoding import encode
from graddiag.errors import UsageError
from graddiag.extraction import BATCH_TOKENS, ready, row_length
from graddiag.head import inner_model
from graddiag.monitor._check import WrongRows
from graddiag.monitor._rows import Keeper, check_kept
from graddiag.monitor._window import Watch, Window
from graddiag.probes import Probe
from graddiag.projection import Toward
from graddiag.readings import bare_extractor

KEPT = 64  # probes that a monitor remembers
NOT_STEPPED = "The gradients were emptied without a step of the optimizer (not finite?): no update was measured."
RANK = 16  # of the stand-in for the safety gradient
_log = logging.getLogger("graddiag")


class Monitor:
    """Says at every `every`-th optimizer step whether the step opposes the mean gradient of the `safety` examples.

    Around a loop's own forward and backward pass: `with monitor.step(batch): ...`. A step is done when `optimizer` (if
    given) has stepped, inside the with-block or after it, whatever number of with-blocks that takes; without one, after
    `accumulation` with-blocks. Each probe is a `Probe`, given to `on_probe` as soon as it is complete; the last 64 are
    in `probes`. What `on_probe` raises reaches the loop.

    The training is not changed: weights after any number of steps are bit for bit what they would be. Probed are the
    trained `blocks` (patterns as everywhere; by default linear weights inside the decoder layers). Examples are
    multiplied with a stand-in of rank `rank` for the safety gradient, or with that itself if `exact`. `scale` says by
    what a loss is multiplied before its backward pass and its gradients are divided after it: `scaler.get_scale` of a
    GradScaler.

    With a `projection` ("logra" and others, `dim`, `seed` as in `extract`) the examples' gradients are kept, as
    signals, in `folder/rows/step-...`; their ids are places in the run, their digests those of the same rows elsewhere.

    An error of the monitor turns it off, is logged once and kept in `failed`; with `strict` it is raised. One error
    always is, before the optimizer's first step: rows that plain autograd does not confirm (at the first probe).
    Raises UsageError or DataError for settings and examples that cannot be used.
    """

    def __init__(
        self,
        model: Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        safety: Source,
        every: int = 10,
        optimizer: Optimizer | None = None,
        accumulation: int = 1,
        blocks: Sequence[str] | None = None,
        rank: int = RANK,
        exact: bool = False,
        scale: Callable[[], float] | None = None,
        target: str = "answer",
        max_length: int | None = None,
        projection: str | None = None,
        dim: int = 256,
        seed: int = 0,
        folder: str | Path | None = None,
        batch_tokens: int = BATCH_TOKENS,
        on_probe: Callable[[Probe], None] | None = None,
        strict: bool = False,
    ) -> None:
        _check_numbers(every=every, accumulation=accumulation, rank=rank)
        check_kept(projection, folder)
        inner = _unwrapped(model)
        chosen = _trained(inner, blocks)
        encoded = encode(read_set(safety), tokenizer, target=target, max_length=row_length(inner, max_length))
        extractor = bare_extractor(inner, chosen, Toward())
        watch = Watch(inner, extractor, encoded.rows, batch_tokens, rank, scale or (lambda: 1.0))
        if projection is not None and folder is not None:
            names = [b.block.name for b in watch.row_blocks]
            rows = ready(
                inner, tokenizer, blocks=names, projection=projection, dim=dim, seed=seed, target=target,
                max_length=max_length,
            )  # fmt: skip
            watch = replace(watch, keeper=Keeper(Path(folder) / "rows", rows))
        self._watch = watch
        self.every, self.exact, self.strict = every, exact, strict
        self.steps = 0  # optimizer steps taken
        self.failed: Exception | None = None
        self.probes: deque[Probe] = deque(maxlen=KEPT)
        self._accumulation, self._in_step = accumulation, 0
        self._on_probe, self._ready = on_probe, list[Probe]()
        self._window: Window | None = None
        self._probed, self._first = -1, True  # the last step of which a probe was begun; whether none is complete
        self._any_optimizer: RemovableHandle | None = None
        self._notes: tuple[str, ...] = (*encoded.notes, *_on_rows(self._watch))
        self._optimizer = _inner_optimizer(optimizer, chosen)
        self._handles = self._on_optimizer()

    def _on_optimizer(self) -> ExitStack:
        """Hooks on the optimizer, which stay there: they count its steps."""
        stack = ExitStack()
        if self._optimizer is not None:
            before = self._optimizer.register_step_pre_hook(lambda *_: self._before_optimizer())
            after = self._optimizer.register_step_post_hook(lambda *_: self._after_optimizer())
            stack.callback(before.remove)
            stack.callback(after.remove)
        return stack

    @contextmanager
    def step(self, batch: Mapping[str, object] | None = None) -> Iterator[None]:
        """Around the forward and backward pass of one batch, or of several.

        Errors of the loop pass through, and end the probe. What the model is not given itself (labels, where the loss
        is the loop's own) is looked up in `batch`.
        """
        self.begin(batch)
        try:
            yield
        except BaseException:
            self.abandon()
            raise
        self.end()

    def begin(self, batch: Mapping[str, object] | None = None) -> None:
        """What happens before a step's forward pass; for loops that have no room for a with-block."""
        with self._never_in_the_way():
            if self.failed is None:
                self._begin(batch or {})
        self._emit()

    def end(self) -> None:
        """What happens after a step's backward pass."""
        with self._never_in_the_way():
            if self.failed is None:
                self._end()
        self._emit()

    def abandon(self) -> None:
        """Forgets the step that is being probed, and takes all hooks off the model."""
        if self._any_optimizer is not None:
            self._any_optimizer.remove()
            self._any_optimizer = None
        if self._window is not None:
            self._window.close()
            self._window = None

    def close(self) -> None:
        """Takes the monitor off model and optimizer for good."""
        self.abandon()
        self._handles.close()

    def _begin(self, batch: Mapping[str, object]) -> None:
        if self._window is not None and self._optimizer is not None and self._watch.grads_are_gone():
            self._finish(NOT_STEPPED)
        if self._window is None and self.steps % self.every == 0 and self.steps != self._probed:
            self._probed = self.steps
            self._window = Window(self._watch, self.steps, exact=self.exact, check=self._first)
        if self._window is not None:
            self._window.open(batch)
            if self._first and self._optimizer is None:
                self._any_optimizer = register_optimizer_step_pre_hook(lambda *_: self._before_optimizer())

    def _end(self) -> None:
        if self._any_optimizer is not None:
            self._any_optimizer.remove()
            self._any_optimizer = None
        if self._window is not None:
            self._window.close()
        if self._optimizer is None:
            self._in_step += 1
            if self._in_step >= self._accumulation:
                self._in_step = 0
                self.steps += 1
                self._finish()

    def _before_optimizer(self) -> None:
        """Just before a step: the last moment for the first check."""
        with self._never_in_the_way():
            if self._window is not None:
                self._window.settle()
                if self._optimizer is not None:
                    self._window.before_update()

    def _after_optimizer(self) -> None:
        self.steps += 1
        with self._never_in_the_way():
            self._finish()
        self._emit()

    def _finish(self, *notes: str) -> None:
        """Turns the step that is being probed, if there is one, into a probe."""
        if self._window is None:
            return
        said = (*self._notes, *self._watch.extractor.notes, *notes)
        self._notes = ()
        self._watch.extractor.notes.clear()
        probe = self._window.probe(said)
        self._window, self._first = None, False
        self.probes.append(probe)
        self._ready.append(probe)

    def _emit(self) -> None:
        """Hands complete probes on, where what is raised reaches the loop."""
        while self._ready:
            probe = self._ready.pop(0)
            if self._on_probe is not None:
                self._on_probe(probe)

    @contextmanager
    def _never_in_the_way(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, it is not the training's fault
            self.failed = error
            self.close()
            if self.strict or isinstance(error, WrongRows):
                raise
            _log.exception("graddiag's monitor is off from step %d on; the training goes on without it.", self.steps)


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise UsageError(f"{name}={value}: the monitor needs a whole number of at least 1.")


def _unwrapped(model: Module) -> PreTrainedModel:
    """The model itself, without the wrapper of distributed training. Raises UsageError for a compiled one."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if "_orig_mod" in dict(inner.named_children()):
        raise UsageError(
            "The model is compiled, and a compiled model goes past the hooks. Give the monitor and the loop the model "
            "as it was before torch.compile."
        )
    inner_model(inner)
    return inner  # type: ignore[return-value]  # or a PEFT model around one, which has the same methods


def _trained(model: PreTrainedModel, patterns: Sequence[str] | None) -> tuple[Selected, ...]:
    """The chosen blocks. Raises UsageError where one was named that is not trained, or none is trained."""
    chosen = select_blocks(model, patterns)
    frozen = [b.block.name for b in chosen if not b.parameter.requires_grad]
    if len(frozen) == len(chosen) or (frozen and patterns is not None):
        raise UsageError(
            f"{len(frozen)} of {len(chosen)} chosen blocks are not trained (requires_grad is False), the first is "
            f"{frozen[0]!r}. Name trained ones with blocks=[...], and make the monitor after parameters are frozen or "
            "adapters added."
        )
    return tuple(b for b in chosen if b.parameter.requires_grad)


def _inner_optimizer(optimizer: Optimizer | None, blocks: Sequence[Selected]) -> Optimizer | None:
    """The optimizer whose step is the real one. Raises UsageError where it has none of the blocks."""
    if optimizer is None:
        return None
    inner: Optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps the one that it was given
    known = {id(p) for group in inner.param_groups for p in group["params"]}
    if not any(id(b.parameter) in known for b in blocks):
        raise UsageError(
            f"The optimizer has none of the {len(blocks)} watched blocks, the first is {blocks[0].block.name!r}. Pass "
            "the optimizer that trains this model, made before the monitor."
        )
    return inner


def _on_rows(watch: Watch) -> tuple[str, ...]:
    other = [b.block.name for b in watch.blocks if b not in watch.row_blocks]
    return (
        (
            f"{len(other)} of {len(watch.blocks)} blocks, the first is {other[0]!r}, are in the batch's gradient and "
            "the update, but not in the examples' numbers: an example's share of them cannot be told there.",
        )
        if other
        else ()
    )
