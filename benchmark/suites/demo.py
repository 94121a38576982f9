"""Small suites that show something in minutes, on one task of DeepMind Control."""

from benchmark.suites.dmc import DMC
from benchmark.suites.suite import Suite

SUITES = {
    "reset_study": Suite(
        about="one reset on an easy task, in minutes: what it costs and how fast the replay makes up for it",
        scores={"CartpoleSwingup-v1": DMC},
        flags={
            "total-timesteps": 9_000,
            "learning-starts": 1_000,
            "buffer-size": 100_000,
            "log-interval": 250,
            "eval-interval": 500,
            "eval-episodes": 5,
            "checkpoint-interval": 1_000,
        },
        statistic=(5_000, 9_000),
        algo_flags={"sr_sac": {"reset-interval": 36_000}},
        variants={"sr_sac_no_reset": ("sr_sac", {"reset-interval": 0})},
        algos=("sr_sac", "sr_sac_no_reset"),
        replay_ratios=(8.0,),
    ),
    "demo": Suite(
        about="what `make demo` runs: replay ratios on an easy task with small networks, in minutes on two cores",
        scores={"CartpoleSwingup-v1": DMC},
        flags={
            "total-timesteps": 6_000,
            "learning-starts": 1_000,
            "buffer-size": 20_000,
            "batch-size": 128,
            "hidden-dim": 64,
            "log-interval": 250,
            "eval-interval": 500,
            "eval-episodes": 5,
            "checkpoint-interval": 1_000,
        },
        statistic=(3_000, 6_000),
        algo_flags={"sr_sac": {"reset-interval": 48_000}},
        algos=("sac", "sr_sac"),
        replay_ratios=(16.0, 4.0, 1.0),  # the longest runs first: two cores then end together
        algo_ratios={"sr_sac": (16.0,)},  # without a reset it is SAC
    ),
}
