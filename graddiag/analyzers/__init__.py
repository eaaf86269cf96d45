"""What do two tables say about each other: pure functions from a Comparison to a frozen result."""

from graddiag.analyzers._alignment import Alignment, AlignmentScope, alignment
from graddiag.analyzers._alignment_adam import AdamAlignment, alignment_adam
from graddiag.analyzers._audit import Audit, audit
from graddiag.analyzers._behaviour import AnswerChange, Behaviour, answer_change, behaviour
from graddiag.analyzers._blocks import BlockTests
from graddiag.analyzers._conflict import Conflict, ConflictScope, conflict
from graddiag.analyzers._direction import Direction, DirectionScope, direction
from graddiag.analyzers._edit_change import EditChange, edit_change
from graddiag.analyzers._framing import Framing, FramingScope, framing
from graddiag.analyzers._loss_gap import LossGap, loss_gap
from graddiag.analyzers._matrix import CosineMatrix, cosine_matrix
from graddiag.analyzers._overlap_scope import SubspaceScope
from graddiag.analyzers._refusal_direction import LayerRefusal, RefusalDirection, refusal_direction
from graddiag.analyzers._refusal_score import RefusalScore, refusal_score
from graddiag.analyzers._repeats import HeadlineResults, Repeats, repeats
from graddiag.analyzers._retention import LayerRetention
from graddiag.analyzers._shared_space import SharedSpace, shared_space
from graddiag.analyzers._spectrum import Shift, shift
from graddiag.analyzers._subspace import N_NULL, SubspaceOverlap, subspace_overlap
from graddiag.analyzers._tokens import MIN_COUNT, PairOnShow, Telling, Through, TokenView, token_view
from graddiag.analyzers._training import Training, training

__all__ = [
    "MIN_COUNT",
    "N_NULL",
    "AdamAlignment",
    "Alignment",
    "AlignmentScope",
    "AnswerChange",
    "Audit",
    "Behaviour",
    "BlockTests",
    "Conflict",
    "ConflictScope",
    "CosineMatrix",
    "Direction",
    "DirectionScope",
    "EditChange",
    "Framing",
    "FramingScope",
    "HeadlineResults",
    "LayerRefusal",
    "LayerRetention",
    "LossGap",
    "PairOnShow",
    "RefusalDirection",
    "RefusalScore",
    "Repeats",
    "SharedSpace",
    "Shift",
    "SubspaceOverlap",
    "SubspaceScope",
    "Telling",
    "Through",
    "TokenView",
    "Training",
    "alignment",
    "alignment_adam",
    "answer_change",
    "audit",
    "behaviour",
    "conflict",
    "cosine_matrix",
    "direction",
    "edit_change",
    "framing",
    "loss_gap",
    "refusal_direction",
    "refusal_score",
    "repeats",
    "shared_space",
    "shift",
    "subspace_overlap",
    "token_view",
    "training",
]
