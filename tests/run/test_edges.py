"""A run at its edges: closed pipes and terminals, a task that fails, two runs in one process, uneven intervals."""

import ast
import importlib.metadata
import json
import math
import signal
import subprocess
import sys
import time

import pytest
from common import (
    CARTPOLE,
    ROOT,
    SCRIPTS,
    SMALL,
    assert_same,
    command,
    environment,
    load,
    refused,
    results,
    run_here,
    start,
    table,
)
from runs import idle

pytestmark = [pytest.mark.guards("run", "dqn"), pytest.mark.usefixtures("quick_programs")]

TASK = SMALL | {"env_id": "edge_envs:Steering-v0"}


@pytest.fixture
def idle_sac(sac, monkeypatch):
    """Where learning is not looked at, it need not be compiled."""
    monkeypatch.setattr(sac, "update", idle)
    yield sac
    sac.train_chunk.clear_cache()


@pytest.mark.guards("errors", "sac")
@pytest.mark.parametrize(("task", "error"), [("Refused", ConnectionRefusedError), ("Late", TimeoutError)])
def test_an_error_of_the_task_is_shown_whole(task, error, tmp_path, idle_sac, capfd):
    """It is no disk that is full: the traceback names the line of the task."""
    options = TASK | {"env_id": f"edge_envs:{task}-v0", "runs_dir": tmp_path, "num_seeds": 1}
    with pytest.raises(error) as raised:
        start(idle_sac, **options)
    assert "edge_envs.py" in str(raised.getrepr())
    said = "".join(capfd.readouterr())
    assert "cannot write" not in said and "what was saved is kept" not in said


def test_every_environment_is_closed(tmp_path, monkeypatch, idle_sac):
    """The training's and those of three evaluations of two episodes and two seeds."""
    monkeypatch.setenv("COUNTED", str(tmp_path / "counted"))
    options = TASK | {"env_id": "edge_envs:Counted-v0", "runs_dir": tmp_path / "runs", "total_timesteps": 300}
    start(idle_sac, **options)
    words = (tmp_path / "counted").read_text().split()
    assert words.count("opened") == words.count("closed") == 2 + 3 * 2 * 2


def test_a_folders_name_is_one_for_every_tool(dqn):
    """No colon and no slash, which scp, rsync and a shell take for something else."""
    for env_id in ("edge_envs:Steering-v0", "phys2d/CartPole-v1", "a b:c/d-v0"):
        name = dqn.Run(dqn.Args(env_id=env_id), 1).folder.name
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"), name


@pytest.mark.guards("run")
@pytest.mark.parametrize("script", SCRIPTS)
def test_only_imported_packages_are_asked_for_their_version(script):
    text = (ROOT / "algos" / f"{script}.py").read_text()
    imported = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    module = load(script)
    assert set(module.PACKAGES) - {"jaxlib"} <= imported
    foreign = imported - set(sys.stdlib_module_names)
    assert foreign - {"tensorboard", "tqdm", "tyro"} == set(module.PACKAGES) - {"jaxlib"}
    for name in module.PACKAGES:
        importlib.metadata.version(name)


@pytest.mark.guards("run", "sac")
def test_mujocos_version_is_recorded(sac):
    """The package's own version does not say it, and contact physics has changed between two of them."""
    version = sac.env_versions(sac.Args())["mujoco"]
    assert [int(part) for part in version.split(".")] >= [3, 5]
    assert sac.env_versions(sac.Args(env_id="edge_envs:Steering-v0")) == {}


def test_a_reader_who_leaves(tmp_path):
    """`| head -1`: all seeds are finished all the same."""
    options = CARTPOLE | {"runs_dir": tmp_path, "num_seeds": 3, "total_timesteps": 100}
    shell = " ".join(command("dqn", **options)) + " | head -1"
    done = subprocess.run(shell, shell=True, capture_output=True, text=True, env=environment(), timeout=600)
    assert "from step 0" in done.stdout and "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    assert len(list(tmp_path.glob("*/done"))) == 3


def test_a_closed_terminal_saves(tmp_path):
    options = CARTPOLE | {"runs_dir": tmp_path, "checkpoint_interval": 0, "eval_interval": 0}
    words = command("dqn", **options | {"total_timesteps": 100_000_000})
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    csv = tmp_path / "CartPole-v1__dqn__rr1.5__2" / "metrics.csv"
    while not csv.exists() or "\n50," not in csv.read_text():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    said = "".join(process.communicate(timeout=600))
    assert process.returncode == 128 + signal.SIGHUP and "the same command continues from there" in said
    newest = max(int(path.stem[-10:]) for path in csv.parent.glob("checkpoint_*.npz"))
    assert newest >= 50


@pytest.mark.guards("errors", "sac")
def test_an_infinite_reward_is_called_so(tmp_path, idle_sac, capfd):
    options = TASK | {"env_id": "edge_envs:Infinite-v0", "runs_dir": tmp_path, "learning_starts": 40, "num_seeds": 1}
    said = refused(idle_sac, capfd, **options)
    assert "charts/episodic_return was NaN or infinite" in said and "loss" not in said
    step = int(said.split("in step ")[1].split()[0])
    assert 10 <= step < 40


def test_twice_in_one_process(tmp_path, dqn, capfd):
    """As in a notebook: locks are released, and signals are the caller's again."""
    args = dqn.Args(**CARTPOLE | {"runs_dir": str(tmp_path), "total_timesteps": 100})
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    dqn.main(args)
    assert [signal.getsignal(number) for number in numbers] == before
    dqn.main(args)
    assert capfd.readouterr().out.count("is finished") == 2
    dqn.main(dqn.dataclasses.replace(args, total_timesteps=150))
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_line_for_each_evaluation(tmp_path, dqn, capfd):
    """Where no bar can be drawn, as in the log of a cluster's job."""
    said = run_here(dqn, capfd, **CARTPOLE | {"runs_dir": tmp_path})
    lines = [line for line in said.splitlines() if "evaluated with a return of" in line]
    assert [line.split(":")[0] for line in lines] == [f"step {step}" for step in (100, 200, 300, 400)]


@pytest.mark.slow
def test_the_end_is_logged_and_evaluated(tmp_path, dqn):
    """Also between two logs; and a run that is continued from there is as one that did not end."""
    start(dqn, **CARTPOLE | {"runs_dir": tmp_path / "parts", "total_timesteps": 230})
    folder = next(iter(sorted((tmp_path / "parts").iterdir())))
    last = {tag for step, tag, _ in table(folder) if step == 230}
    assert {"eval/episodic_return", "losses/q_loss", "charts/updates"} <= last
    start(dqn, **CARTPOLE | {"runs_dir": tmp_path / "parts"})
    assert not [row for row in table(folder) if row[0] == 230]
    start(dqn, **CARTPOLE | {"runs_dir": tmp_path / "whole"})
    assert_same(results(tmp_path / "parts"), results(tmp_path / "whole"))


def test_a_total_below_the_evaluations_interval(tmp_path, dqn):
    start(dqn, **CARTPOLE | {"runs_dir": tmp_path, "total_timesteps": 100, "eval_interval": 1000})
    folder = next(iter(tmp_path.iterdir()))
    assert [step for step, tag, _ in table(folder) if tag == "eval/episodic_return"] == [100]


@pytest.mark.guards("run")
@pytest.mark.parametrize("script", SCRIPTS)
def test_chunks_do_not_depend_on_divisors(script):
    """An interval without a good divisor must not make chunks of one step."""
    module = load(script)
    for interval in (1000, 1009, 4999, 5003, 7):
        for ratio in (0.25, 1, 8, 32):
            options = {"replay_ratio": ratio}
            if hasattr(module.Args, "reset_interval"):
                options["reset_interval"] = 0  # a reset ends a chunk, too
            args = module.Args(log_interval=interval, **options)
            chunk = module.chunk_length(args, 0)
            limit = max(1, module.chunk_length(module.Args(log_interval=10**6, **options), 0))
            assert 1 <= chunk <= min(interval, limit + 1) and chunk > min(interval, limit) / 2
            ends = [0]
            while ends[-1] < interval:
                ends.append(ends[-1] + module.chunk_length(args, ends[-1]))
            assert ends[-1] == interval and len(ends) - 1 == math.ceil(interval / chunk)


@pytest.mark.slow
@pytest.mark.guards("fresh", "sac")
def test_fresh_episodes(tmp_path, idle_sac, capfd):
    """--resume fresh goes on without the recorded actions, says that it is not the same, and is exact from there on."""
    options = TASK | {"runs_dir": tmp_path / "once", "total_timesteps": 200}
    start(idle_sac, **options)
    for path in tmp_path.glob("*/*/actions_*.bin"):
        path.write_bytes(b"")
    said = refused(idle_sac, capfd, **options | {"total_timesteps": 300})
    assert "--resume fresh" in said
    said = run_here(idle_sac, capfd, "--resume", "fresh", **options | {"total_timesteps": 300})
    assert "new episodes from step 200 on: not exactly" in said
    folder = next(iter(sorted((tmp_path / "once").iterdir())))
    assert sorted(path.name for path in folder.glob("actions_*")) == [
        "actions_0000000000.bin",
        "actions_0000000200.bin",
    ]
    assert json.loads((folder / "run.json").read_text())[-1]["resume"] == "fresh"
    start(idle_sac, **options | {"total_timesteps": 400})
    once = results(tmp_path / "once")
    start(idle_sac, **options | {"runs_dir": tmp_path / "whole", "total_timesteps": 400})
    assert once != results(tmp_path / "whole")

    # The same again, stopped nowhere after the fresh start: the same bits.
    again = tmp_path / "again"
    start(idle_sac, **options | {"runs_dir": again})
    start(idle_sac, "--resume", "fresh", **options | {"runs_dir": again, "total_timesteps": 400})
    twice = results(again)
    for found in (once, twice):
        for own in found.values():
            own.pop("actions_0000000000.bin", None)  # lost above
    assert_same(once, twice)


@pytest.mark.guards("errors", "dqn")
def test_fresh_is_refused_where_checkpoints_hold_the_environment(tmp_path, dqn, capfd):
    said = run_here(dqn, capfd, "--resume", "fresh", expect=2, **CARTPOLE | {"runs_dir": tmp_path / "runs"})
    assert "leave out --resume fresh" in said and not (tmp_path / "runs").exists()


def test_a_replay_is_loaded_in_place():
    """A resume needs one replay's memory, not two: blocks go straight to where they belong."""
    program = """
import importlib.util, pathlib, resource, sys, tempfile
import jax, jax.numpy as jnp, numpy as np
spec = importlib.util.spec_from_file_location("dqn", sys.argv[1])
dqn = importlib.util.module_from_spec(spec)
sys.modules["dqn"] = dqn
spec.loader.exec_module(dqn)
rows = np.random.default_rng(0).integers(0, 255, (300_000, 1000), np.uint8)
path = pathlib.Path(tempfile.mkdtemp(), "checkpoint_0000000001.npz")
np.savez(path, **{"replay/obs": rows, "stored": np.int32(len(rows))})
check = int(rows[::1000].astype(np.int64).sum())
del rows
like = {"replay": {"obs": jax.ShapeDtypeStruct((1, 400_000, 1000), jnp.uint8)}}
dqn.load([path], {"stored": jax.ShapeDtypeStruct((1,), jnp.int32)})
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
state = jax.block_until_ready(dqn.load([path], like))
status = pathlib.Path("/proc/self/status").read_text()
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
assert int(state["replay"]["obs"][0, :300_000:1000].astype(jnp.int32).sum()) == check
print((peak - before) / 400e6)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT / "algos" / "dqn.py")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.3, "the ring and some blocks; twice as much if it is copied"
