"""Limits of the alarms: which are impossible, and what is said of them."""

from __future__ import annotations

import math

import pytest
from scipy.special import ndtr

from graddiag.alarms import Limits
from graddiag.errors import UsageError


@pytest.mark.parametrize(
    ("name", "value"), [("false_alarms", 0.0), ("false_alarms", 1.0), ("horizon", 0), ("shift", 0.0), ("memory", 1.0),
                        ("drift", math.nan), ("opposing", 0.5), ("rise", -1.0)]
)  # fmt: skip
def test_impossible_limits_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{name} is {value}"):
        Limits(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("horizon", "shift", "rate", "most"), [(1, 2.0, 0.5, "0.16"), (2, 4.0, 0.2, "0.045"), (100, 2.0, 1e-12, "1")]
)
def test_a_rate_of_false_alarms_that_no_limit_gives_is_refused_with_those_that_some_limit_gives(
    horizon: int, shift: float, rate: float, most: str
) -> None:
    """The most is that of a limit of almost nothing: one of `horizon` normal scores above half the shift."""
    assert most == f"{1 - ndtr(shift / 2) ** horizon:.2g}"
    with pytest.raises(UsageError, match=rf"false_alarms is {rate}; .* choose a number from about 1e-09 to {most}, or"):
        Limits(false_alarms=rate, horizon=horizon, shift=shift)
    assert Limits(false_alarms=0.99 * float(most), horizon=horizon, shift=shift).conflict > 0
    assert Limits(false_alarms=1.01e-9, horizon=horizon, shift=shift).conflict < 60


@pytest.mark.parametrize(("horizon", "shift"), [(10, 1e3), (10**9, 1e-3)])
def test_a_shift_at_which_chance_reaches_every_limit_as_often_is_refused(horizon: int, shift: float) -> None:
    with pytest.raises(UsageError, match=f"shift is {shift} with horizon {horizon}: chance then reaches any limit"):
        Limits(horizon=horizon, shift=shift)
