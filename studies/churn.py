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


def churn(script, args, updates, state):
    """What `updates` gradient updates (an integer, which may be traced) would change in one seed's State -> dict of
    float32, all in [0, 1]. The state must hold rows that may be drawn, those with a priority; it is not changed."""
    row_key, update_key = jax.random.split(jax.random.fold_in(state.key, ROWS))
    rising = jnp.cumsum(state.priorities > 0)
    drawn = jax.random.randint(row_key, (ROWS,), 0, rising[-1])  # alike for all rows, whatever their priority
    rows = jnp.searchsorted(rising, drawn, side="right")
    obs, held = script.stacks(args, state.replay, rows), state.replay.action[rows]

    def greedy(network):
        return jax.lax.map(lambda obs: script.q_values(args, network, obs).argmax(), obs, batch_size=32)

    update = partial(script.update, args, state.replay, update_key)
    after = jax.lax.fori_loop(0, updates, update, (state.learner, state.priorities, state.totals))[0]
    online, target = greedy(after.network), greedy(after.target_network)
    differs = {
        "online": online != greedy(state.learner.network),
        "target": target != greedy(state.learner.target_network),
        "off_policy_online": online != held,
        "off_policy_target": target != held,
    }
    return {name: x.mean() for name, x in differs.items()} | {"agreement": (online == target).mean()}


def with_churn(script):
    """The script's `metrics` with those of churn beside its own."""
    metrics, seeds = script.metrics, (None, script.AXES)
    measure = jax.jit(
        lambda args, updates, state: jax.vmap(partial(churn, script, args), seeds)(updates, state), static_argnums=0
    )

    def both(args, state):
        step, found = int(state.step), {}
        if step >= args.learning_starts:
            due = script.updates_by(args, step + 1) - script.updates_by(args, step)
            found = jax.device_get(measure(args, max(1, due), state))
        for seed, own in enumerate(metrics(args, state)):
            yield own | {f"churn/{name}": x[seed] for name, x in found.items()}

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
    try:
        script.main(args)
    except OSError as error:
        require(False, f"cannot use {error.filename or 'an output'}: {error.strerror or error}; what was saved is kept")


def main():
    train("churn", __doc__, SCRIPTS, prepare)


if __name__ == "__main__":
    main()
