"""One optimizer step that is looked at: from the fresh safety gradient to what the optimizer did."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from torch import nn

from graddiag.blocks import Kind, Selected, Use
from graddiag.capture import Call
from graddiag.encoding import Encoded
from graddiag.errors import DataError
from graddiag.extractor import Extractor
from graddiag.formation import form
from graddiag.gradients import Workspace
from graddiag.monitor._batch_gradient import BatchGradient, held
from graddiag.monitor._capture import Capture, Pass
from graddiag.monitor._check import FirstCheck
from graddiag.monitor._examples import OfExamples, Rows
from graddiag.monitor._guard import Guard
from graddiag.monitor._inputs import Given, Inputs
from graddiag.monitor._placing import layout
from graddiag.monitor._rows import Keeper, ProjectedRows
from graddiag.monitor._safety import measure_safety
from graddiag.monitor._standin import StandIn
from graddiag.monitor._update import UpdateReader
from graddiag.probes import Against, Probe

_BY_ROW = (Kind.LINEAR, Kind.CONV1D, Kind.BIAS, Kind.LOOKUP)


@dataclass(frozen=True, eq=False)
class Watch:
    """What is watched in every probe: a model's blocks, and the safety set as tokens."""

    model: nn.Module
    extractor: Extractor
    safety: tuple[Encoded, ...]
    batch_tokens: int
    rank: int
    scale: Callable[[], float]
    keeper: Keeper | None = None
    many: bool = False  # processes, each with examples of its own

    @property
    def blocks(self) -> tuple[Selected, ...]:
        """The blocks whose gradient and update are read."""
        return self.extractor.blocks

    @property
    def row_blocks(self) -> tuple[Selected, ...]:
        """Those of them in which each example's share of the gradient can be told."""
        return tuple(b for b in self.blocks if len(b.uses) == 1 and b.uses[0].kind in _BY_ROW)

    def grads_are_gone(self) -> bool:
        """Whether no watched parameter has a gradient that is not 0: a new step begins. Of many processes one may have
        zeros where others do not, so that only a gradient that is not there counts."""
        grads = (b.parameter.grad for b in self.blocks)
        return not any(g is not None and (self.many or bool(g.any())) for g in grads)


class Window:
    """A step from its first forward pass to the optimizer's step. Made just before the loop's own forward pass, since
    the safety pass freezes parameters for a moment."""

    def __init__(self, watch: Watch, step: int, *, exact: bool, check: bool) -> None:
        start = time.perf_counter()
        self.step, self._watch = step, watch
        self._guard, self._rows, self._workspace = Guard(), Rows(), Workspace()
        self._safety = measure_safety(watch.extractor, watch.safety, batch_tokens=watch.batch_tokens)
        rank = None if exact else watch.rank
        self._stand_ins = {n: StandIn.of(m, rank) for n, m in self._safety.means.items()}
        self._batch_gradient = BatchGradient(watch.blocks, self._stand_ins, watch.scale)
        self._check = FirstCheck(watch.model, watch.row_blocks) if check and watch.row_blocks else None
        self._capture = Capture(watch.model, watch.row_blocks, self._guard, before=self._before, consume=self._consume)
        self._update = UpdateReader(watch.blocks)
        self._kept = ProjectedRows(watch.keeper.like.projector) if watch.keeper else None
        self._open: ExitStack | None = None
        self._entered = 0.0
        self._of_loop = 0.0
        self._update_started: float | None = None
        self._of_examples: OfExamples | None = None
        self.shared: Against | None = None  # the gradient of all processes, where there are many
        self._guard.seconds += time.perf_counter() - start

    @property
    def is_open(self) -> bool:
        """Whether hooks are on the model now."""
        return self._open is not None

    def open(self, batch: Given) -> None:
        """Puts the hooks on the model and its parameters."""
        self._open = ExitStack()
        if self._watch.row_blocks:
            self._open.enter_context(self._capture.running(batch))
        self._open.enter_context(self._batch_gradient.running(self._guard))
        self._entered = time.perf_counter() - self._guard.seconds

    def close(self) -> None:
        """Takes the hooks away. Does nothing where there are none."""
        if self._open is not None:
            self._of_loop += time.perf_counter() - self._guard.seconds - self._entered
            self._open.close()
            self._open = None

    def settle(self) -> None:
        """Makes the examples' numbers, when all backward passes are done. Does nothing the second time.

        Raises the first error of the hooks, WrongRows where the first check fails, DataError where rows are missing.
        """
        if self._of_examples is not None:
            return
        start = time.perf_counter()
        self.close()
        self._guard.check()
        self._capture.finish()
        self._of_examples = self._examples()
        if self._watch.many:
            self.shared = held(self._watch.blocks, self._safety.means)
        self._guard.seconds += time.perf_counter() - start

    def before_update(self) -> None:
        """Keeps the weights, for `probe` to see what the optimizer makes of them."""
        start = time.perf_counter()
        self._update.before()
        now = time.perf_counter()
        self._guard.seconds += now - start
        self._update_started = None if self.is_open else now

    def probe(self, notes: Sequence[str]) -> Probe:
        """What was seen. Raises as `settle`."""
        start = time.perf_counter()
        if self._update_started is not None:
            self._of_loop += start - self._update_started
        self.settle()
        assert self._of_examples is not None
        update = self._update.after(self._safety.means)
        found, safety = self._of_examples, self._safety
        exact = all(s.exact for s in self._stand_ins.values())
        return Probe(
            step=self.step,
            safety_losses=safety.losses,
            safety_norms=safety.norms,
            gradient=self._batch_gradient.against(),
            ids=found.ids,
            dots=found.dots,
            norms=found.norms,
            losses=found.losses,
            dots_exact=exact,
            captured=1.0 if exact else self._captured(),
            update=update,
            predicted_change=-sum(update.dot.values()) if update else None,
            nonfinite=found.nonfinite,
            safety_nonfinite=safety.nonfinite,
            seconds=self._guard.seconds + time.perf_counter() - start,
            step_seconds=self._of_loop,
            notes=(*notes, *found.notes, *(self._check.notes if self._check else ())),
        )

    def _captured(self) -> float:
        whole = sum(n**2 for n in self._safety.norms.values())
        return sum(s.norm2 for s in self._stand_ins.values()) / whole if whole else float("nan")

    def _before(self, inputs: Inputs, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        if self._check is not None:
            self._check.before(inputs, args, kwargs)

    def _consume(self, one: Pass, b: Selected, use: Use, calls: Sequence[Call]) -> None:
        gradients = form(b, use, calls, layout(one.inputs))
        dot, norm2 = self._stand_ins[b.block.name].products(gradients, self._workspace)
        self._rows.add(one, b.block.name, dot, norm2)
        if self._kept is not None:
            self._kept.add(one, b, gradients, norm2)
        if self._check is not None and one.number == 0:
            self._check.see(b, gradients, calls[0].grads[0].dtype)

    def _examples(self) -> OfExamples:
        names = [b.block.name for b in self._watch.row_blocks]
        if not names:
            return OfExamples.none()  # products and norms of no block are undefined, not 0
        passes = [p for p in self._capture.passes if p.weights is not None and p.weights.arrived]
        self._rows.check_complete(self._capture.passes, names, self._batch_gradient)
        if not passes and self._watch.many:
            return OfExamples.none()  # the others' batches may have examples
        if not passes:
            raise DataError(
                f"{len(self._capture.passes)} forward passes of the model and no backward pass were seen inside "
                "monitor.step: 0 rows captured. Call the model that the monitor was given, and backward(), inside the "
                "with-block; and call it as it was before torch.compile, since what is compiled goes past the hooks."
            )
        parts = []
        for one in passes:
            assert one.weights is not None
            factors = one.weights.factors()
            if self._check is not None and one.number == 0:
                self._check.compare(factors)
            dots, norms = self._rows.of(one, names, factors)
            parts.append(OfExamples.of(one, dots, norms))
        if self._watch.keeper is not None and self._kept is not None:
            seen = repr((self._safety.losses.tolist(), self._safety.norms))
            self._watch.keeper.save(self.step, self._kept, passes, seen)
        uneven = self._rows.notes(passes, names, self._batch_gradient, self._stand_ins)
        return OfExamples.concat(parts, uneven)
