"""The scripts stay readable: tools/density.py counts lines and tokens, and sees the habits that the style avoids."""

import sys

import pytest
from common import ROOT, SCRIPTS

sys.path.insert(0, str(ROOT / "tools"))
import density

pytestmark = pytest.mark.guards("density", "all")


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_passes_a_limit(script):
    assert density.passed_limits(script, (ROOT / "algos" / f"{script}.py").read_text()) == []


RULER = "# " + "=" * 118
SMALL = f'''"""A script.

Of two paragraphs.
"""

import math
from pathlib import (
    Path,
)


class Args:
    one: int = 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1  # not counted


{RULER}
# ALGORITHM: more
{RULER}


@staticmethod  # a comment
def area(x):
    """Not counted, either."""
    # Nor this.
    return (
        math.pi
        * x
    )


{RULER}
# ENVIRONMENT AND EVALUATION: more
{RULER}
{RULER}
# RUN: more
{RULER}
Path(".")
'''


def test_tokens_are_counted_in_code_alone():
    counts = [2, 6, 2, 3, 2, 1, 4]  # @staticmethod; def area(x): ...
    assert list(density.tokens_by_line(SMALL).values()) == counts
    mean, p90, lines, seen = density.measure(SMALL)
    assert mean == sum(counts) / len(counts) and p90 == 6 and seen == []
    assert lines == {"header": 15, "ALGORITHM": 15, "ENVIRONMENT AND EVALUATION": 3, "RUN": 4}
    assert sum(lines.values()) == SMALL.count("\n")


@pytest.mark.parametrize(
    "line, what",
    [
        ("a, b = 1, 2", "several assignments in one"),
        ("double = lambda x: 2 * x", "a lambda with a name"),
        ("import math, os", "several imports in one line"),
        ("print(a := 1)", "an assignment within an expression"),
        ("a = 1; b = 2", "several statements"),
        ("if SMALL: a = 1", "several statements"),
    ],
)
def test_a_habit_is_seen(line, what):
    assert density.habits(f"\n{line}\n") == [(2, what)]


@pytest.mark.parametrize(
    "line", ["a, b = f(x)", "a = [1, 2]", "call(lambda x: x)", "from os import path, sep", "a = 1"]
)
def test_what_is_no_such_habit(line):
    assert density.habits(line) == []


def test_every_limit_is_seen():
    assert density.passed_limits("small", SMALL) == []
    assert density.passed_limits("small", SMALL + "a, b = 1, 2\n") == ["small, line 38: several assignments in one"]
    for band, most in density.LINES.items():
        banner = "" if band == "header" else f"# {band}: more\n{RULER}\n"
        more = "\n" * (most + 1) if band == "header" else banner + "\n" * most
        long = more + SMALL if band == "header" else SMALL.replace(banner, more)
        assert [band in line for line in density.passed_limits("small", long)] == [True], band
    assert len(density.passed_limits("spr", SMALL.replace("    # Nor this.\n", "\n" * 400))) == 0
    for words, most in density.ENVIRONMENT_LINES.items():
        own = SMALL.replace("EVALUATION: more\n", f"EVALUATION: for {words}\n")
        for lines, passed in ((most - 3, 0), (most, 1)):  # the banner has three
            longer = own.replace(f"{RULER}\n# RUN", "\n" * lines + f"{RULER}\n# RUN")
            assert len(density.passed_limits("small", longer)) == passed, words
    dense = density.passed_limits("small", SMALL + ("print(" + "1 + " * 10 + "1)\n") * 9)
    assert len(dense) == 2 and "on average" in dense[0] and "24 tokens or more" in dense[1]
