"""Loading, validation and encoding of data: features and class labels from a data set, a file or arrays."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn.datasets
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

BUNDLED = {
    "digits": sklearn.datasets.load_digits,
    "breast_cancer": sklearn.datasets.load_breast_cancer,
    "wine": sklearn.datasets.load_wine,
    "iris": sklearn.datasets.load_iris,
}

# Maximum number of one-hot columns per categorical column: its most frequent values, and one for all others.
MAX_CATEGORIES = 30

_MISSING = "(missing)"

# Limit for numeric features: sums of squares stay finite.
LARGEST = 1e150


def load(source: str, target: str | None = None) -> tuple[pd.DataFrame, pd.Series]:
    """Load features and labels from a scikit-learn data set, or from a CSV or Parquet file.

    Args:
        source: ``digits``, ``breast_cancer``, ``wine``, ``iris``, or the path of a file. A CSV file is comma-separated
            UTF-8 text with a header line; a first column without a name is treated as row numbers and dropped.
        target: for a file, the name of the label column; all other columns are features.

    Raises:
        ValueError: the file does not exist or is invalid, or ``target`` is missing or unknown.

    Example:
        >>> features, labels = load("iris")
        >>> features.shape, sorted(labels.unique())
        ((150, 4), ['setosa', 'versicolor', 'virginica'])
    """
    if source in BUNDLED:
        if target is not None:
            raise ValueError(f"{source} brings its own labels, so --target {target} has no meaning: leave it out.")
        bunch = BUNDLED[source](as_frame=True)
        return bunch.data, bunch.target.map(lambda index: str(bunch.target_names[index]))
    path = Path(source)
    if not path.exists():
        raise ValueError(
            f"there is no file {source}, nor a bundled data set of that name: give {', '.join(BUNDLED)}, or the path "
            "of a CSV or Parquet file."
        )
    if path.is_dir() or path.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"{source} is not a .csv or .parquet file: convert it, or name it after its format.")
    frame = _read_csv(path) if path.suffix.lower() == ".csv" else _read_parquet(path)
    if target is None:
        raise ValueError(f"which column of {source} holds the labels? Add --target with one of: {_names(frame)}.")
    if target not in frame.columns:
        raise ValueError(f"{source} has no column {target!r}: give --target one of: {_names(frame)}.")
    return frame.drop(columns=target), frame[target]


def check(X: Any, y: Any, minimum_rows: int) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """Validate features and labels.

    Args:
        X: features, rows x features: a DataFrame, an array, or anything that :class:`pandas.DataFrame` accepts, with
            or without missing values.
        y: labels, one per row: text, integers or booleans.
        minimum_rows: minimum number of rows per class.

    Returns:
        The features, as float columns for numbers and text columns for everything else; the class index of each row;
        and the names of the classes.

    Raises:
        ValueError: the data are empty, inconsistent or not usable for classification.
    """
    frame = X if isinstance(X, pd.DataFrame) else pd.DataFrame(np.asarray(X) if hasattr(X, "__array__") else X)
    frame = frame.reset_index(drop=True).infer_objects()
    labels = pd.Series(np.ravel(y) if np.ndim(y) == 2 and np.shape(y)[1] == 1 else y).reset_index(drop=True)
    if len(frame) != len(labels):
        raise ValueError(f"X has {len(frame)} rows and y has {len(labels)}: they must be the same.")
    if len(frame) == 0:
        raise ValueError("there are no rows: give data with some rows of every class.")
    if frame.shape[1] == 0:
        raise ValueError("there are no features: give at least one column besides the labels.")
    names = pd.Index([str(name) for name in frame.columns])
    if names.has_duplicates:
        raise ValueError(f"two columns are called {names[names.duplicated()][0]!r}: rename one.")
    frame = pd.DataFrame({name: _column(name, column) for name, (_, column) in zip(names, frame.items(), strict=True)})
    return frame, *_classes(labels, minimum_rows)


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


def _column(name: str, column: pd.Series) -> pd.Series:
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column):
        floats = column.astype(object).where(column.notna(), np.nan).astype(float)
        if np.isinf(floats).any():
            raise ValueError(f"column {name!r} has infinite values: replace them, or leave them empty.")
        if (floats.abs() > LARGEST).any():
            raise ValueError(f"column {name!r} has values beyond {LARGEST:g}, whose squares overflow: scale it down.")
        return floats
    if not isinstance(column.dtype, pd.CategoricalDtype | pd.StringDtype) and column.dtype != object:
        raise ValueError(f"column {name!r} holds {column.dtype}: turn it into numbers or text.")
    return column.astype(object).map(str).where(column.notna(), _MISSING).astype(object)


def _classes(labels: pd.Series, minimum_rows: int) -> tuple[np.ndarray, list[str]]:
    missing = int(labels.isna().sum())
    if missing:
        raise ValueError(
            f"{missing} of {len(labels)} labels are missing (in files, pandas reads NA, None, nan and similar text as "
            "missing): remove those rows, or label them."
        )
    if labels.dtype == object or isinstance(labels.dtype, pd.CategoricalDtype | pd.StringDtype):
        values = labels.map(str).to_numpy(object)
    else:
        values = labels.to_numpy()
    if values.dtype.kind == "f" and np.isinf(values).any():
        raise ValueError("the labels have infinite values: classes are needed; remove those rows, or label them.")
    if values.dtype.kind == "c" or (values.dtype.kind == "f" and not np.array_equal(values, np.floor(values))):
        raise ValueError(
            f"the labels are numbers with decimals, such as {values[0]}: classes are needed; for continuous values, "
            "make bins."
        )
    found, indices = np.unique(values, return_inverse=True)
    names = [f"{value:g}" if isinstance(value, float) else str(value) for value in found]
    rows = np.bincount(indices)
    if len(names) == 1:
        raise ValueError(f"all {len(labels)} rows have the label {names[0]}: at least two classes are needed.")
    if rows.min() < minimum_rows:
        raise ValueError(
            f"class {names[int(rows.argmin())]} has too few rows, {rows.min()}: the splits into training, validation "
            f"and test rows need {minimum_rows} of every class. Add rows, or drop or merge the class."
        )
    return indices, names


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        # pandas pads short lines with missing values, so it would accept a truncated file.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next((line for line in reader if line), [])
            for line in reader:
                if any("\0" in field for field in line):
                    raise ValueError(f"{path} is not text: line {reader.line_num} has a zero byte.")
                if line and len(line) != len(header):
                    raise ValueError(
                        f"{path} is ragged: line {reader.line_num} has {len(line)} fields and the header has "
                        f"{len(header)}. Fix the line, or quote text that contains a comma."
                    )
        if not header:
            raise ValueError(f"{path} is empty: a CSV file starts with a line of column names.")
        # pandas would rename the second column, and the labels could end up among the features.
        names = [name.lstrip() for name in header if name.strip()]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two columns of {path} are called {twice[0]!r}: rename one.")
        index = 0 if header[0].strip() == "" else False
        frame = pd.read_csv(path, encoding="utf-8-sig", index_col=index, low_memory=False, skipinitialspace=True)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8."
        ) from error
    except (csv.Error, pd.errors.ParserError) as error:
        raise ValueError(f"{path} can't be read as CSV: {_one_line(error)}.") from error
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}.") from error
    return frame


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    # The only common base class of pyarrow's errors.
    except Exception as error:
        raise ValueError(f"{path} can't be read as Parquet: {_one_line(error)}.") from error


def _names(frame: pd.DataFrame) -> str:
    shown = ", ".join(map(str, frame.columns[:10]))
    return shown if len(frame.columns) <= 10 else f"{shown}, and {len(frame.columns) - 10} more"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
