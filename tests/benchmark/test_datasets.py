"""benchmark.datasets: the layout read as others write it, runs' replays there and back, and what is refused."""

import gzip
import importlib.util
import json
import shutil
import sys

import jax
import numpy as np
import pytest
from atari_runs import play_stream
from common import ROOT, SMALL, SMALL_ATARI, SMALL_GYMNAX, run_tool
from common import run as script_run

from benchmark.datasets import export as runs
from benchmark.datasets import layout, read, transitions
from benchmark.datasets.__main__ import Args, inspect, main

needs_minari = pytest.mark.skipif(not importlib.util.find_spec("minari"), reason="needs requirements-minari.txt")


def refused(capsys, call, *given, **options):
    """What is said of what must be refused: one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        call(*given, **options)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    return said


def export(run, folder, **options):
    main(Args("export", str(run), str(folder), **options))


def import_(name, folder):
    main(Args("import", name, str(folder)))


# -------------------------------------------------------------------------------------------------------- The layout

# Three episodes as a ring of 12 records logs them, each after three records of zeros: what a record's frame is filled
# with, action, reward, terminal. The ring is copied one record before it is full, and a last time at the end.
EPISODES = [
    [(11, 1, 0, 0), (12, 2, 1, 0), (13, 3, 0, 0), (14, 1, -1, 1)],
    [(21, 2, 0, 0), (22, 3, 1, 0), (23, 1, 1, 1)],
    [(31, 3, 0, 0), (32, 2, 0, 0), (33, 1, 1, 0), (34, 2, 0, 0)],
]
NOTHING = (0, 0, 0, 0)
RECORDS = [record for episode in EPISODES for record in [NOTHING] * 3 + episode]
GARBAGE = (99, 9, 9, 1)
FIRST = [*RECORDS[:11], GARBAGE]  # 11 records added: the last place was never written
LAST = [*RECORDS[12:20], *RECORDS[8:11], RECORDS[11]]  # the places from 8 on hold what is older
# Of a ring with stacks of 4 and a next place of 11 or 8: the place before it and the four from it on.
COUNTERS = {0: (11, [10, 11, 0, 1, 2]), 1: (8, [7, 8, 9, 10, 11])}

# state, action, reward, terminal, next state (of a terminal transition it is never looked at)
IN_FIRST = [
    ((0, 0, 0, 11), 1, 0, False, (0, 0, 11, 12)),
    ((0, 0, 11, 12), 2, 1, False, (0, 11, 12, 13)),
    ((0, 11, 12, 13), 3, 0, False, (11, 12, 13, 14)),
    ((11, 12, 13, 14), 1, -1, True, None),
]
ACROSS = [
    ((0, 0, 0, 21), 2, 0, False, (0, 0, 21, 22)),
    ((0, 0, 21, 22), 3, 1, False, (0, 21, 22, 23)),
    ((0, 21, 22, 23), 1, 1, True, None),
]
IN_LAST = [
    ((0, 0, 0, 31), 3, 0, False, (0, 0, 31, 32)),
    ((0, 0, 31, 32), 2, 0, False, (0, 31, 32, 33)),
    ((0, 31, 32, 33), 1, 1, False, (31, 32, 33, 34)),
]


def write_released(folder, numbers=(0, 1), pickles=False):
    """Blocks by hand, as the released data have them."""
    folder.mkdir()
    for number, records in zip(numbers, (FIRST, LAST), strict=True):
        frames, actions, rewards, terminals = map(np.array, zip(*records, strict=True))
        add_count, invalid = COUNTERS[number % 2]
        arrays = {
            "$store$_observation": np.uint8(frames)[:, None, None] * np.ones((2, 3), np.uint8),
            "$store$_action": np.int32(actions),
            "$store$_reward": np.float32(rewards),
            "$store$_terminal": np.uint8(terminals),
            "add_count": np.array(add_count),
            "invalid_range": np.array(invalid),
        }
        for name, array in arrays.items():
            with gzip.open(folder / f"{name}_ckpt.{number}.gz", "wb") as file:
                np.save(file, array)
        if pickles:  # newer logs have a seventh file, which nobody needs to trust
            with gzip.open(folder / f"episode_end_indices_ckpt.{number}.gz", "wb") as file:
                file.write(b"a pickle")
    return folder


def listed(data):
    """Transitions as the lists above have them."""
    drawn = transitions(data)
    frames = [drawn[name][..., 0, 0] for name in ("obs", "next_obs")]
    for name in ("obs", "next_obs"):
        assert (drawn[name] == drawn[name][..., :1, :1]).all()
    found = []
    for obs, action, reward, terminal, next_obs in zip(
        frames[0], drawn["action"], drawn["reward"], drawn["terminal"], frames[1], strict=True
    ):
        states = tuple(obs.tolist()), None if terminal else tuple(next_obs.tolist())
        found.append((states[0], int(action), int(reward), bool(terminal), states[1]))
    return found


@pytest.mark.parametrize("pickles", [False, True])
def test_a_dataset_written_by_hand(tmp_path, pickles):
    """Six or seven files, suffix 0, padding, terminals within stacks, a ring's seams: joined, and each block alone."""
    folder = write_released(tmp_path / "data", pickles=pickles)
    data = read(folder)
    assert listed(data) == IN_FIRST + ACROSS + IN_LAST
    assert data["observation"][:, 0, 0].tolist() == [frame for frame, *_ in RECORDS[:20]] and data["stack"] == 4
    assert not data["truncated"].any()
    assert listed(read(folder, blocks=[0])) == IN_FIRST
    assert listed(read(folder, blocks=[1])) == IN_LAST
    inspect(folder)


def test_blocks_between_which_one_is_missing_are_not_joined(tmp_path):
    folder = write_released(tmp_path / "data", numbers=(0, 3))
    assert listed(read(folder)) == IN_FIRST + IN_LAST


def test_states_of_one_observation(tmp_path):
    """Every record is a step, but for those that the first block names, whose neighbors are not there, and the last."""
    data = read(write_released(tmp_path / "data"), stack=1)
    assert data["valid"].tolist() == [False] * 3 + [True] * 16 + [False]
    assert transitions(data)["obs"].shape == (16, 2, 3)


def test_seams_of_a_ring(tmp_path):
    """A copy of a ring in the middle of its second round: in the order of time, without the places that it names."""
    folder = write_released(tmp_path / "data")
    with gzip.open(folder / "add_count_ckpt.0.gz", "wb") as file:
        np.save(file, np.array(23))
    with gzip.open(folder / "invalid_range_ckpt.0.gz", "wb") as file:
        np.save(file, np.array([10, 11, 0, 1, 2, 3]))
    data = read(folder, blocks=[0])
    assert data["observation"][:, 0, 0].tolist() == [99] + [frame for frame, *_ in RECORDS[:11]]
    assert listed(data) == IN_FIRST[1:]


def test_what_reading_refuses(tmp_path, capsys):
    whole = write_released(tmp_path / "whole")

    def changed(name, content):
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        path = folder / name
        if content is None:
            path.unlink()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            with gzip.open(path, "wb") as file:
                np.save(file, content)
        return refused(capsys, read, folder)

    name = "$store$_observation_ckpt.1.gz"
    content = (whole / name).read_bytes()
    assert name in changed(name, content[:-20]) and name in changed(name, content[: len(content) // 2])
    assert name in changed(name, b"no gzip") and name in changed(name, gzip.compress(b"no array"))
    assert f"lacks {name}" in changed(name, None)
    assert "different lengths" in changed(name, np.zeros((11, 2, 3), np.uint8))
    assert "in other blocks" in changed(name, np.zeros((12, 3, 3), np.uint8))
    assert "in other blocks" in changed("$store$_action_ckpt.1.gz", np.zeros((12, 2), np.float32))
    assert "different lengths" in changed("$store$_reward_ckpt.0.gz", np.zeros(11, np.float32))
    assert "not one number" in changed("add_count_ckpt.0.gz", np.zeros(2, int))
    assert "holds no block" in refused(capsys, read, tmp_path)
    assert "there is no folder" in refused(capsys, read, tmp_path / "nothing")
    assert "no block 7" in refused(capsys, read, whole, blocks=[7])
    (whole / "dataset.json").write_text('{"format": 1, "env_id": "Asterix-MinAtar"}')
    assert "of Asterix-MinAtar, not of Breakout" in refused(capsys, read, whole, env_id="Breakout-MinAtar")
    (whole / "dataset.json").write_text('{"format": 2}')
    assert "format 2" in refused(capsys, read, whole)
    (whole / "dataset.json").write_text('{"format": ')
    assert "damaged" in refused(capsys, read, whole)


# -------------------------------------------------------------------------------------------------------- Whole runs


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
    """A script and its flags -> the folder of its run, made once, in this process."""
    made = {}
    runs_dir = tmp_path_factory.mktemp("runs")

    def make(script, **options):
        key = (script.__name__, *sorted(options.items()))
        if key not in made:
            names = script.Args.__dataclass_fields__
            given = {name: value for name, value in options.items() if name in names}
            args = script.Args(**given, runs_dir=str(runs_dir), exp_name=f"{script.__name__}{len(made)}")
            with pytest.MonkeyPatch.context() as patch:
                path = str(ROOT / "algos" / f"{script.__name__}.py")
                patch.setattr(sys, "argv", [path, "--and", "flags"])
                patch.setattr(script, "__file__", path)
                jax.config.update("jax_disable_most_optimizations", True)  # the run is short: most of it is compilation
                try:
                    script.main(args)
                finally:
                    jax.config.update("jax_disable_most_optimizations", False)
            (made[key],) = runs_dir.glob(f"*{args.exp_name}__*")
        return made[key]

    return make


ONE = {"num_seeds": 1, "checkpoint_interval": 0}
BREAKOUT = SMALL_GYMNAX | ONE | {"buffer_size": 400}
COUNT = SMALL | ONE | {"env_id": "toy_envs:Count-v0", "buffer_size": 400}


def replay_of(folder):
    """The rows of a run's replay, the oldest first."""
    path = max(folder.glob("checkpoint_*.npz"))
    with np.load(path) as arrays:
        stored = int(arrays["stored"])
        rows = {name.removeprefix("replay/"): arrays[name] for name in arrays.files if name.startswith("replay/")}
    size = len(rows["action"])
    return {name: np.roll(array, -stored % size, 0) for name, array in rows.items()}, stored


def assert_is_replay(folder, rows):
    """What may be drawn from a dataset is a replay's rows, one for one."""
    data = read(folder)
    drawn = transitions(data)
    goes_on = ~rows["terminated"].astype(bool)
    assert np.array_equal(drawn["obs"], rows["obs"])
    assert np.array_equal(drawn["next_obs"][goes_on], rows["next_obs"][goes_on])
    assert np.array_equal(drawn["action"], rows["action"])
    assert np.array_equal(drawn["reward"], rows["reward"])
    assert np.array_equal(drawn["terminal"], ~goes_on)
    return data, drawn


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_of_dqn(dqn, make_run, tmp_path, capsys):
    """Bits, one byte each in the layout; the same bytes each time; what dataset.json says."""
    run = make_run(dqn, **BREAKOUT)
    export(run, tmp_path / "one")
    rows, stored = replay_of(run)
    data, drawn = assert_is_replay(tmp_path / "one", rows)
    assert stored == 400 and rows["terminated"].sum() > 10
    assert data["observation"].dtype == np.uint8 and data["action"].dtype == np.int32
    assert drawn["truncated"].tolist() == [False] * 399 + [not rows["terminated"][-1]]

    export(run, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert "exists already" in refused(capsys, export, run, tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]

    info = layout.read_info(tmp_path / "one", env_id="Breakout-MinAtar")
    assert info["updates"] == int(400 * 1.5) - int(49 * 1.5) and info["transitions"] == info["steps"] == 400
    assert info["observation"] == {"kind": "bits", "shape": [10, 10, 4], "dtype": "uint8"}
    assert info["action"] == {"kind": "discrete", "count": 6}
    assert info["command"].endswith("dqn.py --and flags") and info["script"] == "dqn"
    assert [step for step, _ in info["returns"]["evaluation"]] == [100, 200, 300, 400]
    assert sum(count for *_, count in info["returns"]["training"]) == info["terminated"]
    assert info["final_score"] == info["returns"]["evaluation"][-1][1] and info["random_score"] == 0.5
    assert len({*info["sha256"]}) == len(contents(tmp_path / "one")) - 1
    capsys.readouterr()
    inspect(str(tmp_path / "one"))
    assert "Breakout-MinAtar, seed 1, by dqn" in capsys.readouterr().out


def test_blocks(dqn, make_run, tmp_path):
    """However it is cut, all blocks together are the whole; one alone lacks what lies beyond its ends."""
    run = make_run(dqn, **BREAKOUT)
    rows, _ = replay_of(run)
    for block_records in (0, 7, 100, 5000):
        folder = tmp_path / f"{block_records}"
        export(run, folder, block_records=block_records)
        assert_is_replay(folder, rows)
    count = len(read(tmp_path / "5000")["valid"])
    for block_records, size in [(0, -(-count // 50)), (7, 7), (100, 100), (5000, 5000)]:
        assert len([*(tmp_path / f"{block_records}").glob("*action*")]) == -(-count // size)
    part = read(tmp_path / "7", blocks=[2, 3, 9])
    whole = read(tmp_path / "5000")
    expected = np.concatenate([whole["observation"][14:28], whole["observation"][63:70]])
    assert np.array_equal(part["observation"], expected)
    last = np.array([13, 20])
    assert (part["valid"][last] == part["terminal"][last]).all() and part["valid"].sum() >= 19


def test_a_ring_that_came_round(dqn, make_run, tmp_path, capsys):
    """Refused, since it is not the whole run; what is left of it is told from the oldest row on."""
    run = make_run(dqn, **BREAKOUT | {"buffer_size": 300, "total_timesteps": 450})
    said = refused(capsys, export, run, tmp_path / "data")
    assert "lost its first 150 rows" in said and "--buffer-size 450" in said and not [*tmp_path.iterdir()]
    export(run, tmp_path / "data", partial=True)
    rows, stored = replay_of(run)
    assert stored == 450 and len(rows["action"]) == 300
    assert_is_replay(tmp_path / "data", rows)
    assert layout.read_info(tmp_path / "data")["whole_run"] is False


def test_a_run_of_sac(sac, make_run, tmp_path):
    """Float observations, actions in [-1, 1], and episodes that a limit cuts: their last state has a record."""
    run = make_run(sac, **COUNT)
    export(run, tmp_path / "data")
    rows, _ = replay_of(run)
    data, drawn = assert_is_replay(tmp_path / "data", rows)
    assert data["observation"].dtype == np.float32 and data["action"].shape[1:] == (2,)
    # The task: an even episode is terminated after 7 steps, an odd one is cut after 10; the observation says so.
    episode, step, _ = drawn["obs"].T
    assert np.array_equal(drawn["terminal"], (episode % 2 == 0) & (step == 6))
    assert np.array_equal(drawn["truncated"][:-1], ((episode % 2 == 1) & (step == 9))[:-1])
    assert drawn["truncated"].sum() > 15 and drawn["next_obs"][drawn["truncated"]][:-1, 1].tolist() == [10] * (
        drawn["truncated"].sum() - 1
    )
    info = layout.read_info(tmp_path / "data")
    assert info["action"] == {"kind": "continuous", "shape": [2], "low": -1.0, "high": 1.0}
    assert info["random_score_of"].startswith("this run's") and info["unseen_cuts"] == 0
    totals = [rows["reward"][episode == number].sum() for number in range(5)]  # 42 steps are before learning starts
    assert info["random_score"] == pytest.approx(np.mean(totals))


def test_a_replay_that_does_not_hang_together(sac, make_run, tmp_path, capsys):
    """More places at which a transition does not lead to the next one than episodes were logged."""
    run = tmp_path / make_run(sac, **COUNT).name
    shutil.copytree(make_run(sac, **COUNT), run)
    path = run / "checkpoint_0000000400.npz"
    with np.load(path) as arrays:
        arrays = dict(arrays)
    arrays["replay/obs"][103] += 1
    np.savez(path, **arrays)
    assert "do not follow one another" in refused(capsys, export, run, tmp_path / "data")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "damaged" in refused(capsys, export, run, tmp_path / "data")
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    path.write_bytes(damaged)
    assert "damaged" in refused(capsys, export, run, tmp_path / "data")


def test_an_unfinished_run(dqn, make_run, tmp_path, capsys):
    run = tmp_path / make_run(dqn, **BREAKOUT).name
    shutil.copytree(make_run(dqn, **BREAKOUT), run)
    (run / "done").unlink()
    assert "not finished" in refused(capsys, export, run, tmp_path / "data")
    export(run, tmp_path / "data", partial=True)
    assert_is_replay(tmp_path / "data", replay_of(run)[0])
    assert "holds no run" in refused(capsys, export, tmp_path, tmp_path / "more")


@pytest.mark.slow
def test_a_fresh_resume_cuts_an_episode(sac, tmp_path):
    """The transitions before and after it do not hang together, and that is no damage."""
    options = COUNT | {"runs_dir": tmp_path, "exp_name": "fresh"}
    script_run("sac", **options | {"total_timesteps": 205})
    script_run("sac", **options | {"resume": "fresh"})
    (folder,) = tmp_path.glob("*fresh*")
    export(folder, tmp_path / "data")
    _, drawn = assert_is_replay(tmp_path / "data", replay_of(folder)[0])
    episode, step, _ = drawn["obs"][drawn["truncated"]].T
    cut = step[:-1] != 9
    assert cut.sum() == 1 and step[:-1][cut] == 6 and episode[:-1][cut] == 21
    assert layout.read_info(tmp_path / "data")["unseen_cuts"] == 0


def test_what_the_command_refuses(tmp_path, capsys):
    new = str(tmp_path / "new")
    cases = {
        Args("export", "run"): "needs the dataset's new folder",
        Args("export", "run", str(tmp_path)): "exists already",
        Args("export", str(tmp_path), new): "holds no run",
        Args("export", "run", new, block_records=-1): "--block-records",
        Args("import", "ours/any-v0", new, partial=True): "--partial",
        Args("inspect", new, new): "nothing else",
        Args("inspect", new): "there is no folder",
    }
    for args, expected in cases.items():
        assert expected in refused(capsys, main, args)
    assert not [*tmp_path.iterdir()]


def test_changed_data_and_commands(dqn, make_run, tmp_path):
    """A file that is not the one that was written; as the user meets it."""
    export(make_run(dqn, **BREAKOUT), tmp_path / "data", block_records=100)
    assert "Breakout-MinAtar" in run_tool("benchmark.datasets", "inspect", str(tmp_path / "data"))
    layout.write_array(tmp_path / "data" / layout.file_name("reward", 2), np.zeros(100, np.float32))
    said = run_tool("benchmark.datasets", "inspect", str(tmp_path / "data"), expect=2)
    assert "SHA-256" in said and said.count("\n") == 1
    (tmp_path / "data" / layout.file_name("successor", 1)).unlink()
    said = run_tool("benchmark.datasets", "inspect", str(tmp_path / "data"), expect=2)
    assert "lacks $store$_successor_ckpt.1.gz" in said


# ------------------------------------------------------------------------------------------------------------- Atari

ASLEEP = {"env_id": "Breakout-v5", "channels": 1, "hidden_dim": 4, "batch_size": 8, "learning_starts": 1000}


def assert_holds(folder, rows):
    """What may be drawn are these rows (stack, action, reward, terminated, truncated, stack after it)."""
    data = read(folder)
    drawn = transitions(data)
    assert len(drawn["action"]) == len(rows) and data["stack"] == 4
    for k, (obs, action, reward, terminated, truncated, next_obs) in enumerate(rows):
        assert np.array_equal(drawn["obs"][k], obs), k
        assert (drawn["action"][k], drawn["reward"][k], drawn["terminal"][k]) == (action, reward, terminated), k
        assert drawn["truncated"][k] == (not terminated and (truncated or k == len(rows) - 1)), k
        assert terminated or np.array_equal(drawn["next_obs"][k], next_obs), k
    return data


@pytest.mark.parametrize("size", [300, 120])
def test_frames(dqn_atari, tmp_path, monkeypatch, size):
    """A stream of games with lost lives, games over, cut games and fresh resumes, as plain Python saw it. A whole
    replay, and a ring that came round, whose first three frames have no whole stack."""
    steps = 200
    options = ASLEEP | {"total_timesteps": 1000, "buffer_size": size}
    args = dqn_atari.Args(**options)
    state, _, rows = play_stream(dqn_atari, args, 5, steps, seams=(90, 140))
    folder = tmp_path / "run"
    folder.mkdir()
    leaves = dqn_atari.named_leaves({"replay": state.replay, "stored": state.stored, "obs": state.obs})
    stored = int(state.stored)
    arrays = {name: np.asarray(x)[:stored] if "replay" in name else np.asarray(x) for name, x in leaves.items()}
    np.savez(folder / f"checkpoint_{steps:010d}.npz", **arrays)
    session = {"command": f"{ROOT}/algos/dqn_atari.py", "commit": "", "from_step": 0}
    (folder / "run.json").write_text(json.dumps([session]))
    (folder / "args.json").write_text(json.dumps({"exp_name": "dqn_atari"} | options))
    (folder / "done").write_text(json.dumps({"step": steps}))
    (folder / "metrics.csv").write_text("step,tag,value\n")
    export(folder, tmp_path / "data", partial=size < stored)
    assert stored == len(rows) and {row[3:5] for row in rows if row} >= {(True, False), (False, True)}
    left = rows[3 - size :] if size < stored else rows
    data = assert_holds(tmp_path / "data", [row for row in left if row])
    begins = np.flatnonzero(data["valid"])[[(row[0][:3] == 0).all() for row in left if row]]
    assert all(not data["observation"][i - 3 : i].any() for i in begins) and len(begins) > 5
    if size > stored:  # a block alone has what its records alone can tell
        alone = sum(int(read(tmp_path / "data", blocks=[number])["valid"].sum()) for number in range(3))
        assert alone < read(tmp_path / "data", blocks=range(3))["valid"].sum()


@pytest.mark.slow
@pytest.mark.parametrize("size", [250, 120])
def test_a_run_of_atari(dqn_atari, make_run, tmp_path, capsys, size):
    """What the script itself would draw from its replay, against what is drawn from the dataset."""
    run = make_run(dqn_atari, **SMALL_ATARI | ONE | {"buffer_size": size})
    export(run, tmp_path / "data", partial=size < 200)
    rows, stored = replay_of(run)
    count = len(rows["action"])
    expected = []
    for k in range(3 if size < stored else 0, count):
        in_stack = rows["frames_in_stack"][k]
        if not rows["valid"][k]:
            continue
        stack = [rows["frame"][k - back] if back <= in_stack else np.zeros((84, 84)) for back in (3, 2, 1, 0)]
        ends = rows["terminated"][k], rows["truncated"][k]
        after = [*stack[1:], rows["frame"][k + 1]] if k + 1 < count else None
        expected.append((stack, rows["action"][k], rows["reward"][k], *ends, after))
    last = expected[-1]
    if last[5] is None:
        with np.load(run / "checkpoint_0000000200.npz") as arrays:
            expected[-1] = *last[:5], [*last[0][1:], arrays["obs"][-1]]
    assert sum(row[4] for row in expected) > 0 and sum(row[3] for row in expected) > 0
    assert_holds(tmp_path / "data", expected)
    info = layout.read_info(tmp_path / "data")
    assert info["action"]["count"] == 4 and info["stack"] == 4 and info["observation"]["kind"] == "frames"


# ------------------------------------------------------------------------------------------------------------ Minari


@needs_minari
def test_minari_there_and_back(dqn, sac, make_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    import minari

    for script, options in ((dqn, BREAKOUT), (sac, COUNT)):
        name = f"ours/{script.__name__}-v0"
        first, second = (str(tmp_path / f"{script.__name__}{i}") for i in range(2))
        export(str(make_run(script, **options)), first, minari=name)
        rows, _ = replay_of(make_run(script, **options))
        theirs = minari.load_dataset(name)
        assert theirs.total_steps == len(rows["reward"])
        episodes = [*theirs.iterate_episodes()]
        assert np.array_equal(np.concatenate([episode.observations[:-1] for episode in episodes]), rows["obs"])
        assert np.array_equal(np.concatenate([episode.terminations for episode in episodes]), rows["terminated"] > 0)
        if script is dqn:
            assert theirs.storage.metadata["ref_min_score"] == 0.5
        import_(name, second)
        ours = read(first)
        back = read(second)
        assert all(np.array_equal(ours[name], back[name]) for name in ours.keys() - {"block"})
        info = layout.read_info(first)
        again = layout.read_info(second)
        assert [info[name] for name in ("observation", "action", "stack", "transitions", "cut")] == [
            again[name] for name in ("observation", "action", "stack", "transitions", "cut")
        ]
        run = str(make_run(script, **options))
        assert "already" in refused(capsys, export, run, str(tmp_path / "third"), minari=name)
    assert "Minari" in refused(capsys, import_, "ours/nothing-v0", tmp_path / "third")
    assert "refuses the name" in refused(capsys, export, run, str(tmp_path / "third"), minari="no version")


def test_minari_is_not_needed(monkeypatch, capsys, tmp_path):
    """Without it, one line says what to install."""
    from benchmark.datasets import minari_format

    monkeypatch.setattr(minari_format.importlib.util, "find_spec", lambda name: None)
    assert "requirements-minari.txt" in refused(capsys, import_, "ours/any-v0", tmp_path / "data")
    assert "requirements-minari.txt" in refused(capsys, export, "run", tmp_path / "data", minari="ours/any-v0")
    assert runs.FRAMES == 4 and not [*tmp_path.iterdir()]
