"""The replay of a finished run of this project, in the layout of the DQN replay dataset.

A checkpoint holds the replay as rows of a ring. Rows of transitions (the scripts on gymnax, SAC) have the next
observation beside the observation; rows of frames (Atari) have it in the next row. Either way a record of the dataset
is one row, with what the layout wants between them: zeros before an episode where frames are stacked, and after a step
that was cut a record of the observation that followed.
"""

import csv
import zipfile
from pathlib import Path

import numpy as np

from benchmark.film import find_script, script_args
from benchmark.jobs import load_script, read_json, require
from benchmark.suites import SUITES

CHUNK = 2**13  # rows that are compared at a time
ROW, CUT, PADDING = range(3)  # what a record is made of: a row, what followed a row that was cut, zeros
FRAMES = 4  # that the scripts on Atari stack


class Checkpoint:
    """The arrays of a checkpoint, in the file: only the rows that are asked for come into memory."""

    def __init__(self, path):
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
                require(broken is None, f"{path} is damaged: {broken}")
                self.arrays = {info.filename.removesuffix(".npy"): self.map(archive, info) for info in archive.filelist}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            require(False, f"{path} is damaged: {error}")
        self.replay = {name.removeprefix("replay/"): array for name, array in self.arrays.items() if "replay/" in name}
        require(self.replay and "stored" in self.arrays, f"{path} holds no replay to export")
        self.stored = int(self.arrays["stored"])
        self.count = len(next(iter(self.replay.values())))

    def map(self, archive, info):
        with archive.open(info) as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            header = file.tell()
        if not np.prod((*shape, dtype.itemsize)):
            return np.empty(shape, dtype)
        with open(self.path, "rb") as file:
            file.seek(info.header_offset + 26)  # the lengths of a name and of what comes after it
            skipped = np.frombuffer(file.read(4), "<u2").sum(dtype=int)
        offset = info.header_offset + 30 + skipped + header
        return np.memmap(self.path, dtype, "r", offset, shape)

    def rows(self, name, rows):
        """Rows of the replay, which are counted from the oldest."""
        return np.asarray(self.replay[name][(self.stored - self.count + rows) % self.count])

    def column(self, name):
        return self.rows(name, np.arange(self.count))


# ----------------------------------------------------------------------------------------------------------- Records


def plan_transitions(checkpoint):
    """What each record is made of -> rows, kinds."""
    count = checkpoint.count
    broken = np.zeros(count, bool)  # the next row does not begin where this one ends
    for first in range(0, count - 1, CHUNK):
        rows = np.arange(first, min(first + CHUNK, count - 1))
        differs = checkpoint.rows("next_obs", rows) != checkpoint.rows("obs", rows + 1)
        broken[rows] = differs.reshape(len(rows), -1).any(1)
    terminated = checkpoint.column("terminated").astype(bool)
    cut = broken & ~terminated
    if "truncated" in checkpoint.replay:
        cut |= checkpoint.column("truncated") & ~terminated
    cut[-1] = not terminated[-1]
    rows = np.repeat(np.arange(count), 1 + cut)
    kinds = np.where(np.append(False, rows[1:] == rows[:-1]), CUT, ROW)
    return rows, kinds


def plan_frames(checkpoint):
    """What each record is made of -> rows, kinds. Rows of steps that only began a game are left out."""
    count = checkpoint.count
    valid = checkpoint.column("valid")
    older = checkpoint.column("frames_in_stack").astype(int)
    terminated = checkpoint.column("terminated")
    ended = terminated | checkpoint.column("truncated")
    begins = valid & (older == 0)
    begins_after = valid & np.append(older[0] == 0, ended[:-1] | ~valid[:-1])
    goes_on = (valid[:-1] & valid[1:] & ~ended[:-1]).nonzero()[0]
    linked = np.array_equal(begins, begins_after)
    linked &= np.array_equal(older[goes_on + 1], np.minimum(older[goes_on] + 1, FRAMES - 1))
    cut = valid & ended & ~terminated
    linked &= not np.any(cut[:-1] & valid[1:])
    require(linked, f"{checkpoint.path} is damaged: its frames do not follow one another")
    cut[-1] = valid[-1] and not terminated[-1]
    parts = (FRAMES - 1) * begins + valid + cut
    rows = np.repeat(np.arange(count), parts)
    part = np.arange(len(rows)) - np.repeat(np.cumsum(parts) - parts, parts) - (FRAMES - 1) * begins[rows]
    return rows, np.select([part < 0, part == 0], [PADDING, ROW], CUT)


def gather(checkpoint, rows, kinds):
    """Records from their rows -> arrays by name."""
    in_frames = "frame" in checkpoint.replay
    if in_frames:
        after = rows + (kinds == CUT)
        observation = checkpoint.rows("frame", np.minimum(after, checkpoint.count - 1))
        observation[after == checkpoint.count] = checkpoint.arrays["obs"][-1]
        observation[kinds == PADDING] = 0
    else:
        observation = checkpoint.rows("obs", rows)
        observation[kinds == CUT] = checkpoint.rows("next_obs", rows[kinds == CUT])
    if observation.dtype == bool:
        observation = observation.view(np.uint8)
    action = checkpoint.rows("action", rows)
    action = action.astype(np.int32 if np.issubdtype(action.dtype, np.integer) else np.float32)
    reward = checkpoint.rows("reward", rows).astype(np.float32)
    terminal = checkpoint.rows("terminated", rows).astype(np.uint8)
    action[kinds != ROW] = 0
    reward[kinds != ROW] = 0
    terminal[kinds == PADDING] = 0
    terminal[kinds == CUT] = 1  # for readers that do not know of cuts
    successor = (kinds == CUT).astype(np.uint8)
    arrays = {"observation": observation, "action": action, "reward": reward, "terminal": terminal}
    return arrays | {"successor": successor}


# --------------------------------------------------------------------------------------------------------------- Run


class Run:
    """A run's folder: its arguments, its script, its newest checkpoint and its log."""

    def __init__(self, folder, partial, script):
        self.folder = Path(folder)
        self.arguments = read_json(self.folder / "args.json")
        self.sessions = read_json(self.folder / "run.json")
        known = isinstance(self.arguments, dict) and isinstance(self.sessions, list) and self.sessions
        require(known, f"{folder} holds no run")
        paths = {int(path.stem.removeprefix("checkpoint_")): path for path in self.folder.glob("checkpoint_*.npz")}
        self.steps = max(paths, default=0)
        done = read_json(self.folder / "done")
        finished = isinstance(done, dict) and done.get("step") == self.steps > 0
        advice = "the same command finishes it, and --partial exports what its checkpoint holds"
        require(finished or (partial and self.steps), f"{folder} is not finished; {advice}")
        self.script_path = find_script(self.folder, self.arguments, script)
        self.script = load_script(self.script_path)
        self.args = script_args(self.script, self.arguments, self.folder, 1)
        self.checkpoint = Checkpoint(paths[self.steps])
        missing = self.checkpoint.stored - self.checkpoint.count
        advice = f"train with --buffer-size {self.checkpoint.stored}, or --partial exports those that are left"
        require(partial or not missing, f"the replay of {folder} has lost its first {missing:,} rows; {advice}")
        self.is_whole = finished and not missing
        with open(self.folder / "metrics.csv") as file:
            self.log = [(int(step), tag, float(value)) for step, tag, value in list(csv.reader(file))[1:]]

    def logged(self, tag):
        return {step: value for step, name, value in self.log if name == tag and step <= self.steps}

    def num_updates(self):
        """Gradient updates of the whole run, by the script's own rule."""
        until = self.script.num_updates_until
        return max(0, until(self.args, self.steps) - until(self.args, self.args.learning_starts - 1))


def check_episodes(run, terminated, cut):
    """Compares the ends of episodes in the replay with those that there were -> how many of these it does not show.

    Rows of most scripts do not say that they were cut: there, the next row begins elsewhere. A fresh resume cuts, too.
    """
    arrays = run.checkpoint.arrays
    if "done" in arrays:  # each end but a last one has cost a step that was not stored
        at_end = bool(arrays["done"])
        logged = run.steps - run.checkpoint.stored + at_end
    else:
        at_end = arrays["episode_length"] == 0
        logged = int(sum(run.logged("charts/episodes").values()))
    ends = terminated + cut - (not at_end)  # the end of the run cuts the last episode
    seams = sum(session.get("resume") == "fresh" and session["from_step"] > 0 for session in run.sessions)
    fits = ends <= logged + seams
    found = f"its transitions do not follow one another at {ends:,} places, but {logged:,} episodes ended"
    require(fits, f"the replay of {run.folder} is damaged: {found}")
    return max(0, logged - ends)


def random_score(run, rows, kinds):
    """The mean return of uniformly random actions -> number, source: of the suites, or of this run's first episodes."""
    minimal = run.arguments.get("minimal_actions")
    known = [suite.scores[run.args.env_id][0] for suite in SUITES.values() if run.args.env_id in suite.scores]
    if known and not minimal:
        return known[0], "benchmark/suites"
    if "frame" in run.checkpoint.replay or not run.is_whole:
        return None, "none"
    terminated = run.checkpoint.column("terminated").astype(bool)
    cut = np.bincount(rows[kinds == CUT], minlength=len(terminated)) > 0
    ends = np.flatnonzero(terminated | cut)
    ends = ends[ends < run.args.learning_starts - 1]
    totals = np.cumsum(run.checkpoint.column("reward"), dtype=np.float64)[ends]
    if not len(ends):
        return None, "none"
    return float(totals[-1] / len(ends)), f"this run's {len(ends)} episodes before learning starts"


def num_actions(run):
    if hasattr(run.script, "make_task"):
        return int(run.script.make_task(run.args).num_actions)
    return int(run.script.num_actions(run.args))


def describe(run, rows, kinds):
    """What dataset.json says of a run's data."""
    replay = run.checkpoint.replay
    in_frames = "frame" in replay
    pictures = replay["frame" if in_frames else "obs"]
    kind = "frames" if in_frames else "bits" if pictures.dtype == bool else "numbers"
    dtype = np.dtype(np.uint8 if kind == "bits" else pictures.dtype)
    if np.issubdtype(replay["action"].dtype, np.integer):
        action = {"kind": "discrete", "count": num_actions(run)}
    else:
        action = {"kind": "continuous", "shape": list(replay["action"].shape[1:]), "low": -1.0, "high": 1.0}
    terminated = int(np.sum(run.checkpoint.column("terminated")[rows[kinds == ROW]] > 0))
    cut = int(np.sum(kinds == CUT))
    unseen = 0
    if not in_frames and run.is_whole:
        unseen = check_episodes(run, terminated, cut)
    training = run.logged("charts/episodic_return")
    episodes = run.logged("charts/episodes")
    evaluations = run.logged("eval/episodic_return")
    score, source = random_score(run, rows, kinds)
    last = run.sessions[-1]
    return {
        "env_id": run.args.env_id,
        "script": run.script_path.stem,
        "seed": run.args.seed,
        "command": last["command"],
        "commit": last["commit"],
        "arguments": run.arguments,
        "steps": run.steps,
        "updates": run.num_updates(),
        "whole_run": run.is_whole,
        "stack": FRAMES if in_frames else 1,
        "observation": {"kind": kind, "shape": list(pictures.shape[1:]), "dtype": dtype.name},
        "action": action,
        "reward": "clipped to [-1, 1]" if in_frames else "as the task gives it",
        "transitions": int(np.sum(kinds == ROW)),
        "terminated": terminated,
        "cut": cut,
        "unseen_cuts": unseen,
        "random_score": score,
        "random_score_of": source,
        "final_score": list(evaluations.values())[-1] if evaluations else None,
        "returns": {
            "evaluation": [[step, value] for step, value in evaluations.items()],
            "training": [[step, value, episodes.get(step)] for step, value in training.items()],
        },
    }


def export_run(folder, partial, script):
    """-> what dataset.json says of a run, the number of records, and gather(first, last) for them."""
    run = Run(folder, partial, script)
    checkpoint = run.checkpoint
    plan = plan_frames if "frame" in checkpoint.replay else plan_transitions
    rows, kinds = plan(checkpoint)
    info = describe(run, rows, kinds)
    require(info["transitions"], f"the replay of {folder} holds no step")
    return info, len(rows), lambda first, last: gather(checkpoint, rows[first:last], kinds[first:last])
