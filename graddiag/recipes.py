"""Options of a command from a TOML file: below what is typed and what the environment says, above the defaults."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path

import click

from graddiag.errors import UsageError

_OWN = "recipe"


def follow_recipe(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    """Makes what a recipe says the defaults of this command. Raises UsageError for a recipe that cannot be followed."""
    if path is not None:
        context.default_map = read_recipe(path, context.command)
    return path


def read_recipe(path: Path, command: click.Command) -> dict[str, object]:
    """Values by the name of the command's parameters; keys are those of its long options, `batch-tokens` for one.

    Raises UsageError for a file that is not there or no TOML, for a key that is no option of the command, and for a
    value of another kind than its option takes.
    """
    options = {_key(o): o for o in command.params if isinstance(o, click.Option) and _key(o) != _OWN}
    values: dict[str, object] = {}
    for key, value in _content(path).items():
        if key not in options:
            close = difflib.get_close_matches(key, options, n=3, cutoff=0.3)
            raise UsageError(
                f"{path}: {key!r} is no option of 'graddiag {command.name}'. Closest: {', '.join(close) or 'none'}. "
                "Keys are options without their dashes in front, all at the top level; sets are typed."
            )
        values[str(options[key].name)] = _value(path, key, value, options[key])
    return values


def _key(option: click.Option) -> str:
    return next((o.removeprefix("--") for o in option.opts if o.startswith("--")), "")


def _content(path: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--recipe {path}: {error.strerror}. Give a TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--recipe {path} is not TOML: {error}.") from error


def _value(path: Path, key: str, value: object, option: click.Option) -> object:
    """The value as its option takes it: true or false, a list where it is repeatable, else a text or number."""
    if option.multiple and isinstance(value, list) and all(_is_one(v) for v in value):
        return [str(v) for v in value]
    if option.is_flag and isinstance(value, bool):
        return value
    if _is_one(value) and not option.is_flag:
        return [str(value)] if option.multiple else str(value)
    wanted = "true or false" if option.is_flag else "a text or number" + (", or a list" if option.multiple else "")
    raise UsageError(f"{path}: {key} = {value!r} is not {wanted}, as --{key} takes it.")


def _is_one(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)
