"""Queries of WikiSQL in their parts: the same whatever order and case, and every swapped part is found."""

from __future__ import annotations

import pytest

from lora_np.tasks.queries import read_query, wrong_parts

REFERENCE = "SELECT COUNT(col5) FROM table WHERE col1 = 'Butler CC (KS)' AND col0 > 2"


@pytest.mark.parametrize(
    "text",
    [
        REFERENCE,
        "select count(col5)  from table where col1 = 'butler cc (ks)' and col0 > 2",
        "SELECT COUNT(col5) FROM table WHERE col0 > 2 AND col1 = 'Butler CC (KS)'",
        "SELECT COUNT(col5) FROM table WHERE col0 > '2' AND col1 = 'Butler CC (KS)'",
    ],
)
def test_order_case_white_space_and_quotes_around_a_number_make_no_other_query(text: str) -> None:
    assert wrong_parts(REFERENCE, text) == ()


WRONG = {
    "SELECT SUM(col5) FROM table WHERE col1 = 'Butler CC (KS)' AND col0 > 2": ("aggregate",),
    "SELECT col5 FROM table WHERE col1 = 'Butler CC (KS)' AND col0 > 2": ("aggregate",),
    "SELECT COUNT(col4) FROM table WHERE col1 = 'Butler CC (KS)' AND col0 > 2": ("selected column",),
    "SELECT COUNT(col5) FROM table WHERE col2 = 'Butler CC (KS)' AND col0 > 2": ("columns of conditions",),
    "SELECT COUNT(col5) FROM table WHERE col1 = 'Butler CC (KS)' AND col0 < 2": ("comparisons and values",),
    "SELECT COUNT(col5) FROM table WHERE col1 = 'Butler' AND col0 > 2": ("comparisons and values",),
    "SELECT COUNT(col5) FROM table WHERE col0 = 'Butler CC (KS)' AND col1 > 2": ("pairs of conditions",),
    "SELECT COUNT(col5) FROM table WHERE col1 = 'Butler CC (KS)'": ("columns of conditions", "comparisons and values"),
    "SELECT COUNT(col5) FROM table": ("columns of conditions", "comparisons and values"),
    "SELECT COUNT(col5) FROM table WHERE col1 = 'Butler CC (KS)' AND ": ("no query",),
    "SELECT COUNT(col5) FROM table WHERE col1 = 'Butler": ("no query",),
    "SELECT COUNT(col5) FROM table WHERE ": ("no query",),
    "How many?": ("no query",),
    "": ("no query",),
}


@pytest.mark.parametrize(("text", "wrong"), WRONG.items())
def test_a_swapped_part_is_no_match_and_is_named(text: str, wrong: tuple[str, ...]) -> None:
    assert wrong_parts(REFERENCE, text) == wrong


def test_columns_have_any_name_and_values_any_text() -> None:
    query = read_query("SELECT No. in series FROM table WHERE Title (1) = 'Tom''s AND > dog' AND Rank < -3.5")
    assert query is not None
    assert (query.aggregate, query.column) == ("", "no. in series")
    assert query.conditions == (("rank", "<", "-3.5"), ("title (1)", "=", "tom's and > dog"))


def test_a_reference_that_is_no_query_is_refused() -> None:
    with pytest.raises(ValueError, match="the reference is no query: nothing"):
        wrong_parts("nothing", REFERENCE)
