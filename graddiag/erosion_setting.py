"""Which models and sets a run of three models has, where their tables are, and how they are analysed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from graddiag.comparison import Comparison
from graddiag.errors import DataError
from graddiag.files import read_json, write_json
from graddiag.signals import Signals
from graddiag.store import read_signals

EROSION_FILE = "erosion.json"
BASE, ALIGNED, TUNED = "base", "aligned", "tuned"
MODELS = (BASE, ALIGNED, TUNED)
FIRST, PROMPT = "first:10", "last_prompt"  # the paper reads the mean of 10 answer tokens; refusal is in the prompt
ASKED = ("safety", "benign")  # the parts whose prompts are answered: harmful requests, then harmless ones
OPENINGS = ("refusing", "complying")  # what a set becomes whose answers are replaced by an opening


@dataclass(frozen=True)
class Generation:
    """Which prompts were answered by every model, and how: `ids` are rows by part, `temperature` 0 is greedy, `opening`
    is what a refusal begins with."""

    ids: Mapping[str, tuple[str, ...]]
    opening: str
    temperature: float
    new_tokens: int
    seed: int

    def made_so(self, temperature: float, most: int, seed: int) -> bool:
        """Whether an answer was made like this; a greedy one has no seed."""
        return (temperature, most, seed) == (self.temperature, self.new_tokens, self.seed if self.temperature else 0)


@dataclass(frozen=True)
class ErosionSetting:
    """How a run is analysed; kept in it, so that the report can be made again without a model.

    `models` are names by role; `parts` says which set (by the name that its folders have) is "left", "right",
    "harmful", "benign" or "safety", and `controls` are further harmless sets. `openings` are the texts of the two
    openings of an answer, `ending` the tokens that the template prints behind them, None where no openings were read.
    `k` is the number of components of a subspace, None: counted. `generation` is None where nothing was generated.
    """

    models: Mapping[str, str]
    parts: Mapping[str, str]
    controls: tuple[str, ...] = ()
    openings: tuple[str, str] = ("", "")
    ending: int | None = None
    k: int | None = None
    seed: int = 0
    notes: tuple[str, ...] = ()
    command: str = ""
    generation: Generation | None = None

    @property
    def opened(self) -> tuple[str, ...]:
        """The parts whose prompts were read with openings: those of harmful requests, then of harmless ones."""
        return tuple(p for p in ("safety", "benign") if p in self.parts) if self.ending is not None else ()

    @property
    def own_sets(self) -> tuple[str, ...]:
        """The sets that were read with their own answers, each once."""
        return tuple(dict.fromkeys((*self.parts.values(), *self.controls)))

    @property
    def sets(self) -> tuple[str, ...]:
        """All sets that were read under every model."""
        opened = [opened_name(self.parts[p], opening) for p in self.opened for opening in OPENINGS]
        return (*self.own_sets, *dict.fromkeys(opened))


def opened_name(name: str, opening: str) -> str:
    """What a set is called whose answers are replaced by the opening of this name."""
    return f"{name}-{opening}"


def table_folder(run: Path, model: str, name: str) -> Path:
    """Where the table of a set under a model is: `RUN/MODEL-SET`."""
    return run / f"{model}-{name}"


@dataclass(frozen=True)
class ErosionRun:
    """The folder of a run and how it is analysed; tables are read when they are asked for, and let go."""

    folder: Path
    setting: ErosionSetting

    def table(self, model: str, name: str) -> Signals:
        """One saved table. Raises DataError where it is not whole."""
        return read_signals(table_folder(self.folder, model, name))

    def compared(self, left: str, right: str, name: str) -> Comparison:
        """The set under two models. Raises DataError where the two tables may not be compared."""
        return Comparison(self.table(left, name), self.table(right, name))

    def change(self, part: str) -> Comparison:
        """The set of a part under the tuned (left) and the aligned model (right)."""
        return self.compared(TUNED, ALIGNED, self.setting.parts[part])


def is_erosion_run(folder: Path) -> bool:
    """Whether the folder is that of a run of three models, with all that its report needs."""
    return (folder / EROSION_FILE).is_file()


def save_setting(folder: Path, setting: ErosionSetting) -> None:
    """Writes what the report needs beside the tables; the last file of a run, so that an interrupted one lacks it."""
    write_json(folder / EROSION_FILE, asdict(setting))


def read_setting(folder: Path) -> ErosionSetting:
    """The setting of a run. Raises DataError where it cannot be read."""
    content = dict(read_json(folder / EROSION_FILE))
    try:
        for name in ("controls", "openings", "notes"):
            content[name] = tuple(content[name])  # type: ignore[arg-type]
        if content.get("generation"):
            content["generation"] = _generation(content["generation"])  # type: ignore[arg-type]
        return ErosionSetting(**content)  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{folder / EROSION_FILE} is not that of a run of this version ({error}). Give the erosion command again."
        ) from error


def _generation(content: Mapping[str, object]) -> Generation:
    ids = {part: tuple(some) for part, some in content["ids"].items()}  # type: ignore[attr-defined]
    return Generation(**{**content, "ids": ids})  # type: ignore[arg-type]
