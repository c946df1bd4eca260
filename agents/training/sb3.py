"""Training of agents (step 2 of the paper) with Stable-Baselines3, and the files of a run.

The folder of a run holds `config.json` and `versions.json`; `best/` and `agent/` (the best and the last agent);
`state.zip` (the model of Stable-Baselines3, its environments, buffer and random generators), from which a run is
resumed; `evaluations.csv` (the learning curve); and TensorBoard's files. Runs on pictures have `outcomes.npz`, the
outcomes of every start, or of every number of even steps, on the pictures of the evaluation. Runs on a table have
`model.zip`, the best model of Stable-Baselines3, and no agents if the decisions are about strides.
"""

import math
import pickle
import random
import time
import zipfile
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import psutil
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from agents.agent import Agent, AgentConfig
from agents.algorithms import algorithm_class
from agents.exporting import configuration
from agents.networks.extractors import SkipProposalExtractor
from agents.policies import NotFiniteError, acting_part, check_outputs
from agents.tables import write_csv
from agents.training.config import AgentTrainingConfig
from agents.training.evaluator import Evaluator, TableEvaluator
from agents.training.hyperparameters import OWN
from agents.training.learning_curve import CURVE, CurvePoint, read_curve
from agents.training.vec_env import TableVecEnv, check_memory, get_state, make_env, set_state
from ddpm.checkpoints import check_device
from ddpm.training.runs import check_new_run, lock_run, start_run
from ddpm.util.errors import CheckpointError, ConfigError, first_line
from ddpm.util.files import atomic_path
from ddpm.util.progress import progress
from skipdiff_env.config import TaskConfig
from skipdiff_env.rules import PRICE
from skipdiff_env.scoring import tree_of
from skipdiff_env.task import Task

# The state from which a run is resumed, and the member that Stable-Baselines3 does not know.
STATE, REST = "state.zip", "skipdiff.pkl"
# Attributes of a model that Stable-Baselines3 does not save, or seeds again when it loads them.
UNSAVED = ("replay_buffer", "_last_lstm_states", "action_space")
# The best model of a run on a table, as Stable-Baselines3 saves it.
MODEL = "model.zip"
# Seconds between two states; to write a large replay buffer takes a second or more.
SAVE_SECONDS = 30.0
# Number of episodes in the logged means.
WINDOW = 100
# Decisions of a training on a table between two evaluations, as a part of all.
POINTS = 40
# Settings of policies that are classes, written as dotted names.
CLASSES = frozenset({"features_extractor_class", "activation_fn", "optimizer_class"})


class TrainingCallback(BaseCallback):
    """Callback for the progress bar, TensorBoard, the evaluations, the agents and the state of a run.

    Args:
        config: settings of the run.
        folder: folder of the run.
        evaluator: evaluator of the agent, or on a table of the model.
        agent_config: configuration of the saved agents; None: the decisions are not those of an agent.
        curve: evaluations of the run so far.
        bar: progress bar.
        started: time by `time.perf_counter` at which the run started or was resumed; `minutes` count from there.
    """

    def __init__(
        self,
        config: AgentTrainingConfig,
        folder: Path,
        evaluator: Evaluator | TableEvaluator,
        agent_config: AgentConfig | None,
        curve: list[CurvePoint],
        bar: "tqdm[Any]",
        started: float,
    ) -> None:
        super().__init__()
        self.bar, self.started = bar, started
        self.config, self.folder, self.evaluator, self.agent_config = config, folder, evaluator, agent_config
        self.curve = curve
        self.stepwise = agent_config is not None and agent_config.make_decisions().stepwise
        self.window: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self.began = time.perf_counter()
        self.earlier = curve[-1].seconds if curve else 0.0
        self.evaluating = 0.0
        self.saved = -math.inf

    @property
    def seconds(self) -> float:
        """Wall time of training, without the evaluations."""
        return self.earlier + time.perf_counter() - self.began - self.evaluating

    def agent(self, **training: Any) -> Agent | None:
        """Return the present agent with a record of its training; None if there is none."""
        if self.agent_config is None:
            return None
        training = {**self.agent_config.training, "env_steps": self.num_timesteps, **training}
        return Agent(replace(self.agent_config, training=training), self.model.policy)

    def _on_rollout_start(self) -> None:
        if not self.curve or self.num_timesteps >= self.curve[-1].env_steps + self.interval:
            self.evaluate()
        spent = self.earlier + time.perf_counter() - self.started
        late = self.config.minutes is not None and spent >= 60 * self.config.minutes
        if late and self.n_calls > 0:
            raise _LateError
        if isinstance(self.model, OnPolicyAlgorithm):
            self._remember(True)

    @property
    def interval(self) -> int:
        """Number of decisions between two evaluations."""
        every = self.config.eval_every
        if isinstance(self.evaluator, TableEvaluator):
            longest, total = self.evaluator.tree.longest, self.config.hyperparameters["n_timesteps"]
            return every * longest if every else total // POINTS
        return (every or 400) * self.evaluator.task.decisions

    def _remember(self, on: bool) -> None:
        if isinstance(extractor := getattr(self.model.policy, "features_extractor", None), SkipProposalExtractor):
            extractor.remember(on)

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        if self.config.on_table:  # its short infos hold nothing to log
            return True
        if self.stepwise:
            self.window["skips"].append(float(np.mean(self.locals["actions"])))
        for done, info in zip(self.locals["dones"], self.locals["infos"], strict=True):
            if done:
                self.window["reward"].append(float(info["episode"]["r"]))
                self.window["start"].append(info["start"])
                self.window["nfe"].append(info["nfe"])
        return True

    def _on_rollout_end(self) -> None:
        means = {name: float(np.mean(values)) for name, values in self.window.items()}
        if isinstance(self.model, OnPolicyAlgorithm):
            self._remember(False)
            # the mean of -log p over the drawn actions is an unbiased estimate of the entropy
            means["entropy"] = -float(self.model.rollout_buffer.log_probs.mean())
        for name, value in means.items():
            self.logger.record(f"rollout/{name}", value)
        shown: dict[str, object] = {k: f"{means[k]:.4g}" for k in ("reward", "start") if k in means}
        self.bar.set_postfix(shown, refresh=False)

    def evaluate(self) -> None:
        """Evaluate the agent, extend the learning curve, and save the agents, and the state if it is old."""
        began = time.perf_counter()
        player: Any = self.model if self.config.on_table else self.agent()
        evaluation = self.evaluator(player, self.num_timesteps, self.seconds)
        known = {name: value for name, value in asdict(evaluation).items() if not math.isnan(value)}
        best = max((point.reward for point in self.curve), default=-np.inf)
        self.curve.append(evaluation)
        for name in known.keys() - {"env_steps", "episodes", "seconds"}:
            self.logger.record(f"eval/{name}", known[name])
        self.logger.dump(self.num_timesteps)
        write_csv(self.folder / CURVE, list(map(asdict, self.curve)))
        agent = self.agent(evaluation=known)
        if agent is not None:
            agent.save(self.folder / "agent")
        if evaluation.reward > best:
            if agent is not None:
                agent.save(self.folder / "best")
            if self.config.on_table:
                with atomic_path(self.folder / MODEL) as temporary:
                    self.model.save(temporary)
        if time.perf_counter() - self.saved >= SAVE_SECONDS:
            self.save_state()
        if isinstance(self.evaluator, TableEvaluator):  # several evaluations a second
            shown = {"reward": f"{evaluation.reward:.4f}", "best fixed": f"{evaluation.best_fixed_reward:.4f}"}
            self.bar.set_postfix(shown, refresh=False)
        else:
            text = f"{evaluation.episodes} episodes, {evaluation.seconds:.0f} s: reward {evaluation.reward:.4f}"
            if "best_fixed_reward" in known:
                text += (
                    f" (best fixed {self.evaluator.compared} {evaluation.best_fixed_reward:.4f}, "
                    f"oracle {evaluation.oracle_reward:.4f})"
                )
            tqdm.write(f"{text}, mean start {evaluation.start:.2f}, {evaluation.nfe:.1f} forwards")
        self.evaluating += time.perf_counter() - began

    def save_state(self) -> None:
        """Save the state from which a run continues exactly as if it had not been killed after this evaluation."""
        self.saved = time.perf_counter()
        state = {
            "env": get_state(self.training_env),
            "model": {name: getattr(self.model, name) for name in UNSAVED if hasattr(self.model, name)},
            "python": random.getstate(),
            "numpy": np.random.get_state(),  # noqa: NPY002  # what Stable-Baselines3 draws from
            "torch": torch.get_rng_state(),
        }
        with atomic_path(self.folder / STATE) as temporary:
            self.model.save(temporary)
            with zipfile.ZipFile(temporary, "a") as archive, archive.open(REST, "w", force_zip64=True) as file:
                pickle.dump(state, file)


class _LateError(Exception):
    """The signal to end a training between two rollouts, since its time is over."""


def make_model(config: AgentTrainingConfig, env: VecEnv) -> Any:
    """Return the algorithm, untrained, on an environment of `training_env`.

    Raises:
        ConfigError: the algorithm does not take the hyperparameters, or the memory does not hold its buffer.
    """
    given = config.hyperparameters
    values = {name: each for name, each in given.items() if name not in OWN}
    for name, value in values.items():
        if isinstance(value, str) and value.startswith("lin_"):
            values[name] = LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
        if isinstance(value, list):  # train_freq
            values[name] = tuple(value)
    if given.get("noise_type") is not None:
        zeros = np.zeros(env.action_space.shape or ())
        values["action_noise"] = NormalActionNoise(zeros, zeros + given.get("noise_std", 0.0))
    algorithm: Any = algorithm_class(config.algorithm)
    with _refused(config.algorithm):
        values["policy_kwargs"] = resolved(values.get("policy_kwargs") or {})
        return algorithm(env=env, seed=config.seed, device=config.device, **values)


def resolved(policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a policy with classes in place of their names."""
    return {
        name: resolve_name(value) if name in CLASSES and isinstance(value, str) else value
        for name, value in policy_kwargs.items()
    }


@contextmanager
def _refused(algorithm: str) -> Iterator[None]:
    """Raise ConfigError for every error, since algorithms raise nearly any error for unusual hyperparameters."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{algorithm} does not take these hyperparameters ({type(error).__name__}: {first_line(error)})"
        ) from None


def training_env(config: AgentTrainingConfig) -> VecEnv:
    """Return the environment of a training, with the wrappers that the hyperparameters name."""
    n_envs, settings = config.hyperparameters["n_envs"], config.env_settings
    if config.on_table:
        env: VecEnv = TableVecEnv(n_envs, config.seed, **settings)
    else:
        env = make_env(n_envs, env_id=config.env, frame_stack=False, seed=config.seed, **settings, **_memory(config))
    wrappers = config.hyperparameters.get("vec_env_wrapper") or []
    with _refused(config.algorithm):
        for each in [wrappers] if isinstance(wrappers, str) else wrappers:
            ((name, settings),) = each.items() if isinstance(each, dict) else ((each, {}),)
            env = resolve_name(name)(env, **settings)
    return env


def _memory(config: AgentTrainingConfig) -> dict[str, Any]:
    """Return the arguments of the environments that do not change their episodes."""
    cache_mb = config.cache_mb
    if cache_mb is None:
        repeated = config.env_settings.get("noise_seeds") is not None
        cache_mb = psutil.virtual_memory().available / 2**20 / 3 if repeated else 512
    return {"cache_mb": cache_mb, "cache_dir": config.cache_dir, "device": config.device}


def _evaluator(config: AgentTrainingConfig, env: VecEnv) -> Evaluator | TableEvaluator:
    """Return the evaluator of a training in an environment of `training_env`."""
    settings = config.env_settings
    if config.on_table:
        return TableEvaluator(tree_of(config.env, settings["table"]), settings.get("nfe_penalty", PRICE))
    task: Task = env.get_attr("task")[0]
    check_denoiser_of(task)
    if config.eval_images is not None or task.config.crop != "center":
        settings |= {"crop": "center"}
        if config.eval_images is not None:
            settings |= {"images": list(config.eval_images), "split": None}
        task = Task(TaskConfig.of({**settings, **_memory(config)}))
    return Evaluator(task, config.eval_noise_seeds, config.oracle, config.eval_first_seed)


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


def train_agent(config: AgentTrainingConfig, folder: Path, resume: bool = False) -> Path:
    """Train an agent.

    Args:
        config: settings of the run.
        folder: folder of the run.
        resume: continue the run in `folder`.

    Returns:
        Folder of the best agent; on a table with decisions about strides, the file of the best model.

    Raises:
        ConfigError: the folder holds a run already, a setting does not fit, or memory is short.
        CheckpointError: the checkpoint is unknown, or it or the state of the run is damaged.
    """
    started = time.perf_counter()
    check_new_run(folder, resume)
    check_device(config.device)
    env = training_env(config)
    begun = (folder / STATE).exists()
    fresh = None if begun else make_model(config, env)
    evaluator = _evaluator(config, env)
    pictures = None if isinstance(evaluator, TableEvaluator) else env.get_attr("task")[0].pictures.digest()
    env_steps = config.hyperparameters["n_timesteps"]
    with lock_run(folder):
        start_run(folder, asdict(config), pictures, begun)
        model, curve = _resumed(config, folder, env) if fresh is None else (fresh, [])
        tqdm.write(check_memory(model))
        if isinstance(evaluator, Evaluator) and (outcomes := evaluator.outcomes) is not None:
            with atomic_path(folder / "outcomes.npz") as temporary:
                np.savez(temporary, rewards=outcomes.rewards(), **outcomes.metrics)  # type: ignore[arg-type]
        agent_config, place = _agent_config(config, model, env), str(folder / "tensorboard")
        writer = _TensorBoard(place, model.num_timesteps + 1 if begun else None)
        bar = progress(
            total=env_steps, initial=model.num_timesteps, desc=f"train-agent {config.algorithm}", unit="step"
        )
        with closing(Logger(place, [writer])) as logger, bar:
            model.set_logger(logger)
            callback = TrainingCallback(config, folder, evaluator, agent_config, curve, bar, started)
            _learn(model, callback, env_steps - model.num_timesteps, begun)
    env.close()
    return folder / (MODEL if agent_config is None else "best")


def _agent_config(config: AgentTrainingConfig, model: Any, env: VecEnv) -> AgentConfig | None:
    """Return the configuration of the agents of a run; None where the decisions are not those of an agent."""
    record: dict[str, Any] = {"hyperparameters": config.hyperparameters, "seed": config.seed}
    if config.on_table:
        tree = env.get_attr("tree")[0]
        if tree.kind != "schedule":
            return None
        record |= {"env": {"metric": tree.table.metric, "reward": "negative"}}
        record |= {"price": config.env_settings.get("nfe_penalty", PRICE)}
    return configuration(model, env, **record)


def _learn(model: Any, callback: TrainingCallback, left: int, begun: bool) -> None:
    """Train for a number of decisions, or until the callback stops the training."""
    if left <= 0:
        return
    interval = {"log_interval": 1} if isinstance(model, OnPolicyAlgorithm) else {}
    check_outputs(acting_part(model.policy))
    try:
        with suppress(_LateError):
            model.learn(left, callback, reset_num_timesteps=not begun, **interval)
    except NotFiniteError:
        raise ConfigError(
            f"after {model.num_timesteps} decisions the policy returns numbers that are not finite; train with a lower "
            "-p learning_rate"
        ) from None
    if callback.curve[-1].env_steps < model.num_timesteps:
        callback.evaluate()
    callback.save_state()


class _TensorBoard(TensorBoardOutputFormat):
    """A writer of TensorBoard's files that discards entries from `purge_step` on, which a killed run has logged."""

    def __init__(self, folder: str, purge_step: int | None) -> None:
        self.writer = SummaryWriter(folder, purge_step=purge_step)
        self._is_closed = False


def _resumed(config: AgentTrainingConfig, folder: Path, env: VecEnv) -> tuple[Any, list[CurvePoint]]:
    """Return the model and the learning curve of a run that is resumed."""
    path = folder / STATE
    try:
        model: Any = algorithm_class(config.algorithm).load(path, env=env, device=config.device, force_reset=False)
        with zipfile.ZipFile(path) as archive, archive.open(REST) as file:
            state = pickle.load(file)
        set_state(env, state["env"])
    except Exception as error:  # pickles raise anything
        raise CheckpointError(f"{path} is damaged ({error}); start a new run") from None
    curve = read_curve(folder / CURVE)
    vars(model).update(state["model"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002  # what Stable-Baselines3 draws from
    torch.set_rng_state(state["torch"])
    return model, [evaluation for evaluation in curve if evaluation.env_steps <= model.num_timesteps]
