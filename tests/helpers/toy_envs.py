"""Gymnasium tasks with known answers, run by the scripts as `toy_envs:Task-v0`."""

import time

import gymnasium
import numpy as np

BOX = gymnasium.spaces.Box(-2.0, 3.0, (2,), np.float32)  # bounds that are not +-1, and not symmetric


class Count(gymnasium.Env):
    """Counts its steps; ends every 7th episode step by termination (even episodes) or leaves it to the limit of 10.

    The observation tells episode and step, so that every transition can be recognized.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = BOX
    episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.t = 0
        return self.observe(), {}

    def observe(self):
        return np.array([self.episode, self.t, self.np_random.uniform()])

    def step(self, action):
        assert self.action_space.contains(action), action
        self.t += 1
        terminated = self.episode % 2 == 0 and self.t == 7
        return self.observe(), float(self.t + action[0]), terminated, False, {}


class Clock(Count):
    """Cannot be repeated: its observation holds the time."""

    def observe(self):
        return np.array([self.episode, self.t, time.time() % 1])


class Overflow(Count):
    """Its reward becomes infinite in step 120."""

    steps = 0

    def step(self, action):
        self.steps += 1
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, np.inf if self.steps == 120 else reward, terminated, truncated, info


class Crash(Count):
    """Fails in step 120."""

    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 120:
            raise RuntimeError("this task fails in step 120")
        return super().step(action)


class Stuck(Count):
    """Never returns from step 120."""

    steps = 0

    def step(self, action):
        self.steps += 1
        while self.steps == 120:
            time.sleep(1)
        return super().step(action)


class Switch(Count):
    """Has two actions to choose from: none of SAC's."""

    action_space = gymnasium.spaces.Discrete(2)


class Unbounded(Count):
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)


class Bonus(gymnasium.Env):
    """One observation, reward 1 a step; an episode is terminated after one step, or goes on to the limit."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, terminated):
        self.terminated = terminated

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), 1.0, self.terminated, False, {}


for task in (Count, Clock, Overflow, Crash, Stuck, Switch, Unbounded):
    gymnasium.register(f"{task.__name__}-v0", f"toy_envs:{task.__name__}", max_episode_steps=10)
gymnasium.register("Ends-v0", "toy_envs:Bonus", max_episode_steps=5, kwargs={"terminated": True})
gymnasium.register("GoesOn-v0", "toy_envs:Bonus", max_episode_steps=5, kwargs={"terminated": False})
