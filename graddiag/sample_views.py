"""Generated answers, and the tokens that are expected first after a prompt, as tables and side by side on the page."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup, escape

from graddiag.erosion_samples import HARMFUL, HARMLESS, QUOTE, MadeAnswer, Samples, first_words
from graddiag.expected_tokens import AfterPrompt
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
    """What the page shows of the answers: how they are read, shares, changes, and prompts under each set's heading."""

    reading: str
    shares: Table
    changes: Table
    groups: tuple[tuple[str, tuple[Asked, ...]], ...]


@dataclass(frozen=True)
class TokensView:
    """One prompt on the page (safe as markup) and the tokens that the models expect first."""

    title: str
    prompt: Markup
    table: Table


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
    return SampleView(_reading(result), _counts(result), change_table(result), tuple(groups))


def _reading(result: Samples) -> str:
    how = result.how
    drawn = "greedy" if not how.temperature else f"drawn at temperature {how.temperature:g}, seed {how.seed}"
    return (
        f"One answer of each model to each prompt, {drawn}, at most {how.new_tokens} tokens. Nothing judges them. The "
        f"shares count answers that begin with “{visible(result.opening)}”, and those that begin with its first words "
        f"“{visible(first_words(result.opening))}”; a refusal in other words is in neither, and an answer that begins "
        "so need not refuse. Intervals are Wilson's, a cluster of prompts counted once. Changes are tuned minus "
        "aligned on the same prompts, with Bonett and Price's interval; p turns the signs of whole clusters (McNemar's "
        "exact test where each prompt is its own); that of a difference shares the clusters out anew. All answers are "
        "in tables/generated.csv."
    )


def _asked(row: tuple[MadeAnswer, ...]) -> Asked:
    first = row[0]
    return Asked(visible(first.id), prompt_text(first.messages), tuple((_heading(a), _lines(a.text)) for a in row))


def _heading(answer: MadeAnswer) -> str:
    if answer.ended:
        return answer.model if answer.text.strip() else f"{answer.model}: ended at once"
    return f"{answer.model}, cut off after {answer.tokens} tokens"


def _lines(text: str) -> Markup:
    cut = len(text) - MOST_CHARACTERS
    lines = [escape(visible(line)) for line in text[:MOST_CHARACTERS].split("\n")]
    return Markup("↵\n").join(lines) + (f"… ({cut} more characters)" if cut > 0 else "")


def prompt_text(messages: tuple[tuple[str, str], ...]) -> Markup:
    """A prompt as it stands on the page: turns of others than the user are named."""
    return Markup("\n").join(_lines(text if role == "user" else f"[{role}] {text}") for role, text in messages)


def token_views(found: tuple[AfterPrompt, ...]) -> tuple[TokensView, ...]:
    """One table a prompt for the page: tokens, and probability and rank under each model."""
    return tuple(TokensView(f"{p.part}: {visible(p.id)}", prompt_text(p.messages), _tokens(p)) for p in found)


def _tokens(prompt: AfterPrompt) -> Table:
    roles = list(prompt.tokens[0].rank)
    header = ("token", *(f"{r}{what}" for r in roles for what in ("", " rank")))
    lines = [
        (repr(t.text), *(x for r in roles for x in (_probability(t.log_probability[r]), t.rank[r])))
        for t in prompt.tokens
    ]
    return Table("next_tokens", header, tuple(lines))


def _probability(log: float | None) -> float:
    return 0.0 if log is None else math.exp(log)


def token_lines(found: tuple[AfterPrompt, ...]) -> Table:
    """A line per prompt and token, with its log-probability (nats) and rank under each model."""
    roles = list(found[0].tokens[0].rank)
    header = ("set", "id", "token", "text", *(f"{r}{what}" for r in roles for what in ("", "_rank")))
    lines = [
        (p.part, p.id, t.id, t.text, *(x for r in roles for x in (t.log_probability[r], t.rank[r])))
        for p in found
        for t in p.tokens
    ]
    return Table("next_tokens", header, tuple(lines))


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


def change_table(result: Samples) -> Table:
    """A line per part and opening: by how much the share changed, and how many prompts lost it or gained it; then what
    the change after harmful requests is beyond that after harmless ones."""
    header = ("answers to", "that begin with", "change", "low", "high", "p", "no longer", "newly")
    lines: list[tuple[Cell, ...]] = []
    for opening in (result.opening, first_words(result.opening)):
        said = visible(opening, limit=QUOTE)
        for part in result.parts:
            e, moved = result.change(part, opening), result.changes(part, opening)[0]
            lines.append((part, said, e.value, e.low, e.high, e.p, int((moved < 0).sum()), int((moved > 0).sum())))
        e = result.beyond(opening)
        lines.append((f"{HARMFUL} beyond {HARMLESS}", said, e.value, e.low, e.high, e.p, None, None))
    return Table("generated_changes", header, tuple(lines))


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
