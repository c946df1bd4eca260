"""The kinds of decision, in the process, the scalar and the batched environment, and under Stable-Baselines3."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import skipdiff_env
from agents import AgentPolicy, export_agent, load_agent
from agents.training.vec_env import SkipDiffVecEnv
from ddpm.pictures.images import to_tensor
from ddpm.schedule import Schedule, even_levels
from ddpm.util.errors import ConfigError
from skipdiff_env import decisions
from skipdiff_env.decisions import Decisions, Jump
from skipdiff_env.env import SkipDiffEnv
from skipdiff_env.features import features
from skipdiff_env.plan import Plan
from skipdiff_env.refinement import Refinement
from skipdiff_env.rules import InvalidActionError
from skipdiff_env.upscaler import Upscaler
from skipdiff_env.vector_env import SkipDiffVectorEnv
from tests.test_outcomes import jumping

__all__ = ["jumping"]
KINDS = ("stride", "continuous", "schedule")


def settings(checkpoint: str, photos: Path, kind: str, **changes: Any) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint, "images": str(photos), "image_size": 32, "steps": (1, 6), "skip_mode": "jump",
        "fine_sampler": "ddim", "observation": "features", "metric": "colour", "reward": "negative",
        "nfe_penalty": 0.01, "noise_seeds": 3, "decisions": kind, **changes,
    }  # fmt: skip


def played(env: SkipDiffEnv, actions: list[Any], **options: Any) -> tuple[list[Any], float, dict[str, Any]]:
    """The observations, the reward and the last info of an episode."""
    observation, info = env.reset(options=options)
    seen, reward, terminated = [observation], 0.0, False
    for given in actions:
        assert not terminated
        action = np.array(given, dtype=np.float32) if isinstance(given, list) else given
        observation, reward, terminated, _, info = env.step(action)
        seen.append(observation)
    assert terminated
    return seen, reward, info


@pytest.mark.parametrize(
    ("kind", "actions", "schedule"),
    [
        ("stride", [np.array([2, 1]), np.array([5, 3])], "6*2,3*8"),
        ("stride", [np.array([0, 0])] * 6, "even:6"),
        ("continuous", [[0.0, -1 / 3], [-1, -1], [1, 1]], "6*2,3,2*8"),
        ("schedule", [3], "6*8"),
    ],
)
def test_actions_are_schedules(kind: str, actions: list[Any], schedule: str, jumping: str, photos: Path) -> None:
    """The result, reward and info are those of the schedule that the actions stand for."""
    env = SkipDiffEnv(**settings(jumping, photos, kind))
    _, reward, info = played(env, actions, image=2, noise_seed=1)
    expected = Schedule.parse(schedule)
    assert (info["levels"], info["substeps"], info["nfe"]) == (
        expected.levels, expected.substeps, expected.forwards
    )  # fmt: skip
    outcomes = env.schedule_outcomes([2], [1], [schedule])
    assert reward == pytest.approx(outcomes.rewards()[0, 0, 0], abs=1e-6)
    assert info["metrics"]["colour"] == pytest.approx(outcomes.metrics["colour"][0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_batched_environment_is_the_scalar_one(kind: str, jumping: str, photos: Path) -> None:
    """With the same seeds and actions, whatever the lengths of the episodes."""
    given = settings(jumping, photos, kind)
    batched = SkipDiffVectorEnv(3, **given)
    alone = SyncVectorEnv([lambda: SkipDiffEnv(**given)] * 3)
    np.testing.assert_allclose(batched.reset(seed=5)[0], alone.reset(seed=5)[0], atol=1e-5)
    batched.action_space.seed(0)
    for _ in range(8):
        actions = batched.action_space.sample()
        ours, theirs = batched.step(actions), alone.step(actions)
        for mine, other in zip(ours[:4], theirs[:4], strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-3)  # a value may be rounded to another of 256 levels
        assert ours[4].keys() == theirs[4].keys()


@pytest.mark.parametrize("name", ["SkipDiffBandit-v0", "SkipDiffStride-v0", "SkipDiffContinuous-v0"])
@pytest.mark.filterwarnings("ignore:.*")
def test_registered_environments_pass_both_checks(name: str, jumping: str, photos: Path) -> None:
    changes: dict[str, Any] = {"checkpoint": jumping, "images": str(photos), "image_size": 32, "steps": [1, 6]}
    assert name in skipdiff_env.VARIANTS
    check_env(gym.make(name, **changes).unwrapped, skip_render_check=True)
    check_env_sb3(gym.make(name, **changes), skip_render_check=True)


def test_what_features_hold(jumping: str, photos: Path) -> None:
    """The statistics of the condition, the level, the price, and the statistics of the last estimate."""
    env = SkipDiffEnv(**settings(jumping, photos, "stride", nfe_penalty=(0.001, 0.1)))
    space = env.observation_space
    seen, _, info = played(env, [np.array([2, 1]), np.array([5, 3])], image=1, noise_seed=0)
    assert all(space.contains(each) for each in seen)
    condition = features(env.task.begin([1], [0])[0].refinement.lr_up.numpy())
    for observation, level in zip(seen, (1, 0.5, 0), strict=True):
        assert observation.shape == (42 + 1 + 1 + 42,)
        np.testing.assert_allclose(observation[:42], condition, atol=1e-6)
        np.testing.assert_allclose(observation[42:44], [level, info["nfe_penalty"]], atol=1e-6)
    assert not seen[0][44:].any()
    assert env.sr is not None
    np.testing.assert_allclose(seen[2][44:], features(env.sr), atol=1e-4)
    assert np.abs(seen[1][44:] - seen[2][44:]).max() > 1e-3
    bandit = SkipDiffEnv(**settings(jumping, photos, "schedule"))
    np.testing.assert_allclose(bandit.reset(options={"image": 1})[0], condition, atol=1e-6)


def test_estimates_are_the_same_when_they_are_remembered(jumping: str, photos: Path) -> None:
    env = SkipDiffEnv(**settings(jumping, photos, "stride"))
    actions = [np.array([1, 0]), np.array([1, 2]), np.array([5, 0])]
    first, again = (played(env, actions, image=0, noise_seed=2)[0] for _ in range(2))
    cold, _, _ = played(SkipDiffEnv(**settings(jumping, photos, "stride", cache_mb=0)), actions, image=0, noise_seed=2)
    for a, b, c in zip(first, again, cold, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        np.testing.assert_allclose(a, c, atol=1e-4)


def test_states_continue_with_every_kind(jumping: str, photos: Path) -> None:
    for kind, action in (("stride", [1, 1]), ("continuous", [0.3, 0.5])):
        env, other = (SkipDiffEnv(**settings(jumping, photos, kind)) for _ in range(2))
        env.reset(seed=3)
        env.step(np.array(action, dtype=env.action_space.dtype))
        observation = other.set_state(env.get_state())
        ours, theirs = (each.step(np.array(action, dtype=env.action_space.dtype)) for each in (env, other))
        assert observation.shape == ours[0].shape
        np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)
        assert ours[1:3] == theirs[1:3]


def test_masks_say_what_is_possible(jumping: str, checkpoint: str, photos: Path) -> None:
    env = SkipDiffEnv(**settings(jumping, photos, "stride"))
    env.reset(seed=0)
    assert env.action_masks().tolist() == [True] * 6 + [True] * 4
    env.step(np.array([3, 0]))
    assert env.action_masks().tolist() == [True, True, False, False, False, False] + [True] * 4
    plain = SkipDiffEnv(**settings(checkpoint, photos, "stride"))
    assert plain.action_space == gym.spaces.Discrete(6)
    batched = SkipDiffVectorEnv(2, **settings(checkpoint, photos, "stride"))
    batched.reset(seed=0)
    batched.step(np.array([0, 4]))
    assert batched.action_masks().astype(int).tolist() == [[1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]]
    skip = SkipDiffEnv(**settings(checkpoint, photos, "skip", observation="dict"))
    skip.reset(seed=0)
    assert skip.action_masks().tolist() == [True, True]


def test_plain_algorithms_train_on_every_kind(jumping: str, photos: Path) -> None:
    def vec(kind: str) -> SkipDiffVecEnv:
        return SkipDiffVecEnv(SkipDiffVectorEnv(2, autoreset_mode="SameStep", **settings(jumping, photos, kind)))

    PPO("MlpPolicy", vec("schedule"), n_steps=4, batch_size=8).learn(16)
    PPO("MlpPolicy", vec("stride"), n_steps=4, batch_size=8).learn(16)
    SAC("MlpPolicy", vec("continuous"), learning_starts=4, batch_size=4, buffer_size=100).learn(12)
    env = SkipDiffEnv(**settings(jumping, photos, "stride"))
    MaskablePPO("MlpPolicy", env, n_steps=8, batch_size=8).learn(16)


def test_the_largest_number_of_substeps(jumping: str, photos: Path) -> None:
    """Continuous decisions may be limited to fewer substeps than the network has learnt."""
    for substeps, most in ((None, 8), ([1, 4], 4)):
        env = SkipDiffEnv(**settings(jumping, photos, "continuous", substeps=substeps))
        _, _, info = played(env, [[1, 1]])
        assert info["substeps"] == (most,)


def test_default_choices(jumping: str, checkpoint: str, photos: Path) -> None:
    def texts(**changes: Any) -> list[str]:
        env = SkipDiffEnv(**settings(changes.pop("checkpoint", jumping), photos, "schedule", **changes))
        return [str(schedule) for schedule in env.task.process.decisions.schedules]

    assert texts() == ["6", "6*2", "6*4", "6*8"]
    assert texts(checkpoint=checkpoint) == ["6", "6,3", "6,4,3,2"]
    assert texts(schedules=["6*8", (6, 3)]) == ["6*8", "6,3"]
    assert texts(fine_sampler="dpmsolver++")[0] == "6"


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("sometimes", {}, "decisions must be one of skip, stride, continuous, schedule, got 'sometimes'"),
        ("stride", {"skip_mode": "restart", "steps": (10, 10), "observation": "latent"}, "need skip_mode jump"),
        ("skip", {"substeps": [1, 2], "observation": "dict"}, 'substeps are for decisions "stride"'),
        ("stride", {"schedules": ["6"]}, 'schedules are for decisions "schedule"'),
        ("stride", {"substeps": [9]}, r"substeps must be whole numbers in 1 … 8, as the network has learnt, got \[9\]"),
        ("schedule", {"schedules": ["6"]}, "schedules must be at least 2"),
        ("schedule", {"schedules": ["6", "5"]}, "begin with 6"),
        ("schedule", {"schedules": ["6", "6*9"]}, "has learnt at most 8 substeps, got 9"),
        ("schedule", {"schedules": ["6", "6*2"], "fine_sampler": "ddpm"}, "substeps need the sampler ddim"),
        ("stride", {"fine_sampler": "ddpm"}, "estimates need a sampler that adds no noise"),
    ],
)
def test_bad_settings(kind: str, changes: dict[str, Any], message: str, jumping: str, photos: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        SkipDiffEnv(**settings(jumping, photos, kind, **changes))


@pytest.mark.parametrize(
    ("kind", "action"),
    [
        ("stride", np.array([6, 0])),
        ("stride", 3),
        ("continuous", np.array([0.5, 1.5], np.float32)),
        ("continuous", np.array([0.5, 0.5, 0.5], np.float32)),
        ("schedule", 4),
    ],
)
def test_bad_actions(kind: str, action: Any, jumping: str, photos: Path) -> None:
    env = SkipDiffEnv(**settings(jumping, photos, kind))
    env.reset(seed=0)
    with pytest.raises(InvalidActionError, match="an action must be"):
        env.step(action)


def test_the_frames_show_the_decisions(jumping: str, photos: Path) -> None:
    env = SkipDiffEnv(render_mode="rgb_array", **settings(jumping, photos, "stride"))
    env.reset(seed=0)
    env.step(np.array([2, 1]))
    frame = env.render()
    assert frame is not None
    assert frame.ndim == 3
    assert to_tensor(frame).shape[0] == 3


class Budget(Decisions):
    """A kind of another program: the number of even forwards for a picture."""

    kind = "budget"
    whole = True

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.space, self.longest = spaces.Discrete(plan.first), 1

    def jumps(self, state: Refinement, action: Any) -> Sequence[Jump]:
        """Return the jumps of even forwards."""
        return list(Schedule(even_levels(self.plan.first, int(action) + 1)).jumps())

    def describe(self) -> str:
        """See `Decisions`."""
        return f"the number of forwards, less 1: 0 … {self.plan.first - 1}"


def test_a_further_kind(jumping: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass with an entry in KINDS works in both environments, and its agents do in the upscaler."""
    monkeypatch.setitem(decisions.KINDS, "budget", Budget)
    env = SkipDiffEnv(**settings(jumping, photos, "budget"))
    assert env.observation_space.shape == (42,)
    for action in (0, 3, 5):
        _, _, info = played(env, [action], image=1, noise_seed=0)
        assert (info["levels"], info["nfe"]) == (even_levels(6, action + 1), action + 1)
    batched = SkipDiffVectorEnv(2, **settings(jumping, photos, "budget"))
    batched.reset(seed=0)
    *_, terminations, _, infos = batched.step(np.array([0, 4]))
    assert terminations.all()
    assert infos["nfe"].tolist() == [1, 5]
    model = PPO("MlpPolicy", env, n_steps=4, batch_size=4).learn(4)
    agent = export_agent(model, env, tmp_path / "agent")
    policy = AgentPolicy(load_agent(tmp_path / "agent"))
    (result,) = Upscaler(jumping, policy=policy, plan=agent.config.plan).upscale([torch.zeros(3, 8, 8)], [0])
    observation, _ = env.reset(options={"image": 0, "noise_seed": 0})
    assert 1 <= result.nfe <= 6
    assert env.action_space.contains(policy.agent.predict(observation[None])[0][0])
