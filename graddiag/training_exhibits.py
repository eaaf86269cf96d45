"""Which figures the report of a monitored run has, how each is read, and which numbers it shows."""

from __future__ import annotations

from dataclasses import fields

from graddiag.alarms import Limits
from graddiag.picture import Picture
from graddiag.tables import Table, block_table
from graddiag.training_figures import Losses, plot_training, worst
from graddiag.training_view import Course, LayerCourse, Suspect, TrainingView

FIGURES = ("alignment", "safety_loss", "layers", "worst")


def pictures(view: TrainingView) -> tuple[Picture, ...]:
    """The figures of a monitored run."""
    course, layers = view.course, view.layers
    shown = worst(view.suspects)
    return (
        Picture(
            "alignment",
            "Alignment over steps",
            "Cosine of the mean safety gradient, taken anew at each probe, with the batch's gradient and with what the "
            "optimizer subtracted; below, the share of a batch's examples that oppose. Dotted lines are alarms.",
            lambda: plot_training(course),
            _course_table(course),
        ),
        Picture(
            "safety_loss",
            "Safety loss over steps",
            "Above, the mean loss of the safety examples; below, its change over the same examples beside the sum of "
            "the predictions, each standing for the steps up to the next probe.",
            lambda: plot_training(Losses(course)),
            _loss_table(course),
        ),
        Picture(
            "layers",
            "Layers over time",
            "From red (-1, the layer's gradient opposes safety) to blue (+1); grey is undefined.",
            lambda: plot_training(layers),
            _layer_table(layers),
        ),
        Picture(
            "worst",
            "The worst examples",
            "Examples by the sum of their products with the safety gradient: a step on those below 0 raises the loss "
            "on safe answers, to first order. Ids are digests of tokens and mask.",
            lambda: plot_training(shown),
            _suspect_table(view.suspects),
        ),
    )


def _course_table(course: Course) -> Table:
    header = ("step", "cosine", "update_cosine", "opposed_share", "nonfinite", "overhead", "alarms")
    alarms = [", ".join(a.rule for a in course.alarms if a.step == s) or None for s in course.steps]
    numbers = (course.steps, course.cosine, course.update_cosine, course.opposed, course.nonfinite, course.overhead)
    return Table("alignment", header, tuple(zip(*(n.tolist() for n in numbers), alarms, strict=True)))


def _loss_table(course: Course) -> Table:
    header = ("step", "loss", "loss_se", "change", "change_se", "predicted_change")
    numbers = (course.loss, course.loss_error, course.change, course.change_error, course.predicted)
    return Table("safety_loss", header, tuple(zip(course.steps.tolist(), *(n.tolist() for n in numbers), strict=True)))


def _layer_table(layers: LayerCourse) -> Table:
    lines = zip(layers.steps.tolist(), *layers.cosine.tolist(), strict=True)
    return Table("layers", ("step", *(f"layer {name}" for name in layers.layers)), tuple(lines))


def _suspect_table(suspects: tuple[Suspect, ...]) -> Table:
    names = [f.name for f in fields(Suspect)]
    return Table("worst", tuple(names), tuple(tuple(getattr(s, n) for n in names) for s in suspects))


def training_tables(view: TrainingView) -> dict[str, Table]:
    """The tables of a monitored run that stand behind no figure, by their titles."""
    run = view.run
    alarms = [(a.step, a.rule, a.value, a.limit, a.says, ", ".join(a.ids)) for a in run.alarms]
    limits = [(f.name, getattr(run.limits, f.name)) for f in fields(Limits)]
    return {
        "Every alarm": Table("alarms", ("step", "rule", "value", "limit", "says", "examples"), tuple(alarms)),
        "Every notice": Table(
            "notices", ("step", "about", "says"), tuple((n.step, n.about, n.says) for n in run.notices)
        ),
        "Every key": Table("summary", ("key", "value"), tuple(view.summary().items())),
        "Every block": block_table(view.block_summary()),
        "Limits": Table("limits", ("limit", "value"), tuple(limits)),
    }
