"""Reading features and labels from files and data frames, and the errors for invalid ones."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from polylosses.tune import data

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
            "many": [f"id{i}" for i in range(ROWS)],
            "empty": np.full(ROWS, np.nan),
            "species": ["cat", "dog"] * (ROWS // 2),
        }
    )
    frame.loc[::7, "height"] = np.nan
    frame.loc[::5, "colour"] = None
    return frame


def encoded(frame: pd.DataFrame, train: slice = slice(None)) -> np.ndarray:
    return np.asarray(data.encoder(frame).fit(frame.iloc[train]).transform(frame))


def test_what_is_missing_is_the_median() -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0, 9.0, np.nan]})
    numbers = encoded(frame)[:, 0]
    assert numbers[3] == numbers[1]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".CSV"])
def test_files_are_read_as_they_were_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    table().to_csv(path, index=False) if suffix.lower() == ".csv" else table().to_parquet(path)
    features, labels = data.load(str(path), "species")
    checked, indices, classes = data.check(features, labels, 8)
    expected, _, _ = data.check(table().drop(columns="species"), table()["species"], 8)
    pd.testing.assert_frame_equal(checked, expected)
    assert classes == ["cat", "dog"]
    assert indices.tolist() == [0, 1] * (ROWS // 2)


@pytest.mark.parametrize("name", data.BUNDLED)
def test_bundled_data_sets(name: str) -> None:
    features, labels = data.load(name)
    checked, indices, classes = data.check(features, labels, 8)
    assert checked.shape == features.shape
    assert len(classes) == indices.max() + 1 == labels.nunique()


def test_encoding_fills_standardizes_and_spreads() -> None:
    frame, _, _ = data.check(table().drop(columns="species"), table()["species"], 8)
    X = encoded(frame)
    assert np.isfinite(X).all()
    names = data.encoder(frame).fit(frame).get_feature_names_out().tolist()
    height = X[:, names.index("numbers__height")]
    assert height.std() == pytest.approx(1.0)
    assert len(set(height[::7])) == 1, "missing numbers take one value, the median"
    assert sum(name.startswith("text__colour") for name in names) == 4, "missing is a category of its own"
    assert sum(name.startswith("text__many") for name in names) == data.MAX_CATEGORIES
    assert (X[:, names.index("numbers__empty")] == 0).all()


def test_encoding_is_fitted_on_training_rows_and_has_the_same_columns_for_any() -> None:
    frame, _, _ = data.check(table().drop(columns="species"), table()["species"], 8)
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
        pytest.param(pd.DataFrame({0: range(16)}, index=range(50, 66)), pd.Series([True, False] * 8), id="odd index"),
        pytest.param(pd.DataFrame({"a": pd.array([1, None] * 8, "Int64")}), np.array([[0], [1]] * 8), id="nullable"),
        pytest.param(
            pd.DataFrame({"a": pd.Categorical(["x", None] * 8)}), pd.Categorical(["u", "v"] * 8), id="categories"
        ),
        pytest.param(pd.DataFrame({"a": [1, "x"] * 8}), [0.0, 1.0] * 8, id="mixed column, whole floats"),
    ],
)
def test_what_users_have_is_accepted(X: Any, y: Any) -> None:
    frame, indices, classes = data.check(X, y, 8)
    assert np.isfinite(encoded(frame)).all()
    assert len(frame) == len(indices) == 16
    assert len(classes) == 2


def test_labels_are_named_as_people_write_them() -> None:
    X = np.ones((16, 1))
    assert data.check(X, [10.0, 2.0] * 8, 8)[2] == ["2", "10"]
    assert data.check(X, ["b", "a"] * 8, 8)[2] == ["a", "b"]
    assert data.check(X, [True, False] * 8, 8)[2] == ["False", "True"]


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
        pytest.param(np.ones((16, 1)), [1.0, np.inf] * 8, "the labels have infinite values", id="infinite labels"),
        pytest.param(np.ones((16, 1)), [1e300, 0.5] * 8, "numbers with decimals", id="huge labels"),
        pytest.param(np.full((16, 1), 1.7e308), [0, 1] * 8, "column '0' has values beyond 1e.150", id="huge"),
        pytest.param(np.full((16, 1), np.inf), [0, 1] * 8, "column '0' has infinite values", id="infinite"),
        pytest.param(
            pd.DataFrame({"when": pd.to_datetime(["2020-01-01"] * 16)}), [0, 1] * 8, "'when' holds datetime", id="dates"
        ),
        pytest.param(
            pd.DataFrame(np.ones((16, 2)), columns=["a", "a"]), [0, 1] * 8, "two columns are called 'a'", id="same name"
        ),
        pytest.param(
            pd.DataFrame(np.ones((16, 2)), columns=[1, "1"]), [0, 1] * 8, "two columns are called '1'", id="same text"
        ),
        pytest.param(np.ones((16, 1), dtype=complex), [0, 1] * 8, "column '0' holds complex", id="complex"),
    ],
)
def test_what_can_not_be_used_is_named(X: Any, y: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        data.check(X, y, 8)
    assert "\n" not in str(error.value)


GOOD = "a,b,label\n" + "1,2,x\n3,4,y\n" * 8


@pytest.mark.parametrize(
    ("name", "content", "target", "said"),
    [
        pytest.param("nothing.csv", None, "label", "there is no file .*nothing.csv", id="missing file"),
        pytest.param("table.txt", GOOD.encode(), "label", "not a .csv or .parquet file", id="suffix"),
        pytest.param("table.csv", GOOD.encode(), "lable", "has no column 'lable': .* a, b, label", id="unknown column"),
        pytest.param("table.csv", GOOD.encode(), None, "Add --target with one of: a, b, label", id="no target"),
        pytest.param(
            "table.csv", GOOD.replace("b,", "label,", 1).encode(), "label", "are called 'label'", id="label twice"
        ),
        pytest.param("table.csv", GOOD.replace("b,", " a,", 1).encode(), "label", "are called 'a'", id="name twice"),
        pytest.param("table.csv", b"", "label", "is empty", id="empty"),
        pytest.param("table.csv", b"\n\n", "label", "is empty", id="blank lines"),
        pytest.param("table.csv", (GOOD + "1,2\n").encode(), "label", "line 18 has 2 fields", id="short line"),
        pytest.param("table.csv", (GOOD + "1,2,3,4\n").encode(), "label", "line 18 has 4 fields", id="long line"),
        pytest.param("table.csv", bytes(range(256)), "label", "not UTF-8 text", id="not text"),
        pytest.param("table.csv", b"a,label\n1,\x00\n", "label", "not text: line 2", id="zero byte"),
        pytest.param("table.csv", (GOOD + '"1,2,3\n').encode(), "label", "can't be read as CSV", id="open quote"),
        pytest.param("table.parquet", GOOD.encode(), "label", "can't be read as Parquet", id="not Parquet"),
        pytest.param("table.csv", "directory", "label", "is not a .csv or .parquet file", id="directory"),
    ],
)
def test_files_that_can_not_be_used(tmp_path: Path, name: str, content: Any, target: str | None, said: str) -> None:
    path = tmp_path / name
    if content == "directory":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        data.load(str(path), target)
    assert "\n" not in str(error.value)


def test_bundled_data_take_no_target() -> None:
    with pytest.raises(ValueError, match="digits brings its own labels, so --target x has no meaning"):
        data.load("digits", "x")


def test_a_nameless_first_column_is_row_numbers(tmp_path: Path) -> None:
    text = io.StringIO()
    table().to_csv(text)  # pandas writes its index without a name
    path = tmp_path / "table.csv"
    path.write_text(text.getvalue())
    features, _ = data.load(str(path), "species")
    assert features.columns.tolist() == table().columns.drop("species").tolist()


def test_utf8_with_a_byte_order_mark_and_quotes(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes("größe,label\n".encode("utf-8-sig") + b'"a, b",x\n"c ""d""",y\n' * 8)
    features, _ = data.load(str(path), "label")
    assert features["größe"].tolist()[:2] == ["a, b", 'c "d"']
