"""What does the tuned model lose when what two sets' shifts share is taken out of its states: harmful answers, harmless
ones, or whatever a random subspace of the same size takes as well?"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from graddiag.erosion_setting import ALIGNED, TUNED, ErosionRun, RemovalSetting
from graddiag.errors import DataError
from graddiag.files import strict
from graddiag.line_files import read_line, whole_lines
from graddiag.permutations import TIE
from graddiag.signals import digest_of
from graddiag.statistics import Estimate, difference_of_means, mean, mean_difference, optional

REMOVAL_FILE = "interventions.jsonl"
UNCHANGED, SHARED = "unchanged", "shared"
KINDS = ("random", "states")  # subspaces uniform among all of their size; and drawn like the tuned model's states
GIVEN = (
    "Intervals and p take what was removed as given: other rows to fit it on would have given something else, and how "
    "far that moves a change is in none of them."
)
_FORMAT = "removal 2"

Losses = Mapping[str, Float[np.ndarray, " n"]]  # by draw, nats per token


@dataclass(frozen=True)
class LossLine:
    """The losses (nats/token) of a set's rows under one draw; `of` is a digest of all that they depend on."""

    of: str
    name: str
    draw: str
    ids: tuple[str, ...]
    losses: tuple[float, ...]

    @property
    def line(self) -> str:
        """As a line of the file; a loss that is not finite is null."""
        return json.dumps({**vars(self), "losses": strict(self.losses)}, allow_nan=False)


def read_lines(folder: Path) -> tuple[LossLine, ...]:
    """What a run has kept; nothing where it has no such file. Raises DataError for a line that is none."""
    path, out = folder / REMOVAL_FILE, []
    for line in whole_lines(path):
        content = dict(read_line(path, line))
        try:
            read: list[float | None] = content.pop("losses")  # type: ignore[assignment]
            losses = tuple(math.nan if x is None else float(x) for x in read)
            ids: list[str] = content.pop("ids")  # type: ignore[assignment]
            out.append(LossLine(**content, ids=tuple(ids), losses=losses))  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} has a line that holds no losses ({error}). Remove that line.") from error
    return tuple(out)


def draw_names(n_random: int) -> tuple[str, ...]:
    """What the rows are read under: the model itself, without what is shared, without each random subspace."""
    return (UNCHANGED, SHARED, *(f"{kind}-{k}" for k in range(n_random) for kind in KINDS))


def harmless_sets(run: ErosionRun) -> tuple[str, ...]:
    """Names of the sets beside which harmful answers are read: benign ones, then further controls."""
    return tuple(dict.fromkeys((run.setting.parts["benign"], *run.setting.controls)))


def measured_sets(run: ErosionRun) -> tuple[str, ...]:
    """Names of all sets that are read, the harmful one first."""
    return tuple(dict.fromkeys((run.setting.parts["harmful"], *harmless_sets(run))))


def digest(run: ErosionRun, layers: Sequence[int], name: str) -> str:
    """Of all that a set's losses depend on: models, rows that are fitted and read, layers, k, seed, and the clusters of
    every set, since all are halved together."""
    parts, setting = run.setting.parts, run.setting
    sides = [parts[side] for side in ("left", "right")]
    tables = [run.table(role, side) for side in sides for role in (TUNED, ALIGNED)]
    rows = [x for t in (*tables, run.table(TUNED, name)) for x in (t.provenance.weights, t.rows)]
    halved = [digest_of(run.table(TUNED, one).clusters) for one in (*sides, *measured_sets(run))]
    how = [*map(str, layers), str(setting.k), str(setting.seed), tables[0].space.dtype]
    return digest_of([_FORMAT, *rows, *halved, *how])


@dataclass(frozen=True)
class Effect:
    """One number with what random subspaces of the same sizes give: `random` [n] and `states` [n], of each kind."""

    change: Estimate
    random: Float[np.ndarray, " n"]
    states: Float[np.ndarray, " n"]

    def p(self, kind: str) -> float:
        """`(1 + hits) / (1 + n)`: hits are random subspaces whose number is as far from 0; NaN where undefined."""
        drawn = getattr(self, kind)
        if not math.isfinite(self.change.value) or not np.isfinite(drawn).all() or not len(drawn):
            return math.nan
        least = abs(self.change.value) * (1 - TIE * float(np.finfo(np.float64).eps))
        return float((1 + (np.abs(drawn) >= least).sum()) / (1 + len(drawn)))

    def keys(self, stem: str) -> dict[str, float | None]:
        """The flat keys; None where undefined."""
        out = self.change.keys(stem)
        for kind in KINDS:
            drawn = getattr(self, kind)
            spread = float(drawn.std(ddof=1)) if len(drawn) > 1 else math.nan
            values = {"mean": mean(drawn), "sd": spread, "p": self.p(kind)}
            out |= {f"{stem}/{kind}_{k}": optional(v) for k, v in values.items()}
        return out


@dataclass(frozen=True)
class Removal:
    """The change of the log-probability per token of given answers (nats/token, above 0: more likely) when the shared
    space is removed: of harmful answers, of each harmless set, and of harmful beyond each harmless one.

    The first harmless set is the benign one, the others are further controls. `rows` are changes row by row: set, id,
    cluster, change. Intervals and p are given the two fits, one for each half of the clusters: they say how far other
    rows to read would move a change, not other rows to fit. To know that, models would have to read all rows again
    without what each of many refits found.
    """

    setting: RemovalSetting
    name: str
    harmful: Effect
    harmless: Mapping[str, Effect]
    beyond: Mapping[str, Effect]
    counts: Mapping[str, int]
    rows: tuple[tuple[str, str, str, float], ...]

    @property
    def least_p(self) -> float:
        """The smallest p that so many random subspaces allow."""
        return 1 / (1 + self.setting.n_random)

    @property
    def random_p(self) -> float:
        """The largest p against random subspaces of either kind, of the harmful answers and of all that they are
        beyond; NaN where one is undefined."""
        return float(np.max([e.p(kind) for e in (self.harmful, *self.beyond.values()) for kind in KINDS]))

    def summary(self) -> dict[str, float | None]:
        """The flat keys `intervention/...`; None where undefined."""
        benign = next(iter(self.harmless))
        out = self.harmful.keys("intervention/harmful") | self.harmless[benign].keys("intervention/benign")
        out |= self.beyond[benign].keys("intervention/interaction")
        for name in list(self.harmless)[1:]:
            out |= self.harmless[name].keys(f"intervention/control:{name}")
            out |= self.beyond[name].keys(f"intervention/interaction/control:{name}")
        out |= {"intervention/harmful/n": self.counts[self.name], "intervention/benign/n": self.counts[benign]}
        return out | {"intervention/random_subspaces": self.setting.n_random, "intervention/least_p": self.least_p}


def removal(run: ErosionRun) -> Removal | None:
    """What a run measured; None where nothing was asked for. Raises DataError where lines of it are missing."""
    setting = run.setting.removal
    if setting is None:
        return None
    names = measured_sets(run)
    sets = {name: _read(run, name, setting) for name in names}
    harmful, harmless = sets[names[0]], {name: sets[name] for name in harmless_sets(run)}
    return Removal(
        setting=setting,
        name=names[0],
        harmful=_effect(harmful, run.setting.seed),
        harmless={name: _effect(s, run.setting.seed) for name, s in harmless.items()},
        beyond={name: _contrast(harmful, s) for name, s in harmless.items()},
        counts={name: len(s.ids) for name, s in sets.items()},
        rows=tuple(line for name, s in sets.items() for line in s.lines(name)),
    )


def removal_notes(setting: RemovalSetting | None) -> tuple[str, ...]:
    """What must be known of how something was removed."""
    if setting is None:
        return ()
    out = [
        f"intervention: in half {f.half} of the clusters left and right share no component behind layer {f.layer} "
        f"({f.k[0]} and {f.k[1]} components of {f.n_rows[0]} and {f.n_rows[1]} rows): nothing is removed there."
        for f in setting.fits
        if not f.size
    ]
    if not setting.possible:
        out.append("intervention: one half of the clusters has nothing to remove, so nothing was measured.")
    return (
        *out,
        *(
            f"intervention: {n} rows of {name} are not read: left or right has the same text in another cluster."
            for name, n in setting.left_out.items()
        ),
    )


@dataclass(frozen=True)
class _Set:
    """The changes of the rows of one set under every draw but the first."""

    ids: tuple[str, ...]
    names: tuple[str, ...]
    clusters: Int[np.ndarray, " n"]
    changes: Losses

    def drawn(self, kind: str) -> list[Float[np.ndarray, " n"]]:
        """The changes without each random subspace of a kind."""
        return [v for draw, v in self.changes.items() if draw.startswith(f"{kind}-")]

    def lines(self, name: str) -> list[tuple[str, str, str, float]]:
        """Row by row, without what is shared."""
        own = zip(self.ids, self.names, self.changes[SHARED].tolist(), strict=True)
        return [(name, i, cluster, change) for i, cluster, change in own]


def _read(run: ErosionRun, name: str, setting: RemovalSetting) -> _Set:
    of = digest(run, setting.layers, name)
    found = {x.draw: x for x in read_lines(run.folder) if (x.of, x.name) == (of, name)}
    wanted = draw_names(setting.n_random) if setting.possible else ()
    missing = [d for d in wanted if d not in found]
    if missing:
        raise DataError(
            f"{run.folder / REMOVAL_FILE} lacks {len(missing)} of {len(wanted)} readings of {name}, the first "
            f"{missing[0]!r}. Give the erosion command again: only these are made."
        )
    table = run.change_on(name).left
    cluster = dict(zip(table.ids, table.clusters, strict=True))
    ids = found[UNCHANGED].ids if wanted else ()
    before = np.array(found[UNCHANGED].losses if wanted else ())
    changes = {d: before - np.array(found[d].losses) for d in wanted[1:]} or {SHARED: before}
    names = tuple(cluster[i] for i in ids)
    return _Set(ids, names, np.unique(names, return_inverse=True)[1] if names else np.zeros(0, np.int64), changes)


def _effect(of: _Set, seed: int) -> Effect:
    drawn = {kind: np.array([mean(v) for v in of.drawn(kind)]) for kind in KINDS}
    return Effect(mean_difference(of.changes[SHARED], of.clusters, seed=seed), **drawn)


def _contrast(harmful: _Set, other: _Set) -> Effect:
    change = difference_of_means(harmful.changes[SHARED], harmful.clusters, other.changes[SHARED], other.clusters)
    drawn = {
        kind: np.array([mean(a) - mean(b) for a, b in zip(harmful.drawn(kind), other.drawn(kind), strict=True)])
        for kind in KINDS
    }
    return Effect(change, **drawn)
