"""Rainbow's parts: priorities and what is drawn by them, n-step rows, noise, the loss with and without each part.

The judges are NumPy in float64, written from the papers, and rlax.
"""

import dataclasses
import sys
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import SMALL_GYMNAX, slow_but
from runs import advance, begin, random_batch

from studies import rainbow_as_released

pytestmark = pytest.mark.usefixtures("quick_programs")

PARTS = {  # how each part is switched off
    "double": {"double": False},
    "dueling": {"dueling": False},
    "noisy": {"noise_scale": 0.0},
    "n-step": {"n_step": 1},
    "prioritized": {"priority_exponent": 0.0},
    "distributional": {"distributional": False},
}
TINY = {"env_id": "CartPole-v1", "num_atoms": 7, "v_max": 3.0, "gamma": 0.9, "batch_size": 8, "buffer_size": 64}


def setup(rainbow, **options):
    args = rainbow.Args(**TINY | options)
    rainbow.make_task(args)
    return args


def random_replay(rainbow, args, seed=0):
    """A ring of random rows with ends of both kinds, and a tree of random priorities in which some are 0."""
    rng, n = np.random.default_rng(seed), args.buffer_size
    terminated = rng.random(n) < 0.15
    replay = rainbow.Transition(
        obs=rng.normal(size=(n, 4)).astype(np.float32), action=rng.integers(0, 2, n),
        reward=rng.normal(size=n).astype(np.float32), terminated=terminated,
        truncated=~terminated & (rng.random(n) < 0.15), next_obs=rng.normal(size=(n, 4)).astype(np.float32),
    )  # fmt: skip
    priorities = np.where(rng.random(n) < 0.3, 0, rng.gamma(0.5, size=n)).astype(np.float32)
    return jax.tree.map(jnp.asarray, replay), priorities, tree_of(rainbow, args, priorities)


def fresh(rainbow, args):
    """A State of one seed."""
    return rainbow.init_state(args, np.int32(0), 1, *rainbow.env_reset(args, jax.random.key(0)))


def tree_of(rainbow, args, priorities):
    tree = jnp.zeros(2 * 2 ** (args.buffer_size - 1).bit_length()).at[0].set(1)
    return rainbow.set_priorities(tree, jnp.arange(args.buffer_size), jnp.asarray(priorities))


def sample(rainbow, args, replay, tree, key):
    """-> index, weights, (obs, action, reward, discount, next_obs)"""
    batch = rainbow.sample_batch(args, replay, tree, key)
    return batch.index, batch.weight, (batch.obs, batch.action, batch.reward, batch.discount, batch.next_obs)


def keys_of_update(key):
    """A State's key -> that of the sample and those of the noise in the step's only update."""
    return jax.random.split(jax.random.fold_in(jax.random.split(key, 4)[3], 0), 4)


def learn(rainbow, args, learner, replay, tree, key, number):
    """The update with this number, as a step of a State with this key makes it -> learner, tree, what is logged."""
    args = dataclasses.replace(args, replay_ratio=1, learning_starts=1)
    rainbow.make_task(args)
    state = fresh(rainbow, args).replace(step=jnp.int32(number - 1), key=key, learner=learner, replay=replay, tree=tree)
    nothing_happens = lambda env, action: (
        env,
        (state.obs, jnp.float32(0), jnp.bool(False), jnp.bool(False), state.obs),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rainbow, "store", lambda args, state, transition: (state.replay, state.tree, state.stored))
        new, _ = jax.jit(lambda state: rainbow.train_step(args, nothing_happens, state, None))(state)
    assert new.metric_sums["updates"] == 1
    return new.learner, new.tree, new.metric_sums


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# Priorities


@pytest.mark.guards("sampling")
@pytest.mark.parametrize("size", [1, 2, 64, 100])
def test_sum_tree(rainbow, size):
    """Every node is the sum of its two, whatever is set in whichever order, rows that stand twice included."""
    args, rng = setup(rainbow, buffer_size=size), np.random.default_rng(size)
    known = np.zeros(size, np.float32)
    tree, largest = tree_of(rainbow, args, known), 1.0
    assert jax.eval_shape(partial(fresh, rainbow, args)).tree.shape == tree.shape
    for _ in range(20):
        index, value = rng.integers(0, size, 7), rng.gamma(0.3, size=7).astype(np.float32)
        value[:2] = 0
        for row, priority in reversed(list(zip(index, value, strict=True))):
            known[row] = priority  # of equal rows the first counts
        tree, largest = rainbow.set_priorities(tree, jnp.asarray(index), jnp.asarray(value)), max(largest, value.max())
        found = np.asarray(tree)
        half = len(found) // 2
        np.testing.assert_array_equal(found[half : half + size], known)
        assert not found[half + size :].any() and found[0] == np.float32(largest)
        for node in range(1, half):
            assert found[node] == np.float32(found[2 * node] + found[2 * node + 1])
        assert found[1] == pytest.approx(known.sum(dtype=np.float64), rel=1e-5)


@pytest.mark.guards("sampling")
def test_draws_are_proportional(rainbow):
    """One in each of equal parts of the sum; frequencies as the priorities; nothing of priority 0; weights by them."""
    args = setup(rainbow, importance_exponent=0.7)
    replay, priorities, tree = random_replay(rainbow, args)
    keys = jax.random.split(jax.random.key(3), 20_000)
    index, weights, _ = jax.jit(jax.vmap(partial(sample, rainbow, args, replay, tree)))(keys)
    bounds = np.cumsum(np.float64(priorities)) / priorities.sum(dtype=np.float64)
    parts = np.arange(9) / 8
    for part in range(8):  # the rows a part can reach
        rows = np.unique(index[:, part])
        assert (bounds[rows] >= parts[part] - 1e-6).all()
        assert (bounds[rows] - priorities[rows] / priorities.sum() <= parts[part + 1] + 1e-6).all()
    count = np.bincount(np.asarray(index).reshape(-1), minlength=64)
    expected = priorities / priorities.sum() * index.size
    assert not count[priorities == 0].any()
    assert (np.abs(count - expected) <= 5 * np.sqrt(expected)).all()
    wanted = (64 * priorities[index] / priorities.sum()) ** -0.7
    np.testing.assert_allclose(weights, wanted / wanted.max(1, keepdims=True), rtol=1e-4)


@pytest.mark.guards("sampling")
@pytest.mark.parametrize("draw", [0.0, 1.0])
def test_rounding_never_draws_a_row_of_priority_0(rainbow, draw, monkeypatch):
    """Even a draw at the very end of the sum, which jax.random.uniform does not give but float32's rounding can."""
    args = setup(rainbow)
    replay, priorities, _ = random_replay(rainbow, args)
    priorities[[0, -1]] = 0
    tree = tree_of(rainbow, args, priorities)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, draw))
    index, weights, _ = sample(rainbow, args, replay, tree, jax.random.key(0))
    assert (priorities[index] > 0).all() and np.isfinite(weights).all()


@pytest.mark.slow
@pytest.mark.guards("sampling")
def test_uniform_replay_is_priority_exponent_0(rainbow):
    args = setup(rainbow, priority_exponent=0.0)
    replay, _, _ = random_replay(rainbow, args)
    tree = tree_of(rainbow, args, np.ones(64))
    learner = rainbow.init_learner(args, jax.random.key(0), replay.obs[0])
    _, after, _ = learn(rainbow, args, learner, replay, tree, jax.random.key(1), 1)
    np.testing.assert_array_equal(after, tree)
    assert (sample(rainbow, args, replay, tree, jax.random.key(2))[1] == 1).all()


@pytest.mark.slow
@pytest.mark.guards("sampling")
@pytest.mark.parametrize("n_step", [1, 3])
def test_which_rows_may_be_drawn(rainbow, n_step):
    """All that are stored but the newest n - 1, in a ring that comes round; new ones with the largest priority."""
    args, env_step, state = begin(rainbow, [1, 2], n_step=n_step, buffer_size=37, batch_size=8, replay_ratio=0.75)
    for stored in range(1, 90):
        state, _ = advance(rainbow, args, env_step, state, 1)
        priorities = np.asarray(state.tree)[:, 64 : 64 + 37]
        newest = {(stored - 1 - i) % 37 for i in range(n_step - 1)}
        allowed = set(range(min(stored, 37))) - newest
        assert [set(np.flatnonzero(x)) for x in priorities] == [allowed, allowed]
        ready = (stored - n_step) % 37
        if stored >= n_step and (stored < args.learning_starts or stored % 4 == 1):  # no update in this step
            assert np.array_equal(priorities[:, ready], np.asarray(state.tree)[:, 0])
    assert (np.asarray(state.tree)[:, 0] > 1).all()  # and no longer the 1 it began with


# n steps


def n_step_by_hand(replay, first, n, gamma):
    """-> sum of rewards, discount, row of the last step. Sutton & Barto, equation 7.1, with both kinds of end."""
    total = 0.0
    for k in range(n):
        row = (first + k) % len(replay.reward)
        total += gamma**k * float(replay.reward[row])
        if replay.terminated[row]:
            return total, 0.0, row
        if replay.truncated[row]:
            break
    return total, gamma ** (k + 1), row


@pytest.mark.guards("sampling")
@pytest.mark.parametrize("n_step", [1, 3, 10])
def test_n_steps(rainbow, n_step):
    """Rows near ends of both kinds and across the ring's; episodes shorter than n; a truncated one's value goes on."""
    args = setup(rainbow, n_step=n_step, batch_size=200)
    replay, _, _ = random_replay(rainbow, args)
    index, _, batch = sample(rainbow, args, replay, tree_of(rainbow, args, np.ones(64)), jax.random.key(0))
    assert set(np.asarray(index)) == set(range(64))
    obs, action, rewards, discount, final_obs = (np.asarray(x) for x in batch)
    kinds = set()
    for i, first in enumerate(np.asarray(index)):
        total, factor, row = n_step_by_hand(replay, first, n_step, 0.9)
        kinds.add((bool(replay.terminated[row]), bool(replay.truncated[row]), (row - first) % 64 == n_step - 1))
        assert rewards[i] == pytest.approx(total, abs=1e-5) and discount[i] == pytest.approx(factor, rel=1e-6)
        np.testing.assert_array_equal(final_obs[i], replay.next_obs[row])
        np.testing.assert_array_equal(obs[i], replay.obs[first])
        assert action[i] == replay.action[first]
    assert len(kinds) >= (3 if n_step == 1 else 5 if n_step == 3 else 2)  # ends of both kinds, early, late and none


@pytest.mark.guards("sampling")
def test_n_step_targets_against_rlax(rainbow, rlax):
    """rlax bootstraps n steps later, or at a trajectory's end: the same where episodes end by a discount of 0."""
    args = setup(rainbow, n_step=3, batch_size=200)
    replay, _, _ = random_replay(rainbow, args)
    replay = replay.replace(truncated=jnp.zeros(64, bool))
    index, _, (_, _, rewards, discount, final_obs) = sample(
        rainbow, args, replay, tree_of(rainbow, args, np.ones(64)), jax.random.key(0)
    )
    ahead = jnp.concatenate([jnp.arange(64), jnp.arange(3)])  # once round the ring, and on
    values = final_obs.sum(-1)
    theirs = rlax.n_step_bootstrapped_returns(
        replay.reward[ahead], (0.9 * (1 - replay.terminated))[ahead], replay.next_obs[ahead].sum(-1), n=3
    )
    np.testing.assert_allclose(rewards + discount * values, theirs[index], atol=1e-5)


@pytest.mark.slow
@pytest.mark.guards("fresh")
def test_nothing_reaches_into_a_fresh_episode(rainbow):
    """Where a resume begins new episodes, no n steps reach across: the row before counts as truncated, and its target
    has its own next observation. Priorities are those of any rows, and only what is known of the episode changes."""
    args = setup(rainbow, n_step=4, buffer_size=37, learning_starts=1000, total_timesteps=1000, batch_size=200)
    rng, seams = np.random.default_rng(3), {*range(5, 120, 9), 60, 61, 85}
    image = lambda: jnp.asarray(rng.normal(size=4), jnp.float32)
    state, rows = fresh(rainbow, args), []
    step = jax.jit(lambda state, out: rainbow.train_step(args, lambda env, action: (env, out), state, None)[0])
    renew = jax.jit(partial(rainbow.fresh_episode, args))
    draw = jax.jit(lambda state, tree: rainbow.sample_batch(args, state.replay, tree, state.key))
    kinds = set()
    for i in range(120):
        if i in seams:
            before, state = state, renew(state, obs := image())
            rows[-1] = *rows[-1][:3], True, rows[-1][4]
            assert np.array_equal(state.obs, obs) and state.episode_return == state.episode_length == 0
            rest = dict.fromkeys(("replay", "obs", "episode_return", "episode_length"))
            equal = jax.tree.map(lambda x, y: (x == y).all(), before.replace(**rest), state.replace(**rest))
            assert all(jax.tree.leaves(equal))
        terminated, truncated = rng.random() < 0.08 or i + 1 in (41, 77), rng.random() < 0.08  # these before seams
        ends = jnp.bool(terminated), jnp.bool(truncated and not terminated)
        out = image(), jnp.float32(rng.normal()), *ends, image()
        rows.append((state.obs, out[1], bool(ends[0]), bool(ends[1]), out[0]))
        state = step(state, out)
        allowed = {k % 37 for k in range(max(0, i + 1 - 37), i + 1 - 3)}
        assert set(np.flatnonzero(state.tree[64:])) == allowed and state.stored == i + 1
        if i < 10 or i % 2:
            continue
        batch = jax.tree.map(np.asarray, draw(state, state.tree))
        assert set(batch.index) == allowed
        for row, at in zip(*np.unique(batch.index, return_index=True), strict=True):
            first = row + (i - row) // 37 * 37
            total = 0.0
            for k in range(4):
                obs, reward, terminated, truncated, next_obs = rows[first + k]
                total += 0.9**k * float(reward)
                if terminated or truncated:
                    break
            factor = 0 if terminated else 0.9 ** (k + 1)
            assert batch.reward[at] == pytest.approx(total, abs=1e-5)
            assert batch.discount[at] == pytest.approx(factor, rel=1e-5)
            assert np.array_equal(batch.obs[at], rows[first][0]) and np.array_equal(batch.next_obs[at], next_obs)
            kinds |= {(seam - first, rows[seam - 1][2]) for seam in seams if seam <= i}
    assert kinds >= {(k, over) for k in range(1, 5) for over in (False, True)}


# Noise


@pytest.mark.guards("networks")
def test_noisy_layer(rainbow):
    """Weights mean + sigma * f(in) f(out), biases mean + sigma * f(out), f(x) = sign(x) sqrt|x| of normal draws: seen
    on a network that is one such layer. Fortunato et al. 2018, equations 9 to 11; sigma as in section 3.2."""
    args = setup(rainbow, dueling=False, distributional=False, noise_scale=0.4)
    network = rainbow.init_learner(args, jax.random.key(0), jnp.zeros(4)).network
    p = {name: np.float64(x) for name, x in network["params"].items()}
    assert set(p) == {f"advantage_{part}" for part in ("kernel", "bias", "kernel_sigma", "bias_sigma")}
    kernel, bias, sigma = p["advantage_kernel"], p["advantage_bias"], 0.4 / np.sqrt(4)
    assert kernel.shape == (2, 4) and (np.abs(kernel) <= 0.5).all() and (np.abs(bias) <= 0.5).all()
    assert all(np.allclose(p[f"advantage_{part}_sigma"], sigma, rtol=1e-6) for part in ("kernel", "bias"))
    value = lambda obs, **noise: rainbow.q_values(args, network, obs, **noise)
    np.testing.assert_allclose(value(jnp.ones(4)), kernel.sum(1) + bias, rtol=1e-5)  # no key: the mean
    seen = jax.vmap(lambda key: jax.vmap(partial(value, noise=key))(jnp.vstack([jnp.zeros(4), jnp.eye(4)])))
    out = np.float64(seen(jax.random.split(jax.random.key(1), 4000)))
    f_out = (out[:, 0] - bias) / sigma  # (draws, 2)
    products = (out[:, 1:].swapaxes(1, 2) - out[:, 0, :, None] - kernel) / sigma  # (draws, 2, 4)
    f_in = products[:, 0] / f_out[:, :1]
    well = (np.abs(f_out) > 0.1).all(1)
    np.testing.assert_allclose(products[well], (f_out[:, :, None] * f_in[:, None])[well], atol=2e-4)
    for draws in (*f_out[well].T, *f_in[well].T):
        normal = np.sort(np.sign(draws) * draws**2)
        quantiles = np.array([-1.6449, -0.6745, 0, 0.6745, 1.6449])  # 5, 25, 50, 75, 95 %
        np.testing.assert_allclose(np.quantile(normal, [0.05, 0.25, 0.5, 0.75, 0.95]), quantiles, atol=0.12)
    assert np.abs(np.corrcoef(np.hstack([f_out, f_in])[well].T) - np.eye(6)).max() < 0.08


@pytest.mark.slow
@pytest.mark.guards("networks")
def test_noise_is_drawn_anew_at_every_use(rainbow):
    """For every step, update and pass; the layers and streams each their own; alike for all rows of a batch."""
    args = setup(rainbow, hidden_dim=5, noise_scale=0.4)
    network = rainbow.init_learner(args, jax.random.key(0), jnp.zeros(4)).network
    assert len(network["params"]) == 4 * 4  # two streams of two layers
    used, normal = [], jax.random.normal
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "normal", lambda key, shape: used.append((key, shape)) or normal(key, shape))
        rainbow.q_values(args, network, jnp.zeros(4), noise=jax.random.key(1))
        # As many as outputs and inputs: 5 + 4, 14 + 5, 5 + 4 and 7 + 5, of which odd ones leave one over.
        assert [shape for _, shape in used] == [(10,), (20,), (10,), (12,)]
        assert len({tuple(map(int, jax.random.key_data(key))) for key, _ in used}) == 4
        used.clear()
        rainbow.q_values(args, network, jnp.zeros(4))
        assert not used
    q = lambda key, obs: np.asarray(rainbow.q_values(args, network, obs, noise=key))
    assert not np.allclose(q(jax.random.key(1), jnp.ones(4)), q(jax.random.key(2), jnp.ones(4)))
    rows = jax.vmap(partial(rainbow.q_values, args, network, noise=jax.random.key(1)))(jnp.ones((3, 4)))
    np.testing.assert_array_equal(rows[0], rows[2])


@pytest.mark.slow
@pytest.mark.guards("loss")
def test_noise_of_an_update(rainbow):
    """The loss is that of three passes, each with the noise of its own key, and of no other keys."""
    args = setup(rainbow, noise_scale=3.0, distributional=False)
    replay, _, tree = random_replay(rainbow, args)
    learner = rainbow.init_learner(args, jax.random.key(0), replay.obs[0])
    key = jax.random.key(7)
    draw_key, *keys = keys_of_update(key)
    _, weights, (obs, action, rewards, discount, final_obs) = sample(rainbow, args, replay, tree, draw_key)

    def loss(one, two, three):
        values = lambda key, obs: jax.vmap(partial(rainbow.q_values, args, learner.network, noise=key))(obs)
        best = values(three, final_obs).argmax(1)[:, None]
        target = rewards + discount * jnp.take_along_axis(values(two, final_obs), best, 1)[:, 0]
        error = jnp.abs(jnp.take_along_axis(values(one, obs), action[:, None], 1)[:, 0] - target)
        return float((weights * jnp.where(error <= 1, 0.5 * error**2, error - 0.5)).mean())

    found = float(learn(rainbow, args, learner, replay, tree, key, 1)[2]["losses/q_loss"])
    assert found == pytest.approx(loss(*keys), rel=1e-5)
    others = [loss(*(keys[i] for i in order)) for order in ((0, 0, 2), (1, 1, 2))]
    assert all(other != pytest.approx(found, rel=1e-3) for other in others)
    chosen = [loss(*keys[:2], key) for key in jax.random.split(draw_key, 8)]  # two actions: some choices are the same
    assert any(other != pytest.approx(found, rel=1e-3) for other in chosen)


@pytest.mark.slow
@pytest.mark.guards("acting")
def test_noise_of_steps_and_updates(rainbow, monkeypatch):
    """Every action and every update has a key of its own, in every seed."""
    seen, update, q_values = [], rainbow.update, rainbow.q_values
    record = lambda key: jax.debug.callback(lambda x: seen.append(tuple(map(int, x))), jax.random.key_data(key))

    def recorded_update(args, learner, batch, key):
        record(key)
        return update(args, learner, batch, key)

    def recorded_values(args, network, obs, **rngs):
        if rngs:
            record(rngs["noise"])
        return q_values(args, network, obs, **rngs)

    args, env_step, state = begin(rainbow, [1, 2], env_id="CartPole-v1", num_atoms=7, double=False, replay_ratio=2)
    monkeypatch.setattr(rainbow, "update", recorded_update)
    monkeypatch.setattr(rainbow, "q_values", recorded_values)
    advance(rainbow, args, env_step, state, 60)
    jax.effects_barrier()
    assert len(seen) == len({*seen}) == 2 * (60 + 2 * 11)  # the first update comes in step 50
    rainbow.train_chunk.clear_cache()


@pytest.mark.slow
@pytest.mark.guards("acting")
def test_actions_with_and_without_noise(rainbow):
    """With it epsilon falls at once, after random actions until learning starts; else it falls over its schedule."""
    noisy, plain = setup(rainbow), setup(rainbow, noise_scale=0.0)
    assert [float(rainbow.epsilon(noisy, step)) for step in (1, 1000, 1001, 10**6)] == pytest.approx([1, 1, 0.01, 0.01])
    steps = (1, 1000, 126_000, 251_000)
    assert [float(rainbow.epsilon(plain, step)) for step in steps] == pytest.approx([1, 1, 0.505, 0.01])
    args, env_step, state = begin(rainbow, [1], end_e=0.0, noise_scale=5.0, sticky=0.0, replay_ratio=0.01)
    state, _ = advance(rainbow, args, env_step, state, 99)  # without an update yet
    network = jax.tree.map(lambda x: x[0], state.learner.network)
    best = jax.vmap(lambda obs: rainbow.q_values(args, network, obs).argmax())(state.replay.obs[0, 60:99])
    assert (np.asarray(best) != np.asarray(state.replay.action[0, 60:99])).any()  # noise acts, not the mean


# The loss


def forward(params, obs, args):
    """The network without noise -> values, and logits or values, from float64 products."""
    stream = lambda name: (params[f"{name}_kernel"] @ obs + params[f"{name}_bias"]).reshape(
        2 if name == "advantage" else 1, -1
    )
    out = stream("advantage")
    if args.dueling:
        out = stream("value") + out - out.mean(0, keepdims=True)
    z = np.linspace(-args.v_max, args.v_max, args.num_atoms)
    return (softmax(out) @ z if args.distributional else out[:, 0]), out


@pytest.mark.guards("loss")
@pytest.mark.parametrize("off", slow_but(None, of=[None, *PARTS]))
def test_update_against_numpy(rainbow, off):
    """The whole loss, the new priorities and the first Adam step's target copy, with all parts and without each."""
    args = setup(rainbow, **PARTS.get(off, {}) | ({"noise_scale": 1e-8} if off != "noisy" else {}))
    replay, _, tree = random_replay(rainbow, args)
    online, target = (rainbow.init_learner(args, jax.random.key(i), replay.obs[0]) for i in (1, 2))
    online = online.replace(target_network=jax.tree.map(lambda x: 3 * x, target.network))
    online = online.replace(network=jax.tree.map(lambda x: 3 * x, online.network))
    names = lambda tree: {name: np.float64(x) for name, x in tree["params"].items()}
    p, p_target = names(online.network), names(online.target_network)
    key = jax.random.key(7)
    index, weights, _ = sample(rainbow, args, replay, tree, keys_of_update(key)[0])
    z, rows = np.linspace(-3, 3, 7), [int(first) for first in index]

    def all_losses(p, chooser):
        """`chooser` stays as it is while `p` is varied: no gradient goes through the choice."""
        for first in rows:
            rewards, discount, last = n_step_by_hand(replay, first, args.n_step, 0.9)
            q, out = forward(p, np.float64(replay.obs[first]), args)
            next_q, next_out = forward(p_target, np.float64(replay.next_obs[last]), args)
            own_q, _ = forward(chooser, np.float64(replay.next_obs[last]), args)
            best = (own_q if args.double else next_q).argmax()
            action = int(replay.action[first])
            if args.distributional:
                wanted = np.zeros(7)
                for value, mass in zip(rewards + discount * z, softmax(next_out[best]), strict=True):
                    value = min(max(value, -3), 3)
                    wanted += mass * np.maximum(0, 1 - np.abs(value - z))
                yield -(wanted * np.log(softmax(out[action]))).sum()
            else:
                error = abs(q[action] - rewards - discount * next_q[best])
                yield 0.5 * error**2 if error <= 1 else error - 0.5

    losses, weights = [*all_losses(p, p)], np.asarray(weights)
    other = [forward(p, np.float64(x), args)[0].argmax() != forward(p_target, np.float64(x), args)[0].argmax()
             for x in replay.next_obs]  # fmt: skip
    assert any(other)
    update = partial(learn, rainbow, args)
    learner, new_tree, info = update(online, replay, tree, key, 250)
    assert float(info["losses/q_loss"]) == pytest.approx(float((weights * losses).mean()), rel=1e-4)
    kept = update(online, replay, tree, key, 249)[0]
    changed = names(kept.network)["advantage_bias"] - p["advantage_bias"]
    for row in range(min(len(changed), 3)):  # Adam's first step by finite differences: -rate g / (|g| + eps)
        sides = []
        for shift in (1e-5, -1e-5):
            moved = p | {"advantage_bias": p["advantage_bias"] + shift * (np.arange(len(p["advantage_bias"])) == row)}
            sides.append((weights * [*all_losses(moved, p)]).mean())
        g = (sides[0] - sides[1]) / 2e-5
        assert changed[row] == pytest.approx(-1e-4 * g / (abs(g) + 3.125e-4), rel=0.02, abs=1e-6)
    wanted = (np.array(losses) + 1e-10) ** args.priority_exponent
    for i, row in enumerate(np.asarray(index)):
        assert float(new_tree[64 + row]) == pytest.approx(wanted[i], rel=1e-4)
    jax.tree.map(np.testing.assert_array_equal, learner.network, learner.target_network)  # update 250 copies
    jax.tree.map(np.testing.assert_array_equal, kept.target_network, online.target_network)


@pytest.mark.guards("loss")
@pytest.mark.parametrize("double, distributional", [
    (True, True),
    *[pytest.param(*given, marks=pytest.mark.slow) for given in ((False, False), (False, True), (True, False))],
])  # fmt: skip
def test_update_against_rlax(rainbow, rlax, double, distributional):
    args = setup(
        rainbow, double=double, distributional=distributional, noise_scale=0.0, priority_exponent=0.0, n_step=1
    )
    replay, _, tree = random_replay(rainbow, args)
    learner = rainbow.init_learner(args, jax.random.key(1), replay.obs[0])
    target = jax.tree.map(lambda x: 5 * x, rainbow.init_learner(args, jax.random.key(2), replay.obs[0]).network)
    learner = learner.replace(target_network=target)
    key = jax.random.key(7)
    _, weights, (obs, action, rewards, discount, final_obs) = sample(
        rainbow, args, replay, tree, keys_of_update(key)[0]
    )
    apply = jax.vmap(rainbow.Network(args).apply, (None, 0))
    (q, out), (next_q, next_out), (own_q, _) = (
        apply(*x) for x in ((learner.network, obs), (target, final_obs), (learner.network, final_obs))
    )
    z = jnp.tile(jnp.linspace(-3, 3, 7), (8, 1))
    if distributional and double:
        theirs = jax.vmap(rlax.categorical_double_q_learning)(z, out, action, rewards, discount, z, next_out, own_q)
    elif distributional:
        theirs = jax.vmap(rlax.categorical_q_learning)(z, out, action, rewards, discount, z, next_out)
    else:
        args_of = (q, action, rewards, discount, next_q)
        error = jax.vmap(rlax.double_q_learning)(*args_of, own_q) if double else jax.vmap(rlax.q_learning)(*args_of)
        theirs = rlax.huber_loss(error)
    info = learn(rainbow, args, learner, replay, tree, key, 1)[2]
    assert float(info["losses/q_loss"]) == pytest.approx(float((weights * theirs).mean()), rel=1e-5)


@pytest.mark.guards("loss")
def test_distributions_of_the_parents_against_rlax(c51, qr_dqn, rlax):
    """C51's projection, with values beyond the support and exactly on an atom, and its loss; QR-DQN's quantile loss."""
    args = c51.Args(num_atoms=7, v_max=3.0)
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=7) * 4, np.linspace(-3, 3, 7), np.full(7, 1.0), np.linspace(-30, 30, 7)):
        p = jnp.asarray(softmax(rng.normal(size=7)), jnp.float32)
        theirs = rlax.categorical_l2_project(jnp.float32(np.sort(values)), p, jnp.linspace(-3, 3, 7))
        np.testing.assert_allclose(c51.project(args, jnp.float32(np.sort(values)), p), theirs, atol=1e-6)
    args = c51.Args(num_atoms=7, v_max=3.0, hidden_dim=8)
    c51.make_task(args)
    batch, obs = random_batch(c51, 9), np.zeros((10, 10, 4), bool)
    online, target = (c51.init_learner(args, jax.random.key(i), obs).network for i in (1, 2))
    apply, z = jax.vmap(c51.Network(args).apply, (None, 0)), jnp.tile(jnp.linspace(-3, 3, 7), (9, 1))
    discount = args.gamma * (1 - jnp.float32(batch.terminated))
    theirs = jax.vmap(rlax.categorical_q_learning)(
        z, apply(online, batch.obs), batch.action, batch.reward, discount, z, apply(target, batch.next_obs)
    )
    assert float(c51.q_loss(online, args, target, batch)[0]) == pytest.approx(float(theirs.mean()), rel=1e-4)
    args = qr_dqn.Args(hidden_dim=8)
    online, target = (qr_dqn.init_learner(args, jax.random.key(i), obs).network for i in (1, 2))
    apply = jax.vmap(qr_dqn.Network(args).apply, (None, 0))
    out, following = (apply(*x).swapaxes(1, 2) for x in ((online, batch.obs), (target, batch.next_obs)))
    n = out.shape[1]
    tau = jnp.tile((jnp.arange(n) + 0.5) / n, (9, 1))
    theirs = jax.vmap(partial(rlax.quantile_q_learning, huber_param=1.0))(
        out, tau, batch.action, batch.reward, discount, following, following
    )
    assert float(qr_dqn.q_loss(online, args, target, batch)[0]) == pytest.approx(float(theirs.mean()), rel=1e-4)


@pytest.mark.guards("ring")
def test_memory_and_bad_settings(rainbow):
    args = rainbow.Args(**SMALL_GYMNAX | {"num_seeds": 1})
    rainbow.make_task(args)
    state = jax.eval_shape(partial(fresh, rainbow, args))
    row = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.replay)) / args.buffer_size
    assert row <= 816
    for bad in ({"n_step": 0}, {"noise_scale": -1.0}, {"n_step": 40, "batch_size": 32, "learning_starts": 60}):
        with pytest.raises(SystemExit):
            rainbow.check(rainbow.Args(**SMALL_GYMNAX | bad))


# What the code of Revisiting Rainbow does otherwise: studies/rainbow_as_released.py, whose curves are on the page


@pytest.fixture(scope="module")
def as_released():
    """departures -> the changed script, as a module"""

    def make(*departures):
        name = "_".join(["rainbow", *departures])
        module = sys.modules[name] = types.ModuleType(name)
        module.__file__ = f"{name}.py"
        exec(rainbow_as_released.changed(departures), module.__dict__)
        return module

    return make


@pytest.mark.slow
@pytest.mark.guards("networks")
def test_released_weights_and_start(rainbow, as_released):
    theirs = as_released("weights", "start")
    args = theirs.Args(env_id="Freeway-MinAtar")
    theirs.make_task(args)
    found = theirs.Network(args).init(jax.random.key(1), jnp.zeros((10, 10, 7), bool))["params"]
    bound = (6 / (27 * 7 + 27 * 16)) ** 0.5
    kernel = np.abs(found["Conv_0"]["kernel"])
    assert kernel.shape == (3, 3, 7, 16) and 0.98 * bound < kernel.max() <= bound
    assert kernel.mean() == pytest.approx(bound / 2, rel=0.05) and not found["Conv_0"]["bias"].any()
    for name in ("value_kernel", "advantage_kernel", "advantage_bias"):  # as in the script
        assert 0.9 / 40 < np.abs(found[name]).max() <= 1 / 40
    assert float(theirs.epsilon(args, 1)) == args.end_e < float(rainbow.epsilon(args, 1)) == 1


@pytest.mark.slow
@pytest.mark.guards("networks")
def test_released_noise_and_streams(rainbow, as_released, monkeypatch):
    """The same for every key; two vectors that begin alike; what is taken off all actions alike, softmax undoes."""
    theirs, rng = as_released("noise", "streams"), np.random.default_rng(0)
    args = theirs.Args(**TINY, noise_scale=0.5)
    theirs.make_task(args)
    obs, params = rng.normal(size=4).astype(np.float32), theirs.init_learner(args, jax.random.key(1), jnp.zeros(4))
    x, p = np.float64(obs), jax.tree.map(np.float64, params.network["params"])
    drawn = lambda n: (lambda z: np.sign(z) * np.abs(z) ** 0.5)(np.float64(jax.random.normal(jax.random.key(0), (n,))))
    layer = lambda name, n: (
        (p[f"{name}_kernel"] + p[f"{name}_kernel_sigma"] * np.outer(drawn(n), drawn(4))) @ x
        + p[f"{name}_bias"]
        + p[f"{name}_bias_sigma"] * drawn(n)
    )
    wanted = softmax(layer("value", 7) + layer("advantage", 14).reshape(2, 7)) @ np.linspace(-3, 3, 7)
    found = theirs.q_values(args, params.network, jnp.asarray(obs), noise=jax.random.key(0))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)

    # A replay of one transition alone, so that the draw of rows does not tell: no key changes an update or an action.
    replay = jax.tree.map(lambda x: jnp.repeat(x[:1], 64, 0), random_replay(rainbow, args)[0])
    replay = replay.replace(terminated=jnp.zeros(64, bool), truncated=jnp.zeros(64, bool))
    tree, keys = tree_of(rainbow, args, np.ones(64)), jax.random.split(jax.random.key(5), 4)
    for module, equal in ((theirs, True), (rainbow, False)):
        update = lambda key, module=module: learn(module, args, params, replay, tree, key, 1)[0]
        one, two = (update(key).network["params"]["value_kernel"] for key in keys[:2])
        assert np.allclose(one, two, atol=1e-6) == equal, module
        env_step = partial(module.env_step, args)
        state, seen = fresh(module, args).replace(obs=jnp.asarray(obs), learner=params), []
        with monkeypatch.context() as patch:
            patch.setattr(module, "act", lambda q, key, epsilon: jnp.int32(seen.append(q) or 0))  # noqa: B023
            patch.setattr(module, "update", lambda args, learner, batch, key: (learner, {"priorities": jnp.ones(8)}))
            step = lambda key: (module.train_step(args, env_step, state.replace(key=key), None), seen[-1])[1]  # noqa: B023
            values = jax.jit(jax.vmap(step))(keys)
        assert np.allclose(values, values[0], atol=1e-6) == equal, module
