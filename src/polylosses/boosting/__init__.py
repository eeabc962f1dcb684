"""PolyLoss for gradient boosting, in NumPy: objectives for XGBoost, LightGBM and CatBoost, and classifiers.

The classifiers are imported when they are asked for, since they need scikit-learn and the library.
"""

import importlib
from typing import TYPE_CHECKING

try:
    import numpy as _numpy  # noqa: F401
except ImportError as error:
    raise ImportError("polylosses.boosting needs NumPy: pip install 'polylosses[boosting]'") from error

from polylosses.boosting.objectives import (
    CatBoostObjective,
    LightGBMObjective,
    PolyObjective,
    XGBoostObjective,
    _require,
)

if TYPE_CHECKING:
    from polylosses.boosting.catboost_classifier import PolyCatBoostClassifier as PolyCatBoostClassifier
    from polylosses.boosting.lightgbm_classifier import PolyLGBMClassifier as PolyLGBMClassifier
    from polylosses.boosting.xgboost_classifier import PolyXGBClassifier as PolyXGBClassifier

__all__ = ["CatBoostObjective", "LightGBMObjective", "PolyObjective", "XGBoostObjective"]

# The library of each classifier, with its least version.
_CLASSIFIERS = {
    "PolyXGBClassifier": ("xgboost", (3, 1)),
    "PolyLGBMClassifier": ("lightgbm", (4, 6)),
    "PolyCatBoostClassifier": ("catboost", (1, 2)),
}


def __dir__() -> list[str]:
    return sorted([*globals(), *_CLASSIFIERS])


def __getattr__(name: str) -> object:
    if name not in _CLASSIFIERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    library, version = _CLASSIFIERS[name]
    _require(library, version, name)
    _require("sklearn", (1, 5), name)
    return getattr(importlib.import_module(f"polylosses.boosting.{library}_classifier"), name)
