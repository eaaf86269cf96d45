"""Public names stay what they are, whatever has been imported before."""

from __future__ import annotations

import pkgutil

import pytest

import graddiag


@pytest.mark.parametrize("name", graddiag.__all__)
def test_no_module_takes_the_place_of_a_public_name(name):
    """A submodule, once imported, is an attribute of the package: it would hide a function of the same name."""
    assert name not in {m.name for m in pkgutil.iter_modules(graddiag.__path__)}
    assert callable(getattr(graddiag, name))
