import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import shared_data

from lora_np.tasks.readers import FORMATS, Example, read_examples

EXPECTED = [Example("a", "one"), Example("b", "two")]
PAIR_FILES = {
    "pairs.txt": "a||one\nb||two\n",
    "pairs.tsv": "a\tone\nb\ttwo\n",
    "pairs.csv": 'a,one\nb,"two"\n',
    "pairs.jsonl": '{"prompt": "a", "reference": "one", "id": 1}\n{"reference": "two", "prompt": "b"}\n',
}


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# what is read


@pytest.mark.parametrize("name", PAIR_FILES)
def test_the_suffix_tells_the_format(tmp_path: Path, name: str) -> None:
    assert read_examples(written(tmp_path, name, PAIR_FILES[name])) == EXPECTED
    assert read_examples(str(written(tmp_path, name.upper(), PAIR_FILES[name]))) == EXPECTED


@pytest.mark.parametrize("name", PAIR_FILES)
def test_blank_lines_crlf_a_byte_order_mark_and_a_missing_last_newline_change_nothing(
    tmp_path: Path, name: str
) -> None:
    content = "\n" + PAIR_FILES[name].replace("\n", "\n  \n").strip()
    assert read_examples(written(tmp_path, name, content.replace("\n", "\r\n"))) == EXPECTED
    assert read_examples(written(tmp_path, name, b"\xef\xbb\xbf" + content.encode())) == EXPECTED


def test_format_overrides_the_suffix(tmp_path: Path) -> None:
    assert read_examples(written(tmp_path, "pairs.data", PAIR_FILES["pairs.tsv"]), "tsv") == EXPECTED
    path = written(tmp_path, "pairs.txt", PAIR_FILES["pairs.txt"])
    assert read_examples(path, "text") == [Example("", PAIR_FILES["pairs.txt"])]


@pytest.mark.parametrize("content", ["no separator\n", "two||of||them\n", "\n\na tale\nof a||b\n"])
def test_a_txt_file_without_one_separator_in_its_first_line_is_plain_text(tmp_path: Path, content: str) -> None:
    assert read_examples(written(tmp_path, "tale.txt", content)) == [Example("", content)]


def test_e2e_sides_are_stripped(tmp_path: Path) -> None:
    assert read_examples(written(tmp_path, "a.txt", " a  || one . \n")) == [Example("a", "one .")]


def test_a_quote_is_an_ordinary_character_in_tsv(tmp_path: Path) -> None:
    path = written(tmp_path, "quotes.tsv", '"a\tsays "hi"\n')
    assert read_examples(path) == [Example('"a', 'says "hi"')]


def test_unusual_line_separators_stay_inside_a_cell(tmp_path: Path) -> None:
    path = written(tmp_path, "pairs.tsv", "a\u2028b\tone\x0ctwo\n")
    assert read_examples(path) == [Example("a\u2028b", "one\x0ctwo")]


def test_a_quoted_csv_cell_may_hold_commas_quotes_and_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "cells.csv", '"a, ""b""","one\ntwo"\nc,d\n')
    assert read_examples(path) == [Example('a, "b"', "one\ntwo"), Example("c", "d")]


def test_columns_choose_by_number_or_by_header_name(tmp_path: Path) -> None:
    path = written(tmp_path, "wide.tsv", "id\tlabel\ttext\n1\tgood\tfine film\n")
    assert read_examples(path, columns=("text", "label")) == [Example("fine film", "good")]
    assert read_examples(path, columns=(2, 1)) == [Example("text", "label"), Example("fine film", "good")]


def test_fields_choose_what_jsonl_gives(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"question": "why?", "answer": "so"}\n')
    assert read_examples(path, prompt_field="question", reference_field="answer") == [Example("why?", "so")]


# plain text


def text_of(path: Path, window: int | None) -> list[bytes]:
    examples = read_examples(path, "text", window=window)
    assert {example.prompt for example in examples} == {""}
    return [example.reference.encode() for example in examples]


@given(
    st.text(st.sampled_from("ab \n\r\té€😀"), min_size=1).filter(lambda text: text.strip()),
    st.integers(4, 40),
)
def test_windows_are_short_enough_and_joined_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory, text: str, window: int
) -> None:
    pieces = text_of(written(tmp_path_factory.getbasetemp(), "any.txt", text), window)
    assert b"".join(pieces) == text.encode()
    assert all(1 <= len(piece) <= window for piece in pieces)


def test_windows_end_at_paragraphs_then_lines_then_words_then_characters(tmp_path: Path) -> None:
    assert text_of(written(tmp_path, "a.md", "one two\n\nthree four\nfive"), 16)[0] == b"one two\n\n"
    assert text_of(written(tmp_path, "b.md", "one two three\nfour five"), 18)[0] == b"one two three\n"
    assert text_of(written(tmp_path, "c.md", "one two three four"), 12)[0] == b"one two "
    assert text_of(written(tmp_path, "d.md", "ééééé"), 5)[0] == "éé".encode()


def test_an_early_paragraph_end_does_not_make_a_short_window(tmp_path: Path) -> None:
    assert text_of(written(tmp_path, "a.md", "a\n\nbbbbbb cccc dddd"), 12)[0] == b"a\n\nbbbbbb "


def test_without_a_window_a_text_is_one_example(tmp_path: Path) -> None:
    assert text_of(written(tmp_path, "a.md", "one\n\ntwo\n"), None) == [b"one\n\ntwo\n"]


# what is refused: the message says what must hold, what came, and the line


def refused(path: Path, message: str, *args: Any, **settings: Any) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_examples(path, *args, **settings)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt is missing: no such file$"):
        read_examples(tmp_path / "nowhere.txt")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a directory: name one file in it"):
        read_examples(tmp_path)


@pytest.mark.parametrize("name", [*PAIR_FILES, "a.md"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    refused(written(tmp_path, name, ""), "the file is empty")


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_of_blank_lines_is_refused(tmp_path: Path, format: str) -> None:
    refused(written(tmp_path, "blank", " \n\n \r\n"), "the file must hold", format)


def test_a_header_without_rows_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", "prompt\treference\n")
    refused(path, "at least one pair to learn from, found none", columns=("prompt", "reference"))


def test_invalid_utf8_is_refused_by_line_and_offset(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", b"\xef\xbb\xbfa||one\nb||tw\xff\n")
    refused(path, r"line 2: the file must be UTF-8 text, got byte 0xff at offset 15")


@pytest.mark.parametrize("format", FORMATS)
def test_nul_is_refused_by_line_and_offset(tmp_path: Path, format: str) -> None:
    refused(written(tmp_path, "a", "a||one\nb\0"), "line 2: text must not contain NUL.*offset 8", format)


@pytest.mark.parametrize("escape", [r"\u0000", r"\ud800"])
def test_an_escaped_character_that_is_not_text_is_refused(tmp_path: Path, escape: str) -> None:
    path = written(tmp_path, "a.jsonl", f'\n{{"prompt": "a", "reference": "one{escape}"}}\n')
    refused(path, "line 2: the reference must be text, got an escaped NUL or lone surrogate")


@pytest.mark.parametrize(("name", "separator"), [("a.txt", "||"), ("a.tsv", "\t"), ("a.csv", ",")])
def test_a_line_with_no_or_two_separators_is_refused_by_number(tmp_path: Path, name: str, separator: str) -> None:
    first = f"a{separator}one\n\n"
    refused(written(tmp_path, name, first + "b two\n"), "line 3: expected .*, found (none|1)")
    refused(written(tmp_path, name, first + separator.join("bcd")), "line 3: expected .*, found (2|3)")


@pytest.mark.parametrize(("name", "separator"), [("a.txt", "||"), ("a.tsv", "\t"), ("a.csv", ",")])
def test_a_blank_side_is_refused_by_number(tmp_path: Path, name: str, separator: str) -> None:
    first = f"a{separator}one\n"
    refused(written(tmp_path, name, f"{first}{separator}two\n"), "line 2: the prompt must not be blank")
    refused(written(tmp_path, name, f"{first}b{separator} \n"), "line 2: the reference must not be blank")


def test_more_than_two_columns_are_refused_until_two_are_chosen(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", "a\tone\tx\n")
    refused(path, "line 1: expected 2 columns, found 3: name two of them in `columns`")
    assert read_examples(path, columns=(0, 1)) == [Example("a", "one")]


def test_rows_of_unequal_width_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", "a\tone\tx\nb\ttwo\n")
    refused(path, "line 2: expected 3 columns, found 2$", columns=(0, 1))


def test_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", "text\tlabel\nfine\tgood\n")
    refused(path, r"line 1: columns \(0, 2\) need 3 columns, found 2", columns=(0, 2))
    refused(path, "line 1: the header must name 'mark', got text, label", columns=("text", "mark"))


@pytest.mark.parametrize("columns", [(1, 1), (-1, 0), ("text", "text")])
def test_columns_that_are_not_two_are_refused(tmp_path: Path, columns: Any) -> None:
    path = written(tmp_path, "a.tsv", "text\tlabel\nfine\tgood\n")
    with pytest.raises(ValueError, match="columns must be two different columns"):
        read_examples(path, columns=columns)


def test_broken_csv_is_refused_by_the_line_where_the_row_starts(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", 'a,"one\ntwo"\nb,"never\nclosed\n')
    refused(path, "line 3: not valid CSV: unexpected end of data")


@pytest.mark.parametrize("line", ["{not json", "[" * 100_000, "9" * 5000])
def test_a_line_that_is_not_json_is_refused_by_number(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, "a.jsonl", PAIR_FILES["pairs.jsonl"] + line)
    refused(path, "line 3: expected one JSON object, got text that is not JSON")


def test_json_that_is_not_an_object_is_refused(tmp_path: Path) -> None:
    refused(written(tmp_path, "a.jsonl", '["a", "one"]'), "line 1: expected one JSON object, got list")


def test_a_field_that_is_missing_or_no_string_is_refused_with_the_fields_present(tmp_path: Path) -> None:
    missing = written(tmp_path, "a.jsonl", '{"prompt": "a", "answer": "one"}\n')
    refused(missing, "line 1: field 'reference' must be a string, got no such field; fields: prompt, answer")
    number = written(tmp_path, "b.jsonl", '{"prompt": 3, "reference": "one"}\n')
    refused(number, "line 1: field 'prompt' must be a string, got int; fields: prompt, reference")


def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    path = written(tmp_path, "a.parquet", "a||one\n")
    refused(path, r"cannot tell the format from the suffix '\.parquet'.*pass format, one of text, tsv")


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format must be one of text, tsv, csv, jsonl, e2e, .*wikisql, got 'xml'"):
        read_examples(written(tmp_path, "a.txt", "a||one\n"), "xml")


def test_a_window_smaller_than_a_character_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="window must be at least 4 bytes, one character, got 3"):
        read_examples(written(tmp_path, "a.md", "text"), window=3)


# real files


def test_the_real_e2e_file_is_read_whole() -> None:
    examples = read_examples(shared_data("e2e/valid.txt"))
    assert len(examples) == 4672
    assert len({example.prompt for example in examples}) == 547


def test_the_real_wikisql_file_gives_its_string_fields_and_refuses_the_others() -> None:
    path = shared_data("wikisql/dev.jsonl")
    examples = read_examples(path, prompt_field="question", reference_field="table_id")
    assert len(examples) == 8421
    first = json.loads(path.read_text(encoding="utf-8").split("\n", 1)[0])
    assert examples[0] == Example(first["question"], first["table_id"])
    got = "line 1: field 'sql' must be a string, got dict; fields: phase, table_id, question, sql"
    refused(path, got, prompt_field="question", reference_field="sql")


@pytest.mark.parametrize(
    ("name", "columns", "count"),
    [
        ("sst2/dev.tsv", ("sentence", "label"), 872),
        ("sst2/train-20000.tsv", ("sentence", "label"), 20_000),
        ("cola/dev.tsv", (3, 1), 1043),
        ("vader-movie-reviews/movieReviewSnippets_GroundTruth.txt", (2, 1), 10_605),
    ],
)
def test_real_tables_are_read_whole(name: str, columns: Any, count: int) -> None:
    examples = read_examples(shared_data(name), "tsv", columns=columns)
    assert len(examples) == count
    assert not any(set("\t\r\n") & set(example.prompt + example.reference) for example in examples)


def test_a_real_text_is_cut_without_loss_mostly_at_line_ends() -> None:
    path = shared_data("tinyshakespeare/input.txt")
    pieces = text_of(path, 128)
    assert b"".join(pieces) == path.read_bytes()
    assert max(map(len, pieces)) <= 128
    assert sum(piece.endswith(b"\n") for piece in pieces) > 0.9 * len(pieces)
