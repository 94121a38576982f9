"""Suites: tasks, a budget and the scale of their scores, as plain data. Add your own here; the name is the key.

`python -m benchmark.sweep --suite NAME` runs one, `python -m benchmark.report --suite NAME` draws and compares it.
"""

from dataclasses import dataclass, field


EVALUATION = "eval/episodic_return"


@dataclass(frozen=True)
class Suite:
    about: str
    """one line: what it is for"""
    scores: dict[str, tuple[float, float]]
    """the tasks, each with the returns that normalize to 0 (random) and to 1 (best reference)"""
    flags: dict[str, object]
    """flags of every script, as typed"""
    statistic: tuple[int, int]
    """fixed beforehand, for comparisons: a run's score is the mean of its metric from this step to that one"""
    algo_flags: dict[str, dict[str, object]] = field(default_factory=dict)
    """flags of one script alone; None is a switch"""
    task_flags: dict[str, dict[str, dict[str, object]]] = field(default_factory=dict)
    """flags of one script on one task: {script: {task: flags}}"""
    variants: dict[str, tuple[str, dict[str, object]]] = field(default_factory=dict)
    """further agents: {name: (script, flags)}"""
    algos: tuple[str, ...] = ("sac",)
    """what a sweep runs if none are named: scripts that fit the tasks, or variants"""
    replay_ratios: tuple[float, ...] = (1.0,)
    """and at which ratios"""
    metric: str = EVALUATION
    """what is scored: this, `charts/average_return`, or `charts/mean_return`, of all training episodes so far"""
    scale: str = "0 is no reward and 1 the most that a task can give"
    """what the normalized 0 and 1 are, in words"""

    @property
    def score(self):
        """What a run's score is, in words."""
        first, last = self.statistic
        returns = f"at steps {first:,} to {last:,}" if first < last else f"at step {last:,}"
        return {
            "charts/average_return": f"the training return's moving average over episodes, at step {last:,}",
            "charts/mean_return": f"the mean return of all training episodes of the first {last:,} steps",
        }.get(self.metric, f"the mean of the evaluation returns {returns}")

    @property
    def parts(self):
        """The logged metrics that its own is made of."""
        made = {"charts/mean_return": ("charts/episodic_return", "charts/episodes")}
        return made.get(self.metric, (self.metric,))

    def scored(self, logged):
        """{part: {step: value}} of a run -> {step: value of the metric}."""
        if len(self.parts) == 1:
            return logged.get(self.metric, {})
        total, episodes, found = 0.0, 0.0, {}
        for step, number in sorted(logged.get("charts/episodes", {}).items()):
            if number:  # of episodes since the last log; else there is no return
                total, episodes = total + number * logged["charts/episodic_return"][step], episodes + number
            if episodes:
                found[step] = total / episodes
        return found


DMC = (0.0, 1000.0)  # DeepMind Control: an episode's return lies between these by construction; papers divide by 1,000
DMC15 = (  # D'Oro et al. 2023: DMC15-500k
    "AcrobotSwingup-v1",
    "CheetahRun-v1",
    "FingerTurnHard-v1",
    "FishSwim-v1",
    "HopperHop-v1",
    "HopperStand-v1",
    "HumanoidRun-v1",
    "HumanoidStand-v1",
    "HumanoidWalk-v1",
    "PendulumSwingup-v1",
    "QuadrupedRun-v1",
    "QuadrupedWalk-v1",
    "ReacherHard-v1",
    "SwimmerSwimmer6-v1",
    "WalkerRun-v1",
)

# MuJoCo 3.5.0 changed the contacts of the finger: under a random policy it touches the spinner in 4 to 5 % of the steps
# (before: 1.9 %), and finger-spin returns 0.1 to 0.2 (0.5 to 0.6). EnvPool 1.2.5 has 3.6.0, published curves 2.1.5. No
# other domain changes measurably.
OTHER_PHYSICS = ("FingerSpin-v1", "FingerTurnEasy-v1", "FingerTurnHard-v1")

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
    "dmc15": Suite(
        "the fifteen tasks of the SR-SAC paper, 500k steps: for GPUs",
        dict.fromkeys(DMC15, DMC),
        {"total-timesteps": 500_000},
        (400_000, 500_000),
        algos=("sr_sac",),
        replay_ratios=(32.0,),
    ),
    "dmc_cpu": Suite(
        "three DMC15 tasks, 30k steps, resets every 128,000 updates (the paper: 2,560,000): small enough for two cores",
        dict.fromkeys(("CheetahRun-v1", "ReacherHard-v1", "WalkerRun-v1"), DMC),
        {"total-timesteps": 30_000},
        (10_000, 30_000),
        {"sr_sac": {"reset-interval": 128_000}},
        algos=("sac", "sr_sac"),
        replay_ratios=(16.0,),
    ),
    "dmc3_50k": Suite(
        "the first 50k steps of three tasks with the paper's settings, to lie beside the published curves",
        dict.fromkeys(("CheetahRun-v1", "ReacherHard-v1", "WalkerRun-v1"), DMC),
        {"total-timesteps": 50_000},
        (10_000, 50_000),
        algos=("sr_sac",),
        replay_ratios=(8.0,),
    ),
    "dmc2_100k": Suite(
        "the first 100k steps of two tasks with the paper's settings, to lie beside the published curves",
        dict.fromkeys(("CheetahRun-v1", "WalkerRun-v1"), DMC),
        {"total-timesteps": 100_000},
        (10_000, 100_000),
        algos=("sr_sac",),
        replay_ratios=(8.0,),
    ),
    "gym5": Suite(
        "five Gym MuJoCo tasks, 1M steps; a robot that falls ends its episode (not HalfCheetah)",
        GYM,
        {"total-timesteps": 1_000_000},
        (900_000, 1_000_000),
        scale="0 is a random policy and 1 a trained TD3",
    ),
    "minatar5": Suite(
        "MinAtar's five games, 1M steps, an update per step: the MinAtar paper's protocol and DQN's step sizes",
        MINATAR,
        {"total-timesteps": 1_000_000} | FEW_LOGS,
        (1_000_000, 1_000_000),
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
        "four games of MinAtar, 1M steps, ratio 0.25: DQN, C51, QR-DQN, Rainbow, and Rainbow without each of its parts",
        {env: scores for env, scores in MINATAR.items() if env != "Seaquest-MinAtar"},
        {"total-timesteps": 1_000_000} | FEW_LOGS,
        (1_000_000, 1_000_000),
        {"dqn": REVISITING_DQN},
        variants={
            "rainbow_no_double": ("rainbow", {"no-double": None}),
            "rainbow_no_priorities": ("rainbow", {"priority-exponent": 0}),
            "rainbow_no_dueling": ("rainbow", {"no-dueling": None}),
            "rainbow_1_step": ("rainbow", {"n-step": 1}),
            "rainbow_no_distribution": ("rainbow", {"no-distributional": None, "learning-rate": 2.5e-4}),
            "rainbow_no_noise": ("rainbow", {"noise-scale": 0}),
        },
        metric="charts/mean_return",
        scale=MINATAR_SCALE,
        algos=("dqn", "rainbow"),
        replay_ratios=(0.25,),
    ),
    "minatar3_ratios": Suite(
        "three games of MinAtar, 200k steps: ratios of DQN, also with resets every 100k updates; Ensemble-DQN and REM",
        {env: MINATAR[env] for env in ("Breakout-MinAtar", "Freeway-MinAtar", "SpaceInvaders-MinAtar")},
        {
            "total-timesteps": 200_000,
            "log-interval": 10_000,
            "eval-interval": 10_000,
            "eval-episodes": 5,
            "exploration-steps": 50_000,
        },
        (100_000, 200_000),
        {
            "dqn": ADAM_DQN,
            "sr_dqn": ADAM_DQN | {"reset-interval": 100_000},
            "ensemble_dqn": {"target-interval": 250, "end-e": 0.01},  # that Adam is its default
            "rem": {"target-interval": 250, "end-e": 0.01},
        },
        scale=MINATAR_SCALE + ", at epsilon 0.1 (these evaluations: 0.001)",
        algos=("dqn", "sr_dqn"),
        replay_ratios=(0.25, 1.0, 4.0),
    ),
    "atari26": Suite(
        "the 26 games of Atari 100k, scored by 100 games after 100k steps: for GPUs",
        ATARI26,
        {"total-timesteps": 100_000},
        (100_000, 100_000),
        scale=ATARI_SCALE,
        algos=("spr", "sr_spr"),
        replay_ratios=(2.0,),
    ),
    "atari2_cpu": Suite(
        "two games of Atari 100k, scored by 100 games after 100k steps: hours a run on a CPU",
        {game: ATARI26[game] for game in ("Assault-v5", "Jamesbond-v5")},
        {"total-timesteps": 100_000, "eval-interval": 50_000},
        (100_000, 100_000),
        scale=ATARI_SCALE,
        algos=("drq_eps", "der"),
    ),
    "reset_study": Suite(
        "one reset on an easy task, in minutes: what it costs and how fast the replay makes up for it",
        {"CartpoleSwingup-v1": DMC},
        {
            "total-timesteps": 9_000,
            "learning-starts": 1_000,
            "buffer-size": 100_000,
            "log-interval": 250,
            "eval-interval": 500,
            "eval-episodes": 5,
            "checkpoint-interval": 1_000,
        },
        (5_000, 9_000),
        {"sr_sac": {"reset-interval": 36_000}},
        variants={"sr_sac_no_reset": ("sr_sac", {"reset-interval": 0})},
        algos=("sr_sac", "sr_sac_no_reset"),
        replay_ratios=(8.0,),
    ),
    "demo": Suite(
        "what `make demo` runs: replay ratios on an easy task with small networks, in minutes on two cores",
        {"CartpoleSwingup-v1": DMC},
        {
            "total-timesteps": 10_000,
            "learning-starts": 1_000,
            "buffer-size": 20_000,
            "batch-size": 128,
            "hidden-dim": 128,
            "log-interval": 250,
            "eval-interval": 500,
            "eval-episodes": 5,
            "checkpoint-interval": 1_000,
        },
        (5_000, 10_000),
        {"sr_sac": {"reset-interval": 80_000}},
        algos=("sac", "sr_sac"),
        replay_ratios=(1.0, 4.0, 16.0),
    ),
}
