"""The README is short, its code is the script's own, and what it says to type exists."""

import re
import shlex

import tyro
from common import ROOT, SCRIPTS, load
from site_hooks import hooks

README = (ROOT / "README.md").read_text()
MOST_LINES = 120
MOST_WORDS = 1_000
MOST_COLUMNS = 160  # of a line that is no row of a table


def test_it_is_short():
    lines = README.splitlines()
    assert len(lines) <= MOST_LINES and len(README.split()) <= MOST_WORDS
    assert [line for line in lines if len(line) > MOST_COLUMNS and line[0] != "|"] == []


def test_its_update_is_that_of_sac():
    shown = re.search(r"```python\n(.*?)```", README, re.S)[1]
    source = hooks.copies().definitions(hooks.scripts()["sac"])["update"].source
    assert shown in source and len(shown.splitlines()) == 12


def test_its_first_command_is_a_short_run_of_dqn():
    """Its flags are valid, it is evaluated more than once, and updates are few enough for a minute."""
    first = next(block for block in re.findall(r"(?:^    .*\n)+", README, re.M))
    command = first.replace("\\\n", " ").splitlines()[0]
    python, script, *words = shlex.split(command)
    assert (python, script) == (".venv/bin/python", "algos/dqn.py")
    dqn = load("dqn")
    args = tyro.cli(dqn.Args, args=words)
    dqn.check(args)
    assert args.total_timesteps * args.replay_ratio <= 5_000 and args.total_timesteps // args.eval_interval >= 2
    start_page = re.sub(r"\\\n\s+", "", (ROOT / "docs/index.md").read_text())
    assert shlex.join(words) in start_page


def test_its_table_has_all_scripts_and_says_how_far_each_was_compared():
    """It says what the committed comparisons do: agree, differ, measured and nothing published, or tests only."""
    rows = [row.split("|") for row in hooks.section(README, "Scripts").splitlines() if row.startswith("| [`")]
    said = {name: row[3] for row in rows for name in re.findall(r"`(\w+)\.py`", row[1])}
    assert sorted(said) == sorted(SCRIPTS)
    for script, text in said.items():
        verdicts = {row[3] for row in compared(script)}
        measured = hooks.results_table(script).startswith("|")
        assert ("tests only" in text) == (not measured), script
        assert ("nothing is published" in text) == (measured and not verdicts), script
        assert ("agree" in text) == ("agrees" in verdicts), script
        assert ("differ" in text) == bool(verdicts & {"higher", "lower"}), script


def compared(script):
    """The comparisons of a script's own runs that decide something: (suite, ratio, task, verdict)."""
    found = []
    for suite in hooks.SUITES:
        for (algo, ratio, env), row in hooks.verdicts(suite).items():
            if algo == script:
                found.append((suite, ratio, env, row["verdict"]))
    return found


def test_its_links_into_pages_meet_headings():
    """The site's build checks those between pages; a heading's anchor is the same there and in the repository."""
    for page in ("README.md", "CONTRIBUTING.md"):
        for path, anchor in re.findall(r"\]\(([\w/.-]+\.md)#([^)]+)\)", (ROOT / page).read_text()):
            headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(), re.M)
            assert anchor in {hooks.anchor(heading) for heading in headings}, f"{path}#{anchor}"


def test_make_has_the_targets_that_pages_name():
    targets = set(re.findall(r"^([\w./-]+):(?!=)", (ROOT / "Makefile").read_text(), re.M))
    for page in ("README.md", "CONTRIBUTING.md", "AGENTS.md", "docs/index.md"):
        text = (ROOT / page).read_text()
        named = re.findall(r"(?:^ *|`)make ([\w./-]+)", text, re.M)
        assert set(named) <= targets, page
    assert {"demo", "test", ".venv/ready"} <= set(re.findall(r"(?:^ *|`)make ([\w./-]+)", README, re.M))
