"""What tests of the scripts on Atari share: streams of frames, the naive replay, games played by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import idle

FRAME = jnp.zeros((84, 84), jnp.uint8)
STILL = FRAME, jnp.float32(0), jnp.bool(False), jnp.bool(False), jnp.int32(3)  # a step in which nothing happens
still = lambda env, action: (env, STILL)


def stream(steps, seed):
    """Random frames, rewards, lost lives, games over and cut games, as EnvPool gives them: the step after a game's end
    brings the first frame of the next. -> first frame, [(frame, reward, terminated, truncated, lives)]"""
    rng, lives, over, out = np.random.default_rng(seed), 3, False, []
    frame = lambda: rng.integers(1, 256, (84, 84), np.uint8)
    first = frame()
    for _ in range(steps):
        if over:
            over, lives = False, 3
            out.append((frame(), 0.0, False, False, lives))
            continue
        lives -= rng.random() < 0.08
        terminated, truncated = lives == 0, bool(lives and rng.random() < 0.04)
        over = terminated or truncated
        out.append((frame(), float(rng.integers(-3, 4)), terminated, truncated, lives))
    return first, out


def first_state(script, args, seed, frame):
    """The State of one seed before its first step."""
    return script.init_state(args, np.uint8(0), seed, None, frame)


def play_stream(script, args, seed, steps, watch=lambda state: None, seams=()):
    """Steps a State through a stream without learning, and begins a fresh episode before the steps in `seams` ->
    State, what `watch` makes of it after each row that is stored, and what plain Python saw: of each row the whole
    stack, action, clipped reward, ends, and the whole stack after it; None of one that is no step of a game."""
    first, out = stream(steps, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "update", idle)
        state = jax.jit(partial(first_state, script, args))(3, jnp.asarray(first))
        step = jax.jit(lambda state, out: script.train_step(args, lambda env, action: (env, out), state, None))
        renew = jax.jit(partial(script.fresh_episode, args))
        return play_out(args, state, step, first, out, watch, renew, seams)


def play_out(args, state, step, first, out, watch, renew=None, seams=()):
    blank, rows, watched = [np.zeros((84, 84), np.uint8)] * 3, [], []
    stack, lives, over = [*blank, first], int(state.lives), False
    for i, (frame, reward, terminated, truncated, left) in enumerate(out):
        if i in seams:  # the old game counts as cut, unless it was over; a row holds its last frame
            fresh = np.random.default_rng(i).integers(1, 256, (84, 84), np.uint8)
            state = renew(state, jnp.asarray(fresh))
            watched.append(watch(state))
            if rows[-1]:
                rows[-1] = *rows[-1][:4], not rows[-1][3], rows[-1][5]
            rows.append(None)
            stack, lives, over = [*blank, fresh], 0, False
            assert np.array_equal(state.obs, np.stack(stack))
        known = jnp.asarray(frame), jnp.float32(reward), jnp.bool(terminated), jnp.bool(truncated), jnp.int32(left)
        state, (action, _) = step(state, known)
        watched.append(watch(state))
        if over:
            rows.append(None)
            stack = [*blank, frame]
        else:
            lost = args.terminal_on_life_loss and left < lives
            before, after = stack, [*stack[1:], frame]
            ends = terminated or lost, truncated
            rows.append((np.stack(before), int(action), np.clip(reward, -1, 1), *ends, np.stack(after)))
            stack = [*blank, frame] if lost else after
        lives, over = left, terminated or truncated
        assert np.array_equal(state.obs, np.stack(stack))
    return state, watched, rows


def drawable(rows, size, n):
    """Rows of the ring whose step was a game's, whose stack stays whole when the next row is written, and after which
    n more steps have begun."""
    return {i % size for i in range(max(0, len(rows) - size + 3), len(rows) - n) if rows[i]}


def assert_stored(script, args, state, rows):
    """The ring holds what plain Python saw, and the stacks read from it are the whole ones."""
    size, steps = args.buffer_size, len(rows)
    assert steps > size and {row[3:5] for row in rows[3 - size :] if row} == {
        (False, False),
        (True, False),
        (False, True),
    }
    index = np.arange(steps - size + 3, steps)  # the oldest three lack a frame
    held = jax.tree.map(np.asarray, state.replay)
    seen = np.asarray(jax.jit(script.frame_stacks, static_argnums=0)(args, held, index % size))
    for k, stack in zip(index, seen, strict=True):
        row = jax.tree.map(lambda ring, k=k: ring[k % size], held)
        assert row.valid == (rows[k] is not None), k
        if rows[k]:
            assert (row.action, row.reward, row.terminated, row.truncated) == rows[k][1:5], k
            assert np.array_equal(row.frame, stack[-1]) and np.array_equal(stack, rows[k][0]), k


def assert_priorities(script, args, state, watched, rows):
    """Rows that may be drawn have one, after every step; the new one has the largest, which is 1 at first. The script's
    updates must be idle."""
    size, n = args.buffer_size, args.n_step
    for steps, priorities in enumerate(watched, 1):
        assert set(np.flatnonzero(priorities)) == drawable(rows[:steps], size, n), steps
        assert set(priorities[priorities > 0]) <= {1}
    state = state.replace(priorities=3 * state.priorities)
    step = jax.jit(lambda state: script.train_step(args, still, state, None)[0])
    new, ready = np.asarray(step(state).priorities), len(rows) - n
    assert rows[ready] and new[ready % size] == 3


@partial(jax.jit, static_argnums=(0, 1))
def act_by_hand(script, args, network, obs, key, t, game):
    key = jax.random.fold_in(jax.random.fold_in(key, t), game)
    return script.act(script.q_values(args, network, obs), key, args.eval_e)


def played_by_hand(script, args, network, seed, step, game, start):
    """One game of an evaluation, in a pool of its own, the stack kept in plain Python -> return, length, lost lives."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    pool, blank = script.make_pool(args, [start]), [np.zeros((84, 84), np.uint8)] * 3
    frames, info = pool.reset()
    stack, lives, returned, lost = [*blank, frames[0, 0]], info["lives"][0], 0.0, 0
    for t in range(1000):
        action = np.asarray(act_by_hand(script, args, network, np.stack(stack), key, t, game))[None].astype(np.int32)
        frames, reward, terminated, truncated, info = pool.step(action)
        returned += float(reward[0])
        if info["lives"][0] < lives:
            stack, lost = blank, lost + 1
        stack, lives = [*stack, frames[0, 0]][-4:], info["lives"][0]
        if terminated[0] or truncated[0]:
            return returned, t + 1, lost
