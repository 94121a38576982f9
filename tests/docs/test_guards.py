"""tests/README.md says which test guards what: it is what the tests' markers say, and what it asks for is there."""

import subprocess
import sys

import guards
from common import ROOT


def test_the_table_is_that_of_the_tests():
    done = subprocess.run([sys.executable, str(ROOT / "tests/helpers/guards.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def complete():
    """A table in which every script has a fast test of every guard."""
    return {guard: {"test_x.py::test_x": dict.fromkeys(guards.SCRIPTS, True)} for guard in guards.GUARDS}


def test_what_is_missing_is_named():
    assert guards.faults(complete()) == []
    table = complete()
    del table["resume"]
    assert guards.faults(table) == ["no test guards 'resume'"]
    table = complete()
    del table["golden"]["test_x.py::test_x"]["bbf"]
    assert guards.faults(table) == ["golden: no test of bbf"]
    table = complete()
    table["storing"] = {"test_x.py::test_x": {"sac": False, "dqn": False, "c51": True}}
    assert guards.faults(table) == ["storing: no fast test of sac, dqn, dqn_atari"]
    table["storing"]["test_x.py::test_y"] = {"dqn": True}
    assert guards.faults(table) == []
    unmarked = {"algorithms/test_x.py::test_x": {"sac": True}}
    assert "no guard" in guards.faults(complete() | {"test_x": unmarked})[0]
    assert guards.faults(complete() | {"test_sweep": {"benchmark/test_sweep.py::test_x": {"": False}}}) == [
        "test_sweep: no fast test"
    ]


def test_a_page_names_tests_and_scripts():
    table = complete()
    table["storing"] = {"a.py::test_x": {"sac": True, "bbf": False}}
    text = guards.page(table)
    assert "- `a.py::test_x`: sac; in test-all bbf\n" in text and "- `test_x.py::test_x`: all scripts\n" in text
    column = list(guards.GUARDS).index("storing")
    marks = {
        line.split("|")[1].strip(): line.split("|")[column + 2].strip() for line in text.split("\n") if "| " in line
    }
    assert (marks["sac"], marks["bbf"], marks["dqn"]) == ("●", "○", "")
