"""What algorithms are called and what they look like."""

LABELS = {
    "sac": "SAC",
    "sr_sac": "SR-SAC",
    "redq": "REDQ",
    "sac_resets_200k": "SAC, reset every 200k steps",
    "dqn": "DQN",
    "sr_dqn": "SR-DQN",
    "rainbow": "Rainbow",
    "c51": "C51",
    "qr_dqn": "QR-DQN",
    "ensemble_dqn": "Ensemble-DQN",
    "rem": "REM",
    "dqn_half_step": "DQN, half the step size",
    "dqn_double_step": "DQN, double the step size",
    "dqn_adam": "DQN, Adam",
    "dqn_atari": "DQN",
    "der": "DER",
    "drq_eps": "DrQ(ε)",
    "spr": "SPR",
    "bbf": "BBF",
    "ac_lambda_0.8": "AC(0.8)",
    "ac_lambda_0": "AC(0)",
    "dqn_no_replay": "DQN without replay",
    "sr_sac_no_reset": "SR-SAC without resets",
    "dqn_3_step": "DQN, three steps",
    "dqn_noise": "DQN, noise",
    "dqn_dueling": "DQN, dueling",
    "dqn_double": "DQN, double",
    "dqn_priorities": "DQN, priorities",
    "rainbow_iqn": "Rainbow, IQN",
    "rainbow_quantiles": "Rainbow, quantiles",
    "rainbow_munchausen": "Rainbow, Munchausen",
    "rainbow_munchausen_iqn": "Rainbow, Munchausen, IQN",
    "rainbow_no_double": "Rainbow, not double",
    "rainbow_no_priorities": "Rainbow, uniform replay",
    "rainbow_no_dueling": "Rainbow, not dueling",
    "rainbow_1_step": "Rainbow, one step",
    "rainbow_no_distribution": "Rainbow, no distribution",
    "rainbow_no_noise": "Rainbow, no noise",
    "sr_spr": "SR-SPR",
}
COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000"]  # Okabe and Ito's
LINES = ["-", "--", "-.", ":"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
GREY = "#666666"


class Look:
    """What each algorithm looks like, and what it is called.

    It looks the same in every suite, but for one whose color another one of the suite has.
    """

    def __init__(self, algos, labels):
        self.labels = LABELS | labels
        known = [*LABELS, *sorted({*algos} - {*LABELS})]
        self.styles, taken = {}, set()
        for place, algo in enumerate(known):
            k = place % 7
            if algo in algos:
                k = next((j % 7 for j in range(k, k + 7) if j % 7 not in taken), k)
                taken.add(k)
            self.styles[algo] = {"color": COLORS[k], "linestyle": LINES[place % 4], "marker": MARKERS[k]}

    def name(self, algo):
        return self.labels.get(algo, algo)

    def config(self, config):
        return f"{self.name(config[0])}, ratio {config[1]:g}"

    def color(self, algo):
        return self.styles[algo]["color"]

    def line(self, algo):
        return {key: value for key, value in self.styles[algo].items() if key != "marker"}
