"""What the tests share: the scripts as modules, small arguments, and a way to run a script as its user does."""

import csv
import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = sorted(path.stem for path in (ROOT / "algos").glob("*.py"))

# Small enough for seconds, yet all happens: logs, evaluations, checkpoints, a ring that comes round, resets.
SMALL = {
    "env_id": "CartpoleSwingup-v1",
    "num_seeds": 2,
    "total_timesteps": 400,
    "replay_ratio": 1.5,
    "learning_starts": 50,
    "buffer_size": 300,
    "batch_size": 16,
    "hidden_dim": 8,
    "log_interval": 50,
    "eval_interval": 100,
    "eval_episodes": 2,
    "checkpoint_interval": 50,
}


SMALL_GYMNAX = SMALL | {
    "env_id": "Breakout-MinAtar",
    "exploration_steps": 100,
    "target_interval": 40,
    "eval_steps": 200,
}


SMALL_ATARI = SMALL | {
    "env_id": "Breakout-v5",
    "total_timesteps": 200,
    "buffer_size": 120,
    "batch_size": 8,
    "channels": 2,
    "target_interval": 40,
    "max_episode_steps": 60,
    "final_eval_episodes": 3,
}


# A task whose programs are compiled fast, and kept: for tests of what is one text in all scripts.
CARTPOLE = SMALL_GYMNAX | {"env_id": "CartPole-v1"}

# SPR and its children: resets at 67 and 134 steps; wider nets are too slow for a test.
SMALL_SPR = SMALL_ATARI | {"exploration_steps": 50, "hidden_dim": 8, "jumps": 2, "n_step": 3}
del SMALL_SPR["target_interval"]
SMALL_SR_SPR = SMALL_SPR | {"reset_interval": 100, "resets_end": 200}
SMALL_BBF = SMALL_SR_SPR | {"width": 1, "batch_size": 2, "anneal_updates": 50}
del SMALL_BBF["channels"]


def small(script):
    """Small arguments for a script: on gymnax, on Atari, or on a pool of other tasks."""
    text = (ROOT / "algos" / f"{script}.py").read_text()
    on_atari = {"spr": SMALL_SPR, "sr_spr": SMALL_SR_SPR, "bbf": SMALL_BBF}.get(script, SMALL_ATARI)
    return SMALL_GYMNAX if "gymnax.make" in text else on_atari if "84, 84" in text else SMALL


def slow_but(*fast, of=SCRIPTS):
    """Parameters of a test: these scripts in `make test`, the others in `make test-all` alone."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in of]


def load(name):
    """A script as a module, from its file alone."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "algos" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def flags(**options):
    """Options as a command line's words."""
    words = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, str(value)]
    return words


def command(script, *words, **options):
    return [sys.executable, str(ROOT / "algos" / f"{script}.py"), *words, *flags(**options)]


def environment(**more):
    """The user's environment, without the tests' own packages but with their Gymnasium tasks."""
    return os.environ | {"PYTHONPATH": str(Path(__file__).parent)} | more


def run(script, *words, expect=0, **options):
    """Runs a script to its end -> what it printed; `expect` is its exit code."""
    done = subprocess.run(
        command(script, *words, **options), capture_output=True, text=True, env=environment(), timeout=600
    )
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def run_tool(name, *words, expect=0, with_packages=False):
    """Runs `python -m NAME` from elsewhere than the project's folder -> what it printed.

    with_packages: the tool needs more than requirements.txt, and finds it among the tests' own packages.
    """
    paths = [str(ROOT), environment()["PYTHONPATH"]]
    if with_packages:
        paths += [folder for folder in sys.path if folder.endswith(".venv/test")]
    path = os.pathsep.join(paths)
    done = subprocess.run(
        [sys.executable, "-m", name, *words],
        capture_output=True, text=True, env=environment(PYTHONPATH=path), timeout=600,
    )  # fmt: skip
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def start(script, *words, **options):
    """Runs a script's module to its end, with a command line's words, in this process."""
    script.main(importlib.import_module("tyro").cli(script.Args, args=[*words, *flags(**options)]))


def run_here(script, capfd, *words, expect=0, **options):
    """As `run`, of a script's module in this process: without the time that its imports take."""
    capfd.readouterr()
    code = 0
    try:
        start(script, *words, **options)
    except SystemExit as stop:
        code = stop.code
    said = "".join(capfd.readouterr())
    assert code == expect, f"exit code {code}\n{said}"
    return said


def refused(script, capfd, **options):
    """What a script says of arguments that it must refuse."""
    return run_here(script, capfd, expect=2, **options)


def table(folder, timing=False):
    """metrics.csv as [(step, tag, text of the value)]; without timing values, which no two runs share."""
    with open(Path(folder) / "metrics.csv") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["step", "tag", "value"]
    return [(int(step), tag, value) for step, tag, value in rows[1:] if timing or tag != "charts/SPS"]


def results(runs_dir):
    """All that must be equal to the bit between two runs of one command: folder -> name -> bytes or rows."""
    found = {}
    for folder in sorted(path.parent for path in Path(runs_dir).glob("*/args.json")):
        newest = sorted(folder.glob("checkpoint_*.npz"))[-1]
        with np.load(newest) as arrays:
            own = {name: (arrays[name].dtype.str, arrays[name].shape, arrays[name].tobytes()) for name in arrays.files}
        own |= {
            "checkpoint": newest.name,
            "metrics.csv": table(folder),
            **{path.name: path.read_bytes() for path in folder.glob("actions_*")},
        }
        own |= {"args.json": (folder / "args.json").read_bytes(), "done": (folder / "done").read_bytes()}
        found[folder.name] = own
    return found


def assert_same(one, two):
    assert one.keys() == two.keys()
    for folder in one:
        assert one[folder].keys() == two[folder].keys()
        different = [name for name in one[folder] if one[folder][name] != two[folder][name]]
        assert not different, f"{folder}: {different}"
