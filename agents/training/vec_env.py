"""The batched environments as a `VecEnv` of Stable-Baselines3, and its wrappers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from agents.networks.frames import resize_latents
from ddpm.util.errors import ConfigError
from skipdiff_env.batches import one_info
from skipdiff_env.table_env import SkipDiffTableVectorEnv
from skipdiff_env.task import Task
from skipdiff_env.vector_env import SkipDiffVectorEnv

# Attributes of the batched environment with one entry for each environment.
ONE_EACH = frozenset({"sr", "np_random", "np_random_seed", "reward_failures"})
# Methods of the batched environment that return one result for each environment.
ONE_RESULT_EACH = frozenset({"render", "action_masks"})
# Larger than the rounding errors of rewards, smaller than the differences between rewards.
ROUNDING = 1e-6
# Attributes of wrappers that are not part of their state.
NO_STATE = frozenset({"venv", "class_attributes"})
# Methods that a VecEnv calls for all environments at once.
OWN_CALLS = frozenset({"reset", "step", "close"})


class SkipDiffVecEnv(VecEnv):
    """The batched environment as a `VecEnv` of Stable-Baselines3.

    Environments whose episode ends are reset in the same step: `step` returns the first observation of the next
    episode, and `infos[i]` holds the last `info` of the old one, its last observation as `terminal_observation`, and
    `TimeLimit.truncated`, always False. `info` of the new episode is in `reset_infos`.

    All environments share one object: `get_attr` returns its attribute (or that of its task) once for each environment,
    `env_method` calls its method once and returns the result once for each, and `set_attr` sets an attribute for all.

    Args:
        env: the batched environment, with `autoreset_mode="SameStep"`.

    Raises:
        ConfigError: the environment resets in another way.
    """

    def __init__(self, env: SkipDiffVectorEnv) -> None:
        if env.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ConfigError(
                "Stable-Baselines3 resets in the step that ends an episode; make the environment with "
                f'autoreset_mode="SameStep", got {env.autoreset_mode.value!r}'
            )
        self.env = env
        self._actions: NDArray[Any] | None = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    @property
    def task(self) -> Task:
        """Pictures, process and reward behind all environments."""
        return self.env.task

    @property
    def spec(self) -> Any:
        """The environment's specification, if Gymnasium made it."""
        return self.env.spec

    def reset(self) -> NDArray[np.floating]:
        """Start an episode in every environment, with the seeds and options of `seed` and `set_options`."""
        names = dict.fromkeys(name for options in self._options for name in options)
        options = {name: [options.get(name) for options in self._options] for name in names}
        observations, infos = self.env.reset(seed=self._seeds, options=options)
        self.reset_infos = [one_info(infos, i) for i in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Store the actions (num_envs,), which `step_wait` performs."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Perform the actions; see the class."""
        assert self._actions is not None, "step_wait() without step_async()"
        observations, rewards, terminated, _, infos = self.env.step(self._actions)
        self._actions = None
        each = [self._info(infos, i, over) for i, over in enumerate(terminated)]
        return observations, rewards.astype(np.float32), terminated, each

    def _info(self, infos: Mapping[str, Any], i: int, ended: bool) -> dict[str, Any]:
        """Return the `info` of one environment in `step_wait`."""
        info = one_info(infos, i)
        if ended:
            last, final = info.pop("final_obs"), info.pop("final_info")
            self.reset_infos[i] = info
            info = {**final, "terminal_observation": last}
        return {**info, "TimeLimit.truncated": False}

    def close(self) -> None:
        """Close the batched environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the batched environment or of its task once for each index."""
        at = list(self._get_indices(indices))
        if attr_name in ("observation_space", "action_space"):
            attr_name = f"single_{attr_name}"
        value = getattr(self._owner(attr_name), attr_name)
        return [value[i] for i in at] if attr_name in ONE_EACH else [value] * len(at)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the batched environment or of its task.

        Raises:
            ConfigError: `indices` names only some of the environments.
        """
        if len(set(self._get_indices(indices))) != self.num_envs or attr_name in ONE_EACH:
            raise ConfigError(f"the environments are one object; {attr_name} can only be set for all of them alike")
        setattr(self._owner(attr_name), attr_name, value)

    def _owner(self, attr_name: str) -> Any:
        return self.env.task if not hasattr(self.env, attr_name) and hasattr(self.env.task, attr_name) else self.env

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the batched environment once, and return its result, or the environment's, for each index.

        Raises:
            ConfigError: the method is `reset`, `step` or `close`, which must be called on the VecEnv.
        """
        if method_name in OWN_CALLS:
            raise ConfigError(f"call {method_name}() of the VecEnv instead, which does it for all environments")
        at = list(self._get_indices(indices))
        result = getattr(self._owner(method_name), method_name)(*method_args, **method_kwargs)
        own = method_name in ONE_RESULT_EACH and result is not None
        return [result[i] for i in at] if own else [result] * len(at)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Return False for each index, since the environments are not wrapped."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return a frame for each environment, (height, width, 3)."""
        return list(self.env.render() or [None] * self.num_envs)


class VecPictureBaseline(VecEnvWrapper):
    """Wrapper that makes the reward of an episode relative to earlier episodes on the same picture.

    Pictures differ far more in quality than the starts of one picture do, and a value function needs thousands of
    episodes to distinguish them; until then the policy gradient is mostly noise. This wrapper subtracts the running
    mean of a picture's rewards from the reward, and divides the difference by its running standard deviation over all
    pictures. If each episode draws a price, mean and deviation are converted to the price of the episode. The best
    decisions for a picture stay the same. Rewards in `info["episode"]` and `info["metrics"]` are not changed.

    Args:
        venv: environment of `make_env`.
        memory: number of a picture's latest rewards in the mean; ten times as many, over all pictures, count for the
            deviation.
    """

    def __init__(self, venv: VecEnv, memory: int = 20) -> None:
        super().__init__(venv)
        self.memory = memory
        # picture → episodes, mean of (reward without the price of forwards, forwards)
        self._means: dict[int, tuple[int, NDArray[np.float64]]] = {}
        # second moments of the differences from these means
        self._moments: tuple[int, NDArray[np.float64]] = (0, np.zeros((2, 2)))

    def reset(self) -> VecEnvObs:
        """Reset the environment."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Replace the rewards of episodes that end; the others stay 0."""
        observations, rewards, dones, infos = self.venv.step_wait()
        rewards = rewards.copy()
        for i in np.flatnonzero(dones):
            rewards[i] = self._relative(float(rewards[i]), infos[i])
        return observations, rewards, dones, infos

    def _relative(self, reward: float, info: Mapping[str, Any]) -> float:
        picture, price, nfe = int(info["image_index"]), float(info["nfe_penalty"]), float(info["nfe"])
        came_out = np.array([reward + price * nfe, nfe])
        seen, mean = self._means.get(picture, (0, came_out))
        difference = came_out - mean
        self._means[picture] = seen + 1, mean + difference / min(seen + 1, self.memory)
        if seen == 0:
            return 0.0
        count, moments = self._moments
        moments = moments + (np.outer(difference, difference) - moments) / min(count + 1, 10 * self.memory)
        self._moments = count + 1, moments
        weights = np.array([1.0, -price])
        variance = float(weights @ moments @ weights)
        return float(weights @ difference) / (math.sqrt(max(variance, 0.0)) + ROUNDING)


class VecResizeLatents(VecEnvWrapper):
    """Wrapper that resizes latents, so that stacks and buffers need less memory and time.

    Args:
        venv: environment whose observations are single latents, (3, H, W).
        side: largest side of the resized latents, (3, side, side). Smaller ones keep their size.
    """

    def __init__(self, venv: VecEnv, side: int) -> None:
        space = venv.observation_space
        assert isinstance(space, spaces.Box)
        self.side = min(side, *space.shape[1:])
        # weights of antialiasing are positive and add up to 1, so the bounds hold
        bounds = float(space.low.min()), float(space.high.max())
        super().__init__(venv, spaces.Box(*bounds, (3, self.side, self.side), space.dtype.type))

    def _resize(self, latents: Any) -> NDArray[np.floating]:
        return (
            resize_latents(torch.as_tensor(latents), self.side).numpy().astype(self.observation_space.dtype, copy=False)
        )

    def reset(self) -> VecEnvObs:
        """Reset the environment, and resize the observations."""
        return self._resize(self.venv.reset())

    def step_wait(self) -> VecEnvStepReturn:
        """Resize the observations, and the last ones of episodes that end."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for i in np.flatnonzero(dones):
            infos[i]["terminal_observation"] = self._resize(infos[i]["terminal_observation"][None])[0]
        return self._resize(observations), rewards, dones, infos


def stack_episode(venv: VecEnv) -> VecEnv:
    """Return an environment whose observations hold all latents of the episode so far.

    They are stacked as (3 · decisions, H, W), oldest first, with zeros in front.

    Args:
        venv: environment whose observations are single latents, (3, H, W).
    """
    return VecFrameStack(venv, n_stack=venv.get_attr("task")[0].decisions, channels_order="first")


class TableVecEnv(SkipDiffVecEnv):
    """The batched environment of a table as a `VecEnv` of Stable-Baselines3, with short `infos`.

    Args:
        num_envs: number of environments.
        seed: seed for drawing crops and noises.
        settings: arguments of `skipdiff_env.table_env.SkipDiffTableVectorEnv`.
    """

    def __init__(self, num_envs: int = 256, seed: int | None = None, **settings: Any) -> None:
        env: Any = SkipDiffTableVectorEnv(num_envs, autoreset_mode="SameStep", **settings)
        super().__init__(env)
        self.seed(seed)

    def _info(self, infos: Mapping[str, Any], i: int, ended: bool) -> dict[str, Any]:
        """Return only the entries that Stable-Baselines3 needs."""
        return {"terminal_observation": infos["final_obs"][i], "TimeLimit.truncated": False} if ended else {}


def make_env(
    num_envs: int = 16,
    *,
    env_id: str = "SkipDiff-v0",
    frame_stack: bool = True,
    seed: int | None = None,
    **settings: Any,
) -> VecEnv:
    """Make the environment for agents: batched, with stacked latents and recorded returns and lengths.

    Args:
        num_envs: number of environments.
        env_id: id of an environment that runs a network.
        frame_stack: whether an observation holds all latents of the episode so far, see `stack_episode`; else only the
            newest latent, (3, H, W), for algorithms with a recurrent state. Other observations are never stacked.
        seed: seed of the first environment, from which the others count up; used at the next reset.
        settings: arguments of `skipdiff_env.env.SkipDiffEnv`.

    Raises:
        SkipDiffError: an argument is wrong.
    """
    env: Any = gym.make_vec(f"skipdiff_env:{env_id}", num_envs=num_envs, autoreset_mode="SameStep", **settings)
    venv: VecEnv = VecMonitor(SkipDiffVecEnv(env))
    if frame_stack and env.task.config.observation == "latent":
        venv = stack_episode(venv)
    if seed is not None:
        venv.seed(seed)
    return venv


def get_state(venv: VecEnv) -> list[Any]:
    """Return the episodes, random generators and wrappers' attributes of an environment, as picklable data."""
    states: list[Any] = []
    while isinstance(venv, VecEnvWrapper):
        states.append({name: value for name, value in vars(venv).items() if name not in NO_STATE})
        venv = venv.venv
    return [*states, (venv.env.get_state(), venv.reset_infos)]  # type: ignore[attr-defined]


def set_state(venv: VecEnv, states: Sequence[Any]) -> None:
    """Restore a state of `get_state` in an environment with the same arguments and wrappers."""
    for state in states[:-1]:
        vars(venv).update(state)
        venv = venv.venv  # type: ignore[attr-defined]
    state, venv.reset_infos = states[-1]
    venv.env.set_state(state)  # type: ignore[attr-defined]


def check_memory(model: Any) -> str:
    """Return a line with the memory that the rollout or replay buffer of a new model takes when it is full.

    Raises:
        ConfigError: less memory is available.
    """
    replay = getattr(model, "replay_buffer", None)
    needed = sum(map(_bytes, vars(replay or model.rollout_buffer).values()))
    available = psutil.virtual_memory().available
    text = f"{'rollout' if replay is None else 'replay'} buffer: {needed / 2**20:,.1f} MiB"
    if needed > available:
        advice = "-p n_envs=… or -p n_steps=…" if replay is None else "-p buffer_size=…"
        raise ConfigError(
            f"{text}; but only {available / 2**20:,.0f} MiB of memory are free: lower {advice}, or take --obs-dtype "
            "float16"
        )
    return text


def _bytes(value: Any) -> int:
    """Return the bytes of an array, or of a dictionary of arrays; 0 for other values."""
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return value.nbytes if isinstance(value, np.ndarray) else 0
