"""skorch: scikit-learn's grid search over epsilon.

    pip install 'polylosses[torch]' skorch
    python examples/skorch_grid_search.py

A grid search finds the best epsilon, but not whether it is significantly better than 0: see ``polylosses tune``.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from torch import nn

from polylosses.torch import PolyCrossEntropyLoss


def make_network(epsilon: float = 0.0) -> NeuralNetClassifier:
    """A small network as a scikit-learn classifier."""
    torch.manual_seed(0)
    return NeuralNetClassifier(
        nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        criterion=PolyCrossEntropyLoss,
        criterion__epsilon=epsilon,
        optimizer=torch.optim.AdamW,
        lr=0.01,
        max_epochs=10,
        train_split=None,
        verbose=0,
    )


def main() -> GridSearchCV:
    """Searches, prints the accuracy for every epsilon, and returns the search."""
    x, y = load_digits(return_X_y=True)
    search = GridSearchCV(make_network(), {"criterion__epsilon": [0.0, 1.0, 4.0]}, scoring="accuracy", cv=3)
    search.fit((x / 16).astype("float32"), y)
    for chosen, accuracy in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True):
        print(f"epsilon = {chosen['criterion__epsilon']:g}: accuracy {accuracy:.3f}")
    return search


if __name__ == "__main__":
    main()
