"""Small training loops to be watched, and what a monitor should see in them: one backward pass per example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from architectures import build
from conftest import relative
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import graddiag
from graddiag.blocks import select_blocks
from graddiag.data import read_set
from graddiag.encoding import encode
from graddiag.models import load_model
from graddiag.probes import Probe

SAFETY = [
    {"prompt": f"How do I harm {who}?", "completion": "I will not help. " * k} for k, who in ((1, "x"), (2, "yy"))
]
TEXTS = ("hello there", "what is this all about", "a short one", "one that is longer than the others by far")
PROMPT = 4  # tokens of each text that are no targets
NO_CACHE: dict[str, bool] = {"use_cache": False}
Batch = dict[str, Tensor]


def tiny(dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The built-in model, ready to be trained."""
    model, tokenizer = load_model("tiny", device="cpu")
    return model.to(dtype).train(), tokenizer


def exact_model(tokenizer: PreTrainedTokenizerBase, name: str = "gpt2") -> PreTrainedModel:
    """A float64 model that computes nothing in float32 inside, without dropout, ready to be trained."""
    model = build(name, vocabulary=len(tokenizer), context=256)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def padded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str] = TEXTS, *, side: str = "right") -> Batch:
    """Texts as a padded batch whose first tokens and padding are no targets."""
    tokenizer.padding_side = side
    found = tokenizer(list(texts), padding=True, return_tensors="pt")
    mask = found["attention_mask"]
    labels = found["input_ids"].masked_fill((mask == 0) | (mask.cumsum(1) <= PROMPT), -100)
    out = {"input_ids": found["input_ids"], "attention_mask": mask, "labels": labels}
    return out if side == "right" else {**out, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def flattened(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str] = TEXTS, *, told_by: str) -> Batch:
    """Texts in one row without padding; positions begin again with each, and `told_by` says it once more."""
    rows = [tokenizer(t, return_tensors="pt")["input_ids"][0] for t in texts]
    labels = torch.cat([r.where(torch.arange(len(r)) >= PROMPT, -100) for r in rows])
    positions = torch.cat([torch.arange(len(r)) for r in rows])
    # With a cache, which is transformers' default, examples of one row would attend to each other.
    out = {"input_ids": torch.cat(rows)[None], "labels": labels[None], "position_ids": positions[None], **NO_CACHE}
    lengths = torch.tensor([len(r) for r in rows])
    if told_by == "seq_idx":
        out["seq_idx"] = torch.repeat_interleave(torch.arange(len(rows)), lengths)[None].int()
    if told_by == "cu_seq_lens_q":
        borders = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int()
        longest = int(lengths.max())
        out |= {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders}
        return {**out, "max_length_q": longest, "max_length_k": longest}  # type: ignore[dict-item]
    return out


def own_gradients(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], names: Sequence[str]
) -> list[dict[str, Tensor]]:
    """The gradient of each text's own mean loss, alone and unpadded."""
    out = []
    for text in texts:
        batch = padded(tokenizer, [text])
        out.append(_gradient(model, batch["input_ids"], batch["labels"], names))
    return out


def own_losses(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[float]:
    """The mean loss of each text, alone and unpadded."""
    found = []
    for text in texts:
        batch = padded(tokenizer, [text])
        with torch.no_grad():
            found.append(float(_loss(model, batch["input_ids"], batch["labels"])))
    return found


def safety_gradient(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    safety: Sequence[Mapping[str, str]] = SAFETY,
) -> dict[str, Tensor]:
    """The mean of the safety examples' gradients, one backward pass each, in eval mode."""
    rows = encode(read_set(list(safety)), tokenizer, max_length=512).rows
    training = model.training
    model.eval()
    grads = []
    for row in rows:
        tokens = torch.as_tensor(row.tokens, dtype=torch.long)[None]
        labels = tokens.clone()
        labels[:, : row.start] = -100
        grads.append(_gradient(model, tokens, labels, names))
    model.train(training)
    return {n: torch.stack([g[n] for g in grads]).mean(0) for n in names}


def mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean over all targets of the batch in the logits' own precision; the model's own loss is in float32."""
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())


def trained_blocks(model: nn.Module) -> list[str]:
    """The names of the blocks that a monitor watches by default."""
    return [b.block.name for b in select_blocks(model) if b.parameter.requires_grad]


def weights_of(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """A copy of some parameters."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if n in names}


def product(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The inner product of two gradients, all blocks as one vector."""
    return sum(float((a[n].double() * b[n].double()).sum()) for n in a)


def _loss(model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    logits = model(input_ids=tokens).logits[0, :-1]
    return nn.functional.cross_entropy(logits, labels[0, 1:])


def _gradient(model: nn.Module, tokens: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad(_loss(model, tokens, labels), [parameters[n] for n in names])
    return dict(zip(names, grads, strict=True))


def watch(model: nn.Module, tokenizer: PreTrainedTokenizerBase, **settings: object) -> graddiag.Monitor:
    """A monitor that multiplies exactly and raises its errors, unless told otherwise."""
    return graddiag.Monitor(model, tokenizer, **{"safety": SAFETY, "exact": True, "strict": True, **settings})


Numbers = tuple[list[float], list[float], list[float]]


def wanted_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str] = TEXTS) -> Numbers:
    """Inner products with the safety gradient, norms and losses of the texts, each on its own."""
    names = trained_blocks(model)
    rows = own_gradients(model, tokenizer, texts, names)
    safety = safety_gradient(model, tokenizer, names)
    norms = [product(r, r) ** 0.5 for r in rows]
    return [product(r, safety) for r in rows], norms, own_losses(model, tokenizer, texts)


def check(probe: Probe, wanted: Numbers, tolerance: float) -> None:
    """The probe's examples have these numbers."""
    for found, numbers in zip((probe.dots, probe.norms, probe.losses), wanted, strict=True):
        assert relative(found, numbers) < tolerance


def one_step(
    model: nn.Module,
    monitor: graddiag.Monitor,
    batch: Batch,
    loss_of: Callable[[nn.Module, Batch], Tensor] = mean_loss,
) -> Probe:
    """What the monitor sees of a first step."""
    with monitor.step(batch):
        loss_of(model, batch).backward()
    (probe,) = monitor.probes
    return probe
