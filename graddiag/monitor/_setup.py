"""Can this model, its blocks and its optimizer be watched, and what is kept of the run?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graddiag.alarms import Choice, Limits
from graddiag.blocks import Selected, select_blocks
from graddiag.errors import UsageError
from graddiag.extraction import ready
from graddiag.head import inner_model
from graddiag.monitor._alerts import Alerts
from graddiag.monitor._rows import Keeper
from graddiag.monitor._window import Watch

_LAYER = re.compile(r"\.\d+(?=\.)")


def check_numbers(**numbers: int) -> None:
    """Raises UsageError for a number below 1."""
    for name, value in numbers.items():
        if value < 1:
            raise UsageError(f"{name}={value}: the monitor needs a whole number of at least 1.")


def unwrapped(model: Module) -> PreTrainedModel:
    """The model itself, without the wrapper of distributed training. Raises UsageError for a compiled one."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if "_orig_mod" in dict(inner.named_children()):
        raise UsageError(
            "The model is compiled, and a compiled model goes past the hooks. Give the monitor and the loop the model "
            "as it was before torch.compile."
        )
    inner_model(inner)
    return inner  # type: ignore[return-value]  # or a PEFT model around one, which has the same methods


def trained(model: PreTrainedModel, patterns: Sequence[str] | None) -> tuple[Selected, ...]:
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


def inner_optimizer(optimizer: Optimizer | None, blocks: Sequence[Selected]) -> Optimizer | None:
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


def scale_of(optimizer: Optimizer | None) -> Callable[[], float]:
    """By what a loss is multiplied: the factor of the GradScaler that accelerate's optimizer has, else 1."""
    scaler = getattr(optimizer, "scaler", None)
    found: Callable[[], float] = (lambda: 1.0) if scaler is None else scaler.get_scale
    return found


@dataclass(frozen=True)
class Wanted:
    """The rows that are to be kept, as `extract` would be asked for them."""

    projection: str
    dim: int
    seed: int
    target: str
    max_length: int | None


def keeping(
    watch: Watch, tokenizer: PreTrainedTokenizerBase, wanted: Wanted, *, folder: str | Path, process: int
) -> Watch:
    """The same watch, which also keeps rows in a folder of this process. Raises UsageError where no block has any."""
    names = [b.block.name for b in watch.row_blocks]
    if not names:
        raise UsageError(
            f"None of the {len(watch.blocks)} blocks has example rows, the first is {watch.blocks[0].block.name!r}, so "
            f"projection={wanted.projection!r} has nothing to keep. Leave it out, or name linear weights with "
            "blocks=[...]."
        )
    like = ready(
        watch.extractor.model, tokenizer, blocks=names, projection=wanted.projection, dim=wanted.dim, seed=wanted.seed,
        target=wanted.target, max_length=wanted.max_length,
    )  # fmt: skip
    place = Path(folder) / (f"rows-of-process-{process}" if process else "rows")
    return replace(watch, keeper=Keeper(place, like))


def alerts_of(
    watch: Watch, limits: Limits | None, action: Choice, *, every: int, folder: str | Path | None, process: int
) -> Alerts:
    """The rules of a run; of several processes, the first keeps the log and speaks."""
    config = watch.extractor.model.config
    name = str(config.name_or_path) or type(watch.model).__name__
    facts = {"model": name, "safety": f"{len(watch.safety)} examples", "every": f"{every} steps at first"}
    if other := without_rows(watch):
        facts["blocks without example rows"] = ", ".join(other)
    log = Path(folder) if folder is not None and process == 0 else None
    return Alerts(limits, action, every=every, folder=log, facts=facts, unseen=on_rows(watch), quiet=process > 0)


def without_rows(watch: Watch) -> tuple[str, ...]:
    """The names of the blocks in which an example's share of the gradient cannot be told."""
    rows = watch.row_blocks
    return tuple(b.block.name for b in watch.blocks if b not in rows)


def on_rows(watch: Watch) -> tuple[str, ...]:
    """What must be said where some blocks have no rows: which, by kind, and which numbers lack them."""
    other = without_rows(watch)
    if not other:
        return ()
    kinds = Counter(_LAYER.sub(".*", name) for name in other)
    named = ", ".join(f"{kind} ({n})" if n > 1 else kind for kind, n in kinds.items())
    return (
        f"{len(other)} of {len(watch.blocks)} blocks have no example rows: {named}. Norms, tied and fused parameters "
        "are in the batch's gradient, the update and its prediction, but not in the examples' numbers: conflict and "
        "culprits do not see them, and update_conflict and drift take chance from the other blocks alone.",
    )
