"""Training of agents (step 2 of the paper) with Stable-Baselines3, and the files of a run.

The folder of a run holds `config.json` and `versions.json`; `best/` and `agent/` (the best and the last agent);
`state.zip` (the state of Stable-Baselines3) and `state-STEPS.pkl` (environments, buffer and random generators), from
which a run is resumed; `evaluations.csv` (the learning curve); `outcomes.npz` (the outcomes of every start, or of every
number of even steps, on the pictures of the evaluation); and TensorBoard's files.
"""

import math
import pickle
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from agents.agent import Agent, AgentConfig
from agents.algorithms import algorithm_class, frame_stacked, policy_alias
from agents.exporting import configuration
from agents.networks.extractors import SkipProposalExtractor
from agents.policies import NotFiniteError, acting_part, check_outputs
from agents.study.tables import write_csv
from agents.training.config import STATE, AgentTrainingConfig
from agents.training.evaluator import Evaluator
from agents.training.hyperparameters import OFF_POLICY
from agents.training.learning_curve import CurvePoint, read_curve
from agents.training.vec_env import VecPictureBaseline, check_buffer, get_state, make_env, set_state
from ddpm.checkpoints import check_device
from ddpm.training.runs import check_new_run, lock_run, start_run
from ddpm.util.errors import CheckpointError, ConfigError
from ddpm.util.files import atomic_path
from ddpm.util.progress import progress
from skipdiff_env.config import TaskConfig
from skipdiff_env.memo import Memo
from skipdiff_env.refinement import Action
from skipdiff_env.task import Task

# Number of episodes in the logged means.
WINDOW = 100


class TrainingCallback(BaseCallback):
    """Callback for the progress bar, TensorBoard, the evaluations, the agents and the state of a run.

    Args:
        config: settings of the run.
        folder: folder of the run.
        evaluator: evaluator of the agent.
        agent_config: configuration of the saved agents.
        rewards: rewards of every start, (pictures, noises, N), for the regret of training episodes.
        curve: evaluations of the run so far.
        bar: progress bar.
        started: time by `time.perf_counter` at which the run started or was resumed; `minutes` count from there.
    """

    def __init__(
        self,
        config: AgentTrainingConfig,
        folder: Path,
        evaluator: Evaluator,
        agent_config: AgentConfig,
        rewards: NDArray[np.float64] | None,
        curve: list[CurvePoint],
        bar: "tqdm[Any]",
        started: float,
    ) -> None:
        super().__init__()
        self.bar, self.started = bar, started
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
        """Return the present agent."""
        training = {**self.agent_config.training, "env_steps": self.num_timesteps}
        return Agent(replace(self.agent_config, training=training), self.model.policy)

    def _on_rollout_start(self) -> None:
        if self.evaluated < 0 or self.due:
            self.evaluate()
        spent = self.earlier + time.perf_counter() - self.started
        late = self.config.minutes is not None and spent >= 60 * self.config.minutes
        if self.stopping or (late and self.num_timesteps > self.began_at):
            raise _StoppedError
        if isinstance(self.model, OnPolicyAlgorithm):
            self._remember(True)

    @property
    def due(self) -> bool:
        """Whether an evaluation is due."""
        return (
            self.num_timesteps >= self.evaluated + self.config.eval_every * self.agent_config.make_decisions().longest
        )

    def _remember(self, on: bool) -> None:
        if isinstance(extractor := getattr(self.model.policy, "features_extractor", None), SkipProposalExtractor):
            extractor.remember(on)

    def _on_training_start(self) -> None:
        self.began_at = self.num_timesteps

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        if self.agent_config.kind == "skip":
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
            # the mean of -log p over the drawn actions is an unbiased estimate of the entropy
            means["entropy"] = -float(self.model.rollout_buffer.log_probs.mean())
        for name, value in means.items():
            self.logger.record(f"rollout/{name}", value)
        shown: dict[str, object] = {k: f"{means[k]:.4g}" for k in ("reward", "regret", "start") if k in means}
        self.bar.set_postfix(shown, refresh=False)

    def evaluate(self) -> None:
        """Evaluate the agent, extend the learning curve, and save the agents and the state."""
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
        write_csv(self.folder / "evaluations.csv", list(map(asdict, self.curve)))
        known = {name: value for name, value in asdict(evaluation).items() if not math.isnan(value)}  # JSON has no NaN
        agent = Agent(replace(agent.config, training={**agent.config.training, "evaluation": known}), agent.policy)
        agent.save(self.folder / "agent")
        if evaluation.reward > best:
            agent.save(self.folder / "best")
        self.save_state()
        text = f"{evaluation.episodes} episodes, {evaluation.seconds:.0f} s: reward {evaluation.reward:.4f}"
        if self.evaluator.outcomes is not None:
            restarts = self.evaluator.task.plan.skip_mode == "restart"
            fixed = "start" if restarts else "number of steps"
            text += f" (best fixed {fixed} {evaluation.best_fixed_reward:.4f}, oracle {evaluation.oracle_reward:.4f})"
        tqdm.write(f"{text}, mean start {evaluation.start:.2f}, {evaluation.nfe:.1f} forwards")
        self.evaluating += time.perf_counter() - began

    def save_state(self) -> None:
        """Save the state from which a run continues exactly as if it had not stopped."""
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
        with atomic_path(self.folder / STATE) as temporary:
            self.model.save(temporary)
        for other in self.folder.glob("state-*.pkl"):  # the files of earlier states
            if other != path:
                other.unlink()


class _StoppedError(Exception):
    """The signal to stop a training between two rollouts, where its state is complete."""


def _state_file(folder: Path, env_steps: int) -> Path:
    return folder / f"state-{env_steps}.pkl"


@contextmanager
def _interruptible(callback: TrainingCallback) -> Iterator[None]:
    """Let Ctrl-C stop the training at the end of a rollout; a second Ctrl-C stops it at once."""
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


def _cache(config: AgentTrainingConfig, task: Task, noise_seeds: int | None) -> int:
    """Return the bytes for remembered latents of all (picture, noise) pairs, at most a third of the free memory."""
    if config.cache_mb is not None:
        return int(config.cache_mb * 2**20)
    N, side = task.plan.first, task.config.image_size
    free = psutil.virtual_memory().available // 3
    if noise_seeds is None:
        return min(2**29, free)
    # N (N + 1) / 2 + 1 latents, target and condition, and the overhead of the entries
    return min(int(1.1 * len(task.pictures) * noise_seeds * (N * (N + 1) / 2 + 4) * 12 * side**2), free)


def describe_buffer(config: AgentTrainingConfig, env: VecEnv) -> str:
    """Check and describes the memory of the rollout or replay buffer; see `agents.training.vec_env.check_buffer`."""
    h = config.hyperparameters
    settings = h.algorithm_settings(config.algorithm, env.unwrapped.get_attr("decisions")[0], config.observation)
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
    """Return the algorithm, untrained, on an environment of `make_env`."""
    h = config.hyperparameters
    seen = config.observation
    settings = h.algorithm_settings(config.algorithm, env.unwrapped.get_attr("decisions")[0], seen)
    algorithm: Any = algorithm_class(config.algorithm)
    try:
        model = algorithm(
            policy_alias(config.algorithm, seen), env, policy_kwargs=h.policy_settings(config.algorithm, seen),
            seed=config.seed, device=config.device, **settings,
        )  # fmt: skip
    except ConfigError:
        raise
    except Exception as error:  # for unusual settings, algorithms raise nearly any error
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"{config.algorithm} does not take these hyperparameters ({type(error).__name__}: {reason})"
        ) from None
    if h.skip_probability is not None:
        with torch.no_grad():
            model.policy.action_net.bias[Action.SKIP] += math.log(h.skip_probability / (1 - h.skip_probability))
    return model


def check_denoiser_of(task: Task) -> None:
    """Raise ConfigError if agents cannot observe the latents of a task's denoiser, or if the denoiser has no name."""
    if not isinstance(task.config.checkpoint, str | Path):
        raise ConfigError(
            f"a run writes down the name of its denoiser, and an object of {task.config.name} has none; train on its "
            "environments with Stable-Baselines3 itself, as examples/bring_your_own.py does"
        )
    if task.config.observation != "features" and task.latent_shape[0] != 3:
        raise ConfigError(
            f"agents see latents of 3 channels, but those of {task.config.name} have {task.latent_shape[0]}; take an "
            "environment whose observation is features, or train on a table"
        )


def train_agent(
    config: AgentTrainingConfig, folder: Path, resume: bool = False, memory: tuple[Memo, Memo] | None = None
) -> Path:
    """Train an agent.

    Args:
        config: settings of the run.
        folder: folder of the run.
        resume: continue the run in `folder`.
        memory: memory of the transitions on the pictures of the training and the evaluation. Another run on the same
            pictures, with another seed or other hyperparameters, need not compute them again.

    Returns:
        Folder of the best agent.

    Raises:
        ConfigError: the folder holds a run already, a setting does not fit, or memory is short.
        CheckpointError: the checkpoint is unknown, or it or the state of the run is damaged.
    """
    started = time.perf_counter()
    check_new_run(folder, resume)
    check_device(config.device)
    h = config.hyperparameters
    noise_seeds = config.env.get("noise_seeds")
    env = make_env(
        h.n_envs,
        frame_stack=frame_stacked(config.algorithm, config.observation),
        latent_size=h.spn_size,
        seed=config.seed,
        device=config.device,
        cache_dir=config.cache_dir,
        **config.env,
    )
    if h.picture_baseline:
        env = VecPictureBaseline(env)
    task: Task = env.unwrapped.get_attr("task")[0]
    check_denoiser_of(task)
    tqdm.write(describe_buffer(config, env))
    if memory is not None:
        task.remember_in(memory[0])
    task.memo.capacity = _cache(config, task, noise_seeds)

    settings = {**config.env, "crop": "center"}
    if config.eval_images is not None:
        settings |= {"images": list(config.eval_images), "split": None}
    if config.eval_images is None and task.config.crop == "center":
        evaluated = task
    else:
        evaluated = Task(TaskConfig.of({**settings, "device": config.device, "cache_dir": config.cache_dir}))
        if memory is not None:
            evaluated.remember_in(memory[1])
        evaluated.memo.capacity = _cache(config, evaluated, config.eval_noise_seeds)
    evaluator = Evaluator(evaluated, config.eval_noise_seeds, config.oracle, config.eval_first_seed)
    # the regret of training episodes is known if the evaluation has tabulated all their pictures and noises
    same = evaluated is task and task.plan.skip_mode == "restart" and config.eval_first_seed == 0
    rewards = None
    if evaluator.outcomes is not None and same and (noise_seeds or math.inf) <= config.eval_noise_seeds:
        rewards = evaluator.outcomes.rewards()

    with lock_run(folder):
        begun = (folder / STATE).exists()
        fresh = None if begun else make_model(config, env)  # checks the settings before anything is written
        start_run(folder, asdict(config), task.pictures.digest(), begun)
        model, curve = _resumed(config, folder, env) if fresh is None else (fresh, [])
        if (outcomes := evaluator.outcomes) is not None:
            with atomic_path(folder / "outcomes.npz") as temporary:
                np.savez(temporary, rewards=outcomes.rewards(), **outcomes.metrics)  # type: ignore[arg-type]
        purge_step = model.num_timesteps + 1 if begun else None
        place = str(folder / "tensorboard")
        model.set_logger(Logger(place, [_TensorBoard(place, purge_step)]))
        agent_config = configuration(
            model, env, hyperparameters=asdict(config.hyperparameters), seed=config.seed
        )  # fmt: skip
        title = f"train-agent {config.algorithm}"
        with progress(total=h.env_steps, initial=model.num_timesteps, desc=title, unit="step") as bar:
            callback = TrainingCallback(config, folder, evaluator, agent_config, rewards, curve, bar, started)
            _learn(model, callback, h.env_steps - model.num_timesteps, begun)
    env.close()
    return folder / "best"


def _learn(model: Any, callback: TrainingCallback, left: int, begun: bool) -> None:
    """Train for a number of decisions, or until the callback stops the training."""
    if left <= 0:
        return
    interval = {} if callback.config.algorithm in OFF_POLICY else {"log_interval": 1}
    check_outputs(acting_part(model.policy))
    try:
        with _interruptible(callback), suppress(_StoppedError):
            model.learn(left, callback, reset_num_timesteps=not begun, **interval)
    except NotFiniteError:
        raise ConfigError(
            f"after {model.num_timesteps} decisions the policy returns numbers that are not finite; train with a lower "
            "-p learning_rate"
        ) from None
    if callback.stopping:
        callback.save_state()
        raise KeyboardInterrupt
    if callback.evaluated < model.num_timesteps:
        callback.evaluate()


class _TensorBoard(TensorBoardOutputFormat):
    """A writer of TensorBoard's files that discards entries from `purge_step` on, which a killed run has logged."""

    def __init__(self, folder: str, purge_step: int | None) -> None:
        self.writer = SummaryWriter(folder, purge_step=purge_step)
        self._is_closed = False


def _resumed(config: AgentTrainingConfig, folder: Path, env: VecEnv) -> tuple[Any, list[CurvePoint]]:
    """Return the model and the learning curve of a run that is resumed."""
    try:
        model: Any = algorithm_class(config.algorithm).load(
            folder / STATE, env=env, device=config.device, force_reset=False
        )
    except Exception as error:  # pickles raise anything
        raise CheckpointError(f"{folder / STATE} is damaged ({error}); start a new run") from None
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
