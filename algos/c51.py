"""C51: DQN that learns the distribution of the return, as probabilities of 51 fixed values.

Paper:  Bellemare, Dabney & Munos 2017, "A Distributional Perspective on Reinforcement Learning" (ICML 2017), set up for
        MinAtar as in Obando-Ceron & Castro 2021, "Revisiting Rainbow" (ICML 2021).
Parent: dqn.py; differs: Args, C51Network, init_learner, q_values, q_loss, log_probabilities, support, project, check
Run:    python algos/c51.py --env-id Breakout-MinAtar --num-seeds 5  (again: it goes on, to the same bits)
Expect: on Breakout, 3.2 a game over the first million steps (one seed, 22 minutes on one core; DQN: 2.8).
Written for ONE seed: `train_chunk` applies `jax.vmap`; only evaluations and what keeps folders know of several seeds.
"""

import dataclasses, difflib, fcntl, fractions, importlib.metadata, json, mmap, os, shlex, signal, subprocess, sys, time
from functools import cache, partial
from pathlib import Path
from typing import Literal

import flax, flax.linen as nn, gymnax, imageio.v3 as imageio, jax, jax.numpy as jnp, numpy as np, optax
import tensorboard.summary, tqdm, tyro


@dataclasses.dataclass(frozen=True)
class Args:
    env_id: str = "Breakout-MinAtar"  # gymnax task of discrete actions: MinAtar's five, CartPole-v1, Catch-bsuite, ...
    minimal_actions: bool = False  # MinAtar: only the actions that do something in this game, in place of all six
    sticky: float = 0.1  # probability that the environment repeats its last action, whatever the agent chose
    exp_name: str = Path(__file__).stem  # name of the experiment, part of the run's folder
    seed: int = 1  # first seed; the run holds seeds `seed` to `seed + num_seeds - 1`
    num_seeds: int = 1  # seeds trained side by side in one program, each a run of its own with its own folder
    total_timesteps: int = 1_000_000  # environment steps per seed; may be raised later, and the run goes on
    replay_ratio: float = 0.25  # gradient updates per environment step; 0.25: one in 4 (BBF's code: times the batch)
    learning_starts: int = 1_000  # environment steps with uniformly random actions; no update comes before this step
    buffer_size: int = 100_000  # transitions in the replay, per seed
    batch_size: int = 32  # transitions per update
    gamma: float = 0.99  # discount factor
    end_e: float = 0.01  # probability of a random action at the end of exploration
    exploration_steps: int = 250_000  # environment steps, from learning_starts on, over which it falls from 1 to end_e
    optimizer: Literal["rmsprop", "adam"] = "adam"  # RMSProp is centered, with a decay of 0.95
    learning_rate: float = 2.5e-4  # step size of the optimizer
    optimizer_eps: float = 3.125e-4  # added to the root of the mean squared gradient, against steps too long
    eps_in_sqrt: bool = False  # RMSProp adds it within the root instead, as Dopamine's TensorFlow agents do
    target_interval: int = 250  # gradient updates between two copies of the network to the target network
    num_atoms: int = 51  # values whose probabilities are learnt, evenly from -v_max to v_max
    v_max: float = 100  # the largest return that can be told; 10 on Atari, whose rewards are clipped
    hidden_dim: int = 0  # width of the hidden layer (two of them where observations are no images); 0 has none
    padding: Literal["VALID", "SAME"] = "SAME"  # of the convolution: VALID leaves 8 x 8 positions of 10 x 10, SAME all
    log_interval: int = 5_000  # environment steps between two rows of metrics.csv
    eval_interval: int = 50_000  # environment steps between evaluations, a multiple of log_interval; 0 never evaluates
    eval_episodes: int = 10  # episodes per evaluation
    eval_e: float = 0.001  # probability of a random action in evaluations
    eval_steps: int = 10_000  # an evaluation episode that has not ended after so many steps is cut there
    checkpoint_interval: int = 50_000  # environment steps between checkpoints, multiple of log_interval; 0: at the end
    runs_dir: str = "runs"  # folder of the runs' folders
    overwrite: bool = False  # start anew: what the folders of these runs hold is deleted
    evaluate: bool = False  # evaluate the newest checkpoint of these runs, print the returns and change nothing
    capture_video: bool = False  # MinAtar: film the first episode of each evaluation, also of --evaluate, into videos/


def uniform(fan_in):  # PyTorch's default for weights and biases, drawn in a row, which XLA compiles faster
    return lambda key, shape: jax.random.uniform(key, (np.prod(shape),), minval=-1).reshape(shape) * fan_in**-0.5


class Dense(nn.Module):
    """A dense layer, its weights held as PyTorch does, (features, inputs): the gradient comes out so, untransposed."""

    features: int

    @nn.compact
    def __call__(self, x):  # (inputs,) -> (features,)
        kernel = self.param("kernel", uniform(x.size), (self.features, x.size))
        return kernel @ x + self.param("bias", uniform(x.size), (self.features,))


class Conv(nn.Module):
    """A convolution with nn.Conv's parameters and results. XLA's is slow on CPUs inside a loop: there it is the image's
    shifted copies and one matrix product."""

    features: int
    size: int
    padding: str

    @nn.compact
    def __call__(self, x):  # (height, width, channels) -> (height, width, features)
        size, init = self.size, uniform(self.size**2 * x.shape[-1])
        kernel = self.param("kernel", init, (size, size, x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        if jax.default_backend() != "cpu":
            convolve = partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return convolve(x[None], kernel, (1, 1), self.padding)[0] + bias
        around = ((size - 1) // 2, size // 2) if self.padding == "SAME" else (0, 0)
        x = jnp.pad(x, [around, around, (0, 0)])
        rows, cols = x.shape[0] - size + 1, x.shape[1] - size + 1
        shifted = [x[i : i + rows, j : j + cols] for i in range(size) for j in range(size)]
        return jnp.concatenate(shifted, -1) @ kernel.reshape(-1, self.features) + bias


class Encoder(nn.Module):
    hidden_dim: int
    padding: str

    @nn.compact
    def __call__(self, obs):  # one observation, an image (height, width, channels) or anything else -> (features,)
        x = obs.astype(jnp.float32)
        if x.ndim == 3:
            x = nn.relu(Conv(16, 3, self.padding)(x))
        elif self.hidden_dim:
            x = nn.relu(Dense(self.hidden_dim)(x.reshape(-1)))
        x = x.reshape(-1)
        return nn.relu(Dense(self.hidden_dim)(x)) if self.hidden_dim else x


class C51Network(nn.Module):
    args: Args

    @nn.compact
    def __call__(self, obs):  # one observation -> logits (num_actions, num_atoms)
        x = Encoder(self.args.hidden_dim, self.args.padding)(obs)
        num_actions, num_atoms = make_task(self.args)[0].num_actions, self.args.num_atoms
        return Dense(num_actions * num_atoms)(x).reshape(num_actions, num_atoms)


@flax.struct.dataclass
class Learner:  # all that is learnt: parameters and the state of their optimizer
    network: dict
    target_network: dict
    opt: optax.OptState


@flax.struct.dataclass
class Transition:
    obs: jax.Array  # an image of bits (height, width, channels), or float32
    action: jax.Array  # int32
    reward: jax.Array
    terminated: jax.Array  # the task ended here; after a time limit it did not, and the value goes on
    next_obs: jax.Array  # the episode's own, also at its end


@flax.struct.dataclass
class State:  # everything that changes while training
    step: jax.Array  # environment steps so far, the same for every seed
    env: tuple  # gymnax's state; the action executed last, also across episodes; a key of the environment alone
    key: jax.Array
    learner: Learner
    replay: Transition  # ring buffer, leaves (buffer_size, ...)
    stored: jax.Array  # transitions stored so far
    obs: jax.Array
    episode_return: jax.Array
    episode_length: jax.Array
    average_return: jax.Array  # moves by a hundredth of the way with every episode, from 0
    totals: dict  # sums since the last log, by tag


AXES = State(**dict.fromkeys(State.__dataclass_fields__, 0) | {"step": None})


@cache
def make_task(args):
    """-> gymnax's environment, its parameters, the type of its observations; first called outside of any trace."""
    close = difflib.get_close_matches(args.env_id, gymnax.registered_envs, 4)
    require(args.env_id in gymnax.registered_envs, f"there is no task {args.env_id!r}; close names: {close}")
    minatar = args.env_id.endswith("-MinAtar")
    special = args.minimal_actions or args.capture_video
    require(minatar or not special, "--minimal-actions and --capture-video are for MinAtar's games")
    env, params = gymnax.make(args.env_id, **{"use_minimal_action_set": args.minimal_actions} if minatar else {})
    require(hasattr(env.action_space(params), "n"), f"{args.env_id} has no discrete actions; DQN needs them")
    if minatar and not args.env_id.startswith("Freeway"):
        params = params.replace(max_steps_in_episode=2**31 - 1)  # MinAtar has no time limits
    return env, params, bool if minatar else jnp.float32  # MinAtar's images are of bits: one byte each in the replay


def env_reset(args, key):
    """-> env, first observation."""
    env, params, dtype = make_task(args)
    key, reset_key = jax.random.split(key)
    obs, game = env.reset(reset_key, params)
    return (jax.tree.map(jnp.asarray, game), jnp.zeros((), jnp.int32), key), jnp.asarray(obs, dtype)


def env_step(args, state, action):
    """-> env, (next_obs, reward, terminated, truncated, obs): `next_obs` is the episode's own; `obs`, at an episode's
    end the next one's first, is what to act on."""
    (env, params, dtype), (game, executed, key) = make_task(args), state
    key, step_key, sticky_key = jax.random.split(key, 3)
    action = jnp.where(jax.random.bernoulli(sticky_key, args.sticky), executed, action)
    obs, game, reward, terminated, truncated, info = env.step(step_key, game, action, params)
    if args.env_id.startswith("Freeway"):  # whose only end, after 2,500 steps, is the game's own
        terminated, truncated = terminated | truncated, jnp.zeros_like(truncated)
    next_obs, obs = jnp.asarray(info["final_observation"], dtype), jnp.asarray(obs, dtype)
    return (game, action, key), (next_obs, jnp.float32(reward), terminated, truncated, obs)


def optimizer(args):
    rate, eps = args.learning_rate, args.optimizer_eps
    rmsprop = optax.rmsprop(rate, decay=0.95, eps=eps, eps_in_sqrt=args.eps_in_sqrt, centered=True)
    return optax.flatten(rmsprop if args.optimizer == "rmsprop" else optax.adam(rate, eps=eps))  # in few large kernels


def init_learner(args, key, obs):
    network = C51Network(args).init(key, obs)
    return Learner(network, network, optimizer(args).init(network))


def support(args):  # (num_atoms,)
    return jnp.linspace(-args.v_max, args.v_max, args.num_atoms)


def log_probabilities(args, network, obs):  # one observation -> (num_actions, num_atoms)
    return jax.nn.log_softmax(C51Network(args).apply(network, obs))


def q_values(args, network, obs):  # one observation -> (num_actions,)
    return jnp.exp(log_probabilities(args, network, obs)) @ support(args)


def project(args, values, probabilities):
    """A distribution on `values` (num_atoms,) -> on the support: a value's probability goes to its two neighbors there,
    the nearer the more; what lies beyond the support goes to its ends. Bellemare et al. 2017, algorithm 1."""
    place = (values.clip(-args.v_max, args.v_max) + args.v_max) * (args.num_atoms - 1) / (2 * args.v_max)
    return probabilities @ (1 - jnp.abs(place[:, None] - jnp.arange(args.num_atoms))).clip(0)


def q_loss(network, args, target_network, batch):
    """Cross-entropy to the projected target distribution of the best next action. Paper, algorithm 1."""

    def one(row):
        target = jnp.exp(log_probabilities(args, target_network, row.next_obs))
        best = target[(target @ support(args)).argmax()]
        wanted = project(args, row.reward + args.gamma * (1 - row.terminated) * support(args), best)
        log_p = log_probabilities(args, network, row.obs)
        return -(wanted * log_p[row.action]).sum(), (jnp.exp(log_p) @ support(args)).mean()

    losses, values = jax.vmap(one)(batch)
    return losses.mean(), {"losses/q_loss": losses.mean(), "losses/q_values": values.mean()}


def update(args, old, batch, number):
    """The gradient update with this number, then the target network's copy if it is due."""
    grad, info = jax.grad(q_loss, has_aux=True)(old.network, args, old.target_network, batch)
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
    env, (next_obs, reward, terminated, truncated, obs) = env_step(state.env, action)
    row = Transition(state.obs, action, reward, terminated, next_obs)
    index, stored = state.stored % args.buffer_size, state.stored + 1
    replay = jax.tree.map(lambda ring, x: ring.at[index].set(x), state.replay, row)

    def one_update(i, carry):
        learner, totals = carry
        key = jax.random.fold_in(update_key, i)
        held = jnp.minimum(stored, args.buffer_size).astype(jnp.uint32)
        index = jax.random.bits(key, (args.batch_size,)) % held  # of 2^32: as good as randint, at less cost
        batch, number = jax.tree.map(lambda ring: ring[index], replay), first + i
        learner, info = update(args, learner, batch, number)
        return learner, totals | {tag: totals[tag] + x for tag, x in (info | {"updates": 1}).items()}

    first = updates_by(args, step - 1) - updates_by(args, args.learning_starts - 1) + 1  # their numbers count from 1
    due = jnp.where(step >= args.learning_starts, updates_by(args, step) - updates_by(args, step - 1), 0)
    learner, totals = jax.lax.fori_loop(0, due, one_update, (state.learner, state.totals))
    done, returned, length = terminated | truncated, state.episode_return + reward, state.episode_length + 1
    ended = {"episodes": 1, "charts/episodic_return": returned, "charts/episodic_length": length}
    totals |= {tag: totals[tag] + jnp.where(done, x, 0) for tag, x in ended.items()}
    average = jnp.where(done, 0.99 * state.average_return + 0.01 * returned, state.average_return)
    returned, length = jnp.where(done, 0, returned), jnp.where(done, 0, length)
    state = State(step, env, key, learner, replay, stored, obs, returned, length, average, totals)
    return state, jnp.isfinite(jnp.stack(list(totals.values()))).all()


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def train_chunk(args, env_step, length, state):
    """`length` steps of all seeds -> state, what `train_step` gives out of each, leaves (num_seeds, length, ...)."""
    chunk = lambda state: jax.lax.scan(partial(train_step, args, env_step), state, None, length)
    return jax.vmap(chunk, in_axes=(AXES,), out_axes=(AXES, 0))(state)


def init_state(args, seed):
    env_key, learner_key, key = jax.random.split(jax.random.key(seed), 3)
    env, obs = env_reset(args, env_key)
    zero, count, learner = jnp.zeros(()), jnp.zeros((), jnp.int32), init_learner(args, learner_key, obs)
    row = Transition(obs, count, zero, zero > 0, obs)
    rows = lambda n: jax.tree.map(lambda x: jnp.zeros((n, *x.shape), x.dtype), row)
    tags = jax.eval_shape(partial(update, args), learner, rows(args.batch_size), count)[1]
    totals = dict.fromkeys((*tags, "updates", "episodes", "charts/episodic_return", "charts/episodic_length"), zero)
    return State(count, env, key, learner, rows(args.buffer_size), count, obs, zero, count, zero, totals)


def metrics(args, state):
    """What is logged, a dict per seed: tag -> mean since the last log. What does not exist yet is absent."""
    now = {"charts/average_return": state.average_return, "charts/episodes": state.totals["episodes"]}
    now |= {"losses/network_norm": jax.vmap(jax.jit(optax.tree.norm))(state.learner.network)}
    totals, now = jax.device_get((state.totals, now))
    updates = max(0, updates_by(args, int(state.step)) - updates_by(args, args.learning_starts - 1))
    known = {"charts/updates": updates, "charts/epsilon": float(epsilon(args, state.step))}
    counts = {"charts": totals.pop("episodes"), "losses": totals.pop("updates")}
    for i in range(len(counts["charts"])):
        means = {tag: x[i] / n[i] for tag, x in totals.items() if (n := counts[tag.split("/")[0]])[i]}
        yield means | {tag: x[i] for tag, x in now.items()} | known


@partial(jax.jit, static_argnums=0)
def play(args, network, key):
    """Evaluation of one seed -> returns, lengths (eval_episodes,), observations of the first (eval_steps, ...)."""

    def step(carry):
        film, t, env, obs, key, done, returned, length = carry
        film = film.at[t].set(obs[0]) if args.capture_video else film
        key = jax.vmap(jax.random.split)(key)
        action = jax.vmap(lambda obs, key: act(q_values(args, network, obs), key, args.eval_e))(obs, key[:, 1])
        env, (_, reward, terminated, truncated, obs) = jax.vmap(partial(env_step, args))(env, action)
        returned, length = returned + ~done * reward, length + ~done
        done |= terminated | truncated | (length >= args.eval_steps)
        return film, t + 1, env, obs, key[:, 0], done, returned, length

    keys = jax.vmap(jax.random.split)(jax.random.split(key, args.eval_episodes))
    (env, obs), zero = jax.vmap(partial(env_reset, args))(keys[:, 0]), jnp.zeros(args.eval_episodes)
    film = jnp.zeros((args.eval_steps * args.capture_video, *obs.shape[1:]), obs.dtype)
    first = film, 0, env, obs, keys[:, 1], zero > 0, zero, zero.astype(int)
    film, *_, returned, length = jax.lax.while_loop(lambda carry: ~carry[5].all(), step, first)
    return returned, length, film


def evaluate(args, networks, seeds, step, folders):
    """Plays episodes, seeded by seed and step to be repeatable -> what is logged, a dict per seed."""
    keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), step) for seed in seeds])
    played = jax.device_get(jax.vmap(partial(play, args))(networks, keys))
    for returned, length, film, folder in zip(*played, folders, strict=True):
        if args.capture_video:
            colors = np.random.default_rng(7).integers(64, 256, (film.shape[-1], 3), np.uint8)  # one for each channel
            images = (film[: length[0], ..., None] * colors).max(-2).repeat(16, 1).repeat(16, 2)
            movie = imageio.imwrite("<bytes>", images, extension=".mp4", plugin="pyav", codec="h264", fps=15)
            write(folder / f"videos/step_{step:010d}.mp4", movie)
        row = {"eval/episodic_return": returned.mean(), "eval/episodic_length": length.mean()}
        yield row | {f"eval/episode_{i}": x for i, x in enumerate(returned)}


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
    zero = "seed gamma sticky end_e eval_e hidden_dim eval_interval checkpoint_interval".split()
    for name, value in dataclasses.asdict(args).items():
        most = 1 if name in ("gamma", "sticky", "end_e", "eval_e") else 2**31 - args.num_seeds
        least = 2 if name == "num_atoms" else 0 if name in zero else 1e-9
        fits = isinstance(value, str | bool) or least <= value <= most
        require(fits, f"--{name.replace('_', '-')} cannot be {value}")
    uneven = args.eval_interval % args.log_interval or args.checkpoint_interval % args.log_interval
    require(not uneven, "--eval-interval and --checkpoint-interval must be multiples of --log-interval")
    n, d = fractions.Fraction(str(args.replay_ratio)).as_integer_ratio()
    require(n * d < 2**31 > args.total_timesteps * n / d, "--replay-ratio has too many digits, or makes 2^31 updates")
    require(args.optimizer == "rmsprop" or not args.eps_in_sqrt, "--eps-in-sqrt needs --optimizer rmsprop")
    require(args.learning_starts <= args.total_timesteps, "--learning-starts lies after the end, --total-timesteps")
    enough = args.batch_size <= min(args.buffer_size, args.learning_starts)
    require(enough, f"--batch-size {args.batch_size} is more than what is stored when learning starts")


def main(args: Args):
    check(args)
    make_task(args)
    replay = jax.eval_shape(partial(init_state, args), args.seed).replay
    needed = 1e-9 * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(replay)) * args.num_seeds
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
    step, state = restore(folders, jax.jit(jax.vmap(partial(init_state, args), out_axes=AXES)), jnp.array(seeds))
    if args.evaluate:
        require(step, f"{folders[0]} holds no checkpoint to evaluate")
        for seed, row in zip(seeds, evaluate(args, state.learner.network, seeds, step, folders), strict=True):
            print(f"seed {seed}, step {step:,}:", *(f"{tag.removeprefix('eval/')} {x:.1f}" for tag, x in row.items()))
        return
    outputs = [(folder, *start(folder, step, seeds)) for folder in folders]
    print(f"from step {step:,} to {args.total_timesteps:,} with seeds {seeds} on {jax.devices()[0]}", flush=True)
    if not step:
        save(outputs, state, 0.0)  # so that all seeds share one at all times
    stop = []  # signals so far: the first ends the chunk under way and saves, a second one ends the program
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: (stop.append(number), signal.signal(number, signal.SIG_DFL)))
    most = max(1, 5000 / (max(1, args.replay_ratio) * len(seeds)))  # steps, of seconds, until a signal is served
    size = max(n for n in range(1, args.log_interval + 1) if args.log_interval % n == 0 and n <= most)
    bar = tqdm.tqdm(total=args.total_timesteps, initial=step, unit="step", disable=None, smoothing=0.05)
    begin, clock, since, one_step = time.time(), time.time(), step, partial(env_step, args)
    while step < args.total_timesteps and not stop:
        length = min(size - step % size, args.total_timesteps - step)
        state, finite = jax.block_until_ready(train_chunk(args, one_step, length, state))
        for late, i in np.argwhere(~np.asarray(finite).T)[:1]:
            where = f"in step {step + late + 1} of seed {seeds[i]} a loss was NaN or infinite"
            require(False, f"{where}; the checkpoint of step {max(checkpoints(folders[i]))} is kept in {folders[i]}")
        step += length
        if step % args.log_interval == 0:
            due, sps = args.eval_interval and step % args.eval_interval == 0, (step - since) / (time.time() - clock)
            evaluations = evaluate(args, state.learner.network, seeds, step, folders) if due else [{}] * len(seeds)
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
