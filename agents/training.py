"""Training of agents (step 2 of the paper) with Stable-Baselines3, and what a run leaves behind.

A run's folder holds `config.json` and `versions.json`, `best/` and `agent/` (the best and the last agent), `state.zip`
(Stable-Baselines3's own state) and `state-STEPS.pkl` (environments, buffer and random generators), for going on,
`evaluations.csv` (the learning curve), `outcomes.npz` (what every start, or every number of even steps, gives on the pictures of
the evaluation) and TensorBoard's files.
"""

import math
import pickle
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from agents.agent import Agent, AgentConfig, policy_settings
from agents.algorithms import algorithm_class, frame_stacked, policy_alias
from agents.hyperparameters import OFF_POLICY, Hyperparameters
from agents.learning_curve import Evaluation, read_curve, write_curve
from agents.outcomes import Outcomes, even_outcomes
from agents.playing import AgentPolicy, play
from agents.vec_env import VecPictureBaseline, check_buffer, get_state, make_env, set_state
from ddpm.checkpoints import check_device
from ddpm.errors import CheckpointError, ConfigError
from ddpm.images import atomic_path
from ddpm.runs import read_json, start_run
from skipdiff_env.config import TaskConfig
from skipdiff_env.episode import StartOutcomes
from skipdiff_env.memo import Memo
from skipdiff_env.refinement import Action
from skipdiff_env.rules import quality
from skipdiff_env.task import Task

# What may change when a run goes on.
RESUMABLE = frozenset({"env_steps", "minutes", "eval_every", "cache_mb", "device"})
# Episodes that the logged means are taken over.
WINDOW = 100
# Qualities at which an agent is evaluated that is told the price of a forward.
QUALITIES = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class AgentTrainingConfig:
    """Settings of a training run; `config.json` in the run's folder.

    Attributes:
        algorithm: "ppo", "a2c", "dqn", "qrdqn", "trpo" or "recurrent-ppo".
        env: arguments of `skipdiff_env.env.SkipDiffEnv`, without `cache_mb`, `device` and `render_mode`.
        hyperparameters: of the algorithm.
        eval_images: pictures that the agent is evaluated on; None: those it is trained on.
        eval_noise_seeds: noises of each of these.
        eval_first_seed: the first of their noise seeds, the others counting up from there; from `noise_seeds` of the environment
            on, training never saw them.
        eval_every: episodes between two evaluations.
        warm_cache: whether every start of every training picture is computed before training begins. Training then
            runs no UNet, and the regret of its episodes is known.
        oracle: whether every start of the evaluation's pictures is computed, so that the best fixed start and the oracle are
            known; N (N + 1) / 2 forwards for each picture and noise, which are many where the plan's first step is T. Under
            "jump" every number of even steps takes the place of the starts.
        minutes: when to stop, if `env_steps` have not been done by then.
        cache_mb: room for remembered latents; None: as much as they need, if it is there.
        seed: seed of everything random.
        device: where to compute.
    """

    algorithm: str = "ppo"
    env: Mapping[str, Any] = field(default_factory=dict)
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    eval_images: Sequence[str] | None = None
    eval_noise_seeds: int = 1
    eval_first_seed: int = 0
    eval_every: int = 400
    warm_cache: bool = False
    oracle: bool = True
    minutes: float | None = None
    cache_mb: float | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        algorithm_class(self.algorithm)
        for name in ("eval_noise_seeds", "eval_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "eval_first_seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.minutes is not None and not self.minutes > 0:
            raise ConfigError(f"minutes must be positive, got {self.minutes}")
        if self.warm_cache and self.env.get("noise_seeds") is None:
            raise ConfigError("warm_cache needs a finite number of noises; set noise_seeds")
        skip_mode = self.env.get("skip_mode", "restart")
        if self.warm_cache and skip_mode != "restart":
            raise ConfigError(
                f"warm_cache needs skip_mode restart, got {skip_mode}, where episodes have too many results"
            )
        if self.hyperparameters.undone_price is not None and skip_mode != "restart":
            raise ConfigError(
                f"undone_price needs skip_mode restart, got {skip_mode}: there no decision is undone; leave it out"
            )

    @property
    def observation(self) -> str:
        """What the agent sees, "latent" or "dict"."""
        return str(self.env.get("observation", "latent"))


class Evaluator:
    """Plays fixed pictures and noises, and compares with what each start would have given.

    Where each episode of the training has a price of its own, figures are means over three prices, the highest, the lowest and
    the one between.

    Args:
        task: its pictures are the ones played.
        noise_seeds: noises of each picture.
        oracle: whether to compute what each start, or each number of even steps, would have given.
        first_seed: the first of the noise seeds.
    """

    def __init__(self, task: Task, noise_seeds: int, oracle: bool = True, first_seed: int = 0) -> None:
        self.task = task
        pictures, seeds = range(len(task.pictures)), range(first_seed, first_seed + noise_seeds)
        self.images = [image for image in pictures for _ in seeds]
        self.noise_seeds = [seed for _ in pictures for seed in seeds]
        self.outcomes: StartOutcomes | Outcomes | None = None
        if oracle and task.plan.skip_mode == "restart":
            self.outcomes = tabulate(task, seeds)
        elif oracle:
            self.outcomes = even_outcomes(task, pictures, seeds, range(1, task.plan.first + 1))

    def _rewards(self, price: float) -> NDArray[np.float64] | None:
        """Rewards of everything tabulated, (pictures, noises, starts or schedules)."""
        if not isinstance(self.outcomes, Outcomes):
            return None if self.outcomes is None else self.outcomes.rewards
        metric, kind = self.task.metric, self.task.config.reward
        gained = np.vectorize(lambda value: quality(value, metric.lower_better, kind))
        return gained(self.outcomes.metrics[metric.name]) - price * np.array(self.outcomes.forwards)

    def __call__(self, agent: Agent, env_steps: int, seconds: float) -> Evaluation:
        """Evaluates an agent that has learnt from `env_steps` decisions in `seconds`."""
        told = agent.config.price_range is not None
        prices = [agent.config.price(quality) for quality in QUALITIES] if told else [None]
        episodes, best_fixed, oracle = [], [], []
        for price in prices:
            policy = AgentPolicy(agent, price=price)
            episodes += play(self.task, policy, self.images, self.noise_seeds, price=price)
            rewards = self._rewards(self.task.price if price is None else price)
            best_fixed.append(np.nan if rewards is None else float(rewards.mean(axis=(0, 1)).max()))
            oracle.append(np.nan if rewards is None else float(rewards.max(axis=2).mean()))
        reward = float(np.mean([episode.reward for episode in episodes]))
        return Evaluation(
            env_steps=env_steps,
            episodes=env_steps // self.task.decisions,
            seconds=round(seconds, 1),
            reward=reward,
            regret=float(np.mean(oracle)) - reward,
            start=float(np.mean([episode.refinement.start for episode in episodes])),
            skips=float(np.mean([action for episode in episodes for action in episode.actions])),
            nfe=float(np.mean([episode.refinement.nfe for episode in episodes])),
            best_fixed_reward=float(np.mean(best_fixed)),
            oracle_reward=float(np.mean(oracle)),
        )


def tabulate(task: Task, seeds: Sequence[int]) -> StartOutcomes:
    """Outcomes of every start for each picture of a task under each noise seed, with a progress bar."""
    group = max(1, task.config.batch_size // len(seeds))
    parts = []
    with tqdm(total=len(task.pictures), desc="every start", unit="picture", dynamic_ncols=True, leave=False) as bar:
        for first in range(0, len(task.pictures), group):
            pictures = range(first, min(first + group, len(task.pictures)))
            parts.append(task.start_outcomes(pictures, seeds))
            bar.update(len(pictures))
    return StartOutcomes(
        np.concatenate([part.rewards for part in parts]),
        {name: np.concatenate([part.metrics[name] for part in parts]) for name in task.metrics},
    )


class TrainingCallback(BaseCallback):
    """Bar, TensorBoard, evaluations, agents and state of a run.

    Args:
        config: of the run.
        folder: of the run.
        evaluator: plays the evaluation's pictures.
        agent_config: of the agents to be saved.
        rewards: rewards of every start, (pictures, noises, N), by which the regret of training episodes is known.
        curve: evaluations of the run so far.
        bar: shows the progress.
    """

    def __init__(
        self,
        config: AgentTrainingConfig,
        folder: Path,
        evaluator: Evaluator,
        agent_config: AgentConfig,
        rewards: NDArray[np.float64] | None,
        curve: list[Evaluation],
        bar: "tqdm[Any]",
    ) -> None:
        super().__init__()
        self.bar = bar
        self.config, self.folder, self.evaluator, self.agent_config = config, folder, evaluator, agent_config
        self.rewards, self.curve = rewards, curve
        self.window: dict[str, deque[float]] = {}
        self.began = time.perf_counter()
        self.earlier = curve[-1].seconds if curve else 0.0
        self.evaluating = 0.0
        self.evaluated = curve[-1].env_steps if curve else -1
        self.began_at = 0
        self.stopping = False

    @property
    def seconds(self) -> float:
        """Wall time of training, without the evaluations."""
        return self.earlier + time.perf_counter() - self.began - self.evaluating

    def agent(self) -> Agent:
        """The agent as it is now."""
        training = {**self.agent_config.training, "env_steps": self.num_timesteps}
        return Agent(replace(self.agent_config, training=training), self.model.policy)

    def _on_rollout_start(self) -> None:
        if self.evaluated < 0 or self.due:
            self.evaluate()
        late = self.config.minutes is not None and self.seconds >= 60 * self.config.minutes
        if self.stopping or (late and self.num_timesteps > self.began_at):
            raise _StoppedError
        if isinstance(self.model, OnPolicyAlgorithm):
            self._remember(True)

    @property
    def due(self) -> bool:
        """Whether it is time for another evaluation."""
        return self.num_timesteps >= self.evaluated + self.config.eval_every * self.evaluator.task.decisions

    def _remember(self, on: bool) -> None:
        if self.config.observation == "latent":
            self.agent().extractor.remember(on)

    def _on_training_start(self) -> None:
        self.began_at = self.num_timesteps

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        self._add("skips", float(np.mean(self.locals["actions"])))
        for done, info in zip(self.locals["dones"], self.locals["infos"], strict=True):
            if done:
                self._ended(info)
        return True

    def _ended(self, info: Mapping[str, Any]) -> None:
        reward = float(info["episode"]["r"])
        self._add("reward", reward)
        self._add("start", info["start"])
        self._add("nfe", info["nfe"])
        if self.rewards is not None:
            self._add("regret", self.rewards[info["image_index"], info["noise_seed"]].max() - reward)

    def _add(self, name: str, value: float) -> None:
        self.window.setdefault(name, deque(maxlen=WINDOW)).append(value)

    def _on_rollout_end(self) -> None:
        means = {name: float(np.mean(values)) for name, values in self.window.items()}
        if isinstance(self.model, OnPolicyAlgorithm):
            self._remember(False)
            # the mean of -log p over what was drawn estimates the entropy without bias
            means["entropy"] = -float(self.model.rollout_buffer.log_probs.mean())
        for name, value in means.items():
            self.logger.record(f"rollout/{name}", value)
        shown: dict[str, object] = {k: f"{means[k]:.4g}" for k in ("reward", "regret", "start") if k in means}
        self.bar.set_postfix(shown, refresh=False)

    def evaluate(self) -> None:
        """Evaluates, extends the learning curve, and saves the agents and the state."""
        began = time.perf_counter()
        agent = self.agent()
        evaluation = self.evaluator(agent, self.num_timesteps, self.seconds)
        best = max((e.reward for e in self.curve), default=-np.inf)
        self.curve.append(evaluation)
        self.evaluated = self.num_timesteps
        for name, value in asdict(evaluation).items():
            if name not in ("env_steps", "episodes", "seconds"):
                self.logger.record(f"eval/{name}", value)
        self.logger.dump(self.num_timesteps)
        write_curve(self.curve, self.folder / "evaluations.csv")
        known = {name: value for name, value in asdict(evaluation).items() if not math.isnan(value)}  # JSON has no NaN
        agent = Agent(replace(agent.config, training={**agent.config.training, "evaluation": known}), agent.policy)
        agent.save(self.folder / "agent")
        if evaluation.reward > best:
            agent.save(self.folder / "best")
        self.save_state()
        text = f"{evaluation.episodes} episodes, {evaluation.seconds:.0f} s: reward {evaluation.reward:.4f}"
        if self.evaluator.outcomes is not None:
            fixed = "start" if isinstance(self.evaluator.outcomes, StartOutcomes) else "number of steps"
            text += f" (best fixed {fixed} {evaluation.best_fixed_reward:.4f}, oracle {evaluation.oracle_reward:.4f})"
        tqdm.write(f"{text}, mean start {evaluation.start:.2f}, {evaluation.nfe:.1f} forwards")
        self.evaluating += time.perf_counter() - began

    def save_state(self) -> None:
        """Saves what a run needs to go on exactly as if it had never stopped."""
        state = {
            "env": get_state(self.training_env),
            "replay_buffer": getattr(self.model, "replay_buffer", None),
            "lstm_states": getattr(self.model, "_last_lstm_states", None),
            "python": random.getstate(),
            "numpy": np.random.get_state(),  # noqa: NPY002  # what Stable-Baselines3 draws from
            "torch": torch.get_rng_state(),
        }
        path = _state_file(self.folder, self.num_timesteps)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            pickle.dump(state, file)
        with atomic_path(self.folder / "state.zip") as temporary:
            self.model.save(temporary)
        for other in self.folder.glob("state-*.pkl"):  # those of earlier states
            if other != path:
                other.unlink()


class _StoppedError(Exception):
    """Training stops between two rollouts, where its state is whole."""


def _state_file(folder: Path, env_steps: int) -> Path:
    return folder / f"state-{env_steps}.pkl"


@contextmanager
def _interruptible(callback: TrainingCallback) -> Iterator[None]:
    """Lets Ctrl-C stop training at the end of a rollout; a second one stops it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        if callback.stopping:
            raise KeyboardInterrupt
        callback.stopping = True
        tqdm.write("stops after this rollout; press Ctrl-C again to stop at once")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def resumed_config(folder: Path, changes: Mapping[str, Any]) -> AgentTrainingConfig:
    """The configuration of the run in `folder` with some settings changed.

    Raises:
        ConfigError: there is no run, or a setting may not change.
    """
    if not (folder / "state.zip").is_file():
        raise ConfigError(f"nothing to resume in {folder}: it holds no state.zip")
    stored = read_json(folder / "config.json")
    fixed = sorted(changes.keys() - RESUMABLE)
    if fixed:
        raise ConfigError(
            f"{', '.join(fixed)} cannot change when a run goes on; start a new run, or change only "
            f"{', '.join(sorted(RESUMABLE))}"
        )
    changes = dict(changes)
    try:
        hyperparameters = Hyperparameters(**stored.pop("hyperparameters"))
        if "env_steps" in changes:
            hyperparameters = replace(hyperparameters, env_steps=changes.pop("env_steps"))
        return AgentTrainingConfig(**{**stored, **changes}, hyperparameters=hyperparameters)
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{folder}/config.json does not hold the settings of a training ({error})") from None


def _cache(config: AgentTrainingConfig, task: Task, noise_seeds: int | None) -> int:
    """Bytes for remembered latents: as many as all (picture, noise) pairs need, at most a third of what is free."""
    if config.cache_mb is not None:
        return int(config.cache_mb * 2**20)
    N, side = task.plan.first, task.config.image_size
    free = psutil.virtual_memory().available // 3
    if noise_seeds is None:
        return min(2**29, free)
    # N (N + 1) / 2 + 1 latents, target and condition, and what the entries cost beside them
    return min(int(1.1 * len(task.pictures) * noise_seeds * (N * (N + 1) / 2 + 4) * 12 * side**2), free)


def describe_buffer(config: AgentTrainingConfig, env: VecEnv) -> str:
    """Checks and describes the memory of the rollout or replay buffer; see `agents.vec_env.check_buffer`."""
    h = config.hyperparameters
    decisions = env.unwrapped.get_attr("decisions")[0]
    settings = h.algorithm_settings(config.algorithm, decisions, config.observation)
    if config.algorithm in OFF_POLICY:
        return check_buffer(
            "replay buffer", env.observation_space, int(settings["buffer_size"]), 2 * int(settings["batch_size"]),
            "lower -p buffer_size=… or -p batch_size=…, or take --obs-dtype float16", twice=True,
        )  # fmt: skip
    size = h.n_envs * int(settings["n_steps"])
    return check_buffer(
        "rollout buffer", env.observation_space, size, min(size, int(settings.get("batch_size", size))),
        "lower -p n_envs=… or -p episodes_per_rollout=…, or take --obs-dtype float16",
    )  # fmt: skip


def make_model(config: AgentTrainingConfig, env: VecEnv) -> Any:
    """The algorithm, untrained, on an environment of `make_env`."""
    h = config.hyperparameters
    seen = config.observation
    settings = h.algorithm_settings(config.algorithm, env.unwrapped.get_attr("decisions")[0], seen)
    algorithm: Any = algorithm_class(config.algorithm)
    policy_kwargs = policy_settings(config.algorithm, h.policy_settings(seen), seen)
    model = algorithm(
        policy_alias(config.algorithm, seen), env, policy_kwargs=policy_kwargs, seed=config.seed, device=config.device,
        **settings,
    )  # fmt: skip
    if h.skip_probability is not None:
        with torch.no_grad():
            model.policy.action_net.bias[Action.SKIP] += math.log(h.skip_probability / (1 - h.skip_probability))
    return model


def train_agent(
    config: AgentTrainingConfig, folder: Path, resume: bool = False, memory: tuple[Memo, Memo] | None = None
) -> Path:
    """Trains an agent.

    Args:
        config: settings.
        folder: of the run.
        resume: go on with the run in `folder`.
        memory: where the transitions on the pictures of the training and of the evaluation are remembered, so that another
            run on the same pictures, with another seed or other hyperparameters, need not compute them again.

    Returns:
        Folder of the best agent.

    Raises:
        ConfigError: the folder holds a run already, a setting does not fit, or memory is short.
        CheckpointError: the checkpoint, or the state to go on from, is unknown or damaged.
    """
    if not resume and (folder / "state.zip").exists():
        raise ConfigError(f"{folder} holds a run; go on with --resume, or choose another folder")
    check_device(config.device)
    h = config.hyperparameters
    noise_seeds = config.env.get("noise_seeds")
    env = make_env(
        h.n_envs, frame_stack=frame_stacked(config.algorithm, config.observation), latent_size=h.spn_size, seed=config.seed,
        device=config.device, **config.env,
    )  # fmt: skip
    if h.picture_baseline:
        env = VecPictureBaseline(env)
    task: Task = env.unwrapped.get_attr("task")[0]
    tqdm.write(describe_buffer(config, env))
    memory = memory or (task.memo, Memo(0))
    task.remember_in(memory[0])
    task.memo.capacity = _cache(config, task, noise_seeds)

    if config.eval_images is None:
        evaluated = task
    else:
        settings = {**config.env, "images": list(config.eval_images)}
        evaluated = Task(TaskConfig.of({**settings, "device": config.device}))
        evaluated.remember_in(memory[1])
        evaluated.memo.capacity = _cache(config, evaluated, config.eval_noise_seeds)
    evaluator = Evaluator(evaluated, config.eval_noise_seeds, config.oracle, config.eval_first_seed)
    rewards = None
    if task.plan.skip_mode == "restart":
        if config.warm_cache:
            assert noise_seeds is not None, "the configuration refuses it"
            rewards = tabulate(task, range(noise_seeds)).rewards
        elif (
            isinstance(evaluator.outcomes, StartOutcomes)
            and evaluated is task
            and noise_seeds is not None
            and noise_seeds <= config.eval_noise_seeds
            and config.eval_first_seed == 0
        ):
            rewards = evaluator.outcomes.rewards

    start_run(folder, asdict(config))
    _write_outcomes(folder / "outcomes.npz", evaluator.outcomes)
    agent_config = _agent_config(config, env, task)
    model, curve = _resumed(config, folder, env) if resume else (make_model(config, env), [])
    model.set_logger(configure(str(folder / "tensorboard"), ["tensorboard"]))
    left = h.env_steps - model.num_timesteps
    title = f"train-agent {config.algorithm}"
    with tqdm(total=h.env_steps, initial=model.num_timesteps, desc=title, unit="step", dynamic_ncols=True) as bar:
        callback = TrainingCallback(config, folder, evaluator, agent_config, rewards, curve, bar)
        interval = {} if config.algorithm in OFF_POLICY else {"log_interval": 1}
        if left > 0:
            with _interruptible(callback), suppress(_StoppedError):
                model.learn(left, callback, reset_num_timesteps=not resume, **interval)
            if callback.stopping:
                callback.save_state()
                raise KeyboardInterrupt
            if callback.evaluated < model.num_timesteps:
                callback.evaluate()
    env.close()
    return folder / "best"


def _write_outcomes(path: Path, outcomes: StartOutcomes | Outcomes | None) -> None:
    if isinstance(outcomes, Outcomes):
        outcomes.save(path)
    elif outcomes is not None:
        with atomic_path(path) as temporary:
            np.savez(temporary, rewards=outcomes.rewards, **outcomes.metrics)  # type: ignore[arg-type]


def _agent_config(config: AgentTrainingConfig, env: VecEnv, task: Task) -> AgentConfig:
    """The configuration of the run's agents."""
    space, own = env.observation_space, task.observation_space
    if isinstance(space, spaces.Dict):
        space, own = space["latent"], space["latent"]
    assert space.shape is not None
    assert isinstance(own, spaces.Box)
    return AgentConfig(
        config.algorithm, task.decisions, space.shape[-1], float(own.high.max()), task.plan,
        config.hyperparameters.policy_settings(config.observation), _record(config), config.observation,
        task.config.price_range if config.observation == "dict" else None,
    )  # fmt: skip


def _record(config: AgentTrainingConfig) -> dict[str, Any]:
    """What an agent's configuration says about its training."""
    env = {key: value for key, value in config.env.items() if key != "images"}
    return {
        "env": {**env, "checkpoint": str(env.get("checkpoint"))},
        "hyperparameters": asdict(config.hyperparameters),
        "seed": config.seed,
    }


def _resumed(config: AgentTrainingConfig, folder: Path, env: VecEnv) -> tuple[Any, list[Evaluation]]:
    """The model and the learning curve of a run that goes on."""
    try:
        model: Any = algorithm_class(config.algorithm).load(
            folder / "state.zip", env=env, device=config.device, force_reset=False
        )
    except Exception as error:  # pickles raise anything
        raise CheckpointError(f"{folder}/state.zip is damaged ({error}); start a new run") from None
    curve = read_curve(folder / "evaluations.csv")
    path = _state_file(folder, model.num_timesteps)
    try:
        state = pickle.loads(path.read_bytes())
        set_state(env, state["env"])
    except Exception as error:  # pickles raise anything
        raise CheckpointError(f"{path} is missing or damaged ({error}); start a new run") from None
    if state["replay_buffer"] is not None:
        model.replay_buffer = state["replay_buffer"]
    if state["lstm_states"] is not None:
        model._last_lstm_states = state["lstm_states"]
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002  # what Stable-Baselines3 draws from
    torch.set_rng_state(state["torch"])
    return model, [evaluation for evaluation in curve if evaluation.env_steps <= model.num_timesteps]
