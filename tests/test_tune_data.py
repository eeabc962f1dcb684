"""Features and labels from files and data frames: how they are read, what is left out, what is refused."""

import datetime
import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.datasets import load_iris

from polylosses.tune import columns, data

ROWS = 40


def table() -> pd.DataFrame:
    """A data frame with every kind of column that a CSV or Parquet file may have."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "height": rng.normal(170, 10, ROWS),
            "count": rng.integers(0, 9, ROWS),
            "colour": rng.choice(["red", "green", "blue"], ROWS),
            "smoker": rng.choice([True, False], ROWS),
            "many": [f"kind{i % 35}" for i in range(ROWS)],
            "empty": np.full(ROWS, np.nan),
            "species": ["cat", "dog"] * (ROWS // 2),
        }
    )
    frame.loc[::7, "height"] = np.nan
    frame.loc[::5, "colour"] = None
    return frame


def encoded(frame: pd.DataFrame, train: slice = slice(None)) -> np.ndarray:
    rows = np.arange(len(frame))
    return data.encode(frame).split(rows[train], rows)[1]


def test_what_is_missing_is_the_median() -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0, 9.0, np.nan]})
    numbers = encoded(frame)[:, 0]
    assert numbers[3] == numbers[1]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".CSV"])
def test_files_are_read_as_they_were_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    table().to_csv(path, index=False) if suffix.lower() == ".csv" else table().to_parquet(path)
    features, labels = data.load(str(path), "species")
    checked = data.check(features, labels, 8)
    expected = data.check(table().drop(columns="species"), table()["species"], 8)
    pd.testing.assert_frame_equal(checked.frame, expected.frame)
    assert checked.columns == expected.columns
    assert checked.classes == ["cat", "dog"]
    assert checked.labels.tolist() == [0, 1] * (ROWS // 2)


@pytest.mark.parametrize("name", data.BUNDLED)
def test_bundled_data_sets(name: str) -> None:
    features, labels = data.load(name)
    checked = data.check(features, labels, 8)
    assert checked.frame.shape == features.shape
    assert len(checked.classes) == checked.labels.max() + 1 == labels.nunique()
    assert {column.read for column in checked.columns} == {"number"}


def test_encoding_fills_standardizes_and_spreads() -> None:
    frame = data.check(table().drop(columns="species"), table()["species"], 8).frame
    X = encoded(frame)
    assert np.isfinite(X).all()
    names = data.encode(frame).names
    assert len(names) == X.shape[1]
    height = X[:, names.index("height")]
    assert height.std() == pytest.approx(1.0)
    assert len(set(height[::7])) == 1, "missing numbers take one value, the median"
    assert sum(name.startswith("colour_") for name in names) == 4, "missing is a category of its own"
    assert sum(name.startswith("many_") for name in names) == columns.MAX_CATEGORIES
    assert (X[:, names.index("empty")] == 0).all()


def test_encoding_is_fitted_on_training_rows_and_has_the_same_columns_for_any() -> None:
    frame = data.check(table().drop(columns="species"), table()["species"], 8).frame
    first, second = encoded(frame, slice(0, 10)), encoded(frame, slice(10, 40))
    assert first.shape == second.shape
    assert not np.allclose(first, second)
    assert np.isfinite(first).all()
    assert np.isfinite(second).all()


@pytest.mark.parametrize(
    ("X", "y"),
    [
        pytest.param(np.ones((16, 2)), [0, 1] * 8, id="array and list"),
        pytest.param([[1, "a"], [2, None]] * 8, [0, 1] * 8, id="lists of mixed values"),
        pytest.param(torch.ones(16, 2), torch.tensor([0, 1] * 8), id="tensors"),
        pytest.param(np.ones((16, 2), dtype=object), np.array(["a", "b"] * 8, dtype=object), id="objects"),
        pytest.param(pd.DataFrame({0: [7.5] * 16}, index=range(50, 66)), pd.Series([True, False] * 8), id="odd index"),
        pytest.param(pd.DataFrame({"a": pd.array([1, None] * 8, "Int64")}), np.array([[0], [1]] * 8), id="nullable"),
        pytest.param(
            pd.DataFrame({"a": pd.Categorical(["x", None] * 8)}), pd.Categorical(["u", "v"] * 8), id="categories"
        ),
        pytest.param(pd.DataFrame({"a": [1, "x"] * 8}), [0.0, 1.0] * 8, id="mixed column, whole floats"),
    ],
)
def test_what_users_have_is_accepted(X: Any, y: Any) -> None:
    frame, indices, classes, *_ = data.check(X, y, 8)
    assert np.isfinite(encoded(frame)).all()
    assert len(frame) == len(indices) == 16
    assert len(classes) == 2


def test_labels_are_named_as_people_write_them() -> None:
    X = np.ones((16, 1))
    for labels, names in (
        ([10.0, 2.0], ["2", "10"]),
        ([12345678.0, 12345679.0], ["12345678", "12345679"]),
        ([Decimal(2), Decimal("1.0")], ["1", "2"]),
        (["b", "a "], ["a", "b"]),
        (["None", "NA"], ["NA", "None"]),
        ([True, False], ["False", "True"]),
    ):
        assert data.check(X, labels * 8, 8).classes == names


@pytest.mark.parametrize(
    ("X", "y", "said"),
    [
        pytest.param(np.ones((4, 2)), [0, 1], "X has 4 rows and y has 2", id="lengths"),
        pytest.param(np.ones((0, 2)), [], "no rows", id="no rows"),
        pytest.param(pd.DataFrame(index=range(16)), [0, 1] * 8, "no features", id="no features"),
        pytest.param(np.ones((16, 1)), [0, None] * 8, "8 of 16 labels are missing", id="missing labels"),
        pytest.param(np.ones((16, 1)), [0.5, 1.25] * 8, r"numbers with decimals, such as 0\.5", id="regression"),
        pytest.param(np.ones((16, 1)), ["a"] * 16, "all 16 rows have the label a", id="one class"),
        pytest.param(
            np.ones((16, 1)), ["a"] * 13 + ["b"] * 3, "class b has too few rows, 3: .* need 8", id="rare class"
        ),
        pytest.param(
            np.ones((16, 1)), pd.to_datetime(["2020-01-01"] * 16), "labels have dates, such as 2020", id="dates"
        ),
        pytest.param(np.ones((16, 1)), [1.0, np.inf] * 8, "the labels have infinite values", id="infinite labels"),
        pytest.param(np.ones((16, 1)), [1e300, 0.5] * 8, "numbers with decimals", id="huge labels"),
        pytest.param(np.full((16, 1), 1.7e308), [0, 1] * 8, "column '0' has values beyond 1e.150", id="huge"),
        pytest.param(np.full((16, 1), np.inf), [0, 1] * 8, "column '0' has infinite values", id="infinite"),
        pytest.param(np.ones((16, 1)), np.ones((16, 2)), "y has 2 columns", id="two columns of labels"),
        pytest.param(
            np.ones((16, 1)), pd.Series([[1]] * 16), r"the labels have values of type list, such as \[1\]", id="lists"
        ),
        pytest.param(
            pd.DataFrame(np.ones((16, 2)), columns=["a", "a"]), [0, 1] * 8, "two columns are called 'a'", id="same name"
        ),
        pytest.param(
            pd.DataFrame(np.ones((16, 2)), columns=[1, "1"]), [0, 1] * 8, "two columns are called '1'", id="same text"
        ),
        pytest.param(np.ones((16, 1), dtype=complex), [0, 1] * 8, "values of type complex", id="complex"),
    ],
)
def test_what_can_not_be_used_is_named(X: Any, y: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        data.check(X, y, 8)
    assert "\n" not in str(error.value)


GOOD = "a,b,label\n" + "1,2,x\n3,4,y\n" * 8


@pytest.mark.parametrize(
    ("content", "target", "said"),
    [
        pytest.param(
            None, "label", r"there is no file .*table.csv, nor a bundled data set .*: give digits", id="missing"
        ),
        pytest.param(GOOD, None, "Add --target with one of: a, b, label", id="no target"),
        pytest.param(GOOD, "lable", "no column 'lable': .* a, b, label.*separated by commas", id="unknown column"),
        pytest.param(
            "1,2,x\n1,3,x\n", "x", "'x': .* column1, column2, column3.*no line of column names", id="no header"
        ),
        pytest.param(GOOD.replace("b,", "label,", 1), "label", "are called 'label'", id="label twice"),
        pytest.param(GOOD + "1,2\n", "label", "line 18 has 2 fields", id="short line"),
    ],
)
def test_files_that_can_not_be_used(tmp_path: Path, content: str | None, target: str | None, said: str) -> None:
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=said) as error:
        data.load(str(path), target)
    assert "\n" not in str(error.value)


def test_options_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_bytes("1,5~é\n".encode("cp850"))
    options: dict[str, Any] = {"separator": "~", "decimal": ",", "encoding": "cp850", "header": False}
    features, labels = data.load(str(path), "column2", **options)
    assert (features["column1"].tolist(), labels.tolist()) == ([1.5], ["é"])
    with pytest.raises(ValueError, match="sheet='x' has no meaning"):
        data.load(str(path), "column2", sheet="x")


def test_bundled_data_take_no_target_and_no_options() -> None:
    with pytest.raises(ValueError, match="digits brings its own labels, so --target x has no meaning"):
        data.load("digits", "x")
    with pytest.raises(ValueError, match="iris brings its own labels, so separator ; has no meaning"):
        data.load("iris", separator=";")


NUMBERS = [0.0, 1.5, 0.0, -2.0] * 10
LABELS = (["u"] * 3 + ["v"]) * 10


def checked(column: Any, labels: Any = LABELS, **options: Any) -> data.Checked:
    """One column, next to another that is always fine."""
    frame = pd.DataFrame({"other": np.random.default_rng(0).normal(size=len(labels))})
    frame["it"] = column if isinstance(column, pd.Series) else pd.Series(column)
    return data.check(frame, labels, 8, **options)


def of_parquet(frame: pd.DataFrame, **options: Any) -> pd.DataFrame:
    file = io.BytesIO()
    frame.to_parquet(file)
    return pd.read_parquet(file, **options)


def test_a_sparse_matrix_that_is_too_large_as_a_table_is_refused() -> None:
    X = scipy.sparse.csr_matrix((1_000_000, 50_000))
    with pytest.raises(ValueError, match=r"1000000 rows x 50000 columns.*400.0 GB, more than 2: give fewer columns"):
        data.check(X, np.arange(1_000_000) % 2, 8)


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(scipy.sparse.csr_matrix(np.array(NUMBERS)[:, None]), id="sparse matrix"),
        pytest.param(scipy.sparse.coo_array(np.array(NUMBERS)[:, None]), id="sparse array"),
        pytest.param(pd.DataFrame({"0": pd.arrays.SparseArray(NUMBERS)}), id="sparse column"),
        pytest.param(pd.DataFrame({"0": map(Decimal, map(str, NUMBERS))}), id="decimals"),
        pytest.param(pd.DataFrame({"0": [0, Decimal("1.5"), 0.0, -2] * 10}, dtype=object), id="mixed numbers"),
        pytest.param(of_parquet(pd.DataFrame({"0": map(Decimal, NUMBERS)})), id="Parquet's decimals"),
        pytest.param(of_parquet(pd.DataFrame({"0": NUMBERS}), dtype_backend="pyarrow"), id="Arrow's floats"),
        pytest.param(
            of_parquet(pd.DataFrame({"0": map(Decimal, NUMBERS)}), dtype_backend="pyarrow"), id="Arrow's decimals"
        ),
        pytest.param(pd.DataFrame({"0": pd.array(NUMBERS, "Float64")}), id="nullable"),
    ],
)
def test_numbers_of_every_type_are_the_same(numbers: Any) -> None:
    expected = data.check(np.array(NUMBERS)[:, None], LABELS, 8)
    found = data.check(numbers, LABELS, 8)
    pd.testing.assert_frame_equal(found.frame, expected.frame)
    assert found.columns == expected.columns == [columns.Column("0", "number", 0, "0", "")]


@pytest.mark.parametrize("kind", [object, "str", "string[pyarrow]", "category", "large_string[pyarrow]"])
def test_text_of_every_type_is_the_same_without_spaces_around_it(kind: Any) -> None:
    found = checked(pd.Series(["yes", "yes ", None, "no"] * 10, dtype=kind))
    assert found.frame["it"].tolist() == ["yes", "yes", "(missing)", "no"] * 10
    assert found.columns[1] == ("it", "text: 2 categories", 10, "yes", "spaces around values are removed, as in 'yes '")


def test_masked_values_are_missing() -> None:
    masked = np.ma.masked_equal(np.array(NUMBERS)[:, None], 1.5)
    assert data.check(masked, LABELS, 8).columns[0].missing == 10


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (["1.5", "?", "NA", "2"] * 10, "'?' is read as missing, in 10 rows; 'NA' is read as missing, in 10 rows"),
        (["1.5", None, "?", 2] * 10, "'?' is read as missing, in 10 rows"),
        (["1.5", None, None, 2] * 10, "some of the numbers are text"),
    ],
)
def test_numbers_as_text_with_missing_ones(column: Any, said: str) -> None:
    found = checked(pd.Series(column, dtype=object))
    assert found.frame["it"].fillna(0).tolist() == [1.5, 0.0, 0.0, 2.0] * 10
    assert found.columns[1] == ("it", "number", 20, "1.5", said)


def test_text_among_few_numbers_is_a_category_and_warned_of() -> None:
    found = checked(["0", "1", "2", "3+"] * 10)
    assert found.columns[1].read == "text: 4 categories"
    assert found.columns[1].warning == "numbers, but also text, such as '3+' (index 3): read as text"
    assert checked(pd.Categorical(["0", "1"] * 20)).columns[1] == ("it", "text: 2 categories", 0, "0", "")


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (["1,000", "2,500"] * 20, r"several ways or not at all, such as '1,000' \(index 0\).*give decimal=','"),
        (["7e0", "0,12"] * 20, r"such as '0,12' \(index 1\)"),
        (["12 %", "7%", "?", "$1,000.50"] * 10, "such as '12 %'"),
        (["1", "2"] * 20, r"has numbers as text, such as '1' \(index 0\).*astype\(float\).*astype\('category'\)"),
        ([*map(str, range(39)), "unknown"], r"numbers, but also text, such as 'unknown' \(index 39\)"),
        ([None, [1, 2]] * 20, r"values of type list, such as \[1, 2\] \(index 1\)"),
        ([{"a": 1}] * 40, "values of type dict"),
        ([np.ones(2)] * 40, "values of type ndarray"),
        ([b"a"] * 40, "values of type bytes"),
        (pd.to_timedelta([5] * 40, "D"), "values of type Timedelta"),
        (pd.to_datetime(["2020-01-02"] * 40), "has dates, such as 2020-01-02.*such as the month, or the days since"),
        (pd.period_range("2020", periods=40, freq="M"), "has dates, such as 2020-01"),
        ([datetime.date(2020, 1, 2)] * 40, "has dates, such as 2020-01-02"),
        (["2020-01-02", "2021-03-14T15:00:00Z"] * 20, r"has dates, such as '2020-01-02' \(index 0\)"),
        (["NA", "1/2/20", "14.3.2021", "3 Dec 2020", "Jan 4, 2021 12:30"] * 8, "has dates, such as '1/2/20'"),
    ],
)
def test_what_has_no_plain_reading_is_refused(column: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"column 'it' .*{said}.*or leave it out with drop=\\['it'\\] \\(--drop it\\)"):
        checked(column)
    assert checked(column, drop=["it"]).frame.columns.tolist() == ["other"]


@pytest.mark.parametrize("text", ["1.2.3", "20-30", "May", "10.0.0.1", "3-4-5", "id 12", "12 kg", "B 1,000"])
def test_what_is_neither_a_number_nor_a_date(text: str) -> None:
    assert checked([text, "x", f"{text} ", "y"] * 10).columns[1].read == "text: 3 categories"


def test_all_refused_columns_are_named_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("when;price;label\n" + "2020-01-02;1,000;a\n\n2020-01-03;7;b\n" * 8)
    with pytest.raises(ValueError, match=r"column 'when' .*\(line 2\).*; column 'price' .*'1,000' \(line 2\)"):
        data.check(*data.load(str(path), "label"), 8)


IRIS, SPECIES = load_iris(return_X_y=True, as_frame=True)
SOME = np.flatnonzero(np.random.default_rng(0).random(len(IRIS)) < 0.8)  # what is left of a table


@pytest.mark.parametrize("order", ["rise", "fall"])
@pytest.mark.parametrize("rows", [slice(None), SOME], ids=["all", "gaps"])
@pytest.mark.parametrize("kind", [int, float, object])
def test_row_numbers_are_left_out(order: str, rows: Any, kind: Any) -> None:
    """In a table that is sorted by class, as iris is, they would give the class away."""
    numbers = pd.Series(range(1, len(IRIS) + 1))[:: 1 if order == "rise" else -1].to_numpy()
    found = data.check(IRIS.assign(Id=numbers.astype(kind)).iloc[rows], SPECIES.iloc[rows], 8)
    assert "Id" not in found.frame.columns
    assert found.columns[-1].read == (
        f"left out: whole numbers that {order} from row to row, as row numbers do; shuffle the rows to keep it"
    )


def test_numbers_that_may_be_ids_are_kept_and_warned_of() -> None:
    shuffled = np.random.default_rng(0).permutation(40)
    assert checked(shuffled).columns[1] == (
        "it", "number", 0, str(shuffled[0]), "whole numbers that all differ: drop it if it is an ID"
    )  # fmt: skip
    for measured in (shuffled / 7, np.sort(shuffled) / 7, [*shuffled[:39], shuffled[0]], [*range(39), None]):
        assert checked(measured).columns[1][1::3] == ("number", "")


def test_text_that_differs_in_nearly_all_rows_is_left_out() -> None:
    found = checked([f"id{i}" for i in range(36)] + ["id0"] * 4)
    assert found.frame.columns.tolist() == ["other"]
    assert found.columns[1].read == "left out: text with 36 different values in 40 rows"
    assert checked([f"id{i}" for i in range(35)] + ["id0"] * 5).columns[1].read == (
        "text: 35 categories, the 29 most frequent and one for all others"
    )


def test_a_copy_of_the_labels_is_no_feature() -> None:
    labels = pd.Series(LABELS, name="kind")
    for copy in (labels, labels + " ", labels.astype("category")):
        with pytest.raises(ValueError, match="column 'it' is a copy of the labels: leave it out with"):
            checked(copy, labels)
    with pytest.raises(ValueError, match="'it' is a copy"):
        checked([1.0, 1.0, 1.0, 0.0] * 10, [1, 1, 1, 0] * 10)
    warning = "each of its values belongs to one class: drop it if it is the label under another name"
    assert checked([1, 1, 1, None] * 10).columns[1].warning == warning
    assert checked([1, 1, 1, 2] * 10).columns[1].warning == warning
    assert checked([1, 1, 1, 2] * 9 + [1, 1, 2, 2]).columns[1].warning == ""
    frame = pd.DataFrame({"kind.1": NUMBERS, "kind1": NUMBERS, "kind.x": NUMBERS, "kind_1": NUMBERS})
    warnings = [column.warning for column in data.check(frame, labels, 8).columns]
    assert warnings == ["pandas calls a second column 'kind' so: drop it if it is the label", "", "", ""]


def test_a_column_without_differences_is_warned_of() -> None:
    assert checked(["x"] * 40).columns[1] == ("it", "text: 1 category", 0, "x", "the same in every row")
    assert checked([np.nan] * 40).columns[1] == ("it", "number", 40, "", "the same in every row")


def test_rows_without_a_label_are_left_out_on_request() -> None:
    labels = ["a", None, "b", " "] * 10
    with pytest.raises(ValueError, match=r"20 of 40 labels are missing, the first at index 1: .*--drop-missing-labels"):
        checked(range(40), labels)
    found = checked([5.5, 6, 7, 8] * 10, labels, drop_missing_labels=True)
    assert found.frame["it"].tolist() == [5.5, 7.0] * 10
    assert found.labels.tolist() == [0, 1] * 10
    assert found.rows.tolist() == list(range(0, 40, 2))
    assert found.notes[0] == "20 of 40 labels are missing: these rows are left out."
    with pytest.raises(ValueError, match="40 of 40 labels are missing"):
        checked(NUMBERS, [None] * 40, drop_missing_labels=True)


def test_rare_classes_are_dropped_or_merged_on_request() -> None:
    labels = [*"zzzzzzzza", *"bbbbbbbbccccccc", None]
    values = np.arange(25.0) * 0.5
    found = checked(values, labels, rare="drop", drop_missing_labels=True)
    assert found.classes == ["b", "z"]
    assert found.labels.tolist() == [1] * 8 + [0] * 8
    assert found.frame["it"].tolist() == [*values[:8], *values[9:17]]
    assert found.rows.tolist() == [*range(8), *range(9, 17)]
    assert found.notes[1] == "Classes of fewer than 8 rows are left out: a (1 rows), c (7 rows)."
    found = checked(values, labels, rare="merge", drop_missing_labels=True)
    assert found.classes == ["b", "z", "(other)"]
    assert found.labels.tolist() == [1] * 8 + [2] + [0] * 8 + [2] * 7
    assert found.notes[1] == "Classes of fewer than 8 rows are merged into (other): a (1 rows), c (7 rows)."


@pytest.mark.parametrize(
    ("labels", "rare", "said"),
    [
        ("a" * 9 + "b" * 7, "drop", r"without the classes of fewer than 8 rows, b \(7 rows\), less than two are left"),
        ("a" * 9 + "b" * 9 + "c" * 7, "merge", r"c \(7 rows\), have 7 together: leave them out with rare='drop'"),
        ("a" * 7 + "b" * 7, "merge", "all classes have fewer than 8 rows"),
        ("a" * 9 + "b" * 9, "keep", "rare must be 'drop' or 'merge', or left out; got 'keep'"),
    ],
)
def test_rare_classes_that_can_not_be_dropped_or_merged(labels: str, rare: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        checked(np.arange(len(labels)) * 0.5, list(labels), rare=rare)


def test_columns_are_left_out_on_request() -> None:
    for drop in (["it"], "it"):
        found = checked(NUMBERS, drop=drop)
        assert found.frame.columns.tolist() == ["other"]
        assert found.columns[1] == ("it", "left out, as you asked", 0, "0", "")
    with pytest.raises(ValueError, match="there is no column 'that' to drop: give one or more of: other, it"):
        checked(NUMBERS, drop=["that"])
    with pytest.raises(ValueError, match="no features are left: 'other' is left out, as you asked; 'it' is"):
        checked(NUMBERS, drop=["it", "other"])


def test_notes_on_the_whole_table() -> None:
    frame = pd.DataFrame({"a": [1.0, 1.0, 1.0, 2.0, np.nan] * 4, "b": ["x", "x", "y", "x", None] * 4})
    labels = ["NA", "NA ", "NA", "no", "NA"] * 4
    labels[0] = labels[19] = "no"
    notes = data.check(frame, labels, 2).notes
    assert notes == [
        "Spaces around labels are removed, as in 'NA '.",
        "Taken as classes: 'NA' (14 rows). Where that stands for a missing label, leave the label empty.",
        "14 of 20 rows are exact copies of an earlier row: a model may be tested on rows that it was trained on.",
        "The largest class, NA, has 70.0 % of the rows, the accuracy of always guessing it.",
    ]
