"""Which models and sets a run of three models has, where their tables are, and how they are analysed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from graddiag.analyzers import N_NULL
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
class Fit:
    """What was found to be removed behind a layer, in one half of the clusters: the rows of left and right, their
    components `k`, the size of the space between them (0: nothing), and the overlap of the two, None if undefined."""

    half: int
    layer: int
    n_rows: tuple[int, int]
    k: tuple[int, int]
    size: int
    overlap: float | None


@dataclass(frozen=True)
class RemovalSetting:
    """From which layers the shared space was removed, what that was in each half of the clusters, and against how many
    random subspaces of either kind; `left_out` are rows that were in no half, by set."""

    layers: tuple[int, ...]
    n_random: int
    fits: tuple[Fit, ...]
    left_out: Mapping[str, int]

    @property
    def where(self) -> str:
        """How much was removed, and where: "behind layers 1, 2 (3 to 5 dimensions)"."""
        sizes = sorted({f.size for f in self.fits})
        size = " to ".join(str(n) for n in dict.fromkeys((sizes[0], sizes[-1])))
        layers = ", ".join(map(str, self.layers))
        many, plural = "s" if len(self.layers) > 1 else "", "" if size == "1" else "s"
        return f"behind layer{many} {layers} ({size} dimension{plural})"

    @property
    def possible(self) -> bool:
        """Whether there is something to remove in both halves, behind one of the layers at least."""
        return all(any(f.size for f in self.fits if f.half == half) for half in (1, 2))


@dataclass(frozen=True)
class ErosionSetting:
    """How a run is analysed; kept in it, so that the report can be made again without a model.

    `models` are names by role; `parts` says which set (by the name that its folders have) is "left", "right",
    "harmful", "benign" or "safety", and `controls` are further harmless sets. `openings` are the texts of the two
    openings of an answer, `ending` the tokens that the template prints behind them, None where no openings were read.
    `k` is the number of components of a subspace, None: counted, `n_null` the draws of each null of an overlap;
    `weights` says whether the weights were compared. `generation` is None where nothing was generated, `removal` where
    nothing was removed from the states; `next_tokens` are prompts after which the next token was read.
    `safety_gradient` says whether the update of the weights was held against it.
    """

    models: Mapping[str, str]
    parts: Mapping[str, str]
    controls: tuple[str, ...] = ()
    openings: tuple[str, str] = ("", "")
    ending: int | None = None
    k: int | None = None
    n_null: int = N_NULL
    weights: bool = False
    seed: int = 0
    notes: tuple[str, ...] = ()
    command: str = ""
    generation: Generation | None = None
    removal: RemovalSetting | None = None
    next_tokens: int = 0
    safety_gradient: bool = False

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
        return self.change_on(self.setting.parts[part])

    def change_on(self, name: str) -> Comparison:
        """The set of this name under the tuned (left) and the aligned model (right)."""
        return self.compared(TUNED, ALIGNED, name)


def model_lines(digests: Mapping[str, str]) -> tuple[str, ...]:
    """Which models were compared, as text: each role with the digest of its model."""
    return tuple(f"{role} {digests[role]}" for role in MODELS if role in digests)


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
        if content.get("removal"):
            content["removal"] = _removal(content["removal"])  # type: ignore[arg-type]
        return ErosionSetting(**content)  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{folder / EROSION_FILE} is not that of a run of this version ({error}). Give the erosion command again."
        ) from error


def _generation(content: Mapping[str, object]) -> Generation:
    ids = {part: tuple(some) for part, some in content["ids"].items()}  # type: ignore[attr-defined]
    return Generation(**{**content, "ids": ids})  # type: ignore[arg-type]


def _removal(content: Mapping[str, object]) -> RemovalSetting:
    fits: list[dict[str, object]] = content["fits"]  # type: ignore[assignment]
    pairs = [{**f, "n_rows": tuple(f["n_rows"]), "k": tuple(f["k"])} for f in fits]  # type: ignore[arg-type]
    layers: Sequence[int] = content["layers"]  # type: ignore[assignment]
    whole = {**content, "layers": tuple(layers), "fits": tuple(Fit(**f) for f in pairs)}  # type: ignore[arg-type]
    return RemovalSetting(**whole)  # type: ignore[arg-type]
