"""gymnax's MinAtar games, as the scripts make them, beside MinAtar's own, step by step: the same observations, rewards
and ends of games under players that get far. What is drawn at random is carried over from one to the other.

Seaquest is not among them: nearly all of its state is drawn. Random returns of all five are in tests/test_dqn.py.
"""

import importlib
from functools import partial

import jax
import numpy as np
import pytest

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


@pytest.mark.parametrize(
    "name, player, games, random, least",
    [("space_invaders", space_invaders, 3, 0.02, 24), ("breakout", breakout, 3, 0, 30),
     ("freeway", freeway, 1, 0.05, 15), ("asterix", asterix, 10, 0.05, 0)],
)  # fmt: skip
def test_games_are_minatars(dqn, name, player, games, random, least):
    """`least` points are more than a wave of aliens, all bricks, several draws of the cars' speeds."""
    args = dqn.Args(env_id=f"{name.title().replace('_', '')}-MinAtar")
    env, params, _ = dqn.make_task(args)
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
