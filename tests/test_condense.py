"""Inputs that are let go in the forward pass: the same numbers with less memory."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from conftest import relative
from reference import row_gradients
from test_extractor import EXACT, extractor_for

from graddiag import condense
from graddiag.capture import Call
from graddiag.projection import LoGra
from graddiag.session import Session

WIDE = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4}


@pytest.fixture
def condensed(monkeypatch):
    """Modules whose inputs were let go, whatever the machine says of the time that it takes."""
    monkeypatch.setattr(condense, "SLACK", math.inf)
    found = []
    original = Call.condense
    monkeypatch.setattr(Call, "condense", lambda call, short: (found.append(call), original(call, short)))
    return found


def test_norms_and_rows_are_the_same_without_the_inputs(make_llama, make_rows, condensed):
    model, rows = make_llama(**WIDE), make_rows(3)
    ex = extractor_for(model, projector=LoGra(16))
    measured = ex.measure(rows)
    assert len(condensed) == len(ex.blocks) - condense.AS_THEY_ARE, "all but those that were called last"
    whole = extractor_for(model).measure(rows)
    for i, oracle in enumerate(row_gradients(model, rows)):
        for b in ex.blocks:
            name = b.block.name
            assert measured.norms[name][i] == pytest.approx(oracle[name].norm().item(), rel=EXACT)
            left, right = (torch.from_numpy(LoGra(16).factor(b.block, side)) for side in (0, 1))
            row = left @ torch.from_numpy(whole.gradients[name][i]).double().reshape(b.block.shape) @ right.T
            assert relative(measured.gradients[name][i], row.flatten()) < EXACT


def test_inputs_stay_where_products_need_them(make_llama, make_rows, condensed):
    model, rows = make_llama(**WIDE), make_rows(4)
    extractor_for(model, projector=LoGra(16)).measure(rows, pairs=[(0, 1)])
    extractor_for(model).measure(rows)
    assert condensed == []


def test_inputs_stay_where_their_products_would_be_larger(make_llama, make_rows, condensed):
    model, rows = make_llama(num_hidden_layers=4), make_rows(3, longest=120, start=4, seed=1)
    assert min(len(r.tokens) for r in rows) > 24 / condense.KEPT_SHARE
    extractor_for(model, ["*.q_proj", "*.k_proj", "*.v_proj"], LoGra(16)).measure(rows)
    assert condensed == []


def test_a_module_that_is_called_again_after_its_input_was_let_go_sums_its_calls(make_llama, make_rows, condensed):
    model, rows = make_llama(**WIDE), make_rows(3)
    model.model.layers[3] = model.model.layers[0]
    ex = extractor_for(model, projector=LoGra(10_000))
    again = [ex.measure(rows), ex.measure(rows)]
    assert condensed, "the first layer's inputs were let go before it was called again"
    for measured in again:
        for i, oracle in enumerate(row_gradients(model, rows)):
            for block, norms in measured.norms.items():
                assert norms[i] == pytest.approx(oracle[block].norm().item(), rel=EXACT)


def test_what_a_block_needed_is_let_go_when_it_is_done(make_llama, make_rows, monkeypatch):
    """The graph, and with it every hook, lives to the end of the backward pass: it must not hold what was recorded."""
    alive: list[int] = []
    original = Session._arrived

    def arrived(self, module, calls):
        original(self, module, calls)
        alive.append(_bytes_alive())

    monkeypatch.setattr(Session, "_arrived", arrived)
    model, rows = make_llama(num_hidden_layers=12), make_rows(8)
    with older_objects_aside():
        extractor_for(model, projector=LoGra(1)).measure(rows, pairs=[(0, 1)])
    assert len(alive) == 12 * 7, "once for each weight"
    assert alive[-1] < 0.4 * alive[0]


@contextmanager
def older_objects_aside() -> Iterator[None]:
    """What there is already, libraries and all, is not looked at: 84 looks at it took most of a minute."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def _bytes_alive() -> int:
    """Of all tensors that Python made since and something still needs."""
    gc.collect()
    storages = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
        for x in gc.get_objects()
        if type(x) in {torch.Tensor, torch.nn.Parameter}
    }
    return sum(storages.values())
