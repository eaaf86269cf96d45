"""Planted numbers of a comparison, for what is said of them."""

from __future__ import annotations

from graddiag.rules import Setting

SETTING = Setting("insecure", "educational", "safety", ("benign",))
OPPOSED = {
    "conflict/paired_cosine": -0.3, "conflict/low": -0.4, "conflict/high": -0.2, "conflict/p": 0.001,
    "conflict/same_cluster": 0.1, "conflict/negative_fraction": 0.9,
}  # fmt: skip


def cosine(key: str, value: float, half: float = 0.02) -> dict[str, float | None]:
    return {key: value, f"{key}/low": value - half, f"{key}/high": value + half}


def planted(**changes: float | None) -> dict[str, float | None]:
    """Two sides that share a direction: nothing between them, both aligned with safety like the control."""
    out: dict[str, float | None] = {
        "pairs/n": 120, "pairs/identical": 120, "pairs/clusters": 20, "projection/error": 0.01,
        "loss_gap/mean": 0.01, "loss_gap/low": -0.05, "loss_gap/high": 0.07, "loss_gap/p": 0.7,
        "loss_gap/effect_size": 0.04,
        "conflict/paired_cosine": 0.8, "conflict/low": 0.75, "conflict/high": 0.85, "conflict/p": 0.001,
        "conflict/same_cluster": 0.4, "conflict/negative_fraction": 0.0, "conflict/mean_gradient_cosine": 0.9,
        "framing/consistency": 1.1, "framing/p": 0.4,
        "alignment/difference/p": 0.6,
    }  # fmt: skip
    out |= cosine("conflict/mean_gradient_cosine_corrected", 0.95)
    out |= cosine("framing/safety_cosine", 0.0) | cosine("framing/safety_cosine_corrected", 0.0)
    out |= cosine("alignment/left", 0.2) | cosine("alignment/right", 0.2) | cosine("alignment/control:benign", 0.2)
    out |= cosine("alignment/difference", 0.0)
    return out | {k.replace("__", "/"): v for k, v in changes.items()}


def the_line(lines: list[str], start: str) -> str:
    found = [line for line in lines if line.startswith(start)]
    assert len(found) == 1, (start, lines)
    return found[0]
