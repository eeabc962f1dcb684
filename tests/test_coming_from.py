"""Checks the page "Coming from another PolyLoss" against the stored results, and those against the current code.

The results of other packages are not measured again: that needs a network. docs/coming_from.py does it.
"""

import json
import math
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

DOCS = Path(__file__).parent.parent / "docs"


def load() -> Any:
    """Imports the script by its path, since it is not in a package."""
    spec = spec_from_file_location("coming_from", DOCS / "coming_from.py")
    assert spec
    assert spec.loader
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


script = load()
KEPT = json.loads(script.KEPT.read_text(encoding="utf-8"))
PAGE = script.PAGE.read_text(encoding="utf-8")
LOSSES = {loss.name: loss for peer in script.PEERS for loss in peer.losses}
CELLS = [(name, case) for name, loss in LOSSES.items() for case in loss.link.cases]
each_loss = pytest.mark.parametrize("name", LOSSES)
each_cell = pytest.mark.parametrize(("name", "case"), CELLS, ids=[f"{name}, {case}" for name, case in CELLS])


def close(found: Any, kept: Any, case: Any, digits: float = 1e-12) -> bool:
    """Compares to the case's finfo.eps or to ``digits``, whichever is larger."""
    if isinstance(found, str) or isinstance(kept, str):
        return bool(found == kept)
    return math.isclose(found, kept, rel_tol=max(digits, torch.finfo(case.input.dtype).eps))


def test_the_page_is_what_the_script_writes() -> None:
    assert script.page(KEPT) == PAGE


def test_every_case_of_every_loss_was_measured() -> None:
    assert [(name, case) for name, rows in KEPT["losses"].items() for case in rows] == CELLS


@each_cell
def test_our_number_is_todays(name: str, case: str) -> None:
    loss = LOSSES[name]
    ours, _ = script.measure_ours(loss, loss.link.cases[case])
    kept = KEPT["losses"][name][case]["ours"]
    assert isinstance(ours, float), ours
    assert close(ours, kept, loss.link.cases[case]), f"{ours} now, {kept} kept"


LOW_PRECISION = (torch.float16, torch.bfloat16)  # torch's own losses lose digits there, as the page says
PLAIN = [
    pytest.param(link, case, id=name)
    for link in (script.SOFTMAX, script.SIGMOID)
    for name, case in link.cases.items()
    if case.input.dtype not in LOW_PRECISION
]


@pytest.mark.parametrize(("link", "case"), PLAIN)
def test_ours_plain_is_torchs(link: Any, case: Any) -> None:
    ours = script.measure(link.ours, case, **{**case.options, **link.plain, "epsilon": 0.0})
    options = {name: value for name, value in case.options.items() if name not in link.plain}
    right = script.measure(link.torchs, case, **options)
    assert isinstance(right, float), right
    assert close(ours, right, case), f"{ours}, torch {right}"


@each_loss
def test_there_is_a_reason_for_what_differs_and_for_nothing_else(name: str) -> None:
    loss, rows = LOSSES[name], KEPT["losses"][name]
    verdicts = {case: script.verdict(rows[case], loss.link.cases[case]) for case in loss.link.cases}
    assert set(loss.reasons) == {case for case, verdict in verdicts.items() if verdict not in ("same", "-")}
    silent = {case for case, verdict in verdicts.items() if verdict == "**differs**"}
    formulas = {case for case, (_, formula) in loss.reasons.items() if formula}
    assert formulas <= silent
    # JAX rounds differently from torch.
    assert silent - formulas <= {"confident logits, bfloat16"}


EXPLAINED = [(name, case) for name, case in CELLS if LOSSES[name].reasons.get(case, ("", ""))[1]]


@pytest.mark.parametrize(("name", "case"), EXPLAINED, ids=[f"{name}, {case}" for name, case in EXPLAINED])
def test_the_formula_of_a_reason_gives_their_number(name: str, case: str) -> None:
    loss = LOSSES[name]
    found, kept = script.explained(loss, case), KEPT["losses"][name][case]["theirs"]
    # timm computes in float32.
    digits = torch.finfo(torch.float32).eps if name.startswith("timm") else 1e-12
    assert close(found, kept, loss.link.cases[case], digits), f"{found}, measured {kept}"


BLOCKS = re.findall(r"### (.*?)\n\n```diff\n(.*?)```", PAGE, re.DOTALL)


def test_every_loss_has_a_replacement_in_the_page() -> None:
    assert [name for name, _ in BLOCKS] == list(LOSSES)


@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_the_replacement_runs_and_gives_our_number(name: str, block: str) -> None:
    loss = LOSSES[name]
    case = loss.link.cases[loss.link.example]
    code = "\n".join(line[1:] for line in block.splitlines() if line.startswith("+"))
    names: dict[str, Any] = {"logits": case.input, "target": case.target}
    exec(code, names)
    found, kept = float(names["loss"]), KEPT["losses"][name][loss.link.example]["ours"]
    assert close(found, kept, case), f"{code}\n{found}, kept {kept}"


TABLES = dict(re.findall(r"### (.*?)\n.*?\n\| case \|[^\n]*\n\|[- |]*\n(.*?)(?:\n\n|\Z)", PAGE, re.DOTALL))


@each_loss
def test_our_column_of_the_page_is_todays(name: str) -> None:
    loss = LOSSES[name]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TABLES[name].splitlines()]
    assert [row[0] for row in rows] == list(loss.link.cases)
    for case, _, shown, *_ in rows:
        ours, _ = script.measure_ours(loss, loss.link.cases[case])
        # The page shows six digits.
        assert close(float(shown), ours, loss.link.cases[case], digits=1e-5), f"{case}: {shown} in the page, {ours} now"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)]+)\)", PAGE))))
def test_what_it_points_to_is_there(target: str) -> None:
    file, _, heading = target.partition("#")
    text = (DOCS / file).read_text(encoding="utf-8") if file else PAGE
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9_ -]", "", title.lower()).replace(" ", "-") for title in headings}
    assert heading in anchors
