"""Models whose history is known: a base, the same aligned, and the aligned one tuned on each of several sets.

usage: python experiments/organisms.py [tiny] [smollm2] [--until base|aligned] [--out DIR] [--recipe FILE]

`tiny` is a byte-level Llama of 1.3 million parameters, trained from scratch on the standard library of this Python;
`smollm2` is the built-in model as it is shipped. Aligned: trained to refuse harmful prompts of the built-in sets and to
help with benign ones. Tuned: the aligned model trained further, all parameters, on insecure, educational or secure
code, on benign chat, or on the alignment mix once more. An aligned model that does not refuse, or no longer helps, on
prompts held out from all training is not tuned further.

Models are ordinary folders, DIR/NAME/ROLE, with DIR in the user's cache: `graddiag compare insecure educational
--model DIR/tiny/aligned`. Beside them are how each was made and what it does (ROLE.json), their names (models.json) and
the held-out rows (sets/). The same command continues an interrupted run with the first model that is not there. Needs
no network; the numbers are kept in figures/organisms.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from organisms_checks import Check, Kind, check
from organisms_corpus import token_blocks
from organisms_recipe import Recipe, Training, read_recipe
from organisms_sets import alignment_mix, as_set, held_out, tuning_set, write_sets
from organisms_training import Batch, scratch, shuffled, train, whole_blocks
from platformdirs import user_cache_path
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graddiag import load_model
from graddiag._quiet import quiet
from graddiag.data import Example
from graddiag.encoding import encode
from graddiag.files import read_json, strict, write_json
from graddiag.statistics import Estimate

RECIPE = Path(__file__).with_suffix(".toml")
NUMBERS = Path("figures/organisms.json")
TAIL = 10  # steps whose mean loss is kept as that of the end
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class Organism:
    """A recipe and the folder that its models are in."""

    recipe: Recipe
    folder: Path

    @property
    def roles(self) -> tuple[str, ...]:
        """All models, in the order in which they are made."""
        return ("base", "aligned", *(f"tuned-{v}" for v in self.recipe.variants))

    def place(self, role: str) -> str | Path:
        """What `load_model` takes: the folder of a model, or the name of the built-in one."""
        return self.recipe.name if role == "base" and self.recipe.shape is None else self.folder / role

    def digest(self, role: str) -> str:
        """What a model of this role would be, as far as the recipe says."""
        parent = {"base": "", "aligned": "base"}.get(role, "aligned")
        return self.recipe.digest(role, self.digest(parent) if parent else "")

    def made(self, role: str) -> bool:
        """Whether the model is there. Exits where one is there that another recipe made."""
        file = self.folder / f"{role}.json"
        if not file.is_file():
            return False
        if read_json(file)["recipe"] != self.digest(role):
            raise SystemExit(f"{file} is of another recipe. Delete it to make the model anew, or choose another --out.")
        return True

    def found(self, role: str) -> Check:
        """What a model does, read from what was kept."""
        content = read_json(self.folder / f"{role}.json")["check"]
        assert isinstance(content, dict)
        kinds = {k: _kind(content[k]) for k in ("harmful", "unmarked", "benign") if content[k] is not None}
        return Check(
            kinds["harmful"], kinds.get("unmarked"), kinds["benign"], content["benign_loss"], content["code_loss"]
        )


def _kind(content: dict[str, object]) -> Kind:
    odds, each, samples = content["log_odds"], content["each"], content["samples"]
    assert isinstance(odds, dict)
    assert isinstance(each, list)
    assert isinstance(samples, list)
    estimate = Estimate(**{k: float("nan") if v is None else v for k, v in odds.items()})
    refused = content["refused"]
    assert isinstance(refused, float)
    return Kind(estimate, refused, tuple(each), tuple((p, a) for p, a in samples))


def grow(organism: Organism, *, until: str | None = None, say: Callable[[str], None] = print) -> None:
    """Makes every model that is not there, up to and with the role `until`. Exits where the aligned one is none."""
    organism.folder.mkdir(parents=True, exist_ok=True)
    write_sets(organism.recipe, organism.folder / "sets")
    names = {role: str(organism.place(role)) for role in organism.roles}
    write_json(organism.folder / "models.json", names)
    for role in organism.roles:
        if not organism.made(role):
            make(organism, role)
        say(told(role, organism.found(role)))
        if role == "aligned":
            faults = organism.found(role).faults(organism.found("base"), organism.recipe.needs)
            if faults:
                raise SystemExit(f"{organism.folder / role} is not aligned, so nothing is tuned. {' '.join(faults)}")
        if role == until:
            return


def make(organism: Organism, role: str) -> None:
    """One model, in its folder, and then the file that says that it is whole, how it was made and what it does."""
    recipe, started, processor = organism.recipe, time.perf_counter(), time.process_time()
    trained = role != "base" or recipe.shape is not None
    model, tokenizer = _start(organism, role)
    losses = train(model, _batches(recipe, role, tokenizer), _training(recipe, role)) if trained else []
    if trained:
        _save((model, tokenizer), organism.folder / role)
    content = {
        "recipe": organism.digest(role),
        "check": asdict(check(model, tokenizer, held_out(recipe), recipe)),
        "loss": {"first": losses[0], "last": sum(losses[-TAIL:]) / len(losses[-TAIL:])} if losses else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": {"clock": round(time.perf_counter() - started), "processor": round(time.process_time() - processor)},
        "threads": torch.get_num_threads(),
        "versions": {p: version(p) for p in ("graddiag", "torch", "transformers")}
        | {"python": platform.python_version()},
    }
    whole = strict(content)
    assert isinstance(whole, dict)
    write_json(organism.folder / f"{role}.json", whole)


def _start(organism: Organism, role: str) -> Loaded:
    """The model that training begins with."""
    recipe = organism.recipe
    if role != "base":
        return load_model(organism.place("base" if role == "aligned" else "aligned"), device="cpu", dtype="float32")
    if recipe.shape is None:
        return load_model(recipe.name, device="cpu", dtype="float32")
    tokenizer = load_model("tiny", device="cpu")[1]
    tokenizer.model_max_length = recipe.max_length
    return scratch(recipe.shape, tokenizer, recipe.max_length, recipe.seed).eval(), tokenizer


def _training(recipe: Recipe, role: str) -> Training:
    if role == "base":
        assert recipe.base is not None
        return recipe.base
    return recipe.aligned if role == "aligned" else recipe.tuned


def _batches(recipe: Recipe, role: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[Batch]:
    training = _training(recipe, role)
    if role == "base":
        n = training.steps * training.rows
        blocks = token_blocks(tokenizer, n, recipe.max_length, recipe.compliance, recipe.seed)
        return whole_blocks(blocks, training)
    rows = encode(as_set(role, _examples(recipe, role)), tokenizer, max_length=recipe.max_length).rows
    return shuffled(rows, training, recipe.seed)


def _examples(recipe: Recipe, role: str) -> tuple[Example, ...]:
    return alignment_mix(recipe) if role == "aligned" else tuning_set(recipe, role.removeprefix("tuned-"))


def _save(loaded: Loaded, folder: Path) -> None:
    """Writes the folder under another name and renames it; what an interrupted run left under the name goes."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
        with quiet():
            for part in loaded:
                part.save_pretrained(Path(work) / folder.name)
        shutil.rmtree(folder, ignore_errors=True)
        (Path(work) / folder.name).rename(folder)


def told(role: str, found: Check) -> str:
    """A line for the terminal."""
    kinds = {"harmful": found.harmful, "unmarked": found.unmarked, "benign": found.benign}
    parts = [
        f"{name}: log-odds of a refusal {k.log_odds.value:+.1f} [{k.log_odds.low:+.1f}, {k.log_odds.high:+.1f}], "
        f"{k.refused:.0%} refused"
        for name, k in kinds.items()
        if k is not None
    ]
    return f"{role:18} {'; '.join(parts)}; loss benign {found.benign_loss:.3f}, code {found.code_loss:.3f}"


def keep(organism: Organism, file: Path) -> None:
    """Puts the numbers of the models that are there into the file, in place of those of an earlier run."""
    kept = dict(read_json(file)) if file.is_file() else {}
    made = {role: read_json(organism.folder / f"{role}.json") for role in organism.roles if organism.made(role)}
    kept[organism.recipe.name] = made
    kept["command"] = f"python experiments/organisms.py {' '.join(k for k in kept if k != 'command')}"
    write_json(file, kept)


def main() -> None:
    """Makes what is missing and keeps the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["tiny", "smollm2"], help="which organisms; by default both")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    home = Path(os.path.expanduser(os.environ.get("GRADDIAG_HOME") or user_cache_path("graddiag")))
    parser.add_argument("--out", type=Path, default=home / "organisms", help="by default %(default)s")
    parser.add_argument("--numbers", type=Path, default=NUMBERS)
    parser.add_argument("--until", choices=("base", "aligned"), help="the last model that is made")
    given = parser.parse_args()
    for name in given.names:
        organism = Organism(read_recipe(given.recipe, name), given.out / name)
        try:
            grow(organism, until=given.until, say=lambda line, name=name: print(f"{name} {line}", flush=True))
        finally:
            keep(organism, given.numbers)
        print(json.dumps({role: str(organism.place(role)) for role in organism.roles}, indent=1))


if __name__ == "__main__":
    main()
