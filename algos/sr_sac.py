"""SR-SAC: SAC at a high replay ratio, kept able to learn by resets of all it has learnt; only the replay survives them.

Paper:  D'Oro et al. 2023, "Sample-Efficient Reinforcement Learning by Breaking the Replay Ratio Barrier" (ICLR 2023).
Parent: sac.py; differs: Args, resets_by, train_step, metrics
Run:    python algos/sr_sac.py --env-id CheetahRun-v1 --replay-ratio 32 --num-seeds 5  (again: on, to the same bits)
Expect: at ratio 8, 194 +- 56 at step 50,000 (5 seeds; 20 minutes each on one core of an AMD EPYC).
Written for ONE seed: `train_chunk` applies `jax.vmap`; only what steps a pool or keeps folders knows of several seeds.
"""

import ctypes, dataclasses, difflib, fcntl, fractions, importlib.metadata, json, mmap, os, shlex, signal
import subprocess, sys, time
from functools import partial
from pathlib import Path

import envpool, flax, flax.linen as nn, gymnasium, imageio.v3 as imageio, jax, jax.numpy as jnp, numpy as np
import optax, tensorboard.summary, tqdm, tyro
from jax.custom_batching import custom_vmap, sequential_vmap
from jax.experimental import io_callback


@dataclasses.dataclass(frozen=True)
class Args:
    env_id: str = "CheetahRun-v1"  # task of EnvPool (DeepMind Control, Gym MuJoCo, ...) or Gymnasium (`module:Task-v0`)
    exp_name: str = Path(__file__).stem  # name of the experiment, part of the run's folder
    seed: int = 1  # first seed; the run holds seeds `seed` to `seed + num_seeds - 1`
    num_seeds: int = 1  # seeds trained side by side in one program, each a run of its own with its own folder
    total_timesteps: int = 500_000  # environment steps per seed; may be raised later, and the run goes on
    replay_ratio: float = 32  # gradient updates per environment step; 0.25: one in 4 (BBF's code: times the batch)
    reset_interval: int = 2_560_000  # gradient updates between two resets of the whole agent; 0 never resets
    learning_starts: int = 10_000  # the environment step of the first update; before it, actions are uniformly random
    buffer_size: int = 1_000_000  # transitions the replay holds; after that the oldest are overwritten
    batch_size: int = 256  # transitions per update, drawn uniformly with replacement
    gamma: float = 0.99  # discount factor
    tau: float = 0.005  # step of the target critic's moving average, taken after every update
    learning_rate: float = 3e-4  # Adam's step size, for actor, critic and temperature
    hidden_dim: int = 256  # width of the two hidden layers of actor and critic
    log_interval: int = 1_000  # environment steps between two logs, each a mean over the time since the last
    eval_interval: int = 5_000  # environment steps between evaluations, a multiple of log_interval; 0 never evaluates
    eval_episodes: int = 10  # episodes per evaluation, with the deterministic policy
    checkpoint_interval: int = 5_000  # environment steps between checkpoints, multiple of log_interval; 0: at the end
    runs_dir: str = "runs"  # folder of the runs' folders
    overwrite: bool = False  # start anew: what the folders of these runs hold is deleted
    evaluate: bool = False  # evaluate the newest checkpoint of these runs, print the returns and change nothing
    capture_video: bool = False  # film the first episode of each evaluation, also of --evaluate, into videos/


def dense(features, gain=2**0.5):
    """Dense layer with an orthogonal init whose QR is never batched: jaxlib's batched QR can hang inside jit."""
    init = nn.initializers.orthogonal(gain)
    return nn.Dense(features, kernel_init=lambda key, *shape: sequential_vmap(lambda key: init(key, *shape))(key))


class Actor(nn.Module):
    action_dim: int
    hidden_dim: int

    @nn.compact
    def __call__(self, obs):  # (..., obs_dim) -> mean, log_std: (..., action_dim)
        x = nn.relu(dense(self.hidden_dim)(obs))
        x = nn.relu(dense(self.hidden_dim)(x))
        mean, log_std = dense(self.action_dim)(x), dense(self.action_dim, gain=1.0)(x)
        return mean, -10 + 6 * (1 + jnp.tanh(log_std))  # squashed into [-10, 2], not clipped: its gradient only fades


class Critic(nn.Module):
    hidden_dim: int

    @nn.compact
    def __call__(self, obs, action):  # (..., obs_dim), (..., action_dim) -> (...,)
        x = nn.relu(dense(self.hidden_dim)(jnp.concatenate([obs, action], -1)))
        x = nn.relu(dense(self.hidden_dim)(x))
        return dense(1)(x).squeeze(-1)


TwinCritic = nn.vmap(Critic, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=2)


@flax.struct.dataclass
class Learner:  # all that is learnt: parameters and the state of their optimizers
    actor: dict
    critic: dict
    target_critic: dict
    log_alpha: jax.Array
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    alpha_opt: optax.OptState


@flax.struct.dataclass
class Transition:
    obs: jax.Array  # (obs_dim,)
    action: jax.Array  # (action_dim,), in [-1, 1]
    reward: jax.Array
    terminated: jax.Array  # 1.0 if the task ended here; after a time limit, 0.0, the value goes on
    next_obs: jax.Array  # (obs_dim,)


@flax.struct.dataclass
class State:  # everything that changes while training
    step: jax.Array  # environment steps so far, the same for every seed
    env: jax.Array  # handle of the environments, shared by every seed
    key: jax.Array
    learner: Learner
    replay: Transition  # ring buffer, leaves (buffer_size, ...)
    stored: jax.Array  # transitions stored so far
    obs: jax.Array  # (obs_dim,)
    done: jax.Array  # the last step ended an episode: the next one only resets
    episode_return: jax.Array
    episode_length: jax.Array
    totals: dict  # sums since the last log, by tag


AXES = State(**dict.fromkeys(State.__dataclass_fields__, 0) | {"step": None, "env": None})
DMC_PADDING = {  # what EnvPool gives a task because others of its DMC domain have it; dm_control does not
    "FingerSpin-v1": ("target_position", "dist_to_target"),
    "FishUpright-v1": ("target",),
    **dict.fromkeys(("HumanoidStand-v1", "HumanoidWalk-v1", "HumanoidRun-v1"), ("position",)),
} | dict.fromkeys(("QuadrupedWalk-v1", "QuadrupedRun-v1"), ("origin", "rangefinder", "ball_state", "target_position"))
MP4 = {"extension": ".mp4", "plugin": "pyav", "codec": "h264"}


def make_pool(env_id, seeds, film=False):  # EnvPool's or Gymnasium's -> pool, action space, first observations
    ours, names = env_id in envpool.list_all_envs(), sorted({*envpool.list_all_envs(), *gymnasium.registry})
    if env_id not in names and ":" not in env_id:
        require(False, f"there is no task {env_id!r}; close names: {difflib.get_close_matches(env_id, names, 4)}")
    options = {"env_type": "gymnasium", "env_seed": seeds} if ours else {"vectorization_mode": "sync"}
    how, kinds = "made", (gymnasium.error.Error, ImportError)
    if film:
        how, kinds = "filmed (without a display it takes EGL: apt install libegl1 libgl1-mesa-dri)", Exception
        options |= {"render_mode": "rgb_array"} | ({"render_width": 320, "render_height": 240} if ours else {})
        for library in Path(envpool.__file__).parents[1].glob("envpool.libs/libEGL*"):
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)  # loaded already, but not where MuJoCo looks for it
    try:
        pool = (envpool.make if ours else gymnasium.make_vec)(env_id, num_envs=len(seeds), **options)
        obs = flatten(env_id, pool.reset(seed=None if ours else seeds)[0])
        if film:
            imageio.imwrite("<bytes>", [pool.render()[0]], **MP4)  # a first try, which says what is wrong
    except kinds as error:
        require(False, f"{env_id} cannot be {how}: {error}")
    require(ours or pool.spec.max_episode_steps, f"{env_id} has no limit: register it with max_episode_steps")
    space = getattr(pool, "single_action_space", pool.action_space)
    fits = isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1 and space.is_bounded()
    require(fits, f"{env_id} has the actions {space}; SAC needs continuous ones with bounds, a Box of one dimension")
    return pool, space, obs


def flatten(env_id, obs, np=np):  # observations of n environments, an array or a dict of them -> (n, obs_dim) float32
    if isinstance(obs, dict):
        obs = [obs[name] for name in sorted(obs) if name not in DMC_PADDING.get(env_id, ())]
    return np.concatenate([x.reshape(len(x), -1) for x in jax.tree.leaves(obs)], -1).astype(np.float32)


def unscale(space, action):  # from [-1, 1], where the policy lives, to the bounds of the task
    low, high = np.float64(space.low), np.float64(space.high)  # a float32 product and a float64 sum: alike in every
    return ((low + high) / 2 + action * np.float32((high - low) / 2)).clip(low, high).astype(space.dtype)  # program


def make_env(env_id, seeds):
    """One environment per seed -> handle, first observations, step(handle, action) -> handle, (obs, reward, terminated,
    truncated): one seed's, for `jax.vmap` with an unmapped handle. The step after an episode's end only resets."""
    pool, space, first = make_pool(env_id, seeds)

    def host_step(action):  # for Gymnasium; NumPy only: JAX inside a callback can hang
        obs, reward, terminated, truncated, _ = pool.step(np.asarray(action))
        return flatten(env_id, obs), np.float32(reward), terminated, truncated

    out = (first, np.zeros(len(seeds), np.float32), *[np.zeros(len(seeds), bool)] * 2)
    handle, pool_step = np.int32(0), lambda handle, action: (handle, io_callback(host_step, out, action, ordered=True))
    if hasattr(pool, "xla"):
        with jax.enable_x64(True):  # EnvPool speaks float64: outside of this, its buffers would be taken for float32
            handle, _, _, pool_step = pool.xla()

    def step_all(handle, action):
        with jax.enable_x64(True):  # and nothing else in this program does
            handle, (obs, reward, terminated, truncated, *_) = pool_step(handle, unscale(space, action))
            return handle, (flatten(env_id, obs, jnp), reward.astype(jnp.float32), terminated, truncated)

    @custom_vmap
    def step(handle, action):
        handle, out = step_all(handle, action[None])
        return handle, jax.tree.map(lambda x: x[0], out)

    step.def_vmap(lambda size, batched, handle, action: (step_all(handle, action), (False, (True,) * 4)))
    return handle, first, step


def optimizer(args):
    return optax.flatten(optax.adam(args.learning_rate))  # one flat vector: far fewer small kernels


def init_learner(args, key, obs, action):
    actor_key, critic_key = jax.random.split(key)
    actor = Actor(len(action), args.hidden_dim).init(actor_key, obs)
    critic = TwinCritic(args.hidden_dim).init(critic_key, obs, action)
    log_alpha, init = jnp.zeros(()), optimizer(args).init
    return Learner(actor, critic, critic, log_alpha, init(actor), init(critic), init(log_alpha))


def sample_action(args, actor, obs, key, action_dim):
    """Draws from the squashed Gaussian -> action (..., action_dim), log-probability (...). Paper, appendix C."""
    mean, log_std = Actor(action_dim, args.hidden_dim).apply(actor, obs)
    noise = jax.random.normal(key, mean.shape)
    pre_tanh = mean + jnp.exp(log_std) * noise
    log_prob = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
    log_prob -= 2 * (jnp.log(2.0) - pre_tanh - jax.nn.softplus(-2 * pre_tanh))  # log(1 - tanh^2), stable for large |x|
    return jnp.tanh(pre_tanh), log_prob.sum(-1)


def critic_loss(critic, args, learner, batch, key):
    """Squared soft Bellman error of both critics, summed. Paper, equation 5, without its 1/2."""
    next_action, next_log_prob = sample_action(args, learner.actor, batch.next_obs, key, batch.action.shape[-1])
    next_q = TwinCritic(args.hidden_dim).apply(learner.target_critic, batch.next_obs, next_action).min(0)
    next_value = next_q - jnp.exp(learner.log_alpha) * next_log_prob  # (batch,)
    target = batch.reward + args.gamma * (1 - batch.terminated) * next_value
    q = TwinCritic(args.hidden_dim).apply(critic, batch.obs, batch.action)  # (2, batch)
    loss = ((q - target) ** 2).mean(-1).sum()
    return loss, {"losses/qf_loss": loss, "losses/qf1_values": q[0].mean(), "losses/qf2_values": q[1].mean()}


def actor_loss(actor, args, critic, log_alpha, batch, key):
    """Soft value of the policy's own actions, negated. Paper, equation 7."""
    action, log_prob = sample_action(args, actor, batch.obs, key, batch.action.shape[-1])
    q = TwinCritic(args.hidden_dim).apply(critic, batch.obs, action).min(0)
    loss = (jnp.exp(log_alpha) * log_prob - q).mean()
    return loss, {"losses/actor_loss": loss, "losses/entropy": -log_prob.mean()}


def alpha_loss(log_alpha, entropy, action_dim):
    """Raises the temperature while the entropy is below its target. Paper, equation 18."""
    loss = jnp.exp(log_alpha) * (entropy + action_dim / 2)  # target -dim(A)/2: SR-SAC's; the SAC paper has -dim(A)
    return loss, {"losses/alpha_loss": loss, "losses/alpha": jnp.exp(log_alpha)}


def descend(args, loss, params, opt_state, *inputs):
    """One Adam step on `loss(params, *inputs)` -> parameters, state of the optimizer, info."""
    grad, info = jax.grad(loss, has_aux=True)(params, *inputs)
    change, opt_state = optimizer(args).update(grad, opt_state)
    info |= {f"losses/{loss.__name__.replace('loss', 'grad_norm')}": optax.tree.norm(grad)}
    return optax.apply_updates(params, change), opt_state, info


def update(args, old, batch, key):
    """One gradient update of critic, target, actor and temperature, in this order: the actor sees the new critic."""
    key, actor_key = jax.random.split(key)
    critic, critic_opt, one = descend(args, critic_loss, old.critic, old.critic_opt, args, old, batch, key)
    target_critic = optax.incremental_update(critic, old.target_critic, args.tau)
    given = (args, critic, old.log_alpha, batch, actor_key)
    actor, actor_opt, two = descend(args, actor_loss, old.actor, old.actor_opt, *given)
    given = (two["losses/entropy"], batch.action.shape[-1])
    log_alpha, alpha_opt, three = descend(args, alpha_loss, old.log_alpha, old.alpha_opt, *given)
    return Learner(actor, critic, target_critic, log_alpha, actor_opt, critic_opt, alpha_opt), one | two | three


def updates_by(args, step):  # floor(step * replay_ratio), exact in integers, of Python's or JAX's kind
    n, d = fractions.Fraction(str(args.replay_ratio)).as_integer_ratio()
    return step // d * n + step % d * n // d


def resets_by(args, step):
    return updates_by(args, step) // args.reset_interval if args.reset_interval else 0


def train_step(args, env_step, state, _):
    """Perhaps the reset that the last step made due, then one environment step and the updates that are due."""
    key, act_key, random_key, update_key, reset_key = jax.random.split(state.key, 5)
    due = (state.step > 0) & (resets_by(args, state.step) > resets_by(args, state.step - 1))
    fresh = partial(init_learner, args, reset_key, state.obs, state.replay.action[0])  # new weights, never the first
    state = state.replace(learner=jax.lax.cond(due, fresh, lambda: state.learner))
    step = state.step + 1
    learning = step >= args.learning_starts
    action, _ = sample_action(args, state.learner.actor, state.obs, act_key, state.replay.action.shape[-1])
    draw = jax.random.uniform(random_key, action.shape, minval=-1, maxval=1)
    action = jnp.where(learning & jnp.isfinite(action), action, draw)  # a NaN ends the run, but not in the environment
    env, (next_obs, reward, terminated, truncated) = env_step(state.env, action)
    row = Transition(state.obs, action, reward, terminated.astype(jnp.float32), next_obs)
    index = jnp.where(state.done, args.buffer_size, state.stored % args.buffer_size)  # a mere reset is not stored
    replay = jax.tree.map(lambda ring, x: ring.at[index].set(x, mode="drop"), state.replay, row)
    stored = state.stored + ~state.done

    def one_update(i, carry):
        learner, totals = carry
        sample_key, key = jax.random.split(jax.random.fold_in(update_key, i))
        index = jax.random.randint(sample_key, (args.batch_size,), 0, jnp.minimum(stored, args.buffer_size))
        learner, info = update(args, learner, jax.tree.map(lambda ring: ring[index], replay), key)
        return learner, totals | {tag: totals[tag] + x for tag, x in (info | {"updates": 1}).items()}

    due = jnp.where(learning, updates_by(args, step) - updates_by(args, step - 1), 0)  # 0 or 1 at ratios below 1
    learner, totals = jax.lax.fori_loop(0, due, one_update, (state.learner, state.totals))
    done, returned = terminated | truncated, jnp.where(state.done, 0.0, state.episode_return + reward)
    length = jnp.where(state.done, 0, state.episode_length + 1)
    ended = {"episodes": 1, "charts/episodic_return": returned, "charts/episodic_length": length}
    totals |= {tag: totals[tag] + jnp.where(done, x, 0) for tag, x in ended.items()}
    state = State(step, env, key, learner, replay, stored, next_obs, done, returned, length, totals)
    return state, (action, jnp.isfinite(jnp.stack(list(totals.values()))).all())


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def train_chunk(args, env_step, length, state):
    """`length` steps of all seeds -> state, what `train_step` gives out of each, leaves (num_seeds, length, ...)."""
    chunk = lambda state: jax.lax.scan(partial(train_step, args, env_step), state, None, length)
    return jax.vmap(chunk, in_axes=(AXES,), out_axes=(AXES, 0))(state)


def init_state(args, action_dim, env, seed, obs):
    key, learner_key = jax.random.split(jax.random.key(seed))
    zero, count, action = jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros(action_dim)
    learner = init_learner(args, learner_key, obs, action)
    row = Transition(obs, action, zero, zero, obs)
    rows = lambda n: jax.tree.map(lambda x: jnp.zeros((n, *x.shape)), row)
    tags = jax.eval_shape(partial(update, args), learner, rows(args.batch_size), key)[1]
    totals = dict.fromkeys((*tags, "updates", "episodes", "charts/episodic_return", "charts/episodic_length"), zero)
    return State(count, env, key, learner, rows(args.buffer_size), count, obs, count > 0, zero, count, totals)


def metrics(args, state):
    """What is logged, a dict per seed: tag -> mean since the last log. What does not exist yet is absent."""
    norm = jax.vmap(jax.jit(optax.tree.norm))
    now = {f"losses/{x}_norm": norm(getattr(state.learner, x)) for x in ("actor", "critic")}
    totals, now = jax.device_get((state.totals, now | {"charts/stored_transitions": state.stored}))
    updates = max(0, updates_by(args, int(state.step)) - updates_by(args, args.learning_starts - 1))
    known = {"charts/updates": updates, "charts/resets": resets_by(args, int(state.step) - 1)}
    counts = {"charts": totals.pop("episodes"), "losses": totals.pop("updates")}
    for i in range(len(counts["charts"])):
        means = {tag: (x[i], counts[tag.split("/")[0]][i]) for tag, x in totals.items()}
        means = {tag: x / count for tag, (x, count) in means.items() if count}
        yield means | {tag: x[i] for tag, x in now.items()} | known


@partial(jax.jit, static_argnums=(0, 3))
def greedy_action(args, actors, obs, action_dim):  # (num_seeds, episodes, obs_dim) -> (num_seeds, episodes, action_dim)
    return jax.vmap(lambda actor, obs: jnp.tanh(Actor(action_dim, args.hidden_dim).apply(actor, obs)[0]))(actors, obs)


def evaluate(args, actors, seeds, step, folders):
    """Plays episodes in a fresh pool, seeded by seed and step to be repeatable -> what is logged, a dict per seed."""
    shape = (len(seeds), args.eval_episodes)
    draw = lambda seed: jax.random.randint(jax.random.fold_in(jax.random.key(seed), step), shape[1:], 0, 2**31 - 1)
    pool, space, obs = make_pool(args.env_id, [int(x) for seed in seeds for x in draw(seed)], args.capture_video)
    returns, lengths, done, films = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool), [[] for _ in seeds]
    camera = 0 if isinstance(pool.observation_space, gymnasium.spaces.Dict) else None  # DMC's first follows the robot
    while not done.all():
        for i in np.flatnonzero(~done[:, 0]) if args.capture_video and lengths.max() % 2 == 0 else ():
            first = i * args.eval_episodes  # of the seed's environments
            films[i].append(pool.render(first, camera)[0] if hasattr(pool, "xla") else pool.envs[first].render())
        action = np.asarray(greedy_action(args, actors, obs.reshape(*shape, -1), *space.shape))
        obs, reward, terminated, truncated, _ = pool.step(unscale(space, action.reshape(-1, *space.shape)))
        obs, returns, lengths = flatten(args.env_id, obs), returns + ~done * reward.reshape(shape), lengths + ~done
        done |= (terminated | truncated).reshape(shape)
    for own, length, film, folder in zip(returns, lengths.mean(1), films, folders, strict=True):
        if film:
            movie = imageio.imwrite("<bytes>", film, **MP4, fps=pool.metadata.get("render_fps", 50) / 2)
            write(folder / f"videos/step_{step:010d}.mp4", movie)
        row = {"eval/episodic_return": own.mean(), "eval/episodic_length": length}
        yield row | {f"eval/episode_{i}": x for i, x in enumerate(own)}


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
    for name, value in dataclasses.asdict(args).items():
        least = 0 if name in ("seed", "gamma", "eval_interval", "checkpoint_interval", "reset_interval") else 1e-9
        most = 1 if name in ("gamma", "tau") else 2**31 - args.num_seeds
        fits = isinstance(value, str | bool) or least <= value <= most
        require(fits, f"--{name.replace('_', '-')} cannot be {value}")
    uneven = args.eval_interval % args.log_interval or args.checkpoint_interval % args.log_interval
    require(not uneven, "--eval-interval and --checkpoint-interval must be multiples of --log-interval")
    n, d = fractions.Fraction(str(args.replay_ratio)).as_integer_ratio()
    require(n * d < 2**31 > args.total_timesteps * n / d, "--replay-ratio has too many digits, or makes 2^31 updates")
    require(args.learning_starts <= args.total_timesteps, "--learning-starts lies after the end, --total-timesteps")
    enough = args.batch_size <= min(args.buffer_size, args.learning_starts)
    require(enough, f"--batch-size {args.batch_size} is more than what is stored when learning starts")


def main(args: Args):
    check(args)
    _, space, obs = make_pool(args.env_id, [args.seed], args.capture_video)
    needed = 4e-9 * (2 * obs.size + space.shape[0] + 2) * args.buffer_size * args.num_seeds
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
    env, obs, env_step = make_env(args.env_id, seeds)
    init = jax.vmap(partial(init_state, args, *space.shape), in_axes=(None, 0, 0), out_axes=AXES)
    step, state = restore(folders, jax.jit(init), None, jnp.array(seeds), obs)
    if args.evaluate:
        require(step, f"{folders[0]} holds no checkpoint to evaluate")
        for seed, row in zip(seeds, evaluate(args, state.learner.actor, seeds, step, folders), strict=True):
            print(f"seed {seed}, step {step:,}:", *(f"{tag.removeprefix('eval/')} {x:.1f}" for tag, x in row.items()))
        return
    outputs = [(folder, *start(folder, step, seeds)) for folder in folders]
    print(f"from step {step:,} to {args.total_timesteps:,} with seeds {seeds} on {jax.devices()[0]}", flush=True)
    read = lambda folder: np.resize(np.fromfile(folder / "actions.f32", np.float32), (step, *space.shape))
    actions = [np.stack([read(folder) for folder in folders])] if step else []
    if not step:
        save(outputs, state, 0.0)  # so that all seeds share one at all times
    else:
        step_all = jax.jit(jax.vmap(env_step, in_axes=(None, 0), out_axes=(None, 0)))
        for action in tqdm.tqdm(actions[0].swapaxes(0, 1), "replaying", disable=None):  # no pool can be saved
            env, (obs, *_) = step_all(env, action)
        require(np.array_equal(obs, state.obs), f"{args.env_id} does not repeat itself (a clock?); see --overwrite")
    state = state.replace(env=env)
    stop = []  # signals so far: the first ends the chunk under way and saves, a second one ends the program
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: (stop.append(number), signal.signal(number, signal.SIG_DFL)))
    most = max(1, 1000 / (args.replay_ratio * len(seeds)))  # steps of a few seconds: between chunks, signals are served
    size = max(n for n in range(1, args.log_interval + 1) if args.log_interval % n == 0 and n <= most)
    bar = tqdm.tqdm(total=args.total_timesteps, initial=step, unit="step", disable=None, smoothing=0.05)
    begin, clock, since = time.time(), time.time(), step
    while step < args.total_timesteps and not stop:
        length = min(size - step % size, args.total_timesteps - step)
        state, (taken, finite) = jax.block_until_ready(train_chunk(args, env_step, length, state))
        actions.append(np.asarray(taken))
        for late, i in np.argwhere(~np.asarray(finite).T)[:1]:
            where = f"in step {step + late + 1} of seed {seeds[i]} a loss was NaN or infinite"
            require(False, f"{where}; the checkpoint of step {max(checkpoints(folders[i]))} is kept in {folders[i]}")
        step += length
        if step % args.log_interval == 0:
            due, sps = args.eval_interval and step % args.eval_interval == 0, (step - since) / (time.time() - clock)
            evaluations = evaluate(args, state.learner.actor, seeds, step, folders) if due else [{}] * len(seeds)
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
                write(folder / "actions.f32", own.tobytes())
            save(outputs, state.replace(env=None), time.time() - begin)
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
