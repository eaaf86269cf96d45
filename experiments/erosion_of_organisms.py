"""What eroded in models whose history is known, and what only looks like it? Every tuned variant beside its controls.

usage: python experiments/erosion_of_organisms.py NAME [--out DIR] [--report-only]

NAME is an organism that `organisms.py` has made (tiny, smollm2), DIR where it is. Runs `graddiag erosion` on the
held-out rows for each variant that is there, in runs/erosion-NAME-VARIANT, and puts their numbers side by side, with
two pictures that need no erosion to appear: retention along a direction read on the rows it was fitted on, and the
cosine of the first components of two sets' shifts. Writes figures/erosion-NAME.json, and a figure for each analysis.
"""

from __future__ import annotations

import argparse
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
from erosion_of_organisms_figures import Variant, draw
from organisms import RECIPE
from organisms_recipe import read_recipe
from platformdirs import user_cache_path

import graddiag
from graddiag.erosion_verdict import answers
from graddiag.store import read_signals

SETS = {"left": "insecure", "right": "educational", "harmful": "insecure", "benign": "benign_answered"}
PROMPTS, CONTROL = "harmful_refused", "secure"
# The layer behind which what two sets' shifts share is removed, in the second half, and for which variants: each has
# the rows read 84 times.
INTERVENED = {"tiny": (3, ("insecure", "educational", "secure", "benign", "alignment")), "smollm2": (20, ("insecure",))}


def variant_of(
    models: dict[str, str], name: str, sets: Path, openings: tuple[str, str], run: Path, *, intervene: tuple[int, ...]
) -> Variant:
    """Runs the comparison of one tuned model, or continues it."""
    files = {part: str(sets / f"{s}.jsonl") for part, s in SETS.items()}
    found = graddiag.erode(
        base=models["base"],
        aligned=models["aligned"],
        tuned=models[f"tuned-{name}"],
        safety=str(sets / f"{PROMPTS}.jsonl"),
        controls={CONTROL: str(sets / f"{CONTROL}.jsonl")},
        refusing=openings[0],
        complying=openings[1],
        intervene=intervene,
        out=run,
        **files,
    )
    words = {a.question: a.word for a in answers(found.findings)}
    return Variant(dict(found.summary()), words, first_components(run))


def lend(run: Path, earlier: Path | None) -> None:
    """What another variant's run read under the base and the aligned model; `erode` checks that it is of the same."""
    for table in earlier.iterdir() if earlier else ():
        if table.name.startswith(("base-", "aligned-")) and not (run / table.name).exists():
            shutil.copytree(table, run / table.name)


def first_components(run: Path) -> dict[str, float]:
    """The size of the cosine between the first right-singular vectors of two sets' shifts, not centred, last layer."""
    first = {}
    for name in dict.fromkeys((*SETS.values(), CONTROL)):
        tuned, aligned = (read_signals(run / f"{role}-{name}") for role in ("tuned", "aligned"))
        site = max((s for s in tuned.states if "/first" in s), key=lambda s: int(s.split("/")[0]))
        shift = (tuned.states[site] - aligned.states[site]).astype(np.float64)
        first[name] = np.linalg.svd(shift, full_matrices=False)[2][0]
    own = SETS["harmful"]
    return {f"{own}:{name}": float(abs(first[own] @ v)) for name, v in first.items() if name != own}


def main() -> None:
    """Runs every variant that is there, and keeps numbers and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, default=user_cache_path("graddiag") / "organisms")
    parser.add_argument("--report-only", action="store_true", help="draw the saved numbers again")
    given = parser.parse_args()
    figure = Path("figures") / f"erosion-{given.name}"
    if not given.report_only:
        folder, recipe = given.out / given.name, read_recipe(RECIPE, given.name)
        models = json.loads((folder / "models.json").read_text(encoding="utf-8"))
        found: dict[str, Variant] = {}
        earlier: Path | None = None
        layer, intervened = INTERVENED[given.name]
        for name in recipe.variants:
            if (folder / f"tuned-{name}.json").is_file():
                run = Path("runs") / f"erosion-{given.name}-{name}"
                lend(run, earlier)
                opening, layers = (recipe.refusal, recipe.compliance), (layer,) if name in intervened else ()
                found[name] = variant_of(models, name, folder / "sets", opening, run, intervene=layers)
                earlier = run
                print(name, *(f"\n  {q}: {w}" for q, w in found[name].words.items()), flush=True)
        content = {
            "command": f"python experiments/erosion_of_organisms.py {given.name}",
            "versions": {v: version(v) for v in ("graddiag", "torch", "transformers")},
            "variants": {name: vars(v) for name, v in found.items()},
        }
        figure.with_suffix(".json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    saved = json.loads(figure.with_suffix(".json").read_text(encoding="utf-8"))["variants"]
    variants = {name: Variant(**v) for name, v in saved.items()}
    for analysis, drawn in draw(given.name, variants, CONTROL):
        for form in ("svg", "png"):
            drawn.savefig(figure.with_name(f"{figure.name}-{analysis}.{form}"), dpi=150)


if __name__ == "__main__":
    main()
