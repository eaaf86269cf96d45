"""Two comparisons beside each other: what is said of each number, and why no more is said."""

from __future__ import annotations

from graddiag.beside import QUESTIONS, Beside, beside_lines
from graddiag.rules import Setting


def test_a_line_says_why_the_word_is_no_stronger() -> None:
    key = "alignment/left"
    near = {key: 0.03, f"{key}/low": 0.02, f"{key}/high": 0.04, f"{key}/projection_se": 0.02}
    sure = near | {f"{key}/projection_se": 0.001}
    unknown = sure | {"alignment/safety_split_half/low": -0.2}
    setting = Setting("left", "right", "safety", kinds={key: "projected"})

    def said(given: dict[str, float], other: dict[str, float]) -> str:
        beside = Beside("edited", "with the edit", "with the edit", QUESTIONS, given, other, setting, setting)
        (line,) = (line for line in beside_lines(beside) if line.startswith("Cosine of left with safety"))
        return line

    interval = "+0.030 [+0.020, +0.040]"
    assert f"no difference found ({interval}; within the projection's error) as given" in said(near, sure)
    assert f"aligned ({interval}) with the edit" in said(near, sure)
    assert f"not measurable ({interval}; the safety direction is not known) with the edit" in said(near, unknown)
