"""Agents on dictionaries: what they see, prices, play on the process, and the comparison of algorithms."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gymnasium import spaces

from agents.agent import Agent, load_agent
from agents.algorithms import RECURRENT
from agents.cli import main
from agents.networks.jump_extractor import CropEncoder, JumpExtractor, even_crops
from agents.playing import AgentPolicy
from agents.training.vec_env import VecPictureBaseline, make_env
from ddpm.pictures.images import to_tensor
from ddpm.util.errors import ConfigError
from skipdiff_env.plan import Plan
from skipdiff_env.refinement import RefinementProcess, wanted_by
from skipdiff_env.rules import Action
from skipdiff_env.upscaler import Upscaled, Upscaler
from tests.conftest import Photo
from tests.untrained import STEPWISE, untrained

N = 6
PLAN = Plan(1, N, fine_sampler="ddim", skip_mode="jump")
PRICES = (0.001, 0.1)


def jump_agent(algorithm: str = "ppo", seed: int = 0, **changes: Any) -> Agent:
    """An untrained agent with decisions that vary; "chooser": one that chooses a schedule."""
    more = {"schedules": ("6", "6,3", "6,4,3,2")} if algorithm == "chooser" else {}
    algorithm = "ppo" if algorithm == "chooser" else algorithm
    return untrained(PLAN, algorithm, "dict", seed, **{"price_range": PRICES, **more, **changes})


@pytest.fixture
def settings(checkpoint: str, photos: Path) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint, "images": str(photos), "image_size": 32, "steps": (1, N), "skip_mode": "jump",
        "fine_sampler": "ddim", "observation": "dict", "metric": "lpips", "reward": "negative", "nfe_penalty": PRICES,
        "noise_seeds": 2,
    }  # fmt: skip


def observations(batch: int, side: int = 32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "latent": torch.randn(batch, 3, side, side, generator=generator),
        "condition": torch.rand(batch, 3, side, side, generator=generator) * 2 - 1,
        "step": torch.arange(batch)[:, None] / batch,
        "level": torch.ones(batch, 1),
        "price": torch.full((batch, 1), 0.01),
    }


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (64, 64, [(0, 0)]),
        (128, 64, [(0, 0), (64, 0)]),
        (80, 70, [(8, 3)]),
        (40, 64, [(0, 0)]),
        (640, 64, [(0, 0), (288, 0), (576, 0)]),
    ],
)
def test_even_crops(height: int, width: int, expected: list[tuple[int, int]]) -> None:
    """Crops are pixels of the picture as they are, and spread from one end to the other."""
    picture = torch.rand(2, 3, height, width)
    crops = even_crops(picture, 64)
    assert crops.shape == (2, len(expected), 3, min(64, height), 64)
    for k, (y, x) in enumerate(expected):
        torch.testing.assert_close(crops[:, k], picture[:, :, y : y + 64, x : x + 64])


def test_extractor_encodes_equal_pictures_once_and_alike() -> None:
    """Six observations of two conditions give what each gives alone."""
    agent = jump_agent()
    extractor: JumpExtractor = agent.policy.features_extractor
    obs = observations(6)
    obs["condition"] = obs["condition"][[0, 1, 0, 0, 1, 1]]
    sizes: list[int] = []
    handle = extractor.condition.register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
    together = extractor(obs)
    assert sizes == [2 * 4]  # four crops of 16 px each
    handle.remove()
    alone = torch.cat([extractor({name: part[i : i + 1] for name, part in obs.items()}) for i in range(6)])
    torch.testing.assert_close(together, alone)
    assert together.shape[1] == extractor.features_dim
    changed = {**obs, "price": obs["price"] * 2}
    assert not torch.allclose(extractor(changed), together)


def test_extractor_keeps_the_strength_of_noise() -> None:
    """The features of noise are the same at every size of the picture, since nothing is shrunk."""
    torch.manual_seed(0)
    encoder = CropEncoder([8, 8])
    means = [encoder(even_crops(torch.randn(8, 3, side, side), 32).flatten(0, 1)).mean(0) for side in (32, 96)]
    torch.testing.assert_close(means[0], means[1], rtol=0.25, atol=0.15)


def test_extractor_refuses_what_it_cannot_see() -> None:
    with pytest.raises(ConfigError, match='make the environment with observation="dict"'):
        JumpExtractor(spaces.Box(-1, 1, (3, 32, 32)))
    space = jump_agent().policy.observation_space
    with pytest.raises(ConfigError, match="crop_size must be at least 16"):
        JumpExtractor(space, crop_size=8)


@pytest.mark.parametrize("algorithm", STEPWISE)
def test_policy_sees_what_the_environment_shows(algorithm: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """On the process an agent decides as on the environment's own observations; saved and loaded, as before."""
    agent = jump_agent(algorithm)
    agent.save(tmp_path / "agent")
    loaded = load_agent(tmp_path / "agent")
    assert loaded.config == agent.config
    env: Any = make_env(4, seed=3, **settings)
    env.set_options({"nfe_penalty": 0.02})
    seen = env.reset()
    task, infos = env.unwrapped.task, env.unwrapped.reset_infos
    episodes = task.begin([i["image_index"] for i in infos], [i["noise_seed"] for i in infos])
    decide, state, young = AgentPolicy(loaded, price=0.02).on(task.process), None, np.ones(4, bool)
    for _ in range(N - 1):
        probable: Any = agent.probabilities(seen, state, young)
        expected, state = agent.predict(seen, state, young)
        actions = decide([episode.refinement for episode in episodes])
        np.testing.assert_array_equal(actions, expected)
        found = decide.probabilities()
        assert found is not None
        np.testing.assert_allclose(found, probable, atol=1e-5)
        np.testing.assert_array_equal(found.argmax(axis=1), expected)
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
        seen, _, _, _ = env.step(np.array(actions))
        task.step(episodes, actions)
        young[:] = False


@pytest.mark.parametrize("algorithm", ["ppo", RECURRENT, "chooser"])
def test_agents_decide_tile_by_tile(
    algorithm: str, checkpoint: str, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the size they were trained on; a group of tiles is decided about as each of them alone."""
    agent, lr = jump_agent(algorithm), to_tensor(photo(10, 40))
    lr[:, :, :20] = 0
    together = Upscaler(checkpoint, policy=AgentPolicy(agent, price=0.01), plan=PLAN)
    assert together.tile == agent.config.image_size
    result = together.upscale([lr], [0])[0]
    assert len(result.tiles) == 2 * 6
    monkeypatch.setattr("skipdiff_env.upscaler.GROUP_PIXELS", 1)
    alone = Upscaler(checkpoint, policy=AgentPolicy(agent, price=0.01), plan=PLAN, batch_size=1)
    assert alone.upscale([lr], [0])[0].tiles == result.tiles


@pytest.mark.parametrize("algorithm", ["ppo", RECURRENT, "chooser"])
def test_policy_on_pictures_of_any_size(algorithm: str, unet: Any) -> None:
    policy = AgentPolicy(jump_agent(algorithm), quality=0.3)
    process = RefinementProcess(unet, PLAN, **wanted_by(policy))
    for height, width in ((48, 80), (16, 16)):
        lr_up = [torch.rand(3, height, width, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(3)]
        together = process.begin(lr_up, [0, 1, 2])
        assert [tuple(sr.shape) for sr in process.run(together, policy)] == [(3, height, width)] * 3
        alone = process.begin(lr_up[1:2], [1])
        process.run(alone, policy)
        assert alone[0].levels == together[1].levels


def in_step(policy: Any, threads: int) -> Any:
    """The same policy, called by all threads at once at each decision."""
    barrier = Barrier(threads, timeout=60)

    def at_once(decide: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def together(states: Any) -> Any:
            barrier.wait()
            return decide(states)

        return together

    policy.on = lambda process, on=policy.on: at_once(on(process))
    return policy


@pytest.mark.parametrize("algorithm", ["ppo", RECURRENT, "chooser", "spn"])
def test_one_upscaler_in_several_threads(algorithm: str, checkpoint: str, photo: Photo) -> None:
    """Each thread has its own episodes, and is told of its own forwards alone."""
    agent = untrained(Plan(20, 5)) if algorithm == "spn" else jump_agent(algorithm)
    plan = agent.config.plan
    pictures = [to_tensor(photo(8 + i, 8, seed=i)) for i in range(3)]
    alone = Upscaler(checkpoint, policy=AgentPolicy(agent), plan=plan, tile=0)
    wanted = [alone.upscale([picture], [i])[0] for i, picture in enumerate(pictures)]
    policy = AgentPolicy(agent)
    shared = Upscaler(checkpoint, policy=in_step(policy, len(pictures)), plan=plan, tile=0)

    def work(i: int) -> tuple[Upscaled, float]:
        parts: list[float] = []
        return shared.upscale([pictures[i]], [i], parts.append)[0], sum(parts)

    with ThreadPoolExecutor(len(pictures)) as pool:
        found = list(pool.map(work, range(len(pictures))))
    for (result, done), expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(result.sr, expected.sr, atol=1e-4, rtol=0)
        assert (result.nfe, result.start) == (expected.nfe, expected.start)
        assert done == pytest.approx(result.nfe, abs=1e-6)


def test_quality_and_price() -> None:
    config = jump_agent().config
    assert config.price(0.0) == pytest.approx(0.1)
    assert config.price(1.0) == pytest.approx(0.001)
    assert config.price() == config.price(0.5) == pytest.approx(0.01)
    assert config.price(price=0.03) == 0.03
    assert config.price(price=5.0) == 0.1  # no further than it was trained for
    for arguments, message in (
        ({"quality": 1.5}, "quality must lie in 0 … 1, got 1.5"),
        ({"price": -1.0}, "price must be a number above 0"),
        ({"price": 0.01, "quality": 0.5}, "give one of them"),
    ):
        with pytest.raises(ConfigError, match=message):
            config.price(**arguments)
    fixed = replace(config, price_range=None)
    assert fixed.price() is None
    with pytest.raises(ConfigError, match="has learnt one price"):
        AgentPolicy(jump_agent(price_range=None), quality=0.5)


def test_picture_baseline_takes_the_price_off(settings: dict[str, Any]) -> None:
    """Two episodes of a picture that are equal but for their price are as good as one another."""
    env = VecPictureBaseline(make_env(1, seed=0, **settings))
    relative = []
    for price in (0.001, 0.1, 0.05):
        env.set_options({"image": 0, "noise_seed": 0, "nfe_penalty": price})
        env.reset()
        for _ in range(N - 1):
            _, rewards, _, _ = env.step(np.array([Action.DENOISE]))
        relative.append(float(rewards[0]))
    assert relative == pytest.approx([0, 0, 0], abs=0.1)
    # where forwards are dear, fewer of them are better
    for action, better in ((Action.SKIP, True), (Action.DENOISE, False)):
        env.set_options({"image": 0, "noise_seed": 0, "nfe_penalty": 0.1})
        env.reset()
        for _ in range(N - 1):
            _, rewards, _, _ = env.step(np.array([action]))
        assert (rewards[0] > 0.1) == better


def test_command_refuses_unknown_environments(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["train-agent", f"--out={tmp_path / 'run'}", "--env=Pong-v5"])
    assert result.exit_code == 2
    assert "unknown environment 'Pong-v5'; known are SkipDiff-v0" in " ".join(result.output.split())
