"""DrQ(eps): DQN on Atari, learning from shifted and brightened frames, with dueling, double Q and ten-step targets.

Paper:  Kostrikov et al. 2021, "Image Augmentation Is All You Need" (ICLR 2021), with the epsilons of Agarwal et al.
        2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS 2021).
Parent: dqn_atari.py; differs: Args, DuelingNetwork, augment, optimizer, init_learner, q_values, q_loss, update,
        train_step, init_state, check
Run:    python algos/drq_eps.py --env-id Pong-v5 --num-seeds 5  (again: it goes on, to the same bits)
Expect: on Assault after 100k steps 650 and 682 (seeds 1, 2; hours on two cores), higher than published: 580 +- 41.
Written for ONE seed: `train_chunk` applies `jax.vmap`; only what steps a pool or keeps folders knows of several seeds.
"""

import dataclasses, difflib, fcntl, fractions, importlib.metadata, json, mmap, os, shlex, signal, subprocess, sys, time
from functools import partial
from pathlib import Path

import envpool, flax, flax.linen as nn, imageio.v3 as imageio, jax, jax.custom_batching, jax.experimental
import jax.numpy as jnp, numpy as np, optax, tensorboard.summary, tqdm, tyro


@dataclasses.dataclass(frozen=True)
class Args:
    env_id: str = "Pong-v5"  # Atari game of EnvPool: Pong-v5, MsPacman-v5, ...
    sticky: float = 0.0  # probability, at every emulator frame, that the last action is repeated; 200M frames: 0.25
    terminal_on_life_loss: bool = True  # in learning, a lost life ends the return; an episode is a whole game anyway
    exp_name: str = Path(__file__).stem  # name of the experiment, part of the run's folder
    seed: int = 1  # first seed; the run holds seeds `seed` to `seed + num_seeds - 1`
    num_seeds: int = 1  # seeds trained side by side in one program, each a run of its own with its own folder
    total_timesteps: int = 100_000  # environment steps (4 frames) per seed; may be raised later, and the run goes on
    replay_ratio: float = 1  # gradient updates per environment step; 0.25: one in 4 (BBF's code: times the batch)
    learning_starts: int = 1_600  # environment steps with uniformly random actions; no update comes before this step
    buffer_size: int = 100_000  # environment steps in the replay, per seed: 7 kB each
    batch_size: int = 32  # transitions per update
    gamma: float = 0.99  # discount factor
    n_step: int = 10  # rewards in a target, before the target network's value
    end_e: float = 0.01  # probability of a random action at the end of exploration
    exploration_steps: int = 5_000  # environment steps, from learning_starts on, over which it falls from 1 to end_e
    learning_rate: float = 1e-4  # step size of Adam
    optimizer_eps: float = 1.5e-4  # added to the root of the mean squared gradient, against steps too long
    target_interval: int = 1  # gradient updates between two copies of the network to the target network
    channels: int = 32  # features of the first convolution; the other two have twice as many
    hidden_dim: int = 512  # width of the hidden layer
    log_interval: int = 1_000  # environment steps between two rows of metrics.csv
    eval_interval: int = 10_000  # environment steps between evaluations, a multiple of log_interval; 0 never evaluates
    eval_episodes: int = 10  # games per evaluation
    final_eval_episodes: int = 100  # games at the end, if that is a multiple of eval_interval, and of --evaluate
    eval_e: float = 0.001  # probability of a random action in evaluations
    max_episode_steps: int = 27_000  # a game that has not ended after so many steps is cut there, also in evaluations
    checkpoint_interval: int = 10_000  # environment steps between checkpoints, multiple of log_interval; 0: at the end
    runs_dir: str = "runs"  # folder of the runs' folders
    overwrite: bool = False  # start anew: what the folders of these runs hold is deleted
    evaluate: bool = False  # evaluate the newest checkpoint of these runs, print the returns and change nothing
    capture_video: bool = False  # film the first game of each evaluation, 3,000 steps at most, into videos/


def convolve(x, kernel, strides, padding, **_):
    """For `nn.Conv` without dilation and groups, its kernels of whole strides: a product for each shift of blocks of
    stride x stride pixels. XLA's own convolution is slow in a loop on CPUs."""
    (size, _, channels, features), stride = kernel.shape, strides[0]
    x = jnp.pad(x, [(0, 0), *jax.lax.padtype_to_pads(x.shape[1:3], (size, size), strides, padding), (0, 0)])
    n, (_, high, wide, _) = size // stride, np.array(x.shape) // stride
    x = x.reshape(-1, high, stride, wide, stride, channels).swapaxes(2, 3).reshape(-1, high, wide, stride**2 * channels)
    kernel = kernel.reshape(n, stride, n, stride, channels, features).swapaxes(1, 2).reshape(n, n, -1, features)
    return sum(x[:, i : high - n + 1 + i, j : wide - n + 1 + j] @ kernel[i, j] for i in range(n) for j in range(n))


class NatureEncoder(nn.Module):
    channels: int

    @nn.compact
    def __call__(self, obs):  # frames (4, 84, 84), the newest last -> (11, 11, 2 * channels)
        x = jnp.moveaxis(obs, 0, -1) / 255
        bound = lambda dims: (6 / np.prod(dims[:-2]) / sum(dims[-2:])) ** 0.5  # Glorot 2010, (16); rows compile faster
        xavier = lambda key, dims, _: bound(dims) * jax.random.uniform(key, (np.prod(dims),), minval=-1).reshape(dims)
        conv = partial(nn.Conv, kernel_init=xavier, conv_general_dilated=convolve)
        x = nn.relu(conv(self.channels, (8, 8), 4)(x))
        x = nn.relu(conv(2 * self.channels, (4, 4), 2)(x))
        return nn.relu(conv(2 * self.channels, (3, 3))(x))


class XavierDense(nn.Module):
    """A dense layer, its weights held as (features, inputs): on CPUs its products are the faster so."""

    features: int

    @nn.compact
    def __call__(self, x):  # (inputs,) -> (features,)
        bound = (6 / (self.features + x.size)) ** 0.5  # Glorot 2010, (16); rows compile faster
        xavier = lambda key, dims: bound * jax.random.uniform(key, (np.prod(dims),), minval=-1).reshape(dims)
        kernel = self.param("kernel", xavier, (self.features, x.size))
        return kernel @ x + self.param("bias", nn.initializers.zeros, (self.features,))


class DuelingNetwork(nn.Module):
    args: Args

    @nn.compact
    def __call__(self, obs):  # frames (4, 84, 84) -> (num_actions,)
        x = NatureEncoder(self.args.channels)(obs).reshape(-1)
        x = nn.relu(XavierDense(self.args.hidden_dim)(x))
        advantage = XavierDense(envpool.make_spec(self.args.env_id).action_space.n)(x)
        return XavierDense(1)(x) + advantage - advantage.mean()


@flax.struct.dataclass
class Learner:  # all that is learnt: parameters and the state of their optimizer
    network: dict
    target_network: dict
    opt: optax.OptState


@flax.struct.dataclass
class Transition:  # one environment step; stacks and next frames are read from the rows around it
    frame: jax.Array  # (84, 84) uint8, the newest that the agent saw
    age: jax.Array  # how many frames before it belong to its stack: 0 at a game's start or after a lost life, up to 3
    action: jax.Array
    reward: jax.Array  # clipped to [-1, 1]
    terminated: jax.Array  # the game was over, or a life was lost and that counts
    truncated: jax.Array  # the game was cut; the next row holds its last frame, and the value goes on
    learnable: jax.Array  # not so that last row of a game, whose step only began the next game


@flax.struct.dataclass
class State:  # everything that changes while training, but for the inside of EnvPool
    step: jax.Array  # environment steps so far, the same for every seed
    key: jax.Array
    learner: Learner
    replay: Transition  # ring buffer, leaves (buffer_size, ...)
    stored: jax.Array  # steps stored so far
    obs: jax.Array  # (4, 84, 84) uint8
    age: jax.Array
    lives: jax.Array
    done: jax.Array  # the last step ended a game: the next one only begins another
    episode_return: jax.Array
    episode_length: jax.Array
    totals: dict  # sums since the last log, by tag


AXES = State(**dict.fromkeys(State.__dataclass_fields__, 0) | {"step": None})


def make_atari_pool(args, seeds, **options):
    """EnvPool's, one game per seed: 4 frames an action, minimal actions; first 1 to 30 without one (BBF: 0-29 x 4)."""
    names = [name for name, (module, *_) in envpool.registration.registry.specs.items() if module == "envpool.atari"]
    require(args.env_id in names, f"no Atari game {args.env_id!r}; try {difflib.get_close_matches(args.env_id, names)}")
    options |= {"num_envs": len(seeds), "env_seed": seeds, "stack_num": 1, "max_episode_steps": args.max_episode_steps}
    options |= {"episodic_life": False, "use_fire_reset": False, "repeat_action_probability": args.sticky}
    return envpool.make(args.env_id, "gymnasium", num_threads=min(len(seeds), len(os.sched_getaffinity(0))), **options)


def make_atari(args, seeds):
    """One game per seed -> pool, first frames, step(action) -> frame, reward, terminated, truncated, lives: one seed's,
    for `jax.vmap`. The step after a game's end only begins the next. The callback is one way for CPUs and GPUs."""

    def host_step(action):  # NumPy only: JAX inside a callback can hang
        frames, reward, _, truncated, info = pool.step(np.asarray(action))
        over = info["terminated"] > 0  # also of a game that is over in the step in which it would be cut
        return frames[:, 0], reward, over, truncated & ~over, info["lives"]

    (frames, info), no = (pool := make_atari_pool(args, seeds)).reset(), np.zeros(len(seeds), bool)
    out = jax.eval_shape(lambda: (frames[:, 0], info["reward"], no, no, info["lives"]))
    step_all = lambda action: jax.experimental.io_callback(host_step, out, action, ordered=True)
    step = jax.custom_batching.custom_vmap(lambda action: jax.tree.map(lambda x: x[0], step_all(action[None])))
    step.def_vmap(lambda size, batched, action: (step_all(action), (True,) * len(out)))
    return pool, frames[:, 0], step


def look(obs, frame, fresh, np=jnp):
    """Frames seen so far (4, 84, 84) and the new one -> frames; zeros before a game's start or a lost life."""
    return np.concatenate([np.where(fresh, 0, obs[1:]), frame[None]])


def stacks(args, replay, index):
    """What the agent saw at these rows of the replay (...,) -> (..., 4, 84, 84)"""
    back = jnp.arange(3, -1, -1)
    frames = replay.frame[(index[..., None] - back) % args.buffer_size]
    return jnp.where((back <= replay.age[index][..., None])[..., None, None], frames, 0)


def n_steps(args, replay, index, n, gamma):
    """Makes rows n <= args.n_step steps long, or up to where their game or life ends -> frames, action, discounted
    rewards, discount of the value to come, and the frames that it is of: after n rewards (BBF's code: n - 1)."""
    steps = jnp.arange(args.n_step)
    rows = (index[..., None] + steps) % args.buffer_size  # (..., args.n_step)
    last = (replay.terminated[rows] | replay.truncated[rows] | (steps >= n - 1)).argmax(-1)
    rewards = jnp.where(steps <= last[..., None], gamma**steps * replay.reward[rows], 0).sum(-1)
    discount = gamma ** (last + 1.0) * (1 - replay.terminated[(index + last) % args.buffer_size])
    final = stacks(args, replay, (index + last + 1) % args.buffer_size)
    return stacks(args, replay, index), replay.action[index], rewards, discount, final


def draw_uniformly(args, replay, stored, key):
    """Rows whose stack and n steps are whole (batch,): of eight draws the first that is learnable; nearly all are."""
    oldest = jnp.maximum(stored - args.buffer_size + 3, 0)
    held = (stored - args.n_step - oldest).astype(jnp.uint32)
    index = (oldest + jax.random.bits(key, (8, args.batch_size)) % held).astype(int) % args.buffer_size
    return index[replay.learnable[index].argmax(0), jnp.arange(args.batch_size)]


def optimizer(args):
    return optax.flatten(optax.adam(args.learning_rate, eps=args.optimizer_eps))  # in few large kernels


def init_learner(args, key, obs):
    network = DuelingNetwork(args).init(key, obs)
    return Learner(network, network, optimizer(args).init(network))


def q_values(args, network, obs):  # one observation -> (num_actions,)
    return DuelingNetwork(args).apply(network, obs)


def augment(obs, key):
    """Frames (4, 84, 84) -> float32, shifted together by up to 4 pixels each way, edges repeated, and brightened or
    darkened by a factor around 1. DrQ paper, section 3.1; the factor is that of SPR's and DrQ's code for Atari."""
    shift_key, factor_key = jax.random.split(key)
    rows, cols = (jnp.arange(84)[:, None] + jax.random.randint(shift_key, (2,), -4, 5)).clip(0, 83).T
    return obs[:, rows[:, None], cols] * (1 + 0.05 * jax.random.normal(factor_key).clip(-2, 2))


def q_loss(network, args, target_network, batch, key):
    """Error of double Q-learning's n-step targets, on augmented frames. van Hasselt et al. 2016, over n steps."""
    obs, action, rewards, discount, final_obs = batch
    keys = jax.random.split(key, (2, args.batch_size))
    obs, final_obs = jax.vmap(augment)(obs, keys[0]), jax.vmap(augment)(final_obs, keys[1])
    best = jax.vmap(partial(q_values, args, network))(final_obs).argmax(-1)[:, None]
    next_q = jnp.take_along_axis(jax.vmap(partial(q_values, args, target_network))(final_obs), best, 1)[:, 0]
    q = jax.vmap(partial(q_values, args, network))(obs)
    error = jnp.take_along_axis(q, action[:, None], 1)[:, 0] - jax.lax.stop_gradient(rewards + discount * next_q)
    loss = optax.huber_loss(error).mean()
    return loss, {"losses/q_loss": loss, "losses/q_values": q.mean()}


def update(args, old, batch, number, key):
    """The gradient update with this number, then the target network's copy if it is due."""
    grad, info = jax.grad(q_loss, has_aux=True)(old.network, args, old.target_network, batch, key)
    change, opt = optimizer(args).update(grad, old.opt)
    network = optax.apply_updates(old.network, change)
    target_network = optax.periodic_update(network, old.target_network, number, args.target_interval)
    return Learner(network, target_network, opt), info


def updates_by(args, step):  # floor(step * replay_ratio), exact in integers, of Python's or JAX's kind
    n, d = fractions.Fraction(str(args.replay_ratio)).as_integer_ratio()
    return step // d * n + step % d * n // d


def epsilon(args, step):
    return 1 - (1 - args.end_e) * jnp.clip((step - args.learning_starts) / args.exploration_steps, 0, 1)


def act(q, key, epsilon):  # values (num_actions,) -> epsilon-greedy action
    return jnp.where((draw := jax.random.uniform(key)) < epsilon, jnp.int32(draw / epsilon * q.size), q.argmax())


def train_step(args, env_step, state, _):
    """One environment step, then the updates that are due."""
    (key, act_key, update_key), step = jax.random.split(state.key, 3), state.step + 1
    action = act(q_values(args, state.learner.network, state.obs), act_key, epsilon(args, step))
    frame, reward, terminated, truncated, lives = env_step(action)
    lost = args.terminal_on_life_loss & (lives < state.lives) & ~state.done
    row = Transition(state.obs[-1], state.age, action, reward.clip(-1, 1), terminated | lost, truncated, ~state.done)
    index, stored = state.stored % args.buffer_size, state.stored + 1
    replay = jax.tree.map(lambda ring, x: ring.at[index].set(x), state.replay, row)

    def one_update(i, carry):
        learner, totals = carry
        draw_key, key = jax.random.split(jax.random.fold_in(update_key, i))
        index = draw_uniformly(args, replay, stored, draw_key)
        batch = n_steps(args, replay, index, args.n_step, args.gamma)
        learner, info = update(args, learner, batch, first + i, key)
        return learner, totals | {tag: totals[tag] + x for tag, x in (info | {"updates": 1}).items()}

    first = updates_by(args, step - 1) - updates_by(args, args.learning_starts - 1) + 1  # their numbers count from 1
    due = jnp.where(step >= args.learning_starts, updates_by(args, step) - updates_by(args, step - 1), 0)
    learner, totals = jax.lax.fori_loop(0, due, one_update, (state.learner, state.totals))
    done, returned = terminated | truncated, jnp.where(state.done, 0, state.episode_return + reward)
    length, fresh = jnp.where(state.done, 0, state.episode_length + 1), state.done | lost
    ended = {"episodes": 1, "charts/episodic_return": returned, "charts/episodic_length": length}
    totals |= {tag: totals[tag] + jnp.where(done, x, 0) for tag, x in ended.items()}
    obs, age = look(state.obs, frame, fresh), jnp.where(fresh, 0, jnp.minimum(state.age + 1, 3)).astype(jnp.uint8)
    state = State(step, key, learner, replay, stored, obs, age, lives, done, returned, length, totals)
    return state, (action, jnp.isfinite(jnp.stack(list(totals.values()))).all())


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def train_chunk(args, env_step, length, state):
    """`length` steps of all seeds -> state, what `train_step` gives out of each, leaves (num_seeds, length, ...)."""
    chunk = lambda state: jax.lax.scan(partial(train_step, args, env_step), state, None, length)
    return jax.vmap(chunk, in_axes=(AXES,), out_axes=(AXES, 0))(state)


def init_state(args, seed, frame):
    key, learner_key = jax.random.split(jax.random.key(seed))
    zero, none, age = jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.uint8)
    obs = look(jnp.zeros((4, 84, 84), jnp.uint8), frame, False)
    row = Transition(frame, age, none, zero, *[zero > 0] * 3)
    learner = init_learner(args, learner_key, obs)
    replay = jax.tree.map(lambda x: jnp.zeros((args.buffer_size, *x.shape), x.dtype), row)
    batch = n_steps(args, replay, jnp.zeros(args.batch_size, jnp.int32), args.n_step, args.gamma)
    tags = jax.eval_shape(partial(update, args), learner, batch, none, key)[1]
    totals = dict.fromkeys((*tags, "updates", "episodes", "charts/episodic_return", "charts/episodic_length"), zero)
    return State(none, key, learner, replay, none, obs, age, none, zero > 0, zero, none, totals)


def metrics(args, state):
    """What is logged, a dict per seed: tag -> mean since the last log. What does not exist yet is absent."""
    totals, norms = jax.device_get((state.totals, jax.vmap(jax.jit(optax.tree.norm))(state.learner.network)))
    updates = max(0, updates_by(args, int(state.step)) - updates_by(args, args.learning_starts - 1))
    known = {"charts/updates": updates, "charts/epsilon": float(epsilon(args, state.step))}
    counts = {"charts": totals.pop("episodes"), "losses": totals.pop("updates")}
    for i, norm in enumerate(norms):
        means = {tag: x[i] / n[i] for tag, x in totals.items() if (n := counts[tag.split("/")[0]])[i]}
        yield means | known | {"charts/episodes": counts["charts"][i], "losses/network_norm": norm}


@partial(jax.jit, static_argnums=0)
def policy(args, network, obs, key, games):  # of an evaluation: actions (n,) in these games (n,); obs (n, 4, 84, 84)
    choose = lambda obs, game: act(q_values(args, network, obs), jax.random.fold_in(key, game), args.eval_e)
    return jax.vmap(choose)(obs, games)


def evaluate(args, learners, seeds, step, folders):
    """Plays games in pools of their own, with the same seeds each time -> what is logged, a dict per seed. Only those
    that go on are stepped: a game that is stuck holds up nothing but itself."""
    episodes = args.final_eval_episodes if args.evaluate or step == args.total_timesteps else args.eval_episodes
    for seed_index, (seed, folder) in enumerate(zip(seeds, folders, strict=True)):
        network = jax.tree.map(lambda x, at=seed_index: x[at], learners.network)
        starts = jax.random.randint(jax.random.fold_in(jax.random.key(seed), 2**31 - 1), (episodes,), 0, 2**31 - 1)
        pool, key = make_atari_pool(args, starts.tolist(), batch_size=1), jax.random.fold_in(jax.random.key(seed), step)
        lives, returns, lengths, done = np.zeros((4, episodes))
        obs, going, film = np.zeros((episodes, 4, 84, 84), np.uint8), np.arange(episodes), []
        pool.async_reset()
        for t in range(2**31):
            for _ in going:
                frame, reward, terminated, truncated, info = pool.recv()
                i, left = info["env_id"][0], info["lives"][0]
                obs[i] = look(obs[i], frame[0, 0], args.terminal_on_life_loss and left < lives[i], np)
                lives[i], lengths[i], done[i] = left, t, terminated[0] or truncated[0]
                returns[i] += reward[0]
            film += [obs[0, -1].repeat(4, 0).repeat(4, 1)] * int(args.capture_video and lengths[0] == t < 3_000)
            going = np.flatnonzero(done == 0)
            if not going.size:
                break
            padded = np.resize(going, 1 << int(going.size - 1).bit_length())  # few sizes, few compilations
            action = policy(args, network, obs[padded], jax.random.fold_in(key, t), padded)
            pool.send(np.asarray(action)[: going.size], going)
        if film:
            options = {"extension": ".mp4", "plugin": "pyav", "codec": "h264", "in_pixel_format": "gray", "fps": 15}
            write(folder / f"videos/step_{step:010d}.mp4", imageio.imwrite("<bytes>", np.stack(film), **options))
        means = {"eval/episodic_return": returns.mean(), "eval/episodic_length": lengths.mean()}
        yield means | {f"eval/episode_{i}": x for i, x in enumerate(returns)}


def require(condition, message):  # for what the user can mend: one line, exit code 2
    if not condition:
        print(f"error: {message}", file=sys.stderr, flush=True)
        sys.exit(2)


def write(path, content):
    """Writes bytes, or what a function gives a file, beside the old file and renames: the path always holds a whole."""
    beside = path.with_name(path.name + ".tmp")
    path.parent.mkdir(exist_ok=True)
    try:
        with open(beside, "wb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    finally:
        beside.unlink(missing_ok=True)


def find_run(args, seed):
    """A run's folder, and the arguments that identify it; ends the program if it holds another run. Changes nothing."""
    folder = Path(args.runs_dir, f"{args.env_id}__{args.exp_name}__rr{args.replay_ratio:g}__{seed}".replace("/", "-"))
    free = ("num_seeds", "total_timesteps", "checkpoint_interval", "runs_dir", "overwrite", "evaluate", "capture_video")
    now = {name: value for name, value in dataclasses.asdict(args).items() if name not in free} | {"seed": seed}
    held = [path.name for path in folder.glob("*") if path.suffix != ".tmp"]
    require(not held or "args.json" in held, f"{folder} holds no run; move it away or choose another --runs-dir")
    old = json.loads((folder / "args.json").read_text()) if held and (args.evaluate or not args.overwrite) else now
    other = ", ".join(f"{k} {old.get(k)} (now {now.get(k)})" for k in now | old if now.get(k) != old.get(k))
    require(not other, f"{folder} holds another run: {other}; choose another --exp-name, or --overwrite it")
    return folder, now


def checkpoints(folder):  # step -> path, newest first
    return {int(path.stem.split("_")[1]): path for path in sorted(folder.glob("checkpoint_*.npz"), reverse=True)}


def start(folder, step, seeds):
    """Takes a run's files back to its checkpoint: what a killed run wrote after it goes -> its starts for run.json, the
    writer of TensorBoard's events, the lines of metrics.csv."""
    stale = [path for newer, path in checkpoints(folder).items() if newer > step]
    for path in [*stale, *folder.rglob("*.tmp"), *folder.glob("events.out*"), *folder.glob("done")]:
        path.unlink()
    lines = [line for csv in folder.glob("metrics.csv") for line in csv.read_text().split("\n")[1:-1]]
    lines, writer = [x for x in lines if int(x.split(",")[0]) <= step], tensorboard.summary.Writer(str(folder))
    write(folder / "metrics.csv", "\n".join(["step,tag,value", *lines, ""]).encode())
    for at, tag, value in (line.split(",") for line in lines):
        writer.add_scalar(tag, float(value), int(at))
    git = "git describe --always --dirty --abbrev=40 --exclude='*'"  # a shell's, which may know none
    commit = subprocess.run(git, shell=True, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    layout = {x: importlib.metadata.version(x) for x in "jax jaxlib flax optax envpool gymnasium gymnax numpy".split()}
    cpu = Path("/proc/cpuinfo").read_text().split("model name\t: ")[-1].split("\n")[0]
    threads = 1 if "multi_thread_eigen=false" in os.environ.get("XLA_FLAGS", "") else len(os.sched_getaffinity(0))
    layout |= {"seeds": seeds, "device": jax.devices()[0].device_kind, "cpu": cpu, "threads": threads}
    starts = json.loads((folder / "run.json").read_text()) if step else []
    if step and starts[-1]["layout"] != layout:
        print(f"{folder} goes on beside other seeds or on other hardware or versions: the same run only up to rounding")
    starts += [{"command": shlex.join(sys.argv), "commit": commit, "layout": layout, "from_step": step}]
    return starts, writer, lines


def named(state):  # its arrays by name, keys as numbers: what a file can hold
    data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return {jax.tree_util.keystr(at, simple=True, separator="/"): data(x) for at, x in jax.tree.leaves_with_path(state)}


def save(outputs, state, wall_s):
    """Writes a checkpoint of every seed, then removes all but the two newest: all seeds always share a whole one."""
    leaves = {name: np.asarray(x) for name, x in named(state).items()}
    for i, (folder, starts, writer, _) in enumerate(outputs):
        own = {name: x[i] if x.ndim else x for name, x in leaves.items()}
        own |= {name: x[: own["stored"]] for name, x in own.items() if name.startswith("replay/")}
        starts[-1] |= {"to_step": int(own["step"]), "wall_s": round(wall_s, 1)}
        write(folder / "run.json", json.dumps(starts, indent=1).encode())
        writer.flush()
        write(folder / f"checkpoint_{own['step']:010d}.npz", partial(np.savez, **own))
    for old in [path for folder, *_ in outputs for path in list(checkpoints(folder).values())[2:]]:
        old.unlink()


def restore(folders, init, *inputs):
    """The newest step of which all folders hold a readable checkpoint, and its state; else 0 and init(*inputs)."""
    held, like = [checkpoints(folder) for folder in folders], jax.eval_shape(init, *inputs)
    for step in [step for step in held[0] if all(step in own for own in held)]:
        arrays = {name: np.zeros(x.shape, x.dtype) for name, x in jax.eval_shape(named, like).items()}
        try:
            for i, path in enumerate(own[step] for own in held):
                saved, other = np.load(path), f"{path.parent} is of another version; use its script, or --overwrite"
                require(set(saved.files) == set(arrays), other)
                for name, x in arrays.items():
                    row, ring = saved[name], name.startswith("replay/")  # of which there may be less
                    require(row.shape[ring:] == x.shape[1 + ring :], f"{other}: {name}")
                    x[(i, *map(slice, row.shape))[: x.ndim]] = row
        except Exception as error:  # of many kinds: a file that was cut or altered fails as a zip or by its checksum
            print(f"the checkpoint of step {step} is damaged ({error}); trying the one before", file=sys.stderr)
            continue
        given = lambda x, row: jax.device_put(row) if x.shape == row.shape else jax.random.wrap_key_data(row)
        names = jax.tree.map_with_path(lambda at, _: jax.tree_util.keystr(at, simple=True, separator="/"), like)
        return step, jax.tree.map(given, like, jax.tree.map(arrays.get, names))
    require(not any(map(any, held)), "no whole checkpoint is common to all seeds; finish them apart, or --overwrite")
    return 0, init(*inputs)


def check(args):  # before anything is written
    zero = "seed gamma sticky end_e eval_e eval_interval checkpoint_interval".split()
    for name, value in dataclasses.asdict(args).items():
        most = 1 if name in ("gamma", "sticky", "end_e", "eval_e") else 2**31 - args.num_seeds
        fits = isinstance(value, str | bool) or (0 if name in zero else 1e-9) <= value <= most
        require(fits, f"--{name.replace('_', '-')} cannot be {value}")
    uneven = args.eval_interval % args.log_interval or args.checkpoint_interval % args.log_interval
    require(not uneven, "--eval-interval and --checkpoint-interval must be multiples of --log-interval")
    n, d = fractions.Fraction(str(args.replay_ratio)).as_integer_ratio()
    require(n * d < 2**31 > args.total_timesteps * n / d, "--replay-ratio has too many digits, or makes 2^31 updates")
    require(args.learning_starts <= args.total_timesteps, "--learning-starts lies after the end, --total-timesteps")
    enough = args.batch_size + args.n_step + 3 <= min(args.buffer_size, args.learning_starts)
    require(enough, "--batch-size and --n-step need more steps than are stored when learning starts")


def main(args: Args):
    check(args)
    make_atari_pool(args, [args.seed])
    needed = 1e-9 * (84 * 84 + 12) * args.buffer_size * args.num_seeds
    room = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", mmap.PAGESIZE * os.sysconf("SC_PHYS_PAGES")) / 1e9
    require(needed < room, f"the replay needs {needed:.1f} GB of {room:.1f}; lower --buffer-size or --num-seeds")
    runs = {seed: find_run(args, seed) for seed in range(args.seed, args.seed + args.num_seeds)}
    held = [] if args.evaluate else list(runs.items())
    for _, (folder, _) in held:  # all, before anything in them is touched
        folder.mkdir(parents=True, exist_ok=True)
        try:
            fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process
        except BlockingIOError:
            require(False, f"another process is at work in {folder}")
    for seed, (folder, identity) in held:
        for path in [path for path in folder.rglob("*") if args.overwrite and path.name != "args.json"]:
            path.unlink() if path.is_file() else None
        write(folder / "args.json", json.dumps(identity, indent=1).encode())
        if (folder / "done").exists() and max(checkpoints(folder), default=0) >= args.total_timesteps:
            print(f"{runs.pop(seed)[0]} is finished; a higher --total-timesteps goes on")
    if not runs:
        return
    seeds, folders = list(runs), [folder for folder, _ in runs.values()]
    pool, frames, env_step = make_atari(args, seeds)
    step, state = restore(folders, jax.jit(jax.vmap(partial(init_state, args), out_axes=AXES)), np.array(seeds), frames)
    if args.evaluate:
        require(step, f"{folders[0]} holds no checkpoint to evaluate")
        for seed, row in zip(seeds, evaluate(args, state.learner, seeds, step, folders), strict=True):
            print(f"seed {seed}, step {step:,}:", *(f"{tag.removeprefix('eval/')} {x:.1f}" for tag, x in row.items()))
        return
    outputs = [(folder, *start(folder, step, seeds)) for folder in folders]
    print(f"from step {step:,} to {args.total_timesteps:,} with seeds {seeds} on {jax.devices()[0]}", flush=True)
    actions = [np.stack([np.fromfile(folder / "actions.u8", np.uint8)[:step] for folder in folders])] if step else []
    if not step:
        save(outputs, state, 0.0)  # so that all seeds share one at all times
    else:
        for action in tqdm.tqdm(actions[0].T.astype(np.int32), "replaying", disable=None):  # no pool can be saved
            frames = pool.step(action)[0][:, 0]
        require(np.array_equal(frames, state.obs[:, -1]), f"{args.env_id} does not repeat itself; see --overwrite")
    stop = []  # signals so far: the first ends the chunk under way and saves, a second one ends the program
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: (stop.append(number), signal.signal(number, signal.SIG_DFL)))
    most = max(1, 200 / (max(1, args.replay_ratio) * len(seeds)))  # steps until a signal is served, evaluations aside
    size = max(n for n in range(1, args.log_interval + 1) if args.log_interval % n == 0 and n <= most)
    bar = tqdm.tqdm(total=args.total_timesteps, initial=step, unit="step", disable=None, smoothing=0.05)
    begin, clock, since = time.time(), time.time(), step
    while step < args.total_timesteps and not stop:
        length = min(size - step % size, args.total_timesteps - step)
        state, (taken, finite) = jax.block_until_ready(train_chunk(args, env_step, length, state))
        actions.append(np.asarray(taken, np.uint8))
        for late, i in np.argwhere(~np.asarray(finite).T)[:1]:
            where = f"in step {step + late + 1} of seed {seeds[i]} a loss was NaN or infinite"
            require(False, f"{where}; the checkpoint of step {max(checkpoints(folders[i]))} is kept in {folders[i]}")
        step += length
        if step % args.log_interval == 0:
            due, sps = args.eval_interval and step % args.eval_interval == 0, (step - since) / (time.time() - clock)
            evaluations = evaluate(args, state.learner, seeds, step, folders) if due else [{}] * len(seeds)
            rows = [row | own | {"charts/SPS": sps} for row, own in zip(metrics(args, state), evaluations, strict=True)]
            for (folder, _, writer, lines), row in zip(outputs, rows, strict=True):
                for tag, value in row.items():
                    writer.add_scalar(tag, value, step)
                    lines.append(f"{step},{tag},{value:.9g}")
                write(folder / "metrics.csv", "\n".join(["step,tag,value", *lines, ""]).encode())
            bar.set_postfix({tag: np.mean([x[tag] for x in rows if tag in x]) for tag in rows[0] if "return" in tag})
            state, clock, since = state.replace(totals=jax.tree.map(jnp.zeros_like, state.totals)), time.time(), step
        bar.update(length)
        if stop or step == args.total_timesteps or step % (args.checkpoint_interval or step + 1) == 0:
            for folder, own in zip(folders, np.concatenate(actions, 1), strict=True):
                write(folder / "actions.u8", own.tobytes())
            save(outputs, state, time.time() - begin)
    bar.close()
    if stop:
        print(f"stopped and saved at step {step:,}; the same command goes on from there", flush=True)
        sys.exit(128 + stop[0])
    for seed, folder in zip(seeds, folders, strict=True):
        write(folder / "done", json.dumps({"step": step}).encode())
        print(f"seed {seed}: {step:,} steps done, results in {folder}", flush=True)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OSError as error:  # a folder that cannot be made, a full disk, a closed pipe
        require(False, f"cannot use {error.filename or 'an output'}: {error.strerror or error}; what was saved is kept")
