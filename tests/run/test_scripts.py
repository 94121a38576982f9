"""Each script as its user meets it: its flags, its help, alone in an empty folder."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys

import pytest
import tyro
from common import ROOT, SCRIPTS, SMALL, SMALL_GYMNAX, flags, load, slow_but, small, table
from site_hooks import hooks

pytestmark = pytest.mark.usefixtures("quick_programs")

COMMON = [
    "env_id", "exp_name", "seed", "num_seeds", "total_timesteps", "replay_ratio", "learning_starts", "buffer_size",
    "batch_size", "gamma", "learning_rate", "log_interval", "eval_interval", "eval_episodes",
    "checkpoint_interval", "runs_dir", "overwrite", "evaluate",
]  # fmt: skip


@pytest.mark.guards("flags")
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_documented_and_read(script, capsys):
    text = (ROOT / "algos" / f"{script}.py").read_text()
    module = load(script)
    names = [field.name for field in dataclasses.fields(module.Args)]
    assert set(COMMON) <= set(names)
    said = {name: about for name, _, _, about in hooks.arguments(text)}
    assert [*said] == names and all(len(about) > 8 for about in said.values()), said
    with pytest.raises(SystemExit) as stop:  # as `main` is called
        tyro.cli(module.Args, args=["--help"])
    assert stop.value.code == 0
    help_text = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert all("--" + name.replace("_", "-") in help_text for name in COMMON)
    assert "gradient updates per environment" in help_text
    assert all(" ".join(about.split()) in help_text for about in said.values())
    for name in names:
        in_folder = f"{{{name}" in module.RUN_NAME
        assert in_folder or re.search(rf"\bargs\.{name}\b", text), f"{name} is never read"


@pytest.mark.guards("flags")
@pytest.mark.parametrize("script", SCRIPTS)
def test_what_check_refuses(script, capsys):
    module = load(script)
    module.check(module.Args(seed=2**31 - 5, num_seeds=5))
    bad = [("seed", 2**31 - 4), ("replay_ratio", 0.0), ("gamma", 1.1), ("batch_size", 10**6)]
    for name, value in bad + [("num_atoms", 1)] * hasattr(module.Args, "num_atoms"):
        with pytest.raises(SystemExit) as stop:
            module.check(module.Args(num_seeds=5, **{name: value}) if name == "seed" else module.Args(**{name: value}))
        said = capsys.readouterr().err
        assert stop.value.code == 2 and f"--{name.replace('_', '-')}" in said and said.count("\n") == 1, said


@pytest.mark.guards("short run")
@pytest.mark.parametrize("script", slow_but("sac", "dqn"))
def test_alone_in_an_empty_folder(script, tmp_path):
    """Copied elsewhere, with only requirements.txt installed (the tests' packages are out of its reach), it runs; in a
    run in which everything happens once, it logs what its page says."""
    shutil.copy(ROOT / "algos" / f"{script}.py", tmp_path / "mine.py")
    options = small(script) | {"total_timesteps": 100, "checkpoint_interval": 0, "num_seeds": 1}
    if "jumps" in options:
        options |= {"jumps": 1}
    if small(script) is SMALL_GYMNAX and script != "dqn":
        options |= {"env_id": "CartPole-v1"}  # compiles faster
    if small(script) is SMALL:  # a task whose episodes end in time
        shutil.copy(ROOT / "tests" / "helpers" / "toy_envs.py", tmp_path)
        options |= {"env_id": "toy_envs:Count-v0"}
    cache = {name: value for name, value in os.environ.items() if name.startswith("JAX_")}
    bare = {"PATH": "/usr/bin:/bin", "HOME": "/tmp"} | cache
    done = subprocess.run(
        [sys.executable, "mine.py", *flags(**options)],
        cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "a start prints nothing that a user cannot act on"
    folder = tmp_path / "runs" / f"{options['env_id'].replace(':', '-')}__mine__rr1.5__1"
    assert (folder / "done").exists()
    tags = {re.sub(r"episode_\d+$", "episode_{i}", tag) for _, tag, _ in table(folder, timing=True)}
    text = hooks.render(hooks.page(f"algos/{script}.md"))
    assert set(hooks.documented_metrics(text)) == tags
    missing = text.replace("| `charts/updates` |", "| charts |")
    assert set(hooks.documented_metrics(missing)) == tags - {"charts/updates"}, "a missing row goes unseen"


@pytest.mark.guards("run", "sac")
def test_the_suite_cannot_hide_a_missing_requirement():
    """pytest is not where the scripts are installed: it reaches this process alone, over PYTHONPATH."""
    done = subprocess.run([sys.executable, "-c", "import pytest"], env={"PATH": "/usr/bin:/bin"}, capture_output=True)
    assert done.returncode != 0
