"""What the monitor costs, drawn and in words: each tier's step alone and whole step, beside its aim."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BATCH = "the batch's gradient"
AIMS = {"each example, low rank": 1.05, "rows kept as well (logra 256)": 1.12}
EVERY = (10, 50)  # steps between probes, of which the average is given


def draw(found: dict[str, dict[str, object]], target: Path) -> None:
    """Each tier's step alone and whole step, as shares of the plain step, with their ranges over the rounds."""
    names = [n for n in found if n in AIMS or n == BATCH or n.startswith("each example")]
    figure, axes = plt.subplots(figsize=(9, 0.8 * len(names) + 1.6), layout="constrained")
    for k, name in enumerate(reversed(names)):
        r = found[name]
        for shift, part, colour in ((0.2, r["step_alone"], "#0072B2"), (-0.2, r, "#E69F00")):
            axes.barh(k + shift, part["median"], color=colour, height=0.36)
            axes.plot([part["low"], part["high"]], [k + shift] * 2, color="black", linewidth=1.2)
        if r["aim"]:
            axes.plot([r["aim"]] * 2, [k, k + 0.42], color="#D55E00", linewidth=2)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set_xlabel(
        "share of a step that is not monitored, median and range:\nblue the step alone, red its aim, yellow with the "
        "pass over the safety set"
    )
    for form in ("svg", "png"):
        figure.savefig(target.with_suffix(f".{form}"), dpi=150)


def line(name: str, r: dict[str, object]) -> str:
    """One tier in words."""
    alone, beside = r["step_alone"], r["beside_the_batch"]
    aim = f" (aim {r['aim']:.2f})" if r["aim"] else ""
    averages = "  ".join(f"{r[f'average_every_{e}']:.3f} every {e}" for e in EVERY)
    return (
        f"{name:40s} step alone {alone['median']:.3f} [{alone['low']:.3f}, {alone['high']:.3f}]{aim}, "
        f"beside the batch's {beside['median']:.3f} [{beside['lower']:.3f}, {beside['upper']:.3f}]; "
        f"whole {r['median']:.2f} [{r['low']:.2f}, {r['high']:.2f}] {r['seconds']:.2f} s  {averages}"
    )
