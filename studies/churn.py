"""Policy churn: how many greedy actions change with a single step's updates, logged while SPR, SR-SPR or BBF trains.

    python -m studies.churn sr_spr --env-id Pong-v5 --replay-ratio 2

trains as `python algos/sr_spr.py` does with the same flags, to the same bits, and logs five more values for each seed
at every log once learning has begun. Greedy actions, without noise and augmentation, are taken in 256 rows of the
replay before and after the gradient updates of the next step (one at least), which are made on the side and thrown
away:

churn/online, churn/target         share of rows in which the online, the target network chooses another action after
churn/agreement                    share in which both networks choose the same action, after
churn/off_policy_online, _target   share in which that choice is not the action that the replay holds, after

Sources: Schaul et al. 2022, "The Phenomenon of Policy Churn", which counts per update; the five quantities are those of
BBF's code, which counts over a group of batches. A reset that falls due is not counted. A run may be stopped and go on
with or without this measurement, whose time is in run.json's but not in charts/SPS.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import tyro

from benchmark.jobs import ROOT, load_script, require

SCRIPTS = ("spr", "sr_spr", "bbf")  # whose `update` is the body of a step's loop
ROWS = 256


def one_update(script, args, replay, update_key, i, carry):
    """The body of a step's loop over its updates, as in the script's `train_step`, for Learner and priorities."""
    learner, priorities = carry
    key = jax.random.fold_in(update_key, i)
    sample_key = jax.random.split(key)[0]
    horizon = ()
    if hasattr(script, "annealed_horizon"):
        horizon = script.annealed_horizon(args, learner.opt)
    batch = script.sample_batch(args, replay, priorities, sample_key, *horizon)
    learner, info = script.update(args, learner, batch, key)
    return learner, script.update_priorities(priorities, batch.index, info["priorities"])


def churn(script, args, num_updates, state):
    """What so many gradient updates would change in one seed's State -> dict of float32, all in [0, 1].

    The state must hold rows that may be sampled, those with a priority; it is not changed.
    """
    row_key, update_key = jax.random.split(jax.random.fold_in(state.key, ROWS))
    cumulative = jnp.cumsum(state.priorities > 0)
    draws = jax.random.randint(row_key, (ROWS,), 0, cumulative[-1])  # alike for all rows, whatever their priority
    rows = jnp.searchsorted(cumulative, draws, side="right")
    obs = script.frame_stacks(args, state.replay, rows)
    taken = state.replay.action[rows]

    def greedy(network):
        return jax.lax.map(lambda obs: script.q_values(args, network, obs).argmax(), obs, batch_size=32)

    update = partial(one_update, script, args, state.replay, update_key)
    after, _ = jax.lax.fori_loop(0, num_updates, update, (state.learner, state.priorities))
    online = greedy(after.network)
    target = greedy(after.target_network)
    differs = {
        "online": online != greedy(state.learner.network),
        "target": target != greedy(state.learner.target_network),
        "agreement": online == target,
        "off_policy_online": online != taken,
        "off_policy_target": target != taken,
    }
    return {name: x.mean() for name, x in differs.items()}


def with_churn(script):
    """The script's `metrics` of one seed, with those of churn beside its own: NaN, so not logged, before learning."""
    metrics = script.metrics

    def both(args, state):
        due = script.num_updates_until(args, state.step + 1) - script.num_updates_until(args, state.step)
        measure = partial(churn, script, args, jnp.maximum(1, due), state)
        nothing = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), jax.eval_shape(measure))
        found = jax.lax.cond(state.step >= args.learning_starts, measure, lambda: nothing)
        return metrics(args, state) | {f"churn/{name}": value for name, value in found.items()}

    return both


def prepare(name):
    """-> the script as a module, which logs churn, too."""
    script = load_script(ROOT / "algos" / f"{name}.py")
    script.metrics = with_churn(script)
    return script


def train(tool, about, scripts, prepare):
    """`python -m studies.TOOL NAME ...`: what `prepare` makes of the script of that name trains with its flags."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(about)
        return
    require(name in scripts, f"studies.{tool} is for {', '.join(scripts)}; give one of them, then its flags")
    script = prepare(name)
    args = tyro.cli(script.Args, prog=f"studies.{tool} {name}", args=sys.argv[2:])
    sys.argv[:1] = ["-m", f"studies.{tool}"]  # the command that run.json will hold
    script.main(args)


def main():
    train("churn", __doc__, SCRIPTS, prepare)


if __name__ == "__main__":
    main()
