"""The order of the tests on several processes, and what is compiled ahead of them."""

from __future__ import annotations

from types import SimpleNamespace

import compile_ahead
import pytest
from order import ordered

TESTS = [f"{module}{number}" for module in "aBcdEfgHij" for number in range(3)]
"""Capital letters are modules with a long test, and E and H wait for compilers."""


def rows(tests: list[str], processes: int) -> list[list[str]]:
    """Return what worksteal gives each process at the start."""
    divided, given = [], 0
    for i in range(processes):
        count = (len(tests) - given) // (processes - i)
        divided.append(tests[given : given + count])
        given += count
    return divided


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_each_process_begins_with_long_tests_and_ends_with_compiled_ones(processes: int) -> None:
    result = ordered(TESTS, processes, lambda test: test[0], str.isupper, lambda test: test[0] in "EH")
    assert sorted(result) == sorted(TESTS)
    divided = rows(result, processes)
    assert divided[0][:3] == ["B0", "B1", "B2"]
    assert [row[-3:] for row in divided[:2]] == [["E0", "E1", "E2"], ["H0", "H1", "H2"]]
    plain = [test for test in result if test[0] not in "BEH"]
    assert plain == [test for test in TESTS if test[0] not in "BEH"]


def test_few_tests_are_kept_too() -> None:
    result = ordered(["H0", "a0"], 4, lambda test: test[0], str.isupper, lambda test: False)
    assert sorted(result) == ["H0", "a0"]


def item(*fixtures: str, compiles: tuple[str, ...] = ()) -> pytest.Item:
    marks = [pytest.mark.compiles(*compiles).mark] if compiles else []
    return SimpleNamespace(fixturenames=fixtures, iter_markers=lambda name: iter(marks))  # type: ignore[return-value]


def test_what_most_tests_wait_for_is_compiled_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SFTN_EMULATED_DIR", raising=False)
    targets = compile_ahead.targets_of
    assert targets([item("backend")]) == []  # the test itself compiles what it needs
    assert targets([item(compiles=("asan",)), item(compiles=("asan", "registers"))]) == ["asan", "registers"]
    assert targets([item(compiles=("asan",)), item("backend")]) == [compile_ahead.EMULATED, "asan"]
    monkeypatch.setenv("SFTN_EMULATED_DIR", "elsewhere")
    assert targets([item(compiles=("asan",)), item("backend")]) == ["asan"]
