"""Where rows come from: every kind of file and name, and what is said of those that cannot be read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graddiag.data import BUILT_IN_SETS, ExampleSet, Source, read_set
from graddiag.errors import DataError, UsageError

Row = dict[str, object]
USER, ANSWER = {"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}
GOOD: Row = {"messages": [USER, ANSWER]}


def turn(role: object, content: object) -> Row:
    return {"role": role, "content": content}


def rows(n: int, **columns: object) -> list[Row]:
    """Rows that differ, each with the given columns."""
    return [{"messages": [turn("user", f"q{k}"), turn("assistant", f"a{k}\nend")], **columns} for k in range(n)]


def ids(found: ExampleSet) -> list[str]:
    return [e.id for e in found.examples]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_jsonl(many: Sequence[Row]) -> str:
    return "".join(json.dumps(r) + "\n" for r in many)


# Files


def frame(many: Sequence[Row]) -> pandas.DataFrame:
    """The rows as a table with a JSON string for the messages."""
    return pandas.DataFrame([{**r, "messages": json.dumps(r["messages"])} for r in many])


WRITERS: dict[str, Callable[[Path, Sequence[Row]], object]] = {
    ".jsonl": lambda path, many: write(path, as_jsonl(many)),
    ".json": lambda path, many: write(path, json.dumps(many, indent=1)),
    ".csv": lambda path, many: frame(many).to_csv(path, index=False),
    ".parquet": lambda path, many: pq.write_table(pa.Table.from_pylist(many), path),
    ".PARQUET": lambda path, many: frame(many).to_parquet(path),
}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("kind", [str, lambda p: p])
def test_every_kind_of_file_gives_the_same_examples_under_the_files_name(
    tmp_path: Path, suffix: str, kind: Callable[[Path], str | Path]
) -> None:
    many = [{"id": f"{k:04}", "cluster": f"t{k % 2}", **r} for k, r in enumerate(rows(5))]
    path = tmp_path / f"mine{suffix}"
    WRITERS[suffix](path, many)
    found = read_set(kind(path))
    assert found.examples == read_set(many).examples
    assert found.name == "mine"
    assert ids(found)[0] == "0000", "ids keep their zeros"


def test_a_table_of_prompts_and_completions_can_be_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", 'id,prompt,completion\r\n007,"Hello, ""you""\nthere?",Yes.\r\n\r\n008,b,c\r\n')
    found = read_set(path)
    assert ids(found) == ["007", "008"]
    assert found.examples[0].messages[0].content == 'Hello, "you"\nthere?'


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_byte_order_mark_is_fine(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    WRITERS[suffix](path, [{"id": "a", **GOOD}])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert ids(read_set(path)) == ["a"]


def test_blank_lines_and_other_line_ends_are_no_rows_and_separators_inside_a_text_are_no_line_ends(
    tmp_path: Path,
) -> None:
    text = json.dumps({"prompt": "a\u2028b\x85c", "completion": "d"}, ensure_ascii=False)
    found = read_set(write(tmp_path / "x.jsonl", f"\r\n{text}\r\n\n{text}"))
    assert ids(found) == ["0", "1"]
    assert found.examples[0].messages[0].content == "a\u2028b\x85c"


BAD_LINES = {
    "no JSON": (b'{"messages": [', r"\(line 3\) is not valid JSON: "),
    "no object": (b"[1]", r"\(line 3\) is a JSON list, not an object"),
    "no UTF-8": (b'{"prompt": "\xff"}', r"\(line 3\) is not valid UTF-8: byte 0xff at position 12 of the line"),
    "too deep": (b"[" * 200_000, r"\(line 3\) is not valid JSON: "),
    "too long a number": (b'{"a": ' + b"1" * 5000 + b"}", r"\(line 3\) is not valid JSON: "),
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_an_error_with_its_number_or_is_left_out_and_counted(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    good = json.dumps(GOOD).encode()
    path = write(tmp_path / "x.jsonl", b"\n".join([good, b"", line, good]))
    with pytest.raises(DataError, match=f"^x: row 1 {reason}.*--skip-bad-rows"):
        read_set(path)
    found = read_set(path, skip_bad_rows=True)
    assert ids(found) == ["0", "2"]
    assert "1 of 3 rows were left out: row 1 (line 3) is" in found.notes[0]


def test_rows_of_a_csv_with_too_few_cells_or_bytes_that_are_no_utf8_are_bad_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", b"prompt,completion\na,b\nc\nd\xff,e\nf,g\n")
    found = read_set(path, skip_bad_rows=True)
    assert ids(found) == ["0", "3"]
    assert "row 1 (line 3) has 1 cells, but the header names 2 columns" in found.notes[0]
    assert r"row 2 has the lone surrogate '\udcff'" in found.notes[0]


def test_bytes_that_are_no_utf8_in_a_parquet_file_make_one_bad_row(tmp_path: Path) -> None:
    text = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a", b"\xff"], pa.binary()).buffers())
    pq.write_table(pa.table({"prompt": text, "completion": ["x", "y"]}), tmp_path / "x.parquet")
    found = read_set(tmp_path / "x.parquet", skip_bad_rows=True)
    assert ids(found) == ["0"]
    assert "row 1 is not valid UTF-8" in found.notes[0]


BAD_FILES = {
    "x.json": (b'{"messages": []}', r"x\.json' holds a JSON dict\. A \.json file must hold one list of rows"),
    "lines.json": (b"{}\n{}", r"lines\.json' is not valid JSON: .*one row per line must be called \.jsonl"),
    "bytes.json": (b'[\n"\xff"]', r"bytes\.json' is not valid UTF-8: byte 0xff in line 2"),
    "x.csv": (b'prompt,completion\na,"b"c\n', r"x\.csv' is not valid CSV: .*\(line 2\).*\.jsonl"),
    "open.csv": (b'prompt,completion\na,"b\n', r"open\.csv' is not valid CSV: "),
    "long.csv": (b"prompt,completion\na," + b"x" * 140_000 + b"\n", r"long\.csv' is not valid CSV: .*as \.jsonl"),
    "twice.csv": (b"prompt,prompt\na,b\n", r"twice\.csv' has two columns of the same name: prompt, prompt"),
    "x.parquet": (b"PAR0", r"x\.parquet' is not a readable Parquet file: "),
    "empty.jsonl": (b"\n", "empty: it has no rows"),
    "empty.json": (b"[]", "empty: it has no rows"),
    "empty.csv": (b"", "empty: it has no rows"),
    "header.csv": (b"prompt,completion\n", "header: it has no rows"),
}  # fmt: skip


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_read_is_an_error_whatever_may_be_skipped(tmp_path: Path, name: str, skip: bool) -> None:
    content, reason = BAD_FILES[name]
    with pytest.raises(DataError, match=reason):
        read_set(write(tmp_path / name, content), skip_bad_rows=skip)


def test_a_file_that_may_not_be_read_is_an_error_with_the_systems_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.jsonl", as_jsonl([GOOD]))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"x\.jsonl' cannot be read: Permission denied\. Check the file"):
        read_set(path)


# Names


def test_every_built_in_set_has_a_name_a_description_and_rows() -> None:
    assert [s.name for s in BUILT_IN_SETS] == ["insecure", "educational", "secure", "safety", "benign"]
    assert all(s.description and s.rows > 0 for s in BUILT_IN_SETS)


def test_a_given_name_wins(tmp_path: Path) -> None:
    path = write(tmp_path / "file.jsonl", as_jsonl([GOOD]))
    assert read_set(path, name="given").name == "given"


@pytest.mark.parametrize("wrong", ["insecur", "educatonal", "saftey", "benign2"])
def test_an_unknown_name_is_refused_with_the_closest_built_in_one(wrong: str) -> None:
    meant = {"i": "insecure", "e": "educational", "s": "safety", "b": "benign"}[wrong[0]]
    with pytest.raises(UsageError, match=rf"no set '{wrong}'. Closest: {meant}.*Allowed: insecure, .*owner/name"):
        read_set(wrong)


def test_a_name_like_none_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(UsageError, match=r"no set '\\x1bqq'. Allowed: insecure"):
        read_set("\x1bqq")


def test_missing_files_folders_and_unknown_kinds_are_refused(tmp_path: Path) -> None:
    for missing in (tmp_path / "no.jsonl", str(tmp_path / "no.jsonl"), "no/such.csv"):
        with pytest.raises(UsageError, match=r"There is no file .*Check the path"):
            read_set(missing)
    with pytest.raises(UsageError, match="is a folder"):
        read_set(tmp_path)
    with pytest.raises(UsageError, match=r"x\.txt' is of no known kind. Allowed: \.jsonl, \.json, \.csv, \.parquet"):
        read_set(write(tmp_path / "x.txt", b""))


def test_a_dataset_of_the_library_is_a_source() -> None:
    many = [{"id": "a", **GOOD}, {"id": "b", **GOOD}]
    assert read_set(datasets.Dataset.from_list(many)).examples == read_set(many).examples
    assert read_set(iter(many)).examples == read_set(many).examples


@pytest.mark.parametrize("source", [GOOD, b"insecure", None, 3])
def test_one_object_is_no_set(source: Source) -> None:
    with pytest.raises(UsageError, match=f"from one object of type {type(source).__name__}"):
        read_set(source)


def test_of_several_splits_one_must_be_chosen() -> None:
    with pytest.raises(UsageError, match=r"DatasetDict\. Choose one split of it"):
        read_set(datasets.DatasetDict(train=datasets.Dataset.from_list([GOOD])))


@pytest.mark.parametrize(("source", "split"), [("own.er/some-set", "train"), ("own.er/some-set:test[:9]", "test[:9]")])
def test_a_hub_id_names_a_dataset_and_its_split(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Source, split: str
) -> None:
    monkeypatch.chdir(tmp_path)

    def load_dataset(name: str, *, split: str) -> datasets.Dataset:
        return datasets.Dataset.from_list([{"id": f"{name} {split}", **GOOD}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = read_set(source)
    assert ids(found) == [f"own.er/some-set {split}"]
    assert found.name == source


def test_a_dataset_that_cannot_be_loaded_is_an_error_with_the_reason_and_the_split(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def load_dataset(name: str, *, split: str) -> datasets.Dataset:
        raise ValueError("Unknown split \"tset\". Should be one of ['train', 'test'].\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"no file 'own/set:tset', and no dataset .*Unknown split.* the split \(tset\)"):
        read_set("own/set:tset")


def test_a_local_path_wins_over_a_hub_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    write(tmp_path / "owner" / "name.jsonl", as_jsonl([{"id": "local", **GOOD}]))
    assert ids(read_set("owner/name.jsonl")) == ["local"]


def test_importing_it_needs_no_heavy_library() -> None:
    heavy = ("torch", "transformers", "datasets", "pyarrow", "pandas")
    code = f"import sys, graddiag.data, graddiag.encoding; print([m for m in {heavy} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
