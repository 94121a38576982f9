"""DQN on gymnax: its mathematics, what its replay holds, small worlds with known values, MinAtar itself."""

import re
import sys
import types
from functools import partial

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import numpy_dqn as judge
import pytest
from common import ROOT, SMALL_GYMNAX, refused, run, slow_but
from flax import linen as nn, struct
from gymnax.environments import environment, spaces
from runs import advance, begin, idle, leaves, logged, random_batch


pytestmark = pytest.mark.usefixtures("quick_programs")

NAMES = {
    "conv_kernel": ("Encoder_0", "Conv_0", "kernel"),
    "conv_bias": ("Encoder_0", "Conv_0", "bias"),
    "hidden_kernel": ("Encoder_0", "Dense_0", "kernel"),
    "hidden_bias": ("Encoder_0", "Dense_0", "bias"),
    "out_kernel": ("Dense_0", "kernel"),
    "out_bias": ("Dense_0", "bias"),
}


def plain(params):  # the script's parameters -> the judge's, float64
    found = {}
    for name, path in NAMES.items():
        x = params["params"]
        for key in path:
            x = x[key]
        found[name] = np.asarray(x, np.float64)
    return found


# The update


@pytest.mark.guards("loss")
@pytest.mark.parametrize("name, optimizer, in_sqrt, loss, padding", [
    ("dqn", "rmsprop", False, "huber", "VALID"), ("dqn", "rmsprop", True, "mse", "SAME"),
    ("dqn", "adam", False, "huber", "VALID"), ("sr_dqn", "adam", False, "huber", "SAME"),
])  # fmt: skip
def test_updates_against_numpy(name, optimizer, in_sqrt, loss, padding, request):
    """Five updates, with a copy to the target network at the third: parameters as NumPy in float64 computes them."""
    script = request.getfixturevalue(name)
    args = script.Args(
        optimizer=optimizer, eps_in_sqrt=in_sqrt, loss=loss, padding=padding, target_interval=3, hidden_dim=12,
        learning_rate=0.01, gamma=0.9,
    )  # fmt: skip
    script.make_task(args)
    learner = script.init_learner(args, jax.random.key(1), np.zeros((10, 10, 4), bool))
    other = script.init_learner(args, jax.random.key(2), np.zeros((10, 10, 4), bool))
    learner = learner.replace(target_network=other.network)
    p, target = plain(learner.network), plain(other.network)
    memory = {name: (np.zeros_like(x), np.zeros_like(x)) for name, x in p.items()}
    for number in range(1, 6):
        batch = random_batch(script, 7, seed=number)
        learner, info = jax.jit(script.update, static_argnums=0)(args, learner, batch)
        learner = script.update_target(args, learner, number)
        value, grad = judge.gradient(p, target, vars(batch), args.gamma, loss, padding == "SAME")
        assert info["losses/q_loss"] == pytest.approx(value, rel=1e-4)
        for name in p:
            step = (0.01, args.optimizer_eps, in_sqrt if optimizer == "rmsprop" else number)
            p[name], memory[name] = getattr(judge, optimizer)(p[name], grad[name], memory[name], *step)
        target = {name: x.copy() for name, x in p.items()} if number == 3 else target
    for mine, its in ((learner.network, p), (learner.target_network, target)):
        for name, x in plain(mine).items():
            np.testing.assert_allclose(x, its[name], rtol=1e-3, atol=2e-5)


@pytest.mark.guards("networks")
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])  # the code for each, both computed on what is here
def test_convolution_is_flax(dqn, padding, backend, monkeypatch):
    mine, flax = dqn.Conv(5, 3, padding), nn.Conv(5, (3, 3), padding=padding)
    x = jax.random.normal(jax.random.key(0), (9, 10, 7))
    params = mine.init(jax.random.key(1), x)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    np.testing.assert_allclose(mine.apply(params, x), flax.apply(params, x), atol=1e-5)


@pytest.mark.guards("networks")
def test_initial_weights_are_pytorchs(dqn):
    """Uniform within one over the root of a unit's inputs, weights and biases."""
    args = dqn.Args()
    dqn.make_task(args)
    p = plain(dqn.init_learner(args, jax.random.key(0), np.zeros((10, 10, 4), bool)).network)
    inputs = {"conv": 36, "hidden": 1024, "out": 128}
    for name, x in p.items():
        bound = inputs[name.split("_")[0]] ** -0.5
        assert np.abs(x).max() <= bound
        if x.size > 500:
            assert x.std() == pytest.approx(bound / 3**0.5, rel=0.1) and abs(x.mean()) < 0.05 * bound


@pytest.mark.guards("acting")
def test_epsilon_and_actions(dqn):
    """Random until learning starts, then less and less; a random action is any of them equally."""
    args = dqn.Args(learning_starts=100, exploration_steps=50, end_e=0.2)
    dqn.make_task(args)
    expected = {1: 1, 99: 1, 100: 1, 125: 0.6, 150: 0.2, 1000: 0.2}
    assert {step: pytest.approx(float(dqn.epsilon(args, step))) for step in expected} == expected
    learner = dqn.init_learner(args, jax.random.key(1), np.zeros((10, 10, 4), bool))
    obs, keys = np.ones((10, 10, 4), bool), jax.random.split(jax.random.key(3), 60_000)
    q = dqn.q_values(args, learner.network, obs)
    best = int(q.argmax())
    act = jax.jit(lambda chance: jax.vmap(lambda key: dqn.act(q, key, chance))(keys))
    for chance in (0.0, 0.001, 0.3, 1.0):
        shares = np.bincount(act(chance), minlength=6) / len(keys)
        wanted = np.full(6, chance / 6) + (1 - chance) * (np.arange(6) == best)
        error = np.sqrt(wanted * (1 - wanted) / len(keys))
        assert shares.size == 6 and (np.abs(shares - wanted) <= 4.5 * error + 1e-12).all(), (chance, shares)


# Distributions


@pytest.mark.guards("loss")
def test_projection_against_loops(c51):
    """Mass by mass, as the paper's algorithm 1 has it; with targets beyond the support, on an atom and at its ends."""
    args = c51.Args(num_atoms=11, v_max=5)
    rng, z = np.random.default_rng(0), np.linspace(-5, 5, 11)
    np.testing.assert_allclose(c51.support(args), z, atol=1e-6)
    for values in (rng.normal(size=11) * 4, np.full(11, 3.0), np.full(11, 2.25), np.full(11, 99.0), -7 + z, z):
        p = rng.dirichlet(np.ones(11))
        wanted = np.zeros(11)
        for value, mass in zip(values, p, strict=True):
            b = (min(max(value, -5), 5) + 5) / 1.0
            low, high = int(np.floor(b)), int(np.ceil(b))
            if low == high:
                wanted[low] += mass
            else:
                wanted[low] += mass * (high - b)
                wanted[high] += mass * (b - low)
        found = c51.project(args, jnp.asarray(values, jnp.float32), jnp.asarray(p, jnp.float32))
        np.testing.assert_allclose(found, wanted, atol=2e-6)
    half = c51.project(args, jnp.full(11, 2.25), jnp.eye(11)[3])  # by hand: 3 parts to 2, 1 part to 3
    np.testing.assert_allclose(half, 0.75 * np.eye(11)[7] + 0.25 * np.eye(11)[8], atol=1e-6)


@pytest.mark.guards("loss")
def test_quantile_loss_against_loops(qr_dqn):
    rng = np.random.default_rng(1)
    for kappa in (1.0, 0.3):
        args, theta, targets = qr_dqn.Args(num_quantiles=5, kappa=kappa), rng.normal(size=5) * 2, rng.normal(size=7) * 2
        total = 0.0
        for i in range(5):
            for target in targets:
                u, tau = target - theta[i], (i + 0.5) / 5
                huber = 0.5 * u * u if abs(u) <= kappa else kappa * (abs(u) - 0.5 * kappa)
                total += abs(tau - (u < 0)) * huber / 7
        assert float(qr_dqn.quantile_huber(args, theta, targets)) == pytest.approx(total, rel=1e-5)
    args = qr_dqn.Args(num_quantiles=2)  # by hand: shares 1/4 and 3/4, errors 0.5 and -1
    assert float(qr_dqn.quantile_huber(args, jnp.array([0.0, 1.5]), jnp.array([0.5]))) == pytest.approx(
        0.25 * 0.125 + 0.25 * 0.5
    )


@pytest.mark.guards("loss")
@pytest.mark.parametrize("name", ["c51", "qr_dqn"])
def test_losses_against_numpy(name, request):
    """From the networks' outputs on: the best next action by the target network's means, ends, the loss."""
    script = request.getfixturevalue(name)
    args = script.Args(gamma=0.9, hidden_dim=8, **{"v_max": 3.0, "num_atoms": 7} if name == "c51" else {})
    script.make_task(args)
    obs = np.zeros((10, 10, 4), bool)
    online, target = (script.init_learner(args, jax.random.key(i), obs).network for i in (1, 2))
    batch, total = random_batch(script, 9), 0.0
    network = script.Network(args)
    z = np.linspace(-3, 3, 7)
    softmax = lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    for i in range(9):
        out = np.float64(network.apply(online, batch.obs[i]))[batch.action[i]]
        following = np.float64(network.apply(target, batch.next_obs[i]))
        discount = 0.0 if batch.terminated[i] else 0.9
        if name == "c51":
            p = softmax(following)
            p = p[(p * z).sum(-1).argmax()]
            m = np.zeros(7)
            for value, mass in zip(np.clip(batch.reward[i] + discount * z, -3, 3), p, strict=True):
                near = np.maximum(0, 1 - np.abs(value - z))
                m += mass * near
            total -= (m * np.log(softmax(out))).sum()
        else:
            y = batch.reward[i] + discount * following[following.mean(-1).argmax()]
            u, tau = y[None] - out[:, None], (np.arange(51)[:, None] + 0.5) / 51
            huber = np.where(np.abs(u) <= 1, 0.5 * u**2, np.abs(u) - 0.5)
            total += (np.abs(tau - (u < 0)) * huber).mean(1).sum()
    loss, info = script.q_loss(online, args, target, batch)
    assert float(loss) == pytest.approx(total / 9, rel=1e-4) == pytest.approx(float(info["losses/q_loss"]), rel=1e-4)


# Ensembles


@pytest.mark.guards("loss")
@pytest.mark.parametrize("name, separate", [("ensemble_dqn", False), ("rem", False), ("rem", True)])
def test_ensembles_against_numpy(name, separate, request):
    """Each head by its own maximum; or one mixture for online and target values, the maximum over the mixed ones."""
    script = request.getfixturevalue(name)
    args = script.Args(gamma=0.9, hidden_dim=8, num_heads=4, **{"multi_network": separate} if name == "rem" else {})
    script.make_task(args)
    online, target = (script.init_learner(args, jax.random.key(i), np.zeros((10, 10, 4), bool)).network for i in (1, 2))
    batch, total, alpha = random_batch(script, 9), 0.0, np.array([0.1, 0.2, 0.3, 0.4])
    huber = lambda u: np.where(np.abs(u) <= 1, 0.5 * u**2, np.abs(u) - 0.5)
    for i in range(9):
        q = np.float64(script.head_values(args, online, batch.obs[i]))
        following = np.float64(script.head_values(args, target, batch.next_obs[i]))
        assert q.shape == (4, 6) and np.ptp(q, axis=0).min() > 0
        np.testing.assert_allclose(script.q_values(args, online, batch.obs[i]), q.mean(0), atol=1e-5)
        discount = 0.0 if batch.terminated[i] else 0.9
        if name == "rem":
            y = batch.reward[i] + discount * max(sum(alpha[k] * following[k, a] for k in range(4)) for a in range(6))
            total += huber(sum(alpha[k] * q[k, batch.action[i]] for k in range(4)) - y)
        else:
            total += np.mean([
                huber(q[k, batch.action[i]] - batch.reward[i] - discount * following[k].max()) for k in range(4)
            ])  # fmt: skip
    loss, _ = script.q_loss(online, args, target, batch, *[jnp.float32(alpha)] * (name == "rem"))
    assert float(loss) == pytest.approx(total / 9, rel=1e-4)


@pytest.mark.slow
@pytest.mark.guards("acting")
def test_mixtures(rem, monkeypatch):
    """Drawn anew for every update, of every seed; acted on by the mean, or with separate networks by one an episode."""
    args = rem.Args(num_heads=4)
    drawn = jax.vmap(partial(rem.sample_mixture, args))(jax.random.split(jax.random.key(0), 2000))
    assert (
        (drawn >= 0).all() and np.allclose(drawn.sum(1), 1, atol=1e-6) and np.allclose(drawn.mean(0), 0.25, atol=0.01)
    )
    record = lambda network, args, target_network, batch, mixture: (
        jnp.float32(0),
        {"losses/first": mixture[0], "losses/squared": mixture[0] ** 2},
    )
    monkeypatch.setattr(rem, "q_loss", record)  # without a gradient: nothing is learned
    for separate in (False, True):
        args, env_step, state = begin(rem, [1, 2], num_heads=4, multi_network=separate)
        seen, ends = [], []
        for _ in range(80):
            state, _ = advance(rem, args, env_step, state, 1)
            seen.append(np.asarray(state.mixture))
            ends.append(np.asarray(state.episode_length) == 0)
        seen, ends = np.array(seen), np.array(ends)
        changed = (seen[1:] != seen[:-1]).any(-1)
        assert np.array_equal(changed, ends[1:] & separate) and ends.sum() > 3
        assert (seen == 0.25).all() != separate and not (separate and np.array_equal(seen[0, 0], seen[0, 1]))
        count, first, squared = (
            np.asarray(state.metric_sums[tag]) for tag in ("updates", "losses/first", "losses/squared")
        )
        assert (squared / count - (first / count) ** 2 > 1e-3).all() and first[0] != first[1]
    rem.train_chunk.clear_cache()


# Small worlds


@struct.dataclass
class WorldState(environment.EnvState):
    place: jax.Array
    time: jax.Array
    kind: jax.Array


class World(environment.Environment):
    """Two places, two actions. `kind` says what is paid and how an episode ends; it is part of the state, so that
    seeds of one program can live in worlds of their own."""

    def __init__(self, kind):
        super().__init__()
        self.kind = [*KNOWN].index(kind)

    @property
    def default_params(self):
        return environment.EnvParams(max_steps_in_episode=1 if self.kind == 3 else 100)

    def is_truncated(self, state, params):
        return state.time >= jnp.where(state.kind == 3, 1, 100)

    def step(self, key, state, action, params=None):
        obs, new, *rest = super().step(key, state, action, params)
        return obs, new.replace(kind=state.kind), *rest  # after a reset, too

    def step_env(self, key, state, action, params):
        at_end = state.place == 1
        cases = (
            (1, True, 0),  # reward: one step, one reward
            (at_end, at_end, 1),  # discount: paid at the second place only
            (2 * (action == 1) - 1, True, 0),  # action
            (1, False, 0),  # truncated: ever the same, cut after a step
        )
        reward, done, place = (jnp.stack([jnp.float32(case[i]) for case in cases])[state.kind] for i in range(3))
        state = state.replace(place=place.astype(int), time=state.time + 1)
        return self.get_obs(state), state, reward, done > 0, {}

    def reset_env(self, key, params):
        state = WorldState(place=jnp.int32(0), time=jnp.int32(0), kind=jnp.int32(self.kind))
        return self.get_obs(state), state

    def get_obs(self, state, params=None, key=None):
        return jax.nn.one_hot(state.place, 2)

    def action_space(self, params=None):
        return spaces.Discrete(2)

    def observation_space(self, params=None):
        return spaces.Box(0, 1, (2,))

    @property
    def num_actions(self):
        return 2


SPECIAL = {
    "c51": {"num_atoms": 31, "v_max": 6},
    "ensemble_dqn": {"num_heads": 5},
    "rem": {"num_heads": 5},
    "sr_dqn": {"reset_interval": 1400},
    "rainbow": {"num_atoms": 31, "v_max": 6},
}
KNOWN = {  # gamma 0.8: the values of the two actions at the first place, and at the second if there is one
    "reward": ([1, 1], None),
    "discount": ([0.8, 0.8], [1, 1]),
    "action": ([-1, 1], None),
    "truncated": ([5, 5], None),  # 1 / (1 - 0.8): a cut does not end the value
}


@pytest.mark.guards("loss")
@pytest.mark.parametrize("name", slow_but("dqn", of=["dqn", "c51", "qr_dqn", "ensemble_dqn", "rem", "rainbow"]))
def test_small_worlds(name, request):
    script = request.getfixturevalue(name)
    if "known-world" not in gymnax.registered_envs:
        gymnax.registration.register("known-world", partial(World, "reward"))
    args, env_step, state = begin(
        script, [1] * 4, env_id="known-world", sticky=0.0, gamma=0.8, learning_rate=3e-3,
        optimizer_eps=1e-8, total_timesteps=3000, replay_ratio=1, hidden_dim=16, end_e=0.5, target_interval=20,
        **SPECIAL.get(name, {}), **{} if name == "rainbow" else {"optimizer": "adam"},
    )  # fmt: skip
    game, *rest = state.env
    state = state.replace(env=(game.replace(kind=jnp.arange(4)), *rest))  # each of the four lives in another world
    state, _ = advance(script, args, env_step, state, 3000)
    for i, (kind, known) in enumerate(KNOWN.items()):
        network = jax.tree.map(lambda x, i=i: x[i], state.learner.network)
        for place, values in enumerate(known):
            if values is not None:
                found, close = (
                    script.q_values(args, network, jnp.eye(2)[place]),
                    name not in ("c51", "qr_dqn", "rainbow"),
                )
                np.testing.assert_allclose(found, values, atol=0.03 if close else 0.06, err_msg=kind)


# The replay


@pytest.mark.guards("storing")
@pytest.mark.parametrize("env_id, steps", [
    ("Breakout-MinAtar", 400), ("CartPole-v1", 400), ("truncated-world", 60), ("DiscountingChain-bsuite", 250),
    pytest.param("Freeway-MinAtar", 2550, marks=pytest.mark.slow),
])  # fmt: skip
def test_replay_holds_what_happened(dqn, env_id, steps, monkeypatch):
    """Against plain stepping of gymnax, over ends of both kinds: the same rows, none lost, none invented."""
    monkeypatch.setattr(dqn, "update", idle)  # none is made: not compiled either
    if env_id == "truncated-world" and env_id not in gymnax.registered_envs:
        gymnax.registration.register(env_id, partial(World, "truncated"))
    args, env_step, state = begin(dqn, [3, 4], env_id=env_id, learning_starts=10_000, buffer_size=3000, sticky=0.3)
    at_start = jax.device_get(state.env)
    first = np.asarray(state.obs)
    state, _ = advance(dqn, args, env_step, state, steps)
    state = jax.device_get(state.replace(key=None, env=None))
    options = {"use_minimal_action_set": False} if "MinAtar" in env_id else {}
    env, params = gymnax.make(env_id, **options)
    reset = jax.jit(env.reset_env)

    @jax.jit
    def step(key, game, chosen, executed):
        key, step_key, sticky_key = jax.random.split(key, 3)
        executed = jnp.where(jax.random.uniform(sticky_key) < args.sticky, executed, chosen)
        game_key, reset_key = jax.random.split(step_key)
        return key, reset_key, executed, env.step_env(game_key, game, executed, params)

    limit = 2500 if "Freeway" in env_id else np.inf if "MinAtar" in env_id else params.max_steps_in_episode
    is_own_end = "Freeway" in env_id or "DiscountingChain" in env_id  # nothing comes after the last step
    ends = 0
    for i in range(1 if "Freeway" in env_id else 2):
        game = jax.tree.map(lambda x, i=i: x[i], at_start[0])
        key, executed, obs, length = state_key(at_start, i), 0, first[i], 0
        returned, returns = 0.0, []
        for t in range(steps):
            key, reset_key, executed, judged = step(key, game, int(state.replay.action[i, t]), executed)
            next_obs, game, reward, terminated, _ = judged
            length, returned = length + 1, returned + float(reward)
            cut = length >= limit and not terminated
            terminated, cut = (True, False) if cut and is_own_end else (bool(terminated), cut)
            row = jax.tree.map(lambda ring, i=i, t=t: ring[i, t], state.replay)
            assert same(row.obs, obs) and same(row.next_obs, next_obs)
            assert (row.reward, row.terminated) == (np.float32(reward), terminated)
            obs = next_obs
            if terminated or cut:
                obs, game = reset(reset_key, params)
                returns.append(returned)
                returned, length, ends = 0.0, 0, ends + 1
        assert same(state.obs[i], obs) and int(state.stored[i]) == steps
        assert float(state.metric_sums["episodes"][i]) == len(returns)
        assert float(state.metric_sums["charts/episodic_return"][i]) == pytest.approx(sum(returns), rel=1e-4)
        average = 0.0
        for value in returns:
            average = 0.99 * average + 0.01 * value
        assert float(state.average_return[i]) == pytest.approx(average, rel=1e-4)
    assert ends >= (1 if "Freeway" in env_id else 2)
    dqn.train_chunk.clear_cache()


def same(one, two):  # images to the bit; physics up to the rounding of differently compiled programs
    return np.array_equal(one, two) if one.dtype == bool else np.allclose(one, two, atol=1e-3)


def state_key(env, i):
    return jax.random.wrap_key_data(env[2][i])


def ring_copies(script):
    args, env_step, state = begin(script, [1, 2], buffer_size=12_345)
    text = script.train_chunk.lower(args, env_step, 10, state).compile().as_text()
    assert "pred[2,12345,10,10,4]" in text
    return re.findall(r"= \w+\[2,12345[^=]* copy(?:-start)?\(", text)


@pytest.mark.slow
@pytest.mark.guards("ring")
def test_the_replay_is_not_copied(dqn, whole_programs):
    """As for SAC: a twin that draws from the ring as it was before the write must copy it, and does."""
    assert not ring_copies(dqn)
    text = (ROOT / "algos" / "dqn.py").read_text()
    late = text.replace("= sample_batch(args, replay, stored, key)", "= sample_batch(args, state.replay, stored, key)")
    assert late != text
    twin = types.ModuleType("twin_dqn")
    twin.__file__, sys.modules["twin_dqn"] = dqn.__file__, twin
    exec(compile(late, "twin_dqn", "exec"), twin.__dict__)
    assert ring_copies(twin)


@pytest.mark.guards("ring")
def test_bytes_of_a_transition(dqn):
    _, _, state = begin(dqn, [1], buffer_size=1000)
    assert sum(x.nbytes for x in jax.tree.leaves(state.replay)) / 1000 <= 2 * 400 + 16


# Seeds


@pytest.mark.guards("seeds")
@pytest.mark.parametrize("name", slow_but("dqn", of=["dqn", "rainbow"]))
def test_a_seed_of_a_batch_is_the_run_alone(name, request, whole_programs):
    """Until learning to the bit, then up to rounding: what it saw, did and learnt, with which priorities."""
    script, found = request.getfixturevalue(name), []
    for seeds, i in (([1, 2, 3], 1), ([2], 0)):
        args, env_step, state = begin(script, seeds, learning_starts=25)
        state, _ = advance(script, args, env_step, state, 24)
        early = {name: x[i] for name, x in leaves((state.replay, state.learner.network)).items()}
        first = leaves(state.learner.network)
        state, _ = advance(script, args, env_step, state, 24)  # as many: compiled once
        network, late = leaves(state.learner.network), leaves((state.learner.network, getattr(state, "tree", ())))
        assert all(not np.array_equal(network[name][i], first[name][i]) for name in network), "something was learnt"
        found.append((early, {name: x[i] for name, x in late.items()}))
    (early, late), (early_alone, late_alone) = found
    assert all(np.array_equal(early[name], early_alone[name]) for name in early)
    assert all(np.allclose(late[name], late_alone[name], atol=1e-3) for name in late)


@pytest.mark.guards("schedule")
def test_the_target_network_is_that_of_the_last_multiple(dqn):
    """After updates 5 and 10, in a step of its own each; in between it stays."""
    args, env_step, state = begin(dqn, [1], replay_ratio=1, target_interval=5, learning_starts=20, batch_size=8)
    state, _ = advance(dqn, args, env_step, state, 19)
    kept = leaves(state.learner.network)
    for update in range(1, 13):
        state, _ = advance(dqn, args, env_step, state, 1)
        network, target = leaves(state.learner.network), leaves(state.learner.target_network)
        if update % 5 == 0:
            kept = network
        assert all(np.array_equal(target[name], kept[name]) for name in target), update
        assert update % 5 == 0 or any(not np.array_equal(network[name], kept[name]) for name in network)


@pytest.mark.slow
@pytest.mark.guards("schedule")
def test_replay_ratio(dqn, monkeypatch):
    """Whole updates on their steps, numbered from 1."""
    bias = lambda learner: learner.network["params"]["Dense_0"]["bias"]
    add = lambda number: lambda x: x + number
    count_up = lambda args, learner, number: learner.replace(network=jax.tree.map(add(number), learner.network))
    monkeypatch.setattr(dqn, "update", idle)
    monkeypatch.setattr(dqn, "update_target", count_up)
    for ratio, expected in ((0.25, 25 - 12), (1.5, 150 - 73)):
        args, env_step, state = begin(dqn, [1], replay_ratio=ratio)
        state, _ = advance(dqn, args, env_step, state, 100)
        assert state.metric_sums["updates"][0] == expected == logged(dqn, args, state)["charts/updates"][0]
    args, env_step, state = begin(dqn, [1], replay_ratio=1.5, learning_starts=51)
    first = np.asarray(bias(state.learner))
    state, _ = advance(dqn, args, env_step, state, 100)
    count = int(state.metric_sums["updates"][0])
    np.testing.assert_allclose(bias(state.learner) - first, count * (count + 1) / 2, rtol=1e-5)
    dqn.train_chunk.clear_cache()


# Resets


@pytest.mark.guards("resets")
@pytest.mark.parametrize("kind, kept", [("last", 1.0), ("all", 0.0), ("shrink-and-perturb", 0.8)])
def test_what_a_reset_renews(sr_dqn, kind, kept):
    """Of the encoder a share stays, of the last layer nothing; target network and optimizer start with the new one."""
    args = sr_dqn.Args(hidden_dim=12, reset_kind=kind, shrink_factor=0.8)
    sr_dqn.make_task(args)
    obs, key = np.zeros((10, 10, 4), bool), jax.random.key(7)
    old = sr_dqn.init_learner(args, jax.random.key(1), obs)
    old, _ = sr_dqn.update(args, old, random_batch(sr_dqn, 7))
    fresh = sr_dqn.init_learner(args, jax.random.split(key, 4)[3], obs)  # train_step takes the others
    state = sr_dqn.init_state(args, np.int32(0), 1, jnp.int32(0), obs)
    new = sr_dqn.reset(args, state.replace(key=key, learner=old))
    before, drawn, after = plain(old.network), plain(fresh.network), plain(new.network)
    for name, x in after.items():
        share = 0.0 if name.startswith("out") else kept
        np.testing.assert_allclose(x, share * before[name] + (1 - share) * drawn[name], atol=1e-6)
    one, two = leaves(new.network), leaves(new.target_network)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert all(not x.any() for x in leaves(new.opt).values()) and any(x.any() for x in leaves(old.opt).values())


@pytest.mark.slow
@pytest.mark.guards("resets")
def test_resets_come_when_due_and_draw_anew(sr_dqn):
    """Ratio 1.5, every 60 updates: after steps 40 and 80, from fresh keys in each seed; the replay stays."""
    args, env_step, state = begin(
        sr_dqn, [1, 2], reset_interval=60, reset_kind="all", learning_starts=20, batch_size=16
    )
    heads, resets = [], []
    for _ in range(100):
        state, _ = advance(sr_dqn, args, env_step, state, 1)
        heads.append(np.asarray(state.learner.network["params"]["Dense_0"]["kernel"]))
        resets.append(logged(sr_dqn, args, state)["charts/resets"][0])
    jumps = [i + 1 for i in range(1, 100) if np.abs(heads[i] - heads[i - 1]).max() > 0.2]
    assert jumps == [41, 81] and [resets[i - 1] for i in (40, 41, 80, 81, 100)] == [0, 1, 1, 2, 2]
    assert not np.allclose(heads[40][0], heads[40][1], atol=0.2) and not np.allclose(heads[40], heads[80], atol=0.2)
    assert (np.asarray(state.stored) == 100).all()


@pytest.mark.guards("resets")
def test_a_linear_network_has_nothing_to_keep(sr_dqn):
    """CartPole without a hidden layer: a reset, the first after step 40, renews the whole."""
    options = {"env_id": "CartPole-v1", "hidden_dim": 0, "reset_interval": 60, "learning_starts": 20}
    args, env_step, state = begin(sr_dqn, [1], **options)
    for resets in (0, 1):
        state, _ = advance(sr_dqn, args, env_step, state, 40)
        assert logged(sr_dqn, args, state)["charts/resets"][0] == resets
    before, after = leaves(state.learner.network), leaves(sr_dqn.reset_all(args, state).network)
    assert before.keys() == after.keys() and not any(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.guards("resets", "sr_dqn")
def test_without_resets_it_is_dqn(dqn, sr_dqn, whole_programs):
    """To the bit: its keys are drawn beside the parent's."""
    found = []
    for script, options in ((dqn, {}), (sr_dqn, {"reset_interval": 0})):
        args, env_step, state = begin(script, [1], **options)
        state, _ = advance(script, args, env_step, state, 100)
        found.append(leaves((state.learner, state.replay)))
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


# The command


@pytest.mark.guards("errors")
@pytest.mark.parametrize("options, expected", [
    ({"env_id": "Breakout-Minatar"}, "Breakout-MinAtar"),
    ({"env_id": "Pendulum-v1"}, "no discrete actions"),
    ({"env_id": "CartPole-v1", "minimal_actions": True}, "for MinAtar's games"),
    ({"end_e": 1.5}, "--end-e cannot be 1.5"),
    ({"target_interval": 0}, "--target-interval cannot be 0"),
    ({"eps_in_sqrt": True, "optimizer": "adam"}, "--eps-in-sqrt needs --optimizer rmsprop"),
    ({"buffer_size": 1_000_000_000}, "use fewer seeds or a smaller replay"),
])  # fmt: skip
def test_bad_input(options, expected, tmp_path, dqn, capfd):
    options = SMALL_GYMNAX | {"runs_dir": tmp_path / "runs"} | options
    said = run("dqn", expect=2, **options) if expected == "Breakout-MinAtar" else refused(dqn, capfd, **options)
    assert expected in said and len(said.strip().splitlines()) == 1 and not (tmp_path / "runs").exists()
