"""Minari's datasets and ours, each made of the other. Needs requirements-minari.txt.

Minari keeps whole episodes, with one observation more than steps. Ours do not hold the observation after a terminal
step: there, Minari's last is a repetition. Pictures are stored as they are, not as Minari's lossy JPEG.
"""

import importlib.util
import warnings

import numpy as np

from benchmark.datasets import layout
from benchmark.jobs import require

INSTALL = "Minari's datasets need minari and h5py: pip install -r requirements-minari.txt"


def load_minari():
    require(all(map(importlib.util.find_spec, ("minari", "h5py"))), INSTALL)
    import minari

    return minari


def check_new(minari, dataset_id):
    """Refuses a dataset that exists, or a name that Minari does not take."""
    try:
        exists = minari.storage.get_dataset_path(dataset_id).exists()
        minari.dataset.minari_dataset.parse_dataset_id(dataset_id)
    except ValueError as error:
        require(False, f"Minari refuses the name {dataset_id}: {' '.join(str(error).split())}")
    require(not exists, f"there is a dataset {dataset_id} of Minari's already; choose another name")


def spaces_of(info, observation):
    """Gymnasium's spaces of a dataset's observations and actions."""
    from gymnasium.spaces import Box, Discrete

    shape = observation.shape[1:]
    is_bits = info.get("observation", {}).get("kind") == "bits"
    bounds = (-np.inf, np.inf) if observation.dtype.kind == "f" else (0, 1 if is_bits else 255)
    action = info["action"]
    if action["kind"] == "discrete":
        actions = Discrete(action["count"])
    else:
        actions = Box(action["low"], action["high"], tuple(action["shape"]), np.float32)
    return Box(*bounds, shape, observation.dtype.type), actions


def episodes_of(data):
    """The episodes of `layout.read`'s arrays -> first and last step of each. Padding and successors are none of it."""
    ends = np.flatnonzero(data["terminal"] | data["truncated"])
    steps = np.flatnonzero(data["valid"])
    firsts = steps[np.searchsorted(steps, np.append(-1, ends[:-1]), side="right")]
    return zip(firsts, ends, strict=True)


def write_minari(folder, dataset_id):
    """A dataset in our layout as one of Minari's."""
    minari = load_minari()
    info = layout.read_info(folder)
    data = layout.read(folder)
    observation_space, action_space = spaces_of(info, data["observation"])
    buffers = []
    for number, (first, last) in enumerate(episodes_of(data)):
        cut = data["truncated"][last]
        observations = data["observation"][first : last + 1 + cut]
        if not cut:
            observations = np.concatenate([observations, observations[-1:]])
        length = last + 1 - first
        buffer = minari.data_collector.EpisodeBuffer(
            id=number,
            observations=observations,
            actions=data["action"][first : last + 1],
            rewards=data["reward"][first : last + 1],
            terminations=np.arange(length) == (-1 if cut else length - 1),
            truncations=np.arange(length) == (length - 1 if cut else -1),
        )
        buffers.append(buffer)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # the author and such: they are optional
        dataset = minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            observation_space=observation_space,
            action_space=action_space,
            algorithm_name=info["script"],
            description=f"The replay of {info['env_id']}, seed {info['seed']}: {info['command']}",
            jpeg_encoding=False,
        )
    scores = {"ref_min_score": info["random_score"], "ref_max_score": info["final_score"]}
    known = {name: score for name, score in scores.items() if score is not None}
    dataset.storage.update_metadata({"task": info["env_id"]} | known)


def scaled(space, actions):
    """Actions within a task's bounds -> in [-1, 1], where the policies of our scripts live; discrete ones from 0."""
    from gymnasium.spaces import Box, Discrete

    if isinstance(space, Discrete):
        return np.int32(actions - space.start)
    usable = isinstance(space, Box) and space.is_bounded()
    require(usable, f"actions of {space} cannot be imported: they are neither discrete nor within bounds")
    low = np.float64(space.low)
    half_range = (np.float64(space.high) - low) / 2
    return np.float32((actions - low) / half_range - 1).reshape(len(actions), -1)


def flat(space, observations):
    """Observations (steps, ...) as one array: pictures of bytes as they are, others as flat float32 numbers."""
    from gymnasium.spaces import Box, Dict, Discrete, Tuple

    if isinstance(space, Dict):
        parts = [flat(space[name], observations[name]) for name in sorted(observations)]
        return np.concatenate([np.float32(part.reshape(len(part), -1)) for part in parts], axis=1)
    if isinstance(space, Tuple):
        parts = [flat(part, own) for part, own in zip(space, observations, strict=True)]
        return np.concatenate([np.float32(part.reshape(len(part), -1)) for part in parts], axis=1)
    if isinstance(space, Discrete):
        return np.eye(space.n, dtype=np.float32)[observations - space.start]
    require(isinstance(space, Box), f"observations of {space} cannot be imported")
    observations = np.asarray(observations)
    if observations.dtype in (np.uint8, bool) and observations.ndim > 2:
        return observations.astype(np.uint8)
    return np.float32(observations.reshape(len(observations), -1))


def is_image(space, dimensions):
    """Whether observations are pictures of bytes; those without channels are stacked."""
    from gymnasium.spaces import Box

    return isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == dimensions


def records_of(episode, observation_space, action_space, padding):
    """The records of one of Minari's episodes -> arrays by name."""
    observations = flat(observation_space, episode.observations)
    actions = scaled(action_space, np.asarray(episode.actions))
    steps = len(actions)
    terminated = bool(episode.terminations[-1])
    before = [(padding, 0)]
    after = [(padding, int(not terminated))]
    terminal = np.zeros(steps, np.uint8)
    terminal[-1] = terminated
    arrays = {
        "observation": np.pad(observations[: steps + (not terminated)], before + [(0, 0)] * (observations.ndim - 1)),
        "action": np.pad(actions, after + [(0, 0)] * (actions.ndim - 1)),
        "reward": np.pad(np.float32(episode.rewards), after),
        "terminal": np.pad(terminal, after),
        "successor": np.zeros(padding + steps + (not terminated), np.uint8),
    }
    if not terminated:
        arrays["successor"][-1] = 1
        arrays["terminal"][-1] = 1  # for readers that do not know of cuts
    return arrays


def import_minari(dataset_id, command):
    """-> what dataset.json says of a dataset of Minari's, the number of records, and gather(first, last) for them."""
    minari = load_minari()
    try:
        dataset = minari.load_dataset(dataset_id)
    except (ValueError, FileNotFoundError) as error:
        require(False, f"Minari has no dataset {dataset_id} here: {' '.join(str(error).split())}")
    stack = 4 if is_image(dataset.observation_space, 2) else 1
    spaces = dataset.observation_space, dataset.action_space
    episodes = [records_of(episode, *spaces, stack - 1) for episode in dataset.iterate_episodes() if len(episode)]
    require(episodes, f"{dataset_id} holds no episode")
    arrays = {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
    observation = arrays["observation"]
    is_bits = is_image(dataset.observation_space, 3) and dataset.observation_space.high.max() == 1
    kind = "frames" if stack > 1 else "bits" if is_bits else "numbers"
    metadata = dataset.storage.metadata
    spec = dataset.env_spec
    cut = int(arrays["successor"].sum())
    action = {"kind": "continuous", "shape": list(arrays["action"].shape[1:]), "low": -1.0, "high": 1.0}
    if arrays["action"].ndim == 1:
        action = {"kind": "discrete", "count": int(dataset.action_space.n)}
    info = {
        "env_id": spec.id if spec else metadata.get("task", dataset_id),
        "script": metadata.get("algorithm_name", ""),
        "seed": None,
        "command": command,
        "commit": "",
        "steps": int(dataset.total_steps),
        "updates": None,
        "whole_run": True,
        "stack": stack,
        "observation": {"kind": kind, "shape": list(observation.shape[1:]), "dtype": observation.dtype.name},
        "action": action,
        "reward": "as the dataset gives it",
        "transitions": int(dataset.total_steps),
        "terminated": len(episodes) - cut,
        "cut": cut,
        "random_score": metadata.get("ref_min_score"),
        "random_score_of": dataset_id,
        "final_score": metadata.get("ref_max_score"),
        "returns": {"evaluation": [], "training": []},
    }
    return info, len(observation), lambda first, last: {name: array[first:last] for name, array in arrays.items()}
