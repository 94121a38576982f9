"""MinAtar."""

from benchmark.suites.suite import Suite

# MinAtar. Random: mean returns of random actions with all six actions and sticky actions, over 1,500 episodes or more
# (150 for Freeway; standard errors up to 0.08), of MinAtar 1.0.15. Best: DQN's training return after 5M steps in the
# MinAtar paper, read from its figure within 3 % (Seaquest: of an older version); good agents exceed them.
MINATAR = {
    "Breakout-MinAtar": (0.5, 10.1),
    "Asterix-MinAtar": (0.52, 16.6),
    "Freeway-MinAtar": (0.14, 50.3),
    "SpaceInvaders-MinAtar": (2.8, 43.9),
    "Seaquest-MinAtar": (0.1, 20.0),
}
MINATAR_SCALE = "0 is a random policy and 1 the MinAtar paper's DQN while training, after 5M steps"
# What we take for the MinAtar paper's best step sizes of DQN, 2 to the power of -9, -13, -11, -12 and -13. Not
# verified, see docs/algos/dqn.md
MINATAR_STEP_SIZES = {
    "Breakout-MinAtar": {"learning-rate": 0.001953125},
    "Asterix-MinAtar": {"learning-rate": 0.0001220703125},
    "Freeway-MinAtar": {"learning-rate": 0.00048828125},
    "SpaceInvaders-MinAtar": {"learning-rate": 0.000244140625},
    "Seaquest-MinAtar": {"learning-rate": 0.0001220703125},
}
# Revisiting Rainbow's Adam behind MinAtar's own network, for the study of replay ratios: with their linear network it
# has begun on all three games by 200k steps, where RMSProp with the step sizes above had not on Freeway
ADAM_DQN = {"optimizer": "adam", "optimizer-eps": 3.125e-4, "target-interval": 250, "end-e": 0.01}
# DQN as Obando-Ceron & Castro 2021 set it for MinAtar; rainbow.py has their settings as it is
REVISITING_DQN = ADAM_DQN | {
    "learning-starts": 1_000,
    "exploration-steps": 250_000,
    "hidden-dim": 0,
    "padding": "SAME",
}
FEW_LOGS = {"log-interval": 25_000, "eval-interval": 250_000, "checkpoint-interval": 100_000}

SUITES = {
    "minatar5": Suite(
        about="MinAtar's five games, 1M steps, an update per step: the MinAtar paper's protocol and DQN's step sizes",
        scores=MINATAR,
        flags={"total-timesteps": 1_000_000} | FEW_LOGS,
        statistic=(1_000_000, 1_000_000),
        task_flags={"dqn": MINATAR_STEP_SIZES, "sr_dqn": MINATAR_STEP_SIZES}
        | {
            name: {env: {"learning-rate": scale * flags["learning-rate"]} for env, flags in MINATAR_STEP_SIZES.items()}
            for name, scale in (("dqn_half_step", 0.5), ("dqn_double_step", 2))
        },
        variants={"dqn_half_step": ("dqn", {}), "dqn_double_step": ("dqn", {}), "dqn_adam": ("dqn", ADAM_DQN)},
        metric="charts/average_return",
        scale=MINATAR_SCALE,
        algos=("dqn",),
    ),
    "minatar4_rainbow": Suite(
        about="four games of MinAtar, 1M steps, ratio 0.25: DQN, C51, QR-DQN, Rainbow, and Rainbow without each of "
        "its parts",
        scores={env: scores for env, scores in MINATAR.items() if env != "Seaquest-MinAtar"},
        flags={"total-timesteps": 1_000_000} | FEW_LOGS,
        statistic=(1_000_000, 1_000_000),
        algo_flags={"dqn": REVISITING_DQN},
        variants={
            "rainbow_no_double": ("rainbow", {"no-double": True}),
            "rainbow_no_priorities": ("rainbow", {"priority-exponent": 0}),
            "rainbow_no_dueling": ("rainbow", {"no-dueling": True}),
            "rainbow_1_step": ("rainbow", {"n-step": 1}),
            "rainbow_no_distribution": ("rainbow", {"no-distributional": True, "learning-rate": 2.5e-4}),
            "rainbow_no_noise": ("rainbow", {"noise-scale": 0}),
        },
        metric="charts/mean_return",
        scale=MINATAR_SCALE,
        algos=("dqn", "rainbow"),
        replay_ratios=(0.25,),
    ),
    "minatar3_ratios": Suite(
        about="three games of MinAtar, 200k steps: ratios of DQN, also with resets every 100k updates; "
        "Ensemble-DQN and REM",
        scores={env: MINATAR[env] for env in ("Breakout-MinAtar", "Freeway-MinAtar", "SpaceInvaders-MinAtar")},
        flags={
            "total-timesteps": 200_000,
            "log-interval": 10_000,
            "eval-interval": 10_000,
            "eval-episodes": 5,
            "exploration-steps": 50_000,
        },
        statistic=(100_000, 200_000),
        algo_flags={
            "dqn": ADAM_DQN,
            "sr_dqn": ADAM_DQN | {"reset-interval": 100_000},
            "ensemble_dqn": {"target-interval": 250, "end-e": 0.01},  # that Adam is its default
            "rem": {"target-interval": 250, "end-e": 0.01},
        },
        scale=MINATAR_SCALE + ", at epsilon 0.1 (these evaluations: 0.001)",
        algos=("dqn", "sr_dqn"),
        replay_ratios=(0.25, 1.0, 4.0),
    ),
}
