"""Published runs: tables, files of raw curves, and which of them ours may be compared with."""

import math
import re
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import numpy as np

from benchmark.jobs import require
from benchmark.report.runs import complete, read_csv, reset_steps
from benchmark.report.statistics import Summary, summarize
from benchmark.suites.atari import ATARI26
from benchmark.suites.suite import EVALUATION

PUBLISHED = Path(__file__).parents[1] / "published"
PUBLISHED_COLUMNS = "paper algorithm replay_ratio resets suite task step statistic value low high seeds source".split()
REFERENCE_COLUMNS = {"algo", "replay_ratio", "task", "seed", "step", "return"}
READ = {"charts/average_return": "read_average", "charts/mean_return": "read_mean"}  # published, off a figure
PUBLISHED_STATISTICS = {*"iqm median mean optimality_gap std population_std middle95".split(), *READ.values()}
# One agent but for its resets, so runs compare where the steps of their resets agree: every so many updates, or steps
SAME_BUT_RESETS = {"sac": {}, "sr_sac": {"updates": 2_560_000}, "sac_resets_200k": {"steps": 200_000}}
RESETS = {"bbf": (40_000, 100_000)}  # of other published agents: every so many updates, none too late before this step
MANY = 40  # from so many runs on, the range that holds 95 % of them is told


# Names of tasks


def dm_control_name(env_id):
    """EnvPool's id to dm_control's name: CheetahRun-v1 -> cheetah-run, FingerTurnHard-v1 -> finger-turn_hard."""
    words = re.findall("[A-Z]+[a-z0-9]*", env_id.rsplit("-", 1)[0])
    name = "_".join(words).lower()
    domain = next((d for d in ("ball_in_cup", "point_mass") if name.startswith(d + "_")), words[0].lower())
    return f"{domain}-{name[len(domain) + 1 :]}"


def published_name(env_id):
    """A task as benchmark/published/ calls it: dm_control's name, or that of a game of MinAtar or Atari."""
    if env_id in ATARI26:
        return "atari-" + re.sub("(?<=[a-z])(?=[A-Z])", "_", env_id.removesuffix("-v5")).lower()
    if env_id.endswith("-MinAtar"):
        return "minatar-" + re.sub("(?<=[a-z])(?=[A-Z])", "_", env_id.removesuffix("-MinAtar")).lower()
    return dm_control_name(env_id)


# The tables of benchmark/published/


def read_published(folder=PUBLISHED):
    """All rows of benchmark/published/*.csv as dicts of text."""
    return [row for path in sorted(folder.glob("*.csv")) for row in read_csv(path, {*PUBLISHED_COLUMNS})]


def config_of(row):
    return row["algorithm"], float(row["replay_ratio"])


def window_name(suite):
    return f"{suite.statistic[0]}-{suite.statistic[1]}"


def window_of(row):
    """A published row's window, without the steps between its evaluations."""
    return row["step"].split("/")[0]


def reading_error(row):
    return (float(row["high"]) - float(row["low"])) / 2


def read_summaries(rows, suite, name):
    """What was read off figures at the suite's last step -> {config: {env: Summary}}"""
    names, found = {published_name(env): env for env in suite.scores}, defaultdict(dict)
    wanted = (name, READ[suite.metric], str(suite.statistic[1]))
    for row in rows:
        if (row["suite"], row["statistic"], row["step"]) == wanted and row["task"] in names:
            summary = Summary(float(row["value"]), math.nan, int(row["seeds"] or 0), reading=reading_error(row))
            found[config_of(row)][names[row["task"]]] = summary
    return dict(found)


def published_summaries(rows, suite, name):
    """Published mean and std of the suite's statistic, or its mean as read off a figure -> {config: {env: Summary}}"""
    if suite.metric != EVALUATION:
        return read_summaries(rows, suite, name)
    names, found = {published_name(env): env for env in suite.scores}, defaultdict(lambda: defaultdict(dict))
    for row in rows:
        here = row["task"] in names and window_of(row) == window_name(suite)
        if not here or row["statistic"] not in ("mean", "std", "middle95"):
            continue
        own = found[config_of(row)][names[row["task"]]]
        many = row["statistic"] == "middle95"
        own[row["statistic"]] = (float(row["low"]), float(row["high"])) if many else float(row["value"])
        own |= {"seeds": int(row["seeds"]), "every": int(row["step"].partition("/")[2] or 0)}
    return {config: {env: Summary(**own) for env, own in envs.items()} for config, envs in found.items()}


def read_points(rows, suite, name, other, env, last):
    """What was read off a published figure of a config and task, up to a step -> (steps, values, errors)."""
    points = []
    for row in rows if suite.metric in READ else ():
        here = row["suite"], row["statistic"], row["task"], config_of(row)
        if here == (name, READ[suite.metric], published_name(env), other) and int(row["step"]) <= last:
            points.append((int(row["step"]), float(row["value"]), reading_error(row)))
    return tuple(zip(*sorted(points), strict=True)) or ((), (), ())


def published_iqms(rows, name, suite):
    """Published IQMs of this suite, normalized, so only where all tasks share one scale: over steps {config: (steps,
    values)}, and of its statistic {config: (value, low, high, seeds, whether it was reset)}."""
    lines, points = defaultdict(lambda: ([], [])), {}
    random, best = next(iter(suite.scores.values()))
    for row in rows if len({*suite.scores.values()}) == 1 else ():
        if (row["suite"], row["task"], row["statistic"]) != (name, "", "iqm"):
            continue
        config = config_of(row)
        triple = [(float(row[field] or "nan") - random) / (best - random) for field in ("value", "low", "high")]
        if window_of(row) == window_name(suite):
            points[config] = (*triple, int(row["seeds"]), row["resets"] == "1")
        elif row["step"].isdigit() and int(row["step"]) <= suite.statistic[1]:
            lines[config][0].append(int(row["step"]))
            lines[config][1].append(triple[0])
    return lines, points


# Files of raw curves


def read_reference(path, algos, envs, last):
    """Published rows up to a step -> {(algo, replay_ratio): {env: {seed: {step: return}}}}"""
    names, found = {published_name(env): env for env in envs}, set()
    curves = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for number, row in enumerate(read_csv(path, REFERENCE_COLUMNS), 2):
        found.add(row["algo"])
        try:
            config, seed, step = (row["algo"], float(row["replay_ratio"])), int(row["seed"]), int(row["step"])
            value = float(row["return"])
        except (TypeError, ValueError):
            require(False, f"line {number} of {path} is damaged")
        if row["algo"] in algos and row["task"] in names and step <= last:
            curves[config][names[row["task"]]][seed][step] = value
    unknown = [algo for algo in algos if algo not in found]
    require(not unknown, f"{path} has no {', '.join(unknown)}; it has {', '.join(sorted(found))}")
    return {config: {env: dict(seeds) for env, seeds in own.items()} for config, own in sorted(curves.items())}


def summary_of_curves(seeds, window):
    """{seed: curve} -> Summary, rounded as in benchmark/published/, so that both give the same tables; None if no run
    has all evaluations of the window."""
    grid, done = complete(seeds, window)
    if not done:
        return None
    values = [np.mean([curve[step] for step in grid]) for curve in done.values()]
    own = summarize(values)
    middle = np.percentile(values, [2.5, 97.5]).round(4).tolist() if own.seeds >= MANY else ()
    every = grid[1] - grid[0] if len(grid) > 1 else 0
    return Summary(round(own.mean, 4), round(own.std, 4), own.seeds, every=every, middle95=tuple(middle))


def reference_summaries(reference, suite):
    """Published raw curves -> {config: {env: Summary}}"""
    found = {}
    for config, envs in reference.items():
        own = {env: summary_of_curves(seeds, suite.statistic) for env, seeds in envs.items()}
        own = {env: summary for env, summary in own.items() if summary}
        if own:
            found[config] = own
    return found


# Which of them compare


def same_resets(algo, config, script, schedule, window_end):
    """Whether a published algorithm is the agent of one of our configs, reset at the same steps.

    It is if it has its name: runs under another --exp-name may differ in anything. But algorithms of SAME_BUT_RESETS
    stand in for each other: SR-SAC before its first reset is SAC.
    """
    if {algo, script} <= {*SAME_BUT_RESETS}:
        rule = SAME_BUT_RESETS[algo]
        updates = rule.get("updates", 0) or rule.get("steps", 0) * Fraction(str(config[1]))
        return reset_steps(updates, config[1], window_end) == schedule
    updates, until = RESETS.get(algo, (0, None))
    return algo == config[0] and reset_steps(updates, config[1], window_end, until) == schedule


def comparable(config, script, schedule, available, window_end, order):
    """The published configs that one of ours may be compared with, the preferred first: those of its ratio, with its
    resets' steps."""
    preferred = sorted(order, key=lambda algo: (algo != script, order.index(algo)))
    fitting = [algo for algo in preferred if same_resets(algo, config, script, schedule, window_end)]
    return [(algo, config[1]) for algo in fitting if (algo, config[1]) in available]
