"""Signals on disk: whole or absent, resumable, checked, nothing served that was not asked for."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from tables import (
    Recipe,
    only_read,
    products_of,
    random_pair,
    random_table,
    with_adam,
    with_reference,
    with_scores,
    with_states,
)
from test_signals import same

from graddiag import files, store
from graddiag._shards import Identity
from graddiag.errors import DataError, ResourceError


def manifest_of(table):
    about = Identity(table.space, table.provenance, table.reference, table.adam)
    return store.describe(about, list(zip(table.ids, table.digests, strict=True)))


def write(path, table, borders):
    store.prepare({path: manifest_of(table)})
    for n, (a, b) in enumerate(pairwise(borders)):
        store.commit(n, {path: table.take(range(a, b))})


@pytest.mark.parametrize(
    "more",
    [lambda table: table, with_scores, with_states, lambda t: with_adam(t, random_table(Recipe(n=4), name="safety"))],
)
def test_a_table_comes_back_as_it_was_in_the_order_of_its_set(tmp_path, more):
    safety = random_table(Recipe(n=4), name="safety")
    table = more(with_reference(random_table(Recipe(n=7)), safety)).signals
    shuffled = table.take([6, 0, 3, 1, 5, 2, 4])
    store.prepare({tmp_path: manifest_of(table)})
    store.commit(0, {tmp_path: shuffled.take(range(3))})
    store.commit(1, {tmp_path: shuffled.take(range(3, 7))})
    assert same(store.read_signals(tmp_path), table)
    assert store.verify(tmp_path) == []


def test_a_shard_may_have_no_row_of_one_side(tmp_path):
    table = with_scores(random_table(Recipe(n=3))).signals
    write(tmp_path, table, [0, 0, 2, 3])
    assert same(store.read_signals(tmp_path), table)


def test_saved_signals_without_token_scores_are_not_served_where_these_are_asked_for(tmp_path):
    table = random_table(Recipe(n=3))
    store.save_signals(tmp_path, table.signals)
    with pytest.raises(DataError, match=r"token_scores: None  \|  True"):
        store.save_signals(tmp_path, with_scores(table).signals)


def test_a_table_that_was_only_read_comes_back_as_it_was(tmp_path):
    table = only_read(with_states(random_table(Recipe(n=5))))
    write(tmp_path, table, [0, 2, 5])
    assert same(store.read_signals(tmp_path), table)


def test_states_at_other_sites_are_not_served(tmp_path):
    store.save_signals(tmp_path, with_states(random_table(Recipe(n=3))).signals)
    with pytest.raises(DataError, match=r"(?s)something else.*space\.states: 2 entries, .*1 entries, \['1/answer'\]"):
        store.save_signals(tmp_path, with_states(random_table(Recipe(n=3)), ("1/answer",)).signals)


def test_a_manifest_of_before_there_were_states_is_read_and_continued(tmp_path):
    table = random_table(Recipe(n=4)).signals
    write(tmp_path, table, [0, 2])
    manifest = json.loads((tmp_path / store.MANIFEST).read_text())
    del manifest["space"]["states"]
    (tmp_path / store.MANIFEST).write_text(json.dumps(manifest))
    assert store.prepare({tmp_path: manifest_of(table)}) == 1
    store.commit(1, {tmp_path: table.take([2, 3])})
    assert same(store.read_signals(tmp_path), table)


def test_signals_of_another_optimizer_state_are_not_served(tmp_path):
    table, safety = random_table(Recipe(n=3)), random_table(Recipe(n=4), name="safety")
    store.save_signals(tmp_path, with_adam(table, safety).signals)
    with pytest.raises(DataError, match=r"adam\.state: 'state'  \|  'later'"):
        store.save_signals(tmp_path, with_adam(table, safety, "later").signals)
    with pytest.raises(DataError, match=r"adam.*  \|  None"):
        store.save_signals(tmp_path, with_reference(table, safety).signals)


def test_saving_twice_changes_nothing_and_another_table_is_refused(tmp_path):
    left, right = random_pair()
    store.save_signals(tmp_path, left.signals)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    store.save_signals(tmp_path, left.signals)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
    with pytest.raises(DataError, match=r"(?s)something else.*--overwrite"):
        store.save_signals(tmp_path, right.signals)
    store.save_signals(tmp_path, right.signals, overwrite=True)
    assert same(store.read_signals(tmp_path), right.signals)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: replace(t, digests=("changed", *t.digests[1:])),
        lambda t: replace(t, provenance=replace(t.provenance, weights="retrained")),
        lambda t: replace(t, space=replace(t.space, max_length=100)),
        lambda t: replace(t, ids=("renamed", *t.ids[1:])),
    ],
)
def test_a_changed_row_model_or_option_is_never_served_from_old_shards(tmp_path, change):
    table = random_table().signals
    write(tmp_path, table, [0, 6])
    with pytest.raises(DataError, match="something else"):
        store.prepare({tmp_path: manifest_of(change(table))})


def test_an_interrupted_table_is_refused_until_it_is_whole(tmp_path):
    table = random_table(Recipe(n=6)).signals
    write(tmp_path, table, [0, 2, 4])
    with pytest.raises(DataError, match=r"holds 4 of 6 rows.*interrupted"):
        store.read_signals(tmp_path)
    assert store.prepare({tmp_path: manifest_of(table)}) == 2
    assert store.done_ids(tmp_path) == list(table.ids[:4])
    store.commit(2, {tmp_path: table.take([4, 5])})
    assert same(store.read_signals(tmp_path), table)


def test_a_shard_that_one_member_of_a_group_lacks_does_not_count(tmp_path):
    left, right = random_pair(Recipe(n=4))
    products = products_of(left, right)
    a, b, p = tmp_path / "left", tmp_path / "right", tmp_path / "pairs"
    group = {a: manifest_of(left.signals), b: manifest_of(right.signals), p: manifest_of(left.signals)}
    assert store.prepare(group) == 0
    for n, rows in enumerate(([0, 1], [2, 3])):
        store.commit(n, {a: left.signals.take(rows), b: right.signals.take(rows), p: products.take(rows)})
    (b / "shard-00001.json").unlink()
    assert store.prepare(group) == 1
    assert store.done_ids(a) == store.done_ids(b) == list(left.signals.ids[:2])
    assert not (a / "shard-00001.safetensors").exists()
    store.commit(1, {a: left.signals.take([2, 3]), b: right.signals.take([2, 3]), p: products.take([2, 3])})
    again = store.read_pairs(p)
    assert (again.left_ids, again.right_ids) == (products.left_ids, products.right_ids)
    for block, inner in products.inner.items():
        assert np.array_equal(again.inner[block], inner)
        assert np.array_equal(again.difference_norm[block], products.difference_norm[block])


@pytest.mark.parametrize("suffix", ["safetensors", "parquet"])
def test_a_broken_shard_is_named(tmp_path, suffix):
    table = random_table(Recipe(n=4)).signals
    write(tmp_path, table, [0, 2, 4])
    broken = tmp_path / f"shard-00001.{suffix}"
    raw = bytearray(broken.read_bytes())
    raw[-3] ^= 1
    broken.write_bytes(raw)
    with pytest.raises(DataError, match=rf"shard-00001\.{suffix} is broken.*Delete shard-00001\.json"):
        store.read_signals(tmp_path)
    assert len(store.verify(tmp_path)) == 1
    (tmp_path / "shard-00001.json").unlink()
    assert store.prepare({tmp_path: manifest_of(table)}) == 1
    broken.unlink(missing_ok=True)


def test_a_missing_file_and_a_folder_without_signals_are_named(tmp_path):
    table = random_table(Recipe(n=4)).signals
    write(tmp_path / "run", table, [0, 4])
    (tmp_path / "run" / "shard-00000.parquet").unlink()
    assert "shard-00000.parquet is missing" in store.verify_all(tmp_path)[tmp_path / "run"][0]
    with pytest.raises(DataError, match="holds no saved signals"):
        store.read_signals(tmp_path)
    with pytest.raises(DataError, match="holds no saved signals"):
        store.verify_all(tmp_path / "nowhere")


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    table = random_table(Recipe(n=4)).signals
    write(tmp_path, table, [0, 2])

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ResourceError, match=r"disk is full.*finished shards are kept") as caught:
        store.commit(1, {tmp_path: table.take([2, 3])})
    assert caught.value.exit_code == 4
    monkeypatch.undo()
    assert store.done_ids(tmp_path) == list(table.ids[:2])
    assert not list(tmp_path.glob(".*tmp"))
    store.commit(1, {tmp_path: table.take([2, 3])})
    assert same(store.read_signals(tmp_path), table)


def test_no_file_of_a_store_is_a_pickle_and_json_is_strict(tmp_path):
    table = random_table(Recipe(n=3)).signals
    store.save_signals(
        tmp_path, replace(table, loss=np.array([1.0, np.nan, 2.0]), finite=np.array([True, False, True]))
    )
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".parquet", ".safetensors"}

    def refuse(token):
        raise AssertionError(token)

    for path in tmp_path.glob("*.json"):
        json.loads(path.read_text(), parse_constant=refuse)
    assert np.isnan(store.read_signals(tmp_path).loss[1])
