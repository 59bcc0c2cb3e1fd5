"""Text files: every good line is kept, every bad one is reported with the line it began on."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keek_server.errors import SetupError
from keek_training.datasets import text
from keek_training.datasets.raw import RawTable
from keek_training.datasets.text import read_csv, read_split


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file.csv"


def _read(file: Path, content: str | bytes) -> RawTable:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_csv(file, ["a", "b"])


def _rows(raw: RawTable) -> list[tuple[int, str, str]]:
    return list(zip(raw.lines.tolist(), raw.table["a"].to_pylist(), raw.table["b"].to_pylist(), strict=True))


def _problems(raw: RawTable) -> list[tuple[int, str]]:
    assert all(problem.file == raw.file for problem in raw.problems)
    return [(problem.line, problem.reason) for problem in raw.problems]


def test_rows_know_their_lines(file: Path) -> None:
    raw = _read(file, "a,b\n1,2\n3,4\n")
    assert _rows(raw) == [(2, "1", "2"), (3, "3", "4")]
    assert raw.problems == []


def test_columns_are_found_by_name_and_others_are_left_out(file: Path) -> None:
    raw = _read(file, "x, b ,x,a\n1,2,3,4\n")
    assert _rows(raw) == [(2, "4", "2")]
    assert raw.table.column_names == ["a", "b"]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_any_end_of_line_counts_one_line(file: Path, newline: str) -> None:
    raw = _read(file, newline.join(["a,b", "1,2", "", "3", "4,5", ""]))
    assert _rows(raw) == [(2, "1", "2"), (5, "4", "5")]
    assert _problems(raw) == [(4, "1 columns where 2 are expected")]


def test_a_byte_order_mark_is_no_part_of_the_first_name(file: Path) -> None:
    assert _rows(_read(file, b"\xef\xbb\xbfa,b\n1,2\n")) == [(2, "1", "2")]


def test_a_line_with_too_many_columns_is_reported_and_the_others_are_kept(file: Path) -> None:
    raw = _read(file, "a,b\n1,2\n1,2,3\n4,5\n")
    assert _rows(raw) == [(2, "1", "2"), (4, "4", "5")]
    assert _problems(raw) == [(3, "3 columns where 2 are expected")]


def test_what_is_not_utf8_is_reported(file: Path) -> None:
    raw = _read(file, b"a,b\n1,\xff\n\xc3\xa9,4\n")
    assert _rows(raw) == [(3, "é", "4")]
    assert _problems(raw) == [(2, "not valid UTF-8")]


def test_a_nul_byte_is_reported(file: Path) -> None:
    raw = _read(file, b"a,b\n1,\x00\n3,4\n")
    assert _rows(raw) == [(3, "3", "4")]
    assert _problems(raw) == [(2, "a NUL byte")]


def test_a_newline_within_quotes_moves_the_lines_behind_it(file: Path) -> None:
    raw = _read(file, 'a,b\n"one\ntwo\n",2\n3\n"4","5"\n')
    assert _rows(raw) == [(2, "one\ntwo\n", "2"), (6, "4", "5")]
    assert _problems(raw) == [(5, "1 columns where 2 are expected")]


def test_a_quote_that_is_never_closed_costs_its_own_line_alone(file: Path) -> None:
    raw = _read(file, 'a,b\n1,2\n"3,4\n5,6\n7,8\n')
    assert _rows(raw) == [(2, "1", "2"), (4, "5", "6"), (5, "7", "8")]
    assert [line for line, _ in _problems(raw)] == [3]


def test_a_stray_quote_does_not_join_lines_up_to_the_next_one(file: Path) -> None:
    raw = _read(file, 'a,b\n"1,2\n3,4\n5,"6"\n7,8\n')
    assert _rows(raw) == [(3, "3", "4"), (4, "5", "6"), (5, "7", "8")]
    assert [line for line, _ in _problems(raw)] == [2]


def test_a_quoted_field_of_very_many_lines_is_an_unclosed_quote(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "_MAX_RECORD_LINES", 3)
    raw = _read(file, 'a,b\n"1\n2\n3",4\n"5\n6\n7\n8,9\n"10",11\n')
    assert _rows(raw) == [(2, "1\n2\n3", "4"), (8, "8", "9"), (9, "10", "11")]
    assert [line for line, _ in _problems(raw)] == [5, 6, 7]


def test_a_missing_column_is_named(file: Path) -> None:
    with pytest.raises(SetupError, match=r"file\.csv lacks the column b; it has a, c"):
        _read(file, "a,c\n1,2\n")


def test_a_column_that_occurs_twice_is_named(file: Path) -> None:
    with pytest.raises(SetupError, match="has the column b twice"):
        _read(file, "a,b,b\n1,2,3\n")


def test_an_empty_file_says_which_header_it_lacks(file: Path) -> None:
    with pytest.raises(SetupError, match="a header with a, b is expected"):
        _read(file, "")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"cannot read .*nothing\.csv: No such file"):
        read_csv(tmp_path / "nothing.csv", ["a"])


def test_a_header_alone_is_a_table_without_rows(file: Path) -> None:
    assert _rows(_read(file, "a,b\n")) == []
    assert _rows(_read(file, "a,b")) == []


def test_split_files_keep_their_lines_and_report_odd_ones(file: Path) -> None:
    file.write_bytes("1::Am\xe9lie\n\n2\n3::\x85 \u2028\n".encode("utf-8"))
    raw = read_split(file, ["a", "b"], "::")
    assert _rows(raw) == [(1, "1", "Amélie"), (4, "3", "\x85 \u2028")]
    assert _problems(raw) == [(3, "1 columns where 2 are expected")]


def test_split_files_may_be_latin_1(file: Path) -> None:
    file.write_bytes("1::Am\xe9lie\r\n".encode("latin-1"))
    assert _rows(read_split(file, ["a", "b"], "::")) == [(1, "1", "Amélie")]


# Surrogates are no text, and a NUL is a problem of its own.
_field = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(_field, _field), max_size=12), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_whatever_is_written_is_read_back(file: Path, rows: list[tuple[str, str]], quoting: int) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written, quoting=quoting)
    writer.writerows([("a", "b"), *rows])
    raw = _read(file, written.getvalue())
    assert raw.problems == []
    assert [(a, b) for _, a, b in _rows(raw)] == rows
    physical = io.StringIO(written.getvalue(), newline="").readlines()
    for (line, a, b), following in zip(_rows(raw), [*raw.lines.tolist()[1:], None], strict=False):
        record = "".join(physical[line - 1 : following - 1 if following else None])
        assert next(csv.reader(io.StringIO(record, newline=""), strict=True)) == [a, b]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(["1,2", "é,ü", "", "1", "1,2,3", "\udcff,1", " 1 , 2 ", "3,4\r5,6"]), max_size=12
    )
)
def test_the_fast_and_the_careful_way_agree(file: Path, lines: list[str]) -> None:
    plain = "\n".join(["a,b", *lines]).encode(errors="surrogateescape")
    fast = _read(file, plain)
    # Quotes in a line of their own kind send the whole file the careful way.
    careful = _read(file, plain + b'\n"",""\n')
    assert _rows(careful)[:-1] == _rows(fast)
    assert _problems(careful) == _problems(fast)
