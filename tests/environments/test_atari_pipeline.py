"""EnvPool's Atari against the emulator itself and the protocol in plain NumPy, and what DQN's replay keeps of it."""

from pathlib import Path

import envpool
import jax
import numpy as np
import pytest
from ale_py import ALEInterface, LoggerMode
from envpool.atari.registration import atari_rom_path
from runs import begin


class Emulator:
    """One game by the protocol, from single frames of the Arcade Learning Environment and EnvPool's own ROM."""

    def __init__(self, args, seed):
        ALEInterface.setLoggerMode(LoggerMode.Error)
        self.ale = ALEInterface()
        self.ale.setInt("random_seed", seed)
        self.ale.setFloat("repeat_action_probability", args.sticky)
        self.ale.loadROM(Path(atari_rom_path, envpool.make_spec(args.env_id).config.task + ".bin"))
        self.actions = self.ale.getMinimalActionSet()

    def begin(self, ram):
        """A new game, with the frames without an action that lead to this memory: EnvPool does not tell how many."""
        self.ale.reset_game()
        found = any(self.ale.act(0) or np.array_equal(self.ale.getRAM(), ram) for _ in range(30))
        assert found, "1 to 30 frames without an action do not lead to EnvPool's first memory"
        self.screen = self.ale.getScreenGrayscale()

    def step(self, action):
        """The action for 4 frames or up to the game's end -> rewards, frames played. What is seen is the brighter of
        the third and the fourth frame, pixel by pixel: of those that there were, and else what was seen before."""
        rewards, late = [], []
        while len(rewards) < 4 and not self.ale.game_over():
            rewards.append(self.ale.act(self.actions[action]))
            late += [self.ale.getScreenGrayscale()] * (len(rewards) > 2)
        self.screen = np.max(late, 0) if late else self.screen
        return sum(rewards), len(rewards)


def sums(screen):
    """200 times the means over the areas of a frame's 84 x 84 pixels, exactly: 210 / 84 is 5 / 2, 160 / 84 is 40 / 21,
    so a pixel is 5 halves of a line by 40 parts of a column, of which a column has 21."""
    lines = screen.astype(np.int32).repeat(2, 0).reshape(84, 5, 160).sum(1)
    return lines.repeat(21, 1).reshape(84, 84, 40).sum(2)


def compare(script, seed, steps, **options):
    """Random actions in EnvPool and in the emulator, all that comes back asserted equal -> of each game its steps,
    and the frames that its last step had; all rewards; how many lives were lost."""
    args = script.Args(**options)
    pool, emulator, rng = script.make_pool(args, [seed]), Emulator(args, seed), np.random.default_rng(seed)
    assert pool.action_space.n == len(emulator.actions)
    (frame, info), reward, terminated, truncated = pool.reset(), [0], [False], [False]
    games, rewards, lost, new = [], [], 0, True
    for step in range(steps + 1):
        action, lives = rng.integers(len(emulator.actions)), emulator.ale.lives()
        if step:
            frame, reward, terminated, truncated, info = pool.step(np.array([action], np.int32))
        if new:  # the action goes unused
            emulator.begin(info["ram"][0])
            gained, over, cut, length = 0, False, False, 0
        else:
            (gained, frames), length = emulator.step(action), length + 1
            over, cut = emulator.ale.game_over(), length == args.max_episode_steps
            lost += emulator.ale.lives() < lives
        got = reward[0], terminated[0], truncated[0], info["lives"][0], info["elapsed_step"][0], info["terminated"][0]
        assert got == (gained, over and not cut, cut, emulator.ale.lives(), length, over), f"step {step}"
        assert np.array_equal(info["ram"][0], emulator.ale.getRAM()), f"memory in step {step}"
        error = np.abs(200 * frame[0, 0].astype(int) - sums(emulator.screen)).max() / 200
        assert error <= 0.5, f"a pixel is {error} gray levels off in step {step}"
        rewards.append(gained)
        new = over or cut
        games += [(length, frames)] if new else []
    return games, rewards, lost


@pytest.mark.slow
@pytest.mark.guards("dependencies")
@pytest.mark.parametrize("env_id, sticky, steps", [
    ("Pong-v5", 0.0, 2000), ("Breakout-v5", 0.0, 2000), ("Jamesbond-v5", 0.0, 2000), ("Assault-v5", 0.25, 1000),
])  # fmt: skip
def test_games_are_the_emulators(dqn_atari, env_id, sticky, steps):
    """Frames, rewards, lives, memory and ends as the emulator has them, over the ends of games; this would fail with
    another frame skip or order of frames, other gray levels or actions, clipped rewards, a press of FIRE at the start,
    lives read too early, or sticky actions from other random numbers.

    EnvPool's pixels are the exact means over their areas, rounded: never more than 0.5 gray levels off. Of means that
    end in .5 exactly it rounds some up and some down, so against NumPy's rounding 0.0003% of Pong's pixels are one
    level off, 0.009% of Breakout's, 0.05% of Jamesbond's and 0.14% of Assault's. A game's first frame is a single one.
    The step in which a game is over ends with that frame. If it is the first or second of the four, EnvPool shows again
    what it showed before; if it is the third, that alone. No target sees such a frame: a game that is over has no
    value to come."""
    games, rewards, lost = compare(dqn_atari, 7, steps, env_id=env_id, sticky=sticky)
    assert games and (lost or env_id == "Pong-v5"), "no game ended or no life was lost: the test saw too little"
    assert max(rewards) > 1 or env_id != "Jamesbond-v5", "no reward that a clip would change"
    assert {frames for _, frames in games} >= {1, 3} or env_id != "Breakout-v5", "no game ended within a step"


@pytest.mark.slow
@pytest.mark.guards("dependencies")
def test_a_game_that_is_cut(dqn_atari):
    """At max_episode_steps (which the frames before the first step do not count to) EnvPool shows the game's true last
    frame, with its lives and reward, and calls it truncated; the step after begins a new game. If the game is over in
    that very step, EnvPool calls it truncated as well, and terminated in `info` alone, which the script goes by."""
    length = compare(dqn_atari, 7, 200, env_id="Breakout-v5")[0][0][0]
    for cap in (length, length - 1):
        games, _, lost = compare(dqn_atari, 7, 320, env_id="Breakout-v5", max_episode_steps=cap)
        assert games[0][0] == cap and (games[0][1] < 4) == (cap == length) and len(games) > 1 and lost


@pytest.mark.slow
@pytest.mark.guards("dependencies")
def test_games_start_after_1_to_30_frames(dqn_atari):
    """All of these numbers come up and no others, none much more often, in games of one step."""
    args = dqn_atari.Args(env_id="Breakout-v5", max_episode_steps=1)
    pool, emulator = dqn_atari.make_pool(args, [3]), Emulator(args, 3)
    emulator.ale.reset_game()
    known = [emulator.ale.act(0) or emulator.ale.getRAM().tobytes() for _ in range(60)]
    found = [known.index(pool.reset()[1]["ram"].tobytes())]
    for _ in range(200):
        assert pool.step(np.zeros(1, np.int32))[3]
        found.append(known.index(pool.step(np.zeros(1, np.int32))[-1]["ram"].tobytes()))
    counts = np.bincount(found, minlength=30)
    assert counts.size == 30 and counts.min() > 0 and counts.max() < 20, counts


def happened(script, args, seed, actions, factor):
    """Steps one game from Python -> the replay's rows, the stacks that the agent saw, each game's last step,
    its return and its length."""
    pool = script.make_pool(args, [seed])
    frame, info = pool.reset()
    seen, lives, new, game = [frame[0, 0]], info["lives"][0], False, []  # frames since the game or the life began
    rows, saw, games = [], [], []
    for action in actions:
        frame, reward, terminated, truncated, info = pool.step(action[None])
        reward, over, ended = factor * reward[0], info["terminated"][0] == 1, terminated[0] or truncated[0]
        lost = args.terminal_on_life_loss and not new and info["lives"][0] < lives
        ends = over or lost, ended and not over, not new
        rows.append((seen[-1], min(len(seen) - 1, 3), action, min(max(reward, -1), 1), *ends))
        saw.append(np.stack([np.zeros((84, 84), np.uint8)] * 3 + seen)[-4:])
        seen = [frame[0, 0]] if new or lost else [*seen[-3:], frame[0, 0]]
        game = [] if new else [*game, reward]
        lives, new = info["lives"][0], ended
        games += [(len(rows), sum(game), len(game))] if new else []
    return rows, saw, games


@pytest.mark.guards("storing")
@pytest.mark.parametrize("life_loss, factor", [(True, 3), pytest.param(False, -3, marks=pytest.mark.slow)])
def test_replay_holds_what_happened(dqn_atari, life_loss, factor):
    """Rows of the replay, and the stacks read from them, as plain stepping of the same seed has them with the same
    actions: over lost lives, games lost, games cut and one that is lost in the step in which it would be cut (it counts
    as lost), before the ring comes round and after. A frame of the life before in a stack, a count of its frames, a
    flag or a reward one step off, or another seed's game would be found. Breakout's rewards are made larger than a clip
    lets through."""
    seeds, size, kinds, both = [7, 5], 350, set(), 0
    args, step, state = begin(
        dqn_atari,
        seeds,
        learning_starts=10_000,
        buffer_size=size,
        max_episode_steps=149,
        terminal_on_life_loss=life_loss,
    )
    env_step = lambda _, action: (None, [factor * x if i == 1 else x for i, x in enumerate(step(None, action)[1])])
    chunks, actions = [], np.zeros((2, 0), np.int32)
    for _ in range(2):
        state, (more, _) = dqn_atari.train_chunk(args, env_step, 250, state)
        chunks.append(jax.tree.map(np.array, state.replace(key=None)))
        actions = np.concatenate([actions, more], 1)
    read = jax.jit(dqn_atari.frame_stacks, static_argnums=0)
    for i, seed in enumerate(seeds):
        rows, saw, games = happened(dqn_atari, args, seed, actions[i], factor)
        kinds |= {(row[1], row[3], *map(bool, row[4:])) for row in rows}
        both += sum(length == args.max_episode_steps and not rows[end - 1][5] for end, _, length in games)
        for held in chunks:
            steps, replay = int(held.step), jax.tree.map(lambda ring, i=i: ring[i], held.replay)
            assert held.stored[i] == steps and len(rows) == 500
            for k in range(max(0, steps - size), steps):
                for (name, ring), value in zip(vars(replay).items(), rows[k], strict=True):
                    assert np.array_equal(ring[k % size], value), f"{name} of row {k}"
            empty = not any(ring[steps:].any() for ring in jax.tree.leaves(replay))
            assert empty, "something stands where nothing was stored"
            whole = np.arange(max(0, steps - size + 3), steps)  # of what came round, the oldest three lack a frame
            for k, stack in zip(whole, np.asarray(read(args, replay, whole % size)), strict=True):
                assert np.array_equal(stack, saw[k]), f"the stack of row {k}"
            _, returns, lengths = np.sum([game for game in games if game[0] <= steps], 0)
            tags = "charts/episodic_return", "charts/episodic_length", "episodes"
            assert [held.metric_sums[tag][i] for tag in tags] == [
                returns,
                lengths,
                sum(game[0] <= steps for game in games),
            ]
    in_stack, rewards = ({kind[i] for kind in kinds} for i in (0, 1))
    ends = {kind[2:] for kind in kinds}  # terminated, truncated, valid
    assert ends == {(False, False, True), (False, False, False), (True, False, True), (False, True, True)}
    assert both, "no game was over in the step in which it would have been cut"
    assert in_stack == {0, 1, 2, 3} and rewards == {0, factor / 3}
