"""A DQN update in NumPy and float64, written from the papers with gradients by hand: the judge of algos/dqn.py.

Nature DQN's loss on MinAtar's network (Young & Tian 2019): convolution of 16 features, one hidden layer, linear output.
Shares no code with the script; its parameters are the script's, as float64.
"""

import numpy as np


def patches(images, size, same):
    """(batch, h, w, c) -> (batch, rows, cols, size * size * c), each the square that a kernel sees."""
    if same:
        low, high = (size - 1) // 2, size // 2
        images = np.pad(images, [(0, 0), (low, high), (low, high), (0, 0)])
    rows, cols = images.shape[1] - size + 1, images.shape[2] - size + 1
    out = np.zeros((len(images), rows, cols, size * size * images.shape[3]))
    for n in range(len(images)):
        for i in range(rows):
            for j in range(cols):
                out[n, i, j] = images[n, i : i + size, j : j + size].reshape(-1)
    return out


def forward(p, images, same):
    """-> action values (batch, actions), and what the backward pass needs."""
    seen = patches(images.astype(np.float64), 3, same)
    conv = seen @ p["conv_kernel"].reshape(-1, p["conv_kernel"].shape[-1]) + p["conv_bias"]
    flat = np.maximum(conv, 0).reshape(len(images), -1)
    hidden = flat @ p["hidden_kernel"].T + p["hidden_bias"]
    top = np.maximum(hidden, 0)
    return top @ p["out_kernel"].T + p["out_bias"], (seen, conv, flat, hidden, top)


def gradient(p, target_p, batch, gamma, loss, same=False):
    """-> loss, gradient by name. batch: obs, action, reward, terminated, next_obs."""
    q, (seen, conv, flat, hidden, top) = forward(p, batch["obs"], same)
    next_q, _ = forward(target_p, batch["next_obs"], same)
    rows = np.arange(len(q))
    target = batch["reward"] + gamma * np.where(batch["terminated"], 0.0, next_q.max(1))
    error = q[rows, batch["action"]] - target
    inside = np.abs(error) <= 1
    value = np.where(inside, 0.5 * error**2, np.abs(error) - 0.5) if loss == "huber" else error**2
    slope = np.where(inside, error, np.sign(error)) if loss == "huber" else 2 * error
    d_q = np.zeros_like(q)
    d_q[rows, batch["action"]] = slope / len(q)
    d_hidden = (d_q @ p["out_kernel"]) * (hidden > 0)
    d_conv = (d_hidden @ p["hidden_kernel"]).reshape(conv.shape) * (conv > 0)
    return value.mean(), {
        "out_kernel": d_q.T @ top,
        "out_bias": d_q.sum(0),
        "hidden_kernel": d_hidden.T @ flat,
        "hidden_bias": d_hidden.sum(0),
        "conv_kernel": np.einsum("nijk,nijf->kf", seen, d_conv).reshape(p["conv_kernel"].shape),
        "conv_bias": d_conv.sum((0, 1, 2)),
    }


def rmsprop(x, grad, memory, rate, eps, in_sqrt):
    """Centered RMSProp with a decay of 0.95 -> x, memory (means of the gradient and of its square)."""
    mean, square = (0.95 * m + 0.05 * g for m, g in zip(memory, (grad, grad**2), strict=True))
    spread = square - mean**2
    return x - rate * grad / (np.sqrt(spread + eps) if in_sqrt else np.sqrt(spread) + eps), (mean, square)


def adam(x, grad, memory, rate, eps, number):
    """Adam (Kingma & Ba 2015, algorithm 1) with its decays of 0.9 and 0.999; number counts from 1 -> x, memory."""
    mean, square = 0.9 * memory[0] + 0.1 * grad, 0.999 * memory[1] + 0.001 * grad**2
    return x - rate * mean / (1 - 0.9**number) / (np.sqrt(square / (1 - 0.999**number)) + eps), (mean, square)
