"""Losses of the catalogue by text, as on the command line."""

import ast

from polylosses import catalogue, two_sided
from polylosses.polynomial import Polynomial


def named(text: str) -> Polynomial:
    """The loss that a text such as ``"poly1(2)"`` names.

    Raises:
        ValueError: it names none, or has arguments that the loss does not take.
    """
    if text.partition("(")[0].strip() in two_sided.ALL:
        raise ValueError(
            f"{text!r} has a polynomial for positives and one for negatives. Name these, such as focal(1) and focal(4)."
        )
    usage = f"write one of {', '.join(catalogue.ALL)}, with numbers in brackets, such as poly1(2)."
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Name):
            call = ast.Call(call, [], [])
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError(text)
        function = catalogue.ALL[call.func.id]
        values = [ast.literal_eval(argument) for argument in call.args]
        given = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, KeyError, ValueError, MemoryError, RecursionError):  # the last two: nested too deeply
        raise ValueError(f"{text!r} is no loss of the catalogue: {usage}") from None
    try:
        return function(*values, **given)
    except TypeError as error:
        raise ValueError(f"{text!r}: {error}; {usage}") from None
