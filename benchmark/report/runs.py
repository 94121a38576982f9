"""Our runs: curves.csv and run.json, which benchmark.collect wrote, to those that count. Standard library only, since
the site is built from the same runs."""

import csv
import gzip
import json
import math
import zlib
from collections import defaultdict
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from benchmark.jobs import provenance_of, require
from benchmark.suites import SUITES
from benchmark.suites.suite import EVALUATION

COLUMNS = {"suite", "algo", "replay_ratio", "env", "seed", "step", "metric", "value"}


# Reading


def read_csv(path, columns):
    """Rows of a .csv or .csv.gz as dicts; an error if it is not there or has no such columns."""
    require(Path(path).is_file(), f"no file {path}")
    with (gzip.open if str(path).endswith(".gz") else open)(path, "rt") as file:
        reader = csv.DictReader(file)
        try:
            missing = columns - {*(reader.fieldnames or ())}
            require(not missing, f"{path} has no column {', '.join(sorted(missing))}")
            yield from reader
        except (EOFError, UnicodeDecodeError, csv.Error, zlib.error, gzip.BadGzipFile) as error:
            require(False, f"{path} is damaged: {error}")


def read_logged(path, name):
    """curves.csv -> {(algo, replay_ratio): {env: {seed: {metric: {step: value}}}}}, of the suite's metrics."""
    logged = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for number, row in enumerate(read_csv(path, COLUMNS), 2):
        try:
            config, seed, step = (row["algo"], float(row["replay_ratio"])), int(row["seed"]), int(row["step"])
            value = float(row["value"])
        except (TypeError, ValueError):
            require(False, f"line {number} of {path} is damaged")
        require(row["suite"] == name, f"line {number} of {path} belongs to suite {row['suite']}")
        if row["metric"] in SUITES[name].parts:
            curve = logged[config][row["env"]][seed].setdefault(row["metric"], {})
            require(step not in curve, f"line {number} of {path} gives step {step} of a run a second time")
            curve[step] = value
    return logged


def scored(logged, suite):
    """{seed: {metric: {step: value}}} -> {seed: curve}, without the runs that have no ended episode yet."""
    curves = {seed: suite.scored(own) for seed, own in logged.items()}
    return {seed: curve for seed, curve in curves.items() if curve}


def read_curves(path, name):
    """curves.csv -> {(algo, replay_ratio): {env: {seed: {step: return}}}}"""
    require(path.is_file(), f"no {path}: run benchmark.sweep or benchmark.collect with --suite {name} first")
    suite = SUITES[name]
    logged = read_logged(path, name)
    what = "an evaluation" if suite.metric == EVALUATION else "a log"
    require(logged, f"no {' and '.join(suite.parts)} in {path}: no run has got to {what} yet")
    return {config: {env: scored(seeds, suite) for env, seeds in own.items()} for config, own in sorted(logged.items())}


def read_runs(path):
    """run.json -> {(algo, replay_ratio): [{"args": ..., "starts": [...]}, ...]}; {} if there is none."""
    runs = defaultdict(list)
    try:
        for _, run in sorted(json.loads(path.read_text()).items() if path.is_file() else ()):
            starts = [{"command": start["command"]} | start | provenance_of(start) for start in run["starts"]]
            args = run["args"] | {"seed": int(run["args"]["seed"])}
            runs[args["exp_name"], float(args["replay_ratio"])].append({"args": args, "starts": starts})
    except (AttributeError, KeyError, TypeError, ValueError):
        require(False, f"{path} is damaged; run benchmark.collect again")
    return dict(runs)


# Which of them count


def window_grid(steps, window):
    """The evaluation steps within a window (from, to), or [] if they do not cover it evenly from end to end."""
    grid = sorted(step for step in set(steps) if window[0] <= step <= window[1])
    gaps = {b - a for a, b in pairwise(grid)}
    if len(gaps) > 1 or not grid:
        return []
    gap = gaps.pop() if gaps else 1
    return grid if grid[0] - gap < window[0] and window[1] < grid[-1] + gap else []


def complete(seeds, window):
    """{seed: curve} -> the evaluation steps of the window, and of the seeds those that have them all."""
    grid = window_grid([step for curve in seeds.values() for step in curve], window)
    return grid, {seed: curve for seed, curve in seeds.items() if grid and all(step in curve for step in grid)}


def window_scores(seeds, window):
    """{seed: curve} -> {seed: its score, the mean over the window}, of those that have all its evaluations."""
    grid, whole = complete(seeds, window)
    return {seed: fmean(curve[step] for step in grid) for seed, curve in whole.items()}


def listed(seeds):
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"


def sort_task(seeds, window):
    """{seed: curve} of one config and task -> (whole, part, what is to be said of the others)."""
    broken = [seed for seed, curve in seeds.items() if not all(map(math.isfinite, curve.values()))]
    sound = {seed: curve for seed, curve in sorted(seeds.items()) if seed not in broken}
    whole = complete(sound, window)[1]
    part = {seed: curve for seed, curve in sound.items() if seed not in whole}
    said = [f"NaN or infinite returns in {listed(broken)}; left out."] if broken else []
    if part:
        last = max(max(curve) for curve in part.values())
        said.append(f"{listed(part)} without all evaluations of the window, up to step {last:,}; drawn, not scored.")
    return whole, part, said


def absent(curves, suite, name_of):
    """What of the grid has no run, in sentences: each config should have as many seeds as any other has."""
    empty = [env for env in suite.scores if not any(env in envs for envs in curves.values())]
    if empty:
        yield f"No run at all of {', '.join(empty)}."
    everyone = {seed for own in curves.values() for seeds in own.values() for seed in seeds}
    for config, envs in curves.items():
        for env in [env for env in suite.scores if env not in empty]:
            missing = everyone - {*envs.get(env, ())}
            if missing:
                yield f"{name_of(config)}, {env}: no run of {listed(missing) if env in envs else 'any seed'}."


def sort_runs(curves, suite, name_of):
    """Which runs count -> (whole, part, scores, remarks), as in Results."""
    whole, part, scores = ({config: {} for config in curves} for _ in range(3))
    remarks = []
    for config, envs in curves.items():
        for env, seeds in sorted(envs.items()):
            if env not in suite.scores:
                remarks.append(f"{name_of(config)}: {env} is no task of the suite; left out.")
                continue
            done, cut, said = sort_task(seeds, suite.statistic)
            remarks += [f"{name_of(config)}, {env}: {line}" for line in said]
            if done:
                whole[config][env] = done
                scores[config][env] = window_scores(done, suite.statistic)
            if cut:
                part[config][env] = cut
    return whole, part, scores, [*remarks, *absent(curves, suite, name_of)]


# What made them


def script_of(made, algo):
    """Stem of the script that made a config's runs, as far as their commands say, else the algo itself."""
    words = [word for run in made for start in run["starts"] for word in start["command"].split()]
    found = {Path(word).stem for word in words if word.endswith(".py")}
    return found.pop() if len(found) == 1 else algo


def differing(runs, name_of, suite):
    """What runs of one config were started with differently, as remarks."""
    for config, made in runs.items():
        by_task = {flag.replace("-", "_") for own in suite.task_flags.get(config[0], {}).values() for flag in own}
        own = {"env_id", "seed", "num_seeds", "total_timesteps", *by_task}
        fields = sorted({field for run in made for field in run["args"]} - own)
        # A flag that only some of them have came or went with a commit: the commits are named elsewhere.
        values = {field: {str(run["args"][field]) for run in made if field in run["args"]} for field in fields}
        mixed = [field for field in fields if len(values[field]) > 1]
        if mixed:
            yield f"{name_of(config)}: its runs differ in {', '.join(mixed)}."


def reset_steps(updates, ratio, end, until=None):
    """The steps before `end` after which an agent is reset that is reset every so many updates (0: never). With
    `until`, --resets-end of sr_spr and bbf, each reset is followed by a whole interval up to that step."""
    if not updates:
        return ()
    every = Fraction(updates) / Fraction(str(ratio))
    most = math.inf if until is None else math.floor(until * Fraction(str(ratio))) // updates - 1
    steps = {math.ceil(k * every) for k in range(1, math.ceil(end / every) + 1) if k <= most}  # two at one are one
    return tuple(sorted(step for step in steps if step < end))


def schedule_of(made, ratio, window_end):
    """The steps of the resets that runs of one config share before the window ends; None if they differ."""
    options = [(run["args"].get("reset_interval", 0), run["args"].get("resets_end")) for run in made]
    found = {reset_steps(updates, ratio, window_end, until) for updates, until in options}
    return found.pop() if len(found) == 1 else None
