"""Reading of tables: delimited text in its usual dialects, Parquet and Excel, and what was found in them."""

import csv
import gzip
import io
import itertools
import re
import sys
import warnings
import zlib
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

# In order of preference where several fit: a text has commas and spaces more often than tabs and semicolons.
SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "vertical bars", ",": "commas", " ": "spaces"}

# Text that stands for a missing value in a column of numbers, in lower case.
MISSING = frozenset({"", "?", "na", "n/a", "#n/a", "#na", "<na>", "nan", "-nan", "null", "none"})

# The same for pandas, which tells cases apart.
_SPELLINGS = sorted({spelling for text in MISSING for spelling in (text, text.upper(), text.capitalize())} | {"NaN"})

_NUMBER = {sign: re.compile(rf"[+-]?(\d+[{sign}]?\d*|[{sign}]\d+)(e[+-]?\d+)? *", re.IGNORECASE) for sign in ".,"}

# Separator, header and decimal sign are found in the first lines.
_SAMPLE = 100


class Table(NamedTuple):
    """A table, and sentences on how it was read.

    Its index has the line of each row, or for Excel the row of the sheet, as they are counted from 1 in the file.
    """

    frame: pd.DataFrame
    how: list[str]


def read(
    source: str,
    *,
    separator: str | None = None,
    decimal: str | None = None,
    encoding: str | None = None,
    header: bool | None = None,
    sheet: str | None = None,
) -> Table:
    """Read a table from a file or from standard input.

    Parquet and Excel are known by their content or name, gzip by its content; anything else is read as text. What is
    not given is found in the text, and said.

    In columns of numbers, empty fields, ``NA`` and similar, and ``?`` are missing; elsewhere empty fields are. A first
    column without a name whose values all differ is left out, as row numbers.

    Args:
        source: the path of a file, or ``-`` for standard input.
        separator: the character between the fields of a text; ``" "`` for any number of spaces.
        decimal: the decimal sign of a text, ``"."`` or ``","``.
        encoding: the encoding of a text; by default UTF-8, UTF-16 with a byte order mark, or else Windows-1252.
        header: whether the first line has the names of the columns. If not, they are called ``column1``, ``column2``
            and so on.
        sheet: the name of the sheet of an Excel file; by default the first.

    Raises:
        ValueError: there is no such file, or it can't be read as a table.
        ImportError: for an Excel file, openpyxl is not installed.
    """
    name = "standard input" if source == "-" else source
    content = _content(source, name)
    dialect = {"separator": separator, "decimal": decimal, "encoding": encoding}
    if content.startswith(b"PAR1") or source.lower().endswith(".parquet"):
        _no_meaning(name, "a Parquet file", {**dialect, "header": header, "sheet": sheet})
        return _parquet(name, content)
    if content.startswith(b"PK\3\4") or source.lower().endswith(".xlsx"):
        _no_meaning(name, "an Excel file", dialect)
        return _excel(name, content, header, sheet)
    _no_meaning(name, "a text file", {"sheet": sheet})
    return _text(name, content, separator, decimal, encoding, header)


def numbers(column: pd.Series, decimal: str = ".") -> tuple[pd.Series, dict[str, int]] | None:
    """The numbers that a column of text has, and how often each text was taken for missing; None if any is no number.

    Example:
        >>> floats, missing = numbers(pd.Series(["1", "2.5", "?", "?"]))
        >>> floats.tolist(), missing
        ([1.0, 2.5, nan, nan], {'?': 2})
    """
    codes, distinct = pd.factorize(column)
    text = pd.Series(np.asarray(distinct, dtype=object)).map(str).str.strip()
    missing = text.str.lower().isin(MISSING)
    written = text.where(~missing)
    if decimal != ".":
        written = written.where(~written.str.contains(".", regex=False, na=False), "no number")
        written = written.str.replace(decimal, ".", regex=False)
    floats = pd.to_numeric(written, errors="coerce").astype(float)
    if missing.all() or (floats.isna() & ~missing).any():
        return None
    counts = np.bincount(codes[codes >= 0], minlength=len(text))
    # The code of a missing value is -1.
    values = np.append(floats.to_numpy(), np.nan)[codes]
    return pd.Series(values, column.index, name=column.name), dict(
        zip(text[missing], counts[missing].tolist(), strict=True)
    )


def _content(source: str, name: str) -> bytes:
    path = Path(source)
    if source != "-" and not path.exists():
        raise ValueError(f"there is no file {source}.")
    if path.is_dir():
        raise ValueError(f"{source} is a directory: give the path of a file.")
    try:
        content = sys.stdin.buffer.read() if source == "-" else path.read_bytes()
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{name} can't be unpacked: {_one_line(error)}.") from error
    except OSError as error:
        raise ValueError(f"{name} can't be read: {error.strerror}.") from error


def _no_meaning(name: str, kind: str, options: dict[str, Any]) -> None:
    for option, value in options.items():
        if value is not None:
            raise ValueError(f"{name} is {kind}, for which {option}={value!r} has no meaning: leave it out.")


def _text(
    name: str, content: bytes, separator: str | None, decimal: str | None, encoding: str | None, header: bool | None
) -> Table:
    if separator == "\\t":  # as typed in a shell
        separator = "\t"
    if separator is not None and (len(separator) != 1 or not separator.isascii() or separator in '"\r\n'):
        raise ValueError(f"separator must be one ASCII character, other than a quote; got {separator!r}.")
    if decimal not in (None, ".", ","):
        raise ValueError(f"decimal must be '.' or ','; got {decimal!r}.")
    content, encoding = _utf8(name, content, encoding)

    lines = list(itertools.islice(_open(content), _SAMPLE + 1))
    if not any(line.strip() for line in lines):
        raise ValueError(f"{name} is empty: a table starts with a line of column names.")
    # The last record may have more lines.
    cut = slice(None, -1 if len(lines) > _SAMPLE else None)
    if separator is None:
        separator = _separator([_rows(lines, one)[cut] for one in SEPARATORS])
    if separator is None:
        raise ValueError(
            f"{name} has one column only: its first line, {_short(lines[0])}, is split by none of "
            f"{', '.join(SEPARATORS.values())}. Give the separator."
        )
    rows = _rows(lines, separator)[cut]
    if not rows:
        # A quote is not closed, or the like.
        _count(name, content, separator, 0)
        raise ValueError(f"{name} has no rows.")
    width = len(rows[0])
    columns = list(zip(*(row for row in rows if len(row) == width), strict=True))
    if decimal is None:
        decimal = "," if _has_decimal_commas(columns) else "."
    sniffed = header is None
    if header is None:
        header = _has_header(columns, decimal)
    names = _names(name, rows[0], header, sniffed)

    numeric = {one for one, column in zip(names, columns, strict=True) if _is_number(column[header:], decimal)}
    frame = _body(name, content, separator, decimal, names, rows, header, numeric)
    for column in names:
        if not pd.api.types.is_numeric_dtype(frame[column]) and (found := numbers(frame[column], decimal)):
            frame[column] = found[0]
    how = [
        f"separated by {SEPARATORS.get(separator, repr(separator))}, decimal "
        f"{'comma' if decimal == ',' else 'point'}, {encoding}, "
        + ("column names in the first line" if header else "no line of column names"),
        "empty fields are missing, and so are NA, null and ? among numbers",
    ]
    return _without_row_names(frame, how)


def _body(
    name: str,
    content: bytes,
    separator: str,
    decimal: str,
    names: list[str],
    sample: Sequence[Sequence[str]],
    header: bool,
    numeric: Set[str],
) -> pd.DataFrame:
    """The frame, with the line of each row as its index; an error if a line has more or fewer fields than the first."""
    lines = None
    if any(len(row) != len(names) for row in sample):
        lines = _count(name, content, separator, len(names))
    try:
        frame = _parse(content, separator, decimal, names, header, numeric)
        # Further down they have text, and there NA and the like may be text too.
        if mixed := {one for one in numeric if not pd.api.types.is_numeric_dtype(frame[one])}:
            frame = _parse(content, separator, decimal, names, header, numeric - mixed)
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        _count(name, content, separator, len(names))
        raise ValueError(f"{name} can't be read as CSV: {_one_line(error)}.") from error
    if lines is None and _is_even(content, frame, separator, decimal, sample[0] if header else []):
        frame.index = pd.RangeIndex(1 + header, 1 + header + len(frame), name="line")
        return frame
    lines = _count(name, content, separator, len(names)) if lines is None else lines
    if len(lines) != len(frame) + header:
        raise ValueError(f"{name} can't be read as CSV: it has {len(lines)} records, and pandas finds {len(frame)}.")
    frame.index = pd.Index(lines[header:], name="line")
    return frame


def _parse(
    content: bytes, separator: str, decimal: str, names: list[str], header: bool, numeric: Set[str]
) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(
            io.BytesIO(content),
            sep=r"\s+" if separator == " " else separator,
            decimal=decimal,
            header=0 if header else None,
            names=names,
            index_col=False,
            keep_default_na=False,
            na_values={name: _SPELLINGS if name in numeric else [""] for name in names},
            skipinitialspace=True,
            low_memory=False,
        )


def _utf8(name: str, content: bytes, encoding: str | None) -> tuple[bytes, str]:
    """The text as UTF-8, and the name of its encoding."""
    if encoding is not None:
        candidates = [encoding]
    elif content.startswith((b"\xff\xfe", b"\xfe\xff")):
        candidates = ["UTF-16"]
    else:
        candidates = ["UTF-8", "Windows-1252"]
    problems = []
    for candidate in candidates:
        try:
            text = content.decode(candidate)
        except UnicodeError as error:
            problems.append(f"{error.reason} at byte {error.start}" if isinstance(error, UnicodeDecodeError) else error)
            continue
        except LookupError as error:
            raise ValueError(f"encoding {encoding!r} is not known: give utf-8, cp1252, utf-16 or the like.") from error
        if "\0" in text:
            line = text.count("\n", 0, text.index("\0")) + 1
            raise ValueError(f"{name} is not text: line {line} has a zero byte. (For UTF-16, give the encoding.)")
        if candidate != "UTF-8" or text.startswith("\ufeff"):
            content = text.removeprefix("\ufeff").encode()
        return content, candidate
    raise ValueError(f"{name} is not {candidates[0]} text ({problems[0]}): give its encoding, or save it as UTF-8.")


def _open(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), "utf-8", newline="")


def _reader(lines: Iterable[str], separator: str, *, strict: bool) -> Any:
    if separator == " ":
        lines = map(str.rstrip, lines)
    return csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=strict)


def _rows(lines: Sequence[str], separator: str) -> list[list[str]]:
    try:
        return [row for row in _reader(lines, separator, strict=False) if any(row) or len(row) > 1]
    except csv.Error:
        return []


def _separator(candidates: Sequence[Sequence[Sequence[str]]]) -> str | None:
    """The separator that splits most lines as it does the first."""
    even = [sum(len(row) == len(rows[0]) for row in rows) if rows and len(rows[0]) > 1 else 0 for rows in candidates]
    return list(SEPARATORS)[int(np.argmax(even))] if any(even) else None


def _has_decimal_commas(columns: Iterable[Sequence[str]]) -> bool:
    """Whether some column has numbers with a decimal comma, and none has one with a decimal point.

    A comma before three digits, as in ``1,000``, may as well group thousands.
    """
    fields = {field.strip() for column in columns for field in column[1:]}
    if any(re.fullmatch(r"[+-]?\d+\.\d+", field) for field in fields):
        return False
    for column in columns:
        values = {field.strip() for field in column[1:] if field.strip().lower() not in MISSING}
        if all(re.fullmatch(r"[+-]?\d+(,\d+)?(e[+-]?\d+)?", value, re.IGNORECASE) for value in values) and any(
            "," in value and not re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", value) for value in values
        ):
            return True
    return False


def _is_number(column: Sequence[str], decimal: str) -> bool:
    odd = [field for field in column if not _NUMBER[decimal].fullmatch(field)]
    return len(odd) < len(column) and all(field.strip().lower() in MISSING for field in odd)


def _has_header(columns: Sequence[Sequence[str]], decimal: str) -> bool:
    """Whether the first line has names.

    It has, if it has text above numbers. It has not, if one of its texts is found again in its column, or if it has
    numbers; except 0, 1, 2 and so on, as pandas calls columns.
    """
    first = [column[0].strip() for column in columns]
    if len(columns[0]) == 1:
        return True
    is_text = [not _is_number([field], decimal) and field.lower() not in MISSING for field in first]
    if any(text and _is_number(column[1:], decimal) for text, column in zip(is_text, columns, strict=True)):
        return True
    if any(text and column[0] in column[1:] for text, column in zip(is_text, columns, strict=True)):
        return False
    figures = [field for text, field in zip(is_text, first, strict=True) if not text and field]
    return any(figures == [str(i + start) for i in range(len(figures))] for start in (0, 1))


def _names(name: str, fields: Sequence[str], header: bool, sniffed: bool) -> list[str]:
    if not header:
        return [f"column{i}" for i in range(1, len(fields) + 1)]
    names = [field.strip() or f"Unnamed: {i}" for i, field in enumerate(fields)]
    # pandas would rename the second, and the labels could end up among the features.
    if twice := [one for one in names if names.count(one) > 1]:
        hint = ", or say that there is no header, if the first line has none" if sniffed else ""
        raise ValueError(f"two columns of {name} are called {twice[0]!r}: rename one{hint}.")
    return names


def _is_even(content: bytes, frame: pd.DataFrame, separator: str, decimal: str, header: Sequence[str]) -> bool:
    """Whether every line is surely one row, with as many fields as there are columns.

    pandas refuses lines with more fields, but fills up shorter ones. Where there are none of these, all separators are
    between fields or within a text. To count them is several times faster than to read the lines another time.
    """
    rows = len(frame) + bool(header)
    end = content[-1000:]
    lines = content.count(b"\n", 0, len(content) - len(end) + len(end.rstrip(b"\r\n"))) + 1
    if lines != rows or separator in (" ", decimal):
        return False
    within = sum(field.count(separator) for field in header)
    if b'"' in content:
        quotes = 0
        for _, column in frame.items():
            if not pd.api.types.is_numeric_dtype(column):
                for text, count in column.value_counts(sort=False).items():
                    within += count * str(text).count(separator)
                    quotes += str(text).count('"')
        # A quote too many may have made one text of two fields.
        if within and quotes:
            return False
    return content.count(separator.encode()) == rows * (frame.shape[1] - 1) + within


def _count(name: str, content: bytes, separator: str, width: int) -> list[int]:
    """The line of each record; an error for the first that has more or fewer fields than there are columns."""
    reader = _reader(_open(content), separator, strict=True)
    lines: list[int] = []
    try:
        for fields in reader:
            if len(fields) == width:
                lines.append(reader.line_num)
            elif width and (len(fields) > 1 or any(fields)):
                raise ValueError(
                    f"{name} is ragged: line {reader.line_num} has {len(fields)} fields and the first has {width}, "
                    f"separated by {SEPARATORS.get(separator, repr(separator))}. Fix the line, quote text that "
                    "contains a separator, or give another separator."
                )
    except csv.Error as error:
        start = lines[-1] + 1 if lines else 1
        problem = "a quote is not closed" if "unexpected end" in str(error) else _one_line(error)
        raise ValueError(f"{name} can't be read as CSV: {problem}, in the record of line {start}.") from error
    return lines


def _parquet(name: str, content: bytes) -> Table:
    try:
        frame = pd.read_parquet(io.BytesIO(content))
    # The only common base class of pyarrow's errors.
    except Exception as error:
        raise ValueError(f"{name} can't be read as Parquet: {_one_line(error)}.") from error
    how = ["Parquet"]
    if not isinstance(frame.index, pd.RangeIndex) or frame.index.name is not None:
        how.append(f"its index, {', '.join(map(repr, frame.index.names))}, is left out")
    return Table(frame.reset_index(drop=True), how)


def _excel(name: str, content: bytes, header: bool | None, sheet: str | None) -> Table:
    try:
        book = pd.ExcelFile(io.BytesIO(content), engine="openpyxl")
    except ImportError as error:
        raise ImportError(f"{name} is an Excel file, which needs openpyxl: pip install --upgrade openpyxl") from error
    # zipfile's, XML's and openpyxl's errors.
    except Exception as error:
        raise ValueError(f"{name} can't be read as Excel: {_one_line(error)}.") from error
    with book:
        sheets = [str(one) for one in book.sheet_names]
        if sheet is not None and sheet not in sheets:
            raise ValueError(f"{name} has no sheet {sheet!r}: give one of: {', '.join(sheets)}.")
        sheet = sheets[0] if sheet is None else sheet
        cells = pd.read_excel(book, sheet_name=sheet, header=None, keep_default_na=False, na_values=[""])
    cells = cells.dropna(how="all").dropna(axis=1, how="all")
    if cells.empty:
        raise ValueError(f"sheet {sheet!r} of {name} is empty: a table starts with a line of column names.")
    cells.index = pd.Index(cells.index + 1, name="row")
    top = cells.head(_SAMPLE).astype(object)
    text = top.map(str).where(top.notna(), "")
    sniffed = header is None
    if header is None:
        header = _has_header([text[column].tolist() for column in text.columns], ".")
    cells.columns = pd.Index(_names(name, text.iloc[0].tolist(), header, sniffed))
    frame = cells.iloc[int(header) :].infer_objects()
    for column in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[column]) and (found := numbers(frame[column])):
            frame[column] = found[0]
    how = [
        f"Excel, sheet {sheet!r}{'' if len(sheets) == 1 else f' of {len(sheets)}'}, "
        + (f"column names in row {cells.index[0]}" if header else "no row of column names"),
        "empty cells are missing, and so are NA, null and ? among numbers",
    ]
    return _without_row_names(frame, how)


def _without_row_names(frame: pd.DataFrame, how: list[str]) -> Table:
    first = frame.columns[0]
    if first == "Unnamed: 0" and frame[first].is_unique:
        frame = frame.drop(columns=first)
        how.append("the first column has no name and no value twice: left out, as row numbers")
    return Table(frame, how)


def _short(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
