"""Agents on dictionaries: what they see, prices, play on the process, tables of outcomes and the supervised agent."""

from collections.abc import Sequence
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
from PIL import Image

from agents.agent import Agent, AgentConfig, load_agent
from agents.algorithms import ALGORITHMS, RECURRENT, SUPERVISED
from agents.cli import main
from agents.networks.jump_extractor import CropEncoder, JumpExtractor, even_crops
from agents.playing import AgentPolicy, play
from agents.training.even_outcomes import Outcomes, crops_of, even_outcomes, gather
from agents.training.supervised import SchedulePredictor, SupervisedConfig, fit, train_supervised
from agents.training.vec_env import VecPictureBaseline, make_env
from ddpm.pictures.images import find_images, read_picture, to_tensor
from ddpm.schedule import even_levels
from ddpm.util.errors import ConfigError, SkipDiffError
from skipdiff_env.config import TaskConfig
from skipdiff_env.plan import Plan
from skipdiff_env.refinement import Action, Policy, Refinement, RefinementProcess
from skipdiff_env.task import Task
from skipdiff_env.upscaler import Upscaled, Upscaler
from tests.conftest import Photo, counting

N = 6
PLAN = Plan(1, N, fine_sampler="ddim", skip_mode="jump")
PRICES = (0.001, 0.1)
EXTRACTOR = {"channels": [4, 6], "crop_size": 16}


@pytest.fixture
def settings(checkpoint: str, photos: Path) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint, "images": str(photos), "image_size": 32, "steps": (1, N), "skip_mode": "jump",
        "fine_sampler": "ddim", "observation": "dict", "metric": "lpips", "reward": "negative", "nfe_penalty": PRICES,
        "noise_seeds": 2,
    }  # fmt: skip


def jump_agent(algorithm: str = "ppo", seed: int = 0, **changes: Any) -> Agent:
    """An untrained agent with decisions that vary."""
    torch.manual_seed(seed)
    kwargs: dict[str, Any] = {"features_extractor_kwargs": EXTRACTOR}
    if algorithm == RECURRENT:
        kwargs["lstm_hidden_size"] = 8
    if algorithm == SUPERVISED:
        kwargs = {"forwards": [1, 2, 4], "channels": [4, 6], "crop_size": 16, "members": 2}
    config = AgentConfig(
        algorithm, N - 1, 32, 9.0, PLAN, kwargs, observation="dict", price_range=PRICES
    )  # fmt: skip
    agent = Agent.build(replace(config, **changes))
    for name, parameter in agent.policy.named_parameters():
        if name.startswith(("action_net", "q_net.q_net", "quantile_net")) and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return agent


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
    """Six observations of two conditions give what each gives alone; features of the condition may be given instead."""
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
    encoded = {**obs, "condition": extractor.encode(obs["condition"])}
    torch.testing.assert_close(extractor(encoded), together)
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
    space = AgentConfig("ppo", 5, 32, 9.0, observation="dict").observation_space()
    with pytest.raises(ConfigError, match="crop_size must be at least 16"):
        JumpExtractor(space, crop_size=8)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
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
    policy, state, skipped = AgentPolicy(loaded, price=0.02), None, torch.zeros(4)
    for _ in range(N - 1):
        scores, state = agent.advance(seen, state)
        states = [episode.refinement for episode in episodes]
        actions = policy(states)
        if agent.stops:  # DENOISE, once that it has done so by now is the more probable
            skipped *= torch.tensor(seen["step"] != seen["level"])[:, 0]
            skipped += scores.log_softmax(dim=1)[:, Action.SKIP]
            expected = (skipped.exp() >= 0.5).long()
        else:
            expected = scores.argmax(dim=1)
        np.testing.assert_array_equal(actions, expected)
        if algorithm != RECURRENT:  # which an observation does not tell all
            np.testing.assert_array_equal(actions, agent.act(seen))
        seen, _, _, _ = env.step(np.array(actions))
        task.step(episodes, actions)


@pytest.mark.parametrize(
    ("probability", "levels"), [(0.6, (6, 5, 4, 3, 2, 1)), (0.3, (6, 4, 2)), (0.2, (6, 2)), (0.05, (6,))]
)
def test_small_probabilities_add_up(probability: float, levels: tuple[int, ...], settings: dict[str, Any]) -> None:
    """An agent that denoises with the same probability at each step takes even steps of the median length."""
    agent = jump_agent()
    with torch.no_grad():
        agent.policy.action_net.weight.zero_()
        agent.policy.action_net.bias.copy_(torch.tensor([probability, 1 - probability]).log())
    episodes = play(Task(TaskConfig.of(settings)), AgentPolicy(agent), [0, 1, 0], [0, 1, 1])
    assert [episode.refinement.levels for episode in episodes] == [levels] * 3


@pytest.mark.parametrize("algorithm", ["ppo", RECURRENT, SUPERVISED])
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


@pytest.mark.parametrize("algorithm", ["ppo", RECURRENT, SUPERVISED])
def test_policy_on_pictures_of_any_size(algorithm: str, unet: Any) -> None:
    process = RefinementProcess(unet, PLAN)
    policy = AgentPolicy(jump_agent(algorithm), quality=0.3)
    for height, width in ((48, 80), (16, 16)):
        lr_up = [torch.rand(3, height, width, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(3)]
        together = process.begin(lr_up, [0, 1, 2])
        assert [tuple(sr.shape) for sr in process.run(together, policy)] == [(3, height, width)] * 3
        alone = process.begin(lr_up[1:2], [1])
        process.run(alone, policy)
        assert alone[0].levels == together[1].levels
    state = process.begin(lr_up[:1], [0])
    process.step(state, [0])
    with pytest.raises(ConfigError, match=f"from t = {N} on; got one at t = {N - 1} after 0"):
        AgentPolicy(jump_agent(algorithm))(state)


def in_step(policy: Policy, threads: int) -> Policy:
    """The same policy, called by all threads at once at each decision."""
    barrier = Barrier(threads, timeout=60)

    def decide(states: Any) -> Any:
        barrier.wait()
        return policy(states)

    return decide


@pytest.mark.parametrize("algorithm", ["ppo", RECURRENT, SUPERVISED, "spn"])
def test_one_upscaler_in_several_threads(algorithm: str, checkpoint: str, photo: Photo) -> None:
    """Each thread has its own episodes, and is told of its own forwards alone."""
    if algorithm == "spn":
        kwargs = {"features_extractor_kwargs": {"hidden_size": 8}}
        agent = Agent.build(AgentConfig("ppo", 4, 32, 9.0, Plan(20, 5), kwargs))
    else:
        agent = jump_agent(algorithm)
    plan = agent.config.plan
    assert plan is not None
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


def test_even_outcomes_are_those_of_play(settings: dict[str, Any]) -> None:
    task = Task(TaskConfig.of(settings))
    outcomes = even_outcomes(task, [0, 3], [5, 7], [1, 3, 6])
    assert even_levels(6, 3) == (6, 4, 2)
    for place, n in enumerate((1, 3, 6)):

        def even(states: Sequence[Refinement], levels: tuple[int, ...] = even_levels(6, n)) -> list[Action]:
            return [Action.DENOISE if state.t - 1 in levels else Action.SKIP for state in states]

        episodes = play(task, even, [0, 0, 3, 3], [5, 7, 5, 7])
        assert [episode.refinement.nfe for episode in episodes] == [n] * 4
        expected = np.array([episode.metrics["lpips"] for episode in episodes]).reshape(2, 2)
        np.testing.assert_allclose(outcomes.metrics["lpips"][..., place], expected, atol=1e-5)
    with pytest.raises(ConfigError, match="need skip_mode jump"):
        even_outcomes(Task(TaskConfig.of({**settings, "skip_mode": "restart", "steps": (20, 5)})), [0], [0], [1])


def test_outcomes_choose_by_the_other_noises(tmp_path: Path) -> None:
    """With two noises each gets what is best under the other one."""
    values = np.array([[[0.3, 0.1, 0.2], [0.1, 0.2, 0.3]]])
    outcomes = Outcomes((1, 2, 4), {"lpips": values, "psnr": 100 * values})
    np.testing.assert_array_equal(outcomes.best_of_others("lpips", 0.0), [[0, 1]])
    assert outcomes.at(outcomes.best_of_others("lpips", 0.0)) == pytest.approx({"lpips": 0.25, "psnr": 25, "nfe": 1.5})
    np.testing.assert_array_equal(outcomes.best_of_others("lpips", 1.0), [[0, 0]])
    outcomes.save(tmp_path / "table.npz")
    again = Outcomes.load(tmp_path / "table.npz")
    assert again.forwards == (1, 2, 4)
    np.testing.assert_array_equal(again.metrics["psnr"], outcomes.metrics["psnr"])
    with pytest.raises(ConfigError, match="at least 2 noise seeds"):
        Outcomes((1, 2, 4), {"lpips": values[:, :1]}).best_of_others("lpips", 0.0)


def test_crops_come_from_all_photographs_first(photos: Path) -> None:
    found = list(crops_of([photos], 64))
    numbers, crops = zip(*found, strict=True)
    assert len(crops) == 4 * (4 + 5)  # those that tile a photograph of 128 pixels, then those between them
    assert numbers == (0, 1, 2, 3) * 9
    assert len({np.asarray(crop).tobytes() for crop in crops}) == 36
    assert {crop.shape for crop in crops} == {(64, 64, 3)}
    tiles = [crop for number, crop in found[:16] if number == 0]
    totals = [int(read_picture(path).rgb.sum()) for path in find_images([photos])]
    assert sum(int(tile.sum()) for tile in tiles) in totals


def test_gather_stops_and_uses_noises_of_its_own(settings: dict[str, Any], photos: Path) -> None:
    task = Task(TaskConfig.of({**settings, "batch_size": 4}))
    pictures, outcomes = gather(task, crops_of([photos], 32), 2, [1, 2], lambda done: done >= 3)
    assert len(pictures) == 4
    assert outcomes.metrics["lpips"].shape == (4, 2, 2)
    assert np.ptp(outcomes.metrics["lpips"], axis=1).all()
    with pytest.raises(ConfigError, match="no photograph has a crop of that size"):
        gather(task, iter([]), 1, [1], lambda done: False)


def test_predictor_follows_the_best_even_schedule(settings: dict[str, Any]) -> None:
    """Whatever is predicted, the decisions are an even schedule, the cheapest one where forwards are dear."""
    task = Task(TaskConfig.of(settings))
    agent = jump_agent(SUPERVISED)
    predictor: SchedulePredictor = agent.policy
    predictor.mean.copy_(torch.tensor([0.5, 0.3, 0.1]))
    for price, expected in ((0.001, 4), (0.15, 2), (10.0, 1)):
        states = [e.refinement for e in task.begin([0, 1], [0, 0])]
        policy = AgentPolicy(jump_like(agent, (0.001, 10.0)), price=price)
        predictor.scale.zero_()
        task.process.run(states, policy)
        assert {state.levels for state in states} == {even_levels(N, expected)}


def jump_like(agent: Agent, prices: tuple[float, float] | None) -> Agent:
    return Agent(replace(agent.config, price_range=prices), agent.policy)


def test_fit_learns_what_texture_wants() -> None:
    """Smooth pictures want one step, textured ones four; the net finds out, also for pictures it has not seen."""
    torch.manual_seed(0)
    strength = torch.rand(160) * 0.5
    pictures = strength[:, None, None, None] * torch.randn(160, 3, 16, 16)
    curves = strength.numpy()[:, None] * np.array([0.4, 0.2, 0.0]) + np.array([0.0, 0.05, 0.1])
    curves += np.random.default_rng(0).normal(0, 1, (160, 1))  # the level of a picture tells nothing
    predictor = SchedulePredictor([1, 2, 4], 16, [4, 8], hidden=16)
    config = SupervisedConfig(crops=1, epochs=40, learning_rate=1e-2)
    (left,) = fit(predictor, pictures[:128], curves[:128, None], range(128), config)
    assert left < 0.1
    with torch.no_grad():
        values = predictor({"condition": pictures[128:], "price": torch.full((32, 1), 1e-6)})
    chosen = np.array(predictor.forwards)[values.argmax(dim=1)]
    best = np.array([1, 2, 4])[curves[128:].argmin(axis=1)]
    assert (np.abs(chosen - best) <= 1).mean() > 0.85


def test_train_supervised_and_enjoy(settings: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    """The command trains an agent that other commands take, under the price they name."""
    out = tmp_path / "run"
    arguments = [
        "train-agent",
        f"--out={out}",
        "--algo=supervised",
        "--env=SkipDiffJump-v0",
        f"--checkpoint={settings['checkpoint']}",
        f"--images={photos}",
        "--image-size=32",
        f"--steps=1,{N}",
        "--nfe-penalty=0.001,0.1",
        "-p",
        "crops=8",
        "-p",
        "epochs=2",
        "-p",
        "forwards=[1,2,4]",
        "-p",
        "members=1",
        "-p",
        "channels=[4,6]",
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    agent = load_agent(out)
    assert agent.config.plan == PLAN
    assert agent.config.price_range == PRICES
    assert agent.config.training["crops"] == 16
    assert Outcomes.load(out / "outcomes.npz").metrics["lpips"].shape == (16, 1, 3)
    play = [
        "enjoy",
        f"--agent={out}",
        f"--checkpoint={settings['checkpoint']}",
        f"--images={photos}",
        "--image-size=32",
        "--metric=psnr",
        "-o",
        str(tmp_path / "x.png"),
    ]
    result = CliRunner().invoke(main, [*play, "--quality=0"])
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.output.startswith(("schedule 6, probability", "schedule 6,3, prob", "schedule 6,4,3,2, prob"))
    forwards = []
    small = tmp_path / "small.png"
    with Image.open(photos / "0.png") as photograph:
        photograph.resize((64, 24)).save(small)
    for quality in (0, 1):
        enlarge = ["upscale", str(small), f"--checkpoint={settings['checkpoint']}", f"--agent={out}"]
        enlarge += [f"--map={tmp_path / f'map{quality}.png'}"]
        result = CliRunner().invoke(main, [*enlarge, "-o", str(tmp_path / f"{quality}.png"), f"--quality={quality}"])
        assert result.exit_code == 0, (result.output, result.exception)
        forwards.append(float(result.output.split(" forwards each")[0].split()[-1]))
        with Image.open(tmp_path / f"map{quality}.png") as drawn:
            assert drawn.size == (288, 96 + 54)
    assert 1 <= forwards[0] <= forwards[1] <= N, "the highest price wants the fewest forwards"
    one_price = tmp_path / "one price"
    jump_like(load_agent(out), None).save(one_price)
    result = CliRunner().invoke(main, [*enlarge[:-1], f"--agent={one_price}", "-o", "y.png", "--quality=1"])
    assert result.exit_code == 2
    assert "the agent has learnt one price" in " ".join(result.output.split())
    for more, message in (
        (["-p", "gamma=0.9"], "supervised has no setting gamma; known for -p are channels, crops"),
        (["--warm-cache"], "supervised has no setting --warm-cache"),
        (["--resume"], "cannot change when a run goes on"),
        ([], "is not empty; go on with its run by --resume"),
    ):
        result = CliRunner().invoke(main, [*arguments, *more])
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
    again = ["train-agent", f"--out={out}", "--algo=supervised", "--resume", "-p", "members=2"]
    result = CliRunner().invoke(main, again)  # on the same table
    assert result.exit_code == 0, (result.output, result.exception)
    assert len(load_agent(out).config.training["unexplained"]) == 2


def test_supervised_settings_are_checked(settings: dict[str, Any], tmp_path: Path) -> None:
    for changes, message in (
        ({"crops": None, "minutes": None}, "the table never ends"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"minutes": 0.0}, "minutes must be positive"),
    ):
        with pytest.raises(ConfigError, match=message):
            SupervisedConfig(**changes)
    other: dict[str, Any]
    for other, message in (
        ({"nfe_penalty": 0.01}, "needs a range of prices"),
        ({"nfe_penalty": 0.01, "images": "nowhere"}, r"needs a range of prices, got 0\.01"),  # before anything else
        ({"metric": "psnr"}, "lower for better pictures, got psnr"),
        ({"image_size": "x"}, "image_size must be a whole number"),
        ({"image_size": 1}, "image_size must be a multiple of"),
        ({"images": 3}, "needs images that are a folder, a file, a pattern, or several of them, got 3"),
        ({"images": [None]}, "needs images that are a folder"),
        ({"images": "nowhere"}, "no such file or folder: nowhere"),
    ):
        with pytest.raises(SkipDiffError, match=message):
            train_supervised(SupervisedConfig({**settings, **other}, crops=4, forwards=[1, 2]), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"forwards must be rising whole numbers in 1 … 6, got \[1, 9\]"):
        train_supervised(SupervisedConfig(settings, crops=4, forwards=[1, 9]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_supervised_training_that_diverges() -> None:
    predictor = SchedulePredictor([1, 2], 16, [4], hidden=4)
    curves = np.random.default_rng(0).normal(0, 1, (16, 1, 2))
    config = SupervisedConfig(crops=1, epochs=4, learning_rate=1e30)
    with pytest.raises(ConfigError, match="train with a lower learning_rate, got 1e"):
        fit(predictor, torch.rand(16, 3, 16, 16), curves, range(16), config)


@pytest.mark.parametrize("empty", [np.zeros((0, 1, 2)), np.full((2, 1, 2), "a")])
def test_a_table_without_numbers(empty: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", forwards=np.array([1, 2]), lpips=empty)
    with pytest.raises(ConfigError, match="is no table of outcomes: it holds no numbers"):
        Outcomes.load(tmp_path / "x.npz")


def test_crops_of_one_pixel(photos: Path) -> None:
    number, crop = next(crops_of([photos], 1))
    assert 0 <= number < 4
    assert crop.shape == (1, 1, 3)


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


def test_condition_is_encoded_once_an_episode(unet: Any) -> None:
    agent = jump_agent(SUPERVISED)
    calls: list[int] = []
    agent.policy.members[0][0].register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    process = RefinementProcess(unet, PLAN)
    with counting(unet) as forwards:
        process.run(process.begin([torch.zeros(3, 32, 32)], [0]), AgentPolicy(agent))
    assert calls == [4]
    assert len(forwards) >= 1


def test_command_refuses_unknown_environments(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["train-agent", f"--out={tmp_path / 'run'}", "--env=Pong-v5"])
    assert result.exit_code == 2
    assert "unknown environment 'Pong-v5'; known are SkipDiff-v0" in " ".join(result.output.split())
