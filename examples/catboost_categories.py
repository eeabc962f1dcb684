"""CatBoost: labels that are words, columns of categories, and class weights.

pip install 'polylosses[boosting]' scikit-learn catboost
python examples/catboost_categories.py
"""

import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from polylosses.boosting import PolyCatBoostClassifier


def main() -> float:
    """Trains, prints the accuracy and a prediction on held-out rows, and returns the accuracy."""
    data = load_breast_cancer(as_frame=True)
    y = data.target.map({0: "malignant", 1: "benign"})
    X = data.data[["mean texture", "mean smoothness", "mean concavity"]].copy()
    X["size"] = pd.cut(data.data["mean area"], [0, 450, 700, 3000], labels=["small", "middle", "large"]).astype(str)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.3, random_state=0, stratify=y)
    model = PolyCatBoostClassifier(
        epsilon=1.0,
        class_weight={"malignant": 2.0},
        iterations=60,
        learning_rate=0.1,
        cat_features=["size"],
        random_seed=0,
        thread_count=2,
        verbose=False,
        allow_writing_files=False,
    ).fit(X, y)
    accuracy = model.score(X_test, y_test)
    shown = ", ".join(
        f"{label} {p:.3f}" for label, p in zip(model.classes_, model.predict_proba(X_test)[0], strict=True)
    )
    print(f"accuracy: {accuracy:.3f}; the first row: {shown}")
    return float(accuracy)


if __name__ == "__main__":
    main()
