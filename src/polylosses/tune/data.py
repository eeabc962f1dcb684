"""Validation and encoding of data: features and class labels from a data set, a file or arrays."""

import math
import re
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
import sklearn.datasets
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from polylosses.tune import tables

BUNDLED = {
    "digits": sklearn.datasets.load_digits,
    "breast_cancer": sklearn.datasets.load_breast_cancer,
    "wine": sklearn.datasets.load_wine,
    "iris": sklearn.datasets.load_iris,
}

# Maximum number of one-hot columns per categorical column: its most frequent values, and one for all others.
MAX_CATEGORIES = 30

# Share of rows with values of their own from which on a text tells nothing about other rows.
ALL_DIFFERENT = 0.9

_MISSING = "(missing)"
_OTHER = "(other)"

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


class Checked(NamedTuple):
    """Data that can be used.

    Attributes:
        frame: the features, as float columns for numbers and text columns for everything else.
        labels: the class index of each row.
        classes: the names of the classes.
        columns: how each column of the given features was read, those left out too.
        notes: sentences about the table as a whole.
        rows: the positions of these rows in what was given, as some may be left out.
    """

    frame: pd.DataFrame
    labels: np.ndarray
    classes: list[str]
    columns: list[Column]
    notes: list[str]
    rows: np.ndarray


def load(
    source: str,
    target: str | None = None,
    *,
    separator: str | None = None,
    decimal: str | None = None,
    encoding: str | None = None,
    header: bool | None = None,
    sheet: str | None = None,
) -> tuple[pd.DataFrame, pd.Series]:
    """Load features and labels from a scikit-learn data set, or from a file.

    Args:
        source: ``digits``, ``breast_cancer``, ``wine``, ``iris``, or the path of a file: delimited text (.csv, .tsv,
            .txt, also with .gz), Parquet or Excel. ``-`` is standard input.
        target: for a file, the name of the label column; all other columns are features.
        separator, decimal, encoding, header, sheet: how to read the file, see :func:`polylosses.tune.tables.read`; by
            default this is found in it.

    Raises:
        ValueError: the file does not exist or is invalid, or ``target`` is missing or unknown.
        ImportError: for an Excel file, openpyxl is not installed.

    Example:
        >>> features, labels = load("iris")
        >>> features.shape, sorted(labels.unique())
        ((150, 4), ['setosa', 'versicolor', 'virginica'])
    """
    options = {"separator": separator, "decimal": decimal, "encoding": encoding, "header": header, "sheet": sheet}
    if source in BUNDLED:
        for name, value in {"--target": target, **options}.items():
            if value is not None:
                raise ValueError(f"{source} brings its own labels, so {name} {value} has no meaning: leave it out.")
        bunch = BUNDLED[source](as_frame=True)
        return bunch.data, bunch.target.map(lambda index: str(bunch.target_names[index]))
    if source != "-" and not Path(source).exists():
        raise ValueError(
            f"there is no file {source}, nor a bundled data set of that name: give {', '.join(BUNDLED)}, or the path "
            "of a file of text, Parquet or Excel."
        )
    return separate(
        tables.read(source, separator=separator, decimal=decimal, encoding=encoding, header=header, sheet=sheet),
        target,
        source,
    )


def separate(table: tables.Table, target: str | None, source: str) -> tuple[pd.DataFrame, pd.Series]:
    """Take a table that was read from ``source`` apart, into features and labels.

    Raises:
        ValueError: ``target`` is missing or unknown.
    """
    frame, how = table
    if target is None:
        raise ValueError(f"which column of {source} holds the labels? Add --target with one of: {_names(frame)}.")
    if target not in frame.columns:
        raise ValueError(
            f"{source} has no column {target!r}: give --target one of: {_names(frame)}. (Read as: {how[0]}. If it is "
            "not, say how with --separator, --header or the like.)"
        )
    if (frame.columns == target).sum() > 1:
        raise ValueError(f"two columns of {source} are called {target!r}: rename one.")
    return frame.drop(columns=target), frame[target]


def check(
    X: Any,
    y: Any,
    minimum_rows: int,
    *,
    drop: Sequence[str] = (),
    drop_missing_labels: bool = False,
    rare: str | None = None,
) -> Checked:
    """Validate features and labels, and say how they were read.

    Numbers of any type, decimals included, become floats; text and categories become text, without spaces around it.
    What has no right reading that is plain to see is refused: dates, lists, numbers as text, a copy of the labels. Two
    kinds of columns are left out: whole numbers that rise or fall from row to row, as row numbers do, since they tell
    where in the table a row stood, and in a table that is sorted by class this is its class; and text that differs in
    nearly all rows, such as names and IDs, since it tells nothing about other rows.

    Args:
        X: features, rows x features: a DataFrame, an array, a sparse matrix, or anything that
            :class:`pandas.DataFrame` accepts, with or without missing values.
        y: labels, one per row: text, integers or booleans.
        minimum_rows: minimum number of rows per class.
        drop: names of columns to leave out.
        drop_missing_labels: leave out rows without a label, rather than refuse them.
        rare: what to do with classes of fewer rows than that: ``"drop"`` leaves their rows out, ``"merge"`` makes one
            class of them all; by default they are refused.

    Raises:
        ValueError: the data are empty, inconsistent or not usable for classification.
    """
    if rare not in (None, "drop", "merge"):
        raise ValueError(f"rare must be 'drop' or 'merge', or left out; got {rare!r}.")
    frame, labels = _frame(X), _series(y)
    if len(frame) != len(labels):
        raise ValueError(f"X has {len(frame)} rows and y has {len(labels)}: they must be the same.")
    if len(frame) == 0:
        raise ValueError("there are no rows: give data with some rows of every class.")
    if frame.shape[1] == 0:
        raise ValueError("there are no features: give at least one column besides the labels.")
    names = pd.Index([str(name) for name in frame.columns])
    if names.has_duplicates:
        raise ValueError(f"two columns are called {names[names.duplicated()][0]!r}: rename one.")
    frame.columns = names
    drop = [drop] if isinstance(drop, str) else list(drop)
    if unknown := [name for name in drop if name not in names]:
        raise ValueError(f"there is no column {unknown[0]!r} to drop: give one or more of: {_names(frame)}.")

    kept, indices, classes, notes = _classes(labels, minimum_rows, drop_missing_labels, rare)
    if not kept.all():
        frame = frame[kept]
    used: dict[str, pd.Series] = {}
    columns = []
    problems = []
    for name in names:
        values = frame[name]
        how = "left out, as you asked"
        warnings: list[str] = []
        if name not in drop:
            try:
                values, how, warnings = _read(values)
                if reason := _tells_nothing(values):
                    how = f"left out: {reason}"
                else:
                    warnings += _suspicions(values, indices, classes, labels.name)
                    used[name] = values.reset_index(drop=True)
            except ValueError as error:
                problems.append(str(error).removesuffix("."))
        present = values.notna().to_numpy()
        example = _short(values.iloc[int(present.argmax())]) if present.any() else ""
        columns.append(Column(name, how, int((~present).sum()), example, "; ".join(warnings)))
    if problems:
        more = f"; and {len(problems) - 5} more columns" if len(problems) > 5 else ""
        raise ValueError(f"{'; '.join(problems[:5])}{more}.")
    if not used:
        raise ValueError(f"no features are left: {'; '.join(f'{one.name!r} is {one.read}' for one in columns[:3])}.")
    frame = pd.DataFrame({n: v if v.dtype == float else v.where(v.notna(), _MISSING) for n, v in used.items()})
    notes += _notes(frame, indices, classes)
    return Checked(frame, indices, classes, columns, notes, np.flatnonzero(kept))


def encoder(frame: pd.DataFrame) -> ColumnTransformer:
    """Transformer from checked features to numeric columns, to be fitted on training rows.

    Numbers: median imputation, then standardization. Text: one-hot encoding, with missing values as a category. The
    categories are those of all rows, so that every split gives the same columns.
    """
    numbers = [name for name in frame.columns if frame[name].dtype == float]
    text = [name for name in frame.columns if frame[name].dtype != float]
    one_hot = OneHotEncoder(
        categories=[np.unique(frame[name].to_numpy(object)) for name in text],
        max_categories=MAX_CATEGORIES,
        handle_unknown="infrequent_if_exist",
        sparse_output=False,
    )
    standardized = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    return ColumnTransformer([("numbers", standardized, numbers), ("text", one_hot, text)])


def _frame(X: Any) -> pd.DataFrame:
    if isinstance(X, pd.DataFrame):
        return X.infer_objects().copy(deep=False)
    if scipy.sparse.issparse(X):
        return pd.DataFrame(X.toarray())
    known = isinstance(X, np.ndarray | pd.Series) or not hasattr(X, "__array__")
    return pd.DataFrame(X if known else np.asarray(X)).infer_objects()


def _series(y: Any) -> pd.Series:
    if np.ndim(y) == 2:
        if np.shape(y)[1] != 1:
            raise ValueError(f"y has {np.shape(y)[1]} columns: give one label per row.")
        y = y.iloc[:, 0] if isinstance(y, pd.DataFrame) else np.ravel(y)
    return pd.Series(y)


def _classes(
    labels: pd.Series, minimum_rows: int, drop_missing: bool, rare: str | None
) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Which rows to keep, the class index of these, the names of the classes, and notes."""
    notes = []
    if (odd := _first_odd(labels)) is not None:
        raise ValueError(f"the labels have {_described(labels, odd)}: give one text, number or boolean a row.")
    if not _is_number(labels):
        text = labels.astype(object).map(str, na_action="ignore")
        labels = text.str.strip().replace("", None)
        if (padded := (text != labels) & labels.notna()).any():
            notes.append(f"Spaces around labels are removed, as in {text[padded].iloc[0]!r}.")
    missing = labels.isna().to_numpy()
    kept = ~missing
    if missing.any():
        found = f"{missing.sum()} of {len(labels)} labels are missing"
        if not drop_missing or missing.all():
            raise ValueError(
                f"{found}, the first at {_place(labels, int(missing.argmax()))}: label them, or leave those rows out "
                "with drop_missing_labels=True (--drop-missing-labels)."
            )
        notes.append(f"{found}: these rows are left out.")
        labels = labels[kept]
    indices, names = _encoded(labels)
    rows = np.bincount(indices)
    if len(names) == 1:
        raise ValueError(f"all {len(labels)} rows have the label {names[0]}: at least two classes are needed.")
    if doubtful := [i for i, name in enumerate(names) if name.lower() in tables.MISSING]:
        listed = ", ".join(f"{names[i]!r} ({rows[i]} rows)" for i in doubtful)
        notes.append(f"Taken as classes: {listed}. Where that stands for a missing label, leave the label empty.")
    few = rows < minimum_rows
    if few.any():
        listed = ", ".join(f"{names[i]} ({rows[i]} rows)" for i in np.flatnonzero(few)[:5])
        listed += ", ..." if few.sum() > 5 else ""
        if rare is None:
            raise ValueError(
                f"class {names[int(rows.argmin())]} has too few rows, {rows.min()}: the splits into training, "
                f"validation and test rows need {minimum_rows} of every class. Add rows, or give rare='drop' to leave "
                "out such classes, or rare='merge' to make one of them all (--rare drop, --rare merge)."
            )
        many = np.flatnonzero(~few)
        if rare == "drop" and len(many) < 2:
            raise ValueError(
                f"without the classes of fewer than {minimum_rows} rows, {listed}, less than two are left."
            )
        if rare == "merge" and (total := rows[few].sum()) < minimum_rows:
            raise ValueError(
                f"the classes of fewer than {minimum_rows} rows, {listed}, have {total} together: leave them out with "
                "rare='drop' (--rare drop)."
            )
        if rare == "merge" and not len(many):
            raise ValueError(f"all classes have fewer than {minimum_rows} rows: merged, they are one class.")
        renumbered = np.full(len(names), len(many))
        renumbered[many] = np.arange(len(many))
        names = [names[i] for i in many]
        if rare == "merge":
            notes.append(f"Classes of fewer than {minimum_rows} rows are merged into {_OTHER}: {listed}.")
            names.append(_OTHER)
            indices = renumbered[indices]
        else:
            notes.append(f"Classes of fewer than {minimum_rows} rows are left out: {listed}.")
            kept[np.flatnonzero(kept)[few[indices]]] = False
            indices = renumbered[indices[~few[indices]]]
    return kept, indices, names, notes


def _encoded(labels: pd.Series) -> tuple[np.ndarray, list[str]]:
    """The class index of each label, and the names of the classes."""
    values = labels.to_numpy(dtype=object)
    if _is_number(labels) and not pd.api.types.is_bool_dtype(labels):
        floats = _floats(labels)
        if np.isinf(floats).any():
            raise ValueError("the labels have infinite values: classes are needed; remove those rows, or label them.")
        decimals = floats != np.floor(floats)
        if decimals.any():
            at = int(decimals.argmax())
            raise ValueError(
                f"the labels are numbers with decimals, such as {floats[at]:g} ({_place(labels, at)}): classes are "
                "needed; for continuous values, make bins."
            )
        values = np.array([int(value) for value in values], dtype=object)
    found, indices = np.unique(values, return_inverse=True)
    return indices, [str(value) for value in found]


def _read(column: pd.Series) -> tuple[pd.Series, str, list[str]]:
    """The values of a column, floats or text, how it was read, and warnings."""
    if isinstance(column.dtype, pd.SparseDtype):
        column = pd.Series(np.asarray(column), column.index, name=column.name)
    if (odd := _first_odd(column)) is not None:
        is_date = isinstance(column.iloc[odd], date | pd.Period)
        advice = _NO_DATES if is_date else "make columns of numbers or text of them"
        raise ValueError(f"column {column.name!r} has {_described(column, odd)}: {advice}, or {_drop(column)}.")
    if _is_number(column):
        return _in_range(column, pd.Series(_floats(column), column.index, name=column.name)), "number", []
    if isinstance(column.dtype, pd.CategoricalDtype) or (found := tables.numbers(column)) is None:
        return _read_text(column)
    floats, missing = found
    if not missing and column.dropna().map(lambda value: isinstance(value, str)).all():
        at = int(column.notna().argmax())
        raise ValueError(
            f"column {column.name!r} has numbers as text, such as {column.iloc[at]!r} ({_place(column, at)}): turn it "
            f"into numbers (astype(float)), or, where they are names, into categories (astype('category')), "
            f"or {_drop(column)}."
        )
    warnings = [f"{text!r} is read as missing, in {rows} rows" for text, rows in missing.items()]
    return _in_range(column, floats), "number", warnings or ["some of the numbers are text"]


def _read_text(column: pd.Series) -> tuple[pd.Series, str, list[str]]:
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
            return f"{_short(column.iloc[at])!r} ({_place(column, at)})"

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
    if kinds > MAX_CATEGORIES:
        how += f", the {MAX_CATEGORIES - 1} most frequent and one for all others"
    # The code of a missing value is -1.
    values = np.array([*text.where(text != "", None), None], dtype=object)[codes]
    return pd.Series(values, column.index, dtype=object, name=column.name), how, warnings


def _tells_nothing(values: pd.Series) -> str:
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


def _suspicions(values: pd.Series, indices: np.ndarray, classes: list[str], target: Any) -> list[str]:
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


def _notes(frame: pd.DataFrame, indices: np.ndarray, classes: list[str]) -> list[str]:
    notes = []
    rows = pd.DataFrame({"features": pd.util.hash_pandas_object(frame, index=False), "label": indices})
    if copies := int(rows.duplicated().sum()):
        notes.append(
            f"{copies} of {len(frame)} rows are exact copies of an earlier row: a model may be tested on rows that it "
            "was trained on."
        )
    counts = np.bincount(indices)
    notes.append(
        f"The largest class, {classes[int(counts.argmax())]}, has {counts.max() / len(indices):.1%} of the rows, the "
        "accuracy of always guessing it."
    )
    return notes


def _first_odd(column: pd.Series) -> int | None:
    """Position of the first value that is no number, text or boolean."""
    if isinstance(column.dtype, pd.CategoricalDtype | pd.StringDtype) or _is_number(column):
        return None
    objects = column.astype(object)
    if pd.api.types.infer_dtype(objects, skipna=True) in ("string", "boolean", "empty"):
        return None
    plain = objects.map(lambda value: isinstance(value, str | Real | Decimal | np.bool_))
    odd = (objects.notna() & ~plain).to_numpy(bool)
    return int(odd.argmax()) if odd.any() else None


def _is_number(column: pd.Series) -> bool:
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


def _floats(column: pd.Series) -> np.ndarray:
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
            f"column {column.name!r} has {problem}, such as {column.iloc[at]} ({_place(column, at)}): {advice}."
        )
    return floats


def _is_whole(values: pd.Series) -> bool:
    # Most columns of other numbers are known by their first rows.
    return all(bool((part == np.floor(part)).all()) for part in (values.to_numpy()[:100], values.to_numpy()))


_NO_DATES = "turn them into the numbers that matter, such as the month, or the days since some day"


def _drop(column: pd.Series) -> str:
    return f"leave it out with drop=[{column.name!r}] (--drop {column.name})"


def _described(column: pd.Series, at: int) -> str:
    value = column.iloc[at]
    kind = "dates" if isinstance(value, date | pd.Period) else f"values of type {type(value).__name__}"
    return f"{kind}, such as {_short(value)} ({_place(column, at)})"


def _place(column: pd.Series, at: int) -> str:
    """Where a value is: at a line, if the table was read from a file, else at a label of the index."""
    return f"{column.index.name or 'index'} {column.index[at]}"


def _plain(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _short(value: Any) -> str:
    text = " ".join((f"{value:.6g}" if isinstance(value, float) else str(value)).split())
    return text if len(text) <= 40 else f"{text[:40]}..."


def _names(frame: pd.DataFrame) -> str:
    shown = ", ".join(map(str, frame.columns[:10]))
    return shown if len(frame.columns) <= 10 else f"{shown}, and {len(frame.columns) - 10} more"
