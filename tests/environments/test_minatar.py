"""gymnax's MinAtar games, as the scripts make them, beside MinAtar's own, step by step: the same observations, rewards
and ends of games under players that get far. What is drawn at random is carried over from one to the other.

Seaquest is not among them: nearly all of its state is drawn. But random returns are those of all five.
"""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_dqn
import pytest

from studies import minatar_dqn

LEFT, UP, RIGHT, FIRE = 1, 2, 3, 5


def space_invaders(game, _):
    """Goes below the nearest alien and shoots as often as it can; steps aside from bullets."""
    near = lambda x: game.e_bullet_map[7:9, x].any()
    free = [(x, action) for x, action in ((game.pos - 1, LEFT), (game.pos + 1, RIGHT)) if 0 <= x <= 9 and not near(x)]
    if near(game.pos) and free:
        return free[0][1]
    aim = min(np.flatnonzero(game.alien_map.any(0)), key=lambda x: abs(x - game.pos))
    closer = [action for x, action in free if abs(x - aim) < abs(game.pos - aim)]
    return closer[0] if closer and game.shot_timer else FIRE


def breakout(game, _):
    return LEFT if game.ball_x < game.pos else RIGHT if game.ball_x > game.pos else 0


def freeway(_, rng):
    return UP if rng.random() < 0.95 else 0


def asterix(game, rng):
    """To a random side, unless there is an enemy in that place."""
    enemies = [entity[:2] for entity in game.entities if entity and not entity[3]]
    places = {1: (-1, 0), 2: (0, -1), 3: (1, 0), 4: (0, 1)}
    free = [a for a, (x, y) in places.items() if [game.player_x + x, game.player_y + y] not in enemies]
    return int(rng.choice(free or [0]))


@partial(jax.jit, static_argnums=0)
def spawned(module, number, state):
    return module.spawn_entity(jax.random.key(number), state)[0]


def carry_over(name, theirs, state, module, number):
    """What gymnax has drawn, or will draw in the next step with the key of this number, becomes MinAtar's."""
    if name == "breakout":
        theirs.ball_x, theirs.ball_y, theirs.ball_dir = int(state.ball_x), int(state.ball_y), int(state.ball_dir)
        theirs.last_x, theirs.last_y = theirs.ball_x, theirs.ball_y
    elif name == "freeway":
        theirs.cars = np.asarray(state.cars).tolist()
    elif name == "asterix":
        *entity, filled = np.asarray(spawned(module, number, state)).tolist()
        theirs._spawn_entity = lambda: theirs.entities.__setitem__(entity[1] - 1, entity) if filled else None


@pytest.mark.slow
@pytest.mark.guards("dependencies")
@pytest.mark.parametrize(
    "name, player, games, random, least",
    [("space_invaders", space_invaders, 3, 0.02, 24), ("breakout", breakout, 3, 0, 30),
     ("freeway", freeway, 1, 0.05, 15), ("asterix", asterix, 10, 0.05, 0)],
)  # fmt: skip
def test_games_are_minatars(dqn, name, player, games, random, least):
    """`least` points are more than a wave of aliens, all bricks, several draws of the cars' speeds."""
    args = dqn.Args(env_id=f"{name.title().replace('_', '')}-MinAtar")
    env, params, *_ = dqn.make_task(args)
    module = importlib.import_module(type(env).__module__)
    own = importlib.import_module(f"minatar.environments.{name}")
    step = jax.jit(lambda number, *given: env.step_env(jax.random.key(number), *given)[:4])
    reset = jax.jit(lambda number: env.reset_env(jax.random.key(number), params))
    rng, best = np.random.default_rng(15), 0  # with which a player gets as far as asked
    for seed in range(games):
        game, total, over, length = own.Env(), 0, False, 0
        obs, state = jax.device_get(reset(seed))  # which makes all numbers of one kind: one program for all steps
        while not over and total < 60 and length < 2500:  # where the scripts' Freeway ends, one step before MinAtar's
            number = 10_000 * seed + length
            if length == 0 or (name == "asterix" and state.spawn_timer == 0):
                carry_over(name, game, state, module, number)
            action = player(game, rng) if rng.random() > random else int(rng.integers(6))
            reward, over = game.act(action)
            obs, state, gave, ended = jax.device_get(step(number, state, action, params))
            total, length = total + reward, length + 1
            if name == "freeway" and reward:
                carry_over(name, game, state, module, number)
            assert (gave, ended) == (reward, over), (seed, length)
            assert np.array_equal(obs, game.state()), (seed, length)
        best = max(best, total)
    assert best > least


@pytest.mark.slow
@pytest.mark.guards("dependencies", "dqn")
def test_the_agent_of_minatar_dqn_learns_as_the_judge():
    """studies/minatar_dqn.py, whose curves stand beside the scripts' on their page, moves as numpy_dqn.py does."""
    rng = np.random.default_rng(0)
    network, target = minatar_dqn.Network(6, rng), minatar_dqn.Network(6, rng)

    def named(network):
        kernel_1, bias_1, kernel_2, bias_2, kernel_3, bias_3 = (x.astype(float) for x in network.parameters)
        names = "conv_kernel conv_bias hidden_kernel hidden_bias out_kernel out_bias".split()
        conv = kernel_1.reshape(6, 3, 3, 16).transpose(1, 2, 0, 3)
        return dict(zip(names, (conv, bias_1, kernel_2.T, bias_2, kernel_3.T, bias_3), strict=True))

    first = wanted = named(network)
    memory = {name: (np.zeros_like(x), np.zeros_like(x)) for name, x in first.items()}
    for _ in range(5):
        obs, next_obs = rng.random((2, 32, 10, 10, 6)) < 0.2
        batch = {"obs": obs, "action": rng.integers(0, 6, 32), "reward": rng.normal(0, 2, 32).astype(np.float32)}
        batch |= {"terminated": (rng.random(32) < 0.3).astype(np.float32), "next_obs": next_obs}
        minatar_dqn.update(network, target, 2**-9, *batch.values())
        _, gradient = numpy_dqn.gradient(wanted, named(target), batch, 0.99, "huber")
        step = lambda name, gradient, old, held: numpy_dqn.rmsprop(old[name], gradient, held[name], 2**-9, 0.01, False)
        moved = {name: step(name, gradient[name], wanted, memory) for name in first}
        wanted, memory = ({name: pair[i] for name, pair in moved.items()} for i in (0, 1))
    for name, x in named(network).items():
        assert np.abs(x - first[name]).max() > 1e-3, "it has not moved"
        np.testing.assert_allclose(x, wanted[name], atol=1e-6, err_msg=name)


RANDOM = {  # mean return of uniformly random actions, six of them and the minimal ones, of MinAtar 1.0.15; their
    "Breakout": (0.50, 0.37, 1500),  # episodes, 1500 or more, whose standard error is taken to be as ours would be
    "Asterix": (0.52, 0.51, 1500),
    "Seaquest": (0.10, 0.10, 1500),
    "SpaceInvaders": (2.80, 4.04, 1500),
    "Freeway": (0.14, 0.32, 150),
}


@pytest.mark.slow
@pytest.mark.guards("dependencies")
@pytest.mark.parametrize("game", RANDOM)
def test_random_returns_of_minatar(dqn, game, monkeypatch):
    """Within three standard errors of ours and theirs together, and the rounding of theirs."""
    none = lambda args, network, obs: jnp.zeros(dqn.make_task(args).num_actions)
    monkeypatch.setattr(dqn, "q_values", none)  # every action is random: no value is looked at
    *means, theirs = RANDOM[game]
    for minimal, expected in zip((False, True), means, strict=True):
        episodes = {"Freeway": 200, "Seaquest": 300}.get(game, 1000)
        args = dqn.Args(env_id=f"{game}-MinAtar", minimal_actions=minimal, eval_e=1.0, eval_episodes=episodes)
        dqn.make_task(args)
        keys = jax.random.split(jax.random.key(1), (1, episodes))
        returns, lengths = (np.asarray(x)[0] for x in dqn.play(args, {}, keys))
        error = np.std(returns) * (1 / len(returns) + 1 / theirs) ** 0.5
        assert abs(np.mean(returns) - expected) < 3 * error + 0.005
        assert (lengths == 2500).all() if game == "Freeway" else lengths.max() < args.eval_steps
