"""Which parameters of a model would be measured, which left out, and which measured the slow way?"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from graddiag.blocks import Selected, select_blocks
from graddiag.checks import Bench, Check, judged
from graddiag.encoding import doubled_special_tokens
from graddiag.extractor import Extractor

_IN_A_LAYER = re.compile(r"\.\d+\.")
_NAMED = 3  # names that a line shows


def check_special_tokens(bench: Bench) -> Check:
    """Whether the chat template prints a special token twice."""
    found = doubled_special_tokens(bench.rows, bench.tokenizer)
    detail = f"{', '.join(found)} twice side by side" if found else "special tokens doubled in every row"
    return judged("special tokens", len(found), 0, detail, "another chat template, or add_bos_token=False")


def check_coverage(bench: Bench, patterns: Sequence[str] | None) -> Check:
    """The share of the layers' matrices that the default blocks leave out; what a pattern leaves out was chosen."""
    taken = {id(b.parameter) for b in bench.blocks}
    every = select_blocks(bench.model, ["*"])
    outside = [b for b in every if id(b.parameter) not in taken]
    names = list(dict.fromkeys(_without_number(b.block.name) for b in outside))
    total, left_out = (sum(b.parameter.numel() for b in part) for part in (every, outside))
    detail = "every parameter is selected"
    if outside:
        detail = f"outside, {left_out / total:.0%} of the parameters: {', '.join(names)} (--blocks '*' has all)"
    inside = [b for b in every if b.parameter.dim() > 1 and _IN_A_LAYER.search(b.block.name)]
    missed = sum(b.parameter.numel() for b in inside if id(b.parameter) not in taken)
    share = missed / max(sum(b.parameter.numel() for b in inside), 1) if patterns is None else 0.0
    return judged("coverage", share, 0, detail, "--blocks '*'")


def check_survey(bench: Bench, extractor: Extractor) -> list[Check]:
    """All selected blocks in one batch of two rows: which have no part in the loss, and which take the slow way."""
    extractor.measure(bench.few_rows[:2])
    unused, slow = sorted(extractor.unused), sorted(extractor.alone)
    return [
        judged("unused blocks", len(unused), 0, _listed(unused, "have no part in the loss"), "--blocks without them"),
        judged(
            "single runs",
            len(slow),
            0,
            _listed(slow, "take one backward pass per example: right, but slow"),
            "--blocks without them, or patience",
        ),
    ]


def sample_of(blocks: Sequence[Selected], *, elements: int) -> tuple[Selected, ...]:
    """The lowest, middle and highest block, and as many kinds of block as `elements` hold, each from another depth."""
    kinds: dict[str, list[int]] = {}
    for k, b in enumerate(blocks):
        kinds.setdefault(_without_number(b.block.name), []).append(k)
    turns = len(kinds)
    by_depth = [places[(len(places) - 1) * turn // max(turns - 1, 1)] for turn, places in enumerate(kinds.values())]
    chosen = {0, len(blocks) // 2, len(blocks) - 1}
    for k in by_depth:
        if sum(math.prod(blocks[i].block.shape) for i in chosen | {k}) <= elements:
            chosen.add(k)
    return tuple(blocks[k] for k in sorted(chosen))


def _without_number(name: str) -> str:
    """What blocks of all layers have in common."""
    return _IN_A_LAYER.sub(".*.", name)


def _listed(names: Sequence[str], what: str) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more} {what}" if names else f"no blocks {what}"
