"""The command line: parse, one library call, print. Heavy imports happen inside the commands that need them."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from graddiag import __version__
from graddiag.erosion_command import erosion
from graddiag.errors import GraddiagError
from graddiag.interrupt import Interrupted
from graddiag.options import (
    AGAINST,
    BLOCKS,
    EDITS,
    EXACT,
    MAX_LENGTH,
    MEASURE,
    MODEL,
    SAVE,
    TOWARD,
    Threshold,
    against,
    option,
    together,
)
from graddiag.screen_command import screen
from graddiag.terminal import command_line, common, cross, print_found
from graddiag.text import visible

if TYPE_CHECKING:
    from graddiag.erosion_report import Eroded
    from graddiag.reporting import Result
    from graddiag.training_report import TrainingResult

FAILED, INTERRUPTED, BUG = 1, 128, 70


class _Quiet(click.Group):
    """A group whose commands end with the exit codes of the interface, whatever happens inside."""

    def main(self, *args: object, **kwargs: object) -> None:  # type: ignore[override]
        try:
            code = super().main(*args, standalone_mode=False, **kwargs)  # type: ignore[call-overload]
        except click.exceptions.Abort as abort:  # click's own name for a KeyboardInterrupt
            code = _interrupted(abort.__context__)  # before 8.1.4 click names no cause
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except GraddiagError as error:
            click.echo(f"Error: {error}", err=True)
            code = error.exit_code
        except BrokenPipeError:
            with suppress(OSError):
                os.close(sys.stdout.fileno())
            code = 0
        except Exception:
            click.echo(
                f"{traceback.format_exc()}\nThis is a bug in graddiag. Please report it with the lines above.", err=True
            )
            code = BUG
        sys.exit(code if isinstance(code, int) else 0)


def _interrupted(stop: BaseException | None) -> int:
    number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
    click.echo(f"\nStopped; everything finished so far is kept. To continue:\n  {command_line()}", err=True)
    return INTERRUPTED + number


@click.group(cls=_Quiet, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def main() -> None:
    """What does fine-tuning data do to a model's safety alignment? Per-example losses and gradients, and what they
    show."""


@main.command()
@click.argument("left")
@click.argument("right")
@together(AGAINST, EDITS, EXACT, MODEL, MEASURE, SAVE)
@option("--no-figures", is_flag=True, help="Leave figures and page out.")
@common
def compare(
    left: str, right: str, *, safety: str | None, control: tuple[str, ...], blocks: tuple[str, ...],
    as_json: bool, quiet: bool, no_figures: bool, thresholds: list[Threshold], **settings: object,
) -> int:  # fmt: skip
    """Signals of LEFT and RIGHT, every analysis that the inputs allow, one report.

    A set is a built-in name (insecure, educational, secure, safety, benign), a file (.jsonl, .json, .csv, .parquet), a
    Hugging Face dataset id (owner/name[:split]) or a folder of saved signals. The same command again continues an
    interrupted run.
    """
    from graddiag.pipeline import compare as run

    chosen, controls = against(left, right, safety, control)
    result = run(
        left, right, safety=chosen, controls=controls, blocks=blocks or None, quiet=quiet,
        figures=not no_figures, command=command_line(), **settings,  # type: ignore[arg-type]
    )  # fmt: skip
    return _show(result, thresholds, as_json=as_json)


@main.command()
@click.argument("set_name", metavar="SET")
@together(TOWARD, EXACT, MODEL, MEASURE, SAVE)
@common
def extract(
    set_name: str,
    *,
    safety: str | None,
    blocks: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    thresholds: list[Threshold],
    **settings: object,
) -> int:
    """Signals of one SET, saved; with --safety also those of the safety set, inside the same folder."""
    from graddiag.pipeline import extract_to

    toward = None if safety == "none" else safety
    found = extract_to(set_name, safety=toward, blocks=blocks or None, quiet=quiet, **settings)  # type: ignore[arg-type]
    signals = found.signals
    good = signals.loss[signals.finite]
    summary: dict[str, float | None] = {
        "rows": len(signals),
        "rows/nonfinite": int((~signals.finite).sum()),
        "rows/cut": int((signals.n_cut > 0).sum()),
        "tokens": int(signals.length.sum()),
        "loss": float(good.mean()),
    }
    text = "\n".join(f"{k}: {v:g}" for k, v in summary.items())
    for warning in found.warnings:
        click.echo(f"Warning: {visible(warning)}", err=True)
    print_found(summary, f"{text}\nSignals: {found.out}", as_json=as_json)
    return cross(thresholds, summary)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@option("--no-figures", is_flag=True, help="Leave figures and page out.")
@common
def report(run: Path, *, no_figures: bool, as_json: bool, quiet: bool, thresholds: list[Threshold]) -> int:
    """The report of a RUN again, from saved signals or the log of a monitored training run; no model needed."""
    from graddiag.reporting import report as again

    return _show(again(run, figures=not no_figures), thresholds, as_json=as_json)


@main.command()
@click.argument("left")
@click.argument("right")
@together(AGAINST, EDITS, EXACT, MODEL, MEASURE, SAVE)
@common
def plan(
    left: str, right: str, *, safety: str | None, control: tuple[str, ...], blocks: tuple[str, ...],
    as_json: bool, quiet: bool, thresholds: list[Threshold], **settings: object,
) -> int:  # fmt: skip
    """What a compare of LEFT and RIGHT would cost: rows, tokens, memory, disk, time; runs nothing big."""
    from graddiag.pipeline import plan_compare

    chosen, controls = against(left, right, safety, control)
    cost = plan_compare(left, right, safety=chosen, controls=controls, blocks=blocks or None, **settings)  # type: ignore[arg-type]
    print_found(cost.summary(), "\n".join(cost.lines()), as_json=as_json)
    return cross(thresholds, cost.summary())


@main.command()
@together(MODEL, BLOCKS, MAX_LENGTH)
@common
def selfcheck(
    *,
    blocks: tuple[str, ...],
    max_length: int | None,
    as_json: bool,
    quiet: bool,
    thresholds: list[Threshold],
    **how: object,
) -> int:
    """Does this model give the same gradients alone and in a batch, padded and not, as autograd?

    Runs on 8 rows of the built-in sets. Exit code 0: every check passed or could not be run (the table says why);
    1: a check failed.
    """
    from graddiag.models import load_model
    from graddiag.selfcheck import selfcheck as run

    model, tokenizer = load_model(how.pop("model"), **how)  # type: ignore[arg-type]
    found = run(model, tokenizer, blocks=blocks or None, max_length=max_length)
    print_found(found.document(), "\n".join(visible(line) for line in found.lines()), as_json=as_json)
    crossed = cross(thresholds, found.summary())
    return crossed if found.passed else FAILED


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else on stdout.")
def verify(run: Path, *, as_json: bool) -> int:
    """Every shard of a RUN, or of a folder of signals, against its checksum."""
    from graddiag.store import verify_all

    checked = verify_all(run)
    problems = [p for found in checked.values() for p in found]
    text = "\n".join([*problems, f"{len(checked)} folders checked, {len(problems)} problems."])
    print_found({"folders": {str(k): v for k, v in checked.items()}, "problems": len(problems)}, text, as_json=as_json)
    return 3 if problems else 0


@main.command(name="list")
@option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else on stdout.")
def list_(*, as_json: bool) -> None:
    """Built-in models and sets, and what each needs."""
    from graddiag.data import BUILT_IN_SETS
    from graddiag.models import BUILT_IN_MODELS

    models = [
        {"name": m.name, "description": m.description, "needs": m.needs, "installed": m.installed()}
        for m in BUILT_IN_MODELS
    ]
    sets = [{"name": s.name, "description": s.description, "rows": s.rows} for s in BUILT_IN_SETS]
    lines = ["Models"]
    lines += [
        f"  {m['name']:<12} {m['description']}  Needs: {m['needs']}{'' if m['installed'] else '  (not installed)'}"
        for m in models
    ]
    lines += ["Sets"] + [f"  {s['name']:<12} {s['rows']:>4} rows  {s['description']}" for s in sets]
    print_found({"models": models, "sets": sets}, "\n".join(lines), as_json=as_json)


main.add_command(screen)
main.add_command(erosion)


def _show(result: Result | TrainingResult | Eroded, thresholds: list[Threshold], *, as_json: bool) -> int:
    text = [*result.report.verdict, *(f"Warning: {w}" for w in result.report.warnings)]
    text += [f"Report: {result.report.html or result.report.json}", f"Again: {command_line()}"]
    print_found(json.loads(result.report.json.read_text(encoding="utf-8")), "\n".join(text), as_json=as_json)
    return cross(thresholds, result.summary())
