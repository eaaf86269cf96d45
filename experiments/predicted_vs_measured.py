"""Does one step on one example change the safety loss as its gradient predicts, and up to which step size?

usage: python experiments/predicted_vs_measured.py [--models tiny,smollm2] [--report-only]

For each row of a few sets: the real step of torch's SGD or AdamW (state warmed up on safety and benign rows, no weight
decay) at several learning rates, the safety loss before and after by plain forward passes, and the parameters put back
bit for bit. Predicted is minus the learning rate times the exact product of the step with the mean safety gradient, as
`graddiag.extract` gives it. Everything in float64, so that rounding does not blur small steps. Writes
figures/predicted_vs_measured.json, .svg and .png; a model's numbers are replaced only where it was run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import graddiag
from graddiag.data import ExampleSet, read_set
from graddiag.encoding import Encoded, encode
from graddiag.models import load_model
from graddiag.ranking import spearman

FIGURE = Path("figures/predicted_vs_measured")
SETS = ("insecure", "educational", "secure", "benign")
SLOPE, RANK = (0.95, 1.05), 0.95  # aim: slope within, Spearman correlation at least
RATES = {"SGD": (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0), "AdamW": (1e-7, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3)}
WARM_RATE, WARM_STEPS = 1e-4, 4  # of AdamW, so that its moments are those of real gradients
COLOURS = {"SGD": "#0072B2", "AdamW": "#D55E00"}  # Okabe and Ito


@dataclass(frozen=True)
class Scale:
    """How much of what is used: rows per set, safety rows, tokens per row, blocks, and every how many-th rate."""

    rows: int
    safety: int
    tokens: int
    blocks: tuple[str, ...] | None = None
    rates_apart: int = 1


SCALES = {"tiny": Scale(12, 8, 1024), "smollm2": Scale(5, 4, 128, ("model.layers.2?.mlp.down_proj",), 2)}


@dataclass(frozen=True)
class Step:
    """One step size: what was predicted for each row and what came, nats/token of the safety loss."""

    optimizer: str
    rate: float
    predicted: tuple[float, ...]
    measured: tuple[float, ...]

    @property
    def slope(self) -> float:
        """Least-squares slope of measured on predicted through 0: no step, no change; NaN beside a broken model."""
        p, m = np.array(self.predicted), np.array(self.measured)
        return float(p @ m / (p @ p))

    @property
    def rank(self) -> float:
        """Spearman correlation over rows."""
        return spearman(np.array(self.predicted), np.array(self.measured))

    @property
    def size(self) -> float:
        """Mean size of the predicted change, nats/token."""
        return float(np.abs(self.predicted).mean())

    @property
    def holds(self) -> bool:
        """Whether the aim is met."""
        return SLOPE[0] <= self.slope <= SLOPE[1] and self.rank >= RANK


@dataclass(frozen=True)
class Bench:
    """A model and the rows that steps are taken on and measured with; only `parameters` are moved."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    parameters: tuple[nn.Parameter, ...]
    rows: ExampleSet
    safety: ExampleSet
    scale: Scale

    def encoded(self, examples: ExampleSet) -> tuple[Encoded, ...]:
        """The rows as tokens."""
        return encode(examples, self.tokenizer, max_length=self.scale.tokens).rows

    def safety_loss(self) -> float:
        """Mean over the safety rows, each alone, of the mean loss of its target tokens."""
        with torch.no_grad():
            return float(np.mean([row_loss(self.model, r).item() for r in self.encoded(self.safety)]))

    def gradients(self, row: Encoded) -> tuple[Tensor, ...]:
        """Of one row's loss, by plain autograd."""
        return torch.autograd.grad(row_loss(self.model, row), self.parameters)


def row_loss(model: PreTrainedModel, row: Encoded) -> Tensor:
    """Mean loss of a row's target tokens by the model's own logits, nats/token."""
    tokens = torch.from_numpy(row.tokens.astype(np.int64))
    logits = model(tokens.unsqueeze(0)).logits[0, row.start - 1 : -1]
    return nn.functional.cross_entropy(logits, tokens[row.start :])


def bench(name: str, scale: Scale) -> Bench:
    """The built-in model in float64, with the first rows of each set."""
    model, tokenizer = load_model(name, device="cpu")
    model = model.double().eval()
    examples = [e for s in SETS for e in read_set(s, limit=scale.rows).examples]
    safety = read_set("safety", limit=scale.safety)
    for p in model.parameters():
        p.requires_grad_(False)
    blocks = graddiag.extract(
        model, tokenizer, as_rows(safety)[:1], blocks=scale.blocks, max_length=scale.tokens, dim=1
    ).blocks  # fmt: skip
    chosen = tuple(model.get_parameter(b).requires_grad_(True) for b in blocks)
    unique = [type(e)(f"{k}", e.cluster, e.messages) for k, e in enumerate(examples)]
    return Bench(model, tokenizer, chosen, ExampleSet("rows", tuple(unique)), safety, scale)


def as_rows(examples: ExampleSet) -> list[dict[str, object]]:
    """The examples as they are read from a file."""
    return [{"id": e.id, "cluster": e.cluster, "messages": [asdict(m) for m in e.messages]} for e in examples.examples]


def warmed(on: Bench) -> AdamW:
    """AdamW after a few real steps on safety and benign rows; the model is where these steps led."""
    optimizer = AdamW(on.parameters, lr=WARM_RATE, weight_decay=0.0)
    some = ExampleSet(
        "warm", (*read_set("safety", limit=60).examples[-2:], *read_set("benign", limit=60).examples[-2:])
    )
    for row in on.encoded(some)[:WARM_STEPS]:
        apply(optimizer, on, on.gradients(row), WARM_RATE)
    return optimizer


def apply(optimizer: Optimizer, on: Bench, gradients: Sequence[Tensor], rate: float) -> None:
    """One real step at a learning rate, with these gradients."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    for p, g in zip(on.parameters, gradients, strict=True):
        p.grad = g.clone()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def predictions(on: Bench, optimizer: Optimizer) -> np.ndarray:
    """Predicted change of the safety loss per unit of learning rate by a step on each row, [n]."""
    measure = partial(
        graddiag.extract,
        on.model,
        on.tokenizer,
        as_rows(on.rows),
        safety=as_rows(on.safety),
        blocks=on.scale.blocks,
        max_length=on.scale.tokens,
        dim=1,
    )
    if isinstance(optimizer, SGD):
        return np.asarray(-sum(measure().reference_dot.values()))
    signals = measure(optimizer=optimizer)
    assert signals.adam is not None
    return np.asarray(-sum(signals.adam_dot.values()) - sum(signals.adam.dot.values()))


def steps(on: Bench, optimizer: Optimizer, rates: Sequence[float]) -> list[Step]:
    """Every row's step at every learning rate, from the same parameters and the same state of the optimizer."""
    kept = [p.detach().clone() for p in on.parameters]
    state = copy.deepcopy(optimizer.state_dict())
    predicted, before = predictions(on, optimizer), on.safety_loss()
    measured = np.zeros((len(rates), len(predicted)))
    for i, row in enumerate(on.encoded(on.rows)):
        gradients = on.gradients(row)
        for k, rate in enumerate(rates):
            apply(optimizer, on, gradients, rate)
            measured[k, i] = on.safety_loss() - before
            with torch.no_grad():
                for p, old in zip(on.parameters, kept, strict=True):
                    p.copy_(old)
            optimizer.load_state_dict(copy.deepcopy(state))
    name = type(optimizer).__name__
    return [Step(name, r, tuple(r * predicted), tuple(m)) for r, m in zip(rates, measured, strict=True)]


def run(name: str) -> dict[str, object]:
    """All steps of one model as plain numbers."""
    on = bench(name, SCALES[name])
    rates = {optimizer: some[:: on.scale.rates_apart] for optimizer, some in RATES.items()}
    found = steps(on, SGD(on.parameters, lr=1.0), rates["SGD"])
    found += steps(on, warmed(on), rates["AdamW"])
    return {"scale": asdict(SCALES[name]), "blocks": len(on.parameters), "steps": [told(s) for s in found]}


def told(step: Step) -> dict[str, object]:
    """A step with what it comes to."""
    plain = asdict(step) | {"slope": step.slope, "spearman": step.rank, "size": step.size, "holds": step.holds}
    return plain | {
        "measured": [finite(m) for m in step.measured],
        "slope": finite(step.slope),
        "spearman": finite(step.rank),
    }


def finite(x: float) -> float | None:
    """The number, None where it is not finite: a step so large that the model's loss is none any more."""
    return x if math.isfinite(x) else None


def read(content: dict[str, object]) -> list[Step]:
    """The steps of one model, from its numbers."""
    saved = content["steps"]
    assert isinstance(saved, list)
    return [Step(s["optimizer"], s["rate"], tuple(s["predicted"]), _floats(s["measured"])) for s in saved]


def _floats(saved: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if x is None else x for x in saved)


def holds_up_to(found: Sequence[Step]) -> float:
    """The largest predicted change below which every step meets the aim, nats/token; NaN where the smallest misses."""
    size = math.nan
    for step in sorted(found, key=lambda s: s.size):
        if not step.holds:
            return size
        size = step.size
    return size


def draw(models: dict[str, list[Step]]) -> plt.Figure:
    """Slope and rank correlation against the size of the predicted change."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained", sharex=True)
    for (name, found), marker in zip(models.items(), "osD", strict=False):
        for optimizer, colour in COLOURS.items():
            own = [s for s in found if s.optimizer == optimizer]
            sizes, label = [s.size for s in own], f"{name}, {optimizer}"
            line = "-" if marker == "o" else "--"
            left.plot(sizes, [s.slope for s in own], line, marker=marker, color=colour, label=label, ms=5)
            right.plot(sizes, [s.rank for s in own], line, marker=marker, color=colour, label=label, ms=5)
    left.axhspan(*SLOPE, color="0.88", zorder=0)
    right.axhspan(RANK, 1.0, color="0.88", zorder=0)
    left.set(xscale="log", ylabel="slope of measured on predicted", title="Size of the change")
    right.set(ylabel="Spearman correlation over rows", title="Order of the rows", ylim=(-1.05, 1.05))
    low, high = left.get_ylim()
    left.set_ylim(max(low, -1.5), min(high, 2.5))
    figure.supxlabel("mean predicted change of the safety loss by one step on one row, nats/token", fontsize=10)
    left.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def main() -> None:
    """Takes the steps and keeps the numbers and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny,smollm2")
    parser.add_argument("--report-only", action="store_true", help="draw the saved numbers again")
    given = parser.parse_args()
    file = FIGURE.with_suffix(".json")
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"models": {}}
    for name in [] if given.report_only else given.models.split(","):
        kept["models"][name] = run(name)
        kept["versions"] = {v: version(v) for v in ("graddiag", "torch", "transformers")}
    found = {name: read(content) for name, content in kept["models"].items()}
    kept["command"] = f"python experiments/predicted_vs_measured.py --models {','.join(found)}"
    kept["aim"] = {"slope": SLOPE, "spearman": RANK}
    for name, some in found.items():
        for o in COLOURS:
            kept["models"][name][f"holds_up_to:{o}"] = finite(holds_up_to([s for s in some if s.optimizer == o]))
    file.write_text(json.dumps(kept, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    figure = draw(found)
    for form in ("svg", "png"):
        figure.savefig(FIGURE.with_suffix(f".{form}"), dpi=150)
    for name, some in found.items():
        for s in some:
            print(
                f"{name:8} {s.optimizer:5} {s.rate:7.0e}  size {s.size:.2e}  slope {s.slope:+.3f}  rank {s.rank:+.3f}"
            )


if __name__ == "__main__":
    main()
