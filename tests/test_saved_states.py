"""States of a set in a folder: the same as in memory, continued where reading stopped."""

from __future__ import annotations

import os
import signal

import pytest
from conftest import relative
from measured_runs import rows_of
from test_reading import ROUNDED
from test_signals import same

from graddiag.data import read_set
from graddiag.encoding import encode
from graddiag.errors import DataError
from graddiag.interrupt import Interrupted
from graddiag.models import load_model
from graddiag.reading import Reader, read_states, reader
from graddiag.saved_states import store_states
from graddiag.store import done_ids, read_signals, verify

ASKED = {"layers": [0, 3], "positions": ["first:10", "last_prompt"]}


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny", device="cpu")


@pytest.fixture(scope="module")
def one(tiny):
    return encode(read_set(rows_of("insecure", 6), name="set"), tiny[1], max_length=1024)


def test_a_saved_table_is_the_one_in_memory_and_is_not_read_twice(tmp_path, tiny, one, monkeypatch):
    saved = store_states(reader(*tiny, **ASKED), one, tmp_path)
    assert same(saved, read_states(*tiny, rows_of("insecure", 6), **ASKED, name="set"))
    assert same(read_signals(tmp_path), saved)
    assert verify(tmp_path) == []
    monkeypatch.setattr(Reader, "read", lambda *_: pytest.fail("read again"))
    assert same(store_states(reader(*tiny, **ASKED), one, tmp_path), saved)


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_reading_continues_and_reads_no_finished_row_again(tmp_path, tiny, one, monkeypatch, after):
    straight = store_states(reader(*tiny, **ASKED), one, tmp_path / "straight")
    read, seen = Reader.read, []

    def stop(self, rows):
        seen.append([r.id for r in rows])
        if len(seen) == after:
            os.kill(os.getpid(), signal.SIGINT)
        return read(self, rows)

    monkeypatch.setattr(Reader, "read", stop)
    with pytest.raises(Interrupted):
        store_states(reader(*tiny, **ASKED), one, tmp_path / "broken", batch_tokens=1)
    assert len(done_ids(tmp_path / "broken")) == after
    continued = store_states(reader(*tiny, **ASKED), one, tmp_path / "broken", batch_tokens=1)
    assert sorted(i for rows in seen for i in rows) == sorted(straight.ids), "each row once"
    assert continued.ids == straight.ids
    for site, states in straight.states.items():
        assert relative(continued.states[site], states) < ROUNDED


def test_states_at_other_layers_are_not_served_from_a_folder(tmp_path, tiny, one):
    store_states(reader(*tiny, **ASKED), one, tmp_path)
    other = reader(*tiny, layers=[1], positions=["first:10"])
    with pytest.raises(DataError, match=r"(?s)something else.*space\.states"):
        store_states(other, one, tmp_path)
    assert store_states(other, one, tmp_path, overwrite=True).space.states == ("1/first:10",)
