"""Two analyses of the SR paper in which SR-SPR has to train otherwise than its script: updates offline, a passive twin.

    python -m studies.analysis sr_spr --env-id Pong-v5 --replay-ratio 2 --offline-share 0.1
    python -m studies.analysis sr_spr --env-id Pong-v5 --replay-ratio 2 --passive-twin

trains as `python algos/sr_spr.py` does with the same flags, and with one or both of:

--offline-share S   Of the updates from one reset to the next, the share S is made in the step after the reset, on
                    what the replay holds; the others are spread evenly over the steps that follow. Resets stay at their
                    steps, and by the next one as many updates have been made as with 0. After the last reset it is the
                    same, for as many updates. The updates before the first reset stay where they are.
--passive-twin      A second learner with initial parameters, and parameters after resets, of its own. It learns from
                    the same rows, with the same noise and augmentation, at the same updates, but it never acts and sets
                    no priorities. Logged beside the active one: losses/passive_..., and eval/passive_..., the scores in
                    games of the same seeds.

bbf works too, and spr with the twin. Each run keeps a folder of its own: sr_spr_offline0.1_twin in place of sr_spr, if
no --exp-name is given. Sources: D'Oro et al. 2023, "Sample-Efficient Reinforcement Learning by Breaking the Replay
Ratio Barrier", which interleaves online and offline updates and has the twin; the twin is that of Ostrovski et al.
2021, "The Difficulty of Passive Learning in Deep Reinforcement Learning". BBF's code, too, can make updates offline
after a reset, but adds them to those of the cycle.
"""

import dataclasses
import fractions

import flax
import jax
import jax.numpy as jnp

from studies.churn import SCRIPTS, train
from benchmark.jobs import ROOT, load_script, require


@dataclasses.dataclass(frozen=True)
class Args:  # beside those of the script
    exp_name: str = ""  # name of the experiment, part of the run's folder; without one, the script's and these two
    offline_share: float = 0.0  # of the updates from one reset to the next, made at once after the reset
    passive_twin: bool = False  # a second learner, which learns from the same rows and never acts


@flax.struct.dataclass
class Twins:
    """Two Learners in the place of one: what reads networks there, to act or to log, finds the active one's; and
    BBF's horizon, which follows the number of updates since a reset, its optimizer's."""

    active: flax.struct.dataclass
    passive: flax.struct.dataclass

    @property
    def network(self):
        return self.active.network

    @property
    def target_network(self):
        return self.active.target_network

    @property
    def opt(self):
        return self.active.opt


def with_offline(script, plain):
    """The script, with a share of each cycle's updates moved to its beginning. `plain`: the script once more, as it is,
    which says when resets fall due."""

    def num_updates_until(args, step):
        total = plain.num_updates_until(args, step)
        share = dataclasses.replace(args, replay_ratio=args.offline_share)
        cycle = plain.num_useful_resets_until(args, step - 1)
        length = args.reset_interval
        into = jnp.clip(total - cycle * length, 0, length)  # this cycle, after which nothing is moved any more
        moved = plain.num_updates_until(share, length) - plain.num_updates_until(share, into)  # floor(share * updates)
        return total + jnp.where(cycle > 0, moved, 0)

    script.num_updates_until = num_updates_until
    script.num_useful_resets_until = plain.num_useful_resets_until
    script.num_resets_until = plain.num_resets_until


def with_twin(script, plain):
    """The script, with a passive learner beside the active one, whose random numbers stay those of the script alone."""

    def init_learner(args, key, obs):
        return Twins(
            active=plain.init_learner(args, key, obs),
            passive=plain.init_learner(args, jax.random.fold_in(key, 1), obs),
        )

    def reset(args, state):
        passive = state.replace(key=jax.random.fold_in(state.key, 1), learner=state.learner.passive)
        return Twins(
            active=plain.reset(args, state.replace(learner=state.learner.active)),
            passive=plain.reset(args, passive),
        )

    def update(args, learner, batch, key):
        active, info = plain.update(args, learner.active, batch, key)
        passive, passive_info = plain.update(args, learner.passive, batch, key)
        del passive_info["priorities"]
        info |= {tag.replace("/", "/passive_"): value for tag, value in passive_info.items()}
        return Twins(active=active, passive=passive), info

    def evaluate(args, learner, seeds, step):
        rows = plain.evaluate(args, learner.active, seeds, step)
        passive = plain.evaluate(args, learner.passive, seeds, step)
        return rows | {tag.replace("/", "/passive_"): values for tag, values in passive.items()}

    script.init_learner = init_learner
    script.update = update
    script.evaluate = evaluate
    if hasattr(plain, "reset"):
        script.reset = reset


def prepare(name):
    """-> the script as a module, and its Args with those of the analyses; what these ask for is done once they are
    checked, before anything of a run begins."""
    script, plain = (load_script(ROOT / "algos" / f"{name}.py") for _ in range(2))

    @dataclasses.dataclass(frozen=True)
    class Both(Args, script.Args):
        pass

    def check(args):
        plain.check(plain.Args(**{x.name: getattr(args, x.name) for x in dataclasses.fields(plain.Args)}))

    def main(args):
        require(args.offline_share or args.passive_twin, "give --offline-share, --passive-twin, or both")
        check(args)
        require(0 <= args.offline_share <= 1, f"--offline-share cannot be {args.offline_share}")
        n, d = fractions.Fraction(str(args.offline_share)).as_integer_ratio()
        require(n * d < 2**31, f"--offline-share {args.offline_share} has too many digits")
        resets = getattr(args, "reset_interval", 0)
        require(resets or not n, "--offline-share needs resets: a script that has them, and an interval")
        late = not n or plain.num_updates_until(args, args.learning_starts) < resets
        require(late, "--offline-share needs a longer --reset-interval: learning starts after the first reset")
        moves = not n or (resets * n // d > 0 and plain.num_useful_resets_until(args, args.total_timesteps - 1) > 0)
        require(moves, "--offline-share moves no update: there is no reset before the end, or the share is too small")
        if args.offline_share:
            with_offline(script, plain)
        if args.passive_twin:
            with_twin(script, plain)
        own = f"{name}_offline{args.offline_share:g}" if args.offline_share else name
        own += "_twin" if args.passive_twin else ""
        begin(dataclasses.replace(args, exp_name=args.exp_name or own))

    script.check, script.Args, begin, script.main = check, Both, script.main, main
    return script


def main():
    train("analysis", __doc__, SCRIPTS, prepare)


if __name__ == "__main__":
    main()
