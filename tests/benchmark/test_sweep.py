"""Sweeps: to their end through kills, beside jobs that fail, on this machine, submitit's local executor and Ray.

What becomes of a job does not depend on what it learns, so most jobs are of helpers/fake_script.py.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import tyro
from common import ROOT, assert_same, environment, load, results

from benchmark import cluster, jobs, sweep
from benchmark.jobs import expand, folder_name, is_done, parse_flags
from benchmark.suites import SUITES

loaded = cache(load)
TWO = "2" if len(os.sched_getaffinity(0)) > 1 else "1"  # jobs side by side, where there are cores for them
GRID = ("--algos", "sac", "sr_sac", "--replay-ratios", "0.5")
LONGER = ("--", "--total-timesteps", "4000")  # steps of a millisecond


def words(suite, runs_dir, *more):
    where = ["--runs-dir", str(runs_dir), "--results-dir", str(Path(runs_dir).parent / "results")]
    head, tail = (more[: more.index("--")], more[more.index("--") :]) if "--" in more else (more, ())
    return [sys.executable, str(ROOT / "tests" / "helpers" / "small_sweep.py"), "--suite", suite, *where, *head, *tail]


def start_sweep(suite, runs_dir, *more, **options):
    options = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment()} | options
    return subprocess.Popen(words(suite, runs_dir, *more), start_new_session=True, **options)


def run_sweep(suite, runs_dir, *more, expect=0, **options):
    process = start_sweep(suite, runs_dir, *more, **options)
    out, err = process.communicate(timeout=600)
    assert process.returncode == expect, f"exit code {process.returncode}\n{out}\n{err}"
    return out, err


def wait_for(condition, seconds=240):
    give_up = time.time() + seconds
    while not (found := condition()):
        assert time.time() < give_up, "it did not come"
        time.sleep(0.05)
    return found


def curves(runs_dir, suite):
    return (Path(runs_dir).parent / "results" / suite / "curves.csv").read_bytes()


def logs(runs_dir):
    return {path.stem: path.read_text() for path in sorted(Path(runs_dir, "sweep").glob("*.log"))}


def fake_results(runs_dir):
    """What must be equal between two fake runs: all but their older checkpoints and the record of their sessions."""
    found = {}
    for folder in sorted(path.parent for path in Path(runs_dir).glob("*/args.json")):
        files = [folder / name for name in ("args.json", "metrics.csv", "done")]
        files.append(max(folder.glob("checkpoint_*")))
        found[folder.name] = {path.name: path.read_text() for path in files}
    return found


def test_a_job_is_a_command_that_a_user_could_type():
    found = expand(
        "dmc_cpu", ["sac", "sr_sac"], [1.0, 0.25], 4, 3, "runs/x", ["--hidden-dim", "64", "--minimal-actions"]
    )
    assert len(found) == 3 * 2 * 2 * 2
    job = next(job for job in found if job.name == "WalkerRun-v1__sr_sac__rr0.25__1-3")
    assert job.command == (
        "python algos/sr_sac.py --env-id WalkerRun-v1 --replay-ratio 0.25 --seed 1 --num-seeds 3"
        " --total-timesteps 30000 --reset-interval 128000 --hidden-dim 64 --minimal-actions --runs-dir runs/x"
    )
    assert job.folders == tuple(str(ROOT / f"runs/x/WalkerRun-v1__sr_sac__rr0.25__{seed}") for seed in (1, 2, 3))
    assert [job.name for job in found[-1:]] == ["WalkerRun-v1__sr_sac__rr0.25__4"]  # last seeds last, alone


def test_folders_are_named_as_the_scripts_name_them():
    name = "worlds:Count-v0__sac a/b,c__rr0.25__1"
    assert folder_name(name) == "worlds-Count-v0__sac-a-b-c__rr0.25__1" == folder_name(folder_name(name))
    found = expand("dmc_cpu", ["sac"], [1.0], 1, 1, "runs/x", ["--exp-name", "a:b"], ["WalkerRun-v1"])
    assert found[0].folders == (str(ROOT / "runs/x/WalkerRun-v1__a-b__rr1__1"),)
    assert found[0].name == "WalkerRun-v1__a-b__rr1__1" and "--exp-name a:b" in found[0].command


@pytest.mark.parametrize("suite", list(SUITES))
def test_every_suite_makes_commands_that_the_scripts_take(suite):
    kind = next(iter(SUITES[suite].scores)).rpartition("-")[2]
    kinds = {"MinAtar": ("dqn", "sr_dqn", "rainbow", *SUITES[suite].variants), "v5": ("dqn_atari", "drq_eps", "der")}
    for algo in {*kinds.get(kind, ("sac", "sr_sac")), *SUITES[suite].algos}:
        for job in expand(suite, [algo], [8.0], 1, 1, "runs"):
            module = loaded(Path(job.words[0]).stem)
            args = tyro.cli(module.Args, args=job.words[1:])
            module.check(args)
            folder = module.Run(args, args.seed).folder
            assert [str(ROOT / folder)] == list(job.folders) and args.total_timesteps == job.steps


def test_without_algos_and_ratios_a_suite_runs_its_own():
    def made(*typed):
        words = ["--suite", "minatar3_ratios", "--tasks", "Freeway-MinAtar", "--seeds", "1", *typed]
        return [
            (job.name.split("__")[1], job.replay_ratio) for job in sweep.make_jobs(tyro.cli(sweep.Args, args=words), ())
        ]

    ratios = (0.25, 1.0, 4.0)
    assert made() == [(algo, ratio) for ratio in ratios for algo in ("dqn", "sr_dqn")]
    assert made("--algos", "c51") == [("c51", ratio) for ratio in ratios]
    assert made("--replay-ratios", "2") == [("dqn", 2.0), ("sr_dqn", 2.0)]


def test_variants_and_flags_of_a_task():
    found = expand("minatar4_rainbow", ["rainbow", "rainbow_no_noise"], [0.25], 1, 1, "runs")
    assert [job.command.split(" --")[0] for job in found[:2]] == ["python algos/rainbow.py"] * 2
    assert "--exp-name" not in found[0].command and "--exp-name rainbow_no_noise --noise-scale 0" in found[1].command
    assert found[1].name == "Breakout-MinAtar__rainbow_no_noise__rr0.25__1"
    rates = {job.name.split("-")[0]: job.words[job.words.index("--learning-rate") + 1] for job in
             expand("minatar5", ["dqn"], [1.0], 1, 1, "runs")}  # fmt: skip
    assert {game: float(rate) for game, rate in rates.items()} == {
        "Breakout": 2**-9, "Asterix": 2**-13, "Freeway": 2**-11, "SpaceInvaders": 2**-12, "Seaquest": 2**-13,
    }  # fmt: skip
    halves = expand("minatar5", ["dqn_half_step", "dqn_double_step"], [1.0], 1, 1, "runs", (), ("Freeway-MinAtar",))
    assert [job.name.split("__")[:2] for job in halves] == [
        ["Freeway-MinAtar", "dqn_half_step"], ["Freeway-MinAtar", "dqn_double_step"]]  # fmt: skip
    assert [float(job.words[job.words.index("--learning-rate") + 1]) for job in halves] == [2**-12, 2**-10]
    typed = expand("minatar5", ["dqn"], [1.0], 1, 1, "runs", ["--learning-rate", "0.5"])
    assert all("--learning-rate 0.5 " in job.command for job in typed)


def test_flags_as_typed():
    assert parse_flags(["--a-b", "1", "--switch", "--c=x=y", "--d_e", "-3"]) == {
        "a-b": "1",
        "switch": True,
        "c": "x=y",
        "d-e": "-3",
    }


@pytest.mark.parametrize(
    "typed, says",
    [
        (["--suite", "dmc16"], "there is no suite 'dmc16'; there are dmc15"),
        (["--suite", "dmc_cpu", "--tasks", "HopperHop-v1"], "dmc_cpu has no task HopperHop-v1; its tasks are"),
        (["--suite", "dmc15", "--algos", "sax"], "no script sax; there are bbf, c51, der"),
        (["--suite", "dmc15", "--algos", "--seeds", "1"], "--algos needs at least one value"),
        (["--suite", "dmc15", "--replay-ratios"], "--replay-ratios needs at least one value"),
        (["--suite", "dmc15", "--seeds", "0"], "--seeds must be"),
        (["--suite", "dmc15", "--replay-ratios", "0"], "must be above 0"),
        (["--suite", "dmc15", "--jobs", "1000"], "do not fit on"),
        (["--suite", "dmc15", "--device", "gpu"], "no GPU"),
        (["--suite", "dmc15", "--", "--overwrite"], "--overwrite cannot follow"),
        (["--suite", "dmc15", "--", "stray"], "'stray' is no flag"),
        (["--suite", "dmc15", "--algos", "sac", "sr_sac", "--", "--exp-name", "one"], "would share a run's folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, typed, says):
    if "gpu" in typed and sweep.gpus():
        pytest.skip("this machine has a GPU")
    before = [*ROOT.glob("runs/*/sweep")]
    command = [sys.executable, "-m", "benchmark.sweep", *typed]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=120)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert [*ROOT.glob("runs/*/sweep")] == before


def kill(process):
    """The whole process group gets SIGKILL; what a killed sweep leaves behind may still be saving."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_three_times_ends_as_if_never_disturbed(tmp_path):
    """12 jobs."""
    grid = (*GRID, "--seeds", "3", "--jobs", TWO)
    run_sweep("fake", tmp_path / "whole" / "runs", *grid)
    runs = tmp_path / "killed" / "runs"
    for pause, number in ((0.0, 1), (0.2, 4), (0.4, 8)):
        process = start_sweep("fake", runs, *grid, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda number=number: len(list(runs.glob("*/done"))) >= number)
        time.sleep(pause)
        kill(process)
    out, _ = run_sweep("fake", runs, *grid)
    assert re.search(r"12 jobs in .*, ([1-9]|1[01]) of them done", out)
    assert fake_results(tmp_path / "whole" / "runs") == fake_results(runs)
    assert_undisturbed(tmp_path, "fake", 12)
    out, _ = run_sweep("fake", runs, *grid)
    assert "12 of them done" in out and len(logs(runs)) == 12


def assert_undisturbed(tmp_path, suite, number):
    """The table of the killed sweep is that of the whole one; each job ran to its end once, and a kill hit one."""
    runs = tmp_path / "killed" / "runs"
    assert curves(tmp_path / "whole" / "runs", suite) == curves(runs, suite)
    assert len(logs(runs)) == number
    for name, text in logs(runs).items():
        assert text.count("steps done, results in") == 1, f"{name} was run to its end more than once\n{text}"
    interrupted = [name for name, text in logs(runs).items() if text.count("\n== ") > 1]
    assert interrupted, "no kill hit a job: this test would show nothing"


@pytest.mark.slow
def test_a_sweep_of_real_scripts_is_killed(tmp_path):
    """Two jobs, killed while they learn."""
    grid = ("--algos", "dqn", "sr_dqn", "--tasks", "CartPole-v1", "--replay-ratios", "0.5", "--seeds", "1")
    grid += ("--jobs", TWO)
    run_sweep("small", tmp_path / "whole" / "runs", *grid)
    runs = tmp_path / "killed" / "runs"
    process = start_sweep("small", runs, *grid, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(runs.glob("*/checkpoint_0000000[1-3]*.npz")))
    kill(process)
    run_sweep("small", runs, *grid)
    assert_same(results(tmp_path / "whole" / "runs"), results(runs))
    assert_undisturbed(tmp_path, "small", 2)


def test_failures_are_retried_once_named_and_harm_nobody(tmp_path):
    """A wrong flag (SAC knows no resets), a crash, a hang, and a job that is well."""
    grid = (*GRID, "--seeds", "1")
    flags = ("--", "--reset-interval", "40")
    _, err = run_sweep("fake_bad", tmp_path / "runs", *grid, "--jobs", TWO, "--timeout", "2", *flags, expect=1)
    text = logs(tmp_path / "runs")
    state = {path.parent.name: path for path in (tmp_path / "runs").glob("*/done")}
    assert [*state] == ["Count-v0__sr_sac__rr0.5__1"]
    assert curves(tmp_path / "runs", "fake_bad").count(b"Count-v0") == 8
    why = {"Crash": "exit code 1", "Stuck": "no sign of life for 2 s"}
    for name, log in text.items():
        if name in state:
            continue
        expected = "exit code 2" if "__sac__" in name else next(x for key, x in why.items() if key in name)
        line = next(line for line in err.splitlines() if line.startswith(f"failed: {name}: "))
        assert expected in line and line.endswith(f"sweep/{name}.log"), line
        assert log.count("\n== ") == 2, f"{name} was tried {log.count('== ')} times"
    assert "5 of 6 jobs failed" in err
    assert "this task fails in step 120" in text["Crash-v0__sr_sac__rr0.5__1"]
    shown, _ = run_sweep("fake_bad", tmp_path / "runs", *grid, "--status", *flags)
    assert "6 jobs: 1 done, 0 running, 5 failed, 0 stopped, 0 left" in shown


@pytest.mark.parametrize(
    ("does", "ends"),
    [("import time; time.sleep(60)", "no sign of life for 3 s"), ("while True: pass", None)],
    ids=["hangs", "computes"],
)
def test_a_job_that_computes_is_alive(does, ends, tmp_path):
    """A long evaluation writes nothing for hours."""
    job = jobs.Job("silent", ("-c", does), (str(tmp_path / "run"),), str(tmp_path), 1, 1.0)
    attempt, give_up = jobs.Running(job, jobs.open_lock(job), timeout=3), time.time() + 8
    try:
        while (found := attempt.poll()) is None and time.time() < give_up:
            time.sleep(0.1)
    finally:
        attempt.process.kill()
        attempt.process.wait()
    assert found == ({"status": "failed", "why": ends} if ends else None)


@pytest.mark.parametrize("value", [("1e5",), ("0",), ()])
def test_a_length_that_is_none(value, capsys):
    with pytest.raises(SystemExit) as stop:
        expand("dmc_cpu", ["sac"], [1.0], 1, 1, "runs/x", ["--total-timesteps", *value])
    said = f"--total-timesteps must be a whole number above 0, not {value[0] if value else 'nothing'}"
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_one_sweep_at_a_time_and_a_stop_that_saves(tmp_path):
    runs, grid = tmp_path / "runs", ("--algos", "sac", "--replay-ratios", "1", "--seeds", "2", "--jobs", "1")
    longer = ("--", "--total-timesteps", "200000")
    first = start_sweep("fake_one", runs, *grid, *longer)
    wait_for(lambda: list(runs.glob("*/checkpoint_*.npz")))
    _, err = run_sweep("fake_one", runs, *grid, *longer, expect=2)
    assert "another sweep is at work in" in err and err.count("\n") == 1
    shown, _ = run_sweep("fake_one", runs, *grid, "--status", *longer)
    assert re.search(r"running +Count-v0__sac__rr1__1 +[\d,]+ of 200,000 steps", shown), shown
    assert "2 jobs: 0 done, 1 running, 0 failed, 0 stopped, 1 left" in shown and "left, 1 at a time" in shown
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=120)
    assert first.returncode == 128 + signal.SIGINT and "the same command goes on" in out, out + err
    assert "stopped and saved at step" in logs(runs)["Count-v0__sac__rr1__1"]
    shown, _ = run_sweep("fake_one", runs, *grid, "--status", *longer)
    assert "0 done, 0 running, 0 failed, 1 stopped, 1 left" in shown, shown


def test_jobs_side_by_side_have_a_core_each(tmp_path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core only")
    args = sweep.Args(suite="dmc_cpu", jobs=2, device="cpu")
    (one, first), (two, _) = sweep.slots(args)
    assert not set(one) & set(two) and jobs.SINGLE_THREAD in first["XLA_FLAGS"]
    ((whole, alone),) = sweep.slots(sweep.Args(suite="dmc_cpu", jobs=1, device="cpu"))
    cores = os.sched_getaffinity(0)
    assert set(whole) == cores and "XLA_FLAGS" not in alone


def test_a_job_waits_for_the_process_that_a_killed_sweep_left(tmp_path):
    """The lock goes with the script's process, not with the sweep that started it."""
    job = jobs.Job("sleeper", ("-c", "import time; time.sleep(8)"), (str(tmp_path / "run"),), str(tmp_path), 1, 1.0)
    starter = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from benchmark import jobs\n"
        f"job = jobs.Job(*{(job.name, job.words, job.folders, job.records, job.steps, job.replay_ratio)!r})\n"
        "jobs.PR_SET_PDEATHSIG = 0\n"  # let the script live on, as one does that takes long to save
        "jobs.Running(job, jobs.open_lock(job)); print('started', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", starter, str(ROOT)], stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.kill()
    assert jobs.is_running(job) and jobs.open_lock(job) is None
    lock = wait_for(lambda: jobs.open_lock(job), 30)
    lock.close()


@pytest.mark.parametrize("backend, package", [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_is_named(backend, package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stop:
        cluster.backend(sweep.Args(suite="dmc_cpu", backend=backend))
    assert stop.value.code == 2
    assert f"needs {package}: pip install -r requirements-{backend}.txt" in capsys.readouterr().err
    assert (ROOT / f"requirements-{backend}.txt").read_text().splitlines()[-1].startswith(f"{package}==")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The sweep that the clusters' sweeps must equal: two jobs of some seconds."""
    runs = tmp_path_factory.mktemp("undisturbed") / "runs"
    run_sweep("fake_one", runs, *GRID, "--seeds", "1", "--jobs", TWO, "--device", "cpu", *LONGER)
    return runs


def with_packages(**more):
    """The environment of a user who has installed the optional packages."""
    return environment() | {"PYTHONPATH": os.pathsep.join(sys.path)} | more


@pytest.mark.slow
def test_slurm_by_the_local_executor(tmp_path, undisturbed):
    more = (*GRID, "--seeds", "1", "--backend", "slurm", "--slurm-executor", "local", *LONGER)
    out, _ = run_sweep("fake_one", tmp_path / "runs", *more, env=with_packages())
    assert "2 are submitted now" in out
    assert curves(tmp_path / "runs", "fake_one") == curves(undisturbed, "fake_one")
    out, _ = run_sweep("fake_one", tmp_path / "runs", *more, env=with_packages())
    assert "2 of them done" in out and "submitted" not in out


@pytest.mark.slow
def test_slurm_saves_at_the_time_limit_and_goes_on(tmp_path):
    """What submitit does at a time limit: its signal, the checkpoint, the same job again."""
    more = ("--algos", "sac", "--replay-ratios", "1", "--seeds", "1", "--backend", "slurm", "--slurm-executor", "local")
    runs = tmp_path / "runs"
    process = start_sweep("fake_one", runs, *more, *LONGER, env=with_packages())
    wait_for(lambda: list(runs.glob("*/checkpoint_*.npz")))
    workers = [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if is_worker(path, runs)]
    os.kill(int(workers[-1]), signal.SIGUSR2)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    (text,) = logs(runs).values()
    assert "stopped and saved at step" in text and text.count("\n== ") == 2 and text.count("steps done") == 1


def is_worker(path, runs):
    try:
        text = path.read_bytes().decode().replace("\0", " ")
    except OSError:
        return False
    return "submitit.core._submit" in text and str(runs) in text


@pytest.mark.slow
def test_ray_through_the_death_of_a_worker(tmp_path, undisturbed):
    more = (*GRID, "--seeds", "1", "--backend", "ray", *LONGER)
    runs = tmp_path / "runs"
    process = start_sweep("fake_one", runs, *more, env=with_packages())
    job = wait_for(lambda: next((p for p in runs.glob("sweep/*.json") if "pid" in json.loads(p.read_text())), None))
    wait_for(lambda: list(runs.glob(f"{job.stem}/checkpoint_*.npz")))
    child = json.loads(job.read_text())["pid"]
    worker = int(Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(worker, signal.SIGKILL)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    assert curves(runs, "fake_one") == curves(undisturbed, "fake_one")
    assert logs(runs)[job.stem].count("\n== ") == 2, "the worker's death hit nothing"


def test_a_log_is_shown_by_its_short_path():
    job = expand("dmc_cpu", ["sac"], [1.0], 1, 1, "runs/x")[0]
    assert not is_done(job) and str(job.log) == "runs/x/sweep/CheetahRun-v1__sac__rr1__1.log"
