"""Reading tables: one table in every dialect, what is found and said, and the errors for files that are no tables."""

import csv
import gzip
import io
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from polylosses.tune import tables

ROWS = 150  # more than are looked at to find the dialect

TABLE = pd.DataFrame(
    {
        "größe": [1.5, -0.25, np.nan] * (ROWS // 3),
        "count": range(ROWS),
        "note": ["a, b; c\td|e", 'says "so"', "None", "NA", "ja", None] * (ROWS // 6),
        "label": ["yes", "no"] * (ROWS // 2),
    }
).astype({"note": object, "label": object})


def written(frame: pd.DataFrame, separator: str = ",", decimal: str = ".", newline: str = "\n", **options: Any) -> str:
    text = io.StringIO()
    frame.to_csv(text, index=False, sep=separator, decimal=decimal, lineterminator=newline, **options)
    return text.getvalue()


def read(tmp_path: Path, content: str | bytes, name: str = "table.csv", **options: Any) -> tables.Table:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tables.read(str(path), **options)


def same(found: pd.DataFrame, expected: pd.DataFrame) -> bool:
    # pandas 2 and 3 have different types of text.
    pd.testing.assert_frame_equal(
        found.astype(object).where(found.notna(), None).reset_index(drop=True),
        expected.astype(object).where(expected.notna(), None),
        check_column_type=False,
    )
    return True


@pytest.mark.parametrize("decimal", [".", ","])
@pytest.mark.parametrize(
    ("separator", "newline", "encoding", "name", "said"),
    [
        (",", "\n", "utf-8", "table.csv", "commas"),
        (";", "\r\n", "cp1252", "table.txt", "semicolons"),
        ("\t", "\n", "utf-8-sig", "table.tsv", "tabs"),
        ("|", "\n", "utf-16", "table", "vertical bars"),
        (" ", "\r\n", "utf-8", "table.csv.gz", "spaces"),
    ],
)
def test_a_table_is_the_same_in_every_dialect(
    tmp_path: Path, separator: str, newline: str, encoding: str, name: str, said: str, decimal: str
) -> None:
    frame = TABLE.assign(note=TABLE["note"].fillna("-")) if separator == " " else TABLE
    text = written(
        frame, separator, decimal, newline, na_rep='""' if separator == " " else "", quoting=csv.QUOTE_MINIMAL
    )
    text = text.replace('""""""', '""')
    content = text.encode(encoding)
    found, how = read(tmp_path, gzip.compress(content) if name.endswith(".gz") else content, name)
    assert same(found, frame)
    assert found.index.tolist() == list(range(2, ROWS + 2))
    assert found.index.name == "line"
    named = {"cp1252": "Windows-1252", "utf-8-sig": "UTF-8"}.get(encoding, encoding.upper())
    sign = "comma" if decimal == "," else "point"
    assert how[0] == f"separated by {said}, decimal {sign}, {named}, column names in the first line"


def test_what_is_given_is_not_sought(tmp_path: Path) -> None:
    content = "x;1,5~ö\ny;2,5~ö\n".encode("cp850")
    found, how = read(tmp_path, content, separator="~", decimal=",", encoding="cp850", header=False)
    assert found.to_numpy().tolist() == [["x;1,5", "ö"], ["y;2,5", "ö"]]
    assert found.columns.tolist() == ["column1", "column2"]
    assert how[0] == "separated by '~', decimal comma, cp850, no line of column names"
    assert read(tmp_path, "a\tb\n1\t2\n", separator="\\t").frame.columns.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "header"),
    [
        pytest.param("5.1,3.5,setosa\n4.9,3.0,setosa\n", False, id="numbers in the first line"),
        pytest.param("p,x,s\ne,x,s\np,b,y\n", False, id="text that is found again"),
        pytest.param("?,x,2\n1,y,3\n", False, id="a missing number is no name"),
        pytest.param("a,b,c\ne,x,s\np,z,y\n", True, id="text that is not found again"),
        pytest.param("label,0,1,2\n5,0,0,3\n7,1,2,2\n", True, id="text above numbers"),
        pytest.param("0,1,2\n0.5,7,red\n0.6,8,blue\n", True, id="as pandas calls columns"),
        pytest.param("a,b\n", True, id="nothing else"),
    ],
)
def test_the_header_is_known_by_what_is_below(tmp_path: Path, content: str, header: bool) -> None:
    found = read(tmp_path, content).frame
    assert found.columns.tolist() == (
        content.split("\n", 1)[0].split(",") if header else ["column1", "column2", "column3"]
    )
    assert len(found) == content.count("\n") - header


@pytest.mark.parametrize(
    ("column", "decimal"),
    [
        (["0,12", "3", "NA"], ","),
        (["1,500", "0,500"], ","),
        (["1,500", "12,500", "-123,500"], "."),  # they may be thousands
        (["1,5", "1,2,3"], "."),  # a list
        (["1.5", "2"], "."),
    ],
)
def test_decimal_commas_are_sought_in_whole_columns(tmp_path: Path, column: list[str], decimal: str) -> None:
    for other, expected in (("7", decimal), ("7.5", ".")):
        content = "a;b\n" + "".join(f"{value};{other}\n" for value in column)
        assert f"decimal {'comma' if expected == ',' else 'point'}" in read(tmp_path, content).how[0]


@pytest.mark.parametrize("before", [0, ROWS])
def test_among_numbers_na_is_missing_and_among_text_it_is_text(tmp_path: Path, before: int) -> None:
    rows = [["1", "1", "x"]] * before + [["2.5", "u", "NA"], ["NA", "None", "None"], ["?", "2", "?"], ["", "", ""]]
    found = read(tmp_path, "a,b,c\n" + "\n".join(map(",".join, rows)) + "\n").frame.iloc[before:]
    assert found["a"].dtype == float
    assert found["a"].tolist()[:1] == [2.5]
    assert found["a"].isna().tolist() == [False, True, True, True]
    assert found["b"].tolist()[:3] == ["u", "None", "2"]
    assert found["c"].tolist()[:3] == ["NA", "None", "?"]
    assert found[["b", "c"]].isna().to_numpy().tolist() == [[False, False]] * 3 + [[True, True]]


def test_every_row_knows_its_line(tmp_path: Path) -> None:
    content = 'a,b\n1,x\n\n2,"y\nz"\n   \n3,u\n'
    found = read(tmp_path, content).frame
    assert found.index.tolist() == [2, 5, 7]
    assert found["b"].tolist() == ["x", "y\nz", "u"]


def test_spaces_around_fields(tmp_path: Path) -> None:
    found = read(tmp_path, 'a , b,c\n1, "x, y", u\n2,"z",v\n').frame
    assert found.columns.tolist() == ["a", "b", "c"]
    assert found.to_numpy().tolist() == [[1, "x, y", "u"], [2, "z", "v"]]
    # As it is written with aligned columns.
    found = read(tmp_path, " x   y  label\n 1  2.5  a  \n10 -2.5  b\n").frame
    assert found.to_numpy().tolist() == [[1, 2.5, "a"], [10, -2.5, "b"]]


def test_nameless_columns(tmp_path: Path) -> None:
    found, how = read(tmp_path, ",a,\n7,1,\n8,2,\n")
    assert found.columns.tolist() == ["a", "Unnamed: 2"]
    assert how[-1] == "the first column has no name and no value twice: left out, as row numbers"
    found, how = read(tmp_path, ",a\n7,1\n7,2\n")
    assert found.columns.tolist() == ["Unnamed: 0", "a"]
    assert len(how) == 2


def test_ordinary_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The csv module takes longer than pandas; it is for files that are not plainly right."""
    monkeypatch.setattr(tables, "_count", lambda *_: pytest.fail("read line by line"))
    for notes in (["a, b"], ['"']):
        frame = TABLE.assign(note=notes * ROWS)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC):
            for end in ("", "\n", "\n\n"):
                text = written(frame, quoting=quoting).rstrip("\n") + end
                assert same(read(tmp_path, text).frame, frame)


def test_no_table_is_read_with_a_ragged_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random tables, against the csv module, which says how many fields a line has."""
    monkeypatch.setattr(tables, "_SAMPLE", 3)
    accepted = refused = 0
    for seed in range(300):
        rng = random.Random(seed)
        separator, newline, width = rng.choice(",;\t|"), rng.choice(["\n", "\r\n"]), rng.randint(2, 4)
        fields = [
            "a",
            "x y",
            "",
            " b",
            "7",
            "é",
            "None",
            f'"q{separator}r"',
            '"s""t"',
            ' "p"',
            'u"v',
            f'"m{newline}n"',
            '"',
        ]
        weights = [9, 4, 4, 2, 2, 1, 2, 4, 2, 3, 0.5, 0.3, 0.1]
        widths = [width if rng.random() < 0.93 else width + rng.choice([-1, 1]) for _ in range(rng.randint(1, 20))]
        lines = [separator.join(rng.choices(fields, weights, k=k)) for k in widths]
        text = newline.join([separator.join("abcd"[:width]), *lines]) + rng.choice(["", newline, 2 * newline])
        try:
            parsed = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
            rows = [row for row in parsed if len(row) > 1 or any(row)]
            even = all(len(row) == width for row in rows)
        except csv.Error:
            even = False
        if not even:
            with pytest.raises(ValueError, match=r"is ragged: line \d+|in the record of line \d+"):
                read(tmp_path, text, separator=separator, header=True)
            refused += 1
            continue
        found = read(tmp_path, text, separator=separator, header=True).frame
        for values, column in zip(zip(*rows[1:], strict=True), found.columns, strict=True):
            if not pd.api.types.is_numeric_dtype(found[column]):
                assert found[column].fillna("").tolist() == list(values), text
        accepted += 1
    assert min(accepted, refused) > 100


GOOD = "a,b\n" + "1,x\n2,y\n" * ROWS


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        pytest.param(
            GOOD + "1\n", {}, f"line {2 * ROWS + 2} has 1 fields and the first has 2, separated by commas", id="short"
        ),
        pytest.param(GOOD + "1,2,3\n" + GOOD, {}, f"line {2 * ROWS + 2} has 3 fields", id="long"),
        pytest.param("a,b\n1,2,3\n4,5,6\n", {}, "line 2 has 3 fields", id="short header"),
        pytest.param("a,b\n1,2\n\n3\n", {}, "line 4 has 1 fields", id="short, soon"),
        pytest.param(
            GOOD + '1,"x\n2,y\n', {}, f"a quote is not closed, in the record of line {2 * ROWS + 2}", id="quote"
        ),
        pytest.param('a,b\n1,"x\n2,y\n', {}, "a quote is not closed, in the record of line 2", id="quote, soon"),
        pytest.param("a, a,b\n1,2,3\n", {}, "two columns of .* are called 'a'.*that there is no header", id="twice"),
        pytest.param("a,a,b\n1,2,3\n", {"header": True}, "two columns of .* are called 'a': rename one.$", id="said"),
        pytest.param("", {}, "is empty", id="empty"),
        pytest.param("\n \n", {}, "is empty", id="blank"),
        pytest.param(
            "a\n1\n", {}, "has one column only: its first line, 'a', is split by none of tabs", id="one column"
        ),
        pytest.param(bytes(range(256)), {}, r"not UTF-8 text \(invalid start byte at byte 128\)", id="bytes"),
        pytest.param("a,b\n1,é\n".encode("cp1252"), {"encoding": "utf8"}, "is not utf8 text", id="other encoding"),
        pytest.param(b"a,b\n1,\x00\n", {}, "not text: line 2", id="zero byte"),
        pytest.param(GOOD, {"encoding": "klingon"}, "encoding 'klingon' is not known", id="no encoding"),
        pytest.param(GOOD, {"separator": "::"}, "separator must be one ASCII character.*'::'", id="long separator"),
        pytest.param(GOOD, {"decimal": "x"}, "decimal must be '.' or ','; got 'x'", id="decimal"),
        pytest.param(GOOD, {"sheet": "x"}, "is a text file, for which sheet='x' has no meaning", id="sheet"),
        pytest.param(b"PAR1" + GOOD.encode(), {}, "can't be read as Parquet", id="not Parquet"),
        pytest.param(b"PAR1", {"header": True}, "a Parquet file, for which header=True has no", id="Parquet header"),
        pytest.param(b"PK\3\4", {"decimal": ","}, "an Excel file, for which decimal=',' has no", id="Excel decimal"),
        pytest.param(gzip.compress(GOOD.encode())[:-9], {}, "can't be unpacked", id="truncated gzip"),
    ],
)
def test_what_is_no_table(tmp_path: Path, content: str | bytes, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        read(tmp_path, content, **options)
    assert "\n" not in str(error.value)
    assert "table.csv" in str(error.value) or {*options} & {"separator", "encoding", "decimal"}


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file nothing\.csv"):
        tables.read("nothing.csv")
    with pytest.raises(ValueError, match="is a directory"):
        tables.read(str(tmp_path))


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(b"a;b\n1;x\n"))))
    assert tables.read("-").frame.to_numpy().tolist() == [[1, "x"]]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a;b\n1\n")))
    with pytest.raises(ValueError, match="standard input is ragged: line 2"):
        tables.read("-")


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    TABLE.to_parquet(path)
    found, how = tables.read(str(path))
    assert same(found, TABLE)
    assert how == ["Parquet"]
    TABLE.set_index("count").to_parquet(path)
    found, how = tables.read(str(path))
    assert same(found, TABLE.drop(columns="count"))
    assert how[-1] == "its index, 'count', is left out"


def test_excel(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    path = tmp_path / "table.xlsx"
    when = pd.Timestamp("2020-01-02")
    sheet = [["a", "b", "c", "d", "e"], [1, "?", "NA", when, "1"], [2, 2.5, "x", when, "2"], [None, 3, None, when, "x"]]
    with pd.ExcelWriter(path) as book:
        pd.DataFrame(sheet).to_excel(book, sheet_name="data", index=False, header=False, startrow=3, startcol=1)
        TABLE.to_excel(book, sheet_name="more")
        pd.DataFrame([["a", "b", "a"], [1, 2, 3]]).to_excel(book, sheet_name="twice", index=False, header=False)
        pd.DataFrame().to_excel(book, sheet_name="empty", index=False)
    found, how = tables.read(str(path))
    assert how[0] == "Excel, sheet 'data' of 4, column names in row 4"
    assert found.index.tolist() == [5, 6, 7]
    assert found.index.name == "row"
    expected = {"a": [1, 2, None], "b": [None, 2.5, 3], "c": ["NA", "x", None], "d": [when] * 3, "e": ["1", "2", "x"]}
    assert same(found, pd.DataFrame(expected, dtype=object))
    assert found[["a", "b"]].dtypes.tolist() == [float, float]
    assert found["d"].dtype.kind == "M"
    more, how = tables.read(str(path), sheet="more")
    assert same(more, TABLE)
    assert how[-1].startswith("the first column has no name")
    for sheet_name, said in (
        ("twice", "called 'a'"),
        ("empty", "is empty"),
        ("x", "no sheet 'x': .* data, more, twice"),
    ):
        with pytest.raises(ValueError, match=said):
            tables.read(str(path), sheet=sheet_name)
    path.write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match="can't be read as Excel"):
        tables.read(str(path))


def test_excel_needs_openpyxl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(
        ImportError, match=r"table.xlsx is an Excel file, which needs openpyxl: pip install --upgrade openpyxl"
    ):
        read(tmp_path, b"PK\3\4", "table.xlsx")
