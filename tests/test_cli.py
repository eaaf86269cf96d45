"""The command line as a process: exit codes, JSON on stdout, speed of --help, no network."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_models import save

from graddiag.models import load_model

SMALL = ["--model", "tiny", "--blocks", "*.mlp.down_proj", "--dim", "16"]
NO_NETWORK = """
import socket, sys
def refuse(*a, **k): raise OSError("the network was used")
socket.socket.connect = refuse; socket.socket.connect_ex = refuse; socket.create_connection = refuse
socket.getaddrinfo = refuse
from graddiag.cli import main
main()
"""


PATIENCE = 900  # seconds by the clock, for what hangs: where others work too, importing torch alone takes a minute


def graddiag(*args, cwd, env=None):
    command = [sys.executable, "-c", NO_NETWORK, *map(str, args)]
    where = {**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})}
    return subprocess.run(command, cwd=cwd, env=where, capture_output=True, text=True, timeout=PATIENCE, check=False)


def seconds_of_children() -> float:
    """Processor time of all child processes that have ended: the same on a machine that others use too."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished small run, its folder and what was printed."""
    folder = tmp_path_factory.mktemp("cli")
    found = graddiag(
        "compare", "insecure", "educational", "--limit", "6", *SMALL, "--out", "run", "--no-figures", cwd=folder
    )
    assert found.returncode == 0, found.stderr
    return folder, found


def test_the_smoke_command_of_the_readme_works_without_a_network(tmp_path):
    found = graddiag("compare", "insecure", "educational", "--model", "tiny", "--limit", "30", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    run = tmp_path / "runs" / "insecure-educational-tiny"
    assert (run / "report.html").is_file()
    assert {p.stem for p in (run / "figures").glob("*.png")} == {p.stem for p in (run / "figures").glob("*.svg")}
    lines = found.stdout.splitlines()
    said = [line for line in lines if not line.startswith(("Warning:", "Report:", "Again:"))]
    assert 3 <= len(said) <= 15
    assert any("30 pairs" in line for line in said)


def test_help_is_quick_and_lists_every_command(tmp_path):
    before = seconds_of_children()
    found = graddiag("--help", cwd=tmp_path)
    assert seconds_of_children() - before < 0.5, "it takes 0.15; with torch 2.5, with pandas 0.75"
    for command in ("compare", "extract", "report", "selfcheck", "plan", "verify", "screen", "erosion", "list"):
        assert re.search(rf"^  {command} ", found.stdout, re.M), command


def test_help_and_library_import_without_torch(tmp_path):
    heavy = ("torch", "transformers", "datasets")
    code = f"import sys, graddiag, graddiag.cli, graddiag.reporting; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_json_is_exactly_one_document_on_stdout(done):
    folder, _ = done
    found = graddiag("report", "run", "--json", "--no-figures", cwd=folder)
    document = json.loads(found.stdout)
    assert document["schema"] == 1
    assert document["summary"]["pairs/n"] == 6


def test_a_second_run_finds_the_shards(done):
    folder, first = done
    again = graddiag(
        "compare", "insecure", "educational", "--limit", "6", *SMALL, "--out", "run", "--no-figures", cwd=folder
    )
    assert again.returncode == 0
    assert "tokens/s" in first.stderr
    assert "tokens/s" not in again.stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["report", "run", "--fail-on", "pairs/n>5"], 1, "the value is 6"),
        (["report", "run", "--fail-on", "pairs/n<5"], 0, ""),
        (["report", "run", "--fail-on", "conflict/p<0.05", "--fail-on", "pairs/n>100"], 1, "undefined"),
        (["report", "run", "--fail-on", "pairs/m>5"], 2, "no key 'pairs/m'.*pairs/n"),
        (["report", "run", "--fail-on", "pairs/n is 5"], 2, "not of the form"),
        (["report", "nowhere"], 3, "nowhere is not a finished run"),
        (["compare", "insecure", "eductional", "--model", "tiny"], 2, "educational"),
        (["compare", "insecure", "educational", "--model", "tinny"], 2, "tiny"),
        (["compare", "insecure", "educational", "--model", "tiny", "--projection", "fancy"], 2, "sjlt"),
        (["compare", "insecure", "educational", "--model", "tiny", "--recipe", "x.toml"], 2, "x.toml: No such file"),
        (["compare", "insecure", "educational", "--model", "tiny", "--blocks", "*.oproj"], 2, "o_proj"),
        (["compare", "insecure"], 2, "RIGHT"),
        (["compare", "insecure", "educational", "--model", "tiny", "--out", "run", "--dim", "4"], 3, r"space\.dim"),
        (["selfcheck", "--model", "tiny"], 0, "9 passed, 0 failed, 0 not run"),
        (["selfcheck", "--model", "tiny", "--max-length", "9"], 3, "no room for an answer in 9"),
        (["screen", "insecure", "--safety", "none"], 2, "give --safety SET"),
        (["screen", "insecure", "--by", "loss"], 2, "Allowed: alignment, harm, matching"),
        (["screen", "insecure", "--drop", "1.5"], 2, "0 to below 1"),
        (["erosion"], 2, "give --aligned MODEL and --tuned MODEL"),
        (["erosion", "--aligned", "tiny", "--tuned", "tinny"], 2, "tiny"),
        (["erosion", "--aligned", "tiny", "--tuned", "tiny", "--layers", "1-3"], 2, "no list of layers"),
        (["erosion", "--aligned", "tiny", "--tuned", "tiny", "--layers", "9", "--limit", "3"], 2, "layers 0 to 3"),
        (["erosion", "--aligned", "tiny", "--tuned", "tiny", "--revision", "old=1"], 2, "base, aligned, tuned"),
        (["verify", "run"], 0, ""),
        (["verify", "nowhere"], 3, "no saved signals"),
    ],
)  # fmt: skip
def test_exit_codes_and_messages(done, args, code, message):
    folder, _ = done
    found = graddiag(*args, *(["--no-figures"] if args[0] == "report" else []), cwd=folder)
    assert found.returncode == code, found.stderr
    assert re.search(message, found.stderr + found.stdout), found.stderr
    assert "Traceback" not in found.stderr


def test_safety_and_control_can_be_turned_off_and_options_come_from_the_environment(tmp_path):
    env = {"GRADDIAG_MODEL": "tiny", "GRADDIAG_LIMIT": "4", "GRADDIAG_BLOCKS": "*.down_proj *.up_proj"}
    found = graddiag(
        "compare",
        "insecure",
        "educational",
        "--safety",
        "none",
        "--control",
        "none",
        "--json",
        "--no-figures",
        cwd=tmp_path,
        env=env,
    )
    summary = json.loads(found.stdout)["summary"]
    assert summary["pairs/n"] == 4
    assert summary["alignment/left"] is None
    assert summary["framing/safety_cosine"] is None


def test_extract_plan_and_list_print_what_they_found(tmp_path):
    found = graddiag("extract", "safety", "--limit", "3", *SMALL, "--json", cwd=tmp_path)
    assert json.loads(found.stdout)["rows"] == 3
    assert (tmp_path / "runs" / "safety-tiny" / "manifest.json").is_file()
    plan = json.loads(
        graddiag("plan", "insecure", "educational", "--limit", "4", *SMALL, "--json", cwd=tmp_path).stdout
    )
    assert plan["plan/rows:left"] == 4
    assert plan["plan/seconds"] > 0
    listed = json.loads(graddiag("list", "--json", cwd=tmp_path).stdout)
    assert {m["name"] for m in listed["models"]} == {"tiny", "smollm2"}


def test_screen_takes_built_in_sets_and_fails_on_a_threshold(tmp_path):
    args = ("screen", "insecure", "--limit", "6", *SMALL[:4], "--out", "run", "--json")
    found = graddiag(*args, "--fail-on", "screen/n>5", "--fail-on", "screen/alignment/mean/low<-1", cwd=tmp_path)
    assert found.returncode == 1, found.stderr
    assert "screen/n>5: the value is 6" in found.stderr
    assert "screen/alignment/mean/low" not in found.stderr
    document = json.loads(found.stdout)
    assert document["summary"]["screen/alignment/control:benign"] is not None
    assert document["provenance"]["references"]["safety"] == {"set": "safety", "rows": 6}
    assert [r["rank"] for r in document["rows"]] == [1, 2, 3, 4, 5, 6]
    again = graddiag(*args, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["summary"]["screen/rows_per_second"] is None
    assert graddiag("verify", "run", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_keeps_what_is_done_and_says_how_to_continue(tmp_path, number):
    args = ["compare", "insecure", "educational", *SMALL, "--out", "run", "--batch-tokens", "600", "--no-figures"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "graddiag", *args],
        cwd=tmp_path,
        env=env,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(tmp_path / "run" / "safety" / "manifest.json", process)
    time.sleep(1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number, errors
    assert "To continue:" in errors
    assert "graddiag compare insecure educational" in errors
    assert list(tmp_path.glob("run/*/shard-00000.json"))


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Until a process has written a file."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


def test_text_of_a_data_set_reaches_the_terminal_with_control_characters_visible(tmp_path):
    row = {"prompt": "p", "completion": "an answer"}
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"id": "\x1b[31mred", "prompt": "p", "completion": ""}) + "\n" + json.dumps(row))
    found = graddiag("compare", bad, bad, "--model", "tiny", cwd=tmp_path)
    assert found.returncode == 3
    assert "\x1b" not in found.stderr
    assert "red" in found.stderr


def test_a_selfcheck_that_fails_exits_with_1_and_its_json_says_what_mends_it(tmp_path):
    model, tokenizer = load_model("tiny")
    tokenizer.chat_template = "<|pad|><|pad|>" + tokenizer.chat_template
    save((model, tokenizer), tmp_path / "doubled")
    found = graddiag("selfcheck", "--model", tmp_path / "doubled", "--blocks", "*.down_proj", "--json", cwd=tmp_path)
    assert found.returncode == 1, found.stderr
    document = json.loads(found.stdout)
    assert not document["passed"]
    assert {c["name"]: c["mend"] for c in document["checks"] if c["status"] == "fail"} == {
        "special tokens": "another chat template, or add_bos_token=False"
    }
