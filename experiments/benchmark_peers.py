"""Other libraries on the batches and blocks of benchmark_extraction: a step each, or None where it is missing."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from graddiag.head import Batch

SIDE = 16  # random rows a side, as in a projection of 256 numbers
Step = Callable[[], None]


def _summed_loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    mask = (torch.arange(batch.tokens.shape[1]) < torch.tensor(batch.lengths)[:, None]).long()
    logits = model(input_ids=batch.tokens, attention_mask=mask, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), batch.targets, reduction="sum", ignore_index=-100
    )


def _only_the_embedding_trains(model: PreTrainedModel) -> None:
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)


def bergson(model: PreTrainedModel, batches: Sequence[Batch]) -> Step | None:
    """bergson's collector over the decoder's linear layers."""
    if importlib.util.find_spec("bergson") is None:
        return None
    from bergson.collector.gradient_collectors import GradientCollector
    from bergson.config import IndexConfig
    from bergson.gradients import GradientProcessor
    from datasets import Dataset

    _only_the_embedding_trains(model)
    collector = GradientCollector(
        model=model.base_model,
        cfg=IndexConfig(run_path=tempfile.mkdtemp()),
        data=Dataset.from_dict({"input_ids": [[0]] * max(len(b.lengths) for b in batches)}),
        processor=GradientProcessor(projection_dim=SIDE),
        skip_index=True,
    )

    def step() -> None:
        _only_the_embedding_trains(model)
        for batch in batches:
            with collector:
                _summed_loss(model, batch).backward()
                dict(collector.mod_grads)
            model.zero_grad(set_to_none=True)
        model.requires_grad_(False)

    return step


def dattri_llm(model: PreTrainedModel, batches: Sequence[Batch]) -> Step | None:
    """dattri-llm's hooks over the same layers, LoGra."""
    if importlib.util.find_spec("dattri_llm") is None:
        return None
    from dattri_llm import HookManager, HookManagerConfig

    def step() -> None:
        _only_the_embedding_trains(model)
        settings = dict(style="logra", proj_dim=SIDE, proj_max_batch_size=8, proj_type="rademacher")
        manager = HookManager(
            model,
            config=HookManagerConfig(
                linear_io=[r"proj$"],
                capture_style="materialized",
                include_frozen=True,
                projection_kwargs={"__default__": settings},
            ),
        )
        for batch in batches:
            with manager.collect():
                _summed_loss(model, batch).backward()
            manager.get_gradient()
            model.zero_grad(set_to_none=True)
        manager.remove()
        model.requires_grad_(False)

    return step


PEERS: dict[str, Callable[[PreTrainedModel, Sequence[Batch]], Step | None]] = {
    "bergson 16 x 16": bergson,
    "dattri-llm LoGra 16 x 16": dattri_llm,
}
