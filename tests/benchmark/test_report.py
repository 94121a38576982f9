"""The report's statistics against values worked out by hand, its rules for what is missing, and its files.

The published raw curves are not in the repository. With RATIO_REFERENCE naming a file of them (.csv or .csv.gz with
algo, replay_ratio, task, seed, step, return), the published IQMs and benchmark/published are checked against it too.
"""

import csv
import dataclasses
import gzip
import json
import math
import os
import re
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from common import load
from rliable import metrics
from scipy import stats

from benchmark.report import comparison, figures, labels, published, statistics
from benchmark.report.__main__ import Args
from benchmark.report.__main__ import main as write_report
from benchmark.report.runs import complete, reset_steps, window_grid
from benchmark.report.statistics import Summary
from benchmark.suites import SUITES
from benchmark.suites.dmc import DMC15, OTHER_PHYSICS
from benchmark.suites.suite import EVALUATION

RAW = os.environ.get("RATIO_REFERENCE")
needs_raw = pytest.mark.skipif(not RAW, reason="RATIO_REFERENCE names no file of published raw curves")
TASKS = [*SUITES["dmc_cpu"].scores]
NAN = math.nan
LONGER = {"flags": {"total-timesteps": 50_000}, "statistic": (10_000, 50_000)}  # for curves() whatever the suite says
LONGER |= {"algo_flags": {"sr_sac": {"reset-interval": 256_000}}}


@pytest.fixture
def longer(monkeypatch):
    monkeypatch.setitem(SUITES, "dmc_cpu", dataclasses.replace(SUITES["dmc_cpu"], **LONGER))


# Statistics


def test_iqm_by_hand():
    scores = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 100.0]])  # 8 runs: the middle 4 are 2, 3, 4 and 5
    assert statistics.iqm(scores) == 3.5
    assert statistics.iqm(np.array([[1.0], [2.0], [6.0]])) == 3.0  # a quarter of three runs is none
    over_steps = np.stack([scores, 10 * scores], axis=-1)
    np.testing.assert_array_equal(statistics.iqm(over_steps), [3.5, 35.0])


@pytest.mark.parametrize("shape", [(5, 3), (3, 1), (10, 15), (2, 2)])
def test_aggregates_are_rliables(shape):
    scores = np.random.default_rng(0).random(shape) * 1.5
    ours = statistics.aggregate(scores)
    theirs = (metrics.aggregate_iqm, metrics.aggregate_median, metrics.aggregate_mean, metrics.aggregate_optimality_gap)
    np.testing.assert_allclose(ours, [function(scores) for function in theirs])


def test_aggregates_by_hand():
    scores = np.array([[0.2, 0.5, 1.5], [0.4, 0.5, 1.1]])  # task means 0.3, 0.5, 1.3
    np.testing.assert_allclose(statistics.aggregate(scores), [0.625, 0.5, 0.7, 1 - 3.6 / 6])


def test_profile_by_hand():
    scores = np.array([[0.1, 0.3], [0.2, 0.4]])
    np.testing.assert_array_equal(statistics.profile(scores, np.array([0.0, 0.1, 0.25, 0.4])), [1, 0.75, 0.5, 0])


def test_bootstrap_is_seeded_and_leaves_no_trace():
    scores = np.random.default_rng(1).random((5, 3))
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    first, again, other = (statistics.bootstrap(scores, statistics.aggregate, 200, seed) for seed in (0, 0, 1))
    assert np.random.random() == expected, "the caller's generator was moved"  # noqa: NPY002
    np.testing.assert_array_equal(first, again)
    assert (np.array(first[1:]) != np.array(other[1:])).any()
    value, low, high = first
    assert ((low < value) & (value < high)).all()


def test_tasks_with_other_physics_are_not_compared(tmp_path, monkeypatch):
    """The finger's contacts are not those of the published curves: such a task is named and left out."""
    changed = OTHER_PHYSICS[0]
    tasks = (changed, *TASKS[:2])
    options = LONGER | {"scores": dict.fromkeys(tasks, (0.0, 1000.0))}
    monkeypatch.setitem(SUITES, "dmc_cpu", dataclasses.replace(SUITES["dmc_cpu"], **options))
    path = write_reference(
        tmp_path / "raw.csv.gz", "sac", 8, {published.dm_control_name(env): [300, 320] for env in tasks}
    )
    write_results(tmp_path, {("sac", 8.0, env, seed): curve(300) for env in tasks for seed in (1, 2)})
    tables, page, _ = make(tmp_path, reference=str(path), reference_algos=("sac",))
    assert {row["env"] for row in tables["comparison"]} == {*TASKS[:2], "all tasks compared (2)"}
    assert f"{changed}: not compared with published curves" in page


def test_bootstrap_by_hand():
    # Two runs of one task: a resample's mean is 1, 2 or 3 with probability 1/4, 1/2, 1/4; two tasks are drawn apart,
    # so that both lowest come with 1/16, which is more than 2.5 %, and all four of four tasks with less (1/256).
    for tasks, expected in ((1, [1, 3]), (2, [1, 3]), (4, [1.25, 2.75])):
        scores = np.tile([[1.0], [3.0]], tasks)
        value, low, high = statistics.bootstrap(scores, np.mean, 4000, 0)
        assert [value[0], low[0], high[0]] == [2, *expected]


def test_one_run_has_no_interval():
    value, low, high = statistics.bootstrap(np.array([[0.5, 0.7]]), statistics.aggregate, 200, 0)
    np.testing.assert_allclose(value, [0.6, 0.6, 0.6, 0.4])
    assert np.isnan([low, high]).all()
    assert math.isnan(statistics.summarize([3.0]).std)


def test_welch_is_scipys():
    generator = np.random.default_rng(2)
    ours, theirs = generator.normal(1, 1, 3), generator.normal(0, 4, 5)
    found = statistics.welch([statistics.summarize(ours)], [statistics.summarize(theirs)])
    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(found, [ours.mean() - theirs.mean(), expected.low, expected.high])


def test_welch_over_tasks():
    one, two = Summary(10, 2, 4), Summary(7, 3, 5)
    difference, low, high = statistics.welch([one, one], [two, two])
    # Each of the two tasks adds 2^2/4 + 3^2/5 = 2.8; the mean of the two differences has half of that as its variance.
    freedom = 2 * 2.8**2 / (2 * (1 / 3 + 1.8**2 / 4)) * 2
    half = stats.t.ppf(0.975, freedom) * math.sqrt(1.4)
    np.testing.assert_allclose([difference, low, high], [3, 3 - half, 3 + half])
    assert statistics.welch([Summary(2, 0, 3)], [Summary(1, 0, 3)]) == (1, 1, 1)
    assert np.isnan(statistics.welch([one, Summary(1, NAN, 1)], [two, two])[1:]).all()


def test_beside_many_is_scipys():
    generator = np.random.default_rng(3)
    theirs = generator.normal(0, 4, 50)
    for ours in generator.normal(1, 1, (3, 2)), generator.normal(1, 1, (1, 1)):
        for own in ours:
            found = statistics.beside_many(statistics.summarize(own), statistics.summarize(theirs))
            expected = stats.ttest_ind(own, theirs, equal_var=True).confidence_interval(0.95)
            np.testing.assert_allclose(found, [own.mean() - theirs.mean(), expected.low, expected.high])


def test_verdicts():
    assert statistics.judge(1, 9, 100) == "higher"
    assert statistics.judge(-9, -1, 100) == "lower"
    assert statistics.judge(-40, 50, 100) == "agrees"
    assert statistics.judge(-60, 50, 100) == "too few seeds to say"
    assert statistics.judge(30, 500, 100) == "higher"  # wide, and yet on one side
    assert statistics.judge(NAN, NAN, 100) == "too few seeds to say"


def test_window_grid():
    steps = range(5_000, 50_001, 5_000)
    assert window_grid(steps, (10_000, 50_000)) == [*range(10_000, 50_001, 5_000)]
    assert window_grid([10, 20, 30], (12, 38)) == [20, 30]
    assert window_grid([10, 20, 30], (12, 40)) == []  # ends early
    assert window_grid([30, 40, 50], (10, 50)) == []  # begins late
    assert window_grid([10, 20, 40, 50], (10, 50)) == []  # a hole
    assert window_grid([], (10, 50)) == []


def test_rectangle():
    assert statistics.rectangle({}) == []
    assert statistics.rectangle({1: "ab", 2: "ab", 3: "abc"}) == ["a", "b"]
    assert statistics.rectangle({1: "abc", 2: "abc", 3: "a"}) == ["a", "b", "c"]  # 3 x 2 rather than 1 x 3
    assert statistics.rectangle({1: "ab", 2: "bc"}) == ["b", "c"]  # one of equal size, always the same


def test_unequal_seeds_give_a_rectangle():
    scores = {"a": {1: 1.0, 3: 3.0, 4: 4.0}, "b": {5: 50.0, 2: 20.0}}
    np.testing.assert_array_equal(statistics.score_matrix(scores, ["a", "b"]), [[1, 20], [3, 50]])
    assert statistics.score_matrix(scores, ["a", "c"]) is None
    assert statistics.score_matrix(scores, []) is None


@pytest.mark.parametrize("ratio, every", [(8, 320_000), (16, 160_000), (32, 80_000), (128, 20_000)])
def test_reset_steps_are_the_papers(ratio, every):
    assert reset_steps(2_560_000, ratio, 500_000) == tuple(range(every, 500_000, every))
    assert reset_steps(2_560_000, ratio, every) == ()  # one at the end is no reset within
    assert reset_steps(0, ratio, 500_000) == ()


@pytest.mark.parametrize("interval, ratio", [(7, 0.25), (10, 3), (5, 1.5), (3, 8), (100, 0.3)])
def test_reset_steps_are_the_scripts(sr_sac, interval, ratio):
    args = sr_sac.Args(reset_interval=interval, replay_ratio=ratio)
    until = [sr_sac.num_resets_until(args, step) for step in range(400)]
    rises = [step for step in range(1, 400) if until[step] > until[step - 1]]
    assert reset_steps(interval, ratio, 400) == tuple(rises)
    assert rises


@pytest.mark.parametrize("script", ["sr_spr", "bbf"])
@pytest.mark.parametrize("ratio", [0.5, 1, 2, 3, 6, 7, 8, 16])
def test_reset_steps_with_an_end_are_the_scripts(script, ratio):
    """SR-SPR and BBF leave out a reset whose next one would come after --resets-end."""
    script = load(script)
    for end in (0, 399, 400, 1000):
        args = script.Args(reset_interval=160, resets_end=end, replay_ratio=ratio)
        until = [int(script.num_useful_resets_until(args, step)) for step in range(500)]
        rises = [step for step in range(1, 500) if until[step] > until[step - 1]]
        assert reset_steps(160, ratio, 500, end) == tuple(rises)
        assert bool(rises) == (end * ratio >= 320)


def test_names_of_tasks():
    names = "acrobot-swingup cheetah-run finger-turn_hard fish-swim hopper-hop hopper-stand humanoid-run humanoid-stand"
    names += " humanoid-walk pendulum-swingup quadruped-run quadruped-walk reacher-hard swimmer-swimmer6 walker-run"
    assert [published.dm_control_name(env) for env in DMC15] == names.split()
    assert published.dm_control_name("BallInCupCatch-v1") == "ball_in_cup-catch"
    assert published.dm_control_name("PointMassEasy-v1") == "point_mass-easy"


def test_which_published_runs_compare():
    available = {(algo, ratio) for algo in ("sr_sac", "sac", "redq") for ratio in (1.0, 8.0, 32.0)}

    def found(script, ratio, schedule, end, order=("sr_sac", "sac")):
        return [algo for algo, _ in published.comparable((script, ratio), script, schedule, available, end, order)]

    assert found("sac", 8.0, (), 50_000) == ["sac", "sr_sac"]  # no reset of either yet: one agent
    assert found("sr_sac", 8.0, (), 50_000) == ["sr_sac", "sac"]
    assert found("sac", 8.0, (), 500_000) == ["sac"]
    assert found("sr_sac", 8.0, (320_000,), 500_000) == ["sr_sac"]
    assert found("sr_sac", 8.0, (32_000,), 50_000) == []  # reset at other steps
    assert found("sr_sac", 8.0, None, 50_000) == []  # nothing is known
    assert found("sac", 16.0, (), 50_000) == []
    assert found("redq", 8.0, (), 50_000) == []
    assert found("redq", 8.0, (), 50_000, ("redq", "sac")) == ["redq"]
    resets = reset_steps(40_000, 2, 100_000, 100_000)
    assert resets == (20_000, 40_000, 60_000, 80_000)
    for name, steps, expected in (
        ("bbf", resets, [("bbf", 2.0)]),
        ("bbf", (), []),
        ("bbf", (10_000, 20_000), []),
        ("bbf", None, []),
        ("bbf_mine", resets, []),  # of bbf.py, but with whatever flags
    ):
        assert published.comparable((name, 2.0), "bbf", steps, {("bbf", 2.0)}, 100_000, ("bbf",)) == expected
    assert published.comparable(("dqn_mine", 1.0), "dqn", (), {("dqn", 1.0)}, 100_000, ("dqn",)) == []


# From files to files


def curve(level, end=50_000, every=5_000):
    return {step: level * step / 50_000 for step in range(every, end + 1, every)}


def write_results(folder, runs, name="dmc_cpu", metric=EVALUATION, made=True):
    """runs: {(algo, ratio, env, seed): {step: return}} -> the folder that benchmark.collect leaves."""
    folder = folder / "results" / name
    folder.mkdir(parents=True)
    record = {}
    with open(folder / "curves.csv", "w") as file:
        file.write("suite,algo,replay_ratio,env,seed,step,metric,value\n")
        for (algo, ratio, env, seed), own in runs.items():
            file.writelines(
                f"{name},{algo},{ratio},{env},{seed},{step},{metric},{value:.6g}\n" for step, value in own.items()
            )
            args = {"env_id": env, "exp_name": algo, "seed": seed, "replay_ratio": ratio, "total_timesteps": 50_000}
            args |= {"reset_interval": 256_000} if algo == "sr_sac" else {}
            start = {"command": f"algos/{algo}.py --env-id {env}", "commit": "0123456789", "wall_s": 60.0}
            start["layout" if seed % 2 else "provenance"] = {
                "device": "cpu",
                "cpu": "a machine",
                "threads": 1,
                "jax": "1.2",
            }
            record[f"{env}__{algo}__rr{ratio:g}__{seed}"] = {"args": args, "starts": [start]}
    if made:
        (folder / "run.json").write_text(json.dumps(record))
    return folder


def write_reference(path, algo, ratio, levels):
    """levels: {task: [level of each seed]} -> a file of published raw curves."""
    with gzip.open(path, "wt") as file:
        file.write("algo,replay_ratio,resets,task,seed,step,return\n")
        for task, own in levels.items():
            for seed, level in enumerate(own):
                file.writelines(f"{algo},{ratio},0,{task},{seed},{s},{v:.1f}\n" for s, v in curve(level).items())
    return path


def make(tmp_path, suite="dmc_cpu", **options):
    """Runs the report in the folder -> the suite's tables {name: rows}, the page, the folder of the figures."""
    places = {"results_dir": str(tmp_path / "results"), "docs_dir": str(tmp_path / "docs")}
    write_report(Args(suite=suite, bootstrap_reps=100, **places, **options))
    tables = {path.stem: [*csv.DictReader(open(path))] for path in (tmp_path / "results" / suite).glob("*.csv")}
    return tables, (tmp_path / "docs" / suite / "report.md").read_text(), tmp_path / "docs" / suite


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*.*")}


def full_grid(ratios=(1.0, 16.0), seeds=(1, 2, 3, 4)):
    return {
        (algo, ratio, env, seed): curve(100 * ratio**0.5 + 50 * k + 10 * seed)
        for algo in ("sac", "sr_sac")
        for ratio in ratios
        for k, env in enumerate(TASKS)
        for seed in seeds
    }


@pytest.mark.usefixtures("longer")
def test_a_whole_grid(tmp_path):
    folder = write_results(tmp_path, full_grid())
    tables, page, docs = make(tmp_path)
    told = f"report --suite dmc_cpu --results-dir {tmp_path}/results --docs-dir {tmp_path}/docs`; raw curves "
    assert f"{told}and tables are in `{tmp_path}/results/dmc_cpu/`." in page
    # A curve rises by level / 50,000 a step: over 10k to 50k its mean is that at 30k, 0.6 times the level.
    row = next(row for row in tables["scores"] if (row["algo"], row["env"], row["seed"]) == ("sac", TASKS[0], "1"))
    assert (row["score"], row["normalized"]) == ("66.000", "0.066000")
    assert len(tables["scores"]) == 2 * 2 * 3 * 4
    found = {
        row["statistic"]: row for row in tables["aggregates"] if (row["algo"], row["replay_ratio"]) == ("sac", "1")
    }
    levels = np.array([[100 + 50 * k + 10 * seed for k in range(3)] for seed in range(1, 5)]) * 0.6 / 1000
    np.testing.assert_allclose([float(row["value"]) for row in found.values()], statistics.aggregate(levels), atol=1e-6)
    assert [*found] == ["iqm", "median", "mean", "optimality_gap"]
    for row in tables["aggregates"]:
        assert float(row["low"]) < float(row["value"]) < float(row["high"])
        assert row["resets"] == ("3" if (row["algo"], row["replay_ratio"]) == ("sr_sac", "16") else "0")
    figures = {"ratio", "iqm", "profiles", "curves_rr1", "curves_rr16"}
    assert {path.stem for path in docs.glob("*.png")} == figures == {*re.findall(r"\((\w+)\.png\)", page)}
    for path in docs.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 200_000
    assert "Nothing: all runs are whole." in page
    assert "A hollow marker" in page  # SR-SAC at ratio 1 would be reset at step 256,000
    assert "--algos sac sr_sac --replay-ratios 1 16 --seeds 4" in page
    assert "| SR-SAC | 16 | 12 | 256,000 | 1 (1 to 1) | a machine, threads: 1 | 0123456 |" in page
    assert "Versions: jax 1.2." in page
    before = bytes_of(folder) | bytes_of(docs)
    make(tmp_path)
    assert bytes_of(folder) | bytes_of(docs) == before, "a second report differs"
    other = make(tmp_path, seed=1)[0]
    assert other["scores"] == tables["scores"] and other["aggregates"] != tables["aggregates"]


@pytest.mark.usefixtures("longer")
def test_hollow_points(tmp_path):
    write_results(tmp_path, full_grid())
    args = Args(suite="dmc_cpu", results_dir=str(tmp_path / "results"), bootstrap_reps=100)
    results = comparison.prepare(args)
    assert results.idle == {("sr_sac", 1.0)}
    assert results.schedules["sr_sac", 16.0] == (16_000, 32_000, 48_000)


@pytest.mark.usefixtures("longer")
def test_what_is_missing(tmp_path):
    runs = full_grid()
    broken, short = ("sac", 1.0, TASKS[2], 2), ("sr_sac", 16.0, TASKS[1], 4)
    runs[broken][30_000] = NAN
    runs[short] = curve(100, end=20_000)
    for seed in (1, 2, 3, 4):
        del runs["sac", 16.0, TASKS[0], seed]
    del runs["sr_sac", 1.0, TASKS[0], 3]
    write_results(tmp_path, runs)
    tables, page, _ = make(tmp_path)
    assert f"SAC, ratio 1, {TASKS[2]}: NaN or infinite returns in seed 2; left out." in page
    assert f"SR-SAC, ratio 16, {TASKS[1]}: seed 4 without all evaluations of the window, up to step 20,000" in page
    assert f"SAC, ratio 16, {TASKS[0]}: no run of any seed." in page
    assert f"SR-SAC, ratio 1, {TASKS[0]}: no run of seed 3." in page
    assert "SAC, ratio 16: not in the aggregates" in page
    assert "SAC, ratio 1: the aggregates use 9 of its 11 finished runs" in page
    scored = {(row["algo"], float(row["replay_ratio"]), row["env"], int(row["seed"])) for row in tables["scores"]}
    assert scored == {*runs} - {broken, short}
    seeds = {(row["algo"], row["replay_ratio"]): (row["tasks"], row["seeds"]) for row in tables["aggregates"]}
    assert seeds == {("sac", "1"): ("3", "3"), ("sr_sac", "1"): ("3", "3"), ("sr_sac", "16"): ("3", "3")}
    assert "nan" not in (tmp_path / "results/dmc_cpu/aggregates.csv").read_text()


@pytest.mark.usefixtures("longer")
def test_missing_tasks(tmp_path):
    write_results(tmp_path, {key: own for key, own in full_grid().items() if key[2] != TASKS[1]})
    tables, page, _ = make(tmp_path)
    assert f"No run at all of {TASKS[1]}." in page
    assert f"Aggregates (tasks: 2 of the suite's 3; {TASKS[0]}, {TASKS[2]}):" in page
    assert {row["tasks"] for row in tables["aggregates"]} == {"2"}


@pytest.mark.usefixtures("longer")
def test_one_seed(tmp_path):
    write_results(tmp_path, full_grid(seeds=(1,)))
    tables, page, docs = make(tmp_path)
    assert all(row["value"] and not row["low"] and not row["high"] for row in tables["aggregates"])
    assert "| SAC | 1 | 0 | 1 | 0.096 | 0.096 | 0.096 | 0.904 |" in page
    assert (docs / "ratio.png").exists()
    assert figures.count({1}) == "1 seed, no interval"


@pytest.mark.usefixtures("longer")
def test_nothing_finished(tmp_path):
    write_results(tmp_path, {("sac", 1.0, TASKS[0], 1): curve(100, end=20_000)})
    tables, page, docs = make(tmp_path)
    assert tables["scores"] == tables["aggregates"] == []
    assert "No configuration has a finished run yet" in page
    assert [path.name for path in docs.glob("*.png")] == ["curves_rr1.png"]


@pytest.mark.usefixtures("longer")
def test_runs_that_differ(tmp_path):
    folder = write_results(tmp_path, full_grid(ratios=(1.0,)))
    record = json.loads((folder / "run.json").read_text())
    for name, run in record.items():
        run["args"]["batch_size"] = 512 if name.endswith("__4") else 256
    (folder / "run.json").write_text(json.dumps(record))
    assert "SR-SAC, ratio 1: its runs differ in batch_size." in make(tmp_path)[1]


@pytest.mark.usefixtures("longer")
def test_comparison_with_raw_curves(tmp_path):
    firsts = {published.dm_control_name(env): 300 + 100 * k for k, env in enumerate(TASKS)}
    levels = {task: [first, first + 20, first + 40] for task, first in firsts.items()}
    path = write_reference(tmp_path / "raw.csv.gz", "sr_sac", 8, levels)
    runs = {  # the same seeds, then the same shifted by 200, in returns 120 over the window; then a single seed
        ("sac", 8.0, env, seed): curve(level + shift)
        for env, shift in zip(TASKS, (0, 200, -200), strict=True)
        for seed, level in enumerate(levels[published.dm_control_name(env)], 1)
    }
    runs |= {("sr_sac", 8.0, TASKS[0], 1): curve(300), ("sac", 16.0, TASKS[0], 1): curve(300)}
    write_results(tmp_path, runs)
    tables, page, _ = make(tmp_path, reference=str(path), reference_algos=("sr_sac",))
    rows = {(row["algo"], row["replay_ratio"], row["env"]): row for row in tables["comparison"]}
    assert len(rows) == 4  # no published runs at ratio 16, and SR-SAC is reset at step 32,000 here, not at 320,000
    half = stats.t.ppf(0.975, 4) * 12 * math.sqrt(2 / 3)
    for env, shift, verdict in zip(TASKS, (0, 120, -120), ("agrees", "higher", "lower"), strict=True):
        row = rows["sac", "8", env]
        assert (row["seeds"], row["published"], row["published_seeds"], row["verdict"]) == ("3", "sr_sac", "3", verdict)
        expected = [shift, shift - half, shift + half]
        np.testing.assert_allclose([float(row[x]) for x in ("difference", "low", "high")], expected, atol=0.01)
    everything = rows["sac", "8", "all tasks compared (3)"]
    assert (everything["unit"], everything["verdict"], float(everything["difference"])) == ("normalized", "agrees", 0)
    assert f"| {TASKS[1]} | SAC | 8 | 372 ± 12 (3) | SR-SAC: 252 ± 12 (3) | +120 (93 to 147) | higher |" in page
    assert "(agrees: 1, higher: 1, lower: 1)" in page
    reference = published.read_reference(path, ("sr_sac",), TASKS, 50_000)
    assert complete(reference["sr_sac", 8.0][TASKS[0]], (10_000, 50_000))[1].keys() == {0, 1, 2}


@pytest.mark.usefixtures("longer")
def test_comparison_with_published_tables(tmp_path):
    """Without raw curves the published tables serve; a table of an earlier comparison does not outlive its curves."""
    found = published.published_summaries(published.read_published(), SUITES["dmc_cpu"], "dmc_cpu")["sr_sac", 16.0]
    assert found.keys() == {*TASKS}
    runs = {("sac", 16.0, env, seed): curve(found[env].mean / 0.6 + seed - 2) for env in TASKS for seed in (1, 2, 3)}
    folder = write_results(tmp_path, runs)
    rows = make(tmp_path)[0]["comparison"]
    assert {row["env"]: abs(float(row["difference"])) < 0.01 for row in rows[:3]} == dict.fromkeys(TASKS, True)
    assert {row["published"] for row in rows} == {"sr_sac"}
    (folder / "curves.csv").write_text((folder / "curves.csv").read_text().replace(",16.0,", ",3.0,"))
    assert "comparison" not in make(tmp_path)[0]


def test_comparison_with_values_read_off_figures(tmp_path):
    """MinAtar: the score at the last step; our interval over seeds, by hand, widened by the error of the reading."""
    game, level = "Breakout-MinAtar", {1: 9.0, 2: 9.4, 3: 9.8}
    runs = {("dqn", 1.0, game, seed): {500_000: 5.0, 1_000_000: x} for seed, x in level.items()}
    runs |= {("dqn", 0.25, game, 1): {1_000_000: 9.0}, ("c51", 1.0, game, 1): {1_000_000: 9.0}}  # with nothing beside
    runs |= {("dqn", 1.0, "Asterix-MinAtar", seed): {1_000_000: 5.0 + seed / 10} for seed in (1, 2)}
    runs |= {("dqn", 1.0, "Freeway-MinAtar", 1): {1_000_000: 48.0}}
    write_results(tmp_path, runs, "minatar5", "charts/average_return")
    tables, text = make(tmp_path, suite="minatar5")[:2]
    rows = {row["env"]: row for row in tables["comparison"]}
    assert [*rows] == [game, "Asterix-MinAtar", "Freeway-MinAtar"]
    assert {(row["algo"], row["replay_ratio"]) for row in rows.values()} == {("dqn", "1")}
    half = 4.302653 * 0.4 / math.sqrt(3) + 0.03 * 9.3
    assert float(rows[game]["difference"]) == pytest.approx(0.1, abs=1e-4)
    assert float(rows[game]["high"]) == pytest.approx(0.1 + half, abs=0.006) and rows[game]["verdict"] == "agrees"
    assert rows["Asterix-MinAtar"]["verdict"] == "lower"
    assert rows["Freeway-MinAtar"]["verdict"] == "too few seeds to say"
    assert (
        "9.3, read within 0.3" in text
        and "A run's score is the training return's moving average over episodes, at step 1,000,000," in text
    )


def test_one_run_beside_many(tmp_path):
    """Atari: the range of 95 % of the published runs, from the tables and from raw scores, here 0, 1, ..., 100."""
    runs = {("der", 1.0, "Assault-v5", 1): {50_000: 450.0, 100_000: 470.0}}
    write_results(tmp_path, runs, "atari2_cpu")
    tables, text = make(tmp_path, suite="atari2_cpu")[:2]
    ((row),) = tables["comparison"]
    assert (row["published"], row["published_seeds"], row["verdict"]) == ("der", "100", "agrees")
    assert float(row["high"]) - float(row["difference"]) == pytest.approx(1.984217 * 48.137 * 1.01**0.5, abs=0.01)
    assert "| DER: 561 ± 48 (100), 95 % of them 479 to 650 | -91 (-187 to 5) | agrees |" in text
    runs |= {("der", 1.0, "Assault-v5", 2): {50_000: 450.0, 100_000: 490.0}}
    write_results(tmp_path / "two", runs, "atari2_cpu")
    ((row),) = make(tmp_path / "two", suite="atari2_cpu")[0]["comparison"]
    assert row["verdict"] == "lower", "by Welch's interval two seeds 81 below, 1.7 deviations, would agree"
    raw = "".join(f"der,1,atari-assault,{seed},100000,{seed}\n" for seed in range(101))
    for runs, shown in ((101, "50 ± 29 (101), 95 % of them 2 to 98"), (39, "19 ± 11 (39)")):
        lines = raw.splitlines(keepends=True)[:runs]
        (tmp_path / "raw.csv").write_text("algo,replay_ratio,task,seed,step,return\n" + "".join(lines))
        text = make(tmp_path, "atari2_cpu", reference=str(tmp_path / "raw.csv"), reference_algos=("der",))[1]
        assert f"| DER: {shown} | " in text and ("holds 95 %" in text) == (runs == 101)
        assert "Hollow, beside the last step" in text and "Grey" not in text
    (tmp_path / "raw.csv").write_text("algo,replay_ratio,task,seed,step,return\nder,1,atari-assault,1,90000,1\n")
    text = make(tmp_path, "atari2_cpu", reference=str(tmp_path / "raw.csv"), reference_algos=("der",))[1]
    assert "Hollow" not in text and "No published run" in text, "raw scores of another step are no comparison"


def test_published_scores_are_drawn_beside_the_last_step(monkeypatch):
    drawn, nothing = MagicMock(), [math.nan] * 3
    theirs = {"der": Summary(-9.7, 8.5, 100, middle95=(-19.4, 7.3)), "bbf": Summary(13.7, 6.4, 14)}
    rows = [comparison.Comparison((x, 1.0), "Pong-v5", own, x, own, *nothing, "") for x, own in theirs.items()]
    results = SimpleNamespace(suite=SUITES["atari2_cpu"], look=labels.Look({*theirs}, {}), comparisons=rows)
    find = lambda env, ratio=1.0: figures.draw_final(results, drawn, drawn, ratio, env)
    np.testing.assert_allclose(find("Pong-v5"), [-19.4, 7.3, 7.3, 20.1])
    (x, y, ends), (x_2, y_2, ends_2) = (call.args for call in drawn.errorbar.call_args_list)
    assert (y, y_2) == ([-9.7], [13.7]) and 100_000 < x[0] < x_2[0] < 110_000
    np.testing.assert_allclose([ends, ends_2], [[[9.7], [17.0]], [[6.4], [6.4]]])
    assert find("Assault-v5") == find("Pong-v5", 2.0) == [], "nothing is compared there"
    monkeypatch.setattr(results, "suite", SUITES["dmc_cpu"])
    assert find("Pong-v5") == [], "a window of several steps has no one place"


def test_points_read_off_figures_are_drawn_up_to_our_last_step():
    """MinAtar's table (Young & Tian 2019, Breakout): 6.8, 8.3, 9.3 at a quarter, a half and one million steps."""
    rows, suite = published.read_published(), SUITES["minatar5"]
    points = lambda config, last: published.read_points(rows, suite, "minatar5", config, "Breakout-MinAtar", last)
    steps, values, errors = points(("dqn", 1.0), 1_000_000)
    assert steps == (250_000, 500_000, 1_000_000) and values == (6.8, 8.3, 9.3)
    np.testing.assert_allclose(errors, 0.03 * np.array(values), rtol=1e-3)
    assert points(("dqn", 1.0), 999_999)[0] == (250_000, 500_000)
    assert points(("dqn", 0.25), 1_000_000) == points(("dqn", 1.0), 0) == ((), (), ())


def test_the_same_steps_are_compared(tmp_path):
    """Published SAC was evaluated every 10k steps: of ours, at 5k, these count. Ours at 20k alone: not compared."""
    seeds = {1: {10_000: 0.0, 15_000: 50.0, 20_000: 60.0, 25_000: 70.0, 30_000: 90.0}}
    at = lambda every, curves=seeds: comparison.at_their_steps(curves, (10_000, 30_000), every)
    assert at(10_000) == {1: 50.0} and at(5_000) == at(0) == {1: 54.0}
    assert at(5_000, {1: {10_000: 0.0, 20_000: 60.0, 30_000: 90.0}}) == {}
    env = "CheetahRun-v1"
    theirs = published.published_summaries(published.read_published(), SUITES["dmc_cpu"], "dmc_cpu")
    assert theirs["sac", 1.0][env].every == 10_000 and theirs["sr_sac", 16.0][env].every == 5_000
    write_results(tmp_path, {("sac", 16.0, env, s): curve(10 * s, end=30_000, every=10_000) for s in (1, 2)})
    tables, text = make(tmp_path)[:2]
    assert "comparison" not in tables and "not evaluated at all the steps at which the published runs were" in text


def test_mean_return_so_far(tmp_path):
    """Sum of returns over number of episodes, from means and numbers since the last log; logs without an episode."""
    found = SUITES["minatar4_rainbow"].scored(
        {"charts/episodes": {1: 0, 2: 2, 3: 0, 4: 6}, "charts/episodic_return": {2: 3.0, 4: 5.0}}
    )
    assert found == {2: 3.0, 3: 3.0, 4: 4.5}
    game, name = "Asterix-MinAtar", "minatar4_rainbow"
    runs = {("rainbow", 0.25, game, seed): {1_000_000: 2.0} for seed in (1, 2)}
    runs |= {("rainbow_no_double", 0.25, game, 1): {1_000_000: 2.0}}  # a variant is not compared with the whole
    folder = write_results(tmp_path, runs, name, "charts/episodic_return")
    text = (folder / "curves.csv").read_text()
    more = text.replace("charts/episodic_return,2", "charts/episodes,10").splitlines(keepends=True)[1:]
    more += [
        f"{name},rainbow,0.25,{env},3,25000,charts/episodes,0\n" for env in (game, "Freeway-MinAtar")
    ]  # just begun
    (folder / "curves.csv").write_text(text + "".join(more))
    ((row),) = make(tmp_path, suite=name)[0]["comparison"]
    assert (row["algo"], float(row["mean"]), row["verdict"]) == ("rainbow", 2.0, "agrees")


def fails(capsys, tmp_path, suite="dmc_cpu", **options):
    """The one line that bad input gets; nothing may be written."""
    before = bytes_of(tmp_path)
    with pytest.raises(SystemExit) as raised:
        make(tmp_path, suite, **options)
    assert raised.value.code == 2
    assert bytes_of(tmp_path) == before
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


def test_nothing_to_report(capsys, tmp_path):
    assert "run benchmark.sweep" in fails(capsys, tmp_path)
    write_results(tmp_path, {})
    assert "no run has got to an evaluation" in fails(capsys, tmp_path)
    write_results(tmp_path / "other", {("sac", 1.0, TASKS[0], 1): curve(9)}, metric="charts/SPS")
    assert "no run has got to an evaluation" in fails(capsys, tmp_path / "other")
    write_results(tmp_path / "nan", {("sac", 1.0, TASKS[0], 1): {5_000: NAN}})
    assert "no usable run" in fails(capsys, tmp_path / "nan")


def test_bad_flags(capsys, tmp_path):
    write_results(tmp_path, full_grid(ratios=(1.0,)))
    assert "dmc15, dmc_cpu" in fails(capsys, tmp_path, suite="nonsense")
    assert "name=label" in fails(capsys, tmp_path, labels=("SAC",))
    assert "--seed" in fails(capsys, tmp_path, seed=-1)
    assert "nowhere.csv" in fails(capsys, tmp_path, reference=str(tmp_path / "nowhere.csv"))
    path = write_reference(tmp_path / "raw.csv.gz", "sr_sac", 8, {"cheetah-run": [1, 2]})
    assert "it has sr_sac" in fails(capsys, tmp_path, reference=str(path), reference_algos=("ppo",))
    (tmp_path / "raw.csv").write_text("algo,seed\n")
    assert "no column replay_ratio" in fails(capsys, tmp_path, reference=str(tmp_path / "raw.csv"))


@pytest.mark.parametrize(
    "line, said",
    [
        ("dmc_cpu,sac,1.0,CheetahRun-v1,1,5000,eval/episodic_return,x", "line 3 of"),
        ("dmc_cpu,sac,1.0,CheetahRun-v1,1", "is damaged"),
        ("dmc15,sac,1.0,CheetahRun-v1,1,10000,eval/episodic_return,1", "belongs to suite dmc15"),
        ("dmc_cpu,sac,1.0,CheetahRun-v1,1,5000,eval/episodic_return,1", "a second time"),
    ],
)
def test_damaged_curves(capsys, tmp_path, line, said):
    folder = write_results(tmp_path, {("sac", 1.0, TASKS[0], 1): {5_000: 1.0}})
    with open(folder / "curves.csv", "a") as file:
        file.write(line + "\n")
    assert said in fails(capsys, tmp_path)


def test_damaged_record(capsys, tmp_path):
    folder = write_results(tmp_path, full_grid(ratios=(1.0,)))
    (folder / "run.json").write_text("{")
    assert "run.json is damaged" in fails(capsys, tmp_path)


# Suites and published tables


def test_suites_have_a_scale_and_a_window():
    for suite in SUITES.values():
        assert all(random < best for random, best in suite.scores.values())
        assert 0 < suite.statistic[0] <= suite.statistic[1] == suite.flags["total-timesteps"]
    assert [*SUITES["gym5"].scores] == [f"{x}-v4" for x in ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid")]


def test_published_tables():
    rows = published.read_published()
    assert len(rows) > 500
    seen = set()
    for row in rows:
        assert [*row] == published.PUBLISHED_COLUMNS
        assert row["statistic"] in published.PUBLISHED_STATISTICS and row["algorithm"] in labels.LABELS
        read = row["statistic"] in published.READ.values()
        origin = r"[\w-]+/[\w-]+(@[0-9a-f]{7}|/bigger_better_faster)$"
        assert row["paper"] and (read or re.search(origin, row["source"]))
        assert row["resets"] in ("0", "1") and (
            row["source"].startswith("read off") if read else int(row["seeds"]) >= 4
        )
        assert row["suite"] in {*SUITES, "sac10", ""} and re.fullmatch(r"\d+(-\d+(/\d+)?)?", row["step"])
        assert float(row["replay_ratio"]) > 0 and math.isfinite(float(row["value"]))
        assert row["low"] or row["statistic"] != "middle95"
        if row["low"]:
            assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
        key = tuple(row[name] for name in "algorithm replay_ratio suite task step statistic".split())
        assert key not in seen
        seen.add(key)
    described = (published.PUBLISHED / "README.md").read_text()
    assert all(f"`{path.name}`" in described for path in published.PUBLISHED.glob("*.csv"))


def test_published_iqms_are_the_papers():
    """IQM over task x seed at 500k steps, as recomputed independently of this code."""
    lines, points = published.published_iqms(published.read_published(), "dmc15", SUITES["dmc15"])
    at_end = {config: round(1000 * values[steps.index(500_000)]) for config, (steps, values) in lines.items()}
    assert at_end == {("sr_sac", r): v for r, v in ((8, 628), (16, 615), (32, 692), (128, 740))} | {("redq", 20): 511}
    assert points.keys() == {("sr_sac", ratio) for ratio in (8, 16, 32, 128)}


def iqms_at(path, step):
    """IQM over task x seed of DMC15's raw curves at one step, from the file as the report reads it."""
    reference = published.read_reference(path, ("sr_sac",), DMC15, step)
    found = {}
    for config, envs in reference.items():
        scores = {env: {seed: own[step] for seed, own in seeds.items() if step in own} for env, seeds in envs.items()}
        found[int(config[1])] = float(statistics.iqm(statistics.score_matrix(scores, [*DMC15])))
    return found


def test_iqms_of_raw_curves(tmp_path):
    levels = {published.dm_control_name(env): [10 * k, 10 * k + 5] for k, env in enumerate(DMC15)}
    path = write_reference(tmp_path / "raw.csv.gz", "sr_sac", 8, levels)
    assert iqms_at(path, 50_000) == {8: 72.5}  # 30 runs at 0, 5, ..., 145: the middle 16 are 35 to 110


@needs_raw
def test_iqms_of_published_curves():
    found = iqms_at(RAW, 500_000)
    assert found == pytest.approx({8: 628, 16: 615, 32: 692, 128: 740}, abs=1)


@needs_raw
@pytest.mark.parametrize("name", ["dmc15", "dmc_cpu", "dmc3_50k", "dmc2_100k"])
def test_published_windows_are_the_raw_curves(name):
    suite = SUITES[name]
    raw = published.read_reference(RAW, ("sr_sac", "sac"), suite.scores, suite.statistic[1])
    tables = published.published_summaries(published.read_published(), suite, name)
    assert published.reference_summaries(raw, suite) == tables


@needs_raw
@pytest.mark.usefixtures("longer")
def test_raw_curves_and_tables_compare_alike(tmp_path):
    write_results(tmp_path, full_grid())
    for options in ({}, {"reference": RAW}):
        make(tmp_path, **options)
        found = (tmp_path / "results/dmc_cpu/comparison.csv").read_bytes()
        assert found == (Path(tmp_path, "before").read_bytes() if options else found)
        Path(tmp_path, "before").write_bytes(found)
