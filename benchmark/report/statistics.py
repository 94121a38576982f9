"""Statistics of scores: NumPy in, NumPy out.

Intervals are 95 %: rliable's stratified bootstrap over seeds, seeded, so that a second run gives the same tables to the
bit. A difference from published runs has Welch's t instead, because a percentile bootstrap of five runs against five is
too narrow; compared with many published runs it has Student's t, because their spread also tells that of a few of ours.
"""

import math
from typing import NamedTuple

import numpy as np
from rliable import library
from scipy import stats

STATISTICS = {"iqm": "IQM", "median": "median", "mean": "mean", "optimality_gap": "optimality gap"}


# Aggregates of one agent


def iqm(scores):
    """Interquartile mean over runs and tasks: (runs, tasks, ...) -> (...). As rliable's, which has no trailing axes."""
    flat = np.sort(scores.reshape(-1, *scores.shape[2:]), axis=0)
    cut = len(flat) // 4
    return flat[cut : len(flat) - cut].mean(axis=0)


def aggregate(scores):
    """Normalized scores (runs, tasks) -> [IQM, median of task means, mean, optimality gap], as in STATISTICS."""
    means = scores.mean(axis=0)
    return np.array([iqm(scores), np.median(means), means.mean(), 1 - np.minimum(scores, 1).mean()])


def profile(scores, thresholds):
    """Scores (runs, tasks), thresholds (k,) -> share of the runs with a score above each, (k,)."""
    return (scores[..., None] > thresholds).mean(axis=(0, 1))


def bootstrap(scores, function, reps, seed):
    """function(scores) with its 95 % interval by rliable's stratified bootstrap.

    scores (runs, tasks, ...), function -> (k,); returns value, low, high, each (k,). Low and high are nan for one run,
    which knows nothing of its spread.
    """
    value = np.atleast_1d(function(scores))
    if len(scores) < 2:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    # rliable 1.2.0 draws from NumPy's global generator and never looks at the random_state that it takes
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        _, interval = library.get_interval_estimates({0: scores}, lambda x: np.atleast_1d(function(x)), reps=reps)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return value, *interval[0]


def rectangle(tasks_of):
    """{configuration: its tasks} -> the tasks that make the largest table of tasks x configurations without a hole."""
    candidates = set()
    for own in map(frozenset, tasks_of.values()):
        candidates |= {own} | {own & other for other in candidates}
    area = {tasks: len(tasks) * sum(tasks <= set(own) for own in tasks_of.values()) for tasks in candidates}
    return sorted(max(candidates, key=lambda tasks: (area[tasks], len(tasks), sorted(tasks)), default=()))


def score_matrix(scores, tasks):
    """{task: {seed: score or curve}} -> (runs, tasks, ...), None if a task is missing.

    With unequal numbers of seeds each task gives its lowest ones, as many as the task with the fewest. A row need not
    be one seed: runs of different tasks share nothing, and the stratified bootstrap draws each task's on their own.
    """
    if not tasks or any(not scores.get(task) for task in tasks):
        return None
    runs = min(len(scores[task]) for task in tasks)
    return np.array([[scores[task][seed] for seed in sorted(scores[task])[:runs]] for task in tasks]).swapaxes(0, 1)


# Two agents on one task


class Summary(NamedTuple):
    """Scores of several seeds: mean, sample standard deviation (nan for one seed), number of seeds. A mean that was
    read off a figure has the error of the reading instead of a deviation. `every`: steps between the evaluations.
    `middle95`: the 2.5th and 97.5th percentile of many runs."""

    mean: float
    std: float
    seeds: int
    reading: float = 0.0
    every: int = 0
    middle95: tuple = ()


def summarize(scores):
    """Scores of one task's seeds -> Summary."""
    scores = np.asarray(scores, float)
    return Summary(scores.mean(), scores.std(ddof=1) if len(scores) > 1 else math.nan, len(scores))


def welch(ours, theirs):
    """Mean over tasks of the difference of means, with Welch's 95 % interval over seeds: (difference, low, high).

    Two lists of Summary, task by task. Degrees of freedom are Welch and Satterthwaite's over all the means involved;
    with one task this is Welch's t. The interval is nan if any of them has a single seed.
    """
    difference = float(np.mean([a.mean - b.mean for a, b in zip(ours, theirs, strict=True)]))
    if min(s.seeds for s in [*ours, *theirs]) < 2:
        return difference, math.nan, math.nan
    parts = [(s.std**2 / s.seeds / len(ours) ** 2, s.seeds - 1) for s in [*ours, *theirs]]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return difference, difference, difference
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
    return difference, difference - half, difference + half


def beside_reading(ours, theirs):
    """Difference to a mean that was read off a figure, with the 95 % interval of ours over seeds (Student's t) widened
    by the error of the reading: (difference, low, high). Low and high are nan for one seed."""
    difference = ours.mean - theirs.mean
    if ours.seeds < 2:
        return difference, math.nan, math.nan
    half = float(stats.t.ppf(0.975, ours.seeds - 1)) * ours.std / math.sqrt(ours.seeds) + theirs.reading
    return difference, difference - half, difference + half


def beside_many(ours, theirs):
    """Difference to the mean of many runs, with Student's 95 % interval over seeds: (difference, low, high).

    It takes the spread to be the same on both sides, so that the many tell it: beside two seeds of ours Welch's has
    one degree of freedom and finds hardly any difference. One seed is enough.
    """
    difference, freedom = ours.mean - theirs.mean, ours.seeds + theirs.seeds - 2
    squares = (theirs.seeds - 1) * theirs.std**2 + ((ours.seeds - 1) * ours.std**2 if ours.seeds > 1 else 0)
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(squares / freedom * (1 / ours.seeds + 1 / theirs.seeds))
    return difference, difference - half, difference + half


def difference_of(ours, theirs):
    """Difference of two Summaries of one task, by the interval that fits what is published: (difference, low, high)."""
    if theirs.reading:
        return beside_reading(ours, theirs)
    if theirs.middle95:
        return beside_many(ours, theirs)
    return welch([ours], [theirs])


def judge(low, high, scale):
    """An interval of a difference in words; scale is the published score above a random policy's."""
    if low > 0 or high < 0:
        return "higher" if low > 0 else "lower"
    return "agrees" if (high - low) / 2 <= abs(scale) / 2 else "too few seeds to say"  # nan is too few, too
