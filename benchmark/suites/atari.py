"""Atari 100k."""

from benchmark.suites.suite import Suite

# Atari 100k: scores of a random policy and of a human player, as google-research's bigger_better_faster normalizes with
# them (eval_run_experiment.py); good agents exceed both.
ATARI26 = {
    "Alien-v5": (227.8, 7127.7),
    "Amidar-v5": (5.8, 1719.5),
    "Assault-v5": (222.4, 742),
    "Asterix-v5": (210, 8503.3),
    "BankHeist-v5": (14.2, 753.1),
    "BattleZone-v5": (2360, 37187.5),
    "Boxing-v5": (0.1, 12.1),
    "Breakout-v5": (1.7, 30.5),
    "ChopperCommand-v5": (811, 7387.8),
    "CrazyClimber-v5": (10780.5, 35829.4),
    "DemonAttack-v5": (152.1, 1971),
    "Freeway-v5": (0, 29.6),
    "Frostbite-v5": (65.2, 4334.7),
    "Gopher-v5": (257.6, 2412.5),
    "Hero-v5": (1027, 30826.4),
    "Jamesbond-v5": (29, 302.8),
    "Kangaroo-v5": (52, 3035),
    "Krull-v5": (1598, 2665.5),
    "KungFuMaster-v5": (258.5, 22736.3),
    "MsPacman-v5": (307.3, 6951.6),
    "Pong-v5": (-20.7, 14.6),
    "PrivateEye-v5": (24.9, 69571.3),
    "Qbert-v5": (163.9, 13455),
    "RoadRunner-v5": (11.5, 7845),
    "Seaquest-v5": (68.4, 42054.7),
    "UpNDown-v5": (533.4, 11693.2),
}
ATARI_SCALE = "0 is a random policy and 1 a human player"

SUITES = {
    "atari26": Suite(
        about="the 26 games of Atari 100k, scored by 100 games after 100k steps: for GPUs",
        scores=ATARI26,
        flags={"total-timesteps": 100_000},
        statistic=(100_000, 100_000),
        scale=ATARI_SCALE,
        algos=("spr", "sr_spr"),
        replay_ratios=(2.0,),
    ),
    "atari2_cpu": Suite(
        about="two games of Atari 100k, scored by 100 games after 100k steps: hours a run on a CPU",
        scores={game: ATARI26[game] for game in ("Assault-v5", "Jamesbond-v5")},
        flags={"total-timesteps": 100_000, "eval-interval": 50_000},
        statistic=(100_000, 100_000),
        scale=ATARI_SCALE,
        algos=("drq_eps", "der"),
    ),
}
