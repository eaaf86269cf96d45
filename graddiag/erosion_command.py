"""The command `graddiag erosion`."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from graddiag.errors import UsageError
from graddiag.options import BAD_ROWS, DEVICE, LENGTHS, MEAN_MEMORY, SAVE, Threshold, option, together
from graddiag.terminal import command_line, common, cross, print_found

_MODEL = "NAME|DIR|HUB_ID"
MODEL_ROLES = ("base", "aligned", "tuned")
MODELS = together(
    option(
        "--base", default=None, metavar=_MODEL, help="The model before alignment; without it no alignment direction."
    ),
    option("--aligned", default=None, metavar=_MODEL, help="The aligned model.  [required]"),
    option(
        "--tuned", default=None, metavar=_MODEL, help="The aligned model after fine-tuning; or an adapter.  [required]"
    ),
    option("--revision", multiple=True, metavar="ROLE=COMMIT", help="Revision of a hub model (repeatable)."),
    option("--trust-remote-code", is_flag=True, help="Run code from the hub; only with a full --revision."),
    option("--lend-template", is_flag=True, help="Give the base the aligned model's tokenizer and chat template."),
)
SETS = together(
    option("--left", default="insecure", metavar="SET", help="First set whose shift is compared; 'none' for none."),
    option(
        "--right", default="educational", metavar="SET", help="Second set whose shift is compared; 'none' for none."
    ),
    option("--harmful", default="insecure", metavar="SET", help="Answers that should not be given; 'none' for none."),
    option("--benign", default="benign", metavar="SET", help="Harmless answers, the control; 'none' for none."),
    option(
        "--safety", default="safety", metavar="SET", help="Harmful requests: what is asked is refused? 'none' for none."
    ),
    option(
        "--control",
        multiple=True,
        metavar="SET",
        help="Further harmless sets (repeatable); 'none' for none.  [default: secure where --harmful is insecure]",
    ),
    option(
        "--cluster",
        default=None,
        metavar="COLUMN|mod:N",
        help="What rows of every set have in common: the unit of resampling, and of halves.",
    ),
)
HOW = together(
    option("--layers", default=None, metavar="N,N,...", help="Layers whose states are read, from 0.  [default: all]"),
    option("--components", default=None, type=int, help="Dimensions of a subspace.  [default: counted]"),
    option("--nulls", default=199, help="Draws of each null of an overlap; no p is below 1 / (1 + draws)."),
    option("--no-weights", is_flag=True, help="Leave out what happened to the weights."),
    option(
        "--safety-gradient",
        is_flag=True,
        help="Does the update raise the loss on --safety, to first order? A gradient under the aligned model.",
    ),
    MEAN_MEMORY,
    option("--seed", default=0, help="Seed of halves, nulls and sign flips."),
    option(
        "--generate", default=0, metavar="N", help="Let every model answer the first N prompts of --safety, --benign."
    ),
    option("--temperature", default=0.0, help="Of generated answers; 0 is greedy."),
    option("--new-tokens", default=128, help="Most tokens of a generated answer."),
    option("--next-tokens", default=3, metavar="N", help="Read the next token after the first N prompts; 0 for none."),
    option(
        "--intervene",
        default=None,
        metavar="N,N,...",
        help="Read given answers again without what the shifts of --left and --right share behind these layers.",
    ),
    option("--random-subspaces", default=20, help="Of --intervene: random subspaces of each kind, the control."),
    option("--no-figures", is_flag=True, help="Leave figures and page out."),
)


@click.command()
@together(MODELS, SETS, HOW, DEVICE, LENGTHS, BAD_ROWS, SAVE)
@common
def erosion(
    *, aligned: str | None, tuned: str | None, base: str | None, control: tuple[str, ...], layers: str | None,
    revision: tuple[str, ...], components: int | None, nulls: int, no_weights: bool, no_figures: bool, as_json: bool,
    intervene: str | None, quiet: bool, thresholds: list[Threshold], left: str, right: str, harmful: str, benign: str,
    safety: str, **settings: object,
) -> int:  # fmt: skip
    """Base, aligned and tuned model side by side: behaviour, alignment direction, shared dimension, weights.

    Losses and hidden states of every set are read under each model, one model in memory at a time, and saved; the same
    command again continues an interrupted run. Nothing is generated without --generate, and nothing judges an answer.
    """
    from graddiag.erosion import erode

    if aligned is None or tuned is None:
        raise UsageError("Erosion compares two models at least: give --aligned MODEL and --tuned MODEL.")
    named = {"left": left, "right": right, "harmful": harmful, "benign": benign, "safety": safety}
    found = erode(
        aligned=aligned, tuned=tuned, base=base, controls=_controls(control), layers=_layers(layers),
        intervene=_layers(intervene, "--intervene") or (),
        revisions=_revisions(revision), k=components, n_null=nulls, weights=not no_weights,
        figures=not no_figures, quiet=quiet, command=command_line(),
        **{part: None if one == "none" else one for part, one in named.items()}, **settings,  # type: ignore[arg-type]
    )  # fmt: skip
    text = [*found.report.verdict, *(f"Warning: {w}" for w in found.report.warnings)]
    text += [f"Report: {found.report.html or found.report.json}", f"Again: {command_line()}"]
    document = json.loads(found.report.json.read_text(encoding="utf-8"))
    print_found(document, "\n".join(text), as_json=as_json)
    return cross(thresholds, found.summary())


def _controls(named: Sequence[str]) -> dict[str, str] | None:
    return {one: one for one in named if one != "none"} if named else None


def _revisions(given: Sequence[str]) -> dict[str, str]:
    found = dict(one.partition("=")[::2] for one in given)
    wrong = [role for role, commit in found.items() if role not in MODEL_ROLES or not commit]
    if wrong:
        raise UsageError(
            f"--revision {wrong[0]!r} names no model. Give ROLE=COMMIT; roles are {', '.join(MODEL_ROLES)}."
        )
    return found


def _layers(text: str | None, option: str = "--layers") -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(n) for n in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text!r} is no list of layers. Give numbers from 0, such as 0,8,16.") from None
