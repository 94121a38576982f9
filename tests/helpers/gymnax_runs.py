"""What tests of the scripts on gymnax share."""

import numpy as np


def random_batch(script, size, seed=0, shape=(10, 10, 4), actions=6):
    rng = np.random.default_rng(seed)
    image = lambda: rng.random((size, *shape)) < 0.2
    terminated = rng.random(size) < 0.3
    return script.Transition(
        image(), rng.integers(0, actions, size), np.float32(3 * rng.normal(size=size)), terminated, image()
    )
