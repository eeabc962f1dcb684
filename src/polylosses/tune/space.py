"""The space of other hyper-parameters, and the points in it that every loss tries."""

import ast
import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.stats import qmc

# What a hyper-parameter may be given as.
Given = BaseDistribution | Sequence[Any] | str


def distribution(name: str, given: Given) -> BaseDistribution:
    """The distribution of a hyper-parameter.

    Args:
        name: its name.
        given: a distribution of Optuna; a sequence of values to choose from; or text as on the command line:
            ``"1e-4:1e-1:log"`` and ``"0:0.5"`` are ranges (of whole numbers, if both ends are), ``"0.0,0.1,0.3"``
            and ``"adam,sgd"`` are values to choose from, numbers if they can be.

    Raises:
        TypeError, ValueError: there is no such distribution.
    """
    if isinstance(given, BaseDistribution):
        return given
    if isinstance(given, str):
        return _range(name, given) if ":" in given else _choice(name, given, [_value(x) for x in given.split(",")])
    if not isinstance(given, Sequence):
        raise TypeError(
            f"parameters must be ranges such as '1e-4:1e-1:log', sequences of values, or distributions of Optuna; "
            f"got {given!r} for {name!r}."
        )
    return _choice(name, given, list(given))


def points(space: Mapping[str, BaseDistribution], count: int, seed: int) -> list[dict[str, Any]]:
    """Quasi-random points of a space: a scrambled Halton sequence, so that any number of them is spread evenly.

    Returns:
        ``count`` points; without parameters one, the empty one. If there are no more combinations than that, because
        all parameters are values to choose from, these.
    """
    if not space:
        return [{}]
    combinations = math.prod(_size(one) for one in space.values())
    if combinations <= count:
        found: list[dict[str, Any]] = [{}]
        for name, one in space.items():
            found = [{**point, name: value} for point in found for value in _values(one)]
        return found
    units = qmc.Halton(len(space), rng=seed).random(count)
    return [{name: _at(one, u) for (name, one), u in zip(space.items(), row, strict=True)} for row in units]


def _range(name: str, text: str) -> BaseDistribution:
    low, _, rest = text.partition(":")
    high, _, scale = rest.partition(":")
    ends = [_value(low), _value(high)]
    if scale not in ("", "log") or not all(isinstance(end, int | float) and math.isfinite(end) for end in ends):
        raise ValueError(f"the range of {name!r} must be LOW:HIGH or LOW:HIGH:log, of two numbers; got {text!r}.")
    if not ends[0] < ends[1] or (scale and ends[0] <= 0):
        raise ValueError(f"the range of {name!r} must rise{', and be above 0' if scale else ''}; got {text!r}.")
    if all(isinstance(end, int) for end in ends):
        return IntDistribution(ends[0], ends[1], log=bool(scale))
    return FloatDistribution(float(ends[0]), float(ends[1]), log=bool(scale))


def _choice(name: str, given: Any, values: list[Any]) -> CategoricalDistribution:
    if not values or any(value == "" for value in values):
        raise ValueError(f"{name!r} needs one or more values to choose from; got {given!r}.")
    for value in values:
        if not isinstance(value, bool | int | float | str | None):
            raise TypeError(f"the values of {name!r} must be numbers, text, booleans or None; got {value!r}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"the values of {name!r} must be finite; got {value!r}.")
    if len(set(map(repr, values))) < len(values):
        raise ValueError(f"the values of {name!r} must differ; got {given!r}.")
    return CategoricalDistribution(values)


def _value(text: str) -> Any:
    """A number, a boolean or None, if the text is one."""
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()
    return value if isinstance(value, bool | int | float | None) else text.strip()


def _size(one: BaseDistribution) -> float:
    if isinstance(one, CategoricalDistribution):
        return len(one.choices)
    return 1 if one.single() else math.inf


def _values(one: BaseDistribution) -> Sequence[Any]:
    return one.choices if isinstance(one, CategoricalDistribution) else [_at(one, 0.0)]


def _at(one: BaseDistribution, u: float) -> Any:
    """The value at a share ``u`` in [0, 1) of a distribution."""
    if isinstance(one, CategoricalDistribution):
        return one.choices[int(u * len(one.choices))]
    if not isinstance(one, FloatDistribution | IntDistribution):
        raise TypeError(f"parameters must be Float, Int or Categorical distributions; got {one!r}.")
    # A whole number, or a step, takes as much of the range as any other.
    width = (one.step or 0) if isinstance(one, FloatDistribution) else one.step
    low, high = one.low, one.high + width
    value = low * (high / low) ** u if one.log else low + u * (high - low)
    if isinstance(one, IntDistribution):
        return min(one.high, int(low + (value - low) // one.step * one.step))
    return min(one.high, low + (value - low) // width * width) if width else value
