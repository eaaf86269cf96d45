"""By how much did each tuned organism's share of refused prompts change from the aligned one's, prompt by prompt?

usage: python experiments/organisms_refusals.py [NAME ...] [--out DIR] [--numbers FILE]

Reads the models that `organisms.py` has made in DIR. A prompt is refused if every token of the refusal is the likeliest
one after the prompt and the tokens before it: then a greedy answer begins with the refusal. The shares must be those
that `organisms.py` kept. Writes the changes with interval and p (`graddiag.share_changes`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from organisms import RECIPE, Organism
from organisms_checks import Check
from organisms_recipe import read_recipe
from organisms_sets import held_out
from platformdirs import user_cache_path
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graddiag.files import write_json
from graddiag.models import load_model
from graddiag.share_changes import difference_of_changes, share_change

PARTS = ("harmful", "benign")
Refused = dict[str, Float[np.ndarray, " n"]]  # by part: 1 where a prompt is refused, else 0


def refused(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], refusal: str
) -> Float[np.ndarray, " n"]:
    """1 where the greedy answer begins with the refusal, else 0."""
    end = tokenizer(refusal, add_special_tokens=False).input_ids
    out = []
    for prompt in prompts:
        turn = [{"role": "user", "content": prompt}]
        start = tokenizer.apply_chat_template(turn, tokenize=True, return_dict=False, add_generation_prompt=True)
        with torch.no_grad():
            logits = model(torch.tensor([[*start, *end]])).logits[0, len(start) - 1 : -1]
        out.append(float(logits.argmax(-1).tolist() == end))
    return np.array(out)


def refused_by(organism: Organism, role: str) -> Refused:
    """Which held-out prompts a model refuses. Exits where that is not the share that was kept."""
    model, tokenizer = load_model(str(organism.place(role)), device="cpu")
    rows = held_out(organism.recipe)
    out = {
        part: refused(model, tokenizer, [e.messages[0].content for e in getattr(rows, part)], organism.recipe.refusal)
        for part in PARTS
    }
    kept: Check = organism.found(role)
    for part, each in out.items():
        if abs(each.mean() - getattr(kept, part).refused) > 1e-9:
            raise SystemExit(
                f"{role}: {each.mean():.0%} of {part} refused, kept was {getattr(kept, part).refused:.0%}."
            )
    return out


def changes(aligned: Refused, tuned: Refused) -> dict[str, dict[str, float]]:
    """The change of each part's share, and what that of harmful prompts is beyond benign ones."""
    moved = {part: (tuned[part] - aligned[part], np.arange(len(aligned[part]))) for part in PARTS}
    out = {}
    for part, (rows, clusters) in moved.items():
        counts = {"lost": int((rows < 0).sum()), "gained": int((rows > 0).sum()), "n": len(rows)}
        out[part] = asdict(share_change(rows, clusters)) | counts
    return out | {"beyond": asdict(difference_of_changes(*moved.values()))}


def main() -> None:
    """Reads every model that is there and keeps the changes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["tiny", "smollm2"])
    parser.add_argument("--out", type=Path, default=user_cache_path("graddiag") / "organisms")
    parser.add_argument("--numbers", type=Path, default=Path("figures/organisms_refusals.json"))
    given = parser.parse_args()
    found: dict[str, object] = {"command": "python experiments/organisms_refusals.py"}
    for name in given.names:
        organism = Organism(read_recipe(RECIPE, name), given.out / name)
        aligned = refused_by(organism, "aligned")
        tuned = [r for r in organism.roles if r.startswith("tuned-") and organism.made(r)]
        found[name] = {r.removeprefix("tuned-"): changes(aligned, refused_by(organism, r)) for r in tuned}
        print(name, json.dumps(found[name], indent=1), flush=True)
    write_json(given.numbers, found)


if __name__ == "__main__":
    main()
