"""Curves to figures, tables and verdicts: python -m benchmark.report --suite dmc_cpu

Reads `benchmark/results/SUITE/curves.csv` and `run.json`, which benchmark.collect wrote. Writes scores.csv,
aggregates.csv and comparison.csv beside them, and figures with a report.md to `docs/results/SUITE/`. A run's score is
the suite's one statistic, fixed beforehand: the mean of its metric over a window of steps. Comparisons with
published runs take the same statistic of both, from `benchmark/published/` or, with --reference FILE, from raw curves,
which are then drawn too.

Intervals are 95 %: rliable's stratified bootstrap over seeds, seeded, so that a second run gives the same tables to the
bit; for a difference to published runs Welch's t, since a percentile bootstrap of five against five covers too little,
and Student's beside many published runs, whose spread says what two of ours cannot.
"""

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import tyro
from rliable import library
from scipy import stats

from benchmark.jobs import provenance_of, require
from benchmark.suites import ATARI26, EVALUATION, OTHER_PHYSICS, SUITES, Suite

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from PIL import Image

AXIS = {
    EVALUATION: "evaluation return",
    "charts/average_return": "training return, moving average",
    "charts/mean_return": "training return, mean so far",
}
READ = {"charts/average_return": "read_average", "charts/mean_return": "read_mean"}  # published, off a figure
COLUMNS = {"suite", "algo", "replay_ratio", "env", "seed", "step", "metric", "value"}
REFERENCE_COLUMNS = {"algo", "replay_ratio", "task", "seed", "step", "return"}
PUBLISHED = Path(__file__).parent / "published"
PUBLISHED_COLUMNS = "paper algorithm replay_ratio resets suite task step statistic value low high seeds source".split()
PUBLISHED_STATISTICS = {*"iqm median mean optimality_gap std population_std middle95".split(), *READ.values()}
STATISTICS = {"iqm": "IQM", "median": "median", "mean": "mean", "optimality_gap": "optimality gap"}
LABELS = {"sac": "SAC", "sr_sac": "SR-SAC", "redq": "REDQ", "sac_resets_200k": "SAC, reset every 200k steps"}
LABELS |= {"dqn": "DQN", "sr_dqn": "SR-DQN", "rainbow": "Rainbow", "c51": "C51", "qr_dqn": "QR-DQN"}
LABELS |= {"ensemble_dqn": "Ensemble-DQN", "rem": "REM", "dqn_half_step": "DQN, half the step size"}
LABELS |= {"dqn_double_step": "DQN, double the step size", "dqn_adam": "DQN, Adam", "dqn_atari": "DQN"}
LABELS |= {"der": "DER", "drq_eps": "DrQ(ε)", "spr": "SPR", "bbf": "BBF"}
LABELS |= {"ac_lambda_0.8": "AC(0.8)", "ac_lambda_0": "AC(0)", "dqn_no_replay": "DQN without replay"}
LABELS |= {"sr_sac_no_reset": "SR-SAC without resets"}
LABELS |= {"dqn_3_step": "DQN, three steps", "dqn_noise": "DQN, noise", "dqn_dueling": "DQN, dueling"}
LABELS |= {"dqn_double": "DQN, double", "dqn_priorities": "DQN, priorities", "rainbow_iqn": "Rainbow, IQN"}
LABELS |= {"rainbow_quantiles": "Rainbow, quantiles", "rainbow_munchausen": "Rainbow, Munchausen"}
LABELS |= {"rainbow_munchausen_iqn": "Rainbow, Munchausen, IQN"} | {
    f"rainbow_{name}": f"Rainbow, {words}"
    for name, words in {
        "no_double": "not double",
        "no_priorities": "uniform replay",
        "no_dueling": "not dueling",
        "1_step": "one step",
        "no_distribution": "no distribution",
        "no_noise": "no noise",
    }.items()
}
LABELS |= {"sr_spr": "SR-SPR"}
# One agent but for its resets, so runs compare where the steps of their resets agree: every so many updates, or steps
SAME_BUT_RESETS = {"sac": {}, "sr_sac": {"updates": 2_560_000}, "sac_resets_200k": {"steps": 200_000}}
RESETS = {"bbf": (40_000, 100_000)}  # of other published agents: every so many updates, none too late before this step
COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000"]  # Okabe and Ito's
LINES = ["-", "--", "-.", ":"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
GREY = "#666666"
MARKED = 8  # up to so many resets are marked in the curves
FEW = 3  # up to so many seeds each is drawn as a thin line, beside their mean
MANY = 40  # from so many runs on, the range that holds 95 % of them is told
ALL = "all tasks compared"


@dataclass(frozen=True)
class Args:
    suite: str
    """name of the suite, in benchmark/suites.py"""
    results_dir: str = "benchmark/results"
    """folder of the suites' tables"""
    docs_dir: str = "docs/results"
    """folder of the suites' figures and pages"""
    reference: str | None = None
    """published raw curves to draw and compare: .csv or .csv.gz with algo, replay_ratio, task, seed, step, return"""
    reference_algos: tuple[str, ...] = ("sr_sac", "sac")
    """published algorithms to compare with, the preferred first"""
    labels: tuple[str, ...] = ()
    """what to call algorithms: name=label name=label"""
    bootstrap_reps: int = 2000
    """resamples behind each bootstrap interval"""
    seed: int = 0
    """of the bootstrap"""


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


# Statistics: NumPy in, NumPy out


def window_grid(steps, window):
    """The evaluation steps within a window (from, to), or [] if they do not cover it evenly from end to end."""
    grid = sorted(step for step in set(steps) if window[0] <= step <= window[1])
    gaps = {b - a for a, b in pairwise(grid)}
    if len(gaps) > 1 or not grid:
        return []
    gap = gaps.pop() if gaps else 1
    return grid if grid[0] - gap < window[0] and window[1] < grid[-1] + gap else []


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


def judge(low, high, scale):
    """An interval of a difference in words; scale is the published score above a random policy's."""
    if low > 0 or high < 0:
        return "higher" if low > 0 else "lower"
    return "agrees" if (high - low) / 2 <= abs(scale) / 2 else "too few seeds to say"  # nan is too few, too


def rectangle(tasks_of):
    """{configuration: its tasks} -> the tasks that make the largest table of tasks x configurations without a hole."""
    candidates = set()
    for own in map(frozenset, tasks_of.values()):
        candidates |= {own} | {own & other for other in candidates}
    area = {tasks: len(tasks) * sum(tasks <= set(own) for own in tasks_of.values()) for tasks in candidates}
    return sorted(max(candidates, key=lambda tasks: (area[tasks], len(tasks), sorted(tasks)), default=()))


def complete(seeds, window):
    """{seed: curve} -> the evaluation steps of the window, and of the seeds those that have them all."""
    grid = window_grid([step for curve in seeds.values() for step in curve], window)
    return grid, {seed: curve for seed, curve in seeds.items() if grid and all(step in curve for step in grid)}


def score_matrix(scores, tasks):
    """{task: {seed: score or curve}} -> (runs, tasks, ...), None if a task is missing.

    With unequal numbers of seeds each task gives its lowest ones, as many as the task with the fewest. A row need not
    be one seed: runs of different tasks share nothing, and the stratified bootstrap draws each task's on their own.
    """
    if not tasks or any(not scores.get(task) for task in tasks):
        return None
    runs = min(len(scores[task]) for task in tasks)
    return np.array([[scores[task][seed] for seed in sorted(scores[task])[:runs]] for task in tasks]).swapaxes(0, 1)


def reset_steps(updates, ratio, end, until=None):
    """The steps before `end` after which an agent is reset that is reset every so many updates (0: never). With
    `until`, --resets-end of sr_spr and bbf, each reset is followed by a whole interval up to that step."""
    if not updates:
        return ()
    every = Fraction(updates) / Fraction(str(ratio))
    most = math.inf if until is None else math.floor(until * Fraction(str(ratio))) // updates - 1
    steps = {math.ceil(k * every) for k in range(1, math.ceil(end / every) + 1) if k <= most}  # two at one are one
    return tuple(sorted(step for step in steps if step < end))


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


def read_curves(path, name):
    """curves.csv -> {(algo, replay_ratio): {env: {seed: {step: return}}}}"""
    require(path.is_file(), f"no {path}: run benchmark.sweep or benchmark.collect with --suite {name} first")
    curves = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    suite = SUITES[name]
    for number, row in enumerate(read_csv(path, COLUMNS), 2):
        try:
            config, seed, step = (row["algo"], float(row["replay_ratio"])), int(row["seed"]), int(row["step"])
            value = float(row["value"])
        except (TypeError, ValueError):
            require(False, f"line {number} of {path} is damaged")
        require(row["suite"] == name, f"line {number} of {path} belongs to suite {row['suite']}")
        if row["metric"] in suite.parts:
            curve = curves[config][row["env"]][seed].setdefault(row["metric"], {})
            require(step not in curve, f"line {number} of {path} gives step {step} of a run a second time")
            curve[step] = value
    require(
        curves,
        f"no {' and '.join(suite.parts)} in {path}: no run has got to "
        f"{'an evaluation' if suite.metric == EVALUATION else 'a log'} yet",
    )
    return {
        config: {  # a run without an ended episode has no curve yet
            env: {seed: curve for seed, logged in seeds.items() if (curve := suite.scored(logged))}
            for env, seeds in own.items()
        }
        for config, own in sorted(curves.items())
    }


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


def read_published(folder=PUBLISHED):
    """All rows of benchmark/published/*.csv as dicts of text."""
    return [row for path in sorted(folder.glob("*.csv")) for row in read_csv(path, {*PUBLISHED_COLUMNS})]


def published_name(env_id):
    """A task as benchmark/published/ calls it: dm_control's name, or that of a game of MinAtar or Atari."""
    if env_id in ATARI26:
        return "atari-" + re.sub("(?<=[a-z])(?=[A-Z])", "_", env_id.removesuffix("-v5")).lower()
    if env_id.endswith("-MinAtar"):
        return "minatar-" + re.sub("(?<=[a-z])(?=[A-Z])", "_", env_id.removesuffix("-MinAtar")).lower()
    return dm_control_name(env_id)


def dm_control_name(env_id):
    """EnvPool's id to dm_control's name: CheetahRun-v1 -> cheetah-run, FingerTurnHard-v1 -> finger-turn_hard."""
    words = re.findall("[A-Z]+[a-z0-9]*", env_id.rsplit("-", 1)[0])
    name = "_".join(words).lower()
    domain = next((d for d in ("ball_in_cup", "point_mass") if name.startswith(d + "_")), words[0].lower())
    return f"{domain}-{name[len(domain) + 1 :]}"


# From curves to results


@dataclass(frozen=True)
class Results:
    """What tables, figures and page are made from. A config is (algo, replay_ratio)."""

    args: Args
    suite: Suite
    look: "Look"
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
        return bootstrap(scores, function, self.args.bootstrap_reps, self.args.seed)


def sort_runs(curves, suite, name_of):
    """Which runs count -> (whole, part, scores, remarks), as in Results."""
    whole, part, scores = ({config: {} for config in curves} for _ in range(3))
    remarks = []
    for config, envs in curves.items():
        for env, seeds in sorted(envs.items()):
            if env not in suite.scores:
                remarks.append(f"{name_of(config)}: {env} is no task of the suite; left out.")
                continue
            broken = [seed for seed, curve in seeds.items() if not np.isfinite([*curve.values()]).all()]
            if broken:
                remarks.append(f"{name_of(config)}, {env}: NaN or infinite returns in {listed(broken)}; left out.")
            grid, done = complete({k: v for k, v in sorted(seeds.items()) if k not in broken}, suite.statistic)
            cut = {seed: seeds[seed] for seed in sorted({*seeds} - {*broken} - {*done})}
            if cut:
                last = max(max(curve) for curve in cut.values())
                what = f"{listed(cut)} without all evaluations of the window, up to step {last:,}; drawn, not scored."
                remarks.append(f"{name_of(config)}, {env}: {what}")
            for group, own in ((whole, done), (part, cut)):
                if own:
                    group[config][env] = own
            if done:
                scores[config][env] = {s: float(np.mean([curve[step] for step in grid])) for s, curve in done.items()}
    empty = [env for env in suite.scores if not any(env in envs for envs in curves.values())]
    if empty:
        remarks.append(f"No run at all of {', '.join(empty)}.")
    everyone = {seed for own in curves.values() for seeds in own.values() for seed in seeds}
    for config, envs in curves.items():  # as many seeds as any other has
        for env in [env for env in suite.scores if env not in empty]:
            absent = everyone - {*envs.get(env, ())}
            if absent:
                remarks.append(f"{name_of(config)}, {env}: no run of {listed(absent) if env in envs else 'any seed'}.")
    return whole, part, scores, remarks


def listed(seeds):
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"


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


def schedule_of(made, ratio, window_end):
    """The steps of the resets that runs of one config share before the window ends; None if they differ."""
    options = [(run["args"].get("reset_interval", 0), run["args"].get("resets_end")) for run in made]
    found = {reset_steps(updates, ratio, window_end, until) for updates, until in options}
    return found.pop() if len(found) == 1 else None


def script_of(made, algo):
    """Stem of the script that made a config's runs, as far as their commands say, else the algo itself."""
    found = {Path(w).stem for run in made for s in run["starts"] for w in s["command"].split() if w.endswith(".py")}
    return found.pop() if len(found) == 1 else algo


def comparable(config, script, schedule, available, window_end, order):
    """The published configs that one of ours may be compared with, the preferred first.

    They have its ratio and its resets' steps, and its name: runs under another --exp-name may differ in anything. But
    algorithms of SAME_BUT_RESETS stand in for each other: SR-SAC before its first reset is SAC.
    """
    found = []
    for algo in sorted(order, key=lambda algo: (algo != script, order.index(algo))):
        if {algo, script} <= {*SAME_BUT_RESETS}:
            rule = SAME_BUT_RESETS[algo]
            updates = rule.get("updates", 0) or rule.get("steps", 0) * Fraction(str(config[1]))
            fits = reset_steps(updates, config[1], window_end) == schedule
        else:
            updates, until = RESETS.get(algo, (0, None))
            fits = algo == config[0] and reset_steps(updates, config[1], window_end, until) == schedule
        if fits and (algo, config[1]) in available:
            found.append((algo, config[1]))
    return found


def at_their_steps(seeds, window, every):
    """{seed: curve} -> {seed: mean over the window of the evaluations every so many steps}, of seeds that have them.

    Where returns grow, evaluations twice as often weigh the window's end less: the same steps of both are compared.
    """
    grid, done = complete(seeds, window)
    steps = [step for step in range(window[0], window[1] + 1) if step % every == 0] if every else grid
    there = {seed: curve for seed, curve in done.items() if all(step in curve for step in steps)}
    return {seed: float(np.mean([curve[step] for step in steps])) for seed, curve in there.items()}


def compare(whole, suite, theirs, allowed):
    """Ours against the published, task by task and over tasks -> [Comparison, ...].

    whole {config: {env: {seed: curve}}}; theirs {config: {env: Summary}}; allowed {config: [their config, ...]}.
    """
    rows = []
    for config, envs in whole.items():
        names, pairs = set(), []
        for env in [env for env in suite.scores if envs.get(env)]:
            other = next((other for other in allowed.get(config, ()) if env in theirs.get(other, ())), None)
            own = at_their_steps(envs[env], suite.statistic, theirs[other][env].every) if other else {}
            if own:
                random, best = suite.scores[env]
                a, b = summarize([*own.values()]), theirs[other][env]
                one_task = lambda a, b: welch([a], [b])
                between = beside_reading if b.reading else beside_many if b.middle95 else one_task
                difference, low, high = between(a, b)
                verdict = judge(low, high, b.mean - random)
                rows.append(Comparison(config, env, a, other[0], b, difference, low, high, verdict))
                names.add(other[0])
                scale = best - random
                pairs.append([Summary((x.mean - random) / scale, x.std / scale, x.seeds, x.reading) for x in (a, b)])
        if len(pairs) > 1 and not any(b.reading for _, b in pairs):
            sides = [*zip(*pairs, strict=True)]
            difference, low, high = welch(*sides)
            a, b = (Summary(np.mean([x.mean for x in side]), math.nan, min(x.seeds for x in side)) for side in sides)
            verdict = judge(low, high, b.mean)
            where = f"{ALL} ({len(pairs)})"
            rows.append(Comparison(config, where, a, " ".join(sorted(names)), b, difference, low, high, verdict))
    return rows


def window_name(suite):
    return f"{suite.statistic[0]}-{suite.statistic[1]}"


def window_of(row):
    """A published row's window, without the steps between its evaluations."""
    return row["step"].split("/")[0]


def published_summaries(rows, suite, name):
    """Published mean and std of the suite's statistic, or its mean as read off a figure -> {config: {env: Summary}}"""
    names, found = {published_name(env): env for env in suite.scores}, defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if suite.metric != EVALUATION:
            here = (row["suite"], row["statistic"], row["step"]) == (name, READ[suite.metric], str(suite.statistic[1]))
            if here and row["task"] in names:
                own = found[row["algorithm"], float(row["replay_ratio"])][names[row["task"]]]
                own |= {"mean": float(row["value"]), "std": math.nan, "seeds": int(row["seeds"] or 0)}
                own |= {"reading": (float(row["high"]) - float(row["low"])) / 2}
        elif row["task"] in names and window_of(row) == window_name(suite):
            if row["statistic"] not in ("mean", "std", "middle95"):
                continue
            own = found[row["algorithm"], float(row["replay_ratio"])][names[row["task"]]]
            many = row["statistic"] == "middle95"
            own[row["statistic"]] = (float(row["low"]), float(row["high"])) if many else float(row["value"])
            own |= {"seeds": int(row["seeds"]), "every": int(row["step"].partition("/")[2] or 0)}
    return {c: {env: Summary(**s) for env, s in own.items()} for c, own in found.items()}


def read_points(results, other, env, last):
    """What was read off a published figure of this config and task, up to a step -> (steps, values, errors)."""
    suite, points = results.suite, []
    for row in results.published if suite.metric in READ else ():
        key = row["suite"], row["statistic"], row["task"], (row["algorithm"], float(row["replay_ratio"]))
        if key == (results.args.suite, READ[suite.metric], published_name(env), other) and int(row["step"]) <= last:
            points.append((int(row["step"]), float(row["value"]), (float(row["high"]) - float(row["low"])) / 2))
    return tuple(zip(*sorted(points), strict=True)) or ((), (), ())


def reference_summaries(reference, suite):
    """Published raw curves -> {config: {env: Summary}}, rounded as in benchmark/published/: the same tables."""
    found = {}
    for config, envs in reference.items():
        for env, seeds in envs.items():
            grid, done = complete(seeds, suite.statistic)
            if done:
                values = [np.mean([curve[step] for step in grid]) for curve in done.values()]
                own = summarize(values)
                every = grid[1] - grid[0] if len(grid) > 1 else 0
                middle = np.percentile(values, [2.5, 97.5]).round(4).tolist() if own.seeds >= MANY else ()
                own = Summary(round(own.mean, 4), round(own.std, 4), own.seeds, every=every, middle95=tuple(middle))
                found.setdefault(config, {})[env] = own
    return found


def published_iqms(rows, name, suite):
    """Published IQMs of this suite, normalized, so only where all tasks share one scale: over steps {config: (steps,
    values)}, and of its statistic {config: (value, low, high, seeds, whether it was reset)}."""
    lines, points = defaultdict(lambda: ([], [])), {}
    random, best = next(iter(suite.scores.values()))
    for row in rows if len({*suite.scores.values()}) == 1 else ():
        if (row["suite"], row["task"], row["statistic"]) == (name, "", "iqm"):
            config = (row["algorithm"], float(row["replay_ratio"]))
            triple = [(float(row[field] or "nan") - random) / (best - random) for field in ("value", "low", "high")]
            if window_of(row) == window_name(suite):
                points[config] = (*triple, int(row["seeds"]), row["resets"] == "1")
            elif row["step"].isdigit() and int(row["step"]) <= suite.statistic[1]:
                lines[config][0].append(int(row["step"]))
                lines[config][1].append(triple[0])
    return lines, points


def prepare(args):
    """Reads and computes everything -> Results; nothing is written."""
    require(args.suite in SUITES, f"no suite {args.suite}; there are {', '.join(SUITES)}")
    require(all("=" in pair for pair in args.labels), "--labels wants name=label")
    require(args.bootstrap_reps >= 100, f"--bootstrap-reps cannot be {args.bootstrap_reps}; give 100 or more")
    require(0 <= args.seed < 2**32, f"--seed cannot be {args.seed}")
    suite, folder = SUITES[args.suite], Path(args.results_dir, args.suite)
    curves = read_curves(folder / "curves.csv", args.suite)
    runs = {config: made for config, made in read_runs(folder / "run.json").items() if config in curves}
    look = Look({config[0] for config in curves}, dict(pair.split("=", 1) for pair in args.labels))
    whole, part, scores, remarks = sort_runs(curves, suite, look.config)
    usable = any(own for group in (whole, part) for own in group.values())
    require(usable, f"no usable run in {folder / 'curves.csv'}: {' '.join(remarks)}")
    remarks += differing(runs, look.config, suite)

    end = suite.statistic[1]
    schedules = {config: schedule_of(made, config[1], end) for config, made in runs.items()}
    schedules = {config: steps for config, steps in schedules.items() if steps is not None}
    asked = {config for config, made in runs.items() if any(run["args"].get("reset_interval") for run in made)}
    for config in curves:
        if config not in schedules:
            remarks.append(
                f"{look.config(config)}: run.json does not tell its resets; not compared with published runs."
            )
    published = read_published()
    last = max(step for envs in curves.values() for own in envs.values() for curve in own.values() for step in curve)
    reference = read_reference(args.reference, args.reference_algos, suite.scores, last) if args.reference else {}
    theirs = (
        reference_summaries(reference, suite) if args.reference else published_summaries(published, suite, args.suite)
    )
    theirs = {config: {env: own[env] for env in own if env not in OTHER_PHYSICS} for config, own in theirs.items()}
    for env in OTHER_PHYSICS:
        if any(env in envs for envs in curves.values()):
            why = "MuJoCo's contacts of the finger are others since 3.5.0"
            remarks.append(f"{env}: not compared with published curves, made with older versions: {why}.")
    allowed = {}
    for config in curves:
        script = config[0] if config[0] in suite.variants else script_of(runs.get(config, ()), config[0])
        order = (*args.reference_algos, *sorted({algo for algo, _ in theirs} - {*args.reference_algos}))
        found = comparable(config, script, schedules.get(config), {*theirs, *reference}, end, order)
        allowed[config] = found

    tasks = rectangle({config: own for config, own in scores.items() if own})
    tasks = [env for env in suite.scores if env in tasks]
    matrices = {}
    for config, own in scores.items():
        random, best = (np.array([suite.scores[env][k] for env in tasks]) for k in (0, 1))
        matrix = score_matrix(own, tasks)
        if matrix is None and tasks:
            remarks.append(
                f"{look.config(config)}: not in the aggregates, which need a finished run of all their tasks."
            )
        if matrix is None:
            continue
        matrices[config] = (matrix - random) / (best - random)
        there = sum(len(own[env]) for env in tasks)
        if matrix.size < there:
            what = (
                f"the aggregates use {matrix.size} of its {there} finished runs, the first {len(matrix)} of each task"
            )
            remarks.append(f"{look.config(config)}: {what}, as many as the task with the fewest has.")
    comparisons = compare(whole, suite, theirs, allowed)
    compared = {(row.config, row.env) for row in comparisons}
    for config, envs in whole.items():
        others = [env for other in allowed[config][:1] for env in suite.scores if env in theirs.get(other, ())]
        left = [env for env in others if envs.get(env) and (config, env) not in compared]
        if left:
            what = "not evaluated at all the steps at which the published runs were; not compared"
            remarks.append(f"{look.config(config)}, {', '.join(left)}: {what}.")
    return Results(
        args=args,
        suite=suite,
        look=look,
        runs=runs,
        whole=whole,
        part=part,
        scores=scores,
        tasks=tasks,
        matrices=matrices,
        schedules=schedules,
        idle={config for config in asked if schedules.get(config) == ()},
        reference=reference,
        allowed=allowed,
        comparisons=comparisons,
        published=published,
        remarks=remarks,
    )


# Figures


class Look:
    """What each algorithm looks like, and what it is called."""

    def __init__(self, algos, labels):
        self.labels = LABELS | labels
        known = [*LABELS, *sorted({*algos} - {*LABELS})]  # an algorithm looks the same in every suite,
        self.styles, taken = {}, set()
        for place, algo in enumerate(known):
            k = place % 7
            if algo in algos:  # but for one whose color another one has in this suite
                k = next((j % 7 for j in range(k, k + 7) if j % 7 not in taken), k)
                taken.add(k)
            self.styles[algo] = {"color": COLORS[k], "linestyle": LINES[place % 4], "marker": MARKERS[k]}

    def name(self, algo):
        return self.labels.get(algo, algo)

    def config(self, config):
        return f"{self.name(config[0])}, ratio {config[1]:g}"

    def line(self, algo):
        return {key: value for key, value in self.styles[algo].items() if key != "marker"}


class Canvas:
    """A figure of panels under one legend, in which entries of one name are one, with the seeds of all of them."""

    def __init__(self, number):
        columns = number if number <= 4 else math.ceil(number / math.ceil(number / 5))
        rows = math.ceil(number / columns)
        size = (max(2.9 * columns, 4.6), 2.3 * rows + 0.7)
        self.figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        self.axes, self.entries = list(axes.flat[:number]), {}
        for axis in axes.flat[number:]:
            axis.remove()

    def legend(self, name, seeds=None, **style):
        self.entries.setdefault(name, (style, set()))[1].update({seeds} - {None})

    def finish(self, axis, title):
        axis.set_title(title, fontsize=10)
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)

    def save(self, path, below, beside=""):
        names = {name: f"{name} ({count(seeds)})" if seeds else name for name, (_, seeds) in self.entries.items()}
        handles = [Line2D([], [], label=names[name], **style) for name, (style, _) in self.entries.items()]
        width = self.figure.get_size_inches()[0]
        columns = max(1, min(len(handles), int(width / (0.07 * max(map(len, names.values())) + 0.6))))
        place = {"loc": "outside upper center", "ncols": columns, "frameon": False}
        self.figure.legend(handles=handles, handlelength=2.8, fontsize=9, **place)
        self.figure.supxlabel(below, fontsize=9)
        self.figure.supylabel(beside, fontsize=9)
        image = io.BytesIO()
        self.figure.savefig(image, dpi=150)
        plt.close(self.figure)
        flat = Image.open(image).convert("RGB").quantize(256, dither=Image.Dither.NONE)  # a third of the bytes
        flat.save(path, optimize=True)


def count(seeds):
    """{3, 5} -> "3 to 5 seeds"."""
    low, high = min(seeds), max(seeds)
    if low == high:
        return f"{low} seeds" if low > 1 else "1 seed, no interval"
    return f"{low} to {high} seeds"


def short(env):
    return env.rsplit("-v", 1)[0]


def thousands(step, _=None):
    """Ticks of an axis of steps: 0, 50k, 1.5M."""
    return f"{step / 1e6:g}M" if abs(step) >= 1e6 else f"{step / 1e3:g}k" if step else "0"


def draw_band(axis, x, value, low, high, alpha=0.18, **style):
    axis.plot(x, value, **{"linewidth": 1.6} | style)
    if np.isfinite(low).all():
        axis.fill_between(x, low, high, color=style["color"], alpha=alpha, linewidth=0)


def mean_band(results, seeds):
    """{seed: curve} -> the steps that all have, mean over seeds, low, high, each (steps,)."""
    steps = sorted(set.intersection(*(set(curve) for curve in seeds.values())))
    values = np.array([[[curve[step] for step in steps]] for curve in seeds.values()])
    return steps, *results.estimate(values, lambda x: x.mean(axis=(0, 1)))


def drawn_ratios(results):
    """The ratios of which there is a curve to draw."""
    return sorted({c[1] for group in (results.whole, results.part) for c, own in group.items() if own})


def draw_curves(results, ratio, path):
    """Learning curves at one ratio, a panel per task: ours, and the published that they may be compared with."""
    configs = [config for config in results.whole if config[1] == ratio]
    groups = (results.whole, results.part)
    tasks = [env for env in results.suite.scores if any(env in group[c] for c in configs for group in groups)]
    canvas = Canvas(len(tasks))
    for axis, env in zip(canvas.axes, tasks, strict=True):
        references = {}  # the one that each config is compared with
        for config in configs:
            others = [other for other in results.allowed[config] if env in results.reference.get(other, ())]
            references |= {
                other: complete(results.reference[other][env], results.suite.statistic)[1] for other in others[:1]
            }
        for shade, (other, seeds) in zip(("#777777", "#aaaaaa"), sorted(references.items()), strict=False):
            if any(len(curve) > 1 for curve in seeds.values()):
                style = {"color": shade, "linestyle": (0, (1, 1)), "linewidth": 1.6}
                draw_band(axis, *mean_band(results, seeds), alpha=0.3, zorder=1, **style)
                canvas.legend(f"published {results.look.name(other[0])}", len(seeds), **style)
        for config in configs:
            own, style = results.whole[config].get(env, {}), results.look.line(config[0])
            singles = [*results.part[config].get(env, {}).values()] + ([*own.values()] if 1 < len(own) <= FEW else [])
            for curve in singles:
                axis.plot(*zip(*sorted(curve.items()), strict=True), color=style["color"], alpha=0.45, linewidth=0.7)
            if own:
                steps, mean, *band = mean_band(results, own)
                low, high = band if len(own) > FEW else np.full((2, len(steps)), np.nan)
                draw_band(axis, steps, mean, low, high, **style)
                canvas.legend(results.look.name(config[0]), len(own), **style)
            elif singles:
                canvas.legend(f"{results.look.name(config[0])}, unfinished", **style | {"linewidth": 0.7})
        shown = [c for group in groups for config in configs for c in group[config].get(env, {}).values()]
        last = max(max(curve) for curve in shown)
        read = draw_read(results, canvas, axis, configs, env, last) + draw_final(results, canvas, axis, ratio, env)
        drawn = [x for group in groups for own in group.values() for c in own.get(env, {}).values() for x in c.values()]
        top = max(
            drawn + read + [x for seeds in references.values() for curve in seeds.values() for x in curve.values()]
        )
        for config in configs:
            for step in results.schedules.get(config, ()) if len(results.schedules.get(config, ())) <= MARKED else ():
                axis.axvline(step, color=results.look.line(config[0])["color"], linewidth=0.8, linestyle=(0, (1, 2)))
        low, top = min(0, *drawn, *read), 1.05 * max(top, 1)  # the same for all ratios but for the published
        axis.set_ylim(low - 0.02 * (top - low), top)  # a curve at zero is seen
        axis.set_xlim(left=0)
        axis.xaxis.set_major_formatter(thousands)
        canvas.finish(axis, short(env))
    canvas.save(path, "environment steps", AXIS[results.suite.metric])


def draw_read(results, canvas, axis, configs, env, last):
    """What was read off published figures up to a step, with the error of the reading -> its upper ends."""
    tops = []
    for config in configs:
        for other in results.allowed[config][:1]:
            steps, values, errors = read_points(results, other, env, last)
            style = {"color": results.look.line(config[0])["color"], "marker": "o", "markersize": 4}
            style |= {"markerfacecolor": "white", "linestyle": "none"}
            if steps:
                axis.errorbar(steps, values, errors, elinewidth=1.2, zorder=3, **style)
                canvas.legend(f"published {results.look.name(other[0])}, read off a figure", **style)
                tops += [value + error for value, error in zip(values, errors, strict=True)]
    return tops


def final_only(suite):
    """Whether the suite's statistic is the evaluation at one step."""
    return suite.metric == EVALUATION and suite.statistic[0] == suite.statistic[1]


def draw_final(results, canvas, axis, ratio, env):
    """What is compared at one step alone: beside it, the published mean with the range of 95 % of the runs, or with
    their deviation -> the lower and upper ends."""
    rows = [row for row in results.comparisons if (row.config[1], row.env) == (ratio, env)]
    ends, last = [], results.suite.statistic[1]
    for k, row in enumerate(rows if final_only(results.suite) else ()):
        mean, deviation = row.theirs.mean, row.theirs.std
        low, high = row.theirs.middle95 or (mean - deviation, mean + deviation)
        style = {"color": results.look.line(row.config[0])["color"], "marker": "o", "markersize": 4}
        style |= {"markerfacecolor": "white", "linestyle": "none"}
        bar = {"elinewidth": 1.2, "zorder": 3, "clip_on": False}
        axis.errorbar([last * (1.03 + 0.03 * k)], [mean], [[mean - low], [high - mean]], **bar, **style)
        bars = "and 95 % of runs" if row.theirs.middle95 else "± deviation"
        canvas.legend(f"published {results.look.name(row.reference)}, mean {bars}", row.theirs.seeds, **style)
        ends += [low, high]
    return ends


def draw_iqm(results, path):
    """IQM of normalized score over steps: a panel per algorithm, a line per ratio."""
    algos = sorted({config[0] for config in results.matrices})
    ratios = sorted({config[1] for config in results.matrices})
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.78, len(ratios)))
    published, _ = published_iqms(results.published, results.args.suite, results.suite)
    canvas, low, high = Canvas(len(algos)), 0, 0
    for axis, algo in zip(canvas.axes, algos, strict=True):
        for k, ratio in enumerate(ratios):
            style = {"color": colors[k], "marker": MARKERS[k % 7], "markersize": 4}
            if (algo, ratio) in published:
                axis.plot(*published[algo, ratio], linestyle=":", linewidth=1, **style | {"mfc": "none"})
                canvas.legend("published", color=GREY, linestyle=":", linewidth=1)
            if (algo, ratio) in results.matrices:
                own = {env: results.whole[algo, ratio][env] for env in results.tasks}
                steps = sorted(set.intersection(*(set(curve) for seeds in own.values() for curve in seeds.values())))
                curves = {}
                for env, seeds in own.items():
                    random, best = results.suite.scores[env]
                    curves[env] = {
                        s: [(c[step] - random) / (best - random) for step in steps] for s, c in seeds.items()
                    }
                matrix = score_matrix(curves, results.tasks)
                style |= {"markevery": max(1, len(steps) // 8)}
                draw_band(axis, steps, *results.estimate(matrix, iqm), **style)
                canvas.legend(f"ratio {ratio:g}", len(matrix), **style)
        low, high = min(low, axis.get_ylim()[0] if axis.dataLim.ymin < 0 else 0), max(high, axis.get_ylim()[1])
        axis.set_xlim(left=0)
        axis.xaxis.set_major_formatter(thousands)
        canvas.finish(axis, results.look.name(algo))
    for axis in canvas.axes:
        axis.set_ylim(low, high)
    canvas.save(path, "environment steps", f"IQM of normalized score\n({over_tasks(results)})")


def over_tasks(results):
    return f"{len(results.tasks)} task{'s' * (len(results.tasks) > 1)}"


def draw_point(axis, x, value, low, high, hollow, **style):
    """A marker with its interval, if it has one."""
    if math.isfinite(low):
        axis.errorbar(x, value, [[value - low], [high - value]], color=style["color"], capsize=2.5, linewidth=1.2)
    axis.plot(x, value, zorder=3, **style | {"mfc": "white" if hollow else style["color"]})


def draw_ratio(results, aggregates, path):
    """Score against replay ratio, a line per algorithm: over all tasks, and task by task if those are few."""
    views = {f"IQM, {over_tasks(results)}": {c: (*(x[0] for x in own), n) for c, (*own, n) in aggregates.items()}}
    for env in [*results.suite.scores] if 2 <= len(results.suite.scores) <= 3 else ():
        found = {}
        for config in [config for config, own in results.scores.items() if env in own]:
            scores = np.array([*results.scores[config][env].values()])[:, None]
            found[config] = (*(x[0] for x in results.estimate(scores, np.mean)), len(scores))
        views[short(env)] = found
    views = {title: view for title, view in views.items() if view}
    algos = sorted({config[0] for view in views.values() for config in view})
    ratios = {config[1] for view in views.values() for config in view}
    _, published = published_iqms(results.published, results.args.suite, results.suite)
    canvas, hollow = Canvas(len(views)), False
    for axis, (title, view) in zip(canvas.axes, views.items(), strict=True):
        ticks, lowest = set(ratios), 0
        if title.startswith("IQM"):
            for algo in sorted({config[0] for config in published}):
                points = sorted((config[1], *point) for config, point in published.items() if config[0] == algo)
                style = {"color": GREY, "linestyle": ":", "linewidth": 1.2, "marker": "D", "markersize": 4.5}
                axis.plot(
                    [point[0] * 0.93 for point in points], [point[1] for point in points], **style | {"marker": ""}
                )
                for ratio, value, low, high, seeds, is_reset in points:
                    idle = not is_reset and bool(SAME_BUT_RESETS.get(algo))
                    draw_point(axis, ratio * 0.93, value, low, high, idle, **style | {"linestyle": ""})
                    canvas.legend(f"published {results.look.name(algo)}", seeds, **style)
                    hollow |= idle
                ticks |= {point[0] for point in points}
        for k, algo in enumerate(algos):
            points = sorted((config[1], *point) for config, point in view.items() if config[0] == algo)
            aside = 1.035 ** (2 * k - len(algos) + 1)  # algorithms lie side by side, not on one another
            axis.plot([point[0] * aside for point in points], [point[1] for point in points], **results.look.line(algo))
            style = results.look.styles[algo] | {"markersize": 6}
            for ratio, value, low, high, seeds in points:
                idle = (algo, ratio) in results.idle
                draw_point(axis, ratio * aside, value, low, high, idle, **style | {"linestyle": ""})
                canvas.legend(results.look.name(algo), seeds, **style)
                hollow |= idle
                lowest = min(lowest, np.nanmin([value, low]))
        axis.set_xscale("log")
        axis.set_xticks(sorted(ticks), [f"{ratio:g}" for ratio in sorted(ticks)])
        axis.minorticks_off()
        axis.set_xlim(min(ticks) / 1.4, max(ticks) * 1.4)
        axis.set_ylim(1.05 * lowest, 1.04 * axis.get_ylim()[1])
        axis.set_ylabel("normalized score" if title.startswith("IQM") else "return", fontsize=9)
        canvas.finish(axis, title)
    if hollow:
        canvas.legend("no reset within the budget", color="black", linestyle="", marker="o", mfc="white", markersize=6)
    canvas.save(path, "replay ratio (gradient updates per environment step)")


def draw_profiles(results, path):
    """Share of runs above each score: a panel per ratio, a line per algorithm."""
    ratios = sorted({config[1] for config in results.matrices})
    every = [matrix.ravel() for matrix in results.matrices.values()]
    thresholds = np.linspace(min(0, np.concatenate(every).min()), max(0.01, np.concatenate(every).max()), 201)
    canvas = Canvas(len(ratios))
    for axis, ratio in zip(canvas.axes, ratios, strict=True):
        for config, matrix in results.matrices.items():
            if config[1] == ratio:
                style = results.look.line(config[0])
                draw_band(axis, thresholds, *results.estimate(matrix, lambda x: profile(x, thresholds)), **style)
                canvas.legend(results.look.name(config[0]), len(matrix), **style)
        axis.set(xlim=(thresholds[0], thresholds[-1]), ylim=(0, 1.03))
        canvas.finish(axis, f"ratio {ratio:g}")
    canvas.save(path, "normalized score", f"share of runs above it\n({over_tasks(results)})")


# Tables and page


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


def markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write_csv(path, header, rows):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header.split())
    writer.writerows(rows)
    path.write_text(text.getvalue())


def write_tables(results, aggregates, folder):
    """scores.csv, aggregates.csv and comparison.csv."""
    rows = []
    for config, own in results.scores.items():
        for env, seed in sorted((env, seed) for env, seeds in own.items() for seed in seeds):
            score, (random, best) = own[env][seed], results.suite.scores[env]
            cells = [number(score, 3), number((score - random) / (best - random), 6)]
            rows.append([results.args.suite, config[0], f"{config[1]:g}", env, seed, *cells])
    write_csv(folder / "scores.csv", "suite algo replay_ratio env seed score normalized", rows)
    rows = []
    for config, (value, low, high, seeds) in aggregates.items():
        resets = len(results.schedules[config]) if config in results.schedules else ""
        head = [results.args.suite, config[0], f"{config[1]:g}", resets, len(results.tasks), seeds]
        for statistic, triple in zip(STATISTICS, zip(value, low, high, strict=True), strict=True):
            rows.append([*head, statistic, *(number(x, 6) for x in triple)])
    write_csv(folder / "aggregates.csv", "suite algo replay_ratio resets tasks seeds statistic value low high", rows)
    rows = []
    for row in results.comparisons:
        digits, unit = (4, "normalized") if row.env.startswith(ALL) else (2, "return")
        ours, theirs = ([x.seeds, number(x.mean, digits), number(x.std, digits)] for x in (row.ours, row.theirs))
        found = [number(x, digits) for x in (row.difference, row.low, row.high)]
        head = [results.args.suite, row.config[0], f"{row.config[1]:g}", row.env, unit]
        rows.append([*head, *ours, row.reference, *theirs, *found, row.verdict])
    header = "suite algo replay_ratio env unit seeds mean std published published_seeds published_mean published_std"
    if rows:
        write_csv(folder / "comparison.csv", header + " difference low high verdict", rows)
    else:  # an old one would belong to other curves
        (folder / "comparison.csv").unlink(missing_ok=True)


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
    yield markdown(["algorithm", "ratio", "resets", "seeds", *STATISTICS.values()], rows)
    yield "Per task, mean ± standard deviation of the score over seeds, in returns (seeds):"
    configs, rows = [config for config, own in results.scores.items() if own], []
    for env in results.suite.scores:
        own = [results.scores[config].get(env) for config in configs]
        if any(own):
            random, best = results.suite.scores[env]
            digits = 0 if best - random >= 100 else 1
            rows.append([env, *(spread(summarize([*x.values()]), digits) if x else "" for x in own)])
    yield markdown(["task", *map(look.config, configs)], rows)


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
    yield markdown(header, [comparison_cells(row, results.look) for row in rows])
    algos = {algo for row in rows for algo in row.reference.split()}
    own = [row for row in results.published if row["task"] and row["algorithm"] in algos]
    if results.suite.metric in READ:  # a paper's figure of other runs is not what was compared
        own = [row for row in own if row["suite"] == results.args.suite]
    known = sorted({(results.look.name(row["algorithm"]), row["paper"], row["source"]) for row in own})
    yield "Published: " + ("; ".join(map(", ".join, known)) or "the file given with --reference") + "."


def provenance_section(results):
    yield "## How the runs were made"
    rows, versions, scripts, seeds = [], set(), set(), set()
    for config, made in sorted(results.runs.items()):
        starts = [start for run in made for start in run["starts"]]
        minutes = [sum(start.get("wall_s", 0) for start in run["starts"]) / 60 for run in made]
        span = f"{np.median(minutes):.0f} ({min(minutes):.0f} to {max(minutes):.0f})"
        resets = sorted({run["args"].get("reset_interval", 0) for run in made})
        often = ", ".join(f"{updates:,}" if updates else "never" for updates in resets)
        places = set()
        for start in starts:
            device, threads = start.get("device", "unknown"), start.get("threads", "unknown")
            places.add(f"{start.get('cpu', device) if device == 'cpu' else device}, threads: {threads}")
            versions |= {f"{name} {start[name]}" for name in ("jax", "envpool", "gymnax") if name in start}
        where = "; ".join(sorted(places))
        commits = ", ".join(sorted({str(start.get("commit", "unknown"))[:7] for start in starts}))
        rows.append([results.look.name(config[0]), f"{config[1]:g}", len(made), often, span, where, commits])
        scripts.add(script_of(made, "") == config[0])
        seeds |= {run["args"]["seed"] for run in made}
    header = ["algorithm", "ratio", "runs", "updates between resets", "minutes per run", "hardware", "commit"]
    yield markdown(header, rows)
    made_with = f" Versions: {', '.join(sorted(versions))}." if versions else ""
    yield f"Minutes: median (least to most); seeds of one program share its time.{made_with}"
    if scripts == {True} and seeds == {*range(1, len(seeds) + 1)}:
        algos, commands = defaultdict(list), []
        for algo in sorted({config[0] for config in results.runs}):
            algos[" ".join(f"{ratio:g}" for other, ratio in sorted(results.runs) if other == algo)].append(algo)
        for ratios, own in algos.items():
            grid = f"--algos {' '.join(own)} --replay-ratios {ratios} --seeds {max(seeds)}"
            commands.append(f"    python -m benchmark.sweep --suite {results.args.suite} {grid}")
        yield "\n".join(["The whole grid:\n", *commands])


def page(results, aggregates):
    """The text of report.md."""
    args, suite = results.args, results.suite
    final = final_only(suite) and bool(results.comparisons)
    places = {"results-dir": args.results_dir, "docs-dir": args.docs_dir}
    moved = {name: place for name, place in places.items() if place != getattr(Args, name.replace("-", "_"))}
    option = "".join(f" --{name} {place}" for name, place in moved.items())
    option += f" --reference {Path(args.reference).name}" if args.reference else ""
    made = " (docs/results.md says what such a file holds, under Raw published curves)" if args.reference else ""
    text = [
        f"# Results: {args.suite}",
        f"{suite.about[0].upper() + suite.about[1:]}. A run's score is {suite.score}, "
        f"normalized so that {suite.scale} (`benchmark/suites.py`). "
        f"Intervals are 95 %, by stratified bootstrap over seeds with {args.bootstrap_reps:,} resamples (rliable "
        "1.2.0); with five seeds or fewer they come out too narrow.",
        f"Written by `python -m benchmark.report --suite {args.suite}{option}`{made}; raw curves and tables are in "
        f"`{Path(args.results_dir, args.suite)}/`.",
        *aggregate_section(results, aggregates),
        "## Learning curves",
        f"Mean over finished runs, with its interval where there are more than {FEW}; else the thin lines are the "
        "seeds. Unfinished runs are thin, too."
        + " Grey: published runs at this ratio." * bool(results.reference and not final)
        + " Hollow, beside the last step: published scores at that step." * final
        + f" Dotted upright lines: an algorithm's resets, where there are {MARKED} or fewer."
        * any(0 < len(x) <= MARKED for x in results.schedules.values()),
    ]
    for ratio in drawn_ratios(results):
        text += [f"Replay ratio {ratio:g}:", f"![Learning curves at ratio {ratio:g}](curves_rr{ratio:g}.png)"]
    text += comparison_section(results)
    if aggregates:
        text += ["## Interquartile mean over steps", "![IQM of normalized score over steps](iqm.png)"]
        text += ["## Performance profiles", "![Performance profiles](profiles.png)"]
        text += ["The share of runs, all tasks and seeds together, whose score is above a value: higher is better."]
    text += ["## What is missing", "\n".join(f"- {line}" for line in results.remarks) or "Nothing: all runs are whole."]
    text += provenance_section(results) if results.runs else ()
    return "\n\n".join(text) + "\n"


def main(args: Args):
    results = prepare(args)
    aggregates = {c: (*results.estimate(matrix, aggregate), len(matrix)) for c, matrix in results.matrices.items()}
    tables, docs = Path(args.results_dir, args.suite), Path(args.docs_dir, args.suite)
    docs.mkdir(parents=True, exist_ok=True)
    write_tables(results, aggregates, tables)
    for ratio in drawn_ratios(results):
        draw_curves(results, ratio, docs / f"curves_rr{ratio:g}.png")
    if several_ratios(aggregates):
        draw_ratio(results, aggregates, docs / "ratio.png")
    else:  # an old one would belong to other curves
        (docs / "ratio.png").unlink(missing_ok=True)
    if aggregates:
        draw_iqm(results, docs / "iqm.png")
        draw_profiles(results, docs / "profiles.png")
    (docs / "report.md").write_text(page(results, aggregates))
    for row in results.comparisons:
        task, algo, ratio, ours, theirs, difference, verdict = comparison_cells(row, results.look)
        print(f"{task}, {algo}, ratio {ratio}: {ours}, published {theirs}, difference {difference}: {verdict}")
    for line in results.remarks:
        print(f"note: {line}")
    print(f"tables in {tables}/, figures and text in {docs}/report.md")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OSError as error:  # a folder that cannot be made, a full disk, a closed pipe
        require(False, f"cannot use {error.filename or 'an output'}: {error.strerror or error}")
