"""The skip proposal network: stacked episodes against a hand-run GRU, padding, batch norm in PPO, bad spaces."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack
from torch import Tensor, nn

from agents.networks.extractors import RolloutBatchNorm2d, SkipProposalExtractor
from agents.networks.frames import resize_latents
from ddpm.util.errors import ConfigError

SIZE = 32
DECISIONS = 4
POLICY: dict[str, Any] = {"features_extractor_class": SkipProposalExtractor, "net_arch": [], "normalize_images": False}


def latents_space(frames: int = DECISIONS, height: int = SIZE, width: int = SIZE) -> spaces.Box:
    return spaces.Box(-9, 9, (3 * frames, height, width), np.float32)


def make_extractor(frames: int = DECISIONS, **options: Any) -> SkipProposalExtractor:
    torch.manual_seed(0)
    return SkipProposalExtractor(latents_space(frames), **{"hidden_size": 16, **options})


def stacks(episode: Tensor, frames: int = DECISIONS) -> Tensor:
    """What VecFrameStack gives at each decision of an episode (n, 3, H, W): (n, 3 · frames, H, W), zeros in front."""
    padded = torch.cat([torch.zeros(frames - 1, *episode.shape[1:]), episode])
    return torch.stack([padded[k : k + frames].flatten(0, 1) for k in range(len(episode))])


@pytest.fixture
def episodes() -> Tensor:
    """Three episodes, (3, DECISIONS, 3, SIZE, SIZE)."""
    return torch.randn(3, DECISIONS, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


class Latents(gym.Env[np.ndarray, Any]):
    """DECISIONS random latents an episode; the sum of the actions is the reward at its end."""

    observation_space = spaces.Box(-9, 9, (3, SIZE, SIZE), np.float32)
    action_space = spaces.Discrete(2)

    def _latent(self) -> np.ndarray:
        scale = 1 + self.np_random.random()
        return (scale * self.np_random.standard_normal((3, SIZE, SIZE))).clip(-9, 9).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.taken: list[int] = []
        return self._latent(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.taken.append(int(action))
        done = len(self.taken) == DECISIONS
        return self._latent(), float(sum(self.taken)) if done else 0.0, done, False, {}


@pytest.mark.parametrize(("size", "layers"), [(32, 2), (64, 3), (128, 4), (256, 5)])
def test_layers_follow_from_the_size(size: int, layers: int) -> None:
    extractor = SkipProposalExtractor(latents_space(9, size, size), hidden_size=4)
    convolutions = [m for m in extractor.convolutions if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [32, 24, 24, 24, 24][:layers]
    assert [c.kernel_size[0] for c in convolutions] == [9, 5, 5, 5, 5][:layers]
    assert extractor.gru is not None
    assert extractor.gru.input_size == 24 * 8 * 8


def test_the_papers_size() -> None:
    extractor = SkipProposalExtractor(latents_space(9, 128, 128))
    assert extractor.gru is not None
    assert (extractor.gru.input_size, extractor.gru.hidden_size, extractor.features_dim) == (1536, 1536, 1536)
    assert extractor(torch.zeros(2, 27, 128, 128)).shape == (2, 1536)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_stacked_episodes_equal_a_recurrent_policy(episodes: Tensor, norm: str) -> None:
    """The logits of each stack are those of a GRU that carries its state from decision to decision."""
    torch.manual_seed(0)
    options = {"norm": norm, "hidden_size": 16}
    policy: Any = ActorCriticCnnPolicy(
        latents_space(), spaces.Discrete(2), lambda _: 1e-3, features_extractor_kwargs=options, **POLICY
    )
    nn.init.normal_(policy.action_net.weight)
    extractor = policy.features_extractor
    assert isinstance(extractor, SkipProposalExtractor)
    assert extractor.gru is not None
    extractor(torch.randn(8, 3 * DECISIONS, SIZE, SIZE))  # batch norm has seen data
    policy.set_training_mode(False)
    gru = nn.GRU(1536, 16)
    gru.load_state_dict({f"{name}_l0": value for name, value in extractor.gru.state_dict().items()})
    for episode in episodes:
        hidden = torch.zeros(1, 1, 16)
        for k, stack in enumerate(stacks(episode)):
            output, hidden = gru(extractor.convolutions(episode[k : k + 1])[None], hidden)
            expected = policy.action_net(output[0])
            logits = policy.action_net(policy.extract_features(stack[None]))
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_padding_is_masked(episodes: Tensor) -> None:
    """A young episode in a long stack gives the features it has in a stack that it fills."""
    long, short = make_extractor().eval(), make_extractor(frames=2).eval()
    long.load_state_dict(short.state_dict())
    young = episodes[:, :2].flatten(1, 2)
    padded = torch.cat([torch.zeros_like(young), young], dim=1)
    torch.testing.assert_close(long(padded), short(young))
    assert not torch.allclose(long(torch.cat([torch.full_like(young, 1e-3), young], dim=1)), short(young))


def test_no_frame_at_all(episodes: Tensor) -> None:
    extractor = make_extractor().eval()
    batch = torch.stack([stacks(episodes[0])[-1], torch.zeros(3 * DECISIONS, SIZE, SIZE)])
    features = extractor(batch)
    assert features[0].any()
    assert not features[1].any()
    assert not extractor(batch[1:]).any()


def test_each_distinct_frame_is_computed_once(episodes: Tensor) -> None:
    """A batch of whole episodes, shuffled, with a latent that comes twice (SKIP) and an episode that comes twice."""
    extractor = make_extractor()
    sizes: list[int] = []
    extractor.convolutions.register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    episodes[1, 2] = episodes[1, 0]
    batch = torch.cat([stacks(episode) for episode in (*episodes, episodes[0])])
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    features = extractor(batch[order])
    assert sizes == [3 * DECISIONS - 1]
    alone = torch.cat([extractor(stack[None]) for stack in batch[order]])
    torch.testing.assert_close(features, alone, rtol=1e-4, atol=1e-5)


def test_frames_that_differ_in_one_value_are_different(episodes: Tensor) -> None:
    extractor = make_extractor().eval()
    batch = stacks(episodes[0])[-1].repeat(2, 1, 1, 1)
    batch[1, -1, 5, 7] += 1  # not among the values that the first, quick look compares
    one, other = extractor(batch)
    assert not torch.equal(one, other)


def test_gradients_equal_those_of_the_plain_computation(episodes: Tensor) -> None:
    extractor = make_extractor()
    gru = extractor.gru
    assert gru is not None
    batch = torch.cat([stacks(episode) for episode in episodes])
    extractor(batch)
    extractor.eval()
    weight = torch.randn(16, generator=torch.Generator().manual_seed(2))
    (extractor(batch) @ weight).square().sum().backward()
    gradients = {name: p.grad for name, p in extractor.named_parameters()}
    extractor.zero_grad(set_to_none=True)
    loss = torch.zeros(())
    for episode in episodes:
        hidden = torch.zeros(1, 16)
        for frame in episode:
            hidden = gru(extractor.convolutions(frame[None]), hidden)
            loss = loss + (hidden @ weight).square().sum()
    loss.backward()
    for name, parameter in extractor.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-4)


def test_remembering_what_was_computed(episodes: Tensor) -> None:
    """Through an episode each decision costs one frame; the results are those of a forgetful net."""
    extractor = make_extractor().eval()
    sizes: list[int] = []
    extractor.convolutions.register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    batch = torch.stack([stacks(episode) for episode in episodes], dim=1)  # (decision, episode, …)
    expected = [extractor(stack).detach() for stack in batch]
    sizes.clear()
    extractor.remember(True)
    memory = torch.zeros_like(batch[0])  # one block of memory for every decision, as VecFrameStack may have it
    with torch.no_grad():
        for stack, features in zip(batch, expected, strict=True):
            memory.copy_(stack)
            torch.testing.assert_close(extractor(memory), features, rtol=1e-4, atol=1e-5)
    assert sizes == [3] * DECISIONS
    extractor(batch[-1])  # wants gradients: nothing remembered is used
    assert sizes[-1] == 3 * DECISIONS
    with torch.no_grad():
        next(extractor.parameters()).mul_(2)
        extractor.remember(True)
        changed = extractor(batch[-1])
    assert not torch.allclose(changed, expected[-1])


def test_without_gru_the_newest_frame_counts(episodes: Tensor) -> None:
    extractor = make_extractor(recurrent=False)
    assert extractor.features_dim == 1536
    batch = stacks(episodes[0])
    extractor(batch)
    extractor.eval()
    torch.testing.assert_close(extractor(batch), extractor.convolutions(episodes[0]), rtol=1e-4, atol=1e-5)
    assert not extractor(torch.zeros(2, 3 * DECISIONS, SIZE, SIZE)).any()


def test_the_step_is_told(episodes: Tensor) -> None:
    """Behind the GRU's state stands which decision it is, one-hot; an empty stack is none."""
    plain, told = make_extractor().eval(), make_extractor(tell_step=True).eval()
    told.load_state_dict(plain.state_dict())
    batch = stacks(episodes[0])
    state, step = told(batch).split([16, DECISIONS], dim=1)
    torch.testing.assert_close(state, plain(batch))
    assert torch.equal(step, 4 * torch.eye(DECISIONS))
    assert not told(torch.zeros(1, 3 * DECISIONS, SIZE, SIZE)).any()


def test_other_sizes_are_resized() -> None:
    extractor = SkipProposalExtractor(latents_space(2, 40, 52), hidden_size=4)
    assert extractor.image_size == 32
    assert extractor(torch.randn(3, 6, 40, 52)).shape == (3, 4)
    built = SkipProposalExtractor(latents_space(2, 128, 128), image_size=64, hidden_size=4)
    assert built(torch.randn(3, 6, 128, 128)).shape == (3, 4)
    assert built(torch.randn(3, 6, 128, 128).half()).dtype == torch.float32
    frames = torch.randn(3, 6, 128, 128)
    small = resize_latents(frames.view(6, 3, 128, 128), 64)
    torch.testing.assert_close(built.eval()(frames), built(small.view(3, 6, 64, 64)))


def test_batch_norm_statistics_stand_still_while_learning() -> None:
    norm = RolloutBatchNorm2d(5)
    first, second = torch.randn(4, 5, 6, 6) * 3 + 1, torch.randn(8, 5, 6, 6) - 2
    norm.eval()
    expected = nn.BatchNorm2d(5)(first)  # by the statistics of the batch: the first one ever seen sets them
    torch.testing.assert_close(norm(first), expected, rtol=1e-4, atol=1e-5)
    collected = norm(second)
    norm.train()
    for _ in range(3):
        torch.testing.assert_close(norm(second), collected)
    norm.eval()
    assert not torch.allclose(norm(second), collected)
    mean, var = first.mean((0, 2, 3)), first.var((0, 2, 3), correction=0)
    torch.testing.assert_close(norm.running_mean, (mean + second.mean((0, 2, 3))) / 2)
    torch.testing.assert_close(norm.running_var, (var + second.var((0, 2, 3), correction=0)) / 2)
    moved = norm.running_mean.clone()
    norm.train()
    norm.eval()
    torch.testing.assert_close(norm.running_mean, moved)


def first_ratios(model: Any, monkeypatch: pytest.MonkeyPatch, steps: int) -> list[Tensor]:
    """Trains; gives the importance ratios in the first minibatch after each rollout, as PPO itself computes them."""
    ratios: list[Tensor] = []
    olds: list[Tensor] = []
    rollout, evaluate = model.rollout_buffer.get, model.policy.evaluate_actions

    def get(batch_size: int | None = None) -> Iterator[Any]:
        for i, data in enumerate(rollout(batch_size)):
            if i == 0:
                olds.append(data.old_log_prob)
            yield data

    def evaluate_actions(obs: Tensor, actions: Tensor) -> Any:
        values, log_prob, entropy = evaluate(obs, actions)
        if len(ratios) < len(olds):
            ratios.append((log_prob.detach() - olds[-1]).exp())
        return values, log_prob, entropy

    monkeypatch.setattr(model.rollout_buffer, "get", get)
    monkeypatch.setattr(model.policy, "evaluate_actions", evaluate_actions)
    model.learn(steps)
    return ratios


def make_ppo() -> Any:
    env = VecFrameStack(DummyVecEnv([Latents] * 3), DECISIONS, channels_order="first")
    options = {**POLICY, "features_extractor_kwargs": {"hidden_size": 16}}
    model: Any = PPO(
        "CnnPolicy", env, n_steps=DECISIONS, batch_size=6, n_epochs=1, learning_rate=1e-2, policy_kwargs=options, seed=0
    )
    nn.init.normal_(model.policy.action_net.weight, std=0.3)  # SB3 starts with nearly constant logits
    return model


def test_importance_ratio_of_the_first_minibatch_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = first_ratios(make_ppo(), monkeypatch, 6 * 3 * DECISIONS)
    assert len(ratios) == 6
    for ratio in ratios:
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-4)


def test_plain_batch_norm_would_be_off_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above finds what it is meant to find."""
    model = make_ppo()
    for i, module in enumerate(model.policy.features_extractor.convolutions):
        if isinstance(module, RolloutBatchNorm2d):
            model.policy.features_extractor.convolutions[i] = nn.BatchNorm2d(len(module.weight))
    ratios = first_ratios(model, monkeypatch, 2 * 3 * DECISIONS)
    assert all((ratio - 1).abs().max() > 1e-2 for ratio in ratios)


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (spaces.Box(0, 255, (3, 32, 32), np.uint8), {}, "a Box of floats"),
        (spaces.Box(-1, 1, (32, 32), np.float32), {}, r"\(3 · n, H, W\)"),
        (spaces.Box(-1, 1, (32, 32, 3), np.float32), {}, r"\(3 · n, H, W\)"),
        (spaces.Discrete(3), {}, "a Box of shape"),
        (spaces.Box(-1, 1, (3, 32, 288), np.float32), {}, 'channels_order="first"'),
        (latents_space(), {"norm": "layer"}, "batch, group"),
        (latents_space(), {"image_size": 48}, "power of two"),
        (latents_space(), {"image_size": 16}, "at least 32"),
        (latents_space(), {"hidden_size": 0}, "hidden_size"),
        (latents_space(), {"recurrent": False, "tell_step": True}, "the whole episode"),
    ],
)
def test_bad_input(space: spaces.Space[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SkipProposalExtractor(space, **options)
