"""The list of mutants is up to date. (``python tests/mutants.py`` checks that the tests find each.)"""

from collections import Counter

from mutants import MUTANTS, SOURCE


def test_every_mutant_can_be_planted() -> None:
    sources = {mutant.path: (SOURCE / mutant.path).read_text(encoding="utf-8") for mutant in MUTANTS}
    wrong = [f"{mutant.file}: {mutant.old}" for mutant in MUTANTS if sources[mutant.path].count(mutant.old) != 1]
    assert not wrong, "these are not in the source once:\n" + "\n".join(wrong)
    assert all(mutant.old != mutant.new for mutant in MUTANTS)
    assert max(Counter(MUTANTS).values()) == 1


def test_every_file_has_a_mutant() -> None:
    files = {path.relative_to(SOURCE / "polylosses").as_posix() for path in SOURCE.rglob("polylosses/**/*.*")}
    code = {file for file in files if file.endswith((".py", ".cpp", ".hpp")) and not file.endswith("__init__.py")}
    assert code == {mutant.file for mutant in MUTANTS}
