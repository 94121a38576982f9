"""Curves to a figure, beside the published ones: python -m benchmark.report benchmark/results/NAME --figure NAME.png

Draws every task of NAME/curves.csv: a thin line per seed, a thick one for their mean. With --reference FILE (columns
algo, replay_ratio, task, seed, step, return) the published seeds are drawn behind and compared. The statistic is fixed
beforehand: a seed's mean evaluation return over the steps --from-step to --to-step; the difference of the two means has
Welch's 95 % interval over seeds.
"""

import csv
import gzip
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import tyro
from scipy import stats

matplotlib.use("agg")
import matplotlib.pyplot as plt

COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"]  # Okabe and Ito's, distinct for the color-blind
GREY = "#777777"


@dataclass(frozen=True)
class Args:
    results: tyro.conf.Positional[str]
    """folder that benchmark.collect wrote"""
    figure: str
    """PNG to write"""
    reference: str | None = None
    """published curves (.csv or .csv.gz) to draw and compare with"""
    reference_algo: str = "sr_sac"
    """which rows of the reference, together with the replay ratio of our runs"""
    from_step: int = 10_000
    """the statistic is the mean over evaluations from this step"""
    to_step: int = 50_000
    """to this one"""
    labels: str = ""
    """how to call the algorithms in the legend: name=label,name=label"""


def read_results(folder):
    """curves.csv -> {env: {(algo, replay_ratio): {seed: {step: return}}}}"""
    curves = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    with open(Path(folder) / "curves.csv") as file:
        for row in csv.DictReader(file):
            if row["metric"] == "eval/episodic_return":
                key = (row["algo"], float(row["replay_ratio"]))
                curves[row["env"]][key][int(row["seed"])][int(row["step"])] = float(row["value"])
    return curves


def read_reference(path, algo, tasks, to_step):
    """Published rows -> {(task, replay_ratio): {seed: {step: return}}}"""
    curves = defaultdict(lambda: defaultdict(dict))
    with (gzip.open if str(path).endswith("gz") else open)(path, "rt") as file:
        for row in csv.DictReader(file):
            if row["algo"] == algo and row["task"] in tasks and int(row["step"]) <= to_step:
                key = (row["task"], float(row["replay_ratio"]))
                curves[key][row["seed"]][int(row["step"])] = float(row["return"])
    return curves


def dm_control_name(env_id):
    """EnvPool's id to dm_control's name: CheetahRun-v1 -> cheetah-run, FingerTurnHard-v1 -> finger-turn_hard."""
    domain, *task = re.findall("[A-Z][a-z0-9]*", env_id.rsplit("-", 1)[0])
    return f"{domain}-{'_'.join(task)}".lower()


def statistic(seeds, from_step, to_step):
    """{seed: {step: return}} -> each seed's mean return over the window, for seeds that have all its evaluations."""
    steps = sorted({step for curve in seeds.values() for step in curve if from_step <= step <= to_step})
    whole = [curve for curve in seeds.values() if all(step in curve for step in steps)]
    return np.array([np.mean([curve[step] for step in steps]) for curve in whole])


def welch(ours, theirs):
    """Difference of means, and its 95 % interval by Welch's t with the Welch-Satterthwaite degrees of freedom."""
    result = stats.ttest_ind(ours, theirs, equal_var=False)
    interval = result.confidence_interval(0.95)
    return ours.mean() - theirs.mean(), interval.low, interval.high


def draw(axis, seeds, color, label):
    for curve in seeds.values():
        axis.plot(*zip(*sorted(curve.items()), strict=True), color=color, alpha=0.3, linewidth=0.8)
    steps = sorted({step for curve in seeds.values() for step in curve})
    mean = [np.mean([curve[step] for curve in seeds.values() if step in curve]) for step in steps]
    axis.plot(steps, mean, color=color, linewidth=2, label=f"{label} ({len(seeds)} seeds)")


def main(args: Args):
    labels = dict(pair.split("=", 1) for pair in args.labels.split(",") if pair)
    curves = read_results(args.results)
    reference = {}
    if args.reference:
        last = max(
            step for algos in curves.values() for seeds in algos.values() for own in seeds.values() for step in own
        )
        reference = read_reference(args.reference, args.reference_algo, {dm_control_name(env) for env in curves}, last)
    figure, axes = plt.subplots(1, len(curves), figsize=(4.2 * len(curves), 3.6), squeeze=False, layout="constrained")
    rows = []
    for axis, (env, algos) in zip(axes[0], sorted(curves.items()), strict=True):
        task = dm_control_name(env)
        for color, ((algo, ratio), seeds) in zip(COLORS, sorted(algos.items()), strict=False):
            theirs = reference.get((task, ratio))
            if theirs:
                draw(axis, theirs, GREY, f"published {args.reference_algo}, ratio {ratio:g}")
                a, b = (statistic(x, args.from_step, args.to_step) for x in (seeds, theirs))
                if min(len(a), len(b)) > 1:
                    difference, low, high = welch(a, b)
                    verdict = "inside" if low <= 0 <= high else "OUTSIDE"
                    rows.append([env, algo, ratio, len(a), a.mean(), a.std(ddof=1), len(b), b.mean(), b.std(ddof=1)])
                    rows[-1] += [difference, low, high, verdict]
            draw(axis, seeds, color, f"{labels.get(algo, algo)}, ratio {ratio:g}")
        axis.set(title=env, xlabel="environment steps", ylim=(0, None))
        axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k")
        axis.legend(fontsize=8, loc="upper left")
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("evaluation return")
    Path(args.figure).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.figure, dpi=150)
    print(f"figure: {args.figure}")
    if rows:
        names = (
            "env algo replay_ratio seeds mean std published_seeds published_mean published_std difference low high zero"
        )
        with open(Path(args.results) / "comparison.csv", "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(names.split())
            writer.writerows([f"{x:.1f}" if isinstance(x, float | np.floating) else x for x in row] for row in rows)
        print(f"mean return over {args.from_step:,} to {args.to_step:,} steps, ours against published (95 %, Welch):")
        for env, algo, ratio, n, mean, std, m, other, other_std, difference, low, high, verdict in rows:
            print(
                f"  {env} {algo} ratio {ratio:g}: {mean:.0f} +- {std:.0f} (n={n}), published {other:.0f} +- "
                f"{other_std:.0f} (n={m}), difference {difference:+.0f} [{low:.0f}, {high:.0f}]: zero is {verdict}"
            )


if __name__ == "__main__":
    main(tyro.cli(Args))
