"""What is taken from the end of a prompt, or put there, so that the same comparison runs without a sentence or with."""

from __future__ import annotations

from dataclasses import dataclass

from graddiag.errors import UsageError
from graddiag.text import visible

SIDES = ("left", "right")
SUFFIX = "-edited"  # of the role of an edited side
_QUOTE = 60  # characters of a sentence that a line shows
NEUTRAL = "Thank you in advance for your help."
"""Without an intent, for `append_left`: does any sentence at the end of a prompt do what the framing does?"""


@dataclass(frozen=True)
class Edit:
    """What happens to the last user turn of every row of a side: `strip` goes from its end, then `append` comes there.

    A text that begins with white space is taken letter by letter; otherwise the white space before it goes with what is
    stripped, and what is appended stands after one space (none where the prompt is empty or ends in white space).
    Raises UsageError for an unknown side and where there is nothing to
    strip or append.
    """

    side: str
    strip: str | None = None
    append: str | None = None

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise UsageError(f"There is no side {self.side!r} to edit. Allowed: {', '.join(SIDES)}.")
        for name in ("strip", "append"):
            text = getattr(self, name)
            if text is not None and not text.strip():
                raise UsageError(f"--{name}-{self.side} {text!r}: give a text with something to read in it.")
        if self.strip is None and self.append is None:
            raise UsageError(f"The edit of the {self.side} side is empty: give a text to strip or to append.")

    @property
    def role(self) -> str:
        """The role of the edited side in a run."""
        return self.side + SUFFIX

    def of(self, prompt: str) -> str | None:
        """The prompt after the edit; None where the text to strip is not at its end."""
        if self.strip is not None:
            if not prompt.endswith(self.strip):
                return None
            prompt = prompt.removesuffix(self.strip)
            prompt = prompt if self.strip[0].isspace() else prompt.rstrip()
        if self.append is None:
            return prompt
        joined = not prompt or prompt[-1].isspace() or self.append[0].isspace()
        return prompt + ("" if joined else " ") + self.append

    def words(self) -> str:
        """The edit as a report names it."""
        parts = [("without", self.strip), ("with", self.append)]
        said = [f"{how} {visible(text.strip(), limit=_QUOTE)!r}" for how, text in parts if text is not None]
        return f"{self.side} {' and '.join(said)}"


def edits_of(
    *, strip_left: str | None, strip_right: str | None, append_left: str | None, append_right: str | None
) -> tuple[Edit, ...]:
    """The edits that these options ask for, at most one per side."""
    asked = {"left": (strip_left, append_left), "right": (strip_right, append_right)}
    return tuple(Edit(side, *texts) for side, texts in asked.items() if texts != (None, None))
