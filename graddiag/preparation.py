"""From what the user named to what can be measured: sets read and encoded, model loaded, blocks chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict, Unpack

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graddiag.bases import MEANS, REFERENCE_ROWS, Given, first_kind, kept_bases, on_bases, read_reference
from graddiag.data import ExampleSet, Source, read_set
from graddiag.decoding import target_texts
from graddiag.editing import with_edits
from graddiag.edits import Edit
from graddiag.encoding import Encoded, EncodedSet, doubled_special_tokens, encode
from graddiag.errors import DataError, UsageError
from graddiag.extraction import ready
from graddiag.extractor import Extractor
from graddiag.files import read_json
from graddiag.models import load_model
from graddiag.projection import Bases
from graddiag.signals import Signals, check_same_space
from graddiag.store import is_store, read_signals
from graddiag.token_texts import read_texts

Input = Source | Signals
KIND, DIM = "logra", 256  # where nobody says otherwise and nothing is chosen
NOTES_FILE = "notes.json"
_CLUSTERED = ("left", "right", "set")  # the option `cluster` speaks of their columns and row numbers
_ANSWERS = ("left", "right", "set")  # whose answer tokens a report shows
Model = PreTrainedModel | str | Path


class How(TypedDict, total=False):
    """How sets are measured; the same for all sets of a run. Defaults are those of `prepare`."""

    model: Model  # name, folder, hub id, or a loaded model (then with its tokenizer)
    tokenizer: PreTrainedTokenizerBase | None
    revision: str | None
    trust_remote_code: bool
    dtype: str | None
    device: str | None
    blocks: Sequence[str] | None
    target: str
    projection: str | None  # None in `compare`: chosen by a pilot, see `settle`; elsewhere logra
    dim: int | None  # None: likewise; with another projection, or elsewhere, 256
    seed: int
    reference: Given  # of the projection `lowrank`: a set, the folder of a run, or bases
    limit: int | None
    max_length: int | None
    cluster: str | None
    skip_bad_rows: bool


@dataclass(frozen=True)
class Prepared:
    """The sets of a run by role (left, right, safety, control-NAME): saved tables, and what is still to be measured.

    `texts` are those of the answer tokens of the sides, by token id. `extractor` is None where every set is a saved
    table already. Where `reference` has rows, their bases must still be
    measured or found (`settle`), and the extractor is only a pilot.
    """

    saved: Mapping[str, Signals]
    encoded: Mapping[str, EncodedSet]
    extractor: Extractor | None
    model: str
    notes: tuple[str, ...]
    reference: tuple[Encoded, ...] = ()
    texts: Mapping[int, str] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None

    def name(self, role: str) -> str:
        """The name of the set in a role."""
        return self.saved[role].provenance.data if role in self.saved else self.encoded[role].name


def prepare(sources: Mapping[str, Input], *, edits: Sequence[Edit] = (), **how: Unpack[How]) -> Prepared:
    """Reads and encodes every set that is not saved signals, and makes the model ready for them.

    With `edits`, an edited side is there twice: as it was given, and edited, under the role of the edit.

    Everything that can be wrong with the input is found here, before anything long runs. Raises UsageError or
    DataError.
    """
    saved = _saved_tables(sources, **how)
    sets = with_edits(_read_sets({role: one for role, one in sources.items() if role not in saved}, **how), edits)
    name = model_name(how.get("model", "smollm2"))
    notes = [n for s in sets.values() for n in s.notes]
    notes += [n for role in saved for n in _saved_notes(sources[role])]
    if not sets:
        return Prepared(saved, {}, None, name, tuple(notes), texts=_kept_texts(sources))
    if saved and not chosen_by_user(how):
        space = next(iter(saved.values())).space
        how = {**how, "projection": space.projection, "dim": space.dim}
    model, tokenizer = _loaded(**how)
    target, skip = how.get("target", "answer"), how.get("skip_bad_rows", False)
    known = read_reference(how.get("reference"), limit=how.get("limit"))
    extractor = _extractor(model, tokenizer, known, name, how)
    length = extractor.space.max_length

    def encoded_set(one: ExampleSet) -> EncodedSet:
        return encode(one, tokenizer, target=target, max_length=length, skip_bad_rows=skip)

    encoded = {role: encoded_set(s) for role, s in sets.items()}
    _refuse_doubled(encoded, tokenizer)
    notes += [n for e in encoded.values() for n in e.notes]
    reference: tuple[Encoded, ...] = ()
    if how.get("projection") == "lowrank" and not isinstance(known, Bases):
        reference = _first_rows(saved, encoded) if known is None else encoded_set(known).rows
    texts = target_texts([encoded[r] for r in encoded.keys() & set(_ANSWERS)], tokenizer) | _kept_texts(sources)
    prepared = Prepared(saved, encoded, extractor, name, tuple(notes), reference, texts, tokenizer)
    if not reference:
        _check_saved(prepared, extractor)
    return prepared


def _saved_tables(sources: Mapping[str, Input], **how: Unpack[How]) -> dict[str, Signals]:
    """The sets that are saved signals, or a table already. Raises UsageError where `cluster` could only mean these."""
    limit = how.get("limit")
    saved = {role: table for role, one in sources.items() if (table := _saved(one, limit)) is not None}
    if saved and not saved.keys() - _CLUSTERED and how.get("cluster"):
        raise UsageError(
            "--cluster is for sets that are measured now: saved signals keep the clusters they were saved with."
        )
    return saved


def _read_sets(sources: Mapping[str, Input], **how: Unpack[How]) -> dict[str, ExampleSet]:
    """The examples of the other sets; rows that come without a name are called after their role."""
    sets: dict[str, ExampleSet] = {}
    for role, one in sources.items():
        assert not isinstance(one, Signals)
        cluster = how.get("cluster") if role in _CLUSTERED else None
        skip = how.get("skip_bad_rows", False)
        read = read_set(one, limit=how.get("limit"), cluster=cluster, skip_bad_rows=skip)
        sets[role] = replace(read, name=role) if read.name == "examples" and role != "set" else read
    return sets


def _kept_texts(sources: Mapping[str, Input]) -> dict[int, str]:
    """The texts of tokens that were kept beside saved signals."""
    folders = [Path(one) for role, one in sources.items() if role in _ANSWERS and isinstance(one, (str, Path))]
    return {i: text for f in folders if is_store(f) for i, text in read_texts(f).items()}


def chosen_by_user(how: How) -> bool:
    """Whether the user says which projection it is to be."""
    return how.get("projection") is not None or how.get("dim") is not None


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def settle(prepared: Prepared, folder: Path, *, batch_tokens: int, overwrite: bool = False) -> Extractor | None:
    """The extractor that measures, with the bases that are in the folder of a run, or are put there now.

    Raises DataError where other bases are there, or saved signals of the run are not in the same space.
    """
    if prepared.extractor is None or not prepared.reference:
        return prepared.extractor
    pilot, rows = prepared.extractor, prepared.reference
    bases = kept_bases(folder / MEANS, pilot, rows, batch_tokens=batch_tokens, overwrite=overwrite)
    extractor = on_bases(pilot, bases)
    _check_saved(prepared, extractor)
    return extractor


def _extractor(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    known: ExampleSet | Bases | None,
    name: str,
    how: How,
) -> Extractor:
    kind, dim, seed = how.get("projection") or KIND, _or(how.get("dim"), DIM), how.get("seed", 0)
    bases = known if isinstance(known, Bases) else None
    return ready(
        model,
        tokenizer,
        blocks=how.get("blocks"),
        projection=first_kind(kind, dim, seed, bases or how.get("reference")),
        dim=dim,
        seed=seed,
        target=how.get("target", "answer"),
        max_length=how.get("max_length"),
        name=name,
        revision=how.get("revision"),
        bases=bases,
    )


def _first_rows(saved: Mapping[str, Signals], encoded: Mapping[str, EncodedSet]) -> tuple[Encoded, ...]:
    """The rows whose mean gradient gives the bases where nobody names a reference.

    Raises UsageError where sets measured apart would then have bases of their own.
    """
    if saved or not {"left", "right"} <= encoded.keys():
        raise UsageError(
            "The projection 'lowrank' needs one reference for all that is to be compared. Give --reference SET, or "
            "--reference RUN for the bases of a run."
        )
    return encoded["safety" if "safety" in encoded else "left"].rows[:REFERENCE_ROWS]


def _check_saved(prepared: Prepared, extractor: Extractor) -> None:
    for table in prepared.saved.values():
        check_same_space(table.space, extractor.space, f"{table.provenance.data} (saved)", "what is to be measured now")


def _refuse_doubled(encoded: Mapping[str, EncodedSet], tokenizer: PreTrainedTokenizerBase) -> None:
    doubled = doubled_special_tokens([r for e in encoded.values() for r in e.rows], tokenizer)
    if doubled:
        raise DataError(
            f"Every row has the special token {doubled[0]!r} twice side by side. "
            "Take it out of the chat template, or keep the tokenizer from adding it (add_bos_token=False)."
        )


def model_name(model: Model) -> str:
    """What a model is called in a report: its name, the last part of its folder, or its hub id."""
    if isinstance(model, (str, Path)):
        return Path(model).name if Path(model).is_dir() else str(model)
    return model.config.name_or_path or type(model).__name__


def _saved_notes(one: Input) -> list[str]:
    """What was noted when a folder of signals was made, such as rows left out."""
    path = Path(one) / NOTES_FILE if isinstance(one, (str, Path)) else None
    if path is None or not path.is_file():
        return []
    notes = read_json(path)["notes"]
    assert isinstance(notes, list)
    return notes


def _saved(one: Input, limit: int | None) -> Signals | None:
    if isinstance(one, Signals):
        table = one
    elif isinstance(one, (str, Path)) and is_store(Path(one)):
        table = read_signals(Path(one))
    else:
        return None
    return table if limit is None else table.take(range(min(limit, len(table))))


def _loaded(**how: Unpack[How]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer = how.get("model", "smollm2"), how.get("tokenizer")
    if isinstance(model, (str, Path)):
        loaded, own = load_model(
            model,
            revision=how.get("revision"),
            dtype=how.get("dtype"),
            device=how.get("device"),
            trust_remote_code=how.get("trust_remote_code", False),
        )
        return loaded, tokenizer or own
    if tokenizer is None:
        raise UsageError("A model object needs its tokenizer: compare(..., model=model, tokenizer=tokenizer).")
    for option in ("dtype", "device", "revision", "trust_remote_code"):
        if how.get(option):
            raise UsageError(f"{option}={how[option]!r} says how a model is loaded, and this one is loaded already.")
    return model, tokenizer
