"""Tables and page: scores.csv, aggregates.csv, comparison.csv and report.md."""

import csv
import io
import math
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import numpy as np

from benchmark.markdown import markdown_table
from benchmark.report.comparison import ALL
from benchmark.report.figures import FEW, MARKED, drawn_ratios, final_only
from benchmark.report.published import READ
from benchmark.report.runs import script_of
from benchmark.report.statistics import STATISTICS, summarize


def number(x, digits):
    """Fixed format; nothing for nan, and no minus before a zero."""
    return "" if not math.isfinite(x) else f"{round(float(x), digits) + 0.0:.{digits}f}"


def interval(value, low, high, digits, sign=""):
    """0.63 (0.59 to 0.66), without the brackets where there is no interval."""
    text = f"{round(float(value), digits) + 0.0:{sign}.{digits}f}"
    return f"{text} ({number(low, digits)} to {number(high, digits)})" if math.isfinite(low) else text


def spread(summary, digits):
    """135 ± 16 (3): mean, standard deviation, seeds."""
    deviation = f" ± {number(summary.std, digits)}" if math.isfinite(summary.std) else ""
    return f"{number(summary.mean, digits)}{deviation} ({summary.seeds})"


def write_csv(path, header, rows):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header.split())
    writer.writerows(rows)
    path.write_text(text.getvalue())


def write_scores(results, path):
    rows = []
    for config, own in results.scores.items():
        for env, seed in sorted((env, seed) for env, seeds in own.items() for seed in seeds):
            score, (random, best) = own[env][seed], results.suite.scores[env]
            cells = [number(score, 3), number((score - random) / (best - random), 6)]
            rows.append([results.name, config[0], f"{config[1]:g}", env, seed, *cells])
    write_csv(path, "suite algo replay_ratio env seed score normalized", rows)


def write_aggregates(results, aggregates, path):
    rows = []
    for config, (value, low, high, seeds) in aggregates.items():
        resets = len(results.schedules[config]) if config in results.schedules else ""
        head = [results.name, config[0], f"{config[1]:g}", resets, len(results.tasks), seeds]
        for statistic, triple in zip(STATISTICS, zip(value, low, high, strict=True), strict=True):
            rows.append([*head, statistic, *(number(x, 6) for x in triple)])
    write_csv(path, "suite algo replay_ratio resets tasks seeds statistic value low high", rows)


def write_comparison(results, path):
    rows = []
    for row in results.comparisons:
        digits, unit = (4, "normalized") if row.env.startswith(ALL) else (2, "return")
        ours, theirs = ([x.seeds, number(x.mean, digits), number(x.std, digits)] for x in (row.ours, row.theirs))
        found = [number(x, digits) for x in (row.difference, row.low, row.high)]
        head = [results.name, row.config[0], f"{row.config[1]:g}", row.env, unit]
        rows.append([*head, *ours, row.reference, *theirs, *found, row.verdict])
    header = "suite algo replay_ratio env unit seeds mean std published published_seeds published_mean published_std"
    if rows:
        write_csv(path, header + " difference low high verdict", rows)
    else:  # an old one would belong to other curves
        path.unlink(missing_ok=True)


def write_tables(results, aggregates, folder):
    write_scores(results, folder / "scores.csv")
    write_aggregates(results, aggregates, folder / "aggregates.csv")
    write_comparison(results, folder / "comparison.csv")


def comparison_cells(row, look):
    """A comparison as cells of the page's table."""
    together = row.env.startswith(ALL)
    digits = 3 if together else 1 if row.theirs.reading else 0
    task = f"{row.env}, normalized" if together else row.env
    others = " and ".join(look.name(algo) for algo in row.reference.split())
    cells = [task, look.name(row.config[0]), f"{row.config[1]:g}", spread(row.ours, digits)]
    difference = interval(row.difference, row.low, row.high, digits + 1 if digits else 0, "+")  # may be near 0
    read = f"{row.theirs.mean:g}, read within {row.theirs.reading:.1f}"
    theirs = read if row.theirs.reading else spread(row.theirs, digits)
    if row.theirs.middle95:
        low, high = (number(x, digits) for x in row.theirs.middle95)
        theirs += f", 95 % of them {low} to {high}"
    return [*cells, f"{others}: {theirs}", difference, row.verdict]


def several_ratios(aggregates):
    return len({ratio for _, ratio in aggregates}) > 1


def aggregate_section(results, aggregates):
    look, tasks = results.look, results.tasks
    yield "## Score against replay ratio" if several_ratios(aggregates) else "## Scores"
    if not aggregates:
        yield "No configuration has a finished run yet, so there is nothing to aggregate."
        return
    hollow = " A hollow marker: no reset falls within the budget, so it is the agent without resets."
    if several_ratios(aggregates):
        yield "![Score against replay ratio](ratio.png)"
        yield f"Bars are intervals over seeds.{hollow if results.idle else ''}"
    yield f"Aggregates (tasks: {len(tasks)} of the suite's {len(results.suite.scores)}; {', '.join(tasks)}):"
    rows = []
    for config, (value, low, high, seeds) in aggregates.items():
        cells = [interval(*triple, 3) for triple in zip(value, low, high, strict=True)]
        resets = len(results.schedules[config]) if config in results.schedules else "unknown"
        rows.append([look.name(config[0]), f"{config[1]:g}", resets, seeds, *cells])
    yield markdown_table(["algorithm", "ratio", "resets", "seeds", *STATISTICS.values()], rows)
    yield "Per task, mean ± standard deviation of the score over seeds, in returns (seeds):"
    configs, rows = [config for config, own in results.scores.items() if own], []
    for env in results.suite.scores:
        own = [results.scores[config].get(env) for config in configs]
        if any(own):
            random, best = results.suite.scores[env]
            digits = 0 if best - random >= 100 else 1
            rows.append([env, *(spread(summarize([*x.values()]), digits) if x else "" for x in own)])
    yield markdown_table(["task", *map(look.config, configs)], rows)


def comparison_section(results):
    yield "## Against published runs"
    rows = results.comparisons
    if not rows:
        yield "No published run has the ratio, the tasks and the resets of one of ours."
        return
    singles = [row.verdict for row in rows if not row.env.startswith(ALL)]
    words = ("agrees", "higher", "lower", "too few seeds to say")
    told = ", ".join(f"{word}: {singles.count(word)}" for word in words if word in singles)
    yield (
        "The same statistic of both, over evaluations at the same steps, at equal ratios and with resets at the same "
        "steps. "
        f"Comparisons of one task at one ratio: {len(singles)} ({told}). "
        "A difference (ours less theirs) has Welch's 95 % interval over seeds. *agrees*: zero lies inside. *higher*, "
        "*lower*: it does not. *too few seeds to say*: zero lies inside, but half the interval's width is more than "
        "half of what the published score has above a random policy's, or there is no interval, with a single seed. Of "
        "twenty comparisons of equal agents one is expected to come out higher or lower."
    )
    if any(row.theirs.middle95 for row in rows):
        yield (
            "Of many published runs the range is told that holds 95 % of them (the percentiles 2.5 to 97.5): one run "
            "of an equal agent is outside of it about once in twenty. There the difference has Student's interval, "
            "which takes their spread for ours, too, as few runs do not show their own; a single seed has one. Over "
            "all tasks together it is Welch's."
        )
    if any(row.theirs.reading for row in rows):
        yield (
            "Published values here were read off figures: the interval is that of our seeds alone (Student's t), "
            "widened by the error of the reading. How much the published mean varies with its own seeds is not in it."
        )
    header = ["task", "algorithm", "ratio", "ours: mean ± std (seeds)", "published", "difference", "verdict"]
    yield markdown_table(header, [comparison_cells(row, results.look) for row in rows])
    algos = {algo for row in rows for algo in row.reference.split()}
    own = [row for row in results.published if row["task"] and row["algorithm"] in algos]
    if results.suite.metric in READ:  # a paper's figure of other runs is not what was compared
        own = [row for row in own if row["suite"] == results.name]
    known = sorted({(results.look.name(row["algorithm"]), row["paper"], row["source"]) for row in own})
    yield "Published: " + ("; ".join(map(", ".join, known)) or "the file given with --reference") + "."


def hardware(start):
    device, threads = start.get("device", "unknown"), start.get("threads", "unknown")
    return f"{start.get('cpu', device) if device == 'cpu' else device}, threads: {threads}"


def minutes_of(run):
    return sum(start.get("wall_s", 0) for start in run["starts"]) / 60


def provenance_row(name, ratio, made):
    """Runs of one config as cells of the page's table."""
    starts = [start for run in made for start in run["starts"]]
    minutes = [minutes_of(run) for run in made]
    span = f"{np.median(minutes):.0f} ({min(minutes):.0f} to {max(minutes):.0f})"
    resets = sorted({run["args"].get("reset_interval", 0) for run in made})
    often = ", ".join(f"{updates:,}" if updates else "never" for updates in resets)
    where = "; ".join(sorted({*map(hardware, starts)}))
    commits = ", ".join(sorted({str(start.get("commit", "unknown"))[:7] for start in starts}))
    return [name, f"{ratio:g}", len(made), often, span, where, commits]


def grid_commands(results):
    """The commands that make all these runs, if scripts under their own names made seeds 1 to some number."""
    scripts = {script_of(made, "") == config[0] for config, made in results.runs.items()}
    seeds = {run["args"]["seed"] for made in results.runs.values() for run in made}
    if scripts != {True} or seeds != {*range(1, len(seeds) + 1)}:
        return []
    algos = defaultdict(list)
    for algo in sorted({config[0] for config in results.runs}):
        ratios = " ".join(f"{ratio:g}" for other, ratio in sorted(results.runs) if other == algo)
        algos[ratios].append(algo)
    sweep = f"    python -m benchmark.sweep --suite {results.name}"
    return [
        f"{sweep} --algos {' '.join(own)} --replay-ratios {ratios} --seeds {max(seeds)}"
        for ratios, own in algos.items()
    ]


def provenance_section(results):
    yield "## How the runs were made"
    header = ["algorithm", "ratio", "runs", "updates between resets", "minutes per run", "hardware", "commit"]
    made = sorted(results.runs.items())
    yield markdown_table(header, [provenance_row(results.look.name(algo), ratio, own) for (algo, ratio), own in made])
    starts = [start for own in results.runs.values() for run in own for start in run["starts"]]
    versions = {f"{name} {start[name]}" for start in starts for name in ("jax", "envpool", "gymnax") if name in start}
    made_with = f" Versions: {', '.join(sorted(versions))}." if versions else ""
    yield f"Minutes: median (least to most); seeds of one program share its time.{made_with}"
    commands = grid_commands(results)
    if commands:
        yield "\n".join(["The whole grid:\n", *commands])


def command(args):
    """The command that writes this report, and a remark on the file that it takes."""
    defaults = {field.name: field.default for field in fields(args)}
    places = {"results-dir": args.results_dir, "docs-dir": args.docs_dir}
    moved = {name: place for name, place in places.items() if place != defaults[name.replace("-", "_")]}
    options = "".join(f" --{name} {place}" for name, place in moved.items())
    options += f" --reference {Path(args.reference).name}" if args.reference else ""
    remark = " (docs/results.md says what such a file holds, under Raw published curves)" if args.reference else ""
    return f"`python -m benchmark.report --suite {args.suite}{options}`{remark}"


def introduction(args, suite):
    yield f"# Results: {args.suite}"
    yield (
        f"{suite.about[0].upper() + suite.about[1:]}. A run's score is {suite.score}, "
        f"normalized so that {suite.scale} (`benchmark/suites.py`). "
        f"Intervals are 95 %, by stratified bootstrap over seeds with {args.bootstrap_reps:,} resamples (rliable "
        "1.2.0); with five seeds or fewer they come out too narrow."
    )
    tables = Path(args.results_dir, args.suite)
    yield f"Written by {command(args)}; raw curves and tables are in `{tables}/`."


def curves_section(results):
    yield "## Learning curves"
    about = f"Mean over finished runs, with its interval where there are more than {FEW}; else the thin lines are the "
    about += "seeds. Unfinished runs are thin, too."
    if final_only(results.suite) and results.comparisons:
        about += " Hollow, beside the last step: published scores at that step."
    elif results.reference:
        about += " Grey: published runs at this ratio."
    if any(0 < len(steps) <= MARKED for steps in results.schedules.values()):
        about += f" Dotted upright lines: an algorithm's resets, where there are {MARKED} or fewer."
    yield about
    for ratio in drawn_ratios(results):
        yield f"Replay ratio {ratio:g}:"
        yield f"![Learning curves at ratio {ratio:g}](curves_rr{ratio:g}.png)"


def figures_section(aggregates):
    if aggregates:
        yield "## Interquartile mean over steps"
        yield "![IQM of normalized score over steps](iqm.png)"
        yield "## Performance profiles"
        yield "![Performance profiles](profiles.png)"
        yield "The share of runs, all tasks and seeds together, whose score is above a value: higher is better."


def missing_section(results):
    yield "## What is missing"
    yield "\n".join(f"- {line}" for line in results.remarks) or "Nothing: all runs are whole."


def page(args, results, aggregates):
    """The text of report.md."""
    text = [
        *introduction(args, results.suite),
        *aggregate_section(results, aggregates),
        *curves_section(results),
        *comparison_section(results),
        *figures_section(aggregates),
        *missing_section(results),
        *(provenance_section(results) if results.runs else ()),
    ]
    return "\n\n".join(text) + "\n"
