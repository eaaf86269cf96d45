"""The README says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import accelerate
import lightning
import pytest
import torch
from loops import SAFETY, padded, tiny
from planted_shift import planted, rows
from trainers import trainer

import graddiag
from graddiag.alarms import RULES as ALARM_RULES
from graddiag.erosion_rules import MOVED_RULES, SAFETY_RULES, SHARED_RULES, WAY_RULES
from graddiag.removal_rules import REMOVED_RULES
from graddiag.rules import RULES
from graddiag.training_log import read_log

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_words_is_that_of_the_code(readme):
    rows = re.findall(
        r"^\| (.+) \| (.+) \| (.+) \|$", readme.split("## What the words mean")[1].split("\n## ")[0], re.M
    )
    assert rows[2:] == [(r.word, r.when, r.means) for r in RULES]


def test_the_tables_of_words_for_models_are_those_of_the_code(readme):
    section = readme.split("### What did fine-tuning do to a model?")[1].split("\n### ")[0]
    _, *tables = re.findall(r"(?:^\| .+ \|\n)+", section, re.M)
    for table, rules in zip(tables, (MOVED_RULES, SHARED_RULES, REMOVED_RULES, WAY_RULES, SAFETY_RULES), strict=True):
        rows = re.findall(r"^\| (.+) \| (.+) \| (.+) \|$", table, re.M)
        assert rows[2:] == [(r.word, r.when, r.means) for r in rules]


def code(readme, section):
    (example,) = re.findall(r"```python\n(.+?)```", readme.split(f"### {section}\n")[1].split("\n#")[0], re.S)
    return compile(example, "README.md", "exec")


def test_the_python_example_runs(readme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code(readme, "In Python"), names)
    assert -1 <= names["result"].summary()["conflict/paired_cosine"] <= 1


def test_a_shift_is_added_to_the_aligned_model_as_the_readme_says(readme):
    (aligned, tokenizer), (tuned, _) = planted()
    left, harmful = (rows(name, 6, seed, marked=True) for seed, name in enumerate(("left", "harmful")))
    names = {
        "graddiag": graddiag, "aligned": aligned, "tuned": tuned, "tokenizer": tokenizer, "left": left,
        "harmful": harmful,
    }  # fmt: skip
    exec(code(readme, "What did fine-tuning do to a model?"), names)
    assert names["gains"][0] > max(names["gains"][1:]), "the planted direction does more than any random one"


def test_the_training_loop_runs(readme):
    model, tokenizer = graddiag.load_model("tiny")
    model.train()
    names = {
        "graddiag": graddiag,
        "model": model,
        "tokenizer": tokenizer,
        "safe_answers": SAFETY,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-4),
        "batches": [padded(tokenizer)] * 11,
    }
    exec(code(readme, "While it trains"), names)
    assert [p.step for p in names["monitor"].probes] == [0, 10]


def test_the_trainer_with_a_callback_runs(readme, tmp_path):
    model, tokenizer = tiny()
    run = trainer(model, tokenizer, tmp_path, max_steps=11)
    names = {"graddiag": graddiag, "safe_answers": SAFETY, "trainer": run}
    exec(code(readme, "Hugging Face Trainer and TRL"), names)
    assert [p.step for p in names["callback"].monitor.probes] == [0, 10]
    assert sum("graddiag/cosine" in entry for entry in run.state.log_history) == 2


def test_the_loop_with_accelerate_runs(readme):
    model, tokenizer = tiny()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    loader = torch.utils.data.DataLoader([padded(tokenizer)] * 22, batch_size=None)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-4), loader)
    names = {
        "graddiag": graddiag,
        "accelerator": accelerator,
        "model": model,
        "tokenizer": tokenizer,
        "safe_answers": SAFETY,
        "optimizer": optimizer,
        "batches": loader,
    }
    exec(code(readme, "Accelerate"), names)
    assert [p.step for p in names["monitor"].probes] == [0, 10]
    assert [len(p.ids) for p in names["monitor"].probes] == [2 * len(padded(tokenizer)["labels"])] * 2


def test_the_lightning_trainer_runs(readme, tmp_path, monkeypatch):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = tiny()[0]

        def training_step(self, batch, index):
            return self.model(**batch).loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    monkeypatch.chdir(tmp_path)
    tokenizer = tiny()[1]
    names = {
        "graddiag": graddiag,
        "lightning": lightning,
        "module": Module(),
        "tokenizer": tokenizer,
        "safe_answers": SAFETY,
        "batches": torch.utils.data.DataLoader([padded(tokenizer)] * 11, batch_size=None),
    }
    exec(code(readme, "Lightning"), names)
    assert [p.step for p in names["callback"].monitor.probes] == [0, 10]


def test_the_table_of_alarms_is_that_of_the_code(readme):
    rows = re.findall(r"^\| (.+) \| (.+) \| (.+) \| (.+) \|$", readme.split("### Alarms")[1].split("\n## ")[0], re.M)
    assert rows[2:] == [(r.name, r.when, r.means, r.not_shown) for r in ALARM_RULES]


def test_the_watched_loop_runs_and_leaves_a_run(readme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, tokenizer = graddiag.load_model("tiny")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    names = {"graddiag": graddiag, "model": model, "tokenizer": tokenizer, "safe_answers": SAFETY}
    names["optimizer"] = optimizer
    exec(code(readme, "Alarms"), names)
    batch = padded(tokenizer)
    for _ in range(11):
        with names["monitor"].step(batch):
            model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [p.step for p in read_log(tmp_path / "runs" / "training").probes] == [0, 10]


def test_files_and_figures_that_it_links_to_are_there(readme):
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert (ROOT / target).is_file(), target


def test_its_commands_exist(readme):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", readme, re.M):
        assert f"\n{target}:" in makefile, target
