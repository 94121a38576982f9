"""Keeps the copies in algos/ honest: every script repeats what it needs, and this says where repetitions differ.

    python tools/copies.py                 prints every breach of the rules; exit code 1 if there is one
    python tools/copies.py --fix [SCRIPT]  spreads the text of one script, or without a name that of the roots, to all
    python tools/copies.py --lists         rewrites the lists of names in the docstrings of children
    python tools/copies.py --changes       counts the code lines that each script changes of its parents

The rules:

1. RUN, from its banner to the end of the file, is one text in all scripts.
2. ENVIRONMENT AND EVALUATION is one text a family. The banner names the family: scripts with the same banner have the
   same text below it.
3. Same name, same code: a top-level definition above RUN that stands in several scripts under one name is one text,
   with the comment above it, except for what every algorithm (OWN) or every family (FAMILY_OWN) has of its own.
4. Declared children: a script's docstring names its parent and, of the definitions above the banner of ENVIRONMENT,
   those that differ from the parent's or that it adds, and those of the parent that it leaves out. With two parents
   it differs from the first, and takes definitions from the second. The lists are complete and nothing in them is idle:

       Parent:  sac.py; differs: Args, train_step; without: epsilon
       Parents: dqn.py (differs: Args, update; without: Dense), c51.py (takes: project, support)
"""

import argparse
import ast
import difflib
import io
import re
import sys
import textwrap
import tokenize
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

ALGOS = Path(__file__).resolve().parent.parent / "algos"
WIDTH = 120

# What has one name in all scripts because it has one role, not one text.
OWN = set(
    "PACKAGES RUN_NAME MAY_BE_ZERO AT_MOST_ONE Args check_algorithm "
    "Actor Critic Network Learner Transition Batch State SEED_AXES init_learner init_state make_optimizer q_values "
    "q_loss total_loss critic_loss actor_loss alpha_loss update epsilon store sample_batch train_step fresh_episode "
    "chunk_length before_chunk reset metrics acting_network".split()
)
FAMILY_OWN = set("env_versions make_pool new_seeds make_env select_actions evaluate".split())

BANDS = ("header", "ALGORITHM", "ENVIRONMENT AND EVALUATION", "RUN")
BANNER = re.compile(r"^# =+\n# (ALGORITHM|ENVIRONMENT AND EVALUATION|RUN)\b.*\n(?:# .*\n)*?# =+\n", re.M)
RULER = re.compile(r"# *[-=]{20,}")


class Definition(NamedTuple):
    first: int  # line, from 1; that of the comment above, if there is one
    last: int
    source: str  # these lines
    band: str


class Declaration(NamedTuple):
    parents: list  # file names
    differs: list  # from the first parent
    without: list  # what the first parent has and the child leaves out
    takes: dict  # other parent -> names


# ------------------------------------------------------------------------------------------------------------- Reading


def read(folder=ALGOS):
    """File name -> text, parents before their children."""
    texts = {path.name: path.read_text() for path in sorted(Path(folder).glob("*.py"))}
    order = []

    def visit(script):
        if script in order or script not in texts:
            return
        declared = declaration(texts[script])
        for parent in declared.parents if declared else []:
            if parent != script:
                visit(parent)
        order.append(script)

    roots = [script for script, text in texts.items() if declaration(text) is None]
    for script in [*roots, *texts]:
        visit(script)
    return {script: texts[script] for script in order}


@cache
def bands(text):
    """Band -> its text, with its banner; the bands put together are the text. One that is missing is absent."""
    found = list(BANNER.finditer(text))
    starts = [0, *[match.start() for match in found]]
    ends = [*starts[1:], len(text)]
    names = ["header", *[match[1] for match in found]]
    return {name: text[start:end] for name, start, end in zip(names, starts, ends, strict=True)}


def family(text):
    """The banner of ENVIRONMENT AND EVALUATION: scripts of one family have the same."""
    return BANNER.match(bands(text)["ENVIRONMENT AND EVALUATION"])[0]


@cache
def definitions(text):
    """Name -> Definition, of the top-level functions, classes and assignments, in the order of the text."""
    lines = text.splitlines(keepends=True)
    starts = {}
    start = 1
    for band, own in bands(text).items():
        starts[band] = start
        start += own.count("\n")
    found = {}
    for node in ast.parse(text).body:
        names = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            targets = [name for target in node.targets for name in ast.walk(target)]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign):
            names = [node.target.id]
        first = min([node.lineno, *[decorator.lineno for decorator in getattr(node, "decorator_list", [])]])
        while first > 1 and lines[first - 2].startswith("#") and not RULER.match(lines[first - 2]):
            first -= 1
        band = [name for name, start in starts.items() if start <= node.lineno][-1]
        source = "".join(lines[first - 1 : node.end_lineno])
        found |= dict.fromkeys(names, Definition(first, node.end_lineno, source, band))
    return found


def algorithm(text):
    """The definitions that a child declares: name -> source, of those above the banner of ENVIRONMENT."""
    found = definitions(text)
    return {name: own.source for name, own in found.items() if own.band in ("header", "ALGORITHM")}


@cache
def declaration(text):
    """What a child's docstring declares; None for a root."""
    entry = docstring_entry(text)
    if entry is None:
        return None
    words = " ".join(entry.split()).partition(": ")[2]
    lists = r"(?:differs|without|takes): [^();:]*"
    pattern = rf"(\w+\.py)(?: \(({lists}(?:; {lists})*)\)|; ({lists}(?:; {lists})*))?(?:, |; |$)"
    parents = []
    named = {"differs": [], "without": []}
    takes = {}
    for parent, inside, after in re.findall(pattern, words):
        parents.append(parent)
        for part in (inside or after).split("; ") if inside or after else []:
            kind, _, names = part.partition(": ")
            names = [name.strip() for name in names.split(",")]
            if kind == "takes":
                takes[parent] = names
            else:
                named[kind] += names
    return Declaration(parents, named["differs"], named["without"], takes)


def docstring_entry(text):
    """The lines of a docstring from `Parent:` to the next entry; None if there are none."""
    docstring = ast.get_docstring(ast.parse(text), clean=False) or ""
    match = re.search(r"^Parents?: .*\n(?:[ ]+.*\n)*", docstring + "\n", re.M)
    return match and match[0].rstrip("\n")


# --------------------------------------------------------------------------------------------------------------- Rules


def first_difference(one, two):
    """The first line of the second text that is not the first's."""
    pairs = zip([*one.splitlines(), ""], [*two.splitlines(), ""], strict=False)
    return next((b.strip() or a.strip() for a, b in pairs if a != b), "")


def missing_bands(scripts):
    return [
        f"{script}: it has no band {band}"
        for script, text in scripts.items()
        for band in BANDS
        if band not in bands(text)
    ]


def different_blocks(scripts):
    """Breaches of rules 1 and 2."""
    found = []
    seen = {}
    for script, text in scripts.items():
        for band, which in (("RUN", ""), ("ENVIRONMENT AND EVALUATION", family(text))):
            other, block = seen.setdefault((band, which), (script, bands(text)[band]))
            if block != bands(text)[band]:
                line = first_difference(block, bands(text)[band])
                found.append(f"{script}: its {band} is not that of {other}, first in `{line}`")
    return found


def different_definitions(scripts):
    """Breaches of rule 3, without those that rule 2 has seen."""
    found = []
    seen = {}
    for script, text in scripts.items():
        for name, own in definitions(text).items():
            if own.band == "RUN" or name in OWN | FAMILY_OWN:
                continue
            other, model = seen.setdefault(name, (script, own))
            within_family = own.band == model.band == BANDS[2] and family(text) == family(scripts[other])
            if own.source != model.source and not within_family:
                line = first_difference(model.source, own.source)
                found.append(f"{script}: its {name} is not that of {other}, first in `{line}`")
    return found


def true_declaration(script, scripts):
    """The lists that a child's docstring ought to have, in the order of the definitions."""
    declared = declaration(scripts[script])
    base = algorithm(scripts[declared.parents[0]])
    own = algorithm(scripts[script])
    differs = [name for name, source in own.items() if base.get(name) != source]
    takes = {}
    for parent in declared.parents[1:]:
        theirs = algorithm(scripts[parent])
        takes[parent] = [name for name in differs if theirs.get(name) == own[name]]
        differs = [name for name in differs if name not in takes[parent]]
    without = [name for name in base if name not in own]
    return Declaration(declared.parents, differs, without, takes)


def false_declarations(scripts):
    """Breaches of rule 4."""
    found = []
    for script, text in scripts.items():
        declared = declaration(text)
        if declared is None:
            continue
        unknown = [parent for parent in declared.parents if parent not in scripts or parent == script]
        if unknown or not declared.parents:
            found.append(f"{script}: it names the parent {', '.join(unknown) or 'of no script'}, which is not there")
            continue
        true = true_declaration(script, scripts)
        compared = [("differs", declared.differs, true.differs), ("without", declared.without, true.without)]
        for parent in [*declared.parents[1:], *declared.takes]:
            pair = ("takes", declared.takes.get(parent, []), true.takes.get(parent, []))
            compared += [pair] if pair not in compared else []
        for kind, names, needed in compared:
            lacks = [name for name in needed if name not in names]
            idle = [name for name, count in Counter(names).items() if name not in needed or count > 1]
            if lacks:
                found.append(f"{script}: `{kind}:` lacks {', '.join(lacks)}")
            if idle:
                found.append(f"{script}: `{kind}:` names {', '.join(idle)} in vain, or twice")
    return found


def breaches(scripts):
    """All breaches of the rules, one line each."""
    return missing_bands(scripts) or [
        *different_blocks(scripts),
        *different_definitions(scripts),
        *false_declarations(scripts),
    ]


def idle_own(scripts):
    """Names in OWN or FAMILY_OWN that are one text wherever they stand: they need no exception."""
    texts = {}
    for text in scripts.values():
        for name, own in definitions(text).items():
            texts.setdefault(name, set()).add(own.source)
    return sorted(name for name in OWN | FAMILY_OWN if len(texts.get(name, ())) < 2)


# -------------------------------------------------------------------------------------------------------------- Repair


def spread(model, text):
    """A script's text with the bands and definitions of another one, wherever the rules ask for the same."""
    own = bands(text)
    others = bands(model)
    parts = dict(own)
    parts["RUN"] = others["RUN"]
    if family(text) == family(model):
        parts["ENVIRONMENT AND EVALUATION"] = others["ENVIRONMENT AND EVALUATION"]
    text = "".join(parts.values())
    lines = text.splitlines(keepends=True)
    models = definitions(model)
    for name, old in reversed(definitions(text).items()):
        new = models.get(name)
        if new and "RUN" not in (old.band, new.band) and name not in OWN | FAMILY_OWN:
            lines[old.first - 1 : old.last] = [new.source]
    return "".join(lines)


def with_lists(script, scripts):
    """A child's text with the true lists in its docstring."""
    text = scripts[script]
    declared = true_declaration(script, scripts)
    lists = {"differs": declared.differs, "without": declared.without}
    parts = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in lists.items() if names)
    parents = [declared.parents[0]]
    if len(declared.parents) > 1:
        parents[0] += f" ({parts})" if parts else ""
        for parent in declared.parents[1:]:
            names = declared.takes[parent]
            parents.append(f"{parent} (takes: {', '.join(names)})" if names else parent)
    elif parts:
        parents[0] += f"; {parts}"
    entry = f"{'Parents: ' if len(parents) > 1 else 'Parent:  '}{', '.join(parents)}"
    lines = textwrap.wrap(entry, WIDTH, subsequent_indent=" " * 9, break_long_words=False)
    return text.replace(docstring_entry(text), "\n".join(lines), 1)


def heads(scripts):
    """The roots, and the scripts that are the first of their family."""
    found = {}
    for script, text in scripts.items():
        declared = declaration(text)
        relatives = [scripts[parent] for parent in declared.parents if parent in scripts] if declared else []
        if family(text) not in map(family, relatives):
            found[script] = text
    return found


# ------------------------------------------------------------------------------------------------------------- Changes


def code_lines(source):
    """The lines of a source that hold code, without comments and docstrings."""
    strings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            strings |= set(range(node.lineno, node.end_lineno + 1))
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = lines[token.start[0] - 1][: token.start[1]]
    return [line.rstrip() for number, line in enumerate(lines, 1) if line.strip() and number not in strings]


def imports(text):
    nodes = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return "".join(ast.unparse(node) + "\n" for node in nodes)


def count_changes(old, new):
    """-> code lines changed, added, removed."""
    before = code_lines(old)
    after = code_lines(new)
    counts = Counter()
    for tag, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag != "equal":
            both = min(b - a, d - c)
            counts.update(changed=both, removed=b - a - both, added=d - c - both)
    return counts


def changes(script, scripts):
    """What a child changes of its parents above the banner of ENVIRONMENT: {name: counts of code lines}."""
    true = true_declaration(script, scripts)
    relatives = [scripts[parent] for parent in true.parents]
    own = algorithm(scripts[script])
    found = {"import": count_changes("".join(map(imports, relatives[:1])), imports(scripts[script]))}
    for name in [*true.differs, *true.without]:
        old = next((algorithm(text)[name] for text in relatives if name in algorithm(text)), "")
        found[name] = count_changes(old, own.get(name, ""))
    return {name: counts for name, counts in found.items() if counts.total()}


def print_changes(scripts):
    print(f"{'script':18s}{'lines':>6s}{'changed':>9s}{'added':>7s}{'removed':>9s}{'in Args':>9s}  where the most")
    for script, text in scripts.items():
        declared = declaration(text)
        if declared is None:
            continue
        if not set(declared.parents) <= set(scripts):
            print(f"{script:18s} its parents are not there")
            continue
        found = changes(script, scripts)
        total = sum(found.values(), Counter())
        most = sorted(found, key=lambda name: -found[name].total())[:5]
        where = ", ".join(f"{name} {found[name].total()}" for name in most)
        numbers = f"{total.total():6d}{total['changed']:9d}{total['added']:7d}{total['removed']:9d}"
        print(f"{script:18s}{numbers}{found.get('Args', Counter()).total():9d}  {where}")


# ------------------------------------------------------------------------------------------------------------- Program


def write(folder, old, new):
    for script, text in new.items():
        if text != old[script]:
            (Path(folder) / script).write_text(text)
            print(f"{script}: rewritten")


def fix(folder, source=None):
    """Spreads one script's text, or that of the roots, to all."""
    scripts = read(folder)
    models = {source: scripts[source]} if source else heads(scripts)
    quarrel = [] if source else [*different_blocks(models), *different_definitions(models)]
    if quarrel:
        print(*quarrel, sep="\n")
        sys.exit("error: these disagree; say which is right: --fix SCRIPT")
    new = dict(scripts)
    for script in scripts:
        for model in models.values():
            new[script] = spread(model, new[script])
    write(folder, scripts, new)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fix", nargs="?", const="", metavar="SCRIPT", help="spread its text, or that of the roots")
    parser.add_argument("--lists", action="store_true", help="rewrite the lists in the docstrings of children")
    parser.add_argument("--changes", action="store_true", help="count the lines that children change of their parents")
    parser.add_argument("--folder", default=ALGOS, help="folder of the scripts")
    args = parser.parse_args()
    scripts = read(args.folder)
    source = Path(args.fix or "").name
    if source and source not in scripts:
        sys.exit(f"error: there is no script {source} in {args.folder}")
    if args.changes:
        print_changes(scripts)
        return
    if missing_bands(scripts):
        print(*missing_bands(scripts), sep="\n")
        sys.exit(1)
    if args.fix is not None:
        fix(args.folder, source)
    if args.lists:
        scripts = read(args.folder)
        children = [script for script, text in scripts.items() if declaration(text)]
        unknown = [script for script in children if not set(declaration(scripts[script]).parents) <= set(scripts)]
        if unknown:
            sys.exit(f"error: a parent of {', '.join(unknown)} is not there")
        write(args.folder, scripts, scripts | {script: with_lists(script, scripts) for script in children})
    found = breaches(read(args.folder))
    for line in found:
        print(line)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
