"""LightGBM: scikit-learn's grid search over epsilon, by the log loss of the posterior.

    pip install 'polylosses[boosting]' scikit-learn lightgbm
    python examples/lightgbm_epsilon_grid.py

A grid search finds the best epsilon, but not whether it is significantly better than 0: see ``polylosses tune``.
"""

from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV, train_test_split

from polylosses.boosting import PolyLGBMClassifier


def main() -> float:
    """Searches, prints the log loss for every epsilon, and returns the accuracy of the best on held-out rows."""
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.3, random_state=0, stratify=y)
    model = PolyLGBMClassifier(n_estimators=50, num_leaves=8, random_state=0, n_jobs=2, verbosity=-1)
    search = GridSearchCV(model, {"epsilon": [0.0, 1.0, 4.0]}, scoring="neg_log_loss", cv=3).fit(X, y)
    for epsilon, score in zip(search.cv_results_["param_epsilon"], search.cv_results_["mean_test_score"], strict=True):
        print(f"epsilon = {epsilon:g}: log loss {-score:.3f}")
    return float(search.best_estimator_.score(X_test, y_test))


if __name__ == "__main__":
    main()
