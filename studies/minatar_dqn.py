"""DQN in NumPy on MinAtar's own games, in the MinAtar paper's settings (Young & Tian 2019, their DQN with replay and
target network): what the same experiment gives without JAX, gymnax or a line of algos/dqn.py.

    python studies/minatar_dqn.py GAME EXPONENT SEED STEPS FILE   (space_invaders 12: a step size of 2 to the power -12)

FILE, which must not exist, gets a line every 25,000 steps: step, the average that moves by a hundredth with every
episode's return, the mean return of the last 100 episodes, episodes so far. (benchmark/results/minatar_dqn.csv has
game, exponent and seed before them.) A run that is ended cannot go on. A million steps take 40 to 65 minutes on one
core; set OPENBLAS_NUM_THREADS=1 and, lest large arrays be mapped anew each time, MALLOC_MMAP_THRESHOLD_=1000000000 and
MALLOC_TRIM_THRESHOLD_=1000000000. It needs the tests' packages: PYTHONPATH=.venv/test.
"""

import argparse
import random
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

BATCH, REPLAY, WARM_UP, TARGET, GAMMA = 32, 100_000, 5_000, 1_000, np.float32(0.99)
DECAY, REST = np.float32(0.95), np.float32(0.05)  # of RMSProp
EPSILON = np.float32(0.01)  # outside of its root


class Network:
    """A convolution of 16 features, 3 x 3, and layers of 128 and 6; PyTorch's default weights."""

    def __init__(self, channels, rng):
        draw = lambda fan_in, *shape: rng.uniform(-1, 1, shape).astype(np.float32) * np.float32(fan_in**-0.5)
        seen = 9 * channels
        self.parameters = [draw(seen, seen, 16), draw(seen, 16)]
        self.parameters += [draw(1024, 1024, 128), draw(1024, 128), draw(128, 128, 6), draw(128, 6)]
        self.square, self.mean, self.spread, self.change = (
            [np.zeros_like(x) for x in self.parameters] for _ in range(4)
        )

    def forward(self, images):
        """(batch, 10, 10, channels) -> values (batch, 6), what the way back needs."""
        kernel_1, bias_1, kernel_2, bias_2, kernel_3, bias_3 = self.parameters
        seen = sliding_window_view(images, (3, 3), axis=(1, 2)).reshape(len(images) * 64, -1).astype(np.float32)
        conv = np.maximum(seen @ kernel_1 + bias_1, 0).reshape(len(images), 1024)
        hidden = np.maximum(conv @ kernel_2 + bias_2, 0)
        return hidden @ kernel_3 + bias_3, (seen, conv, hidden)

    def gradient(self, cache, slope):
        """Of a loss whose slope in the values is given (batch, 6)."""
        (seen, conv, hidden), (_, _, kernel_2, _, kernel_3, _) = cache, self.parameters
        slope_2 = (slope @ kernel_3.T) * (hidden > 0)
        slope_1 = ((slope_2 @ kernel_2.T) * (conv > 0)).reshape(-1, 16)
        products = [(seen, slope_1), (conv, slope_2), (hidden, slope)]
        return [part for layer, above in products for part in (layer.T @ above, above.sum(0))]

    def move(self, gradient, rate):
        """Centered RMSProp without momentum, in place."""
        held = self.parameters, gradient, self.square, self.mean, self.spread, self.change
        for x, g, square, mean, spread, change in zip(*held, strict=True):
            np.multiply(g, REST, out=spread)
            mean *= DECAY
            mean += spread
            spread *= g
            square *= DECAY
            square += spread
            np.subtract(square, np.multiply(mean, mean, out=spread), out=spread)
            np.sqrt(spread, out=spread)
            spread += EPSILON
            np.multiply(g, rate, out=change)
            change /= spread
            x -= change


def update(network, target, rate, obs, action, reward, terminated, next_obs):
    """One of Q-learning with the Huber loss, on a minibatch."""
    wanted = reward + GAMMA * (1 - terminated) * target.forward(next_obs)[0].max(1)
    values, cache = network.forward(obs)
    rows, slope = np.arange(len(action)), np.zeros_like(values)
    slope[rows, action] = np.clip(values[rows, action] - wanted, -1, 1) / len(action)
    network.move(network.gradient(cache, slope), np.float32(rate))


def main(game, rate, seed, steps, path):
    from minatar import Environment

    dice, rng, env = random.Random(seed), np.random.default_rng(seed), Environment(game)
    env.seed(seed)
    env.reset()
    channels = env.state_shape()[2]
    network, target = Network(channels, rng), Network(channels, rng)
    target.parameters = [x.copy() for x in network.parameters]
    obs, next_obs = np.zeros((2, REPLAY, 10, 10, channels), bool)
    action = np.zeros(REPLAY, int)
    reward, terminated = np.zeros((2, REPLAY), np.float32)
    average, total, updates, returns, now = 0.0, 0.0, 0, [], env.state()
    with open(path, "x", buffering=1) as file:
        for t in range(steps):
            epsilon = 1 - 0.9 * min(1, max(0, (t - WARM_UP) / 100_000))
            explore = dice.random() < epsilon
            act = dice.randrange(6) if explore else int(network.forward(now[None])[0].argmax())
            (paid, over), then, row = env.act(act), env.state(), t % REPLAY
            obs[row], action[row], reward[row], terminated[row], next_obs[row] = now, act, paid, over, then
            if t > WARM_UP:
                drawn = dice.sample(range(min(t + 1, REPLAY)), BATCH)
                update(network, target, rate, *(x[drawn] for x in (obs, action, reward, terminated, next_obs)))
                updates += 1
                if updates % TARGET == 0:
                    target.parameters = [x.copy() for x in network.parameters]
            total, now = total + paid, then
            if over:
                returns.append(total)
                average, total = 0.99 * average + 0.01 * total, 0.0
                env.reset()
                now = env.state()
            if (t + 1) % 25_000 == 0:
                print(t + 1, f"{average:.3f}", f"{np.mean(returns[-100:]):.3f}", len(returns), sep=",", file=file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(usage="python studies/minatar_dqn.py GAME EXPONENT SEED STEPS FILE")
    parser.add_argument("game", choices="asterix breakout freeway seaquest space_invaders".split())
    for name in ("exponent", "seed", "steps"):
        parser.add_argument(name, type=int)
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    if args.file.exists() or not args.file.parent.is_dir():
        parser.error(f"{args.file} exists, or its folder does not: name a new file")
    main(args.game, 2.0**-args.exponent, args.seed, args.steps, args.file)
