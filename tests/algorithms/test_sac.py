"""The algorithm against an independent NumPy (float64) implementation, numerical integration and hand-made cases."""

from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_sac
import pytest
from common import slow_but


# Of the mathematics, which SR-SAC copies, one test is enough for it in `make test`.
@pytest.fixture(params=slow_but("sac", of=["sac", "sr_sac"]))
def script(request):
    return request.getfixturevalue(request.param)


def layers(params, *names):
    return [tuple(np.asarray(params[name][leaf], np.float64) for leaf in ("kernel", "bias")) for name in names]


def twin(params):
    return [
        layers(jax.tree.map(lambda x, i=i: x[i], params["params"]), "Dense_0", "Dense_1", "Dense_2") for i in range(2)
    ]


def actor_layers(params):
    return layers(params["params"], "Dense_0", "Dense_1", "Dense_2", "Dense_3")


def make_batch(script, key, batch, obs_dim, action_dim):
    keys = jax.random.split(key, 5)
    return script.Transition(
        obs=jax.random.normal(keys[0], (batch, obs_dim)),
        action=jax.random.uniform(keys[1], (batch, action_dim), minval=-1, maxval=1),
        reward=jax.random.normal(keys[2], (batch,)),
        terminated=(jax.random.uniform(keys[3], (batch,)) < 0.3).astype(jnp.float32),
        next_obs=jax.random.normal(keys[4], (batch, obs_dim)),
    )


def as_numpy(batch):
    return [
        np.asarray(x, np.float64) for x in (batch.obs, batch.action, batch.reward, batch.terminated, batch.next_obs)
    ]


@pytest.mark.guards("loss")
@pytest.mark.parametrize("name", ["sac", "sr_sac"])
def test_updates_against_numpy(name, request):
    """Five updates in a row: losses, all parameters, the target and the temperature, to float32's rounding."""
    script = request.getfixturevalue(name)
    args = script.Args(hidden_dim=32, batch_size=64, learning_rate=1e-2, tau=0.1, gamma=0.9)
    obs_dim, action_dim = 5, 3
    learner = script.init_learner(args, jax.random.key(0), jnp.zeros(obs_dim), jnp.zeros(action_dim))
    # A target that differs from the critic and a temperature other than 1, or a mix-up would go unseen.
    other = script.init_learner(args, jax.random.key(1), jnp.zeros(obs_dim), jnp.zeros(action_dim))
    learner = learner.replace(target_critic=other.critic, log_alpha=jnp.float32(-0.7))
    mine = numpy_sac.SAC(
        actor_layers(learner.actor), twin(learner.critic), twin(learner.target_critic), -0.7, 1e-2, 0.9, 0.1
    )
    update = jax.jit(partial(script.update, args))
    for i in range(5):
        batch = make_batch(script, jax.random.key(100 + i), 64, obs_dim, action_dim)
        key = jax.random.key(200 + i)
        noises = [np.asarray(jax.random.normal(k, (64, action_dim)), np.float64) for k in jax.random.split(key)]
        learner, info = update(learner, batch, key)
        critic_loss, actor_loss, entropy = mine.update(as_numpy(batch), *noises)
        np.testing.assert_allclose(info["losses/qf_loss"], critic_loss, rtol=1e-3)
        np.testing.assert_allclose(info["losses/actor_loss"], actor_loss, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(info["losses/entropy"], entropy, rtol=1e-3, atol=1e-3)
    close = partial(np.testing.assert_allclose, rtol=0, atol=3e-4)  # five steps of 1e-2: a wrong sign shows as 2e-2
    close(numpy_sac.flat(actor_layers(learner.actor)), numpy_sac.flat(mine.actor))
    for i in range(2):
        close(numpy_sac.flat(twin(learner.critic)[i]), numpy_sac.flat(mine.critics[i]))
        close(numpy_sac.flat(twin(learner.target_critic)[i]), numpy_sac.flat(mine.targets[i]))
    close(learner.log_alpha, mine.log_alpha)


@pytest.mark.guards("loss")
def test_gradients_against_numpy(script):
    args = script.Args(hidden_dim=32)
    learner = script.init_learner(args, jax.random.key(3), jnp.zeros(4), jnp.zeros(2)).replace(
        log_alpha=jnp.float32(0.4)
    )
    batch, key = make_batch(script, jax.random.key(4), 32, 4, 2), jax.random.key(5)
    noise = np.asarray(jax.random.normal(key, (32, 2)), np.float64)
    actor, critics = actor_layers(learner.actor), twin(learner.critic)
    of_critic = jax.jit(jax.grad(script.critic_loss, has_aux=True), static_argnums=1)
    grad, _ = of_critic(learner.critic, args, learner, batch, key)
    _, expected = numpy_sac.critic_gradient(critics, critics, actor, 0.4, as_numpy(batch), noise, args.gamma)
    for i in range(2):
        np.testing.assert_allclose(numpy_sac.flat(twin(grad)[i]), numpy_sac.flat(expected[i]), rtol=1e-3, atol=1e-4)
    of_actor = jax.jit(jax.grad(script.actor_loss, has_aux=True), static_argnums=1)
    grad, _ = of_actor(learner.actor, args, learner.critic, learner.log_alpha, batch, key)
    _, expected, entropy = numpy_sac.actor_gradient(actor, critics, 0.4, as_numpy(batch)[0], noise)
    np.testing.assert_allclose(numpy_sac.flat(actor_layers(grad)), numpy_sac.flat(expected), rtol=1e-3, atol=1e-4)
    grad, _ = jax.grad(script.alpha_loss, has_aux=True)(learner.log_alpha, jnp.float32(entropy), 2)
    np.testing.assert_allclose(grad, np.exp(0.4) * (entropy + 1), rtol=1e-4)  # target entropy -dim / 2 = -1


@pytest.mark.guards("loss")
@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_log_probability_integrates_to_one(script, shift):
    """exp(log-probability) is a density over (-1, 1): its integral is 1, and so is that of the histogram of draws."""
    args = script.Args(hidden_dim=4)
    actor = script.Actor(1, 4).init(jax.random.key(0), jnp.zeros(2))
    actor = jax.tree.map(jnp.zeros_like, actor)
    actor["params"]["Dense_2"]["bias"] += shift
    actor["params"]["Dense_3"]["bias"] += jnp.arctanh((-0.3 + 10) / 6 - 1)  # standard deviation exp(-0.3)
    noise = np.linspace(-7, 7, 200_001)
    draws = jax.vmap(lambda key: script.sample_action(args, actor, jnp.zeros(2), key, 1))(
        jax.random.split(jax.random.key(1), 20_000)
    )
    action, log_prob = (np.asarray(x, np.float64).squeeze() for x in draws)
    grid = np.tanh(shift + np.exp(-0.3) * noise)
    order = np.argsort(action)
    density = np.exp(np.interp(grid, action[order], log_prob[order]))  # the script's density, on a fine grid
    inside = (grid > action.min()) & (grid < action.max())
    assert np.trapezoid(density[inside], grid[inside]) == pytest.approx(1, abs=2e-3)
    below = np.mean(action < 0.2)
    assert np.trapezoid(density[inside & (grid < 0.2)], grid[inside & (grid < 0.2)]) == pytest.approx(below, abs=0.02)


@pytest.mark.guards("loss")
def test_log_probability_far_out(script):
    """Where tanh is 1 in float32 the log-probability is still finite, and so is its gradient."""
    args = script.Args(hidden_dim=4)
    actor = jax.tree.map(jnp.zeros_like, script.Actor(1, 4).init(jax.random.key(0), jnp.zeros(2)))
    actor["params"]["Dense_2"]["bias"] += 30.0
    loss = lambda actor: script.sample_action(args, actor, jnp.zeros(2), jax.random.key(0), 1)[1]
    assert np.isfinite(loss(actor))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.grad(loss)(actor)))


@pytest.mark.guards("networks")
def test_initialization(script):
    """Orthogonal with gain sqrt(2) (log-std head 1), zero biases, log-std near -4, target equal to the critic."""
    args = script.Args()
    learner = script.init_learner(args, jax.random.key(0), jnp.zeros(17), jnp.zeros(6))
    for i, gain in enumerate((2**0.5, 2**0.5, 2**0.5, 1.0)):
        kernel = np.asarray(learner.actor["params"][f"Dense_{i}"]["kernel"])
        short = kernel if kernel.shape[0] <= kernel.shape[1] else kernel.T
        np.testing.assert_allclose(short @ short.T, gain**2 * np.eye(len(short)), atol=1e-5)
    for kernel in (layer["kernel"] for layer in learner.critic["params"].values()):
        for one in np.asarray(kernel):
            short = one if one.shape[0] <= one.shape[1] else one.T
            np.testing.assert_allclose(short @ short.T, 2 * np.eye(len(short)), atol=1e-5)
    assert not any(np.any(x["bias"]) for x in [*learner.actor["params"].values(), *learner.critic["params"].values()])
    kernels = learner.critic["params"]["Dense_0"]["kernel"]
    assert np.abs(np.asarray(kernels[0] - kernels[1])).max() > 0.1, "the two critics must differ"
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), learner.critic, learner.target_critic))
    assert learner.log_alpha == 0
    _, log_std = script.Actor(6, 256).apply(learner.actor, jnp.zeros(17))
    np.testing.assert_allclose(log_std, -4.0, atol=1e-5)
    _, log_std = script.Actor(6, 256).apply(jax.tree.map(lambda x: 1e3 * x, learner.actor), jnp.ones(17))
    assert -10.001 <= float(log_std.min()) < -9.9 and 1.9 < float(log_std.max()) <= 2.001


@pytest.mark.guards("loss")
def test_only_termination_stops_bootstrapping(script):
    """Two rows alike but for `terminated`: the target is the reward, or the reward and the value of what follows."""
    args = script.Args(hidden_dim=8, gamma=0.9)
    learner = script.init_learner(args, jax.random.key(0), jnp.zeros(2), jnp.zeros(1))
    learner = learner.replace(
        critic=jax.tree.map(jnp.zeros_like, learner.critic), target_critic=jax.tree.map(jnp.zeros_like, learner.critic)
    )
    learner.target_critic["params"]["Dense_2"]["bias"] += jnp.array([[10.0], [7.0]])  # the smaller counts
    learner = learner.replace(log_alpha=jnp.float32(-100.0))
    for terminated, target in ((1.0, 2.0), (0.0, 2.0 + 0.9 * 7)):
        batch = script.Transition(
            jnp.ones((1, 2)), jnp.ones((1, 1)), jnp.full(1, 2.0), jnp.full(1, terminated), jnp.ones((1, 2))
        )
        loss, _ = script.critic_loss(learner.critic, args, learner, batch, jax.random.key(0))
        assert loss == pytest.approx(2 * target**2)


@pytest.mark.guards("schedule")
@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.5, 0.3, 8, 128, 0.01, 2.75])
def test_updates_belong_to_whole_steps(script, ratio):
    """floor(step * ratio), exactly: nothing is dropped and nothing is early, in Python and inside jit."""
    args = script.Args(replay_ratio=ratio)
    steps = [0, 1, 2, 3, 7, 99, 100, 101, 9_999, 10_000, 123_457, 999_999, 2_000_000]
    exact = [int(step * Fraction(str(ratio))) for step in steps]
    assert [script.num_updates_until(args, step) for step in steps] == exact
    assert jax.jit(partial(script.num_updates_until, args))(jnp.array(steps, jnp.int32)).tolist() == exact


@pytest.mark.guards("resets")
@pytest.mark.parametrize("ratio,interval,expected", [
    (8, 2_560_000, [320_000]),
    (16, 2_560_000, [160_000, 320_000, 480_000]),
    (32, 2_560_000, [80_000, 160_000, 240_000, 320_000, 400_000, 480_000]),
    (128, 2_560_000, list(range(20_000, 500_001, 20_000))),
    (0.25, 100_000, [400_000]),
    (1.5, 300_000, [200_000, 400_000]),
    (8, 0, []),
])  # fmt: skip
def test_resets_fall_on_the_published_steps(sr_sac, ratio, interval, expected):
    """At multiples of reset_interval / replay_ratio steps, the rule behind the published curves, within 500k steps."""
    args = sr_sac.Args(replay_ratio=ratio, reset_interval=interval)
    counts = np.asarray(sr_sac.num_resets_until(args, np.arange(500_001))) * np.ones(500_001, int)
    assert (np.flatnonzero(np.diff(counts)) + 1).tolist() == expected
    assert np.diff(counts).max(initial=0) <= 1
