"""graddiag: what fine-tuning data does to a model's safety alignment, from per-example losses and gradients."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "extract": "graddiag.extraction",
    "read_states": "graddiag.reading",
    "compare": "graddiag.pipeline",
    "screen": "graddiag.screening",
    "erode": "graddiag.erosion",
    "report": "graddiag.reporting",
    "Comparison": "graddiag.comparison",
    "Signals": "graddiag.signals",
    "GraddiagError": "graddiag.errors",
    "loss_gap": "graddiag.analyzers",
    "conflict": "graddiag.analyzers",
    "framing": "graddiag.analyzers",
    "alignment": "graddiag.analyzers",
    "alignment_adam": "graddiag.analyzers",
    "shift": "graddiag.analyzers",
    "subspace_overlap": "graddiag.analyzers",
    "behaviour": "graddiag.analyzers",
    "refusal_score": "graddiag.analyzers",
    "direction": "graddiag.analyzers",
    "refusal_direction": "graddiag.analyzers",
    "compare_weights": "graddiag.weight_changes",
    "load_model": "graddiag.models",
    "Monitor": "graddiag.monitor",
    "MonitorCallback": "graddiag.monitor",
    "LightningMonitor": "graddiag.monitor._lightning",
}
__all__ = [
    "Comparison",
    "GraddiagError",
    "LightningMonitor",
    "Monitor",
    "MonitorCallback",
    "Signals",
    "alignment",
    "alignment_adam",
    "behaviour",
    "compare",
    "compare_weights",
    "conflict",
    "direction",
    "erode",
    "extract",
    "framing",
    "load_model",
    "loss_gap",
    "read_states",
    "refusal_direction",
    "refusal_score",
    "report",
    "screen",
    "shift",
    "subspace_overlap",
]

if TYPE_CHECKING:
    from graddiag.analyzers import (
        alignment,
        alignment_adam,
        behaviour,
        conflict,
        direction,
        framing,
        loss_gap,
        refusal_direction,
        refusal_score,
        shift,
        subspace_overlap,
    )
    from graddiag.comparison import Comparison
    from graddiag.erosion import erode
    from graddiag.errors import GraddiagError
    from graddiag.extraction import extract
    from graddiag.models import load_model
    from graddiag.monitor import Monitor, MonitorCallback
    from graddiag.monitor._lightning import LightningMonitor
    from graddiag.pipeline import compare
    from graddiag.reading import read_states
    from graddiag.reporting import report
    from graddiag.screening import screen
    from graddiag.signals import Signals
    from graddiag.weight_changes import compare_weights


def __getattr__(name: str) -> object:
    """Public names are imported when they are first used, so that `import graddiag` stays quick and torch-free."""
    if name not in _HOME:
        raise AttributeError(f"module 'graddiag' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
