"""From curves to results: what is aggregated, what is compared with published runs, and what is left out."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmark.jobs import require
from benchmark.report.labels import Look
from benchmark.report.published import (
    comparable,
    published_summaries,
    read_published,
    read_reference,
    reference_summaries,
)
from benchmark.report.runs import complete, differing, read_curves, read_runs, schedule_of, script_of, sort_runs
from benchmark.report.statistics import (
    Summary,
    bootstrap,
    difference_of,
    judge,
    rectangle,
    score_matrix,
    summarize,
    welch,
)
from benchmark.suites import SUITES
from benchmark.suites.dmc import OTHER_PHYSICS
from benchmark.suites.suite import Suite

ALL = "all tasks compared"


class Comparison(NamedTuple):
    """Ours and a published configuration on one task (in returns), or on all (in normalized score)."""

    config: tuple
    env: str
    ours: Summary
    reference: str
    theirs: Summary
    difference: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Results:
    """What tables, figures and page are made from. A config is (algo, replay_ratio)."""

    name: str
    suite: Suite
    look: Look
    reps: int
    """resamples behind each bootstrap interval"""
    seed: int
    """of the bootstrap"""
    runs: dict
    """{config: [{"args": ..., "starts": [...]}, ...]}, from run.json"""
    whole: dict
    """{config: {env: {seed: curve}}}, runs with every evaluation of the suite's window"""
    part: dict
    """the same of other runs"""
    scores: dict
    """{config: {env: {seed: mean return over the window}}} of the whole runs"""
    tasks: list
    """the tasks in the aggregates"""
    matrices: dict
    """{config: normalized scores (runs, tasks)}"""
    schedules: dict
    """{config: steps of its resets within the budget}, without those that do not say"""
    idle: set
    """configs that are reset every so often, but never within the budget"""
    reference: dict
    """{config: {env: {seed: curve}}}, published raw curves"""
    allowed: dict
    """{config: the published configs it may be compared with, the preferred first}"""
    comparisons: list
    published: list
    """rows of benchmark/published/"""
    remarks: list
    """what is missing, unequal or left out, in sentences"""

    def estimate(self, scores, function):
        return bootstrap(scores, function, self.reps, self.seed)


# Comparisons


def at_their_steps(seeds, window, every):
    """{seed: curve} -> {seed: mean over the window of the evaluations every so many steps}, of seeds that have them.

    Where returns grow, evaluations twice as often weigh the window's end less: the same steps of both are compared.
    """
    grid, done = complete(seeds, window)
    steps = [step for step in range(window[0], window[1] + 1) if step % every == 0] if every else grid
    there = {seed: curve for seed, curve in done.items() if all(step in curve for step in steps)}
    return {seed: float(np.mean([curve[step] for step in steps])) for seed, curve in there.items()}


def compare_task(config, env, seeds, suite, other, theirs):
    """One config on one task -> Comparison; None if its runs lack evaluations that the published ones have."""
    own = at_their_steps(seeds, suite.statistic, theirs.every)
    if not own:
        return None
    ours = summarize([*own.values()])
    difference, low, high = difference_of(ours, theirs)
    verdict = judge(low, high, theirs.mean - suite.scores[env][0])
    return Comparison(config, env, ours, other[0], theirs, difference, low, high, verdict)


def normalized(summary, scale):
    random, best = scale
    return Summary((summary.mean - random) / (best - random), summary.std / (best - random), summary.seeds)


def compare_tasks(config, rows, suite):
    """Comparisons of one config, task by task -> that of their means, in normalized score."""
    ours = [normalized(row.ours, suite.scores[row.env]) for row in rows]
    theirs = [normalized(row.theirs, suite.scores[row.env]) for row in rows]
    difference, low, high = welch(ours, theirs)
    a, b = (Summary(np.mean([x.mean for x in side]), math.nan, min(x.seeds for x in side)) for side in (ours, theirs))
    names = " ".join(sorted({row.reference for row in rows}))
    where = f"{ALL} ({len(rows)})"
    return Comparison(config, where, a, names, b, difference, low, high, judge(low, high, b.mean))


def compare(whole, suite, theirs, allowed):
    """Ours against the published, task by task and over tasks -> [Comparison, ...].

    whole {config: {env: {seed: curve}}}; theirs {config: {env: Summary}}; allowed {config: [their config, ...]}.
    """
    found = []
    for config, envs in whole.items():
        rows = []
        for env in [env for env in suite.scores if envs.get(env)]:
            other = next((other for other in allowed.get(config, ()) if env in theirs.get(other, ())), None)
            row = compare_task(config, env, envs[env], suite, other, theirs[other][env]) if other else None
            if row:
                rows.append(row)
        found += rows
        if len(rows) > 1 and not any(row.theirs.reading for row in rows):
            found.append(compare_tasks(config, rows, suite))
    return found


# Everything


def check(args):
    require(args.suite in SUITES, f"no suite {args.suite}; there are {', '.join(SUITES)}")
    require(all("=" in pair for pair in args.labels), "--labels wants name=label")
    require(args.bootstrap_reps >= 100, f"--bootstrap-reps cannot be {args.bootstrap_reps}; give 100 or more")
    require(0 <= args.seed < 2**32, f"--seed cannot be {args.seed}")


def resets(runs, window_end):
    """{config: runs} -> (schedules, idle), as in Results."""
    schedules = {config: schedule_of(made, config[1], window_end) for config, made in runs.items()}
    schedules = {config: steps for config, steps in schedules.items() if steps is not None}
    asked = {config for config, made in runs.items() if any(run["args"].get("reset_interval") for run in made)}
    return schedules, {config for config in asked if schedules.get(config) == ()}


def read_theirs(args, suite, published, curves):
    """Published runs -> their raw curves, if a file of them is given, and {config: {env: Summary}}."""
    last = max(step for envs in curves.values() for own in envs.values() for curve in own.values() for step in curve)
    if args.reference:
        reference = read_reference(args.reference, args.reference_algos, suite.scores, last)
        summaries = reference_summaries(reference, suite)
    else:
        reference = {}
        summaries = published_summaries(published, suite, args.suite)
    same = {config: {env: own[env] for env in own if env not in OTHER_PHYSICS} for config, own in summaries.items()}
    return reference, same


def other_physics(curves):
    """Remarks on tasks whose physics have changed since the published curves were made."""
    for env in OTHER_PHYSICS:
        if any(env in envs for envs in curves.values()):
            why = "MuJoCo's contacts of the finger are others since 3.5.0"
            yield f"{env}: not compared with published curves, made with older versions: {why}."


def allowed_comparisons(args, suite, runs, curves, schedules, available):
    """{config: the published configs, of those available, that it may be compared with}"""
    order = (*args.reference_algos, *sorted({algo for algo, _ in available} - {*args.reference_algos}))
    allowed = {}
    for config in curves:
        script = config[0] if config[0] in suite.variants else script_of(runs.get(config, ()), config[0])
        allowed[config] = comparable(config, script, schedules.get(config), available, suite.statistic[1], order)
    return allowed


def normalize(scores, suite, name_of):
    """{config: {env: {seed: score}}} -> (tasks, matrices, remarks), as in Results."""
    in_all = rectangle({config: own for config, own in scores.items() if own})
    tasks = [env for env in suite.scores if env in in_all]
    random, best = (np.array([suite.scores[env][k] for env in tasks]) for k in (0, 1))
    matrices, remarks = {}, []
    for config, own in scores.items():
        matrix = score_matrix(own, tasks)
        if matrix is None:
            if tasks:
                remarks.append(
                    f"{name_of(config)}: not in the aggregates, which need a finished run of all their tasks."
                )
            continue
        matrices[config] = (matrix - random) / (best - random)
        there = sum(len(own[env]) for env in tasks)
        if matrix.size < there:
            used = f"{matrix.size} of its {there} finished runs, the first {len(matrix)} of each task"
            remarks.append(f"{name_of(config)}: the aggregates use {used}, as many as the task with the fewest has.")
    return tasks, matrices, remarks


def not_compared(whole, suite, theirs, allowed, comparisons, name_of):
    """Remarks on tasks for which something is published, but not at the steps of our evaluations."""
    compared = {(row.config, row.env) for row in comparisons}
    for config, envs in whole.items():
        others = [env for other in allowed[config][:1] for env in suite.scores if env in theirs.get(other, ())]
        left = [env for env in others if envs.get(env) and (config, env) not in compared]
        if left:
            what = "not evaluated at all the steps at which the published runs were; not compared"
            yield f"{name_of(config)}, {', '.join(left)}: {what}."


def prepare(args):
    """Reads and computes everything -> Results; nothing is written."""
    check(args)
    suite, folder = SUITES[args.suite], Path(args.results_dir, args.suite)
    curves = read_curves(folder / "curves.csv", args.suite)
    runs = {config: made for config, made in read_runs(folder / "run.json").items() if config in curves}
    look = Look({config[0] for config in curves}, dict(pair.split("=", 1) for pair in args.labels))

    whole, part, scores, remarks = sort_runs(curves, suite, look.config)
    usable = any(own for group in (whole, part) for own in group.values())
    require(usable, f"no usable run in {folder / 'curves.csv'}: {' '.join(remarks)}")
    remarks += differing(runs, look.config, suite)
    schedules, idle = resets(runs, suite.statistic[1])
    for config in [config for config in curves if config not in schedules]:
        remarks.append(f"{look.config(config)}: run.json does not tell its resets; not compared with published runs.")
    tasks, matrices, left_out = normalize(scores, suite, look.config)

    published = read_published()
    reference, theirs = read_theirs(args, suite, published, curves)
    available = {*theirs, *reference}
    allowed = allowed_comparisons(args, suite, runs, curves, schedules, available)
    comparisons = compare(whole, suite, theirs, allowed)
    remarks += [*other_physics(curves), *left_out]
    remarks += not_compared(whole, suite, theirs, allowed, comparisons, look.config)
    return Results(
        name=args.suite,
        suite=suite,
        look=look,
        reps=args.bootstrap_reps,
        seed=args.seed,
        runs=runs,
        whole=whole,
        part=part,
        scores=scores,
        tasks=tasks,
        matrices=matrices,
        schedules=schedules,
        idle=idle,
        reference=reference,
        allowed=allowed,
        comparisons=comparisons,
        published=published,
        remarks=remarks,
    )
