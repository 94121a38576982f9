"""What a suite is, as plain data."""

from dataclasses import dataclass, field

EVALUATION = "eval/episodic_return"


@dataclass(frozen=True, kw_only=True)
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
    """flags of one script alone; the value of a switch is True"""
    task_flags: dict[str, dict[str, dict[str, object]]] = field(default_factory=dict)
    """flags of one script on one task: {script: {task: flags}}"""
    variants: dict[str, tuple[str, dict[str, object]]] = field(default_factory=dict)
    """further agents: {name: (script, flags)}"""
    algos: tuple[str, ...] = ("sac",)
    """what a sweep runs if none are named: scripts that fit the tasks, or variants"""
    replay_ratios: tuple[float, ...] = (1.0,)
    """and at which ratios"""
    algo_ratios: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """the ratios of a script that does not run at all of them; ratios that are named on the command line overrule it"""
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
