"""Figures: learning curves, aggregates over steps, score against replay ratio, performance profiles."""

import io
import math

import matplotlib
import numpy as np

from benchmark.report.labels import GREY, MARKERS
from benchmark.report.published import SAME_BUT_RESETS, published_iqms, read_points
from benchmark.report.runs import complete
from benchmark.report.statistics import iqm, profile, score_matrix
from benchmark.suites.suite import EVALUATION

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from PIL import Image

AXIS = {
    EVALUATION: "evaluation return",
    "charts/average_return": "training return, moving average",
    "charts/mean_return": "training return, mean so far",
}
MARKED = 8  # up to so many resets are marked in the curves
FEW = 3  # up to so many seeds each is drawn as a thin line, beside their mean
SHADES = ("#777777", "#aaaaaa")  # of published curves


# Panels and words


def count(seeds):
    """{3, 5} -> "3 to 5 seeds"."""
    low, high = min(seeds), max(seeds)
    if low == high:
        return f"{low} seeds" if low > 1 else "1 seed, no interval"
    return f"{low} to {high} seeds"


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


def short(env):
    return env.rsplit("-v", 1)[0]


def over_tasks(results):
    return f"{len(results.tasks)} task{'s' * (len(results.tasks) > 1)}"


def thousands(step, _=None):
    """Ticks of an axis of steps: 0, 50k, 1.5M."""
    return f"{step / 1e6:g}M" if abs(step) >= 1e6 else f"{step / 1e3:g}k" if step else "0"


def axis_of_steps(axis):
    axis.set_xlim(left=0)
    axis.xaxis.set_major_formatter(thousands)


def draw_band(axis, x, value, low, high, alpha=0.18, **style):
    axis.plot(x, value, **{"linewidth": 1.6} | style)
    if np.isfinite(low).all():
        axis.fill_between(x, low, high, color=style["color"], alpha=alpha, linewidth=0)


def draw_point(axis, x, value, low, high, hollow, **style):
    """A marker with its interval, if it has one."""
    if math.isfinite(low):
        axis.errorbar(x, value, [[value - low], [high - value]], color=style["color"], capsize=2.5, linewidth=1.2)
    axis.plot(x, value, zorder=3, **style | {"mfc": "white" if hollow else style["color"]})


def shared_steps(curves):
    return sorted(set.intersection(*map(set, curves)))


def mean_band(results, seeds):
    """{seed: curve} -> the steps that all have, mean over seeds, low, high, each (steps,)."""
    steps = shared_steps(seeds.values())
    values = np.array([[[curve[step] for step in steps]] for curve in seeds.values()])
    return steps, *results.estimate(values, lambda x: x.mean(axis=(0, 1)))


# Learning curves


def drawn_ratios(results):
    """The ratios of which there is a curve to draw."""
    return sorted({c[1] for group in (results.whole, results.part) for c, own in group.items() if own})


def final_only(suite):
    """Whether the suite's statistic is the evaluation at one step."""
    return suite.metric == EVALUATION and suite.statistic[0] == suite.statistic[1]


def curves_on(results, configs, env):
    """All curves of these configs on a task, whole or not."""
    return [
        curve
        for group in (results.whole, results.part)
        for config in configs
        for curve in group[config].get(env, {}).values()
    ]


def references_of(results, configs, env):
    """{published config: {seed: curve}}, of the one that each of ours is compared with on a task."""
    found = {}
    for config in configs:
        others = [other for other in results.allowed[config] if env in results.reference.get(other, ())]
        for other in others[:1]:
            found[other] = complete(results.reference[other][env], results.suite.statistic)[1]
    return found


def draw_references(results, canvas, axis, references):
    for shade, (other, seeds) in zip(SHADES, sorted(references.items()), strict=False):
        if any(len(curve) > 1 for curve in seeds.values()):
            style = {"color": shade, "linestyle": (0, (1, 1)), "linewidth": 1.6}
            draw_band(axis, *mean_band(results, seeds), alpha=0.3, zorder=1, **style)
            canvas.legend(f"published {results.look.name(other[0])}", len(seeds), **style)


def draw_runs(results, canvas, axis, config, env):
    """A config's mean over whole runs, with its interval or the runs themselves; unfinished runs as thin lines."""
    whole, part = (group[config].get(env, {}) for group in (results.whole, results.part))
    style, name = results.look.line(config[0]), results.look.name(config[0])
    singles = [*part.values()]
    if 1 < len(whole) <= FEW:
        singles += whole.values()
    for curve in singles:
        axis.plot(*zip(*sorted(curve.items()), strict=True), color=style["color"], alpha=0.45, linewidth=0.7)
    if whole:
        steps, mean, *band = mean_band(results, whole)
        low, high = band if len(whole) > FEW else np.full((2, len(steps)), np.nan)
        draw_band(axis, steps, mean, low, high, **style)
        canvas.legend(name, len(whole), **style)
    elif singles:
        canvas.legend(f"{name}, unfinished", **style | {"linewidth": 0.7})


def hollow_circle(results, config):
    color = results.look.color(config[0])
    return {"color": color, "marker": "o", "markersize": 4, "markerfacecolor": "white", "linestyle": "none"}


def draw_read(results, canvas, axis, configs, env, last):
    """What was read off published figures up to a step, with the error of the reading -> its upper ends."""
    tops = []
    for config in configs:
        for other in results.allowed[config][:1]:
            steps, values, errors = read_points(results.published, results.suite, results.name, other, env, last)
            style = hollow_circle(results, config)
            if steps:
                axis.errorbar(steps, values, errors, elinewidth=1.2, zorder=3, **style)
                canvas.legend(f"published {results.look.name(other[0])}, read off a figure", **style)
                tops += [value + error for value, error in zip(values, errors, strict=True)]
    return tops


def draw_final(results, canvas, axis, ratio, env):
    """What is compared at one step alone: beside it, the published mean with the range of 95 % of the runs, or with
    their deviation -> the lower and upper ends."""
    rows = [row for row in results.comparisons if (row.config[1], row.env) == (ratio, env)]
    ends, last = [], results.suite.statistic[1]
    for k, row in enumerate(rows if final_only(results.suite) else ()):
        mean, deviation = row.theirs.mean, row.theirs.std
        low, high = row.theirs.middle95 or (mean - deviation, mean + deviation)
        style = hollow_circle(results, row.config)
        bar = {"elinewidth": 1.2, "zorder": 3, "clip_on": False}
        axis.errorbar([last * (1.03 + 0.03 * k)], [mean], [[mean - low], [high - mean]], **bar, **style)
        bars = "and 95 % of runs" if row.theirs.middle95 else "± deviation"
        canvas.legend(f"published {results.look.name(row.reference)}, mean {bars}", row.theirs.seeds, **style)
        ends += [low, high]
    return ends


def draw_resets(results, axis, configs):
    for config in configs:
        steps = results.schedules.get(config, ())
        for step in steps if len(steps) <= MARKED else ():
            axis.axvline(step, color=results.look.color(config[0]), linewidth=0.8, linestyle=(0, (1, 2)))


def draw_task(results, canvas, axis, ratio, configs, env):
    """The panel of one task: our curves, and the published that they may be compared with."""
    references = references_of(results, configs, env)
    draw_references(results, canvas, axis, references)
    for config in configs:
        draw_runs(results, canvas, axis, config, env)
    last = max(max(curve) for curve in curves_on(results, configs, env))
    read = draw_read(results, canvas, axis, configs, env, last)
    read += draw_final(results, canvas, axis, ratio, env)
    draw_resets(results, axis, configs)
    # The same limits for all ratios, but for what is published at each.
    drawn = [value for curve in curves_on(results, results.whole, env) for value in curve.values()] + read
    published = [value for seeds in references.values() for curve in seeds.values() for value in curve.values()]
    low, top = min(0, *drawn), 1.05 * max(1, *drawn, *published)
    axis.set_ylim(low - 0.02 * (top - low), top)  # a curve at zero is seen
    axis_of_steps(axis)
    canvas.finish(axis, short(env))


def draw_curves(results, ratio, path):
    """Learning curves at one ratio, a panel per task."""
    configs = [config for config in results.whole if config[1] == ratio]
    tasks = [env for env in results.suite.scores if curves_on(results, configs, env)]
    canvas = Canvas(len(tasks))
    for axis, env in zip(canvas.axes, tasks, strict=True):
        draw_task(results, canvas, axis, ratio, configs, env)
    canvas.save(path, "environment steps", AXIS[results.suite.metric])


# Aggregates over steps


def iqm_band(results, config):
    """The steps that all runs of a config have, IQM of normalized score, low, high, and the number of runs a task."""
    own = {env: results.whole[config][env] for env in results.tasks}
    steps = shared_steps([curve for seeds in own.values() for curve in seeds.values()])
    curves = {}
    for env, seeds in own.items():
        random, best = results.suite.scores[env]
        curves[env] = {
            seed: [(curve[step] - random) / (best - random) for step in steps] for seed, curve in seeds.items()
        }
    matrix = score_matrix(curves, results.tasks)
    return steps, *results.estimate(matrix, iqm), len(matrix)


def draw_iqm(results, path):
    """IQM of normalized score over steps: a panel per algorithm, a line per ratio."""
    algos = sorted({config[0] for config in results.matrices})
    ratios = sorted({config[1] for config in results.matrices})
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.78, len(ratios)))
    published, _ = published_iqms(results.published, results.name, results.suite)
    canvas, low, high = Canvas(len(algos)), 0, 0
    for axis, algo in zip(canvas.axes, algos, strict=True):
        for k, ratio in enumerate(ratios):
            style = {"color": colors[k], "marker": MARKERS[k % 7], "markersize": 4}
            if (algo, ratio) in published:
                axis.plot(*published[algo, ratio], linestyle=":", linewidth=1, **style | {"mfc": "none"})
                canvas.legend("published", color=GREY, linestyle=":", linewidth=1)
            if (algo, ratio) in results.matrices:
                *band, seeds = iqm_band(results, (algo, ratio))
                style |= {"markevery": max(1, len(band[0]) // 8)}
                draw_band(axis, *band, **style)
                canvas.legend(f"ratio {ratio:g}", seeds, **style)
        low = min(low, axis.get_ylim()[0] if axis.dataLim.ymin < 0 else 0)
        high = max(high, axis.get_ylim()[1])
        axis_of_steps(axis)
        canvas.finish(axis, results.look.name(algo))
    for axis in canvas.axes:
        axis.set_ylim(low, high)
    canvas.save(path, "environment steps", f"IQM of normalized score\n({over_tasks(results)})")


# Score against replay ratio


def views_of(results, aggregates):
    """The panels: over all tasks, and task by task if those are few -> {title: {config: (value, low, high, seeds)}}."""
    together = {config: (*(x[0] for x in own), runs) for config, (*own, runs) in aggregates.items()}
    views = {f"IQM, {over_tasks(results)}": together}
    for env in [*results.suite.scores] if 2 <= len(results.suite.scores) <= 3 else ():
        found = {}
        for config in [config for config, own in results.scores.items() if env in own]:
            scores = np.array([*results.scores[config][env].values()])[:, None]
            found[config] = (*(x[0] for x in results.estimate(scores, np.mean)), len(scores))
        views[short(env)] = found
    return {title: view for title, view in views.items() if view}


def points_of(view, algo):
    """[(ratio, value, low, high, seeds, ...)] of one algorithm."""
    return sorted((config[1], *point) for config, point in view.items() if config[0] == algo)


def draw_published_ratios(results, canvas, axis):
    """Published IQMs -> their ratios, and whether any point is hollow."""
    _, published = published_iqms(results.published, results.name, results.suite)
    hollow = False
    for algo in sorted({config[0] for config in published}):
        points = points_of(published, algo)
        style = {"color": GREY, "linestyle": ":", "linewidth": 1.2, "marker": "D", "markersize": 4.5}
        axis.plot([point[0] * 0.93 for point in points], [point[1] for point in points], **style | {"marker": ""})
        for ratio, value, low, high, seeds, is_reset in points:
            idle = not is_reset and bool(SAME_BUT_RESETS.get(algo))
            draw_point(axis, ratio * 0.93, value, low, high, idle, **style | {"linestyle": ""})
            canvas.legend(f"published {results.look.name(algo)}", seeds, **style)
            hollow |= idle
    return {config[1] for config in published}, hollow


def draw_own_ratios(results, canvas, axis, view, algo, aside):
    """A line of one algorithm, `aside` times to the right -> the lowest end, and whether any point is hollow."""
    points, lowest, hollow = points_of(view, algo), 0, False
    axis.plot([point[0] * aside for point in points], [point[1] for point in points], **results.look.line(algo))
    style = results.look.styles[algo] | {"markersize": 6}
    for ratio, value, low, high, seeds in points:
        idle = (algo, ratio) in results.idle
        draw_point(axis, ratio * aside, value, low, high, idle, **style | {"linestyle": ""})
        canvas.legend(results.look.name(algo), seeds, **style)
        hollow |= idle
        lowest = min(lowest, np.nanmin([value, low]))
    return lowest, hollow


def axis_of_ratios(axis, ratios):
    axis.set_xscale("log")
    axis.set_xticks(sorted(ratios), [f"{ratio:g}" for ratio in sorted(ratios)])
    axis.minorticks_off()
    axis.set_xlim(min(ratios) / 1.4, max(ratios) * 1.4)


def draw_ratio(results, aggregates, path):
    """Score against replay ratio, a line per algorithm."""
    views = views_of(results, aggregates)
    algos = sorted({config[0] for view in views.values() for config in view})
    ratios = {config[1] for view in views.values() for config in view}
    canvas, any_hollow = Canvas(len(views)), False
    for axis, (title, view) in zip(canvas.axes, views.items(), strict=True):
        over_all, ticks, lowest = title.startswith("IQM"), ratios, 0
        if over_all:
            others, hollow = draw_published_ratios(results, canvas, axis)
            ticks, any_hollow = ticks | others, any_hollow or hollow
        for k, algo in enumerate(algos):
            aside = 1.035 ** (2 * k - len(algos) + 1)  # algorithms lie side by side, not on one another
            end, hollow = draw_own_ratios(results, canvas, axis, view, algo, aside)
            lowest, any_hollow = min(lowest, end), any_hollow or hollow
        axis_of_ratios(axis, ticks)
        axis.set_ylim(1.05 * lowest, 1.04 * axis.get_ylim()[1])
        axis.set_ylabel("normalized score" if over_all else "return", fontsize=9)
        canvas.finish(axis, title)
    if any_hollow:
        canvas.legend("no reset within the budget", color="black", linestyle="", marker="o", mfc="white", markersize=6)
    canvas.save(path, "replay ratio (gradient updates per environment step)")


# Performance profiles


def draw_profiles(results, path):
    """Share of runs above each score: a panel per ratio, a line per algorithm."""
    ratios = sorted({config[1] for config in results.matrices})
    every = np.concatenate([matrix.ravel() for matrix in results.matrices.values()])
    thresholds = np.linspace(min(0, every.min()), max(0.01, every.max()), 201)
    canvas = Canvas(len(ratios))
    for axis, ratio in zip(canvas.axes, ratios, strict=True):
        for config in [config for config in results.matrices if config[1] == ratio]:
            matrix, style = results.matrices[config], results.look.line(config[0])
            draw_band(axis, thresholds, *results.estimate(matrix, lambda x: profile(x, thresholds)), **style)
            canvas.legend(results.look.name(config[0]), len(matrix), **style)
        axis.set(xlim=(thresholds[0], thresholds[-1]), ylim=(0, 1.03))
        canvas.finish(axis, f"ratio {ratio:g}")
    canvas.save(path, "normalized score", f"share of runs above it\n({over_tasks(results)})")
