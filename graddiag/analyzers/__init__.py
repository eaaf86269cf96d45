"""What do two tables say about each other: pure functions from a Comparison to a frozen result."""

from graddiag.analyzers._alignment import Alignment, AlignmentScope, alignment
from graddiag.analyzers._alignment_adam import AdamAlignment, alignment_adam
from graddiag.analyzers._audit import Audit, audit
from graddiag.analyzers._conflict import Conflict, ConflictScope, conflict
from graddiag.analyzers._framing import Framing, FramingScope, framing
from graddiag.analyzers._gram import gram
from graddiag.analyzers._loss_gap import LossGap, loss_gap
from graddiag.analyzers._matrix import CosineMatrix, cosine_matrix
from graddiag.analyzers._training import Training, training

__all__ = [
    "AdamAlignment",
    "Alignment",
    "AlignmentScope",
    "Audit",
    "Conflict",
    "ConflictScope",
    "CosineMatrix",
    "Framing",
    "FramingScope",
    "LossGap",
    "Training",
    "alignment",
    "alignment_adam",
    "audit",
    "conflict",
    "cosine_matrix",
    "framing",
    "gram",
    "loss_gap",
    "training",
]
