"""Generated answers as tables, and side by side on the page."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup, escape

from graddiag.erosion_samples import MadeAnswer, Samples, first_words
from graddiag.tables import Cell, Table
from graddiag.text import visible

MOST_PROMPTS = 10  # of each set on the page; the table has all
MOST_CHARACTERS = 1500  # of a text on the page


@dataclass(frozen=True)
class Asked:
    """One prompt on the page, and every model's answer to it, under a heading each; safe as markup."""

    id: str
    prompt: Markup
    answers: tuple[tuple[str, Markup], ...]


@dataclass(frozen=True)
class SampleView:
    """What the page shows of the answers: how they are read, the shares, and the prompts under each set's heading."""

    reading: str
    shares: Table
    groups: tuple[tuple[str, tuple[Asked, ...]], ...]


def sample_view(result: Samples) -> SampleView:
    """The first prompts of each set with the answers of all models.

    Texts come from data and models: every character is escaped, control characters are visible, line breaks are made.
    """
    groups = []
    for part in result.parts:
        of = [result.of(part, m) for m in result.models]
        rows = zip(*(some[:MOST_PROMPTS] for some in of), strict=True)
        left = f" (the first {MOST_PROMPTS} of {len(of[0])})" if len(of[0]) > MOST_PROMPTS else ""
        groups.append((f"Prompts of {part}{left}", tuple(_asked(row) for row in rows)))
    return SampleView(_reading(result), _counts(result), tuple(groups))


def _reading(result: Samples) -> str:
    how = result.how
    drawn = "greedy" if not how.temperature else f"drawn at temperature {how.temperature:g}, seed {how.seed}"
    return (
        f"One answer of each model to each prompt, {drawn}, at most {how.new_tokens} tokens. Nothing judges them. The "
        f"shares count answers that begin with “{visible(result.opening)}”, and those that begin with its first words "
        f"“{visible(first_words(result.opening))}”; a refusal in other words is in neither, and an answer that begins "
        "so need not refuse. Intervals are Wilson's, a cluster of prompts counted once. All answers are in "
        "tables/generated.csv."
    )


def _asked(row: tuple[MadeAnswer, ...]) -> Asked:
    first = row[0]
    prompt = Markup("\n").join(_lines(text if role == "user" else f"[{role}] {text}") for role, text in first.messages)
    return Asked(visible(first.id), prompt, tuple((_heading(a), _lines(a.text)) for a in row))


def _heading(answer: MadeAnswer) -> str:
    if answer.ended:
        return answer.model if answer.text.strip() else f"{answer.model}: ended at once"
    return f"{answer.model}, cut off after {answer.tokens} tokens"


def _lines(text: str) -> Markup:
    cut = len(text) - MOST_CHARACTERS
    lines = [escape(visible(line)) for line in text[:MOST_CHARACTERS].split("\n")]
    return Markup("↵\n").join(lines) + (f"… ({cut} more characters)" if cut > 0 else "")


def _counts(result: Samples) -> Table:
    """The shares as they stand on the page: counts, and intervals in brackets."""
    openings = (result.opening, first_words(result.opening))
    lines: list[tuple[Cell, ...]] = []
    for part in result.parts:
        for model in result.models:
            cut = sum(not a.ended for a in result.of(part, model))
            lines.append((part, model, cut, *(result.counted(part, model, o) for o in openings)))
    return Table(
        "generated_shares", ("set", "model", "cut off", "begin with the opening", "with its first words"), tuple(lines)
    )


def share_table(result: Samples) -> Table:
    """A line per part and model: how many answers begin with the opening, and with its first words."""
    lines: list[tuple[Cell, ...]] = []
    for part in result.parts:
        for model in result.models:
            some, shares = result.of(part, model), []
            for opening in (result.opening, first_words(result.opening)):
                e = result.share(part, model, opening)
                shares += [e.value, e.low, e.high]
            lines.append((part, model, len(some), sum(not a.ended for a in some), *shares))
    names = [f"{stem}{end}" for stem in ("whole opening", "first words") for end in ("", " low", " high")]
    return Table("generated_shares", ("set", "model", "answers", "cut off", *names), tuple(lines))


def answer_table(result: Samples) -> Table:
    """A line per answer, with its prompt."""
    lines = [
        (a.part, a.id, m, "\n".join(text for _, text in a.messages), a.text, a.tokens, a.ended)
        for part in result.parts
        for m in result.models
        for a in result.of(part, m)
    ]
    return Table("generated", ("set", "id", "model", "prompt", "answer", "tokens", "ended"), tuple(lines))
