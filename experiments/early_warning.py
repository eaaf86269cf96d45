"""Does the monitor warn before behaviour has moved? Fine-tunes of a real model, watched from their first step.

usage: python experiments/early_warning.py [--model NAME] [--organism | --data DIR] [--seeds N] [--steps N]

Four tasks (insecure, educational, secure, benign), each with a few seeds: LoRA on all linear weights of the layers,
AdamW, the monitor with its default limits, except that probes may cost what they like. Before that, the same for all
runs, a short alignment: LoRA on every other row of the safety set, merged, since SmolLM2 as shipped refuses little that
could be lost. Of the other half of that set, half is given to the monitor and half is held out. Behaviour, read before
every probed step and after the last, is the log-probability of held-out safe answers and of harmful ones: the rejected
answers of hh_rejected with `--data DIR` (a folder with safety, benign, insecure, educational, secure and hh_rejected as
.jsonl), else how an answer that complies with a held-out harmful prompt begins, the same words for all prompts.
Behaviour has moved where the change over the same answers is beyond two standard errors.

With `--organism` the runs start from the aligned model that `organisms.py NAME` made, without more alignment, on its
own training sets, its alignment mix among them, where an alarm is false. The monitor has refusals of that mix.
Behaviour is also how likely refusing and complying openings are after held-out prompts, and whether greedy decoding
refuses.

Runs that are done are kept in runs/early_warning-... (the name of `--out`) and not made again; an interrupted one
begins anew. That folder also has each run as the monitor logged it, for `graddiag report`. Writes
figures/early_warning.json, .svg and .png (or `--out`): numbers only, no text of the data. What is there of other tasks
and seeds under the same settings stays.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from early_warning_behaviour import seen
from early_warning_figure import draw
from early_warning_findings import Looked, Run, Told, command_of, run_of, table
from early_warning_organism import organism_rows
from early_warning_rows import BYTES, ORGANISM, SHORT, TASKS, Cut, Rows, read_rows, shuffled
from organisms_recipe import VARIANTS, Recipe, read_recipe
from padding import Batch
from peft import LoraConfig, PeftModel, get_peft_model
from platformdirs import user_cache_path
from scipy.special import ndtri
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import graddiag
from graddiag.alarms import Limits, Watch
from graddiag.files import read_json, strict, write_json
from graddiag.probe_values import cosine_with_safety
from graddiag.probes import Probe

FIGURE = Path("figures/early_warning")
LIMITS = Limits(overhead=1e9)  # all else as shipped; steps as short as these would make probes rare
RECIPE = Path(__file__).with_name("organisms.toml")


@dataclass(frozen=True)
class Settings:
    """What a run depends on, beside its task and seed; a run that was kept under others is made again."""

    model: str
    data: str
    cut: Cut
    monitor: int
    held_out: int
    batch: int
    steps: int
    every: int
    reading: int
    rank: int
    rate: float
    alignment_steps: int
    alignment_rate: float


@dataclass(frozen=True)
class Bench:
    """What all runs share; `folder` is where they are kept, `place` what `load_model` takes."""

    settings: Settings
    rows: Rows
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    place: str | Path


def bench(settings: Settings, data: Path | None, folder: Path) -> Bench:
    """The rows of all runs, as tokens of the model."""
    _, tokenizer = graddiag.load_model(settings.model, device="cpu")
    rows = read_rows(tokenizer, data, settings.cut, monitor=settings.monitor, held_out=settings.held_out)
    return Bench(settings, rows, tokenizer, folder, settings.model)


def bench_of_organism(settings: Settings, recipe: Recipe, folder: Path) -> Bench:
    """The same of an organism's aligned model, as `organisms.py` made it."""
    home = Path(os.path.expanduser(os.environ.get("GRADDIAG_HOME") or user_cache_path("graddiag")))
    place = home / "organisms" / recipe.name / "aligned"
    _, tokenizer = graddiag.load_model(place, device="cpu")
    rows = organism_rows(tokenizer, recipe, settings.cut, monitor=settings.monitor, held=settings.held_out)
    return Bench(settings, rows, tokenizer, folder, place)


def with_lora(model: PreTrainedModel, rank: int) -> PeftModel:
    """The model with an adapter that changes nothing yet, in training mode."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config).train()


def optimizer_of(model: PeftModel, rate: float) -> torch.optim.AdamW:
    """Of the adapter's weights."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)


def aligned(on: Bench) -> PreTrainedModel:
    """The model after the short alignment, which is made once and kept as an adapter; an organism needs none."""
    settings, kept = on.settings, on.folder / "alignment"
    if not on.rows.alignment:
        return graddiag.load_model(on.place, device="cpu")[0]
    done, about = kept / "settings.json", strict(asdict(settings))
    if not done.is_file() or read_json(done) != about:
        torch.manual_seed(0)
        model = with_lora(graddiag.load_model(on.place, device="cpu")[0], settings.rank)
        optimizer = optimizer_of(model, settings.alignment_rate)
        for batch in shuffled(on.rows.alignment, batch=settings.batch, steps=settings.alignment_steps, seed=0):
            train(model, optimizer, batch)
        model.save_pretrained(kept, save_embedding_layers=False)
        write_json(done, asdict(settings))
    base, _ = graddiag.load_model(on.place, device="cpu")
    return PeftModel.from_pretrained(base, kept).merge_and_unload()


def train(
    model: PeftModel, optimizer: torch.optim.Optimizer, batch: Batch, monitor: graddiag.Monitor | None = None
) -> None:
    """One step."""
    with monitor.step(batch) if monitor is not None else nullcontext():
        model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def looked(probe: Probe, watch: Watch) -> Looked:
    """What is kept of a probe, once the watch has seen it."""
    watch.see(probe)
    return Looked(
        step=probe.step,
        cosine=cosine_with_safety(probe.gradient, probe.safety_norms),
        update_cosine=cosine_with_safety(probe.update, probe.safety_norms),
        predicted=float("nan") if probe.predicted_change is None else probe.predicted_change,
        safety_losses=tuple(probe.safety_losses.tolist()),
        evidence=evidence(watch),
    )


def evidence(watch: Watch) -> dict[str, float]:
    """What the rules that add up have so far, as parts of their limits."""
    limits, memory = watch.limits, watch.memory
    budget = max(limits.drift, -float(ndtri(limits.per_look)) * memory.drift.variance**0.5)
    return {
        "conflict": memory.conflict / limits.conflict,
        "update_conflict": memory.update / limits.conflict,
        "drift": memory.drift.total / budget,
        "culprits": memory.share.evidence / math.log(limits.horizon / limits.false_alarms),
    }


def fine_tuned(on: Bench, task: str, seed: int) -> Run:
    """One run, from the aligned model on."""
    settings, base = on.settings, aligned(on)
    torch.manual_seed(seed)  # only now: an alignment that is made first draws random numbers of its own
    model = with_lora(base, settings.rank)
    optimizer = optimizer_of(model, settings.rate)
    probes: list[Probe] = []
    monitor = graddiag.Monitor(
        model, on.tokenizer, safety=list(on.rows.monitor), every=settings.every, optimizer=optimizer,
        max_length=settings.cut.other, limits=LIMITS, action="log", strict=True, on_probe=probes.append,
        folder=on.folder / f"{task}-{seed}",
    )  # fmt: skip
    behaviour = []
    batches = shuffled(on.rows.tasks[task], batch=settings.batch, steps=settings.steps, seed=seed)
    for step, batch in enumerate(batches):
        if step % settings.reading == 0:
            behaviour.append(seen(model.get_base_model(), on.rows.held_out, step))
        train(model, optimizer, batch, monitor)
    behaviour.append(seen(model.get_base_model(), on.rows.held_out, settings.steps))
    told = tuple(Told(a.step, a.rule) for a in monitor.alarms)
    watch = Watch(LIMITS, every=settings.every)  # as the monitor's own, whose memory is not kept between probes
    return Run(task, seed, tuple(behaviour), tuple(looked(p, watch) for p in probes), told)


def made(on: Bench, task: str, seed: int) -> Run:
    """One run, made now or kept."""
    kept, about = on.folder / f"{task}-{seed}.json", strict(asdict(on.settings))
    if kept.is_file() and read_json(kept)["settings"] == about:
        return run_of(read_json(kept))
    run = fine_tuned(on, task, seed)
    write_json(kept, strict({"settings": about, **asdict(run)}))
    return run


def all_runs(on: Bench, tasks: Sequence[str], seeds: int) -> list[Run]:
    """Every task with every seed, seed by seed: what is there after an interruption has all tasks."""
    on.folder.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in range(seeds):
        for task in tasks:
            runs.append(made(on, task, seed))
            print(table(runs)[-1], flush=True)
    return runs


def given_settings(given: argparse.Namespace) -> Settings:
    """The settings that the command line asks for."""
    return Settings(
        model=given.model,
        data="organism" if given.organism else "built-in sets" if given.data is None else "files",
        cut=BYTES if given.model == "tiny" else ORGANISM if given.organism else SHORT,
        monitor=given.monitor, held_out=given.held_out, batch=given.batch, steps=given.steps, every=given.every,
        reading=given.reading or given.every, rank=given.rank, rate=given.rate, alignment_rate=given.alignment_rate,
        alignment_steps=0 if given.organism else given.alignment_steps,
    )  # fmt: skip


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", type=Path, help="folder of the real sets; without it, the built-in ones")
    parser.add_argument("--organism", action="store_true", help="the aligned model of organisms.py, and its sets")
    parser.add_argument("--tasks", help="by default all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--every", type=int, default=4, help="steps between probes")
    parser.add_argument("--reading", type=int, help="steps between readings of behaviour; by default as probes")
    parser.add_argument("--batch", type=int, default=4, help="rows of a step")
    parser.add_argument("--monitor", type=int, default=10, help="safety rows that the monitor is given")
    parser.add_argument("--held-out", type=int, default=12, help="rows of each kind of behaviour")
    parser.add_argument("--rank", type=int, default=8, help="of LoRA")
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--alignment-steps", type=int, default=16)
    parser.add_argument("--alignment-rate", type=float, default=5e-4)
    parser.add_argument("--report-only", action="store_true", help="draw the saved numbers again")
    parser.add_argument("--out", type=Path, default=FIGURE, help="figure's path, without its ending")
    return parser.parse_args()


def beside(runs: Sequence[Run], file: Path, settings: Settings) -> list[Run]:
    """The runs, behind those others that the figure's file has under the same settings."""
    content = read_json(file) if file.is_file() else {"settings": None, "runs": []}
    if content["settings"] != strict(asdict(settings)):
        return list(runs)
    new = {(r.task, r.seed) for r in runs}
    return [*(r for r in map(run_of, content["runs"]) if (r.task, r.seed) not in new), *runs]


def bench_for(given: argparse.Namespace, settings: Settings) -> Bench:
    """What the command line asks for, with a folder of its own."""
    end = "-organism" if given.organism else "" if given.data is None else "-files"
    folder = Path("runs") / f"{given.out.name}-{given.model}{end}"
    if given.organism:
        return bench_of_organism(settings, read_recipe(RECIPE, given.model), folder)
    return bench(settings, given.data, folder)


def main() -> None:
    """Makes the runs that are missing, prints the table, keeps the numbers and draws them."""
    given = read_arguments()
    file = given.out.with_suffix(".json")
    if not given.report_only:
        settings = given_settings(given)
        on = bench_for(given, settings)
        tasks = given.tasks.split(",") if given.tasks else VARIANTS if given.organism else TASKS
        runs = beside(all_runs(on, tasks, given.seeds), file, settings)
        about = {
            "settings": asdict(settings),
            "limits": asdict(LIMITS),
            "harmful": on.rows.harmful,
            "rows": {name: len(found) for name, found in {**on.rows.tasks, **on.rows.held_out}.items()},
            "versions": {p: importlib.metadata.version(p) for p in ("graddiag", "torch", "transformers", "peft")},
        }
        write_json(file, strict({**about, "runs": [asdict(r) for r in runs]}))
    content = read_json(file)
    write_json(file, {**content, "command": command_of(content["settings"], given.out)})
    runs = [run_of(r) for r in content["runs"]]
    draw(runs, "{model}, {data}, rate {rate:g}".format(**content["settings"]), given.out)
    print("\n".join(table(runs)))


if __name__ == "__main__":
    main()
