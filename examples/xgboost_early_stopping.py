"""XGBoost: training that stops early by the log loss of the posterior.

pip install 'polylosses[boosting]' scikit-learn xgboost
python examples/xgboost_early_stopping.py
"""

from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from polylosses.boosting import PolyXGBClassifier


def main() -> float:
    """Trains, prints the log loss and the accuracy of held-out digits, and returns the accuracy."""
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.3, random_state=0, stratify=y)
    X, X_stop, y, y_stop = train_test_split(X, y, test_size=0.2, random_state=0, stratify=y)
    model = PolyXGBClassifier(
        epsilon=1.0, n_estimators=200, learning_rate=0.3, max_depth=3, early_stopping_rounds=5, n_jobs=2
    )
    model.fit(X, y, eval_set=[(X_stop, y_stop)], verbose=False)
    loss, accuracy = log_loss(y_test, model.predict_proba(X_test)), model.score(X_test, y_test)
    print(f"{model.best_iteration + 1} rounds: log loss {loss:.3f}, accuracy {accuracy:.3f}")
    return float(accuracy)


if __name__ == "__main__":
    main()
