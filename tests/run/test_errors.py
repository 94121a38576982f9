"""Bad input: one clear line, exit code 2, nothing lost and nothing half-written.

What is one text in all scripts is tested on DQN, whose programs JAX keeps.
"""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import CARTPOLE, SMALL, command, environment, refused, run, run_here, start

pytestmark = [pytest.mark.guards("errors", "dqn"), pytest.mark.usefixtures("quick_programs")]
NAME = "CartPole-v1__dqn__rr1.5__"

BAD = {
    "a task nobody knows": ({"env_id": "CheetaRun-v1"}, "CheetahRun-v1"),
    "a module nobody has": ({"env_id": "nowhere:Task-v0"}, "cannot be made"),
    "discrete actions": ({"env_id": "toy_envs:Switch-v0"}, "SAC needs a Box"),
    "discrete actions in EnvPool": ({"env_id": "Pong-v5"}, "SAC needs a Box"),
    "actions without bounds": ({"env_id": "toy_envs:Unbounded-v0"}, "with bounds"),
    "ratio 0": ({"replay_ratio": 0}, "--replay-ratio cannot be 0"),
    "ratio -1": ({"replay_ratio": -1}, "--replay-ratio cannot be -1"),
    "ratio abc": ({"replay_ratio": "abc"}, "abc"),
    "ratio nan": ({"replay_ratio": "nan"}, "--replay-ratio cannot be nan"),
    "ratio of many digits": ({"replay_ratio": 0.123456789}, "too many digits"),
    "a batch larger than the warm-up": ({"batch_size": 51}, "--batch-size 51"),
    "a batch larger than the replay": ({"buffer_size": 15}, "--batch-size 16"),
    "learning after the end": ({"learning_starts": 401}, "--learning-starts"),
    "no seeds": ({"num_seeds": 0}, "--num-seeds cannot be 0"),
    "a negative seed": ({"seed": -1}, "--seed cannot be -1"),
    "seeds beyond 32 bits": ({"seed": 2**31 - 1, "num_seeds": 2}, "--seed cannot be 2147483647"),
    "a discount above 1": ({"gamma": 1.5}, "--gamma cannot be 1.5"),
    "an uneven evaluation interval": ({"eval_interval": 75}, "multiples of --log-interval"),
    "a replay larger than memory": ({"buffer_size": 2_000_000_000}, "use fewer seeds or a smaller replay"),
    "a folder that cannot be": ({"runs_dir": "/proc/nowhere"}, "cannot write /proc/nowhere"),
}


# As their user meets them: what tyro, a library and the last lines of the file have to do with it is seen, too.
WHOLE = ("ratio abc", "a folder that cannot be", "discrete actions", "a replay larger than memory", "no seeds")


@pytest.mark.guards("errors", "sr_sac", "sac")
@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, tmp_path, sr_sac, capfd):
    options, expected = BAD[case]
    options = SMALL | {"runs_dir": tmp_path / "runs"} | options
    said = run("sr_sac", expect=2, **options) if case in WHOLE else refused(sr_sac, capfd, **options)
    assert expected in said
    assert "Traceback" not in said
    if "abc" not in case:  # tyro's own message is a box
        assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


SHORT = CARTPOLE | {"total_timesteps": 100, "eval_interval": 0}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, dqn):
    folder = tmp_path_factory.mktemp("runs")
    start(dqn, **SHORT | {"runs_dir": folder})
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folder_of_another_run(finished, dqn, capfd):
    options = SHORT | {"runs_dir": finished}
    before = contents(finished)
    said = refused(dqn, capfd, **options | {"batch_size": 20, "gamma": 0.9})
    assert "batch_size 16 (now 20)" in said and "gamma 0.99 (now 0.9)" in said and "--overwrite" in said
    assert contents(finished) == before
    said = run_here(dqn, capfd, "--evaluate", "--overwrite", expect=2, **options | {"batch_size": 20})
    assert "batch_size 16 (now 20)" in said and contents(finished) == before
    said = refused(dqn, capfd, **options | {"batch_size": 20, "seed": 2, "num_seeds": 3})
    assert "batch_size" in said and contents(finished) == before, "a folder was made before all were looked at"


def test_folder_of_something_else(finished, tmp_path, dqn, capfd):
    folder = tmp_path / f"{NAME}1"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    for words in ((), ("--overwrite",)):
        said = run_here(dqn, capfd, *words, expect=2, **CARTPOLE | {"runs_dir": tmp_path})
        assert "holds no run" in said and (folder / "thesis.txt").read_text() == "precious"
    assert not (tmp_path / f"{NAME}2").exists()


def test_overwrite(finished, tmp_path, dqn, capfd):
    """--overwrite starts anew, with other arguments if so wished."""
    shutil.copytree(finished, tmp_path / "runs")
    options = SHORT | {"runs_dir": tmp_path / "runs", "batch_size": 20}
    said = run_here(dqn, capfd, "--overwrite", **options)
    assert "from step 0 to 100" in said
    assert run_here(dqn, capfd, **options).count("is finished") == 2
    assert '"batch_size": 20' in (tmp_path / "runs" / f"{NAME}1" / "args.json").read_text()


def test_overwrite_of_a_run_that_goes_on(finished, tmp_path, dqn, capfd):
    """One folder of two is held by another process: neither loses anything."""
    shutil.copytree(finished, tmp_path / "runs")
    before = contents(tmp_path / "runs")
    held = os.open(tmp_path / "runs" / f"{NAME}2", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    said = run_here(dqn, capfd, "--overwrite", expect=2, **SHORT | {"runs_dir": tmp_path / "runs"})
    os.close(held)
    assert "another process is at work in" in said and contents(tmp_path / "runs") == before


def test_a_checkpoint_of_another_version(finished, tmp_path, dqn, capfd):
    """One that lacks an array is not taken for a damaged one, which the next start would delete."""
    shutil.copytree(finished, tmp_path / "runs")
    newest = sorted((tmp_path / "runs" / f"{NAME}2").glob("checkpoint_*.npz"))[-1]
    arrays = dict(np.load(newest))
    del arrays["stored"]
    np.savez(newest, **arrays)
    before = contents(tmp_path / "runs")
    said = refused(dqn, capfd, **SHORT | {"runs_dir": tmp_path / "runs", "total_timesteps": 200})
    assert "rr1.5__2 is of another version" in said and len(said.strip().splitlines()) == 1
    assert contents(tmp_path / "runs") == before


@flax.struct.dataclass
class Tiny:  # a State with two seeds and a ring of nine rows
    step: jax.Array
    env: jax.Array
    key: jax.Array
    learner: dict
    replay: dict


SHAPES = jax.eval_shape(
    lambda: Tiny(
        step=jnp.int32(0),
        env=jnp.zeros(2),
        key=jax.random.split(jax.random.key(0)),
        learner={"bias": jnp.zeros((2, 5))},
        replay={"reward": jnp.zeros((2, 9)), "obs": jnp.zeros((2, 9, 4))},
    )
)


def saved_by_hand(script, runs_dir, size, rows, obs=4):
    """Checkpoints of two seeds with a bias and a ring of these shapes -> their runs."""
    runs = [script.Run(script.Args(runs_dir=str(runs_dir)), seed) for seed in (1, 2)]
    for own in runs:
        own.folder.mkdir()
        arrays = {
            "env": np.float32(0),
            "key": np.array([0, own.seed], np.uint32),
            "learner/bias": np.full(size, 6.0 + own.seed, np.float32),
            "replay/reward": np.full(rows, own.seed, np.float32),
            "replay/obs": np.ones((3, obs), np.float32),
        }
        np.savez(own.folder / "checkpoint_0000000003.npz", **arrays)
    return runs


@pytest.mark.parametrize("size, rows, named", [
    ((4,), (3,), "learner/bias"), ((1,), (3,), "learner/bias"), ((6,), (3,), "learner/bias"),
    ((5, 1), (3,), "learner/bias"), ((), (3,), "learner/bias"),
    ((5,), (3, 2), "replay/reward"), ((5,), (10,), "replay/reward"),
])  # fmt: skip
def test_a_checkpoint_with_other_shapes(dqn, tmp_path, capsys, size, rows, named):
    """As of a copy in which a layer was widened: only what a ring holds may be less, nothing is filled up."""
    runs = saved_by_hand(dqn, tmp_path, size, rows)
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as error:
        dqn.restore(SimpleNamespace(replay=None), runs, SHAPES, tuple(SHAPES.__dataclass_fields__))
    said = capsys.readouterr().err
    assert error.value.code == 2 and "__1 is of another version" in said and named in said, said
    assert contents(tmp_path) == before


def test_rows_of_another_size(dqn, tmp_path, capsys):
    """A row that is shorter would fit into the ring, and leave zeros in it."""
    runs = saved_by_hand(dqn, tmp_path, (5,), (3,), obs=3)
    with pytest.raises(SystemExit):
        dqn.restore(SimpleNamespace(replay=None), runs, SHAPES, tuple(SHAPES.__dataclass_fields__))
    assert "replay/obs" in capsys.readouterr().err


def test_a_checkpoint_with_its_shapes(dqn, tmp_path):
    runs = saved_by_hand(dqn, tmp_path, (5,), (3,))
    found = dqn.restore(SimpleNamespace(replay=None), runs, SHAPES, tuple(SHAPES.__dataclass_fields__))
    assert found.step == 3 and jax.random.key_data(found.key).tolist() == [[0, 1], [0, 2]]
    assert found.learner["bias"].tolist() == [[7.0] * 5, [8.0] * 5]
    assert found.replay["reward"].tolist() == [[1.0] * 3 + [0.0] * 6, [2.0] * 3 + [0.0] * 6]
    only = dqn.restore(SimpleNamespace(replay=None), runs, SHAPES, fields=("learner",))
    assert only.learner["bias"].tolist() == found.learner["bias"].tolist() and only.replay is None


def test_nothing_to_evaluate(tmp_path, dqn, capfd):
    said = run_here(dqn, capfd, "--evaluate", expect=2, **CARTPOLE | {"runs_dir": tmp_path / "runs"})
    assert "no checkpoint to evaluate" in said and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_two_processes_on_one_folder(tmp_path):
    options = CARTPOLE | {"runs_dir": tmp_path, "total_timesteps": 100_000_000}
    process = subprocess.Popen(
        command("dqn", **options), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not list(tmp_path.glob("*__2/checkpoint*")):
            time.sleep(0.1)
            assert process.poll() is None
        said = run("dqn", expect=2, **options)
        assert "another process" in said
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.guards("errors", "sac")
def test_a_loss_that_explodes(tmp_path, sac, capfd):
    """NaN or infinity: the step and the seed are named, and the last good checkpoint stays."""
    options = SMALL | {"env_id": "toy_envs:Overflow-v0", "runs_dir": tmp_path, "eval_interval": 0}
    said = refused(sac, capfd, **options)
    step = int(re.search(r"in step (\d+) of seed \d \S+ was NaN or infinite", said)[1])
    assert 120 < step <= 150 and "step 100 is kept" in said and "Traceback" not in said
    folder = tmp_path / "toy_envs-Overflow-v0__sac__rr1.5__1"
    assert max(path.name for path in folder.glob("checkpoint*")) == "checkpoint_0000000100.npz"


def test_a_full_disk(finished, tmp_path, dqn, capfd):
    """No room for a checkpoint: the last good one is kept and named, nothing half-written stays, the run goes on."""
    shutil.copytree(finished, tmp_path / "runs")
    options = SHORT | {"runs_dir": tmp_path / "runs", "total_timesteps": 200}
    size = max(path.stat().st_size for path in (tmp_path / "runs").rglob("checkpoint*"))
    limited = ["bash", "-c", f'ulimit -f {size // 2048}; exec "$@"', "-", *command("dqn", **options)]
    no_cache = environment(JAX_ENABLE_COMPILATION_CACHE="false")  # its files would be as limited
    done = subprocess.run(limited, capture_output=True, text=True, env=no_cache, timeout=600)
    assert done.returncode == 2, done.stderr
    assert "what was saved is kept" in done.stderr and "Traceback" not in done.stderr
    for folder in (tmp_path / "runs").iterdir():
        names = sorted(path.name for path in folder.iterdir())
        assert not [name for name in names if name.endswith(".tmp")] and "checkpoint_0000000100.npz" in names
    assert "from step 100 to 200" in run_here(dqn, capfd, **options)
