"""SPR, SR-SPR and BBF: networks, losses, masks, resets, annealing, weight decay.

The judges are convolutions and products written with jax.lax and NumPy, rlax, and plain loops over the steps of games.
"""

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
    first_state,
    play_stream,
    played_by_hand,
    still,
)
from runs import before_step, begin, idle, logged
from spr_runs import SMALLEST, learner, tiny

pytestmark = pytest.mark.usefixtures("quick_programs")

SCRIPTS = list(SMALLEST)


@pytest.fixture
def script(request):
    return request.getfixturevalue(request.param)


def update_key(script, state):
    """What a step takes from its key for the second of its updates."""
    parts, place = {"spr": (4, 3), "sr_spr": (5, 3), "bbf": (4, 2)}[script.__name__]
    return jax.random.fold_in(jax.random.split(state.key, parts)[place], 1)


def only_second(first, last, one_update, carry):  # in place of the loop of a step's updates
    return one_update(1, carry)


def one_update(script, args, old, state):
    """The second one of a step that stores nothing -> Learner, priorities, totals."""
    tags = "losses/q_loss", "losses/spr_loss", "losses/q_values", *state.metric_sums
    state = state.replace(learner=old, metric_sums=dict.fromkeys(tags, jnp.ones(())))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "store", lambda args, state, row: state)
        patch.setattr(jax.lax, "fori_loop", only_second)
        new = jax.jit(lambda state: script.train_step(args, still, state, None)[0])(state)
    return new.learner, new.priorities, {tag: x - 1 for tag, x in new.metric_sums.items()}  # which add up


# The networks once more


def convolve(params, x, stride=1):
    """`x` (batch, height, width, channels)"""
    layout = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, params["kernel"], (stride, stride), "SAME", dimension_numbers=layout)
    return x + params["bias"]


def roles(params):
    """Layers by what they do, in place of the order in which they were made."""
    noisy = ("NoisyDense_0", "Dense_0", "NoisyDense_1", "NoisyDense_2")
    dense = noisy if "NoisyDense_0" in params else [f"Dense_{i}" for i in range(4)]
    named = dict(zip(("projection", "predictor", "advantage", "value"), dense, strict=True))
    convolutions = sum(name.startswith("Conv") for name in params)
    named |= {f"encoder_{i}": f"Conv_{i}" for i in range(convolutions - 2)}
    named |= {f"transition_{i}": f"Conv_{convolutions - 2 + i}" for i in range(2)}
    assert set(named.values()) == set(params)
    turned = lambda name, layer: layer | {"kernel": jnp.swapaxes(layer["kernel"], -1, -2)} if "Noisy" in name else layer
    return {role: turned(name, params[name]) for role, name in named.items()}


def linear(params, x):
    """A dense layer, or a noisy one without its noise."""
    return x @ params["kernel"] + params["bias"]


def encode(params, frames):
    """Frames (batch, 4, 84, 84) -> (batch, 11, 11, features) between 0 and 1"""
    x = jnp.moveaxis(frames, 1, -1) / 255
    if "encoder_3" not in params:
        for i, stride in enumerate((4, 2, 1)):
            x = jax.nn.relu(convolve(params[f"encoder_{i}"], x, stride))
        return scaled(x)
    for stage in range(3):
        first, *blocks = [params[f"encoder_{5 * stage + i}"] for i in (0, 2, 1, 4, 3)]  # a block's outer one first
        size, x = -(-x.shape[1] // 2), convolve(first, x)
        around = (x.shape[1] % 2, 1)  # of an odd size, both sides are padded
        x = jnp.pad(x, [(0, 0), around, around, (0, 0)], constant_values=-jnp.inf)
        corners = [(i, j) for i in range(3) for j in range(3)]
        x = jnp.stack([x[:, i : i + 2 * size - 1 : 2, j : j + 2 * size - 1 : 2] for i, j in corners]).max(0)
        for one, two in (blocks[:2], blocks[2:]):
            x = x + convolve(two, jax.nn.relu(convolve(one, jax.nn.relu(x))))
    return scaled(jax.nn.relu(x))


def scaled(x):
    low, high = x.min((1, 2, 3), keepdims=True), x.max((1, 2, 3), keepdims=True)
    return (x - low) / (high - low + 1e-5)


def heads(params, latent, atoms):
    """(batch, 11, 11, features) -> logits (batch, num_actions, num_atoms)"""
    hidden = jax.nn.relu(linear(params["projection"], latent.reshape(len(latent), -1)))
    value, advantage = linear(params["value"], hidden), linear(params["advantage"], hidden)
    advantage = advantage.reshape(len(latent), -1, atoms)
    return value[:, None] + advantage - advantage.mean(1, keepdims=True)


def predict(params, latent, actions, num_actions=4):
    """Actions (batch, jumps) -> predictions (batch, jumps, hidden_dim)"""
    out = []
    for k in range(actions.shape[1]):
        planes = jnp.zeros((*latent.shape[:3], num_actions)).at[np.arange(len(latent)), :, :, actions[:, k]].set(1)
        latent = jax.nn.relu(convolve(params["transition_0"], jnp.concatenate([latent, planes], -1)))
        latent = scaled(jax.nn.relu(convolve(params["transition_1"], latent)))
        out.append(linear(params["predictor"], linear(params["projection"], latent.reshape(len(latent), -1))))
    return jnp.stack(out, 1)


def jumps_by_hand(games, first, jumps):
    """Of a row of the naive replay, which goes on -> masks (jumps,), frames after each step, actions (jumps,)"""
    masks, later, actions = np.zeros(jumps), np.zeros((jumps, 4, 84, 84), np.uint8), np.zeros(jumps, int)
    alive = True
    for k in range(jumps):
        row, following = games[first + k], games[first + k + 1]
        if alive and row:
            actions[k], alive = row[1], not (row[3] or row[4])
            masks[k] = alive
            later[k] = following[0] if alive else 0
    return masks, later, actions


@pytest.mark.guards("loss")
@pytest.mark.parametrize("script", SCRIPTS, indirect=True)
def test_update(script, rlax):
    """One update against rlax's categorical double Q-learning and SPR's loss with masks from plain loops: loss, weights
    by priority, new priorities, gradients by Adam's first step, the step of the target network. Without noise. The ring
    of 100 rows has come round, and a row is drawn from whose end the predictions go on at its beginning."""
    bbf = script.__name__ == "bbf"
    args = tiny(
        script, buffer_size=100, tau=0.25, spr_weight=3.0, **{"weight_decay": 20.0} if bbf else {"noise_scale": 0.0}
    )
    state, _, games = play_stream(script, args, 9, 150)
    state = state.replace(key=jax.random.key(0))
    games = [*games[100:], *games[50:100]] * 2  # by their row, and on over the ring's end
    rng, key = np.random.default_rng(2), update_key(script, state)
    near = [any(row is None or row[3] or row[4] for row in games[i : i + 4]) for i in range(100)]  # an end is
    here = [row is not None and (row[3] or row[4]) for row in games[:100]]
    ends = 1 + 5 * np.array(near) + 20 * np.array(here)
    priorities = np.where(state.priorities > 0, ends * rng.gamma(2.0, size=100), 0)
    last = max(i for i in range(100) if not near[i] and priorities[i])
    priorities[last] = priorities.sum() / 2  # drawn more than once
    priorities = jnp.asarray(priorities, jnp.float32)
    old = learner(script, args, 0).replace(target_network=learner(script, args, 1).network)
    draw_key, augment_key, *_ = jax.random.split(key, 2 if bbf else 5)
    index, weights = script.sample_rows(args, priorities, draw_key)
    gamma = args.gamma_start if bbf else args.gamma
    batch = script.n_steps(args, state.replay, index, args.n_step, gamma)
    action, rewards, discount = batch.action, batch.reward, batch.discount

    by_hand = [jumps_by_hand(games, first, 4) for first in np.asarray(index)]
    masks, later, actions = (np.stack(x) for x in zip(*by_hand, strict=True))
    later = np.float32(later)
    assert (masks.min(1) == 1).any() and (masks.max(1) == 0).any() and len({tuple(mask) for mask in masks}) > 2, masks
    assert last in index and last + 4 >= 100, "no row is drawn whose steps go on at the ring's beginning"
    keys = jax.vmap(lambda key: jax.random.split(key, 6))(jax.random.split(augment_key, 8))
    augment = jax.jit(jax.vmap(script.augment))
    seen, after = augment(batch.obs, keys[:, 0]), augment(batch.next_obs, keys[:, 5])
    ahead = jax.jit(jax.vmap(jax.vmap(script.augment)))(jnp.asarray(later), keys[:, 1:5])
    atoms, target = jnp.linspace(-2, 2, 7), roles(old.target_network["params"])
    encoded = jax.jit(encode)
    told = heads(target, encoded(target, after), 7)
    projected = linear(target["projection"], encoded(target, ahead.reshape(-1, 4, 84, 84)).reshape(32, -1))
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def theirs(network):
        params = roles(network["params"])
        latent = encode(params, seen)
        choice = (jax.nn.softmax(heads(params, encode(params, after), 7)) * atoms).sum(-1)
        loss = jax.vmap(rlax.categorical_double_q_learning, (None, 0, 0, 0, 0, None, 0, 0))
        losses = loss(atoms, heads(params, latent, 7), action, rewards, discount, atoms, told, choice)
        cosines = (unit(predict(params, latent, actions)) * unit(projected.reshape(8, 4, -1))).sum(-1)
        spr = (masks * (2 - 2 * cosines)).mean(1)
        return (weights * (losses + 3 * spr)).mean(), (losses, spr)

    (_, (losses, spr)), grad = jax.jit(jax.value_and_grad(theirs, has_aux=True))(old.network)
    new, changed, info = one_update(script, args, old, state.replace(priorities=priorities))
    assert info["updates"] == 1
    assert float(info["losses/q_loss"]) == pytest.approx(float((weights * losses).mean()), rel=1e-3)
    assert float(info["losses/spr_loss"]) == pytest.approx(float(spr.mean()), rel=1e-3)
    first = np.array([list(index).index(row) for row in index])
    assert np.ptp(losses[first] / losses) > 0.01, "no row stands twice, with other frames each time"
    np.testing.assert_allclose(changed[index], (losses[first] + 1e-10) ** 0.5, rtol=1e-3)
    rest = np.setdiff1d(np.arange(100), index)
    assert np.array_equal(changed[rest], priorities[rest])
    decay = lambda x: args.weight_decay * x * (x.ndim != 1) if bbf else 0.0
    step = lambda g, x: -1e-4 * (g / (jnp.abs(g) + 1.5e-4) + decay(x))  # Adam's first
    expected = jax.tree.map(step, grad, old.network)
    found = jax.tree.map(lambda new, old: new - old, new.network, old.network)
    for (path, one), two in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        if "sigma" not in str(path):  # which is not in their form
            assert np.abs(two).max() > 1e-5, f"no gradient reaches {path}"
            close = np.isclose(one, two, atol=4e-6)  # where a gradient is as small as its rounding, signs may differ
            assert close.mean() > 0.99, (path, close.mean())
    blend = lambda target, new: 0.75 * target + 0.25 * new
    wanted = jax.tree.map(blend, old.target_network, new.network)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), new.target_network, wanted)


@pytest.mark.slow
@pytest.mark.guards("networks")
def test_sizes_of_the_networks(spr, sr_spr, bbf):
    """By hand for Breakout's four actions, and about 4.9 and 40 million with 18 (facts of the papers' codes)."""
    conv = lambda size, inputs, outputs: (size * size * inputs + 1) * outputs
    dense = lambda inputs, outputs: (inputs + 1) * outputs
    impala, inputs = 0, 4
    for outputs in (64, 128, 128):
        impala, inputs = impala + conv(3, inputs, outputs) + 4 * conv(3, outputs, outputs), outputs
    nature = conv(8, 4, 32) + conv(4, 32, 64) + conv(3, 64, 64)
    for script, encoder, features, hidden, noise in (
        (spr, nature, 64, 512, 2),
        (sr_spr, nature, 64, 512, 2),
        (bbf, impala, 128, 2048, 1),
    ):
        for game, actions in (("Breakout-v5", 4), ("Alien-v5", 18)):
            args = script.Args(env_id=game, buffer_size=50)
            network = jax.eval_shape(partial(first_state, script, args), 1, FRAME).learner.network
            transition = conv(3, features + actions, features) + conv(3, features, features)
            layers = dense(121 * features, hidden) + dense(hidden, 51) + dense(hidden, 51 * actions)
            total = sum(x.size for x in jax.tree.leaves(network))
            assert total == encoder + transition + noise * layers + dense(hidden, hidden)
            if actions == 18:
                about = {512: 4.9e6, 2048: 40e6}[hidden]
                assert encoder + transition + layers + dense(hidden, hidden) == pytest.approx(about, rel=0.01)


@pytest.mark.guards("networks")
@pytest.mark.parametrize("script", SCRIPTS, indirect=True)
def test_initial_weights(script):
    """Convolutions and the predictor are Xavier-uniform, with biases of 0; so are BBF's dense layers."""
    args = script.Args(env_id="Breakout-v5", hidden_dim=64, buffer_size=50)
    init = jax.jit(partial(script.init_learner, args))
    params = roles(init(jax.random.key(0), jnp.zeros((4, 84, 84), jnp.uint8)).network["params"])
    for role, layer in params.items():
        if "kernel_sigma" not in layer:
            *size, inputs, outputs = layer["kernel"].shape
            bound = (6 / (np.prod(size) * (inputs + outputs))) ** 0.5
            assert 0.97 * bound < np.abs(layer["kernel"]).max() <= bound and not np.any(layer["bias"]), role


@pytest.mark.slow
@pytest.mark.guards("networks")
def test_noise(spr):
    """Values have noise if given a key for it, another one for another key; predictions are of means alone."""
    args = tiny(spr)
    network = learner(spr, args, 0).network
    obs = jax.random.randint(jax.random.key(1), (4, 84, 84), 0, 256).astype(jnp.uint8)
    q_values = jax.jit(partial(spr.q_values, args))
    values = lambda **rngs: np.asarray(q_values(network, obs, **rngs))
    one, two = (values(noise=jax.random.key(i)) for i in (1, 2))
    assert not np.allclose(one, two) and np.array_equal(values(), values()) and not np.allclose(values(), one)
    assert spr.Network(args).apply(network, obs, [1, 2, 3])[3].shape == (3, 4)
    outputs = lambda **rngs: spr.Network(args).apply(network, obs, [1, 2], rngs=rngs)[2:]
    for noisy, quiet in zip(outputs(noise=jax.random.key(1)), outputs(), strict=True):
        np.testing.assert_array_equal(noisy, quiet)


@pytest.mark.slow
@pytest.mark.guards("loss")
def test_noise_of_an_update(spr, rlax):
    """The three passes have keys of their own; how much noise there is is learnt."""
    args = tiny(spr, batch_size=4, jumps=1)
    state = play_stream(spr, args, 9, 60)[0]
    old = learner(spr, args, 0).replace(target_network=learner(spr, args, 1).network)
    draw_key, augment_key, *keys = jax.random.split(update_key(spr, state), 5)
    index, weights = spr.sample_rows(args, state.priorities, draw_key)
    batch = spr.n_steps(args, state.replay, index, 5, args.gamma)
    action, rewards, discount = batch.action, batch.reward, batch.discount
    views = jax.vmap(lambda key: jax.random.split(key, 3))(jax.random.split(augment_key, 4))
    augment = jax.jit(jax.vmap(spr.augment))
    seen, after = (augment(x, views[:, i]) for i, x in ((0, batch.obs), (2, batch.next_obs)))
    apply, atoms = spr.Network(args).apply, jnp.linspace(-2, 2, 7)
    logits = lambda network, obs, key: jax.vmap(lambda obs: apply(network, obs, rngs={"noise": key})[1])(obs)

    @jax.jit
    def expected(own, choosing, telling):
        choice = (jax.nn.softmax(logits(old.network, after, choosing)) * atoms).sum(-1)
        told, mine = logits(old.target_network, after, telling), logits(old.network, seen, own)
        loss = jax.vmap(rlax.categorical_double_q_learning, (None, 0, 0, 0, 0, None, 0, 0))
        return (weights * loss(atoms, mine, action, rewards, discount, atoms, told, choice)).mean()

    new, _, info = one_update(spr, args, old, state)
    assert float(info["losses/q_loss"]) == pytest.approx(float(expected(*keys)), rel=1e-4)
    assert float(expected(*keys)) != pytest.approx(float(expected(keys[0], keys[0], keys[0])), rel=1e-3)
    for (path, one), two in zip(jax.tree.leaves_with_path(new.network), jax.tree.leaves(old.network), strict=True):
        assert not np.array_equal(one, two), f"{path} is not learnt"


@pytest.mark.slow
@pytest.mark.guards("acting")
@pytest.mark.parametrize("script", SCRIPTS, indirect=True)
def test_the_target_network_acts(script, monkeypatch):
    """In training, with noise of the step's own key where there is any."""
    args = tiny(script, end_e=0.0, learning_starts=1, exploration_steps=1)
    two = learner(script, args, 0).replace(target_network=learner(script, args, 1).network)
    monkeypatch.setattr(script, "update", idle)
    state = jax.jit(partial(first_state, script, args))(3, FRAME).replace(learner=two, step=jnp.int32(20))
    step = lambda key, obs: script.train_step(args, still, state.replace(key=key, obs=obs), None)
    act = jax.jit(lambda key, obs: step(key, obs)[1][0])
    best = jax.jit(lambda network, obs, **rngs: script.q_values(args, network, obs, **rngs).argmax())
    keys, chosen, other, quiet = {"spr": 4, "sr_spr": 5}.get(script.__name__), [], [], []
    for i in range(20):
        key, obs = jax.random.key(i), np.random.default_rng(i).integers(0, 256, (4, 84, 84), np.uint8)
        rngs = {"noise": jax.random.split(key, keys)[2]} if keys else {}
        chosen.append(int(best(two.target_network, obs, **rngs)))
        assert int(act(key, obs)) == chosen[-1], i
        other.append(int(best(two.network, obs, **rngs)))
        quiet.append(int(best(two.target_network, obs)))
    assert chosen != other and (chosen != quiet or not keys), "nothing could be seen"


@pytest.mark.slow
@pytest.mark.guards("evaluation")
def test_the_target_network_is_evaluated(spr):
    """Without noise, each game as it is played alone."""
    args = tiny(spr, max_episode_steps=40, eval_episodes=2, eval_e=0.2)
    two = learner(spr, args, 0).replace(target_network=learner(spr, args, 1).network)
    row = {tag: value for tag, (value,) in spr.evaluate(args, jax.tree.map(lambda x: x[None], two), [5], 100).items()}
    starts = jax.random.randint(jax.random.fold_in(jax.random.key(5), 2**31 - 1), (2,), 0, 2**31 - 1).tolist()
    alone = lambda network: [played_by_hand(spr, args, network, 5, 100, *game) for game in enumerate(starts)]
    found = alone(two.target_network)
    assert [row[f"eval/episode_{i}"] for i in range(2)] == [returned for returned, *_ in found]
    assert row["eval/episodic_length"] == np.mean([length for _, length, _ in found])


@pytest.mark.slow
@pytest.mark.guards("storing")
@pytest.mark.parametrize("script", SCRIPTS, indirect=True)
def test_what_a_step_stores(script, monkeypatch):
    args = tiny(script, buffer_size=90)
    state, watched, rows = play_stream(script, args, 8, 200, lambda state: np.asarray(state.priorities))
    assert_stored(script, args, state, rows)
    monkeypatch.setattr(script, "update", idle)
    assert_priorities(script, args, state, watched, rows)


@pytest.mark.slow
@pytest.mark.guards("fresh")
@pytest.mark.parametrize("script", SCRIPTS, indirect=True)
def test_nothing_reaches_into_a_fresh_episode(script, monkeypatch):
    """Where a resume begins new games, no stack, no n steps and no predictions reach across: rows and what follows them
    are as plain Python has them, for which the old game was cut there unless it was over."""
    args, seams = tiny(script, buffer_size=100), range(7, 150, 10)
    watch = lambda state: (state.replay, np.asarray(state.priorities))
    state, watched, rows = play_stream(script, args, 46, 150, watch, seams)
    between = [seam + i for i, seam in enumerate(seams)]  # rows that hold the last frame of an old game
    assert len(rows) == 165 and not any(rows[row] for row in between)
    assert_stored(script, args, state, rows)

    monkeypatch.setattr(script, "sample_rows", lambda args, priorities, key: (jnp.arange(100), jnp.ones(100)))
    more = (5, 0.9) if script.__name__ == "bbf" else ()
    sample = jax.jit(lambda replay: script.sample_batch(args, replay, jnp.ones(100), jax.random.key(0), *more))
    gamma, across = more[1] if more else args.gamma, set()
    for count in range(20, 166, 5):
        batch = jax.tree.map(np.asarray, sample(watched[count - 1][0]))
        for first in range(max(0, count - 100 + 3), count - 5):
            if not rows[first]:
                continue
            i = first % 100
            masks, later, actions = jumps_by_hand(rows, first, 4)
            assert np.array_equal(batch.jump_mask[i], masks), first
            assert np.array_equal(batch.jump_obs[i][masks == 1], later[masks == 1]), first
            assert np.array_equal(batch.jump_action[i][masks == 1], actions[masks == 1]), first
            last = next((k for k in range(5) if rows[first + k][3] or rows[first + k][4]), 4)
            row = rows[first + last]
            assert batch.discount[i] == pytest.approx(0 if row[3] else gamma ** (last + 1), rel=1e-5), first
            assert row[3] or np.array_equal(batch.next_obs[i], row[5]), first
            across |= {(row - first, bool(rows[row - 1] and rows[row - 1][3])) for row in between}
    assert across >= {(k, over) for k in range(1, 6) for over in (False, True)}

    monkeypatch.undo()
    monkeypatch.setattr(script, "update", idle)
    assert_priorities(script, args, state, [priorities for _, priorities in watched], rows)


@pytest.mark.slow
@pytest.mark.guards("resets")
@pytest.mark.parametrize("script", ["sr_spr", "bbf"], indirect=True)
def test_what_a_reset_changes(script):
    """Encoder and transition model keep their part, all else is fresh; Adam starts anew, the target network is the new
    network. Fresh weights are other ones every time."""
    args, key = tiny(script), jax.random.key(3)
    kept = {"sr_spr": 0.8, "bbf": 0.5}[script.__name__]
    assert args.shrink_factor == kept
    state = play_stream(script, args, 9, 1)[0]
    old = learner(script, args, 0)
    old = old.replace(opt=jax.tree.map(lambda x: x + 1, old.opt))
    state = state.replace(learner=old)
    reset = jax.jit(lambda key: script.reset(args, state.replace(key=key)))
    new, again = reset(key), reset(jax.random.key(4))
    key = jax.random.split(key, {"sr_spr": 5, "bbf": 4}[script.__name__])[-1]  # train_step takes the others
    fresh = jax.jit(partial(script.init_learner, args))(key, state.obs).network["params"]
    before, after, fresh = (roles(x) for x in (old.network["params"], new.network["params"], fresh))
    half = {name for name in after if name.startswith(("encoder", "transition"))}
    assert len(half) == {"sr_spr": 5, "bbf": 17}[script.__name__]
    assert set(after) - half == {"projection", "predictor", "value", "advantage"}
    for name, layer in after.items():
        part = kept if name in half else 0
        expected = jax.tree.map(lambda old, new, part=part: part * old + (1 - part) * new, before[name], fresh[name])
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), layer, expected)
    jax.tree.map(np.testing.assert_array_equal, new.target_network, new.network)
    assert all(not np.any(x) for x in jax.tree.leaves(new.opt)) and all(np.all(x) for x in jax.tree.leaves(old.opt))
    assert not np.allclose(roles(again.network["params"])["value"]["kernel"], after["value"]["kernel"])


@pytest.mark.guards("resets")
def test_when_resets_fall(sr_spr):
    """Ratio 2, 4, 8, 16: 4, 9, 19, 39 resets within 100k steps, the last one an interval before the end or more."""
    for ratio, number in ((2, 4), (4, 9), (8, 19), (16, 39)):
        args, every = sr_spr.Args(replay_ratio=ratio), 40_000 // ratio
        found = [step for step in range(every // 4, 300_001, every // 4) if resets(sr_spr, args, step)]
        assert found == [every * i for i in range(1, number + 1)] and found[-1] + every <= 100_000
    assert not any(resets(sr_spr, sr_spr.Args(reset_interval=0), step) for step in range(0, 100_001, 2500))
    short = sr_spr.Args(resets_end=30_000)  # the one at 20,000 would be followed by one at 40,000
    assert not any(resets(sr_spr, short, step) for step in range(0, 100_001, 2500))
    exact = sr_spr.Args(resets_end=40_000)
    assert [step for step in range(0, 100_001, 2500) if resets(sr_spr, exact, step)] == [20_000]


def resets(script, args, step):
    """Is a reset due at this step: has the count risen with it?"""
    until = partial(script.num_useful_resets_until, args)
    return step > 0 and int(until(step)) > int(until(step - 1))


@pytest.mark.slow
@pytest.mark.guards("resets")
@pytest.mark.parametrize("script", ["sr_spr", "bbf"], indirect=True)
def test_a_reset_within_training(script, monkeypatch):
    """It comes at the start of the next step, once, at the steps that `num_useful_resets_until` tells."""
    args = tiny(script, replay_ratio=2, reset_interval=20, resets_end=45)
    monkeypatch.setattr(script, "update", idle)
    state = jax.jit(partial(first_state, script, args))(3, FRAME)
    step = jax.jit(lambda state: script.train_step(args, still, state, None)[0])
    changed = []
    for _ in range(43):
        before, state = state, step(before_step(script, args, state))
        heads = [np.asarray(roles(s.learner.network["params"])["value"]["kernel"]) for s in (before, state)]
        if not np.array_equal(*heads):
            changed.append(int(state.step))
    assert changed == [11, 21, 31]  # at 10, 20, 30, and not at 40: the next would be at 50


@pytest.mark.slow
@pytest.mark.guards("schedule")
def test_annealing(bbf, monkeypatch):
    """n from 10 to 3 and the discount from 0.97 to 0.997, exponentially in Adam's count, which a reset sets to 0."""
    args, seen = bbf.Args(**SMALLEST["bbf"], env_id="Breakout-v5", batch_size=2, buffer_size=50), {}

    class Seen(Exception):
        pass

    def note(args, replay, index, n, gamma):
        seen["now"] = float(n), float(gamma)
        raise Seen

    state = jax.jit(partial(first_state, bbf, args))(3, FRAME)
    old = learner(bbf, args, 0)
    monkeypatch.setattr(bbf, "n_steps", note)
    monkeypatch.setattr(bbf, "q_values", lambda args, network, obs: jnp.zeros(4))
    monkeypatch.setattr(jax.lax, "fori_loop", only_second)
    for count in (0, 1, 2500, 5000, 9999, 10_000, 50_000):
        opt = jax.tree.map(lambda x, count=count: x + count if x.ndim == 0 else x, old.opt)
        with pytest.raises(Seen):
            bbf.train_step(args, still, state.replace(learner=old.replace(opt=opt)), None)
        share = min(count / 10_000, 1)
        n, gamma = round(10 * 0.3**share), 1 - 0.03 * 0.1**share
        assert seen["now"] == (n, pytest.approx(gamma, abs=1e-6)), count
    assert n == 3


@pytest.mark.slow
@pytest.mark.guards("acting")
@pytest.mark.parametrize("script", SCRIPTS, indirect=True)
def test_exploration(script, monkeypatch):
    """Epsilon falls from 1 to 0 over 2,000 steps after the 2,000 random ones."""
    small = {"env_id": "Breakout-v5", "hidden_dim": 4, "num_atoms": 7, "buffer_size": 50}
    args, found = script.Args(**small | SMALLEST[script.__name__]), []

    class Seen(Exception):
        pass

    def note(q, key, epsilon):
        found.append(float(epsilon))
        raise Seen

    monkeypatch.setattr(script, "act", note)
    state = jax.jit(partial(first_state, script, args))(1, FRAME)
    for step in (1, 2000, 3000, 4000, 9000):
        with pytest.raises(Seen):
            script.train_step(args, None, state.replace(step=jnp.int32(step - 1)), None)
    assert found == pytest.approx([1, 1, 0.5, 0, 0])


def nine_steps(chunk, state):
    state, (actions, finite) = chunk(state)
    assert all(np.all(values) for values in finite.values())
    return state, actions


@pytest.mark.slow
@pytest.mark.guards("seeds")
@pytest.mark.guards("ring")
def test_a_seed_of_a_batch_is_the_run_alone(sr_spr, whole_programs):
    """Seed 2 beside 1 acts, learns and is reset as seed 2 alone; their fresh weights differ. One reset is due after
    step 27, after three updates, and comes with the next."""
    outcomes, options = [], {"reset_interval": 40, "resets_end": 100, "learning_starts": 26, "batch_size": 4}
    options["buffer_size"] = 12_345
    for seeds, i in (([1, 2], 1), ([2], 0)):
        args, env_step, state = begin(sr_spr, seeds, **options, exploration_steps=5, jumps=2, n_step=3)
        chunk = sr_spr.train_chunk.lower(args, env_step, 9, state).compile()
        text, ring = chunk.as_text(), f"u8[{len(seeds)},12345,84,84]"
        assert ring in text and not re.findall(rf"= {re.escape(ring)}[^=]* copy(?:-start)?\(", text), "replay copied"
        state, actions = nine_steps(chunk, state)
        for step in (9, 18, 27):
            assert (logged(sr_spr, args, state)["charts/resets"] == 0).all()
            state, actions = nine_steps(chunk, sr_spr.before_chunk(args, step, state))
        assert (state.learner.opt[0].count == 14).all() and (state.metric_sums["updates"] == 17).all()
        assert logged(sr_spr, args, state)["charts/resets"].tolist() == [1] * len(seeds)
        assert all(x.dtype != np.float64 for x in jax.tree.leaves(jax.device_get(state.replace(key=None))))
        learnt = state.learner.network["params"]
        outcomes.append(jax.tree.map(lambda x, i=i: np.asarray(x)[i], (actions, state.obs, learnt)))
        if len(seeds) == 2:
            kernel = np.asarray(roles(learnt)["predictor"]["kernel"])
            assert np.abs(kernel[0] - kernel[1]).mean() > 0.1 * np.abs(kernel).mean()
    (actions, obs, learnt), (actions_alone, obs_alone, alone) = outcomes
    assert np.array_equal(actions, actions_alone) and np.array_equal(obs, obs_alone)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-3, rtol=1e-2), learnt, alone)


@pytest.mark.guards("errors")
@pytest.mark.parametrize(
    "name,options,expected",
    [
        ("spr", {"jumps": 11}, "--jumps cannot be more than --n-step"),
        ("sr_spr", {"shrink_factor": 1.5}, "--shrink-factor cannot be 1.5"),
        ("sr_spr", {"reset_interval": -1}, "--reset-interval cannot be -1"),
        ("bbf", {"n_step_end": 11}, "--n-step-end cannot be more than --n-step"),
        ("bbf", {"gamma_start": 2.0}, "--gamma-start cannot be 2.0"),
    ],
)
def test_bad_input(name, options, expected, request, capsys):
    script = request.getfixturevalue(name)
    with pytest.raises(SystemExit) as error:
        script.check(script.Args(**options))
    assert error.value.code == 2 and expected in capsys.readouterr().err
    script.check(script.Args())
    script.check(script.Args(**{name: 0 for name in ("reset_interval", "tau") if hasattr(script.Args, name)}))
