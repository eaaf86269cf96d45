"""Screening on the tiny model: exact products, part by part as at once, continued, copied, and refused."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from measured_runs import SMALL, rows_of

import graddiag
from graddiag import screening
from graddiag.comparison import Comparison
from graddiag.data import read_set
from graddiag.encoding import EncodedSet
from graddiag.errors import DataError, ResourceError, UsageError
from graddiag.models import load_model
from graddiag.parts import read_parts, rows_as_json
from graddiag.pipeline import extract_to
from graddiag.reference_means import halves
from graddiag.screen_report import Screened
from graddiag.store import read_signals


@pytest.fixture(scope="module")
def tiny():
    model, tokenizer = load_model("tiny")
    return model.double(), tokenizer


def run(out: Path, tiny, source=None, **more) -> Screened:
    model, tokenizer = tiny
    given = {"safety": rows_of("safety", 6), "controls": {"benign": rows_of("benign", 4)}, "blocks": SMALL, **more}
    rows = rows_of("insecure", 12) if source is None else source
    return graddiag.screen(rows, model=model, tokenizer=tokenizer, out=out, **given)


def table(out: Path) -> list[dict[str, str]]:
    with (out / "tables" / "rows.csv").open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def column(out: Path, name: str) -> np.ndarray:
    return np.array([float(r[name]) for r in table(out)])


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny):
    out = tmp_path_factory.mktemp("screen") / "run"
    return out, run(out, tiny, harmful=rows_of("benign", 5), part_rows=5)


def test_products_and_scores_are_those_of_whole_gradients(done, tiny):
    out, found = done
    model, tokenizer = tiny
    whole = {}
    for name, rows in (("set", rows_of("insecure", 12)), ("safety", rows_of("safety", 6)), ("h", rows_of("benign", 5))):
        signals = graddiag.extract(model, tokenizer, rows, blocks=SMALL, projection="exact")
        whole[name] = np.concatenate([signals.gradients[b] for b in signals.blocks], axis=1)
    safe, harmful = whole["safety"].mean(axis=0), whole["h"].mean(axis=0)
    inner = whole["set"] @ safe
    norms = np.linalg.norm(whole["set"], axis=1)
    cosine = inner / norms / np.linalg.norm(safe)
    matching = whole["set"] @ harmful / norms / np.linalg.norm(harmful) - cosine
    assert column(out, "inner") == pytest.approx(inner, rel=1e-9)
    assert column(out, "alignment") == pytest.approx(cosine, rel=1e-9)
    assert column(out, "matching") == pytest.approx(matching, rel=1e-9, abs=1e-12)
    assert column(out, "rank").tolist() == (np.argsort(np.argsort(-matching)) + 1).tolist()
    assert found.summary()["screen/matching/mean"] == pytest.approx(matching.mean())


def test_the_alignment_is_that_of_compare(done, tiny, tmp_path):
    out, _ = done
    model, tokenizer = tiny
    result = graddiag.compare(
        rows_of("insecure", 12), rows_of("educational", 12), model=model, tokenizer=tokenizer,
        safety=rows_of("safety", 6), controls={"benign": rows_of("benign", 4)}, blocks=SMALL, dim=16,
        out=tmp_path / "run", figures=False,
    )  # fmt: skip
    assert result.findings.alignment is not None
    assert column(out, "alignment") == pytest.approx(result.findings.alignment.rows["left"], rel=1e-9)
    summary = json.loads((out / "report.json").read_text())["summary"]
    assert summary["screen/alignment/mean"] == pytest.approx(result.summary()["alignment/left"])
    assert summary["screen/alignment/mean/low"] == pytest.approx(result.summary()["alignment/left/low"])
    assert summary["screen/alignment/control:benign"] == pytest.approx(result.summary()["alignment/control:benign"])


def test_the_size_of_the_parts_changes_nothing(done, tiny, tmp_path):
    out, _ = done
    run(tmp_path / "run", tiny, harmful=rows_of("benign", 5), part_rows=1000)
    assert column(tmp_path / "run", "score") == pytest.approx(column(out, "score"), rel=1e-9)
    assert len(list(out.glob("rows/part-*"))) == 3
    assert len(list((tmp_path / "run").glob("rows/part-*"))) == 1


def test_no_gradient_is_kept_and_what_is_kept_cannot_be_compared(done):
    out, _ = done
    part = read_signals(out / "rows" / "part-00000")
    assert {g.shape for g in part.gradients.values()} == {(5, 4)}
    assert {g.shape for g in read_signals(out / "safety-1").gradients.values()} == {(3, 0)}
    with pytest.raises(DataError, match="graddiag extract"):
        Comparison(part, part)


def test_a_second_call_measures_nothing_and_says_the_same(done, tiny):
    out, first = done
    again = run(out, tiny, harmful=rows_of("benign", 5), part_rows=5)
    assert again.summary().pop("screen/rows_per_second") is None
    assert first.summary()["screen/rows_per_second"] > 0
    without = [{k: v for k, v in s.summary().items() if "per_second" not in k} for s in (first, again)]
    assert without[0] == without[1]


def test_an_interrupted_screening_continues_with_the_rows_that_are_missing(tiny, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", tiny, part_rows=4)
    taken, real = [], screening.measure

    def stopping(extractor, job, place, **more):
        if "rows" in str(place.tables[0]) and len(taken) == 2:
            raise KeyboardInterrupt
        taken.append(place)
        return real(extractor, job, place, **more)

    with monkeypatch.context() as m:
        m.setattr(screening, "measure", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", tiny, part_rows=4)
    assert len(list((tmp_path / "run" / "rows").glob("*/shard-*.parquet"))) == 2
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("*/*/shard-*")}
    found = run(tmp_path / "run", tiny, part_rows=4)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert column(tmp_path / "run", "score").tolist() == column(tmp_path / "whole", "score").tolist()
    assert found.verdict == whole.verdict


def test_other_safety_rows_are_refused_in_the_same_folder_and_replaced_on_request(tiny, tmp_path):
    run(tmp_path / "run", tiny)
    other = rows_of("safety", 8)[2:]
    with pytest.raises(DataError, match="holds signals of something else"):
        run(tmp_path / "run", tiny, safety=other)
    run(tmp_path / "run", tiny, safety=other, overwrite=True)
    run(tmp_path / "fresh", tiny, safety=other)
    assert column(tmp_path / "run", "score").tolist() == column(tmp_path / "fresh", "score").tolist()


def test_a_screening_that_is_stopped_while_it_replaces_another_leaves_no_old_list(tiny, tmp_path, monkeypatch):
    old = run(tmp_path / "run", tiny)
    for name in ("report.json", "keep.jsonl", "drop.jsonl", "tables/rows.csv"):
        assert (old.out / name).exists()

    def stopping(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(screening, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", tiny, safety=rows_of("safety", 8)[2:], overwrite=True)
    assert [p.name for p in old.out.rglob("*") if p.suffix in {".jsonl", ".csv"} or p.name == "report.json"] == []


def test_keep_and_drop_are_the_rows_themselves_in_the_order_of_the_set(tiny, tmp_path):
    rows = [r | {"source": {"page": k, "weight": math.nan}} for k, r in enumerate(rows_of("insecure", 12))]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    run(tmp_path / "run", tiny, str(file), drop=0.25)
    kept, dropped = (
        [json.loads(line) for line in (tmp_path / "run" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("keep", "drop")
    )
    worst = set(np.argsort(-column(tmp_path / "run", "score"))[:3])
    assert [r["source"]["page"] for r in dropped] == sorted(worst)
    assert [r["source"]["page"] for r in kept] == sorted(set(range(12)) - worst)
    assert kept[0]["messages"] == rows[kept[0]["source"]["page"]]["messages"]
    assert kept[0]["source"]["weight"] is None
    assert [r["dropped"] for r in table(tmp_path / "run")].count("True") == 3
    assert len(read_set(tmp_path / "run" / "keep.jsonl").examples) == 9


def test_rows_that_could_not_be_measured_are_dropped_and_counted(tiny, tmp_path, monkeypatch):
    real = screening.Scalars.of

    def broken(signals):
        found = real(signals)
        found.finite[0] = False
        return found

    monkeypatch.setattr(screening.Scalars, "of", broken)
    with pytest.raises(DataError, match="1 of 12 rows have a loss or gradient that is not finite"):
        run(tmp_path / "run", tiny, controls={})
    found = run(tmp_path / "run", tiny, controls={}, max_nonfinite=0.2, drop=0.0)
    assert found.summary()["screen/nonfinite"] == 1
    first = table(tmp_path / "run")[0]
    assert (first["rank"], first["score"], first["dropped"]) == ("", "", "True")
    assert len((tmp_path / "run" / "drop.jsonl").read_text().splitlines()) == 1


def test_parts_are_the_whole_set_with_the_same_ids_and_clusters():
    whole = read_set("insecure", limit=11, cluster="mod:4")
    parts = list(read_parts("insecure", rows=4, limit=11, cluster="mod:4"))
    assert [len(p.examples) for p in parts] == [4, 4, 3]
    assert tuple(e for p in parts for e in p.examples) == whole.examples
    nameless = [{"prompt": f"p{k}", "completion": "c"} for k in range(5)]
    assert [e.id for p in read_parts(nameless, rows=2) for e in p.examples] == ["0", "1", "2", "3", "4"]
    assert [i for i, _ in rows_as_json([*nameless, {"prompt": "no answer"}])] == ["0", "1", "2", "3", "4"]


def test_a_set_is_read_no_further_than_the_part_in_hand():
    read = []

    def rows():
        for k in range(100):
            read.append(k)
            yield {"prompt": f"p{k}", "completion": "c"}

    parts = read_parts(rows(), rows=10)
    next(parts)
    assert len(read) == 10


def test_ids_that_occur_in_two_parts_are_refused(tiny, tmp_path):
    rows = rows_of("insecure", 4)
    rows[3]["id"] = rows[0]["id"]
    with pytest.raises(DataError, match=f"{rows[0]['id']}' occurs twice"):
        run(tmp_path / "run", tiny, rows, part_rows=2)


def test_halves_share_no_cluster_and_are_of_like_size(make_rows):
    rows = make_rows(21)
    clusters = ["a", "b", "c", "c", "c", "d", "e"] * 3
    for k, (row, cluster) in enumerate(zip(rows, clusters, strict=True)):
        object.__setattr__(row, "cluster", cluster)
        object.__setattr__(row, "id", str(k))
    one = EncodedSet("safety", tuple(rows), (), "answer", 64)
    first, second = halves(one)
    assert not {r.cluster for r in first.rows} & {r.cluster for r in second.rows}
    assert sorted(len(h.rows) for h in (first, second)) == [9, 12]
    assert sorted([r.id for r in (*first.rows, *second.rows)], key=int) == [r.id for r in rows]
    for row in rows:
        object.__setattr__(row, "cluster", "a")
    assert halves(one) == (one,)


def test_halves_share_no_answer_where_no_cluster_is_named(make_rows):
    rows = [replace(r, id=str(k), cluster=str(k), start=2) for k, r in enumerate(make_rows(9))]
    rows[3:] = [replace(r, tokens=np.append(r.tokens[:2], [k % 2, 5]).astype(np.int32)) for k, r in enumerate(rows[3:])]
    answers = [
        [tuple(r.tokens[2:]) for r in half.rows] for half in halves(EncodedSet("safety", tuple(rows), (), "answer", 64))
    ]
    assert not set(answers[0]) & set(answers[1])
    assert sorted(map(len, answers)) == [4, 5]


def test_rows_of_one_answer_are_one_cluster_across_parts_where_none_is_named(tiny, tmp_path):
    rows = [{"id": r["id"], "messages": r["messages"]} for r in rows_of("insecure", 6)]
    for k, of in ((4, 0), (5, 1), (3, 0)):
        rows[k]["messages"] = [rows[k]["messages"][0], rows[of]["messages"][-1]]
    found = run(tmp_path, tiny, rows, part_rows=2)
    ids = [r["id"] for r in rows]
    assert [r["cluster"] for r in table(tmp_path)] == [ids[k] for k in (0, 1, 2, 0, 0, 1)]
    assert found.summary()["screen/clusters"] == 3
    assert any("5 of 6 rows have an answer that another of its rows has too (2 such answers; no clusters" in w
               for w in found.warnings)  # fmt: skip


def test_what_cannot_be_screened_is_refused_before_anything_is_measured(tiny, tmp_path, monkeypatch):
    model, tokenizer = tiny
    with pytest.raises(UsageError, match="read twice"):
        run(tmp_path / "run", tiny, iter(rows_of("insecure", 3)))
    with pytest.raises(UsageError, match="Ranking by 'matching' needs"):
        run(tmp_path / "run", tiny, by="matching")
    extract_to(rows_of("safety", 3), model=model, tokenizer=tokenizer, blocks=SMALL, out=tmp_path / "saved", dim=16)
    with pytest.raises(UsageError, match="saved signals, and these hold no mean gradient"):
        run(tmp_path / "run", tiny, safety=str(tmp_path / "saved"))
    monkeypatch.setattr("graddiag.reference_means.memory_for_means", lambda _: 1000)
    with pytest.raises(ResourceError, match="2 mean gradients of"):
        run(tmp_path / "run", tiny)
    assert not (tmp_path / "run").exists()


def test_tables_and_norms_of_every_parameter_are_multiplied_exactly(tiny, tmp_path):
    model, tokenizer = tiny
    blocks = ["model.embed_tokens.weight", "model.norm.weight", "*.0.self_attn.q_proj"]
    run(tmp_path / "run", tiny, rows_of("insecure", 4), blocks=blocks, controls={})
    rows, safe = (
        graddiag.extract(model, tokenizer, rows_of(name, n), blocks=blocks, projection="exact")
        for name, n in (("insecure", 4), ("safety", 6))
    )
    wanted = sum(rows.gradients[b] @ safe.gradients[b].mean(axis=0) for b in rows.blocks)
    assert column(tmp_path / "run", "inner") == pytest.approx(wanted, rel=1e-9)
