"""Buffers that store each latent once instead of whole stacks of latents."""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples, RolloutBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from agents.networks.frames import frame_count, newest_space
from skipdiff_env.refinement import Action


class EpisodeRolloutBuffer(RolloutBuffer):
    """Rollout buffer that stores only the newest latent of each observation, and stacks them again for minibatches.

    For PPO, A2C and TRPO: `rollout_buffer_class=EpisodeRolloutBuffer`. It needs a fraction of the memory of
    Stable-Baselines3's `RolloutBuffer` and of its time for copies. If rollouts consist of whole episodes of n env
    steps, so do minibatches: the SPN then computes each latent once per epoch for any size of a minibatch.

    Args:
        buffer_size: number of env steps of each environment.
        observation_space: Box (3 · n, H, W).
        action_space: Discrete.
        normalize_decisions: divide the advantages of each decision (the first of an episode, the second, …) by their
            standard deviation. With a reward only at the end, discounting shrinks the advantages of early decisions to
            γ^(N-2) of the last one's without making them any less important.
        undone_price: in "restart" a SKIP undoes the decisions before it: neither the result nor later decisions depend
            on them, and in long episodes they cause most of the gradient's noise. With a price, these decisions have
            no part in the advantage of the result. For the forward that is thrown away, the advantage of SKIP exceeds
            that of DENOISE by this number of standard deviations of the other decisions' advantages. The other
            decisions are compared with one another, decision by decision. None: undone decisions are treated like the
            others.
        kwargs: further arguments of `RolloutBuffer`.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        normalize_decisions: bool = False,
        undone_price: float | None = None,
        **kwargs: Any,
    ) -> None:
        newest = newest_space(observation_space)
        assert observation_space.shape is not None
        self.n_frames = frame_count(observation_space)
        self.normalize_decisions, self.undone_price = normalize_decisions, undone_price
        super().__init__(buffer_size, newest, action_space, **kwargs)

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: NDArray[Any]) -> None:
        """Compute as `RolloutBuffer` does; then price undone decisions and normalise decision by decision, as set."""
        super().compute_returns_and_advantage(last_values, dones)
        if not self.normalize_decisions and self.undone_price is None:
            return
        decisions = self._decisions()
        counts = np.ones(decisions.shape, dtype=bool) if self.undone_price is None else ~self._undone()
        for i in np.unique(decisions[counts]):
            of = (decisions == i) & counts
            if self.undone_price is not None:
                self.advantages[of] -= self.advantages[of].mean()
            if self.normalize_decisions:
                self.advantages[of] /= self.advantages[of].std() + 1e-8
        if self.undone_price is not None:
            self.advantages /= self.advantages[counts].std() + 1e-8
            skips = self.actions.reshape(counts.shape) == Action.SKIP
            self.advantages = np.where(counts, self.advantages, self.undone_price * (skips - np.float32(0.5)))

    def _decisions(self) -> NDArray[np.int64]:
        """Return the number of the decision in its episode for each env step, 0, 1, …; (steps, environments)."""
        decisions = np.zeros(self.episode_starts.shape, dtype=np.int64)
        for t in range(1, len(decisions)):
            decisions[t] = np.where(self.episode_starts[t], 0, decisions[t - 1] + 1)
        return decisions

    def _undone(self) -> NDArray[np.bool_]:
        """Return whether a SKIP follows in the same episode; (steps, environments)."""
        skips = self.actions.reshape(self.episode_starts.shape) == Action.SKIP
        undone = np.zeros(skips.shape, dtype=bool)
        for t in range(len(skips) - 2, -1, -1):
            undone[t] = (self.episode_starts[t + 1] == 0) & (undone[t + 1] | skips[t + 1])
        return undone

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """Yield minibatches, which consist of whole episodes if the rollout does and the size allows it."""
        n = self.n_frames
        if batch_size is None or batch_size % n or self.buffer_size % n or not self.episode_starts[::n].all():
            yield from super().get(batch_size)
            return
        if not self.generator_ready:  # the order of RolloutBuffer: environments one after the other
            for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
                self.__dict__[name] = self.swap_and_flatten(self.__dict__[name])
            self.generator_ready = True
        episodes = np.random.permutation(self.buffer_size * self.n_envs // n)  # noqa: NPY002  # SB3's own generator
        for first in range(0, len(episodes), batch_size // n):
            chosen = episodes[first : first + batch_size // n]
            yield self._get_samples((chosen[:, None] * n + np.arange(n)).ravel())

    def add(self, obs: NDArray[Any], *args: Any, **kwargs: Any) -> None:
        """Store one step of every environment; `obs` is a stack."""
        if self.pos == 0:  # a rollout may begin in the middle of an episode
            self.before = obs[:, :-3].reshape(self.n_envs, self.n_frames - 1, *self.obs_shape).copy()
        super().add(obs[:, -3:], *args, **kwargs)

    def _get_samples(self, batch_inds: NDArray[np.integer], env: VecNormalize | None = None) -> RolloutBufferSamples:
        n, size = self.n_frames, self.buffer_size
        stacks = np.zeros((len(batch_inds), n, *self.observations.shape[1:]), dtype=self.observations.dtype)
        for stack, index in zip(stacks, batch_inds, strict=True):
            i, t = divmod(int(index), size)
            starts = np.flatnonzero(self.episode_starts[: t + 1, i])
            first = starts[-1] if len(starts) else 0
            inside = self.observations[i * size + max(first, t + 1 - n) : i * size + t + 1]
            stack[n - len(inside) :] = inside
            if not len(starts) and t + 1 < n:
                stack[: n - t - 1] = self.before[i, t:]
        samples = super()._get_samples(batch_inds, env)
        stacked = stacks.reshape(len(stacks), -1, *stacks.shape[3:])
        return samples._replace(observations=self.to_torch(stacked, copy=False))


class EpisodeReplayBuffer(ReplayBuffer):
    """Replay buffer that stores only the newest latent of each observation, and stacks them again for samples.

    At N = 10 this takes an eighteenth of the memory of Stable-Baselines3's `ReplayBuffer`, which keeps 9 latents before
    and 9 after each transition. For DQN and QRDQN: `replay_buffer_class=EpisodeReplayBuffer`.

    Args:
        buffer_size: number of transitions, over all environments.
        observation_space: Box (3 · n, H, W); no episode may have more than n env steps.
        action_space: Discrete.
        device: device of the samples.
        n_envs: number of environments.
        optimize_memory_usage: has no effect, since the next latent is never stored twice.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = True,
    ) -> None:
        newest = newest_space(observation_space)
        assert observation_space.shape is not None
        self.n_frames = frame_count(observation_space)
        size = max(buffer_size, (self.n_frames + 1) * n_envs)  # at least one episode that is not overwritten
        super().__init__(size, newest, action_space, device, n_envs, True, handle_timeout_termination=False)

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one transition of every environment; `obs` and `next_obs` are stacks."""
        super().add(obs[:, -3:], next_obs[:, -3:], action, reward, done, infos)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Sample transitions whose episode is still stored from its beginning."""
        if self.full:  # the oldest n - 1 may have lost their beginning, and the next slot has no transition
            rows = self.pos + np.random.randint(self.n_frames, self.buffer_size, size=batch_size)  # noqa: NPY002
        else:
            rows = np.random.randint(self.pos, size=batch_size)  # noqa: NPY002
        return self._get_samples(rows % self.buffer_size, env)

    def _get_samples(self, batch_inds: NDArray[np.integer], env: VecNormalize | None = None) -> ReplayBufferSamples:
        envs = np.random.randint(self.n_envs, size=len(batch_inds))  # noqa: NPY002  # SB3's own generator
        shape = (len(batch_inds), self.n_frames + 1, *self.observations.shape[2:])
        frames = np.zeros(shape, dtype=self.observations.dtype)  # the stack, and the latent after it
        frames[:, -1] = self.observations[(batch_inds + 1) % self.buffer_size, envs]
        inside = np.ones(len(batch_inds), dtype=bool)
        for back in range(self.n_frames):
            rows = (batch_inds - back) % self.buffer_size
            if back:
                inside &= (self.dones[rows, envs] == 0) & (self.full | (batch_inds >= back))
            frames[inside, -2 - back] = self.observations[rows[inside], envs[inside]]
        stacks = frames.reshape(len(frames), -1, *shape[3:])
        data = (
            stacks[:, :-3],
            self.actions[batch_inds, envs],
            stacks[:, 3:],
            self.dones[batch_inds, envs, None],
            self._normalize_reward(self.rewards[batch_inds, envs, None], env),
        )
        return ReplayBufferSamples(*map(self.to_torch, data))
