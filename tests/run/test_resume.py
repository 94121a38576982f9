"""Killed at any moment and started again, a run ends with the bits of one that was never disturbed.

KILLS=30 python -m pytest tests/run/test_resume.py
stops every script as often at random moments; for time, the default is once, and seven scripts that differ in what
they keep: recorded actions (SAC), the environment itself (DQN), frames (DQN on Atari), a tree of priorities (Rainbow),
a ring of them (DER), resets (SR-SAC, SR-SPR). What is one text in all scripts is tested on DQN, whose programs JAX
keeps.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from common import (
    CARTPOLE,
    ROOT,
    SCRIPTS,
    SMALL,
    assert_same,
    command,
    environment,
    flags,
    results,
    run,
    run_here,
    slow_but,
    small,
    start,
    table,
)
from runs import idle

pytestmark = pytest.mark.guards("resume", "dqn")

KILLS = int(os.environ.get("KILLS", 1))
STOPPED = SCRIPTS if "KILLS" in os.environ else ["sac", "sr_sac", "dqn", "rainbow", "dqn_atari", "der", "sr_spr"]
OPTIONS = {script: small(script) for script in SCRIPTS}
RESETS = {"reset_interval": 150}  # at 100, 200 and 300 steps; those of sr_spr and bbf are at 67 and 134
OPTIONS |= {script: OPTIONS[script] | RESETS for script in ("sr_sac", "sr_dqn")}
OPTIONS["dqn"] = CARTPOLE | {"total_timesteps": 4_000}  # 400 would be over before they can be stopped
NAME = "CartPole-v1__dqn__rr1.5__"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, dqn):
    """Results of a run left alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    start(dqn, **CARTPOLE | {"runs_dir": folder})
    return results(folder)


def die(script, act, count, **options):
    helper = str(ROOT / "tests" / "helpers" / "kill_inside.py")
    words = [sys.executable, helper, script, act, str(count), *flags(**options)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == -signal.SIGKILL, f"{act} {count} did not happen: {done.stdout}{done.stderr}"


@pytest.mark.slow
def test_killed_inside_its_acts(undisturbed, tmp_path, dqn, capfd):
    """One run, killed again and again where it hurts: within a checkpoint, between those of two seeds, between them and
    the clean-up and in the midst of it, in an evaluation, between and within two seeds' logs; then with half a row at
    the end of a file."""
    options = CARTPOLE | {"runs_dir": tmp_path}
    die("dqn", "savez", 2, **options)  # the very first checkpoint, of the second seed
    die("dqn", "savez", 6, **options)  # steps 0 and 50 are whole, at 100 only the first seed is
    die("dqn", "evaluate", 1, **options)
    die("dqn", "append", 2, **options)  # the first seed has logged, the second one has half a log
    # The files that take their places, of both seeds each: args.json and metrics.csv, then run.json and checkpoint.
    die("dqn", "renamed", 5, **options)
    die("dqn", "rename", 8, **options)
    die("dqn", "renamed", 8, **options)  # the clean-up is still to come
    held = [sorted(path.name for path in folder.glob("checkpoint*")) for folder in tmp_path.iterdir()]
    assert held == [[f"checkpoint_{step:010d}.npz" for step in (0, 50, 100)]] * 2
    rows = [{step for step, _, _ in table(folder)} for folder in tmp_path.iterdir()]
    assert rows == [{50, 100}] * 2
    die("dqn", "chunk", 2, **options)
    die("dqn", "unlink", 12, **options)
    held = [len([*folder.glob("checkpoint*")]) for folder in sorted(tmp_path.iterdir())]
    assert held == [2, 3], "the first seed has lost its old checkpoint, the second one has not"
    for folder in tmp_path.iterdir():
        with open(folder / "metrics.csv", "a") as file:
            file.write("350,losses/q_loss,0.5\n4")
    said = run_here(dqn, capfd, **options)
    assert "from step" in said and "from step 0" not in said
    assert_same(results(tmp_path), undisturbed)


@pytest.mark.slow
@pytest.mark.guards("resume", "sr_sac")
def test_killed_inside_a_record_of_actions(tmp_path):
    """Of the actions that a resume repeats, one seed's may be longer than the other's, and end with half an action."""
    options = OPTIONS["sr_sac"] | {"total_timesteps": 200}
    for count in (7, 4):  # half the actions of the first seed; all of the first, half of the second
        die("sr_sac", "append", count, **options, runs_dir=tmp_path / "killed")
    for folder in (tmp_path / "killed").iterdir():
        with open(folder / "actions_0000000000.bin", "ab") as file:
            file.write(b"\0" * 7)
    said = run("sr_sac", **options, runs_dir=tmp_path / "killed")
    assert "from step" in said and "from step 0" not in said
    run("sr_sac", **options, runs_dir=tmp_path / "whole")
    assert_same(results(tmp_path / "killed"), results(tmp_path / "whole"))


def newest(folder):
    """Step of the newest checkpoint that all seeds of a folder have; -1 if there is none."""
    steps = [{int(path.stem[-10:]) for path in run.glob("checkpoint_*.npz")} for run in folder.iterdir()]
    return max(set.intersection(*steps), default=-1) if steps else -1


def stopped_copy(process, runs, copy):
    """What the disk holds when the process is stopped, all its threads, in the midst of whatever it does."""
    process.send_signal(signal.SIGSTOP)
    states = None
    while states != {"T"}:
        assert process.poll() is None
        with contextlib.suppress(OSError):  # a thread that has just ended
            threads = Path(f"/proc/{process.pid}/task").glob("*/stat")
            states = {path.read_text().rpartition(")")[2].split()[0] for path in threads}
    shutil.copytree(runs, copy)
    process.send_signal(signal.SIGCONT)


@pytest.mark.guards("resume")
@pytest.mark.parametrize("script", slow_but("sac", "dqn", "dqn_atari", of=STOPPED))
def test_killed_at_random_moments(script, tmp_path, monkeypatch):
    """A run is stopped while it learns, and what its folders hold then is what SIGKILL would leave: gone on from there,
    it ends as the run itself does, which is let go."""
    if KILLS == 1 and script in ("der", "sr_spr"):  # minutes of compilation; both runs have the same programs
        monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    dice, options = random.Random(script), OPTIONS[script]
    steps = options["total_timesteps"]
    for kill in range(KILLS):
        whole, copy = tmp_path / f"whole_{kill}", tmp_path / f"copy_{kill}"
        whole.mkdir()
        words = command(script, **options, runs_dir=whole)
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=environment())
        try:
            after = dice.randrange(0, steps // 2 + 1, 50)
            while newest(whole) < after:
                assert process.poll() is None
                time.sleep(0.005)
            time.sleep(dice.uniform(0, 0.1))
            stopped_copy(process, whole, copy)
            assert process.wait() == 0
        finally:
            process.kill()
        at = newest(copy)
        assert after <= at < steps and not [*copy.glob("*/done")], "over before it could be stopped"
        said = run(script, **options, runs_dir=copy)
        assert f"from step {at:,} to {steps:,}" in said
        assert_same(results(copy), results(whole))


@pytest.mark.slow
def test_stopped_politely(tmp_path, dqn):
    """SIGTERM: the run saves, says how to go on, exits as signals do, and goes on to the same bits."""
    options = CARTPOLE | {"runs_dir": tmp_path, "checkpoint_interval": 0}
    # Until the signal has come, the run has more to do than it could.
    words = command("dqn", **options | {"total_timesteps": 10_000_000})
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment(), stderr=subprocess.DEVNULL)
    csv = tmp_path / f"{NAME}2" / "metrics.csv"
    while not csv.exists() or "\n50," not in csv.read_text():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command continues" in said
    step = newest(tmp_path)
    start(dqn, **options | {"total_timesteps": step + 100})
    start(dqn, **options | {"total_timesteps": step + 100, "runs_dir": tmp_path / "whole"})
    whole = results(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole")
    assert_same(results(tmp_path), whole)


@pytest.mark.slow
def test_more_steps_later(undisturbed, tmp_path, dqn, capfd):
    """A finished run is left alone; with a higher --total-timesteps it goes on, as if it had never ended."""
    options = CARTPOLE | {"runs_dir": tmp_path}
    die("dqn", "savez", 12, **options | {"total_timesteps": 230})  # the last checkpoint, of the second seed
    said = run_here(dqn, capfd, **options | {"total_timesteps": 230})
    assert "from step 200 to 230 with seeds [1, 2]" in said, "the first seed's run was not at its end yet"
    folder = tmp_path / f"{NAME}1"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name not in ("done", "args.json")}
    assert "is finished" in run_here(dqn, capfd, **options | {"total_timesteps": 230})
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name not in ("done", "args.json")}
    assert before == after
    run_here(dqn, capfd, **options)
    assert_same(results(tmp_path), undisturbed)


@pytest.mark.guards("run", "dqn")
def test_the_files_of_a_run(tmp_path, dqn, capfd):
    """Over two starts: TensorBoard's events are those of metrics.csv, --evaluate changes nothing, and what is damaged
    is said."""
    options = CARTPOLE | {"runs_dir": tmp_path}
    for steps in (230, 400):
        start(dqn, **options | {"total_timesteps": steps})

    # TensorBoard's events are those of metrics.csv, once each.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / f"{NAME}1"
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0}).Reload()
    rows = table(folder, timing=True)
    for tag in {tag for _, tag, _ in rows}:
        held = [(event.step, float(np.asarray(event.tensor_proto.float_val)[0])) for event in events.Tensors(tag)]
        assert held == [(step, pytest.approx(float(value), rel=1e-6)) for step, name, value in rows if name == tag]

    # --evaluate plays the newest checkpoint as the run did, prints it, and changes nothing.
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    said = run_here(dqn, capfd, "--evaluate", **options)
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for seed in (1, 2):
        rows = table(tmp_path / f"{NAME}{seed}")
        value = next(float(value) for step, tag, value in rows if (step, tag) == (400, "eval/episodic_return"))
        assert f"seed {seed}, step 400: episodic_return {value:.1f}" in said

    # A damaged newest checkpoint: said, and the one before is taken; the end is the same.
    newest = sorted(folder.glob("checkpoint_*.npz"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    said = run_here(dqn, capfd, **options | {"total_timesteps": 450})
    assert "step 400 is damaged" in said and "from step 350" in said
    start(dqn, **options | {"total_timesteps": 450, "runs_dir": tmp_path / "new"})
    assert_same(results(tmp_path), results(tmp_path / "new"))

    # All checkpoints damaged: an error, not a silent start from zero.
    for path in folder.glob("checkpoint_*.npz"):
        path.write_bytes(path.read_bytes()[:1000])
    said = run_here(dqn, capfd, expect=2, **options | {"total_timesteps": 500})
    assert "no intact checkpoint" in said and "--overwrite" in said


def test_partly_done(tmp_path, dqn, capfd):
    """Seeds that are done are left alone, the rest goes on; seeds at different steps are not mixed up."""
    options = CARTPOLE | {"runs_dir": tmp_path, "num_seeds": 1, "seed": 2, "total_timesteps": 150, "eval_interval": 0}
    start(dqn, **options)
    said = run_here(dqn, capfd, **options | {"seed": 1, "num_seeds": 3})
    assert said.count("is finished") == 1 and "with seeds [1, 3]" in said
    said = run_here(dqn, capfd, expect=2, **options | {"seed": 3, "num_seeds": 2, "total_timesteps": 200})
    assert "no intact checkpoint is common" in said
    folder = tmp_path / f"{NAME}3"
    assert json.loads((folder / "run.json").read_text())[-1]["provenance"]["seeds"] == [1, 3]
    assert (folder / "done").exists() and sorted(folder.glob("checkpoint_*"))[-1].name == "checkpoint_0000000150.npz"


@pytest.mark.slow
@pytest.mark.guards("resume", "sac")
def test_a_task_that_does_not_repeat(tmp_path, sac, capfd, monkeypatch):
    """A Gymnasium task resumes exactly where its replayed actions lead back, and says so where they do not."""
    monkeypatch.setattr(sac, "update", idle)  # what is learned is not asked
    options = SMALL | {"total_timesteps": 100, "eval_interval": 0, "learning_starts": 100, "runs_dir": tmp_path}
    for task, code in (("Count", 0), ("Clock", 2)):
        options |= {"env_id": f"toy_envs:{task}-v0"}
        start(sac, **options)
        said = run_here(sac, capfd, expect=code, **options | {"total_timesteps": 150})
        assert ("does not repeat itself" in said) == (task == "Clock")
    shutil.rmtree(tmp_path / "toy_envs-Clock-v0__sac__rr1.5__1")
    shutil.rmtree(tmp_path / "toy_envs-Clock-v0__sac__rr1.5__2")
    options |= {"env_id": "toy_envs:Count-v0", "total_timesteps": 150, "runs_dir": tmp_path / "whole"}
    start(sac, **options)
    assert_same(results(tmp_path), results(tmp_path / "whole"))
