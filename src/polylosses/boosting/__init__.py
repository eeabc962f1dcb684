"""PolyLoss for gradient boosting: objectives for XGBoost, LightGBM and CatBoost, computed in NumPy."""

try:
    import numpy as _numpy  # noqa: F401
except ImportError as error:
    raise ImportError("polylosses.boosting needs NumPy: pip install 'polylosses[boosting]'") from error

from polylosses.boosting.objectives import CatBoostObjective, LightGBMObjective, PolyObjective, XGBoostObjective

__all__ = ["CatBoostObjective", "LightGBMObjective", "PolyObjective", "XGBoostObjective"]
