"""Gym MuJoCo."""

from benchmark.suites.suite import Suite

# Gym MuJoCo. Random: mean return of uniformly random actions over 1,000 episodes of EnvPool 1.2.5's v4 tasks (standard
# errors 3, 0.5, 0.2, 3 and 1). Best: the returns of TD3 that songsang7/R2R2 @ 6aa5f33 normalizes with (MUJOCO_TD3_SCORE
# in scale_rl/envs/mujoco.py); good agents exceed them, so a normalized score may be above 1.
GYM = {
    "HalfCheetah-v4": (-284.0, 10574.0),
    "Hopper-v4": (18.0, 3226.0),
    "Walker2d-v4": (2.7, 3946.0),
    "Ant-v4": (-55.0, 3942.0),
    "Humanoid-v4": (123.0, 5165.0),
}

SUITES = {
    "gym5": Suite(
        about="five Gym MuJoCo tasks, 1M steps; a robot that falls ends its episode (not HalfCheetah)",
        scores=GYM,
        flags={"total-timesteps": 1_000_000},
        statistic=(900_000, 1_000_000),
        scale="0 is a random policy and 1 a trained TD3",
    ),
}
