"""Run folders to tables: whole runs, all of them, and nothing else."""

import csv
import json
import shutil
import subprocess
import sys

import pytest
from common import ROOT, environment

from benchmark import collect, jobs

EVALUATIONS = {5_000: 1.25, 10_000: 1234.56789}


def make_run(runs, env_id="CheetahRun-v1", algo="sac", ratio=8.0, seed=1, values=EVALUATIONS, done=10_000):
    folder = runs / f"{env_id}__{algo}__rr{ratio:g}__{seed}"
    folder.mkdir(parents=True)
    args = {"env_id": env_id, "exp_name": algo, "replay_ratio": ratio, "seed": seed, "eval_interval": 5_000}
    (folder / "args.json").write_text(json.dumps(args))
    start = {"command": f"algos/{algo}.py --seed {seed} --runs-dir /somewhere/else --batch-size 8", "wall_s": 1.0}
    (folder / "run.json").write_text(json.dumps([start]))
    rows = [f"{step},{tag},{x}\n" for step, x in values.items() for tag in ("eval/episodic_return", "charts/SPS")]
    (folder / "metrics.csv").write_text("".join(["step,tag,value\n", *rows]))
    if done:
        (folder / "done").write_text(json.dumps({"step": done}))
    return folder


def run(tmp_path, *more, expect=0, suite="dmc_cpu"):
    where = ["--runs-dir", str(tmp_path / "runs"), "--results-dir", str(tmp_path / "results")]
    command = [sys.executable, "-m", "benchmark.collect", "--suite", suite, *where, *more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def table(tmp_path):
    with open(tmp_path / "results" / "dmc_cpu" / "curves.csv") as file:
        return list(csv.reader(file))


def test_a_tidy_table_with_what_made_it(tmp_path):
    make_run(tmp_path / "runs", seed=2)
    make_run(tmp_path / "runs", seed=10)
    make_run(tmp_path / "runs", algo="sr_sac", ratio=0.5)
    assert "3 runs" in run(tmp_path)
    head = ["dmc_cpu", "sac", "8", "CheetahRun-v1", "2"]
    assert table(tmp_path)[:3] == [
        ["suite", "algo", "replay_ratio", "env", "seed", "step", "metric", "value"],
        [*head, "5000", "eval/episodic_return", "1.25"],
        [*head, "10000", "eval/episodic_return", "1234.57"],
    ]
    assert [row[4] for row in table(tmp_path)[1:]] == ["2", "2", "10", "10", "1", "1"]
    made = json.loads((tmp_path / "results" / "dmc_cpu" / "run.json").read_text())
    start = made["CheetahRun-v1__sac__rr8__2"]["starts"][0]
    assert start["command"] == "algos/sac.py --seed 2 --batch-size 8"
    assert made["CheetahRun-v1__sr_sac__rr0.5__1"]["args"]["replay_ratio"] == 0.5


def test_twice_changes_nothing_and_other_runs_stay(tmp_path):
    make_run(tmp_path / "runs", seed=1)
    run(tmp_path)
    files = [tmp_path / "results" / "dmc_cpu" / name for name in ("curves.csv", "run.json")]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    run(tmp_path)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in files] == before
    (tmp_path / "runs").rename(tmp_path / "first")
    make_run(tmp_path / "runs", seed=3, values={5_000: 7.0, 10_000: 8.0})
    run(tmp_path)
    assert [(row[4], row[7]) for row in table(tmp_path)[1:]] == [
        ("1", "1.25"),
        ("1", "1234.57"),
        ("3", "7"),
        ("3", "8"),
    ]
    assert set(json.loads(files[1].read_text())) == {f"CheetahRun-v1__sac__rr8__{seed}" for seed in (1, 3)}


def cut(folder):
    path = folder / "metrics.csv"
    path.write_text(path.read_text()[:-4])


def lose_an_evaluation(folder):
    path = folder / "metrics.csv"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "10000,eval" not in line))


def garble(folder):
    path = folder / "metrics.csv"
    path.write_text(path.read_text().replace("1.25", "1.2x5"))


@pytest.mark.parametrize(
    "harm, says",
    [
        (cut, "its metrics.csv is cut short"),
        (lose_an_evaluation, "it is done, but its metrics.csv lacks the evaluation of step 10000"),
        (garble, "line 2 of its metrics.csv is damaged"),
        (lambda folder: (folder / "args.json").unlink(), "no run of this project"),
        (lambda folder: (folder / "run.json").write_text("{"), "no run of this project"),
        (lambda folder: (folder / "done").write_text(""), "its file done is damaged"),
    ],
)
def test_a_damaged_folder_is_named_and_the_others_count(tmp_path, harm, says):
    make_run(tmp_path / "runs", seed=1)
    harmed = make_run(tmp_path / "runs", seed=2)
    harm(harmed)
    text = run(tmp_path, expect=1)
    assert f"left out: {harmed}: {says}" in text
    assert {row[4] for row in table(tmp_path)[1:]} == {"1"}


def test_a_copy_of_a_run_is_named(tmp_path):
    shutil.copytree(make_run(tmp_path / "runs"), tmp_path / "runs" / "CheetahRun-v1__sac__rr8__1.bak")
    text = run(tmp_path, expect=1)
    assert "__1.bak: it is the same run as " in text
    assert len(table(tmp_path)) == 3


def test_a_folder_that_cannot_be_written(tmp_path):
    make_run(tmp_path / "runs")
    text = run(tmp_path, "--results-dir", "/proc/nowhere", expect=2)
    assert text.splitlines()[-1].startswith("error: cannot use /proc/nowhere") and "Traceback" not in text


def test_foreign_tasks_and_unfinished_runs(tmp_path):
    make_run(tmp_path / "runs", env_id="HumanoidRun-v1")
    make_run(tmp_path / "runs", seed=2, values={5_000: 3.0}, done=None)
    text = run(tmp_path, expect=1)
    assert "HumanoidRun-v1 is no task of dmc_cpu" in text and "not finished: " in text
    assert "error: no finished run of dmc_cpu" in text and not (tmp_path / "results").exists()
    run(tmp_path, "--unfinished", expect=1)
    assert [(row[4], row[5], row[7]) for row in table(tmp_path)[1:]] == [("2", "5000", "3")]


def test_a_nan_is_kept_and_said(tmp_path):
    make_run(tmp_path / "runs", values={5_000: 1.0, 10_000: "nan"})
    assert "has the value nan at step 10000" in run(tmp_path)
    assert table(tmp_path)[-1][7] == "nan"


def test_bad_input(tmp_path):
    assert "there is no suite 'x'" in run(tmp_path, suite="x", expect=2)
    assert "run benchmark.sweep first" in run(tmp_path, expect=2)


def test_the_committed_tables_are_in_this_form():
    for path in (ROOT / "benchmark" / "results").glob("*/curves.csv"):
        rows = collect.read_table(path)
        assert rows and {row[0] for row in rows} == {path.parent.name}
        assert rows == sorted(rows, key=lambda row: (*collect.key(row), int(row[5]), row[6]))
        runs = {f"{row[3]}__{row[1]}__rr{row[2]}__{row[4]}" for row in rows}
        made = json.loads((path.parent / "run.json").read_text())
        assert set(made) == runs
        for name, entry in made.items():
            assert entry["starts"] and all(start["commit"] and start["command"] for start in entry["starts"]), name


def test_runs_of_all_versions_of_the_scripts(tmp_path):
    """What made a run is called `layout` or `provenance`; a folder may be named with or without a colon."""
    for seed, named in ((1, "layout"), (2, "provenance")):
        folder = make_run(tmp_path / "runs", seed=seed)
        start = json.loads((folder / "run.json").read_text())[0] | {named: {"jax": "1"}}
        (folder / "run.json").write_text(json.dumps([start]))
        folder.rename(folder.with_name(folder.name.replace("__", ":" if seed == 1 else "-")))
    run(tmp_path)
    made = json.loads((tmp_path / "results" / "dmc_cpu" / "run.json").read_text())
    assert [jobs.provenance_of(own["starts"][0]) for own in made.values()] == [{"jax": "1"}] * 2
    assert {(row[3], row[4]) for row in table(tmp_path)[1:]} == {("CheetahRun-v1", "1"), ("CheetahRun-v1", "2")}
