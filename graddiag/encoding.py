"""How a conversation becomes tokens: the chat template, which tokens are targets, and which rows share a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int32
from jinja2 import TemplateError

from graddiag.data import BadRows, Example, ExampleSet, Message
from graddiag.errors import DataError, UsageError
from graddiag.example_rows import BadRow, shown
from graddiag.text import visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TARGETS = ("answer", "all")
_SYSTEM_ROLES = ("system", "developer")
_NO_LENGTH_WARNING = {"verbose": False}  # rows that are too long are cut or refused here, and counted
_BORDER = 20  # characters on each side of the border that an error message shows


@dataclass(frozen=True, eq=False)
class Encoded:
    """One example as tokens; `tokens[start:]` are its targets, and `n_cut` tokens did not fit behind them.

    Raises DataError unless at least one token comes before the targets and at least one is a target.
    """

    id: str
    cluster: str
    tokens: Int32[np.ndarray, " t"]
    start: int
    n_cut: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.start < len(self.tokens):
            raise DataError(
                f"Row {shown(self.id)} of {len(self.tokens)} tokens cannot have its first target at {self.start}: "
                "a target needs a token before it, and a row needs a target."
            )

    @property
    def n_targets(self) -> int:
        """Tokens that the loss averages."""
        return len(self.tokens) - self.start

    @property
    def digest(self) -> str:
        """SHA-256 of the token ids and of where the targets begin, the first 32 hexadecimal digits."""
        return tail_digest(self.tokens, self.start)


def tail_digest(tokens: Int32[np.ndarray, " t"], start: int) -> str:
    """The digest of a row whose targets are all its tokens from `start` on."""
    raw = start.to_bytes(8, "little") + tokens.astype("<i4").tobytes()
    return hashlib.sha256(raw).hexdigest()[:32]


@dataclass(frozen=True)
class EncodedSet:
    """The rows of a set as tokens, at most `max_length` each; `notes` say what was left out, counted."""

    name: str
    rows: tuple[Encoded, ...]
    notes: tuple[str, ...]
    target: str
    max_length: int


def encode(
    examples: ExampleSet,
    tokenizer: PreTrainedTokenizerBase,
    *,
    target: str = "answer",
    max_length: int,
    skip_bad_rows: bool = False,
) -> EncodedSet:
    """Every example rendered with the tokenizer's chat template, with its target tokens.

    With target "answer", the targets are all tokens that follow the rendering of the other messages with
    `add_generation_prompt=True`; with "all", every token but the first. A row of more than `max_length` tokens loses
    its end (`n_cut`); one whose prompt leaves no room for a target cannot be used.

    Raises DataError for a tokenizer without chat template, for the first row that cannot be used (with `skip_bad_rows`
    they are left out, and a note counts them) and where no row is left; UsageError for an unknown target.
    """
    if target not in TARGETS:
        raise UsageError(f"--target {shown(target)}: there is no such target. Allowed: {', '.join(TARGETS)}.")
    if max_length < 2:
        raise UsageError(f"--max-length {max_length}: a row needs at least 2 tokens, one of them a target.")
    _check_template(tokenizer)
    bad = BadRows(examples.name, skip_bad_rows)
    rows = []
    for example in examples.examples:
        try:
            rows.append(_encoded(example, tokenizer, target, max_length))
        except BadRow as why:
            bad.add(f"row {shown(example.id)}", why)
    notes = bad.notes(len(rows))
    return EncodedSet(examples.name, tuple(rows), notes, target, max_length)


def doubled_special_tokens(rows: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Special tokens that stand twice side by side in every row: a template prints what the tokenizer adds as well.

    What only some rows have is their own text, not the template's doing.
    """
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | {*tokenizer.all_special_ids}
    for row in rows:
        special &= set(row.tokens[1:][row.tokens[1:] == row.tokens[:-1]].tolist())
    return tuple(str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(special)) if rows else ()


def match_targets(left: EncodedSet, right: EncodedSet) -> tuple[EncodedSet, EncodedSet]:
    """The two sets with equally many targets in every pair (rows of the same id) of which a member was cut.

    The longer answer loses its end. Pairs that were not cut, rows without a partner, and rows whose prompts are targets
    too, stay as they are.
    """
    if "all" in (left.target, right.target):
        return left, right
    lefts, rights = {r.id: r for r in left.rows}, {r.id: r for r in right.rows}
    return _matched(left, rights), _matched(right, lefts)


def _matched(one: EncodedSet, partners: dict[str, Encoded]) -> EncodedSet:
    rows = [_cut_like(r, partners[r.id]) if r.id in partners else r for r in one.rows]
    return replace(one, rows=tuple(rows))


def _cut_like(row: Encoded, partner: Encoded) -> Encoded:
    extra = row.n_targets - partner.n_targets
    if extra <= 0 or not (row.n_cut or partner.n_cut):
        return row
    return replace(row, tokens=row.tokens[: len(row.tokens) - extra], n_cut=row.n_cut + extra)


def batches(
    rows: Sequence[Encoded], *, batch_tokens: int, units: Sequence[Sequence[int]] | None = None
) -> list[list[int]]:
    """Indices of rows, batch by batch: short rows first, each unit whole, every index of the units exactly once.

    A unit is what must share a batch, such as the two members of a pair; by default every row is its own. A batch of
    several units has at most `batch_tokens` tokens, padding included (longest row times rows). Nothing is random.
    Raises UsageError where `batch_tokens` is below 1.
    """
    if batch_tokens < 1:
        raise UsageError(f"--batch-tokens {batch_tokens}: a batch needs tokens. Give a number above 0.")
    chosen = [(i,) for i in range(len(rows))] if units is None else units
    longest = {k: max(len(rows[i].tokens) for i in unit) for k, unit in enumerate(chosen)}
    out: list[list[int]] = []
    for k in sorted(longest, key=longest.__getitem__):
        unit = chosen[k]
        if not out or longest[k] * (len(out[-1]) + len(unit)) > batch_tokens:
            out.append([])
        out[-1].extend(unit)
    return out


def _check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    try:
        tokenizer.get_chat_template()
    except ValueError as error:
        raise DataError(
            "The tokenizer has no chat template (or several and no default), so conversations cannot be rendered. "
            "Use a model that was tuned for chat, or set tokenizer.chat_template to the template of training."
        ) from error


def _encoded(example: Example, tokenizer: PreTrainedTokenizerBase, target: str, max_length: int) -> Encoded:
    messages = example.messages
    whole = _tokens(messages, tokenizer)
    start = 1 if target == "all" else _border(messages, whole, tokenizer)
    if start == 0:
        raise BadRow("has an empty prompt: the chat template prints nothing before the answer", "Use another template.")
    if start >= len(whole):
        raise BadRow("has no target: the chat template prints nothing after the prompt", "Use another template.")
    if start >= max_length:
        raise BadRow(
            f"has a prompt of {start} tokens, which leaves no room for an answer in {max_length}",
            "Give a larger --max-length, or remove the row.",
        )
    n_cut = max(len(whole) - max_length, 0)
    return Encoded(example.id, example.cluster, whole[:max_length], start, n_cut)


def _border(messages: tuple[Message, ...], whole: Int32[np.ndarray, " t"], tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of tokens of the prompt, with which the whole conversation must begin."""
    prompt = _tokens(messages[:-1], tokenizer, prompt=True)
    if not np.array_equal(whole[: len(prompt)], prompt):
        raise _no_prefix(_text(messages[:-1], tokenizer, prompt=True), _text(messages, tokenizer))
    return len(prompt)


def _no_prefix(prompt: str, whole: str) -> BadRow:
    if whole.startswith(prompt):
        at = len(prompt)
        return BadRow(
            f"has no border between prompt and answer: the tokenizer merges {shown(prompt[-_BORDER:])} "
            f"and {shown(whole[at : at + _BORDER])} across it",
            "Let the answer begin with another character, or use a template whose prompt ends in a special token.",
        )
    at = next((k for k, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole)))
    return BadRow(
        "has a conversation that does not begin with its own prompt: the chat template renders "
        f"{shown(prompt[at : at + _BORDER])} before the answer is there and {shown(whole[at : at + _BORDER])} after, "
        f"at character {at}",
        "Use a template that renders earlier turns and the generation prompt the same way with and without the answer.",
    )


def _tokens(
    messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase, *, prompt: bool = False
) -> Int32[np.ndarray, " t"]:
    turns = _turns(messages)
    try:
        ids = tokenizer.apply_chat_template(
            turns, tokenize=True, return_dict=False, add_generation_prompt=prompt, tokenizer_kwargs=_NO_LENGTH_WARNING
        )
    except TemplateError as error:
        raise _refused(messages, tokenizer, error, prompt=prompt) from error
    return np.asarray(ids, dtype=np.int32)


def _text(messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase, *, prompt: bool = False) -> str:
    return str(tokenizer.apply_chat_template(_turns(messages), tokenize=False, add_generation_prompt=prompt))


def _turns(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def _refused(
    messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase, error: TemplateError, *, prompt: bool
) -> BadRow:
    """Why the template refused: the system message, if it takes the rest of the conversation, else its own words."""
    said = visible(str(error), limit=200)
    rest = tuple(m for m in messages if m.role not in _SYSTEM_ROLES)
    if 0 < len(rest) < len(messages) and _renders(rest, tokenizer, prompt=prompt):
        roles = " and ".join(dict.fromkeys(m.role for m in messages if m.role in _SYSTEM_ROLES))
        return BadRow(
            f"has a {roles} message, and the chat template has no such role ({said})",
            "Put its text at the beginning of the first user message.",
        )
    return BadRow(f"has a conversation that the chat template refuses ({said})")


def _renders(messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase, *, prompt: bool) -> bool:
    try:
        _text(messages, tokenizer, prompt=prompt)
    except TemplateError:
        return False
    return True
