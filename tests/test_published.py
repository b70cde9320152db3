"""Data sets in the files in which they are published: known by their first line, read whole, refused by the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shared_data import shared_data

from lora_np.tasks.published import PUBLISHED
from lora_np.tasks.readers import Example, read_examples

SST2 = "sentence\tlabel\na fine film \t1\n"
COLA = "gj04\t1\t\tHe sings.\ngj04\t0\t*\tHe sing.\n"
RTE = 'index\tsentence1\tsentence2\tlabel\n0\tAnn "sings".\tAnn sings.\tentailment\n'
TRIPLES = [
    {"subject": "Ada_Lind", "property": "job", "object": "pilot"},
    {"subject": "a", "property": "b", "object": "c"},
]
WEBNLG = {
    "entries": [
        {"1": {"modifiedtripleset": TRIPLES, "lexicalisations": [{"lex": "Ada flies."}, {"lex": "A pilot."}]}},
        {"2": {"modifiedtripleset": TRIPLES[:1], "lexicalisations": [{"lex": "Ada."}]}},
    ]
}
DART = [
    {"tripleset": [["Lions", "WINS", "3"], ["Lions", "CITY", "Lima"]], "annotations": [{"text": "They won 3."}]},
    {"tripleset": [["Bears", "WINS", "1"]], "annotations": [{"text": "One."}, {"text": "Bears: one."}]},
]
QUESTION = {
    "phase": 1, "table_id": "1-2", "question": "who won?",
    "sql": {"sel": 1, "agg": 3, "conds": [[0, 0, "O'Neil"], [2, 1, 5], [2, 2, 7.5]]},
}  # fmt: skip
FILES = {
    "sst2": ("a.tsv", SST2, [Example("a fine film ", "1")]),
    "cola": ("a.tsv", COLA, [Example("He sings.", "1"), Example("He sing.", "0")]),
    "rte": ("a.tsv", RTE, [Example('Ann "sings".\tAnn sings.', "entailment")]),
    "webnlg": (
        "a.json",
        json.dumps(WEBNLG, indent=1),
        [Example("Ada_Lind : job : pilot | a : b : c", text) for text in ("Ada flies.", "A pilot.")]
        + [Example("Ada_Lind : job : pilot", "Ada.")],
    ),
    "dart": (
        "a.json",
        json.dumps(DART, indent=1),
        [Example("Lions : WINS : 3 | Lions : CITY : Lima", "They won 3.")]
        + [Example("Bears : WINS : 1", text) for text in ("One.", "Bears: one.")],
    ),
    "wikisql": (
        "a.jsonl",
        json.dumps(QUESTION) + "\n\n",
        [Example("who won?", "SELECT COUNT(col1) FROM table WHERE col0 = 'O''Neil' AND col2 > 5 AND col2 < 7.5")],
    ),
}


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def test_every_row_has_a_file_here() -> None:
    assert set(FILES) == set(PUBLISHED)


@pytest.mark.parametrize("format", FILES)
def test_a_published_file_is_known_by_its_first_line_and_read_as_what_it_is(tmp_path: Path, format: str) -> None:
    name, content, expected = FILES[format]
    assert read_examples(written(tmp_path, name, content)) == expected
    assert read_examples(written(tmp_path, "other.data", content), format) == expected


def test_columns_and_fields_that_are_asked_for_win_over_what_is_known(tmp_path: Path) -> None:
    assert read_examples(written(tmp_path, "a.tsv", SST2), columns=(1, 0))[0] == Example("label", "sentence")
    path = written(tmp_path, "a.jsonl", json.dumps(QUESTION))
    fields = {"prompt_field": "question", "reference_field": "table_id"}
    assert read_examples(path, **fields) == [Example("who won?", "1-2")]  # type: ignore[arg-type]


def test_the_columns_of_wikisql_have_names_where_the_file_of_tables_lies_beside(tmp_path: Path) -> None:
    path = written(tmp_path, "dev.jsonl", json.dumps(QUESTION))
    written(tmp_path, "dev.tables.jsonl", json.dumps({"id": "1-2", "header": ["Name", "Year", "Goals"]}) + "\n")
    query = "SELECT COUNT(Year) FROM table WHERE Name = 'O''Neil' AND Goals > 5 AND Goals < 7.5"
    assert read_examples(path) == [Example("Name, Year, Goals | who won?", query)]
    written(tmp_path, "dev.tables.jsonl", json.dumps({"id": "1-3", "header": ["Name"]}))
    refused(path, "line 1: no table '1-2' stands in the file of tables beside it")
    written(tmp_path, "dev.tables.jsonl", "\n" + json.dumps({"id": "1-2", "header": []}))
    with pytest.raises(ValueError, match=r"dev\.tables\.jsonl, line 2: a table must have a header"):
        read_examples(path)


# what is refused


def refused(path: Path, message: str, format: str | None = None) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_examples(path, format)
    assert str(caught.value).startswith(f"{path}, line ")
    assert "\n" not in str(caught.value)


def test_a_row_of_a_table_that_is_cut_off_is_refused_by_its_line(tmp_path: Path) -> None:
    refused(written(tmp_path, "a.tsv", SST2 + "cut off"), "line 3: expected 2 columns, found 1")
    refused(written(tmp_path, "a.tsv", COLA + "gj04\t1\t"), "line 3: expected 4 columns, found 3")
    refused(written(tmp_path, "a.tsv", RTE + "1\tAnn"), "line 3: expected 4 columns, found 2")
    refused(written(tmp_path, "a.tsv", RTE + "1\tAnn\t \tentailment"), "line 3: the prompt must not be blank")
    refused(written(tmp_path, "a.tsv", "text\tmark\na\t1\n"), "line 1: the header must name 'sentence'", "sst2")


@pytest.mark.parametrize("format", ["webnlg", "dart"])
def test_json_that_is_cut_off_anywhere_is_refused_by_a_line(tmp_path: Path, format: str) -> None:
    content = FILES[format][1]
    path = tmp_path / "cut.json"
    for end in range(1, len(content) - (2 if format == "webnlg" else 0), 7):
        if not content[:end].rstrip().endswith("]") or json_ends(content[:end]):
            path.write_text(content[:end])
            refused(path, r"line \d+: ", format)


def json_ends(text: str) -> bool:
    """Are there fewer closed brackets than open ones?"""
    return text.count("[") > text.count("]")


def test_a_cut_entry_is_named_by_the_line_where_it_stops(tmp_path: Path) -> None:
    content = '[\n{"tripleset": [["a", "b", "c"]], "annotations": [{"text": "x"}]},\n{"tripleset": [["a",\n "b'
    refused(written(tmp_path, "a.json", content), "line 4: expected an entry in JSON, got text that is not")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tripleset": [["a", "b"]]}, r'line 2: a triple must be three texts, got \["a", "b"\]'),
        ({"tripleset": []}, "line 2: the entry must have 'tripleset', a list that is not empty"),
        ({"annotations": [{"source": "x"}]}, "line 2: field 'text' must be a string, got no such field"),
    ],
)
def test_an_entry_without_what_it_needs_is_refused_by_its_line(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    refused(written(tmp_path, "a.json", "[\n" + json.dumps({**DART[0], **change}) + "\n]"), message)


@pytest.mark.parametrize(
    "change", [{"sel": -1}, {"sel": "x"}, {"agg": 9}, {"conds": [[0, 5, "a"]]}, {"conds": [[0, 0, None]]}, {"conds": 3}]
)
def test_a_query_whose_numbers_mean_nothing_is_refused_by_its_line(tmp_path: Path, change: dict[str, object]) -> None:
    record = {**QUESTION, "sql": {**QUESTION["sql"], **change}}  # type: ignore[dict-item]
    path = written(tmp_path, "a.jsonl", json.dumps(QUESTION) + "\n" + json.dumps(record))
    refused(path, "line 2: sql must hold sel, agg and conds in their numbers")


# the real files


@pytest.mark.parametrize(
    ("name", "count", "answers"),
    [
        ("sst2/dev.tsv", 872, {"0", "1"}),
        ("cola/train.tsv", 8551, {"0", "1"}),
        ("cola/dev.tsv", 1043, {"0", "1"}),
        ("rte/train.tsv", 2490, {"entailment", "not_entailment"}),
        ("rte/dev.tsv", 277, {"entailment", "not_entailment"}),
    ],
)
def test_real_glue_is_read_whole_as_it_is_published(name: str, count: int, answers: set[str]) -> None:
    examples = read_examples(shared_data(name))
    assert len(examples) == count
    assert {example.reference for example in examples} == answers
    assert all(("\t" in example.prompt) == name.startswith("rte") for example in examples)


@pytest.mark.parametrize(
    ("name", "texts", "meanings"),
    [("webnlg/dev.json", 2268, 872), ("dart/dart-v1.1.1-full-dev.json", 6980, 2768), ("wikisql/dev.jsonl", 8421, 8421)],
)
def test_real_texts_are_read_whole_as_they_are_published(name: str, texts: int, meanings: int) -> None:
    examples = read_examples(shared_data(name))
    assert len(examples) == texts
    assert len({example.prompt for example in examples}) <= meanings
