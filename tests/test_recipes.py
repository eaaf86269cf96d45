"""Options from a TOML file: what is typed goes before the environment, that before the file, that before defaults."""

from __future__ import annotations

import click
import pytest

from graddiag.cli import main
from graddiag.errors import UsageError

RECIPE = """
limit = 40
safety = "none"
control = ["a.jsonl", "b.jsonl"]
fail-on = "loss_gap/p<0.05"
batch-tokens = 512
token-scores = true
max-nonfinite = 0.5
"""


def parsed(*args: str, command: str = "compare") -> dict[str, object]:
    """The parameters of a command as its function would get them."""
    return main.commands[command].make_context(command, ["insecure", "educational", *args]).params


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_a_recipe_says_what_the_same_options_typed_would_say(recipe):
    typed = (
        "--limit 40 --safety none --control a.jsonl --control b.jsonl --fail-on loss_gap/p<0.05 --batch-tokens 512 "
        "--token-scores --max-nonfinite 0.5"
    )
    assert parsed("--recipe", str(recipe)) == parsed(*typed.split())
    assert parsed("--recipe", str(recipe)) != parsed()


def test_typed_goes_before_the_environment_and_that_before_the_recipe(recipe, monkeypatch):
    monkeypatch.setenv("GRADDIAG_LIMIT", "30")
    monkeypatch.setenv("GRADDIAG_BATCH_TOKENS", "300")
    found = parsed("--limit", "20", "--recipe", str(recipe))
    assert (found["limit"], found["batch_tokens"], found["safety"]) == (20, 300, "none")


def test_the_environment_may_name_the_recipe(recipe, monkeypatch):
    monkeypatch.setenv("GRADDIAG_RECIPE", str(recipe))
    assert parsed()["limit"] == 40


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("limits = 40", "'limits' is no option of 'graddiag compare'. Closest: limit"),
        ("recipe = 'other.toml'", "'recipe' is no option"),
        ("[compare]\nlimit = 40", "'compare' is no option"),
        ("limit = [40]", r"limit = \[40\] is not a text or number, as --limit"),
        ("token-scores = 'yes'", "token-scores = 'yes' is not true or false"),
        ("control = [['a']]", "is not a text or number, or a list"),
        ("limit = true", "limit = True is not a text or number"),
        ("limit =", "is not TOML"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused_with_what_is_allowed(tmp_path, content, message):
    path = tmp_path / "recipe.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        parsed("--recipe", str(path))


def test_a_value_that_its_option_refuses_is_refused_from_a_recipe_too(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("limit = 'many'", encoding="utf-8")
    with pytest.raises(click.BadParameter, match="'many' is not a valid integer"):
        parsed("--recipe", str(path))
