"""Gymnasium tasks that fail or that look unusual, run by the scripts as `edge_envs:Task-v0`."""

import os

import gymnasium
import numpy as np


class Walk(gymnasium.Env):
    """A random walk on five places; the way to the right end is rewarded. Discrete actions, which begin at 3."""

    observation_space = gymnasium.spaces.Discrete(5, start=2)
    action_space = gymnasium.spaces.Discrete(2, start=3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(1, 4))
        return self.observe(), {}

    def observe(self):
        return np.int64(self.place + 2)

    def step(self, action):
        assert action in (3, 4), action
        self.place += 1 if action == 4 else -1
        return self.observe(), float(self.place == 4), self.place in (0, 4), False, {}


class Parts(Walk):
    """Its observation has parts, two of them numbers."""

    observation_space = gymnasium.spaces.Dict(
        place=gymnasium.spaces.Discrete(5, start=2),
        more=gymnasium.spaces.Tuple((gymnasium.spaces.Box(0, 1, (2,), np.float64), gymnasium.spaces.Discrete(3))),
    )

    def observe(self):
        return {"place": np.int64(self.place + 2), "more": (np.array([0.25, 0.5]), np.int64(1))}


class Steering(Walk):
    """The same walk with one continuous action and a number for an observation."""

    observation_space = gymnasium.spaces.Discrete(5, start=2)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def step(self, action):
        return super().step(np.int64(4 if action[0] > 0 else 3))


class Whole(Steering):
    action_space = gymnasium.spaces.Box(0, 10, (1,), np.int64)


class Refused(Steering):
    """Needs a server that is not there."""

    def __init__(self):
        raise ConnectionRefusedError(111, "Connection refused")


class Late(Steering):
    """Its third environment cannot be reset in time: the probe and the training have one each."""

    count = 0

    def __init__(self):
        Late.count += 1
        self.number = Late.count

    def reset(self, *, seed=None, options=None):
        if self.number > 1:
            raise TimeoutError("no answer from the simulator")
        return super().reset(seed=seed)


class Counted(Steering):
    """Tells a file when it is opened and closed."""

    def tell(self, word):
        with open(os.environ["COUNTED"], "a") as file:
            file.write(word + "\n")

    def __init__(self):
        self.tell("opened")

    def close(self):
        self.tell("closed")


class Infinite(Steering):
    """Its tenth reward is infinite."""

    steps = 0

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        self.steps += 1
        return obs, np.inf if self.steps == 10 else reward, terminated, truncated, info


for task in (Walk, Parts, Steering, Whole, Refused, Late, Counted, Infinite):
    gymnasium.register(f"{task.__name__}-v0", f"edge_envs:{task.__name__}", max_episode_steps=8)
