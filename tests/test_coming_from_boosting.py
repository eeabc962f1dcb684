"""Checks the page "Coming from another focal loss for boosting" against the stored results, and ours of those today.

The results of other packages are not measured again: that needs a network. docs/coming_from_boosting.py does it.
"""

import importlib.util
import json
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent / "docs"


def load() -> Any:
    """Imports the script by its path, since it is not in a package."""
    spec = spec_from_file_location("coming_from_boosting", DOCS / "coming_from_boosting.py")
    assert spec
    assert spec.loader
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


script = load()
KEPT = json.loads(script.KEPT.read_text(encoding="utf-8"))
PAGE = script.PAGE.read_text(encoding="utf-8")
LOSSES = {loss.name: loss for peer in script.PEERS for loss in peer.losses}
each_loss = pytest.mark.parametrize("name", LOSSES)


def test_the_page_is_what_the_script_writes() -> None:
    assert script.page(KEPT) == PAGE


def test_every_row_of_every_loss_was_measured() -> None:
    assert {name: tuple(rows) for name, rows in KEPT["losses"].items()} == dict.fromkeys(LOSSES, script.ROWS)


@each_loss
def test_there_is_a_reason_for_what_differs_and_for_nothing_else(name: str) -> None:
    rows = KEPT["losses"][name]
    assert set(LOSSES[name].reasons) == {
        row for row, of in rows.items() if script.differs(row, of["theirs"], of["ours"])
    }


@each_loss
def test_our_derivatives_are_right_and_our_numbers_are_todays(name: str) -> None:
    found = script.measure_ours(LOSSES[name])
    kept = {row: of["ours"] for row, of in KEPT["losses"][name].items()}
    for row in (script.GRADIENT, script.FAR_GRADIENT, script.CURVATURE, script.FAR_CURVATURE):
        # Last digits may be another machine's.
        assert max(found[row], kept[row]) < (1e-7 if LOSSES[name].library == "xgboost" else 2e-15), row
    assert (found[script.NEGATIVE], found[script.WEIGHTS]) == (kept[script.NEGATIVE], pytest.approx(2.0))
    assert found[script.START] == pytest.approx(kept[script.START], abs=1e-9)


@pytest.mark.slow
@each_loss
def test_our_code_runs_and_gives_our_probabilities(name: str) -> None:
    if importlib.util.find_spec(LOSSES[name].library) is None:
        pytest.skip(f"{LOSSES[name].library} is not installed")
    found = script.trained_ours(LOSSES[name])
    assert found[script.RUNS] == "runs"
    assert found[script.PROBABILITIES] == pytest.approx(KEPT["losses"][name][script.PROBABILITIES]["ours"], rel=0.05)


def test_the_formula_of_the_copies_loses_its_digits_today() -> None:
    loss = LOSSES["focal_loss_lgb"]
    found = script.of_derivatives(loss, lambda margins, data: loss.call(None, margins, data), float("-inf"))
    kept = KEPT["losses"]["focal_loss_lgb"]
    assert found[script.CURVATURE] == pytest.approx(kept[script.CURVATURE]["theirs"], rel=0.5)
    assert found[script.FAR_GRADIENT] == kept[script.FAR_GRADIENT]["theirs"] == "nan"


def test_every_code_is_on_the_page() -> None:
    blocks = re.findall(r"### (.*?)\n\n```diff\n(.*?)```", PAGE, re.DOTALL)
    assert [name for name, _ in blocks] == list(LOSSES)
    for name, block in blocks:
        lines = block.splitlines()
        assert "\n".join(line[1:] for line in lines if line.startswith("+")) == LOSSES[name].after
        assert "\n".join(line[1:] for line in lines if line.startswith("-")) == LOSSES[name].before
