"""Reading of columns: what their values are, and what may be wrong with them."""

import math
import re
from datetime import date
from decimal import Decimal
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from polylosses.tune import tables

# Maximum number of one-hot columns per categorical column: its most frequent values, and one for all others.
MAX_CATEGORIES = 30

# Share of rows with values of their own from which on a text tells nothing about other rows.
ALL_DIFFERENT = 0.9

# Limit for numeric features: sums of squares stay finite.
LARGEST = 1e150

# Text that people read as a number and pandas does not: 0,12, 1,000, 1 000.5, 12 %, $5.
_NUMBER_LIKE = re.compile(r"[+-]?[$€£]? ?(\d{1,3}([,.' ]\d{3})+|\d+)([.,]\d+)? ?[%$€£]?")

_DATE = re.compile(
    r"(\d{4}([-/.])\d{1,2}\2\d{1,2}|\d{1,2}([-/.])\d{1,2}\3\d{4}|\d{1,2}/\d{1,2}/\d{2}"
    r"|\d{1,2}[ -][a-z]{3,9}\.?,?[ -]\d{2,4}|[a-z]{3,9}\.? \d{1,2},? \d{4})([ t]+\d{1,2}:\d{2}.*)?",
    re.IGNORECASE,
)


class Column(NamedTuple):
    """How a column of the features was read.

    Attributes:
        name: its name.
        read: ``"number"``, ``"text: 3 categories"``, ``"left out: ..."`` and the like.
        missing: how many of its values are missing.
        example: its first value that is not missing, as text.
        warning: what may be wrong with it, or what was changed; or nothing.
    """

    name: str
    read: str
    missing: int
    example: str
    warning: str


def read(column: pd.Series, most_categories: int | None = MAX_CATEGORIES) -> tuple[pd.Series, str, list[str]]:
    """The values of a column, floats or text, how it was read, and warnings.

    Of text, ``most_categories`` are told apart by what is trained; None for all.
    """
    if isinstance(column.dtype, pd.SparseDtype):
        column = pd.Series(np.asarray(column), column.index, name=column.name)
    if (odd := first_odd(column)) is not None:
        is_date = isinstance(column.iloc[odd], date | pd.Period)
        advice = _NO_DATES if is_date else "make columns of numbers or text of them"
        raise ValueError(f"column {column.name!r} has {described(column, odd)}: {advice}, or {_drop(column)}.")
    if is_number(column):
        return _in_range(column, pd.Series(as_floats(column), column.index, name=column.name)), "number", []
    if isinstance(column.dtype, pd.CategoricalDtype) or (found := tables.numbers(column)) is None:
        return _read_text(column, most_categories)
    floats, missing = found
    if not missing and column.dropna().map(lambda value: isinstance(value, str)).all():
        at = int(column.notna().argmax())
        raise ValueError(
            f"column {column.name!r} has numbers as text, such as {column.iloc[at]!r} ({place(column, at)}): turn it "
            f"into numbers (astype(float)), or, where they are names, into categories (astype('category')), "
            f"or {_drop(column)}."
        )
    warnings = [f"{text!r} is read as missing, in {rows} rows" for text, rows in missing.items()]
    return _in_range(column, floats), "number", warnings or ["some of the numbers are text"]


def _read_text(column: pd.Series, most_categories: int | None) -> tuple[pd.Series, str, list[str]]:
    codes, distinct = pd.factorize(column)
    raw = pd.Series(np.asarray(distinct, dtype=object)).map(str)
    text = raw.str.strip()
    rows = np.bincount(codes[codes >= 0], minlength=len(text))
    kinds = text[text != ""].nunique()
    warnings = []
    if not isinstance(column.dtype, pd.CategoricalDtype):
        present = ~text.str.lower().isin(tables.MISSING)
        total = rows[present].sum()
        number = pd.to_numeric(text, errors="coerce").notna() & present
        number_like = text.map(lambda value: _NUMBER_LIKE.fullmatch(value) is not None) & present
        dates = text.map(lambda value: _DATE.fullmatch(value) is not None)

        def first(wanted: pd.Series) -> str:
            at = int(np.isin(codes, np.flatnonzero(wanted)).argmax())
            return f"{short(column.iloc[at])!r} ({place(column, at)})"

        if total and (number | number_like)[present].all():
            raise ValueError(
                f"column {column.name!r} has numbers that can be read in several ways or not at all, such as "
                f"{first(number_like & ~number)}: write them like 1000 or 0.12, without signs for thousands, per cent "
                f"or currencies; or, for decimal commas in a text file, give decimal=',' (--decimal ,), "
                f"or {_drop(column)}."
            )
        if rows[dates].sum() > total / 2:
            raise ValueError(
                f"column {column.name!r} has dates, such as {first(dates)}: {_NO_DATES}, or {_drop(column)}."
            )
        if rows[number].sum() > total / 2:
            if kinds > MAX_CATEGORIES:
                raise ValueError(
                    f"column {column.name!r} has numbers, but also text, such as {first(~number & present)}: write "
                    f"numbers only, and leave what is missing empty, or {_drop(column)}."
                )
            warnings.append(f"numbers, but also text, such as {first(~number & present)}: read as text")
    if (padded := (raw != text) & (text != "")).any():
        warnings.append(f"spaces around values are removed, as in {raw[padded].iloc[0]!r}")
    how = f"text: {kinds} categor{'y' if kinds == 1 else 'ies'}"
    if most_categories is not None and kinds > most_categories:
        how += f", the {most_categories - 1} most frequent and one for all others"
    # The code of a missing value is -1.
    values = np.array([*text.where(text != "", None), None], dtype=object)[codes]
    return pd.Series(values, column.index, dtype=object, name=column.name), how, warnings


def tells_nothing(values: pd.Series) -> str:
    """Why a column tells nothing about other rows; empty if it may."""
    if values.dtype == float:
        steps = np.diff(values)
        if len(steps) > 1 and (steps > 0).all() and _is_whole(values):
            return "whole numbers that rise from row to row, as row numbers do; shuffle the rows to keep it"
        if len(steps) > 1 and (steps < 0).all() and _is_whole(values):
            return "whole numbers that fall from row to row, as row numbers do; shuffle the rows to keep it"
    elif (different := values.nunique()) >= ALL_DIFFERENT * len(values):
        return f"text with {different} different values in {len(values)} rows"
    return ""


def suspicions(values: pd.Series, indices: np.ndarray, classes: list[str], target: Any) -> list[str]:
    """What is doubtful about a feature; a copy of the labels is refused."""
    warnings = []
    # Most columns have too many values to look any further.
    if values.iloc[:1000].nunique() <= len(classes):
        codes, distinct = pd.factorize(values, use_na_sentinel=False)
        pairs = set(zip(codes.tolist(), indices.tolist(), strict=True))
        if len(distinct) == 1:
            warnings.append("the same in every row")
        elif len(distinct) == len(classes) == len(pairs):
            if all(_plain(distinct[code]) == classes[index] for code, index in pairs):
                raise ValueError(f"column {values.name!r} is a copy of the labels: {_drop(values)}.")
            warnings.append("each of its values belongs to one class: drop it if it is the label under another name")
    if target is not None and re.fullmatch(re.escape(str(target)) + r"\.\d+", str(values.name)):
        warnings.append(f"pandas calls a second column {target!r} so: drop it if it is the label")
    if values.dtype == float and values.iloc[:1000].is_unique and _is_whole(values) and values.is_unique:
        warnings.append("whole numbers that all differ: drop it if it is an ID")
    return warnings


def first_odd(column: pd.Series) -> int | None:
    """Position of the first value that is no number, text or boolean."""
    if isinstance(column.dtype, pd.CategoricalDtype | pd.StringDtype) or is_number(column):
        return None
    objects = column.astype(object)
    if pd.api.types.infer_dtype(objects, skipna=True) in ("string", "boolean", "empty"):
        return None
    plain = objects.map(lambda value: isinstance(value, str | Real | Decimal | np.bool_))
    odd = (objects.notna() & ~plain).to_numpy(bool)
    return int(odd.argmax()) if odd.any() else None


def is_number(column: pd.Series) -> bool:
    """Whether a column's values are numbers, of any type."""
    if pd.api.types.is_numeric_dtype(column):
        return not pd.api.types.is_complex_dtype(column)
    if isinstance(column.dtype, pd.CategoricalDtype | pd.StringDtype):
        return False
    kind = pd.api.types.infer_dtype(column, skipna=True)
    # Decimals among floats or integers are "mixed".
    return kind in ("integer", "floating", "mixed-integer-float", "decimal") or (
        kind in ("mixed", "mixed-integer")
        and bool(column.dropna().map(lambda value: isinstance(value, Real | Decimal)).all())
    )


def as_floats(column: pd.Series) -> np.ndarray:
    """The values of a column that :func:`is_number` is true of, nan where they are missing."""
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(dtype=float, na_value=np.nan)
    return np.array([math.nan if pd.isna(value) else float(value) for value in column])


def _in_range(column: pd.Series, floats: pd.Series) -> pd.Series:
    sizes = floats.abs()
    if sizes.max() > LARGEST:
        at = int(sizes.argmax())
        problem, advice = (
            ("infinite values", "replace them, or leave them empty")
            if np.isinf(sizes.iloc[at])
            else (f"values beyond {LARGEST:g}, whose squares overflow", "scale it down")
        )
        raise ValueError(
            f"column {column.name!r} has {problem}, such as {column.iloc[at]} ({place(column, at)}): {advice}."
        )
    return floats


def _is_whole(values: pd.Series) -> bool:
    # Most columns of other numbers are known by their first rows.
    return all(bool((part == np.floor(part)).all()) for part in (values.to_numpy()[:100], values.to_numpy()))


_NO_DATES = "turn them into the numbers that matter, such as the month, or the days since some day"


def _drop(column: pd.Series) -> str:
    return f"leave it out with drop=[{column.name!r}] (--drop {column.name})"


def described(column: pd.Series, at: int) -> str:
    """What kind of value is at a position, with the value and its place."""
    value = column.iloc[at]
    kind = "dates" if isinstance(value, date | pd.Period) else f"values of type {type(value).__name__}"
    return f"{kind}, such as {short(value)} ({place(column, at)})"


def place(column: pd.Series, at: int) -> str:
    """Where a value is: at a line, if the table was read from a file, else at a label of the index."""
    return f"{column.index.name or 'index'} {column.index[at]}"


def _plain(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def short(value: Any) -> str:
    """The beginning of a value as text, in one line."""
    text = " ".join((f"{value:.6g}" if isinstance(value, float) else str(value)).split())
    return text if len(text) <= 40 else f"{text[:40]}..."
