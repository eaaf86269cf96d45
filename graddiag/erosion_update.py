"""What a run has kept of the update of its models' weights: it must be of the models and rows that it speaks of."""

from __future__ import annotations

from graddiag.analyzers import AnswerChange, answer_change
from graddiag.erosion_setting import ALIGNED, ErosionRun, model_lines
from graddiag.errors import DataError
from graddiag.weight_file import WEIGHTS_FILE, KeptWeights, read_weights


def kept_weights(run: ErosionRun) -> KeptWeights | None:
    """What was compared; None where nothing was. Raises DataError where it is of other models than the saved tables, or
    of another safety set."""
    if not run.setting.weights:
        return None
    kept = read_weights(run.folder / WEIGHTS_FILE)
    held = model_lines({role: run.table(role, run.setting.sets[0]).provenance.weights for role in run.setting.models})
    if kept.models != held:
        others = ", ".join(dict.fromkeys(line.partition(" ")[0] for line in sorted(set(kept.models) ^ set(held))))
        raise DataError(
            f"{run.folder / WEIGHTS_FILE} is of other models than the saved tables ({others}). Give the erosion "
            "command again."
        )
    if run.setting.safety_gradient and kept.safety != run.table(ALIGNED, run.setting.parts["safety"]).rows:
        raise DataError(
            f"{run.folder / WEIGHTS_FILE} was made with the safety gradient of other rows, or with none. Give the "
            "erosion command again."
        )
    return kept


def safe_answers(run: ErosionRun) -> AnswerChange | None:
    """What happened to the answers whose loss the safety gradient speaks of; None where there is no such gradient."""
    return answer_change(run.change("safety"), seed=run.setting.seed) if run.setting.safety_gradient else None
