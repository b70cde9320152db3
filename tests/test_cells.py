"""A cell names its row; a row is kept whole or not at all, and never made twice."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from lora_np.paper.cells import HEAD, Cell, Results, Row, as_parquet

CELL = Cell(seed=3).having({"rank": 4, "targets": ("a", 'b,"c')}, method="lora", rate=0.1 + 0.2)
ROWS = [
    Row(CELL, 12288.0, 3.5, 0.1 + 0.7, 1e-300, 0.5, -0.25, {"φ": [[0.1, 1.0]], "stages": 2}),
    Row(CELL.having(seed=4), loss=math.inf),
    Row(CELL.having(seed=5), loss=2.0),
]


def kept(path: Path, rows: list[Row] = ROWS) -> Results:
    results = Results.at(path)
    for row in rows:
        results.keep(row)
    return results


def test_rows_come_back_to_the_bit(tmp_path: Path) -> None:
    kept(tmp_path / "rows.csv")
    again = Results.at(tmp_path / "rows.csv").rows
    assert list(again.values()) == ROWS
    assert again[CELL].cell.with_settings == {"rank": 4, "targets": ("a", 'b,"c')}
    assert (tmp_path / "rows.csv").read_text().splitlines()[0] == ",".join(HEAD)


def test_wherever_a_row_is_cut_the_whole_ones_are_kept_and_it_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    kept(path)
    whole = path.read_bytes()
    begins = whole[:-1].rfind(b"\n") + 1
    for end in range(begins, len(whole)):
        path.write_bytes(whole[:end])
        results = Results.at(path)
        assert list(results.rows.values()) == ROWS[:2], end
        assert path.read_bytes() == whole[:begins]
        results.keep(ROWS[2])
        assert path.read_bytes() == whole
    assert whole.endswith(b"\n")


def test_a_row_is_kept_once_and_the_order_is_that_of_the_plan(tmp_path: Path) -> None:
    results = kept(tmp_path / "rows.csv", [*reversed(ROWS), ROWS[0]])
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 4
    results.in_order([row.cell for row in ROWS])
    assert (tmp_path / "rows.csv").read_bytes() == kept(tmp_path / "other.csv").path.read_bytes()


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for text in ("kind,task\n", "", "nothing"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"rows\.csv is of another version: its columns are not kind, task"):
            Results.at(path)
        assert path.read_text() == text


@pytest.mark.parametrize("damage", ["a,b\n", "\n", ROWS[1].line.decode().replace("inf", "many"), '"\n'], ids=repr)
def test_a_line_in_the_middle_that_is_no_row_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "rows.csv"
    kept(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], damage, *lines[2:]]))
    with pytest.raises(ValueError, match=r"rows\.csv, line 3 is no row .*: remove it, and it is made again"):
        Results.at(path)


def test_no_two_cells_have_one_name() -> None:
    cells = [CELL, *(CELL.having(**{key: value}) for key, value in (("seed", 4), ("steps", 7), ("side", "validation")))]
    cells += [CELL.having({"rank": 5}), CELL.having(rate=0.3), CELL.having(task="sql"), CELL.having(kind="scored")]
    assert len({cell.name for cell in cells}) == len(set(cells)) == len(cells)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"rate": math.nan}, "rate must be a positive number"),
        ({"side": "train"}, "side must be one of validation, test"),
    ],
    ids=str,
)
def test_a_cell_is_checked(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CELL.having(**change)


def test_parquet_holds_the_same_table(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    as_parquet(ROWS, tmp_path / "rows.parquet")
    table = parquet.read_table(tmp_path / "rows.parquet").to_pydict()
    assert tuple(table) == HEAD
    assert table["loss"] == [0.1 + 0.7, math.inf, 2.0]
    assert table["trained"] == [12288.0, None, None]
    assert table["seed"] == [3, 4, 5]


def test_parquet_without_its_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="Parquet needs the pyarrow package: pip install pyarrow"):
        as_parquet(ROWS, tmp_path / "rows.parquet")
    assert not (tmp_path / "rows.parquet").exists()
