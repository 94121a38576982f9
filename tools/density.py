"""How densely the scripts are written: lines of each band, tokens per line of code, habits that are hard to read.

    python tools/density.py [FILE ...]  one row a file, by default of algos/; exit code 1 if a limit is passed

Tokens are counted in lines of code outside of imports, docstrings and `Args`; comments count for nothing. A reader who
knows the field reads a line of 8 to 10 tokens at a glance, and stops at one of 25.
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

from copies import ALGOS, BANDS, bands, family

MEAN_TOKENS = 12
P90_TOKENS = 22
LINES = {"header": 150, "ALGORITHM": 375, "RUN": 385}
# Frames, stacks and lost lives; prioritized replay, noisy layers and distributions; with them, a model of the future.
ALGORITHM_LINES = dict.fromkeys(["dqn_atari", "drq_eps"], 430) | dict.fromkeys(["rainbow", "der"], 505)
ALGORITHM_LINES |= dict.fromkeys(["spr", "sr_spr", "bbf"], 650)
# By words of their banners: one library; two of them; three, inside of the program and outside.
ENVIRONMENT_LINES = {"Atari games": 175, "continuous tasks": 215, "discrete actions": 310}

NO_CODE = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)


def span(node):
    first = min([node.lineno, *[decorator.lineno for decorator in getattr(node, "decorator_list", [])]])
    return range(first, node.end_lineno + 1)


def is_string(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def tokens_by_line(text):
    """Line of code -> its number of tokens."""
    tree = ast.parse(text)
    left_out = set()
    for node in ast.walk(tree):
        if is_string(node) or isinstance(node, ast.Import | ast.ImportFrom):
            left_out.update(span(node))
        if isinstance(node, ast.ClassDef) and node.name == "Args":
            left_out.update(span(node))
    counts = Counter()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE and token.start[0] not in left_out:
            counts[token.start[0]] += 1
    return counts


def habits(text):
    """What the style asks to avoid: (line, what)."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
            if any(isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) for target, value in pairs):
                found.append((node.lineno, "several assignments in one"))
            if isinstance(node.value, ast.Lambda):
                found.append((node.lineno, "a lambda with a name"))
        if isinstance(node, ast.Import) and len(node.names) > 1:
            found.append((node.lineno, "several imports in one line"))
        if isinstance(node, ast.NamedExpr):
            found.append((node.lineno, "an assignment within an expression"))
    lines = Counter(statement.lineno for statement in ast.walk(ast.parse(text)) if isinstance(statement, ast.stmt))
    found += [(line, "several statements") for line, count in lines.items() if count > 1]
    return sorted(found)


def measure(text):
    """-> mean of tokens per line of code, its 90th percentile, {band: lines}, habits."""
    counts = sorted(tokens_by_line(text).values())
    lines = {band: own.count("\n") for band, own in bands(text).items()}
    return sum(counts) / len(counts), counts[int(0.9 * len(counts))], lines, habits(text)


def limits(name, text):
    """{band: most lines} of a script."""
    found = LINES | {"ALGORITHM": ALGORITHM_LINES.get(name, LINES["ALGORITHM"])}
    if "ENVIRONMENT AND EVALUATION" in bands(text):
        own = [lines for words, lines in ENVIRONMENT_LINES.items() if words in family(text)]
        found["ENVIRONMENT AND EVALUATION"] = min(own, default=min(ENVIRONMENT_LINES.values()))
    return found


def passed_limits(name, text):
    """Every limit that a script passes, one line each."""
    mean, p90, lines, seen = measure(text)
    found = [f"{name}, line {line}: {what}" for line, what in seen]
    if mean > MEAN_TOKENS:
        found.append(f"{name}: {mean:.2f} tokens a line on average, more than {MEAN_TOKENS}")
    if p90 > P90_TOKENS:
        found.append(f"{name}: a tenth of the lines has {p90} tokens or more, the limit is {P90_TOKENS}")
    for band, most in limits(name, text).items():
        if lines.get(band, 0) > most:
            found.append(f"{name}: {band} has {lines[band]} lines, more than {most}")
    return found


def main():
    paths = [Path(word) for word in sys.argv[1:]] or sorted(ALGOS.glob("*.py"))
    found = []
    columns = ["mean", "p90", "header", "ALGORITHM", "ENVIRONMENT", "RUN", "file"]
    print(f"{'':20s}", *[f"{column:>11s}" for column in columns])
    for path in paths:
        text = path.read_text()
        mean, p90, lines, _ = measure(text)
        numbers = [f"{mean:.2f}", p90, *[lines.get(band, "") for band in BANDS], text.count("\n")]
        print(f"{path.stem:20s}", *[f"{number:>11}" for number in numbers])
        found += passed_limits(path.stem, text)
    for line in found:
        print(line)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
