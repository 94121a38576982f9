"""A script repeats what it needs, and this keeps the copies honest.

1. Same name, same code: a top-level definition that stands in several scripts under one name is one text in all of
   them, except for the parts that every algorithm owns (OWN below).
2. Declared children: a script names its parents and the definitions that are neither's, and lists nothing else.

python tests/algorithms/test_copies.py --fix algos/sac.py
spreads the shared definitions of that file to all other scripts.
"""

import ast
import re
import sys
from functools import cache
from pathlib import Path

ALGOS = Path(__file__).parent.parent.parent / "algos"
OWN = set(
    "Args Learner Transition State AXES init_learner init_state update train_step main metrics evaluate check epsilon "
    "critic_loss actor_loss alpha_loss q_loss q_values head_values optimizer greedy_action".split()
)
DECLARATION = re.compile(r"^Parents?: (?P<parents>[^;]+); differs: (?P<names>[\w, \n]+?)$(?=\n\w+:)", re.M)


@cache
def definitions(text):
    """name -> source, of a script's top-level functions, classes and assignments."""
    lines, found = text.splitlines(keepends=True), {}
    for node in ast.parse(text).body:
        names = [getattr(node, "name", None)]
        if isinstance(node, ast.Assign):
            names = [target.id for target in node.targets]
        if names[0]:
            start = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
            found |= {name: "".join(lines[start - 1 : node.end_lineno]) for name in names}
    return found


@cache
def declaration(text):
    """Parents and own names of a child, from its docstring; None for a root."""
    match = DECLARATION.search(ast.get_docstring(ast.parse(text)) + "\n")
    if match is None:
        return None
    split = lambda words: [word.strip() for word in words.replace("\n", " ").split(",")]
    return split(match["parents"]), set(split(match["names"]))


def drift(scripts):
    """Breaches of rule 1 in {script: text}: [(name, script, other script)]."""
    seen, found = {}, []
    for script, text in scripts.items():
        for name, source in definitions(text).items():
            if name not in OWN:
                other, first = seen.setdefault(name, (script, source))
                if source != first:
                    found.append((name, other, script))
    return found


def undeclared(script, scripts):
    """Breaches of rule 2 by a script: names that differ undeclared, names that are declared and do not differ."""
    declared = declaration(scripts[script])
    if declared is None:
        return set(), set()
    inherited = [definitions(scripts[parent]) for parent in declared[0]]
    mine = definitions(scripts[script])
    differ = {name for name, source in mine.items() if source not in [own.get(name) for own in inherited]}
    return differ - declared[1], declared[1] - differ


def read():
    return {path.name: path.read_text() for path in sorted(ALGOS.glob("*.py"))}


def fix(source):
    """Writes the shared definitions of one script into all others."""
    model = definitions(Path(source).read_text())
    for path in ALGOS.glob("*.py"):
        text = path.read_text()
        for name, old in definitions(text).items():
            if name in model and name not in OWN:
                text = text.replace(old, model[name])
        path.write_text(text)


def test_same_name_same_code():
    assert not drift(read())


def test_children_declare_what_differs():
    scripts = read()
    for script in scripts:
        assert undeclared(script, scripts) == (set(), set()), script


def test_every_script_is_a_root_or_a_child():
    roots = [name for name, text in read().items() if declaration(text) is None]
    assert roots == ["dqn.py", "sac.py"]


def test_the_rules_see_a_breach():
    scripts = read()
    changed = scripts["sr_sac.py"].replace("reverse=True", "reverse=False")
    assert [name for name, *_ in drift(scripts | {"sr_sac.py": changed})] == ["checkpoints"]
    assert undeclared("sr_sac.py", scripts | {"sr_sac.py": changed}) == ({"checkpoints"}, set())
    changed = scripts["sr_sac.py"].replace(
        "returns + ~done", "returns - ~done"
    )  # every algorithm's own, but a child's not
    assert undeclared("sr_sac.py", scripts | {"sr_sac.py": changed}) == ({"evaluate"}, set())
    idle = scripts["sr_sac.py"].replace("differs: Args,", "differs: Args, update,")
    assert undeclared("sr_sac.py", scripts | {"sr_sac.py": idle}) == (set(), {"update"})


def test_size_and_imports():
    for name, text in read().items():
        assert len(text.splitlines()) <= 600, f"{name} has {len(text.splitlines())} lines"
        assert not re.search(r"^\s*(from|import) +(algos|benchmark|tests|docs)\b", text, re.M), name
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import)]
        imported = {alias.name.split(".")[0] for node in nodes for alias in node.names}
        assert not imported & {path.stem for path in ALGOS.glob("*.py")} and "random" not in imported


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--fix":
        sys.exit("usage: python tests/algorithms/test_copies.py --fix algos/SCRIPT.py")
    fix(sys.argv[2])
