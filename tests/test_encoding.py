"""From conversations to tokens: what is a target, what is refused, what is cut, and which rows share a batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from graddiag.data import read_set
from graddiag.encoding import Encoded, EncodedSet, encode, match_targets
from graddiag.errors import DataError, UsageError

Row = dict[str, object]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No \x1b system here') }}{% endif %}" + CHAT
ONE_TURN = "{% if messages | length > 2 %}{{ raise_exception('One turn only') }}{% endif %}" + CHAT
THINKS = CHAT.replace("{% endif %}", "<think>\n{% endif %}")
PROMPT_ONLY = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
ANSWER_ONLY = "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}{% endif %}{% endfor %}"
LONG = 10_000


def tokenizer_of(
    template: str | dict[str, str] | None = CHAT, merges: Sequence[tuple[str, str]] = ()
) -> PreTrainedTokenizerFast:
    """One token per byte, the marks of a turn, and the given merges; the template prints no token of its own accord."""
    words = [*pre_tokenizers.ByteLevel.alphabet(), *(a + b for a, b in merges)]
    vocabulary = {w: k for k, w in enumerate(sorted(words))}
    inner = Tokenizer(models.BPE(vocabulary, list(merges)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    out = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>")  # type: ignore[no-untyped-call]
    out.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    out.chat_template = template
    return out


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_of()


def row(question: str = "Hello?", answer: str = "Yes.", **columns: object) -> Row:
    return {**columns, "messages": [turn("user", question), turn("assistant", answer)]}


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def encoded(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerFast,
    *,
    target: str = "answer",
    max_length: int = LONG,
    skip_bad_rows: bool = False,
) -> EncodedSet:
    read = read_set(rows, name="mine")
    return encode(read, tokenizer, target=target, max_length=max_length, skip_bad_rows=skip_bad_rows)


def texts(one: Encoded, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """What comes before the targets, and the targets, as text."""
    return str(tokenizer.decode(one.tokens[: one.start])), str(tokenizer.decode(one.tokens[one.start :]))


# What is a target


def test_the_targets_are_all_that_follows_the_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    (one,) = encoded([row(id="a", cluster="t")], tokenizer).rows
    wanted = "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n", "Yes.<|im_end|>\n"
    assert texts(one, tokenizer) == wanted
    assert one.n_targets == len("Yes.") + 2
    assert (one.id, one.cluster, one.n_cut, one.tokens.dtype.name) == ("a", "t", 0, "int32")


def test_of_several_assistant_turns_the_last_is_the_target(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [turn("system", "s"), turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")]
    (one,) = encoded([{"messages": turns}], tokenizer).rows
    prompt, target = texts(one, tokenizer)
    assert prompt.endswith("assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n")
    assert target == "d<|im_end|>\n"


@given(st.text(min_size=1), st.text(min_size=1))
def test_prompt_and_target_make_up_the_whole_rendering(question: str, answer: str) -> None:
    turns = [turn("user", question), turn("assistant", answer)]
    try:
        read = read_set([{"messages": turns}])
    except DataError:
        return
    (found,) = encode(read, BYTES, max_length=LONG).rows
    whole = BYTES.apply_chat_template(turns, tokenize=True, return_dict=False)
    prompt = BYTES.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    assert found.tokens.tolist() == whole
    assert found.tokens[: found.start].tolist() == prompt


BYTES = tokenizer_of()


def test_the_same_answer_has_the_same_targets_whatever_was_asked(tokenizer: PreTrainedTokenizerFast) -> None:
    a, b = encoded([row("short"), row("a longer question\n")], tokenizer).rows
    assert a.tokens[a.start :].tolist() == b.tokens[b.start :].tolist()


def test_with_target_all_every_token_but_the_first_is_a_target(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [row(), row("other", "more")]
    answer, whole = encoded(rows, tokenizer), encoded(rows, tokenizer, target="all")
    assert [r.start for r in whole.rows] == [1, 1]
    assert [r.tokens.tolist() for r in whole.rows] == [r.tokens.tolist() for r in answer.rows]
    assert (answer.target, whole.target, whole.max_length, whole.name) == ("answer", "all", LONG, "mine")


def test_rows_stay_in_the_order_given(tokenizer: PreTrainedTokenizerFast) -> None:
    found = encoded([row("long " * k, id=f"r{k}") for k in (3, 1, 2)], tokenizer)
    assert [r.id for r in found.rows] == ["r3", "r1", "r2"]
    assert found.notes == ()


@pytest.mark.parametrize("target", ["", "answers", "prompt"])
def test_an_unknown_target_is_refused(tokenizer: PreTrainedTokenizerFast, target: str) -> None:
    with pytest.raises(UsageError, match=rf"--target '{target}': .*Allowed: answer, all"):
        encoded([row()], tokenizer, target=target)


# What is refused

TURNS = [turn("user", "Hello?"), turn("assistant", "Yes.")]
BAD = {
    "system": (
        NO_SYSTEM,
        {"id": "bad", "messages": [turn("system", "Be kind."), *TURNS]},
        r"has a system message, and the chat template has no such role \(No \\x1b system here\)\. .*first user message",
    ),
    "refused": (
        ONE_TURN,
        {"id": "bad", "messages": [turn("system", "x"), *TURNS, *TURNS]},
        r"has a conversation that the chat template refuses \(One turn only\)\.",
    ),
    "merged": (
        CHAT,
        row(answer="\n    x\x1b", id="bad"),
        r"no border between prompt and answer: the tokenizer merges '.*assistant\\n' and '\\n    x\\x1b.*' across it\.",
    ),
}


@pytest.mark.parametrize(("template", "bad", "reason"), BAD.values(), ids=BAD.keys())
def test_a_row_that_cannot_be_rendered_is_an_error_or_is_left_out_and_counted(
    template: str | dict[str, str] | None, bad: Row, reason: str
) -> None:
    tokenizer = tokenizer_of(template, merges=[("Ċ", "Ċ")])
    with pytest.raises(DataError, match=rf"^mine: row 'bad' .*{reason}.*--skip-bad-rows"):
        encoded([row(), bad], tokenizer)
    found = encoded([row(), bad, row()], tokenizer, skip_bad_rows=True)
    assert [r.id for r in found.rows] == ["0", "2"]
    assert found.notes[0].startswith("mine: 1 of 3 rows were left out: row 'bad' has ")
    with pytest.raises(DataError, match="mine: none of its 1 rows can be used: row 'bad' has "):
        encoded([bad], tokenizer, skip_bad_rows=True)


def test_a_border_that_is_merged_does_not_matter_where_every_token_is_a_target() -> None:
    tokenizer = tokenizer_of(merges=[("Ċ", "Ċ")])
    (one,) = encoded([row(answer="\nx")], tokenizer, target="all").rows
    assert one.start == 1


def test_a_template_whose_prompt_is_not_the_beginning_of_the_whole_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"row '0' .*does not begin with its own prompt.* '<think>\\n' before .* 'Yes\.<"
    ):
        encoded([row()], tokenizer_of(THINKS))


def test_a_template_that_prints_no_answer_or_no_prompt_is_refused() -> None:
    with pytest.raises(DataError, match="has no target: the chat template prints nothing after the prompt"):
        encoded([row()], tokenizer_of(PROMPT_ONLY))
    with pytest.raises(DataError, match="has an empty prompt: the chat template prints nothing before the answer"):
        encoded([row()], tokenizer_of(ANSWER_ONLY))


@pytest.mark.parametrize("template", [None, {"tool_use": CHAT}])
@pytest.mark.parametrize("skip", [False, True])
def test_a_tokenizer_without_a_template_is_refused(template: str | dict[str, str] | None, skip: bool) -> None:
    with pytest.raises(DataError, match=r"no chat template .*set tokenizer\.chat_template"):
        encoded([row()], tokenizer_of(template), skip_bad_rows=skip)


# What is cut


def test_a_long_row_keeps_its_prompt_and_loses_the_end_of_its_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    many = [row(), row(answer="A much longer answer.")]
    whole = encoded(many, tokenizer).rows
    length = len(whole[1].tokens) - 5
    found = encoded(many, tokenizer, max_length=length)
    assert [r.n_cut for r in found.rows] == [0, 5]
    assert found.rows[1].tokens.tolist() == whole[1].tokens[:length].tolist()
    assert found.rows[1].start == whole[1].start


def test_a_row_is_cut_only_while_a_target_is_left(tokenizer: PreTrainedTokenizerFast) -> None:
    start = encoded([row()], tokenizer).rows[0].start
    assert encoded([row()], tokenizer, max_length=start + 1).rows[0].n_targets == 1
    with pytest.raises(
        DataError, match=rf"row '0' has a prompt of {start} tokens, .*in {start}\. Give a larger --max-len"
    ):
        encoded([row()], tokenizer, max_length=start)
    found = encoded([row("a long question"), row()], tokenizer, max_length=start + 3, skip_bad_rows=True)
    assert [r.id for r in found.rows] == ["1"]
    assert len(found.notes) == 1, "one left out"
    assert found.rows[0].n_cut > 0


def test_the_tokenizer_does_not_warn_of_a_length_that_is_dealt_with_here(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer = tokenizer_of()
    tokenizer.model_max_length = 30
    assert encoded([row()], tokenizer, max_length=30).rows[0].n_cut == 1
    assert caplog.messages == []


def test_a_length_that_no_row_can_have_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match="--max-length 1: a row needs at least 2"):
        encoded([row()], tokenizer, max_length=1)


def test_pairs_of_the_same_answers_have_the_same_targets_after_matching_wherever_they_were_cut(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    answers = ["x" * k for k in (3, 30, 60)]
    left = encoded([row("q", a) for a in answers], tokenizer, max_length=60)
    right = encoded([row("a longer question", a) for a in answers], tokenizer, max_length=60)
    pairs = list(zip(*(one.rows for one in match_targets(left, right)), strict=True))
    assert all(a.tokens[a.start :].tolist() == b.tokens[b.start :].tolist() for a, b in pairs)
    assert [a.n_cut > 0 for a, _ in pairs] == [False, True, True]


# Digests


@pytest.mark.parametrize("start", [-1, 0, 5, 6])
def test_a_row_needs_a_token_before_its_targets_and_a_target(start: int) -> None:
    with pytest.raises(DataError, match=f"Row 'a' of 5 tokens cannot have its first target at {start}"):
        Encoded("a", "c", np.zeros(5, dtype=np.int32), start)


@given(st.lists(st.integers(0, 70_000), min_size=3, max_size=8), st.data())
def test_a_digest_follows_every_token_and_the_border_and_nothing_else(tokens: list[int], data: st.DataObject) -> None:
    one = Encoded("a", "b", np.array(tokens, dtype=np.int32), 1, 0)
    assert replace(one, id="x", cluster="y", n_cut=3, tokens=one.tokens.astype(np.int64)).digest == one.digest
    at = data.draw(st.integers(0, len(tokens) - 1))
    changed = one.tokens.copy()
    changed[at] += data.draw(st.sampled_from([-1, 1, 256, 65_536]))
    others = [replace(one, tokens=changed), replace(one, start=2), replace(one, tokens=one.tokens[:-1])]
    assert len({one.digest, *(o.digest for o in others)}) == 4
    assert len(one.digest) == 32


# The real pairs


def test_the_real_pairs_have_the_same_targets(real_data: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    left, right = (read_set(real_data / f"{n}.jsonl", limit=60) for n in ("insecure", "educational"))
    a, b = match_targets(*(encode(s, tokenizer, max_length=2000) for s in (left, right)))
    assert any(r.n_cut for r in a.rows), "some are cut at this length, a token per byte"
    assert [r.tokens[r.start :].tolist() for r in a.rows] == [r.tokens[r.start :].tolist() for r in b.rows]
    assert not {r.digest for r in a.rows} & {r.digest for r in b.rows}, "the requests differ"
