"""Options that several commands share, each also an environment variable GRADDIAG_NAME, and thresholds on keys."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click

from graddiag.errors import UsageError
from graddiag.recipes import follow_recipe

F = TypeVar("F", bound=Callable[..., object])


def option(name: str, *more: str, **settings: object) -> Callable[[F], F]:
    """A click option with its environment variable; its default is shown."""
    variable = "GRADDIAG_" + name.split("/", maxsplit=1)[0].lstrip("-").replace("-", "_").upper()
    return click.option(name, *more, envvar=variable, show_envvar=False, show_default=True, **settings)  # type: ignore[arg-type]


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, shown in this order."""

    def decorate(f: F) -> F:
        for one in reversed(options):
            f = one(f)
        return f

    return decorate


DEVICE = together(
    option(
        "--dtype", default=None, help="float32, bfloat16 or float16; by default float32 on a CPU, else the model's own."
    ),
    option("--device", default=None, help="cpu, cuda, cuda:1, ...; by default a GPU where there is one."),
)
MODEL = together(
    option("--model", default="smollm2", metavar="NAME|DIR|HUB_ID", help="Model: a built-in name, a folder, a hub id."),
    option("--revision", default=None, metavar="COMMIT", help="Revision of a hub model."),
    option("--trust-remote-code", is_flag=True, help="Run code from the hub; only with a full --revision."),
    DEVICE,
)
BLOCKS = option(
    "--blocks",
    multiple=True,
    metavar="GLOB",
    help="Parameter blocks (repeatable); by default the linear weights inside the decoder layers.",
)
MAX_LENGTH = option("--max-length", default=None, type=int, help="Tokens per row; by default the model's context.")
TARGET = option("--target", default="answer", help="Tokens that the loss averages: answer, or all.")
LENGTHS = together(
    option("--limit", default=None, type=int, help="Only the first N rows of each set."),
    MAX_LENGTH,
    option("--batch-tokens", default=2048, help="Padded tokens per batch."),
)
BAD_ROWS = together(
    option("--skip-bad-rows", is_flag=True, help="Leave out unusable rows, counted, instead of stopping."),
    option("--max-nonfinite", default=0.01, help="Share of rows whose loss or gradient may be not finite."),
)
ROWS = together(
    LENGTHS,
    option(
        "--cluster",
        default=None,
        metavar="COLUMN|mod:N",
        help="What rows of the set (of LEFT and RIGHT) have in common: the unit of resampling.",
    ),
    BAD_ROWS,
)
MEASURE = together(
    BLOCKS,
    TARGET,
    option(
        "--projection",
        default=None,
        help="exact, logra, sjlt, dense or lowrank (see the README).  [default: compare chooses; else logra]",
    ),
    option(
        "--dim",
        default=None,
        type=int,
        help="Numbers per row and block; a square for two-sided kinds.  [default: compare chooses; else 256]",
    ),
    option(
        "--reference",
        default=None,
        metavar="SET|RUN",
        help="Of lowrank: the set whose mean gradient says where to look, or a run with its bases; by default the "
        "first 16 rows of the safety set, else of LEFT.",
    ),
    ROWS,
    option("--seed", default=0, help="Seed of projections and permutations."),
)
SAVE = together(
    option(
        "--out",
        default=None,
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder of the run; by default runs/NAMES.",
    ),
    option("--overwrite", is_flag=True, help="Replace signals of something else that are in the folder."),
)
CONTROL = option(
    "--control",
    multiple=True,
    metavar="SET",
    help="Control sets (repeatable); 'none' for none.  [default: benign for built-in sets]",
)
AGAINST = together(
    option(
        "--safety",
        default=None,
        metavar="SET",
        help="Safe answers to harmful requests; 'none' for none.  [default: safety for built-in sets]",
    ),
    CONTROL,
    option("--pairs", default="exact", help="Products of pairs: exact or projected."),
    option(
        "--center", is_flag=True, help="Subtract the grand mean before cosines; pushes cosines between sets below zero."
    ),
)
EDITS = together(
    *(
        option(f"--{what}-{side}", default=None, metavar="TEXT", help=help_text.format(side=side.upper()))
        for what, help_text in (
            ("strip", "Compare once more without this text at the end of each last user turn of {side}."),
            ("append", "Compare once more with this text at the end of each last user turn of {side}."),
        )
        for side in ("left", "right")
    )
)
MEAN_MEMORY = option(
    "--mean-memory",
    default=None,
    metavar="BYTES",
    help="Bytes for the mean safety gradient, such as 8GiB; above, blocks take turns.  [default: half of the free]",
)
TOWARD = option(
    "--safety",
    default=None,
    metavar="SET",
    help="Safe answers to harmful requests: rows get their exact products with its mean gradient.",
)
EXACT = together(
    option(
        "--token-scores",
        is_flag=True,
        help="Save through which position each row's gradient points along the mean safety gradient.",
    ),
    option(
        "--optimizer",
        default=None,
        type=click.Path(path_type=Path),
        metavar="PATH",
        help="State of Adam or AdamW (optimizer.pt, or a Trainer's checkpoint folder): alignment of its steps too.",
    ),
    MEAN_MEMORY,
)
OUTPUT = together(
    option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else on stdout."),
    option(
        "--fail-on",
        multiple=True,
        metavar="'KEY<NUMBER'",
        help="Exit with 1 if this holds of the summary (repeatable).",
    ),
    option(
        "--recipe",
        default=None,
        type=click.Path(path_type=Path),
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=follow_recipe,
        help="Options from a TOML file: limit = 40, control = ['benign'], ...; what is typed goes before it.",
    ),
    option("--verbose", "-v", is_flag=True, help="Say more: warnings of libraries."),
    option("--quiet", "-q", is_flag=True, help="No progress."),
)


def against(left: str, right: str, safety: str | None, control: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """The safety set and the control sets by name, with the defaults for built-in sets; 'none' turns each off."""
    from graddiag.data import BUILT_IN_SETS

    built_in = {left, right} <= {s.name for s in BUILT_IN_SETS}
    chosen = safety or ("safety" if built_in else None)
    controls = tuple(control) or (("benign",) if built_in else ())
    named: dict[str, str] = {}
    for source in controls:
        if source != "none":
            name = Path(source).stem
            if name in named:
                raise UsageError(f"Two control sets are called {name!r}: {named[name]} and {source}. Rename one file.")
            named[name] = source
    return (None if chosen == "none" else chosen), named


@dataclass(frozen=True)
class Threshold:
    """A condition on a key of the summary, such as `alignment/left<0`."""

    key: str
    sign: str
    number: float

    @staticmethod
    def parse(text: str) -> Threshold:
        """Raises UsageError unless the text is KEY<NUMBER or KEY>NUMBER."""
        found = re.fullmatch(r"\s*([^<>\s]+)\s*(<=|>=|<|>)\s*([-+0-9.eE]+)\s*", text)
        try:
            return Threshold(found[1], found[2], float(found[3])) if found else _no_threshold(text)
        except ValueError:
            return _no_threshold(text)

    def crossed(self, summary: Mapping[str, float | None]) -> str | None:
        """What to say if the condition holds, or the value is undefined; None if it does not hold.

        Raises UsageError where there is no such key.
        """
        if self.key not in summary:
            close = difflib.get_close_matches(self.key, summary, n=3, cutoff=0.3)
            raise UsageError(f"--fail-on: there is no key {self.key!r} in this summary. Closest: {', '.join(close)}.")
        value = summary[self.key]
        if value is None:
            return f"--fail-on {self.key}{self.sign}{self.number:g}: the value is undefined, which counts as a failure."
        holds = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}[self.sign]
        return (
            f"--fail-on {self.key}{self.sign}{self.number:g}: the value is {value:.6g}."
            if holds(value, self.number)
            else None
        )


def _no_threshold(text: str) -> Threshold:
    raise UsageError(
        f"--fail-on {text!r} is not of the form 'KEY<NUMBER' or 'KEY>NUMBER', for example 'alignment/left<0'."
    )
