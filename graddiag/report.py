"""From results to a folder: report.json, tables, figures and one page."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from graddiag.analyzers import AdamAlignment, Alignment, Audit, Conflict, CosineMatrix, Framing, LossGap, Training
from graddiag.comparison import Comparison
from graddiag.errors import ResourceError, UsageError
from graddiag.exhibits import NAMES as EXHIBITS
from graddiag.exhibits import Exhibit, exhibits
from graddiag.files import write_atomically
from graddiag.page import Page, render_page
from graddiag.plotting import plot, render
from graddiag.rules import PROJECTION_SE, Setting
from graddiag.signals import Provenance, Signals
from graddiag.tables import Table, block_table, pair_table, row_table, summary_table, to_csv
from graddiag.text import visible
from graddiag.verdict import verdict

SCHEMA = 1
FULL = (errno.ENOSPC, errno.EDQUOT)
Json = Mapping[str, object]
_ENDS = ("", "/low", "/high")
_FORMS = ("alignment", "alignment_adam")
ALIGNMENT_KEYS = (  # there also where no safety set, or no optimizer, is given, and then undefined
    *(f"{form}/{side}{end}" for form in _FORMS for side in ("left", "right", "difference") for end in _ENDS),
    *(f"{form}/difference/p" for form in _FORMS),
    "alignment_adam/momentum",
    *(f"alignment/{side}/{PROJECTION_SE}" for side in ("left", "right", "difference")),
)


@dataclass(frozen=True)
class Findings:
    """Everything that was found in one comparison, and what a reader must know before believing it."""

    comparison: Comparison
    safety: Signals | None
    controls: Mapping[str, Signals]
    loss_gap: LossGap
    conflict: Conflict
    framing: Framing
    alignment: Alignment | None
    training: Training
    audit: Audit
    matrix: CosineMatrix
    command: str
    warnings: tuple[str, ...]
    alignment_adam: AdamAlignment | None = None

    @property
    def _results(self) -> tuple[LossGap | Conflict | Framing | Alignment | AdamAlignment | Training | Audit, ...]:
        toward = [r for r in (self.alignment, self.alignment_adam) if r is not None]
        return (self.loss_gap, self.conflict, self.framing, *toward, self.training, self.audit)

    def summary(self) -> dict[str, float | None]:
        """The flat keys of all results; undefined is None."""
        found = {k: v for result in self._results for k, v in result.summary().items()}
        return found | {k: None for k in self._alignment_keys if k not in found}

    def kinds(self) -> dict[str, str]:
        """For each key, whether it is "exact", "projected" or of the "loss"."""
        found = {k: v for result in self._results for k, v in result.kinds().items()}
        return found | {k: "exact" for k in self._alignment_keys if k not in found}

    @property
    def _alignment_keys(self) -> tuple[str, ...]:
        """All that a run with a safety set, these controls and an optimizer has."""
        controls = [f"{form}/control:{name}{end}" for form in _FORMS for name in self.controls for end in _ENDS]
        errors = [f"alignment/control:{name}/{PROJECTION_SE}" for name in self.controls]
        return (*ALIGNMENT_KEYS, *controls, *errors)

    def block_summary(self) -> dict[str, dict[str, float | None]]:
        """The same keys per block, in model order, where they make sense."""
        parts = [result.block_summary() for result in self._results]
        return {b: {k: v for p in parts for k, v in p.get(b, {}).items()} for b in self.comparison.left.blocks}

    def tables(self) -> dict[str, Signals]:
        """All tables by their role: left, right, safety, control:NAME."""
        sides = {"left": self.comparison.left, "right": self.comparison.right}
        safety = {} if self.safety is None else {"safety": self.safety}
        return sides | safety | {f"control:{name}": t for name, t in self.controls.items()}


@dataclass(frozen=True)
class Report:
    """What was written, and what to show: `verdict` and `warnings` are safe to print."""

    json: Path
    html: Path | None
    summary: dict[str, float | None]
    verdict: tuple[str, ...]
    warnings: tuple[str, ...]


def write_report(findings: Findings, out: Path, *, figures: bool = True) -> Report:
    """Writes report.json, tables/*.csv and, with `figures`, figures/*.svg, figures/*.png and report.html into `out`.

    Every file is complete or absent. Without `figures` those of an earlier report are removed: they would show other
    numbers. Raises ResourceError where the disk is full, UsageError where the folder cannot be written.
    """
    lines = tuple(verdict(findings.summary(), setting_of(findings)))
    warnings = tuple(visible(w) for w in findings.warnings)
    shown = exhibits(
        loss_gap=findings.loss_gap,
        matrix=findings.matrix,
        conflict=findings.conflict,
        framing=findings.framing,
        alignment=findings.alignment,
        audit=findings.audit,
    )
    tables = _tables(findings)
    folder = _Folder(out)
    folder.remove(["report.html", *(f"figures/{name}.{form}" for name in EXHIBITS for form in ("svg", "png"))])
    folder.remove([f"tables/{name}.csv" for name in EXHIBITS])
    folder.write("report.json", _json(findings, lines, warnings))
    for table in (*(e.table for e in shown), *tables.values()):
        folder.write(f"tables/{table.name}.csv", to_csv(table))
    html = None
    if figures:
        images = _draw(folder, shown)
        origins, facts = _origins(findings), _facts(findings)
        page = Page(_title(findings), lines, warnings, shown, images, tables, origins, facts)
        html = folder.write("report.html", render_page(page))
    return Report(out / "report.json", html, findings.summary(), lines, warnings)


def setting_of(findings: Findings) -> Setting:
    """What the rules must know beside the numbers."""
    comparison, tables = findings.comparison, findings.tables()
    left, right = comparison.left.provenance, comparison.right.provenance
    same = left.data == right.data
    safety = findings.safety.provenance if findings.safety is not None else None
    others = (role for role, t in tables.items() if safety is not None and t.provenance.weights != safety.weights)
    return Setting(
        left=_side(left, "left", left.model != right.model) if same else left.data,
        right=_side(right, "right", left.model != right.model) if same else right.data,
        safety=None if safety is None else safety.data,
        controls=tuple(findings.controls),
        differs=comparison.differs,
        other_model=tuple(others),
        centered=findings.conflict.centered,
        kinds=findings.kinds(),
        adam=findings.alignment_adam is not None,
    )


def _side(one: Provenance, side: str, by_model: bool) -> str:
    """What a set is called that has the name of the other side's: by its model if that differs, else by its side."""
    return f"{one.data} ({one.model if by_model else side})"


def _tables(findings: Findings) -> dict[str, Table]:
    pairs = pair_table(findings.comparison, findings.loss_gap, findings.conflict, findings.alignment)
    return {
        "Every key": summary_table(findings.summary(), findings.kinds()),
        "Every block": block_table(findings.block_summary()),
        "Every pair": pairs,
        "Every row": row_table(findings.tables(), findings.training, findings.alignment, findings.alignment_adam),
    }


def _json(findings: Findings, lines: tuple[str, ...], warnings: tuple[str, ...]) -> str:
    content = {
        "schema": SCHEMA,
        "provenance": _provenance(findings),
        "verdict": lines,
        "summary": findings.summary(),
        "kinds": findings.kinds(),
        "blocks": findings.block_summary(),
        "warnings": warnings,
    }
    return json.dumps(_strict(content), allow_nan=False, indent=1) + "\n"


def _strict(value: object) -> object:
    """The value with None in the place of every number that is not finite: JSON has no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _strict(v) for k, v in value.items()}
    return [_strict(v) for v in value] if isinstance(value, (list, tuple)) else value


def _provenance(findings: Findings) -> Json:
    comparison = findings.comparison
    return {
        "graddiag": version("graddiag"),
        "command": findings.command,
        "sets": {role: _origin(table) for role, table in findings.tables().items()},
        "space": asdict(comparison.left.space),
        "differs": comparison.differs,
        "pairs": "exact" if findings.conflict.exact_pairs else "projected",
        "centered": findings.conflict.centered,
    }


def _origin(table: Signals) -> Json:
    from_, adam = table.provenance, table.adam
    return {
        "data": from_.data,
        "n": len(table),
        "finite": int(table.finite.sum()),
        "rows": table.rows,
        "model": from_.model,
        "revision": from_.revision,
        "weights": from_.weights,
        "versions": dict(from_.versions),
        "optimizer": None if adam is None else {"kind": adam.optimizer, "state": adam.state, "step": adam.step},
    }


def _origins(findings: Findings) -> Table:
    header = ("role", "set", "rows", "finite", "digest of the rows", "model", "revision", "digest of the weights")
    tables = [(role, t, t.provenance) for role, t in findings.tables().items()]
    lines = [(r, p.data, len(t), int(t.finite.sum()), t.rows, p.model, p.revision, p.weights) for r, t, p in tables]
    return Table("origins", header, tuple(lines))


def _facts(findings: Findings) -> dict[str, str]:
    space = findings.comparison.left.space
    versions = dict(v for t in findings.tables().values() for v in t.provenance.versions)
    return {
        "command": findings.command or "called from Python",
        "sides differ in": ", ".join(findings.comparison.differs) or "nothing",
        "blocks": f"{len(space.blocks)}, from {space.blocks[0].name} to {space.blocks[-1].name}",
        **{k: str(v) for k, v in asdict(space).items() if k != "blocks"},
        "optimizer": _optimizer(findings.comparison.left),
        "paired cosines": "exact" if findings.conflict.exact_pairs else "projected",
        "grand mean subtracted": "yes" if findings.conflict.centered else "no",
        "versions": ", ".join(f"{k} {v}" for k, v in {"graddiag": version("graddiag"), **versions}.items()),
    }


def _optimizer(table: Signals) -> str:
    adam = table.adam
    return "none" if adam is None else f"{adam.optimizer} after {adam.step} steps, digest of its state {adam.state}"


def _title(findings: Findings) -> str:
    setting = setting_of(findings)
    return f"{setting.left} against {setting.right}"


def _draw(folder: _Folder, shown: tuple[Exhibit, ...]) -> dict[str, bytes]:
    """Writes every figure, and gives the SVGs by name."""
    images = {}
    for exhibit in shown:
        figure = plot(exhibit.result)
        images[exhibit.name] = render(figure, "svg")
        folder.write(f"figures/{exhibit.name}.svg", images[exhibit.name])
        folder.write(f"figures/{exhibit.name}.png", render(figure, "png"))
    return images


@dataclass(frozen=True)
class _Folder:
    """A folder whose files are complete or absent, and which knows what it has."""

    path: Path
    kept: list[str] = field(default_factory=list)

    def write(self, name: str, content: bytes | str) -> Path:
        raw = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
        path = self.path / name
        with self._named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda p: p.write_bytes(raw))
        self.kept.append(name)
        return path

    def remove(self, names: list[str]) -> None:
        for name in names:
            with self._named(self.path / name):
                (self.path / name).unlink(missing_ok=True)

    @contextmanager
    def _named(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise ResourceError(
                    f"The disk is full: {path} could not be written. Kept: {', '.join(self.kept) or 'nothing'}. "
                    f"Make room, then: graddiag report {self.path}"
                ) from error
            raise UsageError(
                f"{path} cannot be written ({error.strerror}). Choose another folder with --out."
            ) from error
