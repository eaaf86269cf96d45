"""Which tokens did each model expect first after some prompts? What a run keeps of it, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from graddiag.erosion_setting import ErosionRun
from graddiag.errors import DataError
from graddiag.files import read_json, strict, write_json

TOKENS_FILE = "next_tokens.json"


@dataclass(frozen=True)
class Expected:
    """One token after a prompt: its text, and under each model (by its role) its log-probability, nats (None where it
    is impossible), and its rank."""

    id: int
    text: str
    log_probability: Mapping[str, float | None]
    rank: Mapping[str, int]


@dataclass(frozen=True)
class AfterPrompt:
    """The tokens that one model or another expects first after the prompt (role, content) of a row of a part."""

    part: str
    id: str
    messages: tuple[tuple[str, str], ...]
    tokens: tuple[Expected, ...]


def keep_tokens(folder: Path, prompts: tuple[AfterPrompt, ...]) -> None:
    """Writes what is known of the prompts into the folder of a run; without any prompt the file goes."""
    if prompts:
        write_json(folder / TOKENS_FILE, {"prompts": strict([asdict(p) for p in prompts])})
    else:
        (folder / TOKENS_FILE).unlink(missing_ok=True)


def expected_tokens(run: ErosionRun) -> tuple[AfterPrompt, ...]:
    """What the run has kept; nothing where it was not asked for. Raises DataError where that cannot be read."""
    if not run.setting.next_tokens:
        return ()
    path = run.folder / TOKENS_FILE
    prompts: list[dict[str, object]] = read_json(path).get("prompts")  # type: ignore[assignment]
    try:
        return tuple(_prompt(p) for p in prompts)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} does not hold tokens after prompts ({error}). Give the erosion command again."
        ) from error


def _prompt(content: Mapping[str, object]) -> AfterPrompt:
    tokens: list[dict[str, object]] = content["tokens"]  # type: ignore[assignment]
    messages: list[tuple[str, str]] = content["messages"]  # type: ignore[assignment]
    whole = {**content, "messages": tuple((r, t) for r, t in messages), "tokens": tuple(Expected(**t) for t in tokens)}  # type: ignore[arg-type]
    return AfterPrompt(**whole)  # type: ignore[arg-type]
