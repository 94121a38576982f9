"""The scripts on Atari: convolutions, stacks of frames, what may be drawn, augmentation, losses, evaluation, seeds.

The judges are Flax, NumPy written from the papers over a replay that stores whole stacks, and rlax.
tests/environments/test_atari_pipeline.py compares EnvPool's frames with the emulator's.
"""

import os
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from atari_runs import (
    FRAME,
    assert_priorities,
    assert_stored,
    drawable,
    first_state,
    play_stream,
    played_by_hand,
    still,
    stream,
)
from common import SMALL_ATARI, refused, run, slow_but
from flax import linen as nn
from runs import begin, idle, logged

pytestmark = pytest.mark.usefixtures("quick_programs")

TINY = {"env_id": "Breakout-v5", "channels": 1, "hidden_dim": 4, "batch_size": 8, "learning_starts": 50, "gamma": 0.9}
ASLEEP = TINY | {"learning_starts": 1000, "total_timesteps": 1000}  # without an update
SHAPES = [((84, 84, 4), 8, 4), ((21, 21, 3), 4, 2), ((11, 11, 2), 3, 1), ((10, 7, 2), 4, 2)]


# Networks


@pytest.mark.guards("networks")
@pytest.mark.parametrize("shape,size,stride", SHAPES)
def test_convolution_is_flax(dqn_atari, shape, size, stride):
    """The same results and gradients as without it, for even and odd images."""
    x = jax.random.normal(jax.random.key(0), (3, *shape))
    theirs = nn.Conv(5, (size, size), (stride, stride))
    ours = theirs.clone(conv_general_dilated=dqn_atari.convolve)
    params = jax.jit(ours.init)(jax.random.key(1), x[0])
    params = jax.tree.map(lambda x: x + 0.1, params)  # biases, too
    functions = lambda p, x: jax.vmap(partial(ours.apply, p))(x), theirs.apply
    squares = [lambda p, x, f=f: (((y := f(p, x)) ** 2).sum(), y) for f in functions]
    found = [jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x) for loss in squares]
    np.testing.assert_allclose(*(y for _, y in found), atol=2e-5)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-2, rtol=1e-3), *(grad for grad, _ in found))


@pytest.mark.guards("networks")
def test_sizes_of_the_networks(dqn_atari, drq_eps, der):
    """Dopamine's networks for Breakout's four actions: 11 x 11 x 64 features, a hidden layer of 512, Xavier-uniform."""
    convolutions = (8 * 8 * 4 + 1) * 32 + (4 * 4 * 32 + 1) * 64 + (3 * 3 * 64 + 1) * 64
    hidden = (7744 + 1) * 512
    heads = {"dqn_atari": 513 * 4, "drq_eps": 513 * (4 + 1), "der": 2 * 513 * 51 * (4 + 1)}
    for script in (dqn_atari, drq_eps, der):
        name, args = script.__name__, script.Args(env_id="Breakout-v5", buffer_size=50)
        network = jax.eval_shape(partial(first_state, script, args), 1, FRAME).learner.network
        total = sum(x.size for x in jax.tree.leaves(network))
        assert total == convolutions + hidden * (2 if name == "der" else 1) + heads[name]
    obs = jnp.zeros((4, 84, 84), jnp.uint8)
    init = jax.jit(partial(drq_eps.init_learner, drq_eps.Args(env_id="Breakout-v5")))
    params = init(jax.random.key(0), obs).network["params"]
    bound = (6 / (7744 + 512)) ** 0.5
    kernel = np.asarray(params["XavierDense_0"]["kernel"])
    assert 0.99 * bound < np.abs(kernel).max() <= bound and not np.asarray(params["XavierDense_0"]["bias"]).any()
    for i, (size, inputs, outputs) in enumerate([(8, 4, 32), (4, 32, 64), (3, 64, 64)]):
        layer = params["NatureEncoder_0"][f"Conv_{i}"]
        bound = (6 / (size * size * (inputs + outputs))) ** 0.5
        assert 0.99 * bound < np.abs(layer["kernel"]).max() <= bound and not np.asarray(layer["bias"]).any()


@pytest.mark.guards("networks")
def test_noisy_layer(der):
    """Weights mean + sigma * f(in) f(out), biases mean + sigma * f(out), f(x) = sign(x) sqrt|x|; without a key, or told
    not to, the means. Fortunato et al. 2018, equations 9 to 11; sigma as in section 3.2."""
    layer, x = der.NoisyDense(3, 0.4), jnp.arange(5.0)
    params = layer.init(jax.random.key(0), x)
    p = {name: np.float64(value) for name, value in params["params"].items()}
    assert (p["kernel_sigma"] == np.float32(0.4 * 5**-0.5)).all() and np.abs(p["kernel"]).max() <= 5**-0.5
    clean = p["kernel"] @ np.arange(5.0) + p["bias"]
    rngs = {"noise": jax.random.key(7)}
    np.testing.assert_allclose(layer.apply(params, x), clean, rtol=1e-5)
    np.testing.assert_allclose(layer.apply(params, x, noisy=False, rngs=rngs), clean, rtol=1e-5)
    # The noise, seen through unit inputs: a column of the kernel at a time, the bias at 0.
    apply = lambda x: np.float64(layer.apply(params, x, rngs=rngs))
    bias = apply(jnp.zeros(5))
    factors = (np.stack([apply(row) for row in jnp.eye(5)]) - bias - p["kernel"].T) / p["kernel_sigma"].T
    out = (bias - p["bias"]) / p["bias_sigma"]
    ins = factors / out
    np.testing.assert_allclose(ins, ins[:, :1].repeat(3, 1), rtol=1e-3)  # an outer product, of the bias's own noise
    draws = np.concatenate([np.sign(ins[:, 0]) * ins[:, 0] ** 2, np.sign(out) * out**2])
    assert len(set(np.round(draws, 6))) == 8 and 0.2 < draws.std() < 3


# Stacks, n steps, what may be drawn


def by_hand(rows, first, n, gamma):
    """n-step row of the naive replay -> frames, action, rewards, discount, frames after."""
    total = 0.0
    for k in range(n):
        _, _, reward, terminated, truncated, after = rows[first + k]
        total += gamma**k * reward
        if terminated or truncated:
            break
    return *rows[first][:2], total, 0.0 if terminated else gamma ** (k + 1), after


@partial(jax.jit, static_argnums=(0, 1, 3))
def whole_ring(script, args, replay, n):
    return script.n_steps(args, replay, jnp.arange(args.buffer_size), n, 0.9)


def assert_n_steps(script, args, replay, rows, index, n):
    """Rows made n steps long are those of the naive replay -> their discounts by hand."""
    out, discounts = jax.tree.map(np.asarray, whole_ring(script, args, replay, n)), []
    for first in index:
        i = first % args.buffer_size
        obs, action, rewards, discount, after = by_hand(rows, first, n, 0.9)
        assert np.array_equal(out.obs[i], obs) and out.action[i] == action, first
        assert out.reward[i] == pytest.approx(rewards, abs=1e-5), first
        assert out.discount[i] == pytest.approx(discount, rel=1e-5), first
        if discount:
            assert np.array_equal(out.next_obs[i], after), first
        discounts.append(discount)
    return discounts


@pytest.mark.guards("storing")
@pytest.mark.parametrize("size,life_loss", [(400, False), (90, True)])
def test_stacks_and_n_steps_against_a_naive_replay(dqn_atari, size, life_loss):
    """Whole stacks stored by plain Python, over lost lives, games over, cut games and a ring that comes round: the
    same frames, rewards, discounts and frames after n steps, for every row that may be drawn."""
    args = dqn_atari.Args(**ASLEEP | {"buffer_size": size, "terminal_on_life_loss": life_loss})
    state, _, rows = play_stream(dqn_atari, args, 5, 300)
    assert {row[3:5] for row in rows if row} >= {(False, False), (True, False), (False, True)} and rows.count(None) > 5
    replay = state.replay
    assert state.stored == 300
    oldest, seen = (0 if size > 300 else 300 - size + 3), set()
    for n in (1, 3, 10):
        args = dqn_atari.Args(**vars(args) | {"n_step": n})
        index = np.array([i for i in range(oldest, 300 - n) if rows[i]])
        for discount in assert_n_steps(dqn_atari, args, replay, rows, index, n):
            seen.add((n, discount == 0, np.isclose(discount, 0.9**n)))
    assert len(seen) == 3 * 3 - 1  # ended, cut early, whole; with one step a cut is whole


SEAMS = sorted({*range(5, 150, 9), *range(6, 150, 30), *range(90, 99)})


@pytest.mark.guards("fresh")
@pytest.mark.parametrize("name", slow_but("dqn_atari", of=["dqn_atari", "drq_eps", "der"]))
def test_nothing_reaches_into_a_fresh_episode(name, request, monkeypatch):
    """Where a resume begins new games, no stack and no n steps reach across: all rows, when they may first be drawn
    and when they still may, are as plain Python has them, for which the old game was cut there unless it was over. This
    is in games, after lost lives, games over, cut games and new games, after a single step, and where the ring comes
    round."""
    script = request.getfixturevalue(name)
    args = script.Args(**ASLEEP | {"buffer_size": 60, "n_step": 5})
    watch = lambda state: (state.replay, np.asarray(getattr(state, "priorities", 0)))
    state, watched, rows = play_stream(script, args, 282, 160, watch, SEAMS)
    assert len(rows) == 160 + len(SEAMS) == state.stored and state.step == 160
    assert_stored(script, args, state, rows)

    between = [seam + i for i, seam in enumerate(SEAMS)]  # rows that hold the last frame of an old game
    ends = [
        (*stream(160, 282)[1][seam - 1][2:4], bool(rows[row - 1])) for seam, row in zip(SEAMS, between, strict=True)
    ]
    assert not any(rows[row] for row in between)
    assert set(ends) >= {(False, False, True), (False, False, False), (True, False, True), (False, True, True)}
    assert any(rows[row - 1] and rows[row - 1][3] and not end[0] for row, end in zip(between, ends, strict=True))

    across = 0
    for count in range(20, len(rows) + 1):
        index = [i for i in range(max(0, count - 60 + 3), count - 5) if rows[i]]
        across += sum(i < row < i + 5 for i in index[-1:] for row in between)
        for n in (1, 5):
            assert_n_steps(script, args, watched[count - 1][0], rows, [*index[:2], *index[-6:]], n)
    assert across > 50

    if name == "der":
        monkeypatch.setattr(script, "update", idle)
        assert_priorities(script, args, state, [priorities for _, priorities in watched], rows)
    else:
        monkeypatch.setattr(script, "n_steps", lambda args, replay, index, n, gamma: index)
        draw = jax.jit(jax.vmap(partial(script.sample_batch, args), (None, None, 0)))
        for count in (20, 60, 61, between[-1] + 1, between[-1] + 5, len(rows)):
            index = draw(watched[count - 1][0], jnp.int32(count), jax.random.split(jax.random.key(count), 500))
            assert set(np.asarray(index).reshape(-1)) == drawable(rows[:count], 60, 5)


@pytest.mark.guards("sampling")
def test_annealed_n(dqn_atari):
    """A shorter n and another discount, as numbers of the program: the rows of a script that is set up so."""
    args = dqn_atari.Args(**ASLEEP | {"buffer_size": 400, "n_step": 10})
    replay, index = play_stream(dqn_atari, args, 6, 120)[0].replay, jnp.arange(100)
    found = jax.jit(lambda n, gamma: dqn_atari.n_steps(args, replay, index, n, gamma))(4, 0.8)
    wanted = dqn_atari.n_steps(dqn_atari.Args(**vars(args) | {"n_step": 4}), replay, index, 4, 0.8)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.guards("fresh")
def test_what_a_fresh_episode_changes(dqn_atari, drq_eps, der):
    """Beside the replay only what is known of the game: not what is logged, the count of steps, or what is learned."""
    new = {"frames_in_stack": 0, "lives": 0, "done": False, "episode_return": 0, "episode_length": 0}
    for script in (dqn_atari, drq_eps, der):
        args = script.Args(**ASLEEP | {"buffer_size": 60, "n_step": 5})
        state = play_stream(script, args, 11, 40)[0].replace(done=jnp.bool(True))
        frame = jnp.full((84, 84), 7, jnp.uint8)
        after = jax.jit(partial(script.fresh_episode, args))(state, frame)
        for field in script.State.__dataclass_fields__:
            old, found = getattr(state, field), getattr(after, field)
            if field in new:
                assert found == new[field] != old and found.dtype == old.dtype, field
            elif field == "obs":
                assert not found[:3].any() and np.array_equal(found[3], frame) and found.dtype == old.dtype
            elif field == "stored":
                assert found == old + 1
            elif field == "key":
                assert found == old
            elif field not in ("replay", "priorities"):
                assert same(found, old), field


@pytest.mark.guards("sampling")
def test_uniform_draws(dqn_atari, monkeypatch):
    """Only rows that may be drawn, and all of them as often, before and after the ring is full."""
    args = dqn_atari.Args(**ASLEEP | {"buffer_size": 90, "n_step": 3})
    _, valid, rows = play_stream(dqn_atari, args, 7, 200, lambda state: state.replay.valid)
    monkeypatch.setattr(dqn_atari, "n_steps", lambda args, replay, index, n, gamma: index)
    draw = jax.jit(jax.vmap(partial(dqn_atari.sample_batch, args), (None, None, 0)))
    for steps in (60, 90, 91, 200):
        others = dict.fromkeys(dqn_atari.ReplayRow.__dataclass_fields__)
        replay = dqn_atari.ReplayRow(**others | {"valid": valid[steps - 1]})
        index = np.asarray(draw(replay, jnp.int32(steps), jax.random.split(jax.random.key(steps), 3000)))
        count, allowed = np.bincount(index.reshape(-1), minlength=90), drawable(rows[:steps], 90, 3)
        assert set(np.flatnonzero(count)) == allowed
        mean = index.size / len(allowed)
        assert (np.abs(count[sorted(allowed)] - mean) < 5 * mean**0.5).all()


@pytest.mark.slow
@pytest.mark.guards("storing")
def test_what_a_step_stores(drq_eps, der, monkeypatch):
    for script in (drq_eps, der):
        args = script.Args(**ASLEEP | {"buffer_size": 90, "n_step": 5})
        watch = lambda state: np.asarray(getattr(state, "priorities", 0))
        state, watched, rows = play_stream(script, args, 8, 200, watch)
        assert_stored(script, args, state, rows)
    monkeypatch.setattr(der, "update", idle)
    assert_priorities(der, args, state, watched, rows)


@pytest.mark.guards("sampling")
def test_draws_are_proportional(der):
    """One in each of equal parts of the sum; frequencies as the priorities; nothing of priority 0; weights by them."""
    args, rng = der.Args(**TINY | {"buffer_size": 64}), np.random.default_rng(0)
    priorities = np.where(rng.random(64) < 0.3, 0, rng.gamma(0.5, size=64)).astype(np.float32)
    index, weights = jax.vmap(partial(der.sample_rows, args, jnp.asarray(priorities)))(
        jax.random.split(jax.random.key(3), 20_000)
    )
    count, expected = np.bincount(np.asarray(index).reshape(-1), minlength=64), priorities / priorities.sum() * 160_000
    assert not count[priorities == 0].any()
    assert (np.abs(count - expected) <= 5 * np.sqrt(expected)).all()
    bounds = np.cumsum(np.float64(priorities)) / priorities.sum(dtype=np.float64)
    for part in range(8):
        rows = np.unique(index[:, part])
        assert (bounds[rows] >= part / 8 - 1e-6).all()
        assert (bounds[rows] - priorities[rows] / priorities.sum() <= (part + 1) / 8 + 1e-6).all()
    wanted = priorities[index] ** -0.5
    np.testing.assert_allclose(weights, wanted / wanted.max(1, keepdims=True), rtol=1e-4)


@pytest.mark.guards("sampling")
@pytest.mark.parametrize("draw", [0.0, 1.0])
def test_rounding_never_draws_a_row_of_priority_0(der, draw, monkeypatch):
    args, rng = der.Args(**TINY | {"buffer_size": 100_000}), np.random.default_rng(1)
    priorities = np.where(rng.random(100_000) < 0.5, 0, rng.gamma(0.5, size=100_000)).astype(np.float32)
    priorities[[0, -1]] = 0
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, draw))
    index, weights = der.sample_rows(args, jnp.asarray(priorities), jax.random.key(0))
    assert (priorities[index] > 0).all() and np.isfinite(weights).all()


# Augmentation


@pytest.mark.guards("loss")
def test_augmentation(drq_eps):
    """Shifts of -4 to 4 pixels each way, all of them and as often, with edges repeated; one factor for all frames, a
    clipped normal draw around 1."""
    obs = np.random.default_rng(0).integers(20, 256, (4, 84, 84), np.uint8)
    out = np.asarray(jax.vmap(partial(drq_eps.augment, jnp.asarray(obs)))(jax.random.split(jax.random.key(0), 600)))
    padded = np.pad(np.float32(obs), [(0, 0), (4, 4), (4, 4)], mode="edge")
    crops = {(i, j): padded[:, i : i + 84, j : j + 84] for i in range(9) for j in range(9)}
    found, factors = [], []
    for image in out:
        ratios = {shift: image[:, ::9, ::9] / crop[:, ::9, ::9] for shift, crop in crops.items()}
        shift = min(ratios, key=lambda shift: np.ptp(ratios[shift]))
        np.testing.assert_allclose(image, crops[shift] * ratios[shift][0, 0, 0], rtol=1e-5)
        found.append(shift)
        factors.append(ratios[shift][0, 0, 0])
    for axis in np.array(found).T:
        count = np.bincount(axis, minlength=9)
        assert len(count) == 9 and (np.abs(count - 600 / 9) < 5 * (600 / 9) ** 0.5).all()
    z = (np.array(factors) - 1) / 0.05
    assert np.abs(z).max() == pytest.approx(2, abs=1e-3) and 0.02 < (np.abs(z) > 1.999).mean() < 0.08
    assert abs(z.mean()) < 0.2 and 0.8 < z.std() < 1.05


# Losses


def random_batch(script, n=8):
    """Frames, actions, rewards, discounts (some 0) and frames after."""
    rng = np.random.default_rng(1)
    frames = lambda: rng.integers(0, 256, (n, 4, 84, 84), np.uint8)
    discount = np.where(rng.random(n) < 0.3, 0, 0.9 ** rng.integers(1, 11, n))
    assert (discount == 0).any()
    batch = frames(), rng.integers(0, 4, n), 3 * rng.normal(size=n), discount, frames()
    batch = [jnp.asarray(x, {"f": jnp.float32, "i": jnp.int32}.get(x.dtype.kind)) for x in batch]
    return script.Batch(**dict(zip(("obs", "action", "reward", "discount", "next_obs"), batch, strict=True)))


def two_networks(script, args):
    init = jax.jit(lambda seed: first_state(script, args, seed, FRAME).learner.network)
    return [init(seed) for seed in (0, 1)]


def huber(x):
    return np.where(np.abs(x) < 1, 0.5 * x**2, np.abs(x) - 0.5)


@pytest.mark.guards("loss")
@pytest.mark.parametrize("loss", ["huber", "mse"])
def test_dqn_loss(dqn_atari, loss):
    args, batch = dqn_atari.Args(**TINY | {"loss": loss}), random_batch(dqn_atari)
    network, target = two_networks(dqn_atari, args)
    of_all = jax.jit(lambda network, obs: jax.vmap(partial(dqn_atari.q_values, args, network))(obs))
    values = lambda network, obs: np.float64(of_all(network, obs))
    told = batch.reward + batch.discount * values(target, batch.next_obs).max(1)
    error = np.float64(values(network, batch.obs)[np.arange(8), batch.action] - told)
    assert (np.abs(error) < 1).any() and (np.abs(error) > 1).any()
    expected = (huber(error) if loss == "huber" else error**2).mean()
    found = jax.jit(dqn_atari.q_loss, static_argnums=1)(network, args, target, batch)[0]
    assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.guards("loss")
def test_drq_loss(drq_eps, rlax):
    """Double Q-learning over n steps on augmented frames, against NumPy and rlax, and that both sides are augmented."""
    args, batch = drq_eps.Args(**TINY), random_batch(drq_eps)
    action, rewards, discount = batch.action, batch.reward, batch.discount
    network, target = two_networks(drq_eps, args)
    key = jax.random.key(5)
    keys = jax.random.split(key, (2, 8))
    augment = jax.jit(jax.vmap(drq_eps.augment))
    seen, after = augment(batch.obs, keys[0]), augment(batch.next_obs, keys[1])
    values = jax.jit(lambda network, obs: jax.vmap(partial(drq_eps.q_values, args, network))(obs))
    q, choice, told = (np.float64(values(*x)) for x in ((network, seen), (network, after), (target, after)))
    assert (choice.argmax(1) != told.argmax(1)).any(), "double Q-learning would not be seen"
    error = q[np.arange(8), action] - rewards - discount * told[np.arange(8), choice.argmax(1)]
    loss = lambda network: drq_eps.q_loss(network, args, target, batch, key)[0]
    found, grad = jax.jit(jax.value_and_grad(loss))(network)
    assert float(found) == pytest.approx(huber(error).mean(), rel=1e-4)

    def theirs(network):
        q, choice = values(network, seen), values(network, after)
        errors = jax.vmap(rlax.double_q_learning)(q, action, rewards, discount, values(target, after), choice)
        return rlax.huber_loss(errors).mean()

    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), grad, jax.grad(theirs)(network))


def ready_to_learn(script, args, steps, learner, seed=9):
    """A State of this learner, with a replay of so many steps. Where args are asleep, so is it."""
    state = play_stream(script, args, seed, steps)[0]
    sums = jax.eval_shape(partial(first_state, script, args), seed, FRAME).metric_sums
    return state.replace(learner=learner, metric_sums=dict.fromkeys(sums, jnp.float32(0)))


def learning_step(script, args):
    """-> function of a State and a number: the State after a step with the gradient update of this number, or without
    one, as `learning_starts` is far (None)."""
    step = jax.jit(lambda state: script.train_step(args, still, state, None)[0])
    first = args.learning_starts - 1
    return lambda state, number: step(state.replace(step=jnp.int32(0 if number is None else first + number - 1)))


def same(one, two):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, two)))


@pytest.mark.guards("loss")
def test_der_update(der, rlax):
    """The loss, its gradient by Adam's first step, weights and new priorities, against rlax's categorical double
    Q-learning, each pass with its own noise; and the target network's copy."""
    args = der.Args(**ASLEEP | {"buffer_size": 200, "n_step": 3, "v_max": 2, "num_atoms": 7})
    network, target = two_networks(der, args)
    opt = der.optax.adam(args.learning_rate, eps=1.5e-4).init(network)
    state = ready_to_learn(der, args, 150, der.Learner(network=network, target_network=target, opt=opt))
    rng = np.random.default_rng(2)
    priorities = jnp.asarray(np.where(state.priorities > 0, rng.gamma(2.0, size=200), 0), jnp.float32)
    state, learn = state.replace(priorities=priorities), learning_step(der, args)
    before = learn(state, None)  # the step's row is stored
    priorities, update_key = before.priorities, jax.random.split(state.key, 4)[3]
    draw_key, *keys = jax.random.split(jax.random.fold_in(update_key, 0), 4)
    index, weights = der.sample_rows(args, priorities, draw_key)
    batch = der.n_steps(args, before.replay, index, 3, 0.9)
    obs, action, rewards, discount, final_obs = batch.obs, batch.action, batch.reward, batch.discount, batch.next_obs
    apply = der.Network(args).apply
    logits = lambda network, obs, key: jax.vmap(lambda obs: apply(network, obs, rngs={"noise": key})[1])(obs)
    atoms = jnp.linspace(-2, 2, 7)

    def theirs(network):
        choice = (jax.nn.softmax(logits(network, final_obs, keys[1])) * atoms).sum(-1)
        told, own = logits(target, final_obs, keys[2]), logits(network, obs, keys[0])
        loss = jax.vmap(rlax.categorical_double_q_learning, (None, 0, 0, 0, 0, None, 0, 0))
        losses = loss(atoms, own, action, rewards, discount, atoms, told, choice)
        return (weights * losses).mean(), losses

    (expected, losses), grad = jax.jit(jax.value_and_grad(theirs, has_aux=True))(network)
    new = learn(state, 1)
    learner, after, info = new.learner, new.priorities, new.metric_sums
    assert float(info["losses/q_loss"]) == pytest.approx(float(expected), rel=1e-4) and info["updates"] == 1
    np.testing.assert_allclose(after[index], (losses + 1e-10) ** 0.5, rtol=1e-3)
    untouched = np.setdiff1d(np.arange(200), index)
    assert np.array_equal(after[untouched], priorities[untouched])
    step = lambda grad: -1e-4 * grad / (jnp.abs(grad) + 1.5e-4)  # Adam's first
    moved = jax.tree.map(lambda new, old: new - old, learner.network, network)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-6), moved, jax.tree.map(step, grad))
    assert same(learner.target_network, target) and args.target_interval == 2000
    learner = learn(state, 4000).learner
    assert same(learner.target_network, learner.network) and not same(learner.network, network)


@pytest.mark.slow
@pytest.mark.guards("schedule")
def test_drq_target_copy_and_der_epsilon(drq_eps, der):
    """DrQ's target network is the new network after every update, or after as many as asked; beside noise epsilon falls
    at once after the steps that are random."""
    for interval, copied in ((1, True), (3, False)):
        args = drq_eps.Args(**ASLEEP | {"buffer_size": 60, "target_interval": interval})
        network, target = two_networks(drq_eps, args)
        old = drq_eps.Learner(network=network, target_network=target, opt=drq_eps.make_optimizer(args).init(network))
        state = ready_to_learn(drq_eps, args, 40, old)
        new = learning_step(drq_eps, args)(state, 1).learner
        assert same(new.target_network, new.network if copied else target) and not same(new.network, network)
    assert [float(der.epsilon(der.Args(), step)) for step in (1, 1600, 1601)] == [1, 1, pytest.approx(0.01)]


# Evaluation, seeds, memory


@pytest.mark.guards("evaluation")
def test_evaluation(dqn_atari):
    """Returns and lengths are those of stepping each game alone, with its seed's network; the games of a seed are the
    same, however many."""
    args = dqn_atari.Args(**TINY | {"max_episode_steps": 150, "eval_e": 0.3})
    networks = two_networks(dqn_atari, args)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *networks)
    learner = dqn_atari.Learner(network=stacked, target_network=stacked, opt=None)
    games = lambda n: dqn_atari.Args(**vars(args) | {"eval_episodes": n})
    play = lambda n: dqn_atari.evaluate(games(n), learner, [5, 6], 100)
    one, two, scores = play(4), play(2), set()
    assert all(values.shape == (2,) for values in (one | two).values())
    for i, (network, seed) in enumerate(zip(networks, (5, 6), strict=True)):
        row, short = ({tag: values[i] for tag, values in played.items()} for played in (one, two))
        start_key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)
        starts = jax.random.randint(start_key, (4,), 0, 2**31 - 1).tolist()
        found = [played_by_hand(dqn_atari, args, network, seed, 100, game, start) for game, start in enumerate(starts)]
        assert [row[f"eval/episode_{i}"] for i in range(4)] == [returned for returned, *_ in found]
        assert row["eval/episodic_return"] == np.mean([returned for returned, *_ in found])
        assert row["eval/episodic_length"] == np.mean([length for _, length, _ in found])
        assert [short[f"eval/episode_{i}"] for i in range(2)] == [row[f"eval/episode_{i}"] for i in range(2)]
        assert sum(lost for *_, lost in found) > 2, "no life was lost: the test saw too little"
        scores |= {returned for returned, *_ in found}
    assert len(scores) > 2


@pytest.mark.slow
@pytest.mark.guards("seeds")
@pytest.mark.guards("ring")
def test_a_seed_of_a_batch_is_the_run_alone(der, whole_programs):
    """Seed 2 beside 1 takes the actions, sees the frames and learns the weights of seed 2 alone; seeds differ. At ratio
    1.5 there are 17 updates from step 50 to step 60. And a copy of the ring would make every step as slow as the ring
    is long."""
    outcomes = []
    for seeds, i in (([1, 2], 1), ([2], 0)):
        args, env_step, state = begin(der, seeds, buffer_size=12_345)
        chunk = der.train_chunk.lower(args, env_step, 60, state).compile()
        held, text = f"u8[{len(seeds)},12345,84,84]", chunk.as_text()
        assert held in text and not re.findall(rf"= u8\[{len(seeds)},12345[^=]* copy(?:-start)?\(", text)
        state, (actions, _) = chunk(state)
        outcomes.append(jax.tree.map(lambda x, i=i: np.asarray(x)[i], (actions, state.obs, state.learner.network)))
        assert (state.metric_sums["updates"] == 90 - 73).all() and (state.learner.opt[0].count == 17).all()
        assert logged(der, args, state)["charts/updates"].tolist() == [17] * len(seeds)
        assert all(x.dtype != np.float64 for x in jax.tree.leaves(jax.device_get(state.replace(key=None))))
        if len(seeds) == 2:
            assert not np.array_equal(actions[0], actions[1]) and not np.array_equal(state.obs[0], state.obs[1])
    (actions, obs, learnt), (actions_alone, obs_alone, alone) = outcomes
    assert np.array_equal(actions, actions_alone) and np.array_equal(obs, obs_alone)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-3, rtol=1e-2), learnt, alone)


@pytest.mark.guards("ring")
def test_memory(dqn_atari):
    """At most 0.75 GB a seed for 100,000 steps, and what the error about it takes for a step is what a step takes."""
    args = dqn_atari.Args(env_id="Breakout-v5")
    replay = jax.eval_shape(partial(first_state, dqn_atari, args), 1, FRAME).replay
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(replay))
    assert size == 100_000 * (84 * 84 + 12) < 0.75e9


@pytest.mark.guards("errors")
@pytest.mark.parametrize(
    "options,expected",
    [
        ({"env_id": "Pong-v6"}, "Pong-v5"),
        ({"env_id": "CheetahRun-v1"}, "no Atari game"),
        ({"batch_size": 48}, "--batch-size and --n-step"),
        ({"buffer_size": 900_000_000}, "fewer seeds or a smaller replay"),
        ({"num_atoms": 1}, "--num-atoms cannot be 1"),
        ({"sticky": 1.5}, "--sticky cannot be 1.5"),
    ],
)
def test_bad_input(options, expected, tmp_path, der, capfd):
    options = SMALL_ATARI | {"runs_dir": tmp_path / "runs"} | options
    said = run("der", expect=2, **options) if expected == "Pong-v5" else refused(der, capfd, **options)
    assert expected in said and len(said.strip().splitlines()) == 1 and not (tmp_path / "runs").exists()


@pytest.mark.guards("environment")
def test_a_game_that_is_over_as_it_is_cut(dqn_atari):
    """EnvPool calls that a truncation, and in games without lives nothing else tells: the value would go on past the
    end. Pong with random actions is over after some 800 steps; cut there, it must be over all the same."""
    args, actions = dqn_atari.Args(env_id="Pong-v5"), np.random.default_rng(0).integers(0, 6, 5000).astype(np.int32)
    pool = dqn_atari.make_pool(args, [3])
    pool.reset()
    length = next(t for t, action in enumerate(actions, 1) if pool.step(action[None])[2][0])
    for cut, expected in ((length, (True, False)), (length - 1, (False, True))):
        step = dqn_atari.make_env(dqn_atari.Args(env_id="Pong-v5", max_episode_steps=cut), [3]).step
        ends = lambda _, action, step=step: (None, jax.vmap(partial(step, None))(action[None])[1][2:4])
        _, (terminated, truncated) = jax.lax.scan(ends, None, actions[:cut])
        assert (terminated[-1, 0], truncated[-1, 0]) == expected and not (terminated | truncated)[:-1].any()


@pytest.mark.guards("environment")
def test_threads_of_a_pool(dqn_atari, monkeypatch):
    """As many as there are cores, also where games are stepped singly, but no more than games."""
    args = dqn_atari.Args(env_id="Pong-v5")
    for cores, games, threads in ((4, 3, 3), (2, 3, 2), (4, 1, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        for options in ({}, {"batch_size": 1}):
            assert dqn_atari.make_pool(args, list(range(games)), **options).spec.config.num_threads == threads
