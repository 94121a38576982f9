"""tools/copies.py keeps the rules of the copies, and sees every breach of them."""

import re
import subprocess
import sys

import pytest
from common import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import copies

pytestmark = pytest.mark.guards("copies", "all")

# -------------------------------------------------------------------------------------------------------- The scripts


def test_the_scripts_keep_the_rules():
    assert copies.breaches(copies.read()) == []


def test_every_script_is_a_root_or_a_child():
    roots = [name for name, text in copies.read().items() if copies.declaration(text) is None]
    assert roots == ["dqn.py", "sac.py"]


def test_families():
    """A banner that was changed by mistake would found a family of its own."""
    scripts = copies.read()
    assert list(copies.heads(scripts)) == ["dqn.py", "sac.py", "dqn_atari.py"]
    assert len({copies.family(text) for text in scripts.values()}) == 3


def test_no_exception_is_idle():
    """But for what has one text only because SAC has one child, or no script a folder of another name."""
    idle = {"Actor", "Critic", "critic_loss", "actor_loss", "alpha_loss", "RUN_NAME"}
    assert set(copies.idle_own(copies.read())) <= idle


def test_imports():
    for name, text in copies.read().items():
        assert not re.search(r"^\s*(from|import) +(algos|benchmark|studies|tests|tools|docs)\b", text, re.M), name
        nodes = [node for node in copies.ast.walk(copies.ast.parse(text)) if isinstance(node, copies.ast.Import)]
        imported = {alias.name.split(".")[0] for node in nodes for alias in node.names}
        assert not imported & {path.removesuffix(".py") for path in copies.read()} and "random" not in imported


# ----------------------------------------------------------------------------------------------------- Small examples

RULER = "# " + "=" * 118
PARENT = f'''"""A parent."""

import math


class Args:
    size = 3


LIMIT = 4  # of everything


def require(condition):
    assert condition


{RULER}
# ALGORITHM: for one seed.
{RULER}

# ---------------------------------------------------------------------------------------------------------- Networks


# Both layers have it.
def dense(x):
    return 2 * x


def update(x):
    """One update."""
    y = dense(x)
    return y


def epsilon(step):
    return step / 2


{RULER}
# ENVIRONMENT AND EVALUATION: the same text in all scripts for toys.
{RULER}


def make_env():
    return math.pi


{RULER}
# RUN: the same text in every script.
{RULER}


def main():
    print("ran")


if __name__ == "__main__":
    main()
'''
CHILD = (
    PARENT.replace(
        '"""A parent."""',
        '"""A child.\n\nPaper:   none\nParent:  parent.py; differs: Args, update; without: epsilon\nRun:     it\n"""',
    )
    .replace("size = 3", "size = 4")
    .replace("y = dense(x)", "y = dense(x) + 1")
    .replace("def epsilon(step):\n    return step / 2\n\n\n", "")
)
OTHER = PARENT.replace("def epsilon", "def project(x):\n    return x\n\n\ndef epsilon")
MIXED = OTHER.replace(
    '"""A parent."""',
    '"""A mixture.\n\nParents: parent.py (differs: Args),\n         other.py (takes: project)\nRun:     it\n"""',
).replace("size = 3", "size = 5")
SCRIPTS = {"other.py": OTHER, "parent.py": PARENT, "child.py": CHILD, "mixed.py": MIXED}


def changed(script, old, new):
    assert old in SCRIPTS[script]
    return SCRIPTS | {script: SCRIPTS[script].replace(old, new)}


def test_bands_and_definitions():
    for text in SCRIPTS.values():
        assert "".join(copies.bands(text).values()) == text and tuple(copies.bands(text)) == copies.BANDS
    found = copies.definitions(PARENT)
    assert found["dense"].source == "# Both layers have it.\ndef dense(x):\n    return 2 * x\n"
    assert found["LIMIT"].source == "LIMIT = 4  # of everything\n"
    assert [own.band for own in found.values()] == ["header"] * 3 + ["ALGORITHM"] * 3 + [*copies.BANDS[2:]]


def test_declarations():
    assert copies.declaration(PARENT) is None
    assert copies.declaration(CHILD) == (["parent.py"], ["Args", "update"], ["epsilon"], {})
    assert copies.declaration(MIXED) == (["parent.py", "other.py"], ["Args"], [], {"other.py": ["project"]})
    plain = '"""A twin.\n\nParent:  parent.py\nRun:     it\n"""\n'
    assert copies.declaration(plain) == (["parent.py"], [], [], {})
    both = '"""Two.\n\nParents: a.py (differs: A, B; without: C), b.py (takes: D,\n         E)\n"""\n'
    assert copies.declaration(both) == (["a.py", "b.py"], ["A", "B"], ["C"], {"b.py": ["D", "E"]})


def test_no_breach():
    assert copies.breaches(SCRIPTS) == []


@pytest.mark.parametrize(
    "script, old, new, said",
    [
        ("child.py", 'print("ran")', 'print("run")', ["child.py: its RUN is not that of other.py"]),
        ("child.py", "if __name__", "if not __name__", ["its RUN is not"]),
        ("child.py", "the same text in every script", "one text", ["its RUN is not"]),
        ("child.py", "return math.pi", "return math.e", ["its ENVIRONMENT AND EVALUATION is not that of other.py"]),
        ("child.py", "return 2 * x", "return x * 2", ["its dense is not that of other.py", "`differs:` lacks dense"]),
        ("child.py", "Both layers", "All layers", ["its dense is not", "`differs:` lacks dense"]),
        ("child.py", "LIMIT = 4", "LIMIT = 5", ["its LIMIT is not", "`differs:` lacks LIMIT"]),
        ("child.py", "# of everything", "# of all", ["its LIMIT is not", "`differs:` lacks LIMIT"]),
        ("child.py", "differs: Args, update", "differs: Args", ["`differs:` lacks update"]),
        ("child.py", "Args, update", "Args, dense, update", ["`differs:` names dense in vain"]),
        ("child.py", "Args, update", "Args, update, nothing", ["`differs:` names nothing in vain"]),
        ("child.py", "Args, update", "Args, update, Args", ["`differs:` names Args in vain, or twice"]),
        ("child.py", "; without: epsilon", "", ["`without:` lacks epsilon"]),
        ("child.py", "without: epsilon", "without: epsilon, dense", ["`without:` names dense in vain"]),
        ("child.py", "def update", "def more(x):\n    return x\n\n\ndef update", ["`differs:` lacks more"]),
        ("child.py", "parent.py;", "nobody.py;", ["parent nobody.py"]),
        ("child.py", "# ALGORITHM", "# Algorithm", ["child.py: it has no band ALGORITHM"]),
        ("mixed.py", "(differs: Args)", "(differs: Args, project)", ["`differs:` names project in vain"]),
        ("mixed.py", "(takes: project)", "(takes: project, dense)", ["`takes:` names dense in vain"]),
        ("mixed.py", " (takes: project)", "", ["`takes:` lacks project"]),
        ("mixed.py", "return x\n\n\ndef e", "return -x\n\n\ndef e",
         ["its project is not", "`differs:` lacks project", "`takes:` names project in vain"]),
    ],
)  # fmt: skip
def test_a_breach_is_seen(script, old, new, said):
    found = copies.breaches(changed(script, old, new))
    assert len(found) == len(said), found
    for line, words in zip(found, said, strict=True):
        assert words in line and script in line


def test_what_algorithms_own_may_differ_between_roots():
    scripts = changed("other.py", "y = dense(x)", "y = dense(x) - 1")
    assert copies.breaches(scripts | {"mixed.py": MIXED.replace("y = dense(x)", "y = dense(x)")}) == []
    assert copies.idle_own(SCRIPTS) == sorted((copies.OWN | copies.FAMILY_OWN) - {"Args", "update"})


def test_another_family():
    """It has a banner and a text of its own; but what both families have under one name is one text."""
    child = CHILD.replace("for toys", "for games").replace("return math.pi", "return math.e")
    scripts = SCRIPTS | {"child.py": child}
    assert copies.breaches(scripts) == []
    assert list(copies.heads(scripts)) == ["other.py", "parent.py", "child.py"]
    for name, value in (("child.py", 2), ("parent.py", 1), ("other.py", 1), ("mixed.py", 1)):
        scripts[name] = scripts[name].replace("def make_env", f"def prize():\n    return {value}\n\n\ndef make_env")
    assert copies.breaches(scripts) == ["child.py: its prize is not that of other.py, first in `return 2`"]


def written(folder, scripts):
    for name, text in scripts.items():
        (folder / name).write_text(text)
    return folder


def tool(folder, *words, code=0):
    command = [sys.executable, str(ROOT / "tools" / "copies.py"), "--folder", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_fix_spreads_what_is_shared_and_nothing_else(tmp_path):
    edits = [('print("ran")', 'print("run")'), ("math.pi", "math.tau"), ("return 2 * x", "return x + x")]
    edits += [("Both layers", "All layers"), ("size = 4", "size = 6"), ("dense(x) + 1", "dense(x) + 2")]
    text = CHILD
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    written(tmp_path, SCRIPTS | {"child.py": text})
    assert "its RUN is not" in tool(tmp_path, code=1)
    tool(tmp_path, "--fix", "algos/child.py")
    fixed = copies.read(tmp_path)
    assert copies.breaches(fixed) == [] and fixed["child.py"] == text
    for old, new in edits[:4]:
        assert all(old not in own and new in own for own in fixed.values())
    assert "size = 3" in fixed["parent.py"] and "dense(x)\n" in fixed["parent.py"]
    assert tool(tmp_path) == ""


def test_fix_from_the_roots(tmp_path):
    text = CHILD.replace("math.pi", "math.tau").replace("Both layers", "All layers")
    written(tmp_path, SCRIPTS | {"child.py": text})
    assert tool(tmp_path, "--fix") == "child.py: rewritten\n"
    assert copies.read(tmp_path) == SCRIPTS
    written(tmp_path, changed("other.py", "math.pi", "math.e"))
    said = tool(tmp_path, "--fix", code=1)
    assert "parent.py: its ENVIRONMENT AND EVALUATION is not that of other.py" in said and "--fix SCRIPT" in said
    assert copies.read(tmp_path)["parent.py"] == PARENT
    assert "no script nothing.py" in tool(tmp_path, "--fix", "nothing.py", code=1)


def test_lists_are_rewritten(tmp_path):
    scripts = {
        name: text.replace(": Args, update; without: epsilon", ": dense").replace("differs: Args", "differs: update")
        for name, text in SCRIPTS.items()
    }
    scripts["mixed.py"] = scripts["mixed.py"].replace(" (takes: project)", "")
    written(tmp_path, scripts)
    tool(tmp_path, "--lists")
    assert copies.read(tmp_path) == SCRIPTS | {"mixed.py": MIXED.replace(",\n         other", ", other")}


def test_changes_are_counted(tmp_path):
    found = copies.changes("child.py", SCRIPTS)
    counts = {name: tuple(own[kind] for kind in ("changed", "added", "removed")) for name, own in found.items()}
    assert counts == {"Args": (1, 0, 0), "update": (1, 0, 0), "epsilon": (0, 0, 2)}
    assert set(copies.changes("mixed.py", SCRIPTS)) == {"Args"}  # what it takes is no change
    commented = changed("child.py", "    y = dense(x) + 1\n", "    # Why.\n\n    y = dense(x) + 1  # this\n")
    assert copies.changes("child.py", commented) == found
    said = tool(written(tmp_path, SCRIPTS), "--changes").splitlines()
    assert [line.split()[:6] for line in said[1:]] == [["child.py", *"42021"[:5]], ["mixed.py", *"11001"]]
