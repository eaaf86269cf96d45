"""Can this model be measured? Its gradients alone and in a batch, padded and not, against plain autograd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graddiag.blocks import select_blocks
from graddiag.checks import Bench, Check, check_attention, check_batch, check_dtype, check_hooks, check_padding, not_run
from graddiag.coverage import check_coverage, check_special_tokens, check_survey, sample_of
from graddiag.data import read_set
from graddiag.encoding import Encoded, encode
from graddiag.errors import DataError, GraddiagError, ResourceError
from graddiag.extraction import row_length
from graddiag.files import Json
from graddiag.preparation import model_name
from graddiag.projection import LoGra
from graddiag.readings import alone, bare_extractor, by_autograd, by_hooks
from graddiag.startcheck import shortened

PAIRS, OTHERS = 3, 2  # rows: both members of 3 pairs, and 2 safe answers
SAMPLE = 2**25  # elements of the gradients that are compared in full, so that 8 of them in float32 take 1 GiB
_OF_HOOKS = ("hooks", "batch", "padding", "dtype", "attention")
_BROKEN = "pass the model as it was before torch.compile or fused kernels, or leave these blocks out with --blocks"


@dataclass(frozen=True)
class SelfCheck:
    """The checks of one model in the order of the table, and what must be known of how it is measured."""

    model: str
    checks: tuple[Check, ...]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed; a check that was not run has not."""
        return not any(c.status == "fail" for c in self.checks)

    def summary(self) -> dict[str, float | None]:
        """`selfcheck/NAME`: the measured number of each check, None where there is none; and how many failed."""
        flat: dict[str, float | None] = {f"selfcheck/{c.name.replace(' ', '_')}": c.value for c in self.checks}
        return flat | {"selfcheck/failed": sum(c.status == "fail" for c in self.checks)}

    def document(self) -> Json:
        """All of it, for machines."""
        checks: list[Json] = [
            {"name": c.name, "status": c.status, "value": c.value, "limit": c.limit, "detail": c.detail, "mend": c.mend}
            for c in self.checks
        ]
        return {
            "schema": 1, "model": self.model, "passed": self.passed, "summary": self.summary(),
            "checks": checks, "notes": list(self.notes),
        }  # fmt: skip

    def lines(self) -> list[str]:
        """The table as a person reads it."""
        out = [f"{'check':<15} {'result':<8} {'measured':>9} {'limit':>7}"]
        for c in self.checks:
            out.append(f"{c.name:<15} {c.status:<8} {_number(c.value):>9} {_number(c.limit):>7}  {c.detail}")
            out += [f"{'':<15} to mend: {c.mend}"] if c.mend else []
        counts = [f"{sum(c.status == s for c in self.checks)} {w}" for s, w in _COUNTED]
        return [*out, *(f"note: {n}" for n in self.notes), f"{self.model}: {', '.join(counts)}."]


_COUNTED = (("pass", "passed"), ("fail", "failed"), ("not run", "not run"))


def selfcheck(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    blocks: Sequence[str] | None = None,
    max_length: int | None = None,
) -> SelfCheck:
    """Eight rows of the built-in sets through the model in every way that must not matter.

    Numbers are relative differences of losses, gradients and norms, in the worst of a few rows and of a sample of the
    selected blocks (each kind of block once, at different depths); for the dtype, in units of the difference between
    the two members of a pair. Answers are cut to 24 tokens. The model is left as it was.

    Raises DataError where the chat template takes no row, UsageError for unknown blocks and impossible lengths,
    ResourceError where memory runs out.
    """
    chosen = select_blocks(model, blocks)
    rows = _rows(tokenizer, row_length(model, max_length))
    few = (0, 1, len(rows) - 1)
    bench = Bench(model, tokenizer, chosen, sample_of(chosen, elements=SAMPLE), rows, few)
    about = [check_special_tokens(bench), check_coverage(bench, blocks)]
    try:
        extractor = bare_extractor(model, chosen, LoGra(1))
        survey = check_survey(bench, extractor)
        return SelfCheck(model_name(model), (*_of_gradients(bench), *about, *survey), tuple(extractor.notes))
    except ResourceError:
        raise
    except GraddiagError as why:
        return SelfCheck(model_name(model), (*_broken(str(why)), *about), ())


def _broken(why: str) -> list[Check]:
    """The checks of a model that the hooks do not work on."""
    first = Check(_OF_HOOKS[0], "fail", None, None, why, _BROKEN)
    return [first, *(not_run(n, "the hooks do not work") for n in _OF_HOOKS[1:])]


def _of_gradients(bench: Bench) -> list[Check]:
    hooked = alone(by_hooks, bench.model, bench.sample, bench.few_rows)
    plain = alone(by_autograd, bench.model, bench.sample, bench.few_rows)
    return [
        check_hooks(bench, hooked, plain),
        check_batch(bench, hooked),
        check_padding(bench, plain),
        check_dtype(bench, hooked),
        check_attention(bench, hooked),
    ]


def _rows(tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[Encoded, ...]:
    """The pairs and the safe answers with the shortest prompts, left and right by turns, answers cut."""
    sets = [
        encode(read_set(name), tokenizer, max_length=max_length, skip_bad_rows=True).rows
        for name in ("insecure", "educational", "safety")
    ]
    left, right = ({r.id: r for r in rows} for rows in sets[:2])
    ids = sorted(left.keys() & right.keys(), key=lambda i: (left[i].start + right[i].start, i))[:PAIRS]
    if not ids:
        raise DataError(f"In {max_length} tokens, no pair of the built-in sets has room for an answer. Allow more.")
    others = sorted(sets[2], key=lambda r: (r.start, r.id))[:OTHERS]
    return tuple(shortened(r) for r in (*(one[i] for i in ids for one in (left, right)), *others))


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value == int(value) else f"{value:.1e}"
