"""Signals on disk: numbered shards that are either whole or absent, a manifest that says what they are, checksums."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from graddiag._shards import Identity, pack, read_columns, read_pairs_shard, read_shard, shard
from graddiag.errors import DataError
from graddiag.files import Json, check_sums, disk_named, read_json, write_atomically, write_json
from graddiag.signals import AdamStep, Block, PairProducts, Provenance, Reference, Signals, Space

SCHEMA = 2  # 2: pairs name both members
MANIFEST = "manifest.json"


def describe(of: Identity, rows: Sequence[tuple[str, str, str]], *, token_scores: bool = False) -> Json:
    """The manifest of a table: everything that its numbers depend on, and its rows (id, cluster, digest) in order.

    A key that is null means the same as a manifest without it: tables of before that key stay readable.
    """
    return {
        "schema": SCHEMA,
        **asdict(of),
        "space": {**asdict(of.space), "states": list(of.space.states) or None},
        "token_scores": token_scores or None,
        "rows": [list(r) for r in rows],
    }


def is_store(path: Path) -> bool:
    """Whether a directory holds saved signals."""
    return (path / MANIFEST).is_file()


def prepare(stores: Mapping[Path, Json], *, overwrite: bool = False) -> int:
    """Makes the folders of a group of stores ready, and says how many shards of an interrupted run they already hold.

    The stores of a group are written together; a shard that is not complete in all of them is removed. Raises DataError
    where a folder holds something measured otherwise, with the fields that differ; with `overwrite`, only such a
    folder is
    emptied, so that an interrupted run continues under the same command.
    """
    for path, manifest in stores.items():
        different = _differences(read_json(path / MANIFEST), manifest) if is_store(path) else []
        if different and not overwrite:
            raise _something_else(path, different)
        if different:
            (path / MANIFEST).unlink()  # first: without it the shards do not count
            _remove_shards(path, keep=0)
    complete = min(_contiguous(path) if is_store(path) else 0 for path in stores)
    for path, manifest in stores.items():
        with disk_named(path):
            path.mkdir(parents=True, exist_ok=True)
            _remove_shards(path, keep=complete)
            if not is_store(path):
                write_json(path / MANIFEST, manifest)
    return complete


def restart(stores: Mapping[Path, Json]) -> int:
    """Forgets the shards of a group of stores; 0, the shards they hold then."""
    for path in stores:
        _remove_shards(path, keep=0)
    return 0


def commit(number: int, tables: Mapping[Path, Signals | PairProducts]) -> None:
    """Writes shard `number` of each store: all arrays first, then the sidecars that make the shard count.

    Raises ResourceError where the disk is full; what was there before stays.
    """
    sidecars: dict[Path, Json] = {}
    for path, table in tables.items():
        stem = shard(number)
        with disk_named(path):
            arrays, columns = pack(table)
            files = {
                f"{stem}.safetensors": lambda p, a=arrays: save_file(a, p),
                f"{stem}.parquet": lambda p, c=columns: pq.write_table(pa.table(c), p),
            }
            sums = {name: write_atomically(path / name, write) for name, write in files.items()}
        sidecars[path / f"{stem}.json"] = {"rows": len(table), "sha256": sums}
    for sidecar, content in sidecars.items():
        with disk_named(sidecar.parent):
            write_json(sidecar, content)


def save_signals(path: Path, signals: Signals, *, overwrite: bool = False) -> None:
    """Saves a whole table as one shard; saving the same table again changes nothing."""
    rows = list(zip(signals.ids, signals.clusters, signals.digests, strict=True))
    scores = signals.token_alignment is not None
    about = Identity(signals.space, signals.provenance, signals.reference, signals.adam)
    manifest = describe(about, rows, token_scores=scores)
    if prepare({path: manifest}, overwrite=overwrite) == 0:
        commit(0, {path: signals})


def save_pairs(
    path: Path,
    of: Identity,
    rows: Sequence[tuple[str, str, str]],
    products: PairProducts,
    *,
    overwrite: bool = False,
) -> None:
    """Saves exact products of pairs, whole, as one shard; `rows` are the pairs' ids, clusters and digests."""
    if prepare({path: describe(of, rows)}, overwrite=overwrite) == 0:
        commit(0, {path: products})


def done_ids(path: Path) -> list[str]:
    """Ids of the rows in a store's complete shards. Raises DataError for a broken one."""
    numbers = range(_contiguous(path))
    for n in numbers:
        check_sums(path / f"{shard(n)}.json")
    return [i for n in numbers for i in read_columns(path / shard(n))["ids"]]


def read_signals(path: Path) -> Signals:
    """A saved table, whole, its rows in the order of the set. Raises DataError where rows or shards are missing or
    broken."""
    manifest = _manifest(path)
    about = _identity(manifest)
    parts = [read_shard(path / shard(n), about) for n in range(_contiguous(path))]
    rows: list[list[str]] = manifest["rows"]  # type: ignore[assignment]
    have = sum(len(p) for p in parts)
    if have < len(rows) or not parts:
        raise DataError(
            f"{path} holds {have} of {len(rows)} rows: the run was interrupted. Give the same command "
            "again to continue it."
        )
    whole = Signals.concat(parts)
    where = {i: k for k, i in enumerate(whole.ids)}
    return whole.take([where[i] for i, *_ in rows])


def read_pairs(path: Path) -> PairProducts:
    """Saved exact products of pairs. Raises DataError where there are none or a shard is broken."""
    _manifest(path)
    parts = [read_pairs_shard(path / shard(n)) for n in range(_contiguous(path))]
    if not parts:
        raise DataError(f"{path} holds no pairs: the run was interrupted. Give the same command again to continue it.")
    return PairProducts.concat(parts)


def verify(path: Path) -> list[str]:
    """What is wrong with a store, one line per problem; empty if every shard has its checksum and no row is missing."""
    problems: list[str] = []
    rows: Sequence[object] = _manifest(path)["rows"]  # type: ignore[assignment]
    numbers = sorted(int(p.stem.split("-")[1]) for p in path.glob("shard-*.json"))
    problems += [p for n in numbers if (p := _problem(path / f"{shard(n)}.json"))]
    have = sum(int(read_json(path / f"{shard(n)}.json")["rows"]) for n in numbers)  # type: ignore[call-overload]
    if have != len(rows):
        problems.append(f"{path} holds {have} of {len(rows)} rows.")
    return problems


def _problem(sidecar: Path) -> str:
    try:
        check_sums(sidecar)
    except DataError as error:
        return str(error)
    return ""


def verify_all(path: Path) -> dict[Path, list[str]]:
    """What is wrong with every store in a folder, or with the folder itself if it is a store.

    Raises DataError where there is no store.
    """
    stores = sorted(p.parent for p in path.rglob(MANIFEST))
    if not stores:
        raise DataError(f"{path} holds no saved signals, nor do its folders. Give the folder of a run.")
    checked = {p: verify(p) for p in stores}
    for means in sorted(path.rglob("means/")):
        checked[means] = [p for s in sorted(means.glob("*.json")) if (p := _problem(s))]
    return checked


def _identity(manifest: Json) -> Identity:
    kept = ("space", "provenance", "reference", "adam")
    space, provenance, reference, adam = (dict(manifest.get(k) or {}) for k in kept)  # type: ignore[call-overload]
    space["blocks"] = tuple(Block(b["name"], tuple(b["shape"])) for b in space["blocks"])
    space["states"] = tuple(space.get("states") or ())
    provenance["versions"] = tuple((k, v) for k, v in provenance["versions"])
    return Identity(
        Space(**space),
        Provenance(**provenance),
        Reference(**reference) if reference else None,
        AdamStep(**adam) if adam else None,
    )


def _manifest(path: Path) -> Json:
    if not is_store(path):
        raise DataError(
            f"{path} holds no saved signals ({MANIFEST} is missing). Make some with 'graddiag "
            "extract' or 'graddiag compare'."
        )
    manifest = read_json(path / MANIFEST)
    if manifest.get("schema") != SCHEMA:
        raise DataError(
            f"{path} has schema {manifest.get('schema')!r}; this version reads schema {SCHEMA}. Extract the set again."
        )
    return manifest


def _differences(found: Json, wanted: Json) -> list[str]:
    """A line per field in which two manifests differ: saved | asked for now."""
    a, b = _flat(found), _flat(json.loads(json.dumps(wanted)))
    return [
        f"  {k}: {_short(a.get(k))}  |  {_short(b.get(k))}" for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)
    ]


def _something_else(path: Path, different: Sequence[str]) -> DataError:
    lines = "\n".join(different[:12])
    return DataError(
        f"{path} holds signals of something else. Saved | asked for now:\n{lines}\n"
        "Choose another --out, or give --overwrite to replace them."
    )


def _flat(content: Json) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in content.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat


def _short(value: object) -> str:
    text = f"{len(value)} entries, {value[:1]}..." if isinstance(value, list) else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _contiguous(path: Path) -> int:
    n = 0
    while (path / f"{shard(n)}.json").is_file():
        n += 1
    return n


def _remove_shards(path: Path, *, keep: int) -> None:
    for file in path.glob("shard-*.json"):  # sidecars first: without it a shard does not count
        if int(file.stem.split("-")[1]) >= keep:
            file.unlink()
    for file in path.glob("shard-*"):
        if int(file.stem.split("-")[1]) >= keep:
            file.unlink()
