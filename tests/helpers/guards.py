"""Which test guards what, for which script, and when it runs: tests/README.md is made from the tests' markers.

    python tests/helpers/guards.py --write

writes it anew, and so does `make fix`; without --write, it says what is wrong. `@pytest.mark.guards("resets",
"sr_sac")` puts a test into a row. Without names of scripts, they are those among the test's parameters, or else among
its fixtures; "all" stands for every script. A module may have a marker for all its tests, which a test's own replaces.
Tests of benchmark/, studies/ and docs/ need none: their row is that of their file.
"""

import contextlib
import io
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TABLE = ROOT / "tests" / "README.md"
SCRIPTS = sorted(path.stem for path in (ROOT / "algos").glob("*.py"))
FAMILIES = ("sac", "dqn", "dqn_atari")  # one of them has a fast test of every guard
RESETTING = ("sr_sac", "sr_dqn")  # and in their place of resets, which they lack

GUARDS = {
    "copies": "a text that stands in several scripts is one text, and a child says what it changes",
    "density": "no script passes a limit of lines and tokens, or has a habit that the style avoids",
    "flags": "names, defaults and meaning of the flags: frozen, documented, read, refused if out of range",
    "golden": "the first updates and resets on a fixed stream of observations are the frozen ones",
    "loss": "updates against an independent implementation: NumPy, rlax or plain loops",
    "networks": "layers, sizes, initial weights and noise",
    "acting": "exploration, which network acts, and with which noise",
    "schedule": "which updates, copies of a target and annealed values belong to a step",
    "storing": "the replay holds what happened, before its ring comes round and after",
    "sampling": "which rows an update sees, how often, and what n steps make of them",
    "ring": "a step does not copy the replay, and a row takes as many bytes as it should",
    "resets": "when they come, what they renew and what they keep",
    "seeds": "seeds differ, and one among others is the run alone",
    "evaluation": "episodes, policy and random numbers of an evaluation",
    "environment": "what a step of the environment returns is what the environment itself does",
    "dependencies": "the emulators and tasks of EnvPool, gymnax and dm_control are what they are taken for",
    "short run": "alone in an empty folder a run goes to its end and logs what its page says",
    "resume": "killed at any moment and started again, a run ends with the same bits",
    "fresh": "new episodes at a resume: nothing reaches across, and the run is exact from there on",
    "run": "folders, logs, signals and processes of a run",
    "errors": "what a user can mend is one line with exit code 2, and nothing is lost",
}
EVERY = ("copies", "density", "flags", "golden", "loss", "short run")  # guards that every script has
FILES = {  # rows of the tests that are not of a script
    "test_sweep": "sweeps: grids, kills, failures, clusters",
    "test_collect": "run folders become tables",
    "test_report": "statistics, comparisons and pages of the report",
    "test_speed": "measurements of speed",
    "test_film": "films of a run",
    "test_docs": "pages, their flags, paths and diffs",
    "test_readme": "what the README shows and claims",
    "test_lock": "requirements.lock holds what requirements.txt installs",
    "test_jobs": "what a sweep gives to each job",
    "test_datasets": "datasets: layout, export, reader and errors",
}


class Collection:
    """A pytest plugin that keeps the tests before any is left out."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items):
        self.items = list(items)


def collect():
    sys.path.insert(0, str(ROOT))  # as `python -m pytest` has it
    collection = Collection()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", str(ROOT / "tests")], [collection])
    if code:
        sys.exit(said.getvalue())
    return collection.items


def rows_of(item):
    """A test -> its guards, each with the scripts that it is a test of."""
    markers = [marker for marker in item.own_markers if marker.name == "guards"] or list(item.iter_markers("guards"))
    parameters = list(item.callspec.params.values()) if hasattr(item, "callspec") else []
    for guard, *scripts in [marker.args for marker in markers] or [[item.path.stem]]:
        scripts = scripts or [name for name in SCRIPTS if name in parameters]
        scripts = scripts or [name for name in SCRIPTS if name in item.fixturenames]
        yield guard, SCRIPTS if scripts == ["all"] else scripts


def table_of(items):
    """{guard: {test: {script, or "" for none: whether it is fast}}}"""
    found = defaultdict(lambda: defaultdict(dict))
    for item in items:
        test = f"{item.path.relative_to(ROOT / 'tests')}::{item.originalname}"
        is_fast = not item.get_closest_marker("slow")
        for guard, scripts in rows_of(item):
            for script in scripts or [""]:
                found[guard][test][script] = found[guard][test].get(script, False) or is_fast
    return found


def cells(tests):
    """A guard's tests -> {script: whether a test of it is fast}"""
    found = {}
    for scripts in tests.values():
        for script, is_fast in scripts.items():
            found[script] = found.get(script, False) or is_fast
    return found


def faults(table):
    """What is wrong with the tests, in lines."""
    lines = [f"no test guards {guard!r}" for guard in GUARDS if guard not in table]
    for guard, tests in table.items():
        found = cells(tests)
        if guard in GUARDS:
            heads = RESETTING if guard == "resets" else FAMILIES
            if not any(found.get(script) for script in heads):
                lines.append(f"{guard}: no fast test of {', '.join(heads)}")
        elif Path(next(iter(tests))).parts[0] not in ("benchmark", "studies", "docs") and guard not in FILES:
            lines.append(f"{guard}: these tests have no guard, or one that tests/helpers/guards.py does not know")
        elif guard in FILES and not any(found.values()):
            lines.append(f"{guard}: no fast test")
        if guard in EVERY:
            lines += [f"{guard}: no test of {script}" for script in SCRIPTS if script not in found]
    return lines


def page(table):
    """The page as Markdown."""
    lines = [
        "# What the tests guard",
        "",
        "Made by `make fix` from the tests' markers (tests/helpers/guards.py). ● has a test in `make test`, ○ in",
        "`make test-all` alone. An empty cell is of a text that the script shares with one that has a test: the copies",
        "are compared, and what belongs to one text is tested on one script of each family.",
        "",
        f"| script | {' | '.join(GUARDS)} |",
        "|---" * (1 + len(GUARDS)) + "|",
    ]
    found = {guard: cells(table[guard]) for guard in GUARDS}
    for script in SCRIPTS:
        marks = [{True: "●", False: "○", None: ""}[found[guard].get(script)] for guard in GUARDS]
        lines.append(f"| {script} | {' | '.join(marks)} |")
    others = sorted(name for name in table if name not in GUARDS)
    for guard in [*GUARDS, *others]:
        about = GUARDS.get(guard) or FILES.get(guard)
        lines += ["", f"## {guard}", "", *([f"{about[0].upper()}{about[1:]}.", ""] if about else [])]
        for test, scripts in sorted(table[guard].items()):
            fast = [name for name, is_fast in scripts.items() if is_fast]
            slow = [name for name, is_fast in scripts.items() if not is_fast]
            parts = [named(fast)] if fast else []
            parts += [f"in test-all {named(slow)}".rstrip()] if slow else []
            lines.append(f"- `{test}`: {'; '.join(parts)}".removesuffix(": "))
    return "\n".join([*lines, ""])


def named(scripts):
    return "all scripts" if set(scripts) >= set(SCRIPTS) else ", ".join(sorted(filter(None, scripts)))


def main(words):
    table = table_of(collect())
    wrong = faults(table)
    if wrong:
        sys.exit("\n".join(wrong))
    if words == ["--write"]:
        TABLE.write_text(page(table))
    elif not TABLE.exists() or TABLE.read_text() != page(table):
        sys.exit("tests/README.md is not what the tests' markers say; make fix writes it anew")


if __name__ == "__main__":
    main(sys.argv[1:])
