"""What every command does: its common options, one document or a text on stdout, thresholds that were crossed."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from functools import wraps

import click

from graddiag.options import OUTPUT, Threshold

CROSSED = 1


def command_line() -> str:
    """The command, as it would be typed again."""
    return shlex.join(["graddiag", *sys.argv[1:]])


def common(f: Callable[..., int | None]) -> Callable[..., int | None]:
    """Options every measuring command has, checked before anything runs."""

    @wraps(f)
    def checked(*args: object, verbose: bool, fail_on: tuple[str, ...], **given: object) -> int | None:
        thresholds = [Threshold.parse(t) for t in fail_on]
        if not verbose:
            _silence_libraries()
        return f(*args, thresholds=thresholds, **given)

    return OUTPUT(checked)


def _silence_libraries() -> None:
    import warnings

    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def print_found(content: Mapping[str, object], text: str, *, as_json: bool) -> None:
    """The content as one JSON document, or the text."""
    click.echo(json.dumps(content, allow_nan=False, indent=1) if as_json else text)


def cross(thresholds: list[Threshold], summary: Mapping[str, float | None]) -> int:
    """The exit code, 1 where a threshold is crossed; says which."""
    crossed = [said for t in thresholds if (said := t.crossed(summary))]
    for said in crossed:
        click.echo(said, err=True)
    return CROSSED if crossed else 0
