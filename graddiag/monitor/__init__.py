"""The same signals inside a training loop: each probe measures one step beside a fresh safety gradient."""

from graddiag.monitor._callback import MonitorCallback
from graddiag.monitor._monitor import Monitor

__all__ = ["Monitor", "MonitorCallback"]
