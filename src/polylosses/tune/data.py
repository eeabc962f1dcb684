"""Validation and encoding of data: features and class labels from a data set, a file or arrays."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
import sklearn.datasets
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from polylosses.tune import tables
from polylosses.tune.columns import (
    MAX_CATEGORIES,
    Column,
    as_floats,
    described,
    first_odd,
    is_number,
    place,
    read,
    short,
    suspicions,
    tells_nothing,
)

BUNDLED = {
    "digits": sklearn.datasets.load_digits,
    "breast_cancer": sklearn.datasets.load_breast_cancer,
    "wine": sklearn.datasets.load_wine,
    "iris": sklearn.datasets.load_iris,
}

# In GB, for sparse matrices.
LARGEST_DENSE = 2.0

_MISSING = "(missing)"
_OTHER = "(other)"


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
    most_categories: int | None = MAX_CATEGORIES,
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
        most_categories: of a text column, that are told apart, as is said of it; None for all.

    Raises:
        ValueError: the data are empty, inconsistent or not usable for classification.
    """
    if rare not in (None, "drop", "merge"):
        raise ValueError(f"rare must be 'drop' or 'merge', or left out; got {rare!r}.")
    frame, labels = _frame(X), series(y)
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

    kept, indices, classes, notes = classes_of(labels, minimum_rows, drop_missing_labels, rare)
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
                values, how, warnings = read(values, most_categories)
                if reason := tells_nothing(values):
                    how = f"left out: {reason}"
                else:
                    warnings += suspicions(values, indices, classes, labels.name)
                    used[name] = values.reset_index(drop=True)
            except ValueError as error:
                problems.append(str(error).removesuffix("."))
        present = values.notna().to_numpy()
        example = short(values.iloc[int(present.argmax())]) if present.any() else ""
        columns.append(Column(name, how, int((~present).sum()), example, "; ".join(warnings)))
    if problems:
        more = f"; and {len(problems) - 5} more columns" if len(problems) > 5 else ""
        raise ValueError(f"{'; '.join(problems[:5])}{more}.")
    if not used:
        raise ValueError(f"no features are left: {'; '.join(f'{one.name!r} is {one.read}' for one in columns[:3])}.")
    frame = pd.DataFrame({n: v if v.dtype == float else v.where(v.notna(), _MISSING) for n, v in used.items()})
    notes += _notes(frame, indices, classes)
    return Checked(frame, indices, classes, columns, notes, np.flatnonzero(kept))


class Encoded(NamedTuple):
    """The features as numbers, encoded once for all splits; what depends on the training rows is left to them.

    Attributes:
        numbers: the number columns, rows x columns, float64, nan where missing.
        categories: one-hot columns of the text columns, rows x categories, uint8. A missing value is a category, and
            rare ones of a column are one, so that it has at most ``MAX_CATEGORIES``.
        names: the names of all these columns, in order.
    """

    numbers: np.ndarray
    categories: np.ndarray
    names: list[str]

    def split(self, train: np.ndarray, scored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The features of training rows and of rows to score, rows x columns, float32.

        Missing numbers are the median of the training rows; numbers are standardized by these.
        """
        standardized = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
        fitted = standardized.fit_transform(self.numbers[train]) if self.numbers.shape[1] else self.numbers[train]
        other = standardized.transform(self.numbers[scored]) if self.numbers.shape[1] else self.numbers[scored]
        return self._joined(fitted, train), self._joined(other, scored)

    def _joined(self, numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.concatenate([numbers, self.categories[rows]], axis=1, dtype=np.float32, casting="same_kind")


def encode(frame: pd.DataFrame) -> Encoded:
    """Checked features as numbers."""
    numbers = [name for name in frame.columns if frame[name].dtype == float]
    text = [name for name in frame.columns if frame[name].dtype != float]
    categories, names = np.zeros((len(frame), 0), np.uint8), list[str]()
    if text:
        one_hot = OneHotEncoder(
            max_categories=MAX_CATEGORIES,
            handle_unknown="infrequent_if_exist",
            sparse_output=False,
            dtype=np.uint8,
        )
        categories = one_hot.fit_transform(frame[text].to_numpy(object))
        names = one_hot.get_feature_names_out(text).tolist()
    return Encoded(frame[numbers].to_numpy(float), categories, [*numbers, *names])


def _frame(X: Any) -> pd.DataFrame:
    if isinstance(X, pd.DataFrame):
        return X.infer_objects().copy(deep=False)
    if scipy.sparse.issparse(X):
        size = X.shape[0] * X.shape[1] * X.dtype.itemsize / 1e9
        if size > LARGEST_DENSE:
            raise ValueError(
                f"X is sparse, {X.shape[0]} rows x {X.shape[1]} columns. Models take a dense table, here of "
                f"{size:.1f} GB, more than {LARGEST_DENSE:g}: give fewer columns, such as those of a TruncatedSVD."
            )
        return pd.DataFrame(X.toarray())
    known = isinstance(X, np.ndarray | pd.Series) or not hasattr(X, "__array__")
    return pd.DataFrame(X if known else np.asarray(X)).infer_objects()


def series(y: Any) -> pd.Series:
    """Labels as a series.

    Raises:
        ValueError: there are several columns.
    """
    if np.ndim(y) == 2:
        if np.shape(y)[1] != 1:
            raise ValueError(f"y has {np.shape(y)[1]} columns: give one label per row.")
        y = y.iloc[:, 0] if isinstance(y, pd.DataFrame) else np.ravel(y)
    return pd.Series(y)


def group_numbers(groups: Any, total: int, rows: np.ndarray) -> np.ndarray:
    """The groups of ``rows``, as numbers; ``total`` is the number of rows before any were left out.

    Raises:
        ValueError: there is not one group for each row.
    """
    if np.ndim(groups) != 1:
        raise ValueError(f"groups must be an array of one value per row; got {np.ndim(groups)} dimensions.")
    if len(groups) != total:
        raise ValueError(f"groups has {len(groups)} values and y has {total}: they must be the same.")
    given = pd.Series(groups).iloc[rows]
    numbers, _ = pd.factorize(given.map(lambda group: (group.strip() or None) if isinstance(group, str) else group))
    missing = numbers < 0
    if missing.any():
        first = f"{given.index.name or 'index'} {given.index[int(missing.argmax())]}"
        raise ValueError(
            f"{missing.sum()} of {len(rows)} groups are missing, the first at {first}: give every row a group, such as "
            "one of its own."
        )
    return np.asarray(numbers)


def classes_of(
    labels: pd.Series, minimum_rows: int, drop_missing: bool = False, rare: str | None = None
) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Which rows to keep, the class index of these, the names of the classes, and notes."""
    notes = []
    if (odd := first_odd(labels)) is not None:
        raise ValueError(f"the labels have {described(labels, odd)}: give one text, number or boolean a row.")
    if not is_number(labels):
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
                f"{found}, the first at {place(labels, int(missing.argmax()))}: label them, or leave those rows out "
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
    if is_number(labels) and not pd.api.types.is_bool_dtype(labels):
        floats = as_floats(labels)
        if np.isinf(floats).any():
            raise ValueError("the labels have infinite values: classes are needed; remove those rows, or label them.")
        decimals = floats != np.floor(floats)
        if decimals.any():
            at = int(decimals.argmax())
            raise ValueError(
                f"the labels are numbers with decimals, such as {floats[at]:g} ({place(labels, at)}): classes are "
                "needed; for continuous values, make bins."
            )
        values = np.array([int(value) for value in values], dtype=object)
    found, indices = np.unique(values, return_inverse=True)
    return indices, [str(value) for value in found]


def _notes(frame: pd.DataFrame, indices: np.ndarray, classes: list[str]) -> list[str]:
    notes = []
    rows = pd.DataFrame({"features": pd.util.hash_pandas_object(frame, index=False), "label": indices})
    if copies := int(rows.duplicated().sum()):
        notes.append(
            f"{copies} of {len(frame)} rows are exact copies of an earlier row: a model may be tested on rows that it "
            "was trained on."
        )
    counts = np.bincount(indices)
    share = 100 * counts.max() / len(indices)
    notes.append(
        f"The largest class, {classes[int(counts.argmax())]}, has {share:.1f} % of the rows, the accuracy of always "
        "guessing it."
    )
    return notes


def _names(frame: pd.DataFrame) -> str:
    shown = ", ".join(map(str, frame.columns[:10]))
    return shown if len(frame.columns) <= 10 else f"{shown}, and {len(frame.columns) - 10} more"
