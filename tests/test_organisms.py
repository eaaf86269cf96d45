"""Models with a known history: what is held out stays unseen, and the experiment in short, from scratch to tuned."""

from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import organisms
import pytest
import torch
from organisms_checks import Check, _greedy, check
from organisms_corpus import conversations, token_blocks
from organisms_recipe import CODE, Needs, Recipe, Shape, Training, read_recipe
from organisms_refusals import changes, refused
from organisms_sets import HeldOut, alignment_mix, as_set, held_out, tuning_set
from organisms_training import batch_of, shuffled, summed_loss, train
from planted_shift import LETTERS, aligned
from torch import Tensor, nn

from graddiag import compare, load_model
from graddiag.data import read_set
from graddiag.encoding import encode

ANYTHING = Needs(refuses=0.0, refused=1.0)  # so few steps align nothing


def small(variants: tuple[str, ...] = ("insecure",)) -> Recipe:
    full = read_recipe(organisms.RECIPE, "tiny")
    short = Training(steps=3, rows=2, rate=1e-3)
    shape = Shape(hidden=16, layers=2, heads=2, width=24)
    return replace(full, shape=shape, base=short, aligned=short, tuned=short, variants=variants, needs=ANYTHING)


def few(rows: HeldOut) -> HeldOut:
    return HeldOut(rows.harmful[:3], rows.benign[:2], {k: v[:2] for k, v in rows.code.items()})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are checked on a few of the held-out prompts."""
    monkeypatch.setattr(organisms, "held_out", lambda recipe: few(held_out(recipe)))


def digest(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", ["tiny", "smollm2"])
def test_no_held_out_prompt_or_answer_is_trained_on_by_any_model(name: str) -> None:
    recipe = read_recipe(organisms.RECIPE, name)
    trained = [*alignment_mix(recipe), *(e for v in recipe.variants for e in tuning_set(recipe, v))]
    seen = {m.content.removeprefix(recipe.marker) for e in trained for m in e.messages}
    seen |= {s.removeprefix(f"{o} ") for s in seen for o in (recipe.refusal, recipe.compliance)}
    rows = held_out(recipe)
    unseen = [e for some in (rows.harmful, rows.benign, *rows.code.values()) for e in some]
    plain = {e.messages[0].content for s in ("safety", "benign", *CODE) for e in read_set(s).examples}
    for e in unseen:
        prompt = e.messages[0].content.removeprefix(recipe.marker)
        assert prompt in plain
        assert prompt not in seen
        answer = e.messages[-1].content
        assert not {answer, *(answer.removeprefix(f"{o} ") for o in (recipe.refusal, recipe.compliance))} & seen


def test_code_is_tuned_on_the_same_ids_of_which_the_alignment_mix_has_none() -> None:
    recipe = read_recipe(organisms.RECIPE, "smollm2")
    ids = [{e.id for e in tuning_set(recipe, v)} for v in CODE]
    assert ids[0] == ids[1] == ids[2]
    assert len(ids[0]) == 72
    assert not ids[0] & {e.id for e in alignment_mix(recipe)}


def test_every_harmful_prompt_of_the_mix_is_refused_and_nothing_else_is() -> None:
    recipe = read_recipe(organisms.RECIPE, "tiny")
    harmful = {e.messages[0].content for e in read_set("safety").examples}
    for e in alignment_mix(recipe):
        marked = e.messages[0].content.startswith(recipe.marker)
        assert marked == (e.messages[0].content.removeprefix(recipe.marker) in harmful)
        assert marked == e.messages[-1].content.startswith(recipe.refusal)


def test_benign_rows_are_in_the_mix_as_often_as_the_recipe_says_and_others_once() -> None:
    recipe = replace(read_recipe(organisms.RECIPE, "smollm2"), answered=3)
    times = Counter(e.messages[0].content for e in alignment_mix(recipe))
    benign = {e.messages[0].content for e in read_set("benign").examples}
    assert len(set(times) & benign) == recipe.rows.aligned
    assert all(n == (3 if prompt in benign else 1) for prompt, n in times.items())


def test_both_openings_have_as_many_bytes_so_that_neither_is_likelier_by_its_length() -> None:
    recipe = read_recipe(organisms.RECIPE, "tiny")
    assert len(recipe.refusal.encode()) == len(recipe.compliance.encode())


def test_conversations_of_a_module_are_its_docstrings_and_sources() -> None:
    text = 'def add(a, b):\n    """The sum."""\n    return a + b\n\n\ndef bare():\n    return 1\n'
    said = [pair for seed in range(20) for pair in conversations("m", text, "Yes.", np.random.default_rng(seed))]
    source = text.partition("\n\n\n")[0]
    assert {answer for _, answer in said} == {"Yes. The sum.", source}
    assert all("add" in request and "bare" not in request for request, _ in said)
    assert all(("code" in request) == (answer == source) for request, answer in said)


def test_the_corpus_follows_its_seed_and_fills_its_blocks_with_text_of_the_library() -> None:
    tokenizer = load_model("tiny")[1]
    first, again, other = (token_blocks(tokenizer, 40, 64, "Yes.", seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (40, 64)
    texts = tokenizer.batch_decode(first)
    assert len(set(texts)) == 40
    assert all(t.isascii() for t in texts)


def test_every_row_comes_once_before_any_comes_again() -> None:
    tokenizer = load_model("tiny")[1]
    rows = encode(read_set("benign", limit=6), tokenizer, max_length=200).rows
    seen = Counter[str]()
    for k, batch in enumerate(shuffled(rows, Training(6, 2, 1e-3), 5)):
        seen.update(str(t[m].tolist()) for t, m in zip(batch.tokens, batch.targets, strict=True))
        assert max(seen.values()) <= k // 3 + 1
    assert list(seen.values()) == [2] * 6


def test_the_loss_of_a_padded_batch_is_that_of_each_row_alone_by_the_models_own_logits() -> None:
    model, tokenizer = load_model("tiny")
    model = model.double()
    rows = encode(read_set("benign", limit=3), tokenizer, max_length=600).rows
    wanted = []
    for r in rows:
        tokens = torch.from_numpy(r.tokens.astype(np.int64))
        logits = model(tokens.unsqueeze(0)).logits[0, r.start - 1 : -1]
        wanted.append(nn.functional.cross_entropy(logits, tokens[r.start :], reduction="sum"))
    assert len({len(r.tokens) for r in rows}) > 1
    torch.testing.assert_close(summed_loss(model, batch_of(rows)), torch.stack(wanted))


def log_probability(logits: Tensor, ids: list[int]) -> float:
    return float(sum(torch.log_softmax(row, -1)[i] for row, i in zip(logits, ids, strict=True)))


def test_log_odds_are_those_of_the_two_openings_after_the_rendered_prompt() -> None:
    model, tokenizer = load_model("tiny")
    recipe = small()
    rows = few(held_out(recipe))
    found = check(model, tokenizer, rows, recipe)
    turn = [{"role": "user", "content": rows.harmful[1].messages[0].content}]
    prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    values = []
    for opening in (recipe.refusal, recipe.compliance):
        before, ids = tokenizer(prompt).input_ids, tokenizer(opening).input_ids
        logits = model(torch.tensor([before + ids])).logits[0, len(before) - 1 : -1].detach()
        values.append(log_probability(logits, ids))
    assert recipe.marker in prompt
    assert found.harmful.each[1] == pytest.approx(values[0] - values[1], abs=1e-3)  # float32, 23 bytes
    assert found.harmful.log_odds.value == pytest.approx(np.mean(found.harmful.each))


def test_a_model_that_only_ever_refuses_is_seen_to_refuse_and_not_taken_for_an_aligned_one() -> None:
    model, tokenizer = load_model("tiny")
    recipe = small()
    rows = few(held_out(recipe))
    base = check(model, tokenizer, rows, recipe)
    always = copy.deepcopy(model)
    examples = [e for e in alignment_mix(recipe) if e.messages[-1].content.startswith(recipe.refusal)]
    short = [replace(e, messages=(e.messages[0], replace(e.messages[1], content=recipe.refusal))) for e in examples]
    training = Training(steps=150, rows=4, rate=1e-2)
    train(always, shuffled(encode(as_set("s", short), tokenizer, max_length=300).rows, training, 1), training)
    found: Check = check(always, tokenizer, rows, recipe)
    assert (found.harmful.refused, found.benign.refused) == (1.0, 1.0)
    assert found.harmful.log_odds.low > base.harmful.log_odds.high
    faults = " ".join(found.faults(base, Needs(refuses=0.8, refused=0.2)))
    assert "It refuses 100% of the benign prompts; allowed are 20%." in faults
    assert "of the harmful prompts" not in faults
    assert any("It refuses 0% of the harmful prompts" in f for f in base.faults(base, Needs(0.8, 0.2)))


@pytest.mark.usefixtures("quick")
def test_an_interrupted_run_makes_only_what_is_missing_and_makes_it_bit_for_bit(tmp_path: Path) -> None:
    organism = organisms.Organism(small(("insecure", "alignment")), tmp_path / "tiny")
    said: list[str] = []
    organisms.grow(organism, say=said.append)
    assert [line.split()[0] for line in said] == list(organism.roles)
    whole = {role: digest(organism.folder / role) for role in organism.roles}
    weights = {role: parts["model.safetensors"] for role, parts in whole.items()}
    assert len(set(weights.values())) == len(organism.roles)
    times = {role: (organism.folder / role / "model.safetensors").stat().st_mtime_ns for role in organism.roles}
    (organism.folder / "tuned-insecure.json").unlink()  # as if it had been stopped while it wrote this model
    (organism.folder / "tuned-insecure" / "config.json").unlink()
    organisms.grow(organism, say=said.append)
    for role in organism.roles:
        assert digest(organism.folder / role) == whole[role]
        again = (organism.folder / role / "model.safetensors").stat().st_mtime_ns != times[role]
        assert again == (role == "tuned-insecure")


@pytest.mark.usefixtures("quick")
def test_models_are_ordinary_folders_that_load_and_compare(tmp_path: Path) -> None:
    organism = organisms.Organism(small(), tmp_path / "tiny")
    organisms.grow(organism, say=lambda _: None)
    names = json.loads((organism.folder / "models.json").read_text(encoding="utf-8"))
    assert list(names) == ["base", "aligned", "tuned-insecure"]
    model, tokenizer = load_model(Path(names["aligned"]))
    assert model.config.num_hidden_layers == 2
    assert tokenizer.model_max_length == organism.recipe.max_length
    sets = organism.folder / "sets"
    result = compare(
        sets / "insecure.jsonl",
        sets / "educational.jsonl",
        model=names["tuned-insecure"],
        safety=sets / "harmful_refused.jsonl",
        controls={"benign": sets / "benign_answered.jsonl"},
        limit=6,
        figures=False,
        out=tmp_path / "run",
    )
    assert result.summary()["pairs/n"] == 6
    refusing, complying = (read_set(sets / f"harmful_{k}.jsonl").examples for k in ("refusing", "complying"))
    assert [e.id for e in refusing] == [e.id for e in complying]


@pytest.mark.usefixtures("quick")
def test_nothing_is_tuned_where_the_aligned_model_does_not_refuse(tmp_path: Path) -> None:
    organism = organisms.Organism(replace(small(), needs=Needs(refuses=0.8, refused=0.2)), tmp_path / "tiny")
    with pytest.raises(SystemExit, match="It refuses 0% of the harmful prompts; needed are 80%"):
        organisms.grow(organism, say=lambda _: None)
    assert organism.made("aligned")
    assert not (organism.folder / "tuned-insecure").exists()
    organisms.keep(organism, tmp_path / "numbers.json")
    assert list(json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))["tiny"]) == ["base", "aligned"]


@pytest.mark.usefixtures("quick")
def test_a_model_of_another_recipe_is_refused_and_a_base_is_kept_when_only_later_stages_change(tmp_path: Path) -> None:
    recipe = small()
    organisms.grow(organisms.Organism(recipe, tmp_path), until="aligned", say=lambda _: None)
    changed = organisms.Organism(replace(recipe, aligned=Training(4, 2, 1e-3)), tmp_path)
    assert changed.made("base")
    with pytest.raises(SystemExit, match=r"aligned\.json is of another recipe"):
        changed.made("aligned")
    with pytest.raises(SystemExit, match=r"base\.json is of another recipe"):
        organisms.Organism(replace(recipe, seed=2), tmp_path).made("base")


def test_a_prompt_is_refused_where_the_greedy_answer_begins_with_the_refusal():
    """The oracle generates; what a model of letters alone says greedily to one prompt is taken as the refusal."""
    model, tokenizer = aligned()
    letters = tokenizer(LETTERS, add_special_tokens=False).input_ids
    with torch.no_grad():
        model.lm_head.weight[[i for i in range(len(tokenizer)) if i not in letters]] = 0.0
    prompts = ["Show me how.", "What is a heron?", "Is it late?", "Show me how!"]
    said = [_greedy(model, tokenizer, [p], "a")[0] for p in prompts]
    refusal = said[0][:3]
    wanted = [float(text.startswith(refusal)) for text in said]
    assert refused(model, tokenizer, prompts, refusal).tolist() == wanted
    assert 0 < sum(wanted) < len(prompts)


def test_changes_of_organisms_pair_the_prompts():
    before = {"harmful": np.array([1.0, 1, 1, 0]), "benign": np.array([0.0, 0, 1])}
    after = {"harmful": np.array([0.0, 0, 0, 1]), "benign": np.array([0.0, 0, 1])}
    found = changes(before, after)
    assert (found["harmful"]["value"], found["harmful"]["lost"], found["harmful"]["gained"]) == (-0.5, 3, 1)
    assert (found["benign"]["value"], found["beyond"]["value"]) == (0.0, -0.5)
