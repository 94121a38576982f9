"""One update of SAC in NumPy (float64), with gradients by hand, written from the paper (arXiv:1812.05905).

Layers are lists of (kernel, bias). Shared with the tests alone; nothing here is taken from the scripts.
"""

import numpy as np


def forward(layers, x):
    """Multi-layer perceptron with ReLU between layers -> output, what `backward` needs."""
    inputs = []
    for i, (kernel, bias) in enumerate(layers):
        inputs.append(x)
        x = x @ kernel + bias
        if i < len(layers) - 1:
            x = np.maximum(x, 0)
    return x, inputs


def backward(layers, inputs, grad):
    """Gradient of the output -> gradients of the layers, of the input."""
    grads = []
    for i in reversed(range(len(layers))):
        grads.insert(0, (inputs[i].T @ grad, grad.sum(0)))
        grad = grad @ layers[i][0].T
        if i > 0:
            grad = grad * (inputs[i] > 0)
    return grads, grad


def policy(actor, obs, noise):
    """Squashed Gaussian: actor = trunk layers + mean head + log-std head -> action, log-probability, cache."""
    *trunk, mean_head, std_head = actor
    hidden, inputs = forward(
        [*trunk, (np.eye(trunk[-1][0].shape[1]), 0.0)], obs
    )  # the ReLU after the last trunk layer too
    mean = hidden @ mean_head[0] + mean_head[1]
    raw = hidden @ std_head[0] + std_head[1]
    log_std = -10 + 12 * 0.5 * (1 + np.tanh(raw))
    pre_tanh = mean + np.exp(log_std) * noise
    action = np.tanh(pre_tanh)
    normal = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi)
    log_prob = (normal - np.log1p(-(action**2))).sum(-1)
    return action, log_prob, (inputs, hidden, raw, log_std, action)


def q_values(critics, obs, action):
    x = np.concatenate([obs, action], -1)
    outputs = [forward(layers, x) for layers in critics]
    return np.stack([out[:, 0] for out, _ in outputs]), [inputs for _, inputs in outputs]


def critic_gradient(critics, targets, actor, log_alpha, batch, noise, gamma):
    obs, action, reward, terminated, next_obs = batch
    next_action, next_log_prob, _ = policy(actor, next_obs, noise)
    next_q = q_values(targets, next_obs, next_action)[0].min(0) - np.exp(log_alpha) * next_log_prob
    y = reward + gamma * (1 - terminated) * next_q
    q, inputs = q_values(critics, obs, action)
    loss = sum(np.mean((own - y) ** 2) for own in q)
    grads = [backward(critics[i], inputs[i], (2 * (q[i] - y) / len(y))[:, None])[0] for i in range(2)]
    return loss, grads


def actor_gradient(actor, critics, log_alpha, obs, noise):
    *trunk, mean_head, std_head = actor
    action, log_prob, (inputs, hidden, raw, log_std, _) = policy(actor, obs, noise)
    q, q_inputs = q_values(critics, obs, action)
    alpha, n = np.exp(log_alpha), len(obs)
    loss = np.mean(alpha * log_prob - q.min(0))
    smaller = q.argmin(0)
    action_grad = np.zeros_like(action)
    for i in range(2):
        _, input_grad = backward(critics[i], q_inputs[i], -((smaller == i) / n)[:, None])
        action_grad += input_grad[:, obs.shape[1] :]
    pre_tanh_grad = action_grad * (1 - action**2) + alpha / n * 2 * action
    std_grad = pre_tanh_grad * np.exp(log_std) * noise - alpha / n
    raw_grad = std_grad * 6 * (1 - np.tanh(raw) ** 2)
    hidden_grad = pre_tanh_grad @ mean_head[0].T + raw_grad @ std_head[0].T
    trunk_grads, _ = backward([*trunk, (np.eye(hidden.shape[1]), 0.0)], inputs, hidden_grad)
    heads = [(hidden.T @ grad, grad.sum(0)) for grad in (pre_tanh_grad, raw_grad)]
    return loss, [*trunk_grads[:-1], *heads], -log_prob.mean()


class Adam:
    def __init__(self, rate):
        self.rate, self.count, self.first, self.second = rate, 0, 0.0, 0.0

    def __call__(self, params, grads):
        """Flat parameters and gradients -> new flat parameters."""
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * grads
        self.second = 0.999 * self.second + 0.001 * grads**2
        first, second = self.first / (1 - 0.9**self.count), self.second / (1 - 0.999**self.count)
        return params - self.rate * first / (np.sqrt(second) + 1e-8)


def flat(layers):
    return np.concatenate([np.concatenate([np.ravel(kernel), np.ravel(bias)]) for kernel, bias in layers])


def unflat(layers, vector):
    out, at = [], 0
    for kernel, bias in layers:
        parts = []
        for x in (kernel, bias):
            parts.append(vector[at : at + x.size].reshape(x.shape))
            at += x.size
        out.append(tuple(parts))
    return out


class SAC:
    """Parameters and optimizers; `update` is one update with given batch and noises, in the order of SR-SAC's code."""

    def __init__(self, actor, critics, targets, log_alpha, rate, gamma, tau):
        self.actor, self.critics, self.targets, self.log_alpha = actor, critics, targets, log_alpha
        self.adams = {name: Adam(rate) for name in ("actor", "critic", "alpha")}
        self.gamma, self.tau = gamma, tau

    def update(self, batch, critic_noise, actor_noise):
        critic_loss, grads = critic_gradient(
            self.critics, self.targets, self.actor, self.log_alpha, batch, critic_noise, self.gamma
        )
        joined = lambda both: np.concatenate([flat(both[0]), flat(both[1])])
        new = self.adams["critic"](joined(self.critics), joined(grads))
        half = len(new) // 2
        self.critics = [unflat(self.critics[0], new[:half]), unflat(self.critics[1], new[half:])]
        mix = lambda old, new: self.tau * new + (1 - self.tau) * old
        self.targets = [
            [(mix(a, c), mix(b, d)) for (a, b), (c, d) in zip(old, new, strict=True)]
            for old, new in zip(self.targets, self.critics, strict=True)
        ]
        actor_loss, grads, entropy = actor_gradient(self.actor, self.critics, self.log_alpha, batch[0], actor_noise)
        self.actor = unflat(self.actor, self.adams["actor"](flat(self.actor), flat(grads)))
        target_entropy = -batch[1].shape[1] / 2
        alpha_grad = np.exp(self.log_alpha) * (entropy - target_entropy)
        self.log_alpha = self.adams["alpha"](self.log_alpha, alpha_grad)
        return critic_loss, actor_loss, entropy
