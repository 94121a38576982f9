"""What the site generates when it is built: flags, metrics, family tree, diffs, results. Nothing of it is committed.

A page asks for it with a comment, `<!-- flags: sac -->`; GENERATORS lists them, and a comment that none of them knows
ends the build. Plain standard library, so that tests can call it without mkdocs; with Pygments (mkdocs-material has it)
diffs are highlighted.
"""

import ast
import csv
import difflib
import html
import importlib.util
import json
import re
import subprocess
import sys
import textwrap
import unicodedata
from collections import defaultdict
from functools import cache
from pathlib import Path
from statistics import fmean, stdev

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))  # these need the standard library alone
from benchmark.jobs import provenance_of  # noqa: E402
from benchmark.report.runs import read_curves, window_scores  # noqa: E402
from benchmark.suites import SUITES  # noqa: E402

CONTEXT = 3  # unchanged lines around a change, in a diff


class DocsError(Exception):
    """A page asks for something that does not exist."""


def load(path):
    """A module of the standard library's needs alone, from its file."""
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def copies():
    """tools/copies.py, which owns the rules of declared children."""
    return load(ROOT / "tools" / "copies.py")


@cache
def scripts():
    """name -> text of every script"""
    return {path.stem: path.read_text() for path in sorted((ROOT / "algos").glob("*.py"))}


@cache
def commands():
    """name -> text of every command of benchmark/ and studies/; of a package, that of its module with the `Args`."""
    found = {}
    for folder in ("benchmark", "studies"):
        for path in sorted([*(ROOT / folder).glob("*.py"), *(ROOT / folder).glob("*/*.py")]):
            inside = len(path.relative_to(ROOT).parts) > 2
            name = path.parent.name if inside else path.stem
            text = path.read_text()
            if not inside or "class Args" in text:
                found[name] = text
    return found


def program(name):
    """Text of a script, or of a command of benchmark/ or studies/."""
    text = scripts().get(name) or commands().get(name)
    if text is None:
        raise DocsError(f"there is no algos/{name}.py, and no command {name} in benchmark/ or studies/")
    return text


# ---------------------------------------------------------------------------------------------------- flags


def arguments(text):
    """The fields of a program's `Args`: [(name, type, default as source or None, comment or docstring)]."""
    body = next((node.body for node in ast.parse(text).body if getattr(node, "name", "") == "Args"), [])
    fields, lines = [], text.splitlines()
    for field, comment in zip(body, [*body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            about = lines[field.end_lineno - 1][field.end_col_offset :].partition("# ")[2]
            about = comment.value.value if isinstance(comment, ast.Expr) else about
            default = None if field.value is None else ast.unparse(field.value)
            fields.append((field.target.id, ast.unparse(field.annotation), default, " ".join(about.split())))
    return fields


def flag(name):
    return "--" + name.replace("_", "-")


def shown_default(text, default):
    """A default as a user types it; numbers as the source writes them."""
    if default is None:
        return "required"
    if "__file__" in default:
        return "the file's name"
    found = re.search(rf"=\s*({re.escape(default)}|[\d_]+)\s*(#.*)?\n", text)
    try:
        value = ast.literal_eval(default)
    except ValueError:
        return f"`{default}`"
    if isinstance(value, tuple | list):
        return f"`{' '.join(map(str, value))}`" if value else "none"
    if isinstance(value, bool) or value in ("", None):
        return {True: "on", False: "off", "": "none", None: "none"}[value]
    return f"`{value:,}`" if isinstance(value, int) and found else f"`{value}`"


def cell(text):
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|")


@cache
def common_flags():
    """The flags that are the same in all scripts, to the default and the comment."""
    return set.intersection(*[set(arguments(text)) for text in scripts().values()])


def common_flags_table(_=None):
    text = next(iter(scripts().values()))
    shown = [field for field in arguments(text) if field in common_flags()]
    rows = ["| flag | default | what it does |", "|---|---|---|"]
    rows += [f"| `{flag(own)}` | {shown_default(text, default)} | {cell(about)} |" for own, _, default, about in shown]
    return "\n".join(rows)


def flags_table(name):
    """The flags of a command; of a script, those that are not the same in all, with what is new beside its parent."""
    text = program(name)
    declared = copies().declaration(text) if name in scripts() else None
    inherited = {}
    for parent in reversed(declared.parents if declared else []):
        inherited |= {own: (kind, default) for own, kind, default, _ in arguments(scripts()[Path(parent).stem])}
    rows = ["| flag | default | what it does |", "|---|---|---|"]
    for own, kind, default, about in arguments(text):
        if name in scripts() and (own, kind, default, about) in common_flags():
            continue
        note = ""
        if declared and own not in inherited:
            note = " *(not in the parent)*"
        elif declared and inherited[own] != (kind, default):
            note = f" *(parent: {inherited[own][1]})*"
        typed = f"`{own.upper()}` (a word, not a flag)" if "Positional" in kind else f"`{flag(own)}`"
        rows.append(f"| {typed} | {shown_default(text, default)}{note} | {cell(about)} |")
    if len(rows) == 2:
        raise DocsError(f"{name} has no Args")
    if name in scripts():
        rows.append(
            f"\nThe others are [the same in all scripts](../metrics.md#flags): {in_words(map(flag, common_names()))}."
        )
    return "\n".join(rows)


def common_names():
    return [field[0] for field in arguments(next(iter(scripts().values()))) if field in common_flags()]


# ---------------------------------------------------------------------------------------------------- scripts and diffs


def title(text):
    """First sentence of a script's docstring."""
    return ast.get_docstring(ast.parse(text)).split("\n")[0].rstrip(".")


def declaration(name):
    """What a child's docstring declares; None for a root."""
    return copies().declaration(scripts()[name])


def parents(name):
    declared = declaration(name)
    return [Path(parent).stem for parent in declared.parents] if declared else []


def diff_lines(old, new):
    """A definition against its parent's: lines (sign, number in the parent, number in the script, index in its source).
    Either of the two may be None."""
    before = old.source.splitlines() if old else []
    after = new.source.splitlines() if new else []
    first_old = old.first if old else 0
    first_new = new.first if new else 0
    lines = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            lines += [(" ", first_old + i, first_new + c + i - a, c + i - a) for i in range(a, b)]
            continue
        lines += [("-", first_old + i, None, i) for i in range(a, b)]
        lines += [("+", None, first_new + i, i) for i in range(c, d)]
    return lines


def changes(name):
    """How a script differs from its parents, in the script's order, then what it leaves out:
    [(name, note, lines of diff_lines, old source, new source)]."""
    declared = declaration(name)
    if declared is None:
        raise DocsError(f"{name} is a root: it has no parent to differ from")
    mine = copies().definitions(scripts()[name])
    theirs = {parent: copies().definitions(scripts()[Path(parent).stem]) for parent in declared.parents}
    found = []
    for own in [own for own in mine if own in declared.differs]:
        origin = next((parent for parent in theirs if own in theirs[parent]), None)
        note = f"in {origin} and here" if origin else "new"
        found.append((own, note, theirs[origin][own] if origin else None, mine[own]))
    first = declared.parents[0]
    found += [(own, f"of {first}, not here", theirs[first][own], None) for own in declared.without]
    sources = [(own, note, diff_lines(old, new), old, new) for own, note, old, new in found]
    return [
        (own, note, lines, old.source if old else "", new.source if new else "")
        for own, note, lines, old, new in sources
    ]


def highlighted(source):
    """Lines of Python as HTML."""
    try:
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer
    except ImportError:  # in the tests
        return html.escape(source, quote=False).splitlines()
    return highlight(source, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True)).splitlines()


def in_words(names):
    return ", ".join(f"`{name}`" for name in names)


def diff_html(name):
    """The declared definitions of a child, each as a diff against its parent's."""
    found = changes(name)
    declared = declaration(name)
    signs = [sign for *_, lines, _, _ in found for sign, *_ in lines]
    of = " and ".join(f"`{parent}.py`" for parent in parents(name))
    about = f"`{name}.py` against {of}: {signs.count('+')} lines added and {signs.count('-')} removed, in {len(found)} "
    about += "definitions."
    for parent, names in declared.takes.items():
        about += f" From `{parent}` it takes {in_words(names)}, unchanged."
    text = scripts()[name]
    blocks = ["ENVIRONMENT AND EVALUATION", "RUN"]
    if all(block in copies().bands(text) for block in blocks):
        same = copies().family(text) == copies().family(scripts()[parents(name)[0]])
        about += " The rest of header and ALGORITHM is the same text, and so is RUN. "
        about += "ENVIRONMENT AND EVALUATION is " + ("the same, too." if same else "that of another family.")
    blocks = [about + "\n"]
    for own, note, lines, old, source in found:
        near = {j for i, line in enumerate(lines) if line[0] != " " for j in range(i - CONTEXT, i + CONTEXT + 1)}
        before, after = highlighted(old), highlighted(source)
        rows, gap = [], False
        for i, (sign, old_number, new_number, at) in enumerate(lines):
            if i not in near:
                gap = True
                continue
            if gap:
                rows.append('<span class="diff-gap">⋯</span>')
            kind = {" ": "same", "-": "gone", "+": "new"}[sign]
            code = (before if sign == "-" else after)[at]
            numbers = f"{old_number or '':>4} {new_number or '':>4}"
            rows.append(
                f'<span class="diff-{kind}"><span class="diff-number">{numbers} {sign} </span>{code or " "}</span>'
            )
            gap = False
        blocks.append(
            f'<div class="highlight no-copy diff"><p class="diff-name"><code>{own}</code> {note}</p>'
            f"<pre><code>{''.join(rows)}</code></pre></div>\n"
        )
    return "\n".join(blocks)


def tree_html(_=None):
    """The family tree as nested lists; a script with two parents hangs under the first and names the other."""
    below = defaultdict(list)
    for name in scripts():
        below[(parents(name) or [""])[0]].append(name)

    def node(name):
        change = ""
        if parents(name):
            order = [own for own in copies().definitions(scripts()[name]) if own in declaration(name).differs]
            added = sum(sign == "+" for _, _, lines, _, _ in changes(name) for sign, *_ in lines)
            others = "".join(f"; and of {other}.py" for other in parents(name)[1:])
            names = ", ".join(f"<code>{own}</code>" for own in order)
            change = f'<span class="tree-change">+{added} lines in {names}{others}</span>'
        inner = "".join(node(child) for child in below[name])
        about = re.sub("`(.+?)`", r"<code>\1</code>", html.escape(title(scripts()[name])))
        return (
            f'<li><a class="tree-node" href="algos/{name}.html"><strong>{name}.py</strong>'
            f"<span>{about}</span>{change}</a>" + (f"<ul>{inner}</ul>" if inner else "") + "</li>"
        )

    return f'<ul class="tree">{"".join(node(root) for root in below[""])}</ul>'


def paper(text):
    """The papers of a script's docstring, as written there."""
    found = re.search(r"^Paper:\s+(.*?)(?=\n\w+:)", ast.get_docstring(ast.parse(text)), re.S | re.M)
    return " ".join(found[1].split()) if found else ""


def scripts_table(_=None):
    rows = ["| script | paper | lines |", "|---|---|---|"]
    for name, text in scripts().items():
        rows.append(f"| [`{name}.py`](algos/{name}.md) | {cell(paper(text))} | {len(text.splitlines())} |")
    return "\n".join(rows)


def source_block(name):
    text = program(name)
    return f'```{{.python linenums="1"}}\n{text}```'


METRIC = re.compile(r"^ *\| `(\w+/[\w{}]+)` \| (.*?) \|$", re.M)


def section(markdown, heading):
    """A section of a page, without its heading."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", markdown, re.S | re.M)
    if not found:
        raise DocsError(f"a page has no section {heading!r}")
    return found[1].strip()


def metrics_of(names):
    """The metrics that a script shares with others, folded up: groups of metrics.md, and scripts with their own."""
    rows = []
    for name in re.split(r",\s*", names):
        text = section(page(f"algos/{name}.md"), "Logged metrics") if name in scripts() else ""
        rows += METRIC.findall(text or section(page("metrics.md"), name))
    shown = ["| tag | meaning |", "|---|---|", *[f"| `{tag}` | {about} |" for tag, about in rows]]
    return '??? note "The others, which it shares with other scripts"\n\n' + textwrap.indent("\n".join(shown), "    ")


def documented_metrics(markdown):
    """tag -> meaning, from the tables under the heading `Logged metrics` of a built page."""
    rows = METRIC.findall(section(markdown, "Logged metrics"))
    if not rows:
        raise DocsError("a page has no table under the heading `## Logged metrics`")
    return dict(rows)


def page(uri):
    return (DOCS / uri).read_text()


# ---------------------------------------------------------------------------------------------------- results


def committed(suite):
    """What benchmark.collect wrote -> {(algo, ratio, env): {seed: {step: return}}}, {run's folder: its record}."""
    folder = ROOT / "benchmark" / "results" / suite
    if not (folder / "curves.csv").exists():
        return {}, {}
    curves = read_curves(folder / "curves.csv", suite)
    by_task = {(*config, env): seeds for config, envs in curves.items() for env, seeds in envs.items()}
    return by_task, json.loads((folder / "run.json").read_text())


@cache
def commit_date(commit):
    git = ["git", "show", "-s", "--format=%cs", commit.removesuffix("-dirty")]
    try:
        done = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def provenance(runs):
    """One line on what made these runs: commits with their dates, hardware, versions."""
    commits, machines, versions = {}, {}, {}
    for run in runs:
        for start in run["starts"]:
            made = start | provenance_of(start)
            commit = start["commit"]
            date = commit_date(commit)
            commits[
                f"{commit[:7] or 'unknown'}{'-dirty' if 'dirty' in commit else ''}" + (f" ({date})" if date else "")
            ] = 1
            cpu, device, threads = made.get("cpu", ""), made["device"], made["threads"]
            where = cpu if device == "cpu" or not cpu else f"{device}, {cpu}" if device != cpu else cpu
            machines[f"{where or device}, {threads} thread{'s' * (threads > 1)} a run"] = 1
            on_minatar = "MinAtar" in run["args"].get("env_id", "") and "gymnax" in made
            player = "gymnax" if on_minatar or "envpool" not in made else "envpool"
            versions[f"jax {made['jax']}, {player.replace('envpool', 'EnvPool')} {made[player]}"] = 1
    return f"Commit {', '.join(commits)}; {'; '.join(machines)}; {'; '.join(versions)}."


def script_of(run):
    found = re.search(r"algos/(\w+)\.py", run["starts"][0]["command"])
    return found[1] if found else ""


def resets_within(run):
    """Resets that a run saw, from its arguments: those due before its last step."""
    args, last = run["args"], max(start.get("to_step", 0) for start in run["starts"]) - 1
    if not args.get("reset_interval"):
        return args.get("reset_interval")
    due = lambda step: int(step * args["replay_ratio"] // args["reset_interval"])
    return min(due(last), max(0, due(args["resets_end"]) - 1)) if "resets_end" in args else due(last)


def number(value):
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"


def spread(mean, deviation):
    """A mean and its deviation, from the cells of a table; normalized scores have three decimals."""
    return (
        f"{float(mean):.3f}"
        if not deviation and abs(float(mean)) < 1
        else number(float(mean)) + (f" ± {number(float(deviation))}" if deviation else "")
    )


def verdicts(suite):
    """comparison.csv of a suite -> {(algo, ratio, env): its row}"""
    path = ROOT / "benchmark" / "results" / suite / "comparison.csv"
    if not path.exists():
        return {}
    with open(path) as file:
        return {(row["algo"], float(row["replay_ratio"]), row["env"]): row for row in csv.DictReader(file)}


def published(row, returned):
    """What a comparison says of the published runs, and its verdict, as two cells."""
    if row is None:
        return "| | |"
    theirs = spread(row["published_mean"], row["published_std"])
    seeds = f" ({row['published_seeds']})" if row["published_std"] else ""
    ours = spread(row["mean"], row["std"])
    there = "" if ours == returned else f"; ours {ours} at the same steps"
    return f"| {theirs}{seeds}{there} | {row['verdict']} |"


def results_table(name):
    """What a script's committed runs reached in all suites, beside published runs, as the reports compare them."""
    if name not in scripts():
        raise DocsError(f"there is no algos/{name}.py")
    rows, resetting = [], False
    for suite, plan in SUITES.items():
        curves, runs = committed(suite)
        compared, link, points = verdicts(suite), f"[{suite}](../results/{suite}/index.md)", []
        for (algo, ratio, env), seeds in sorted(curves.items(), key=lambda item: (item[0][2], item[0][1], item[0][0])):
            folders = [re.sub(r"[^\w.-]", "-", f"{env}__{algo}__rr{ratio:g}__{seed}", flags=re.A) for seed in seeds]
            for folder in folders:
                if folder not in runs:
                    raise DocsError(f"benchmark/results/{suite}/run.json lacks {folder}, which curves.csv has")
            if script_of(runs[folders[0]]) != name:
                continue
            whole = window_scores(seeds, plan.statistic)
            if not whole:
                continue
            values = [*whole.values()]
            returned = number(fmean(values)) + (f" ± {number(stdev(values))}" if len(values) > 1 else "")
            resets = resets_within(runs[folders[0]])
            resetting |= resets is not None
            called = "" if algo == name else f" (`{algo}`)"
            row = f"| {link} | {env}{called} | {ratio:g} | {len(values)} | {returned} "
            rows.append((row + published(compared.get((algo, ratio, env)), returned), resets))
            points.append((algo, ratio))
        for (algo, ratio, env), row in compared.items():
            if env.startswith("all tasks") and (algo, ratio) in points:
                mean = spread(row["mean"], "")
                start = f"| {link} | {env}, normalized | {ratio:g} | {row['seeds']} | {mean} "
                rows.append((start + published(row, mean), None))
    if not rows:
        return "No suite's runs of this script are committed yet."
    head = "| suite | task | replay ratio | seeds | return | published (seeds) | verdict |"
    lines = [head + " resets |" * resetting, "|---|---|---|---|---|---|---|" + "---|" * resetting]
    lines += [row + (f" {'' if resets is None else resets} |" if resetting else "") for row, resets in rows]
    about = "Mean ± standard deviation over seeds of the suite's statistic. The verdict is "
    about += "[that of the report](../results.md#how-to-read-a-verdict) over the steps at which both were evaluated; "
    about += "a suite's page has intervals, commits and hardware."
    return "\n".join([*lines, "", about])


def compared_table(_=None):
    """How many comparisons of a task at a ratio there are in each suite, by verdict, and that of all tasks together."""
    rows = ["| script | suite | tasks compared | of them | all tasks together |", "|---|---|---|---|---|"]
    for suite in SUITES:
        found = defaultdict(list)
        for (algo, ratio, env), row in verdicts(suite).items():
            found[(algo, ratio)].append((env, row["verdict"]))
        for (algo, ratio), own in found.items():
            single = [verdict for env, verdict in own if not env.startswith("all tasks")]
            together = [verdict for env, verdict in own if env.startswith("all tasks")]
            counts = ", ".join(f"{single.count(verdict)} {verdict}" for verdict in dict.fromkeys(sorted(single)))
            where = f"`{algo}`, ratio {ratio:g} | [{suite}](results/{suite}/index.md)"
            rows.append(f"| {where} | {len(single)} | {counts} | {', '.join(together)} |")
    return "\n".join(rows)


def figure(argument):
    """The first figure that is there, for a page of docs/algos/: `alt text: one.png, other.png`, paths below docs/."""
    alt, _, paths = argument.partition(": ")
    there = [path.strip() for path in paths.split(",") if (DOCS / path.strip()).exists()]
    if not there:
        raise DocsError(f"none of {paths} is there")
    return f"![{alt}](../{there[0]})"


def raw_files(folder):
    return sorted(path.name for path in (ROOT / "benchmark" / "results" / folder).glob("*") if path.is_file())


def suites_table(_=None):
    rows = ["| suite | what | tasks | steps | statistic of a run | results |", "|---|---|---|---|---|---|"]
    for name, suite in SUITES.items():
        shown = f"[yes](results/{name}/index.md)" if has_results(name) else "none yet"
        steps = f"{suite.flags['total-timesteps']:,}"
        rows.append(f"| `{name}` | {cell(suite.about)} | {len(suite.scores)} | {steps} | {suite.score} | {shown} |")
    return "\n".join(rows)


def has_results(suite):
    return (DOCS / "results" / suite / "report.md").exists() or "curves.csv" in raw_files(suite)


def teaser(suite):
    """The figure of score against replay ratio, once there is one."""
    if suite not in SUITES:
        raise DocsError(f"there is no suite {suite}")
    if not (DOCS / "results" / suite / "ratio.png").exists():
        return (
            f"The sweep over replay ratios (suite `{suite}`) has not been run to its end, so there is no figure "
            "to show here yet. [Results](results.md) has what there is."
        )
    seeds = sorted({len(runs) for runs in committed(suite)[0].values()})
    points = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else f"{seeds[0]} seed{'s' * (seeds[0] > 1)}"
    return (
        f"![Score against replay ratio, with and without resets](results/{suite}/ratio.png)\n\n"
        f"Score against replay ratio, {points} a task and ratio: {SUITES[suite].about}. How it was made, what is "
        f"missing and what it is compared with: [{suite}](results/{suite}/index.md)."
    )


def suite_flags(suite):
    """All flags that a suite gives, in words: of all runs, of a script, of a script on a task, of a variant."""
    typed = lambda flags: f"`{' '.join(f'--{k}' if v is True else f'--{k} {v}' for k, v in flags.items())}`"
    told = [typed(suite.flags)]
    told += [f"for `{algo}` also {typed(more)}" for algo, more in suite.algo_flags.items() if more]
    for algo, tasks in suite.task_flags.items():
        told += [f"for `{algo}` on {task} {typed(more)}" for task, more in tasks.items()]
    for variant, (script, more) in suite.variants.items():
        told.append(f"`{variant}` is `{script}`" + (f" with {typed(more)}" if more else ", with flags of its own"))
    return "; ".join(told)


def sweeps(name):
    """The commands that make a suite's committed runs, one for the algorithms of the same tasks, ratios and seeds."""
    made, grids = defaultdict(list), defaultdict(list)
    for run in committed(name)[1].values():
        made[run["args"]["exp_name"]].append(run["args"])
    for algo, own in sorted(made.items()):
        ratios = " ".join(f"{ratio:g}" for ratio in sorted({args["replay_ratio"] for args in own}))
        tasks = [task for task in SUITES[name].scores if task in {args["env_id"] for args in own}]
        only = f"--tasks {' '.join(tasks)} " if len(tasks) < len(SUITES[name].scores) else ""
        grids[f"{only}--replay-ratios {ratios} --seeds {max(args['seed'] for args in own)}"].append(algo)
    for grid, algos in grids.items():
        yield f"python -m benchmark.sweep --suite {name} --algos {' '.join(algos)} {grid}"


def suite_page(name):
    """The page of one suite: what it is, how it is run, the report if there is one, the raw data."""
    suite = SUITES[name]
    lines = [f"# {name}\n"]
    report = DOCS / "results" / name / "report.md"
    if report.exists():
        lines.append(re.sub(r"\A\s*# .*\n", "", report.read_text()))
    else:
        lines.append(f"{suite.about[0].upper()}{suite.about[1:]}. No report has been drawn of it yet.\n")
    lines += [
        "## How to run it\n",
        "\n".join(["```", *sweeps(name), "```\n"]),
        "With `--dry-run` they print the runs' own commands; [Sweep](../../sweep.md) says more.\n",
        f"* Tasks: {', '.join(suite.scores)}.",
        f"* Flags: {suite_flags(suite)}.",
        f"* A run's score, fixed beforehand: {suite.score}.\n",
    ]
    files = raw_files(name)
    if files:
        lines += ["## Raw data\n", *(f"* [{file}]({file})" for file in files)]
        lines.append(f"\n`benchmark/results/{name}/` in the repository. {provenance(committed(name)[1].values())}")
    return "\n".join(lines) + "\n"


def included(path):
    """A page that stands in the repository's root, where its readers look for it."""
    text = (ROOT / path).read_text()
    return re.sub(r"\A# .*\n+", "", text).replace("](docs/", "](").strip()


def log_entries():
    """The entries of the log, the newest first: [(date, title, page, anchor)]."""
    found = []
    for path in sorted((DOCS / "log").glob("2*.md"), reverse=True):
        for heading in re.findall(r"^## (.*)$", path.read_text(), re.M):
            date, _, about = heading.partition(": ")
            if not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
                raise DocsError(f"docs/log/{path.name}: {heading!r} does not begin with a date")
            found.append((date, about, path.name, anchor(heading)))
    return found


def anchor(heading):
    """The anchor that mkdocs gives a heading."""
    text = re.sub(r"[^\w\s-]", "", unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode())
    return re.sub(r"[-\s]+", "-", text.strip().lower())


def log_list(_=None):
    return "\n".join(f"* {date}: [{about}]({name}#{at})" for date, about, name, at in log_entries())


GENERATORS = {
    "flags": flags_table,
    "common flags": common_flags_table,
    "diff": diff_html,
    "tree": tree_html,
    "scripts": scripts_table,
    "source": source_block,
    "metrics of": metrics_of,
    "results": results_table,
    "compared": compared_table,
    "figure": figure,
    "suites": suites_table,
    "teaser": teaser,
    "include": included,
    "log": log_list,
}
PLACEHOLDER = re.compile(r"(?P<indent>^ +)?<!--\s*(?P<name>[a-z ]+?)\s*(?::\s*(?P<argument>.+?)\s*)?-->", re.M)


def render(markdown):
    """A page with its comments replaced by what they ask for."""

    def generate(found):
        indent, name, argument = found.groups()
        if name not in GENERATORS:
            raise DocsError(f"{found[0]} is nothing that docs/hooks.py can generate; it knows {', '.join(GENERATORS)}")
        text = GENERATORS[name](argument)
        return textwrap.indent(text, indent) if indent else text

    done = PLACEHOLDER.sub(generate, markdown)
    for left in re.findall(r"<!--.*?-->", PLACEHOLDER.sub("", markdown), re.S):
        raise DocsError(f"{left} is no comment that docs/hooks.py can read")
    return done


def generated():
    """Files of the site that are not in docs/: site path -> text of a page, or path of a file to copy."""
    found = {f"results/{name}/index.md": suite_page(name) for name in SUITES if has_results(name)}
    for path in sorted((ROOT / "benchmark" / "results").glob("*/*")):
        if path.is_file():
            found[f"results/{path.parent.name}/{path.name}"] = path
    return found


# ---------------------------------------------------------------------------------------------------- mkdocs


def on_config(config):
    """Suites with results go into the navigation."""
    for entry in config.nav:
        if "Results" in entry:
            entry["Results"] += [{name: f"results/{name}/index.md"} for name in SUITES if has_results(name)]
    return config


def on_files(files, config):
    from mkdocs.structure.files import File

    for uri, content in generated().items():
        given = {"abs_src_path": str(content)} if isinstance(content, Path) else {"content": content}
        files.append(File.generated(config, uri, **given))
    return files


def on_page_markdown(markdown, page, **_):
    from mkdocs.exceptions import PluginError

    try:
        return render(markdown)
    except DocsError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error


EXTERNAL = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^\"'\s>]+")


def on_post_page(output, page, **_):
    """Nothing is fetched from other hosts when a page is read."""
    from mkdocs.exceptions import PluginError

    fetched = EXTERNAL.findall(output)
    if fetched:
        raise PluginError(f"{page.file.src_uri} fetches from another host: {fetched[0]}")
    return output
