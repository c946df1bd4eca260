"""Training: resuming after a kill gives the same weights, and bad settings are refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.cli import main
from ddpm.checkpoints import load_unet
from ddpm.pictures.crops import CropDataset
from ddpm.pictures.degradation import Degradation, downsample, upsample
from ddpm.pictures.images import find_images, to_tensor, to_uint8
from ddpm.schedule import cosine_alphas_cumprod
from ddpm.training import unet as training
from ddpm.training.configs import DDPMConfig
from ddpm.training.runs import lock_run, start_run
from ddpm.training.trainer import batches, latest_state, resumed_config
from ddpm.training.unet import train, training_loss
from ddpm.util.errors import CheckpointError, ConfigError, ImageError
from tests.conftest import TINY, Photo, tiny_unet

UNET = {**TINY, "dropout": 0.2}
OPTIONS = [
    "--crop=32",
    "--batch-size=2",
    "--save-every=2",
    "--iterations=8",
    "--width=8",
    "--multipliers=1,2",
    "--norm-groups=4",
    "--patch-size=2",
    "--attention-resolutions=999",
    "--dropout=0.2",
    "--warmup=2",
]


@pytest.fixture
def config(photos: Path) -> DDPMConfig:
    return DDPMConfig(images=[str(photos)], unet=UNET, crop=32, batch_size=2, iterations=4, save_every=2, warmup=1)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def run_cli(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "agents.cli", "train-ddpm", *args],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_weights(photos: Path, tmp_path: Path) -> None:
    whole = run_cli(f"--images={photos}", f"--out={tmp_path / 'whole'}", *OPTIONS)
    killed = run_cli(f"--images={photos}", f"--out={tmp_path / 'killed'}", *OPTIONS)
    while latest_state(tmp_path / "killed") is None and killed.poll() is None:
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    _, errors = whole.communicate()
    assert whole.returncode == 0, errors
    state = latest_state(tmp_path / "killed")
    assert state is not None
    assert int(state.name.removeprefix("state-")) < 8

    resumed = run_cli("--resume", f"--out={tmp_path / 'killed'}")
    _, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    for name in ("optimizer.bin", "custom_checkpoint_0.pkl"):
        a, b = (torch.load(tmp_path / run / "state-00000008" / name, weights_only=True) for run in ("whole", "killed"))
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.slow
def test_two_processes(photos: Path, tmp_path: Path) -> None:
    def launch(*args: str) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command += ["-m", "agents.cli", "train-ddpm", f"--out={tmp_path / 'run'}", *args]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    launch(f"--images={photos}", *OPTIONS)
    first = weights(tmp_path / "run")
    launch("--resume", "--iterations=10")
    assert latest_state(tmp_path / "run") == tmp_path / "run" / "state-00000010"
    assert not torch.equal(first["first.weight"], weights(tmp_path / "run")["first.weight"])


def test_a_failure_between_checkpoints(config: DDPMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(config, tmp_path / "whole")
    calls = iter(range(100))

    def fail(*args: Any) -> torch.Tensor:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return training_loss(*args)

    monkeypatch.setattr(training, "training_loss", fail)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    monkeypatch.undo()
    train(resumed_config(DDPMConfig, tmp_path / "run", {}), tmp_path / "run", resume=True)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_the_run_folder(config: DDPMConfig, tmp_path: Path) -> None:
    checkpoint = train(config, tmp_path / "run")
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"config.json", "versions.json", "checkpoint", "tensorboard", "state-00000004"} == names
    unet = load_unet(checkpoint)
    assert unet.settings["start"] == 5
    assert weights(tmp_path / "run")["first.weight"].dtype == torch.float16
    assert next(unet.parameters()).dtype == torch.float32
    untrained = tiny_unet(config.seed, dropout=0.2)
    assert not torch.equal(unet.first.weight, untrained.first.weight)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("target", ["image", "residual"])
def test_loss_falls(prediction: str, target: str, photo: Callable[..., np.ndarray]) -> None:
    unet = tiny_unet(prediction=prediction, target=target).requires_grad_(True).train()
    optimizer = torch.optim.Adam(unet.parameters(), 5e-3)
    hr = torch.stack([to_tensor(photo(32, 32, seed=i)) for i in range(8)])
    lr_image, many, alphas_cumprod = downsample(hr, 4), hr.repeat(8, 1, 1, 1), cosine_alphas_cumprod(100)

    def fixed_loss() -> float:
        torch.manual_seed(1)
        with torch.no_grad():
            return training_loss(unet, unet, alphas_cumprod, many, downsample(many, 4)).item()

    before = fixed_loss()
    for _ in range(40):
        optimizer.zero_grad()
        training_loss(unet, unet, alphas_cumprod, hr, lr_image).backward()
        optimizer.step()
    assert fixed_loss() < 0.95 * before


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_perceptual_distance_is_of_the_pictures(prediction: str, photo: Callable[..., np.ndarray]) -> None:
    unet = tiny_unet(prediction=prediction).requires_grad_(True)
    hr = torch.stack([to_tensor(photo(32, 32, seed=i)) for i in range(4)])
    seen: list[torch.Tensor] = []

    def distance(estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        assert target is hr
        seen.append(estimate)
        return (estimate - target).square().mean((1, 2, 3))

    def loss(*args: Any) -> torch.Tensor:
        torch.manual_seed(0)
        return training_loss(unet, unet, cosine_alphas_cumprod(100), hr, downsample(hr, 4), *args)

    plain, weighed, twice = loss(), loss(distance, 0.5), loss(distance, 1.0)
    assert weighed > plain
    torch.testing.assert_close(twice - plain, 2 * (weighed - plain), rtol=1e-3, atol=1e-6)
    assert seen[0].shape == hr.shape
    assert seen[0].abs().max() <= 1
    (twice - plain).backward()
    assert unet.last.weight.grad is not None
    assert unet.last.weight.grad.abs().max() > 0


def test_lpips_in_the_loss(photos: Path, tmp_path: Path) -> None:
    for name, weight in (("plain", "0"), ("lpips", "1")):
        options = (f"--images={photos}", f"--out={tmp_path / name}", *OPTIONS, f"--perceptual-weight={weight}")
        done = CliRunner().invoke(main, ["train-ddpm", *options])
        assert done.exit_code == 0, done.output
    a, b = (weights(tmp_path / name)["last.weight"] for name in ("plain", "lpips"))
    assert not torch.equal(a, b)


def test_samples_are_shown_beside_condition_and_target(config: DDPMConfig, tmp_path: Path) -> None:
    """The grid in TensorBoard has the 8-bit pictures: condition, sample and target, one row for each crop."""
    train(replace(config, iterations=1), tmp_path / "run")
    (file,) = (tmp_path / "run").rglob("events.out.*")
    events = EventAccumulator(str(file), {"images": 0})
    events.Reload()
    (shown,) = events.Images("samples")
    grid = np.asarray(Image.open(BytesIO(shown.encoded_image_string))).astype(int)
    paths = find_images(config.images)
    dataset = CropDataset(paths, 32, config.seed, 64, Degradation.parse("bicubic"), 4)
    assert grid.shape == (len(grid) // 32 * 32, 3 * 32, 3)
    for row in range(len(grid) // 32):
        hr, lr_image = dataset[row]
        columns = np.split(grid[32 * row : 32 * (row + 1)], 3, axis=1)
        np.testing.assert_allclose(columns[2], to_uint8(hr), atol=1)
        np.testing.assert_allclose(columns[0], to_uint8(upsample(lr_image[None], 4)[0]), atol=1)


def test_beginning_with_the_weights_of_a_checkpoint(config: DDPMConfig, checkpoint: str, tmp_path: Path) -> None:
    given = training.initial_settings(checkpoint)
    assert given["width"] == UNET["width"]
    assert "start" not in given
    config = replace(config, unet=given, init=checkpoint, iterations=1, lr=1e-9, ema_decay=0.0)
    trained = load_unet(train(config, tmp_path / "run")).state_dict()
    for name, value in load_unet(checkpoint).state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-3, atol=1e-6)
    with pytest.raises(ConfigError, match=r"cannot begin with the weights of .*instead of"):
        train(replace(config, unet=given | {"width": 16}), tmp_path / "other")


def test_command_line_begins_with_a_checkpoint(photos: Path, checkpoint: str, tmp_path: Path) -> None:
    options = (f"--images={photos}", f"--out={tmp_path / 'run'}", f"--init={checkpoint}", "--residual-scale=2")
    done = CliRunner().invoke(main, ["train-ddpm", *options, "--crop=32", "--batch-size=2", "--iterations=1"])
    assert done.exit_code == 0, done.output
    unet = load_unet(tmp_path / "run" / "checkpoint")
    assert unet.residual_scale == 2
    assert unet.first.out_channels == TINY["width"]


def test_crops_depend_on_seed_and_number_alone(photos: Path) -> None:
    paths = sorted(photos.iterdir())
    one = CropDataset(paths, 32, seed=1, cache_mb=0, degradation=Degradation("photo"), scale=4)
    same = CropDataset(paths, 32, seed=1, cache_mb=10, degradation=Degradation("photo"), scale=4)
    other = CropDataset(paths, 32, seed=2, cache_mb=0, degradation=Degradation("photo"), scale=4)
    for n in (17, 3, 99):
        assert all(torch.equal(a, b) for a, b in zip(one[n], same[n], strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(one[n], other[n], strict=True))
    assert len(same.cache) > 0


@pytest.mark.parametrize(
    ("schedule", "expected"), [("cosine", [1, 0.5, 0]), ("step", [1, 1, 0.01]), ("constant", [1, 1, 1])]
)
def test_learning_rate(config: DDPMConfig, schedule: str, expected: list[float]) -> None:
    config = replace(
        config,
        lr_schedule=schedule,  # type: ignore[arg-type]
        iterations=1000,
        warmup=0,
        lr=1.0,
    )
    np.testing.assert_allclose([config.learning_rate(i) for i in (0, 500, 999)], expected, atol=1e-5)
    assert replace(config, warmup=9).learning_rate(0) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 33}, "multiple"),
        ({"batch_size": 0}, "at least 1"),
        ({"lr": 0}, "positive"),
        ({"ema_decay": 1}, r"\[0, 1\)"),
        ({"perceptual_weight": -1}, "perceptual_weight must be a number of at least 0"),
        ({"lr_schedule": "linear"}, "cosine, step, constant"),
        ({"mixed_precision": "int8"}, "auto, no, fp16, bf16"),
        ({"unet": {"wdith": 8}}, "wdith"),
    ],
)
def test_bad_settings(config: DDPMConfig, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(replace(config, **changes), tmp_path / "run")


def test_bad_pictures(config: DDPMConfig, tmp_path: Path, photo: Callable[..., np.ndarray]) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    with pytest.raises(ImageError, match="no picture in the folder"):
        train(replace(config, images=[str(folder)]), tmp_path / "run")
    Image.fromarray(photo(31, 64)).save(folder / "small.png")
    with pytest.raises(ImageError, match=r"small.png is 64 x 31, smaller than the crop of 32"):
        train(replace(config, images=[str(folder)]), tmp_path / "run")
    (folder / "small.png").write_text("hello", encoding="utf-8")
    with pytest.raises(ImageError, match=r"cannot be trained on: .*small.png"):
        train(replace(config, images=[str(folder)]), tmp_path / "run")


def test_resuming_keeps_the_run(config: DDPMConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to resume"):
        resumed_config(DDPMConfig, tmp_path, {})
    train(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="not empty"):
        train(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="keeps its width"):
        resumed_config(DDPMConfig, tmp_path / "run", {"width": 64})
    with pytest.raises(ConfigError, match="keeps its seed"):
        resumed_config(DDPMConfig, tmp_path / "run", {"seed": 1})
    assert resumed_config(DDPMConfig, tmp_path / "run", {"width": 8, "iterations": 6}).iterations == 6
    (tmp_path / "run" / "config.json").write_text('{"images": ["x"], "lrr": 1}', encoding="utf-8")
    with pytest.raises(ConfigError, match="lrr"):
        resumed_config(DDPMConfig, tmp_path / "run", {})
    (tmp_path / "run" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config.json lacks the settings images; start the run anew"):
        resumed_config(DDPMConfig, tmp_path / "run", {})


def test_a_run_goes_on_with_its_pictures(config: DDPMConfig, photos: Path, photo: Photo, tmp_path: Path) -> None:
    train(config, tmp_path / "run")
    more = resumed_config(DDPMConfig, tmp_path / "run", {"iterations": 6})
    before = (photos / "2.png").read_bytes()
    Image.fromarray(photo(128, 128, seed=9)).save(photos / "2.png")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"was trained on other pictures .*; put them back, or start a new run"):
            train(more, tmp_path / "run", resume=True)
    assert latest_state(tmp_path / "run") == tmp_path / "run" / "state-00000004"
    (photos / "2.png").write_bytes(before)
    train(more, tmp_path / "run", resume=True)
    versions = json.loads((tmp_path / "run" / "versions.json").read_text(encoding="utf-8"))
    del versions["pictures"]  # as in runs of older versions
    (tmp_path / "run" / "versions.json").write_text(json.dumps(versions), encoding="utf-8")
    (photos / "2.png").unlink()
    train(replace(more, iterations=8), tmp_path / "run", resume=True)


def test_each_step_is_in_tensorboard_once(config: DDPMConfig, tmp_path: Path) -> None:
    """Also where a run was killed after it had logged more than its last state holds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(replace(config, iterations=2), tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "kept")
    train(resumed_config(DDPMConfig, tmp_path / "run", {"iterations": 4}), tmp_path / "run", resume=True)
    shutil.rmtree(tmp_path / "run" / "state-00000004")
    shutil.copytree(tmp_path / "kept" / "state-00000002", tmp_path / "run" / "state-00000002")
    train(resumed_config(DDPMConfig, tmp_path / "run", {"iterations": 6}), tmp_path / "run", resume=True)
    (place,) = {file.parent for file in (tmp_path / "run").rglob("events.*")}
    events = EventAccumulator(str(place))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6]


def test_diverging_loss_stops(config: DDPMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))
    monkeypatch.setattr(
        training, "training_loss", lambda *args: training_loss(*args) * (1.0 if next(calls) < 2 else float("nan"))
    )
    with pytest.raises(ConfigError, match="loss became nan at iteration 4"):
        train(config, tmp_path / "run")
    assert latest_state(tmp_path / "run") == tmp_path / "run" / "state-00000002"


def test_a_run_that_was_killed_before_its_checkpoint_was_written(config: DDPMConfig, tmp_path: Path) -> None:
    """The state is there and the weights are not, or those of an earlier state are."""
    expected = load_file(train(config, tmp_path / "run") / "model.safetensors")
    for damage in ("missing", "old"):
        file = tmp_path / "run" / "checkpoint" / "model.safetensors"
        if damage == "missing":
            shutil.rmtree(file.parent)
        else:
            tiny_unet(7, dropout=0.2).half().save_pretrained(file.parent)
        train(resumed_config(DDPMConfig, tmp_path / "run", {}), tmp_path / "run", resume=True)
        assert_same(load_file(file), expected)


def test_one_process_in_a_folder(config: DDPMConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "run")
    again = resumed_config(DDPMConfig, tmp_path / "run", {"iterations": 6})
    with lock_run(tmp_path / "run"), pytest.raises(ConfigError, match="another process is at work in"):
        train(again, tmp_path / "run", resume=True)
    assert latest_state(tmp_path / "run") == tmp_path / "run" / "state-00000004"
    train(again, tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / ".lock").exists()


def test_out_that_is_a_file(config: DDPMConfig, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("hello", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--out must be a folder, but .*plain is a file"):
        train(config, tmp_path / "plain")
    assert (tmp_path / "plain").read_text(encoding="utf-8") == "hello"


def test_all_bad_pictures_are_named_before_training(config: DDPMConfig, photos: Path, tmp_path: Path) -> None:
    whole = (photos / "0.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "text.png").write_text("hello", encoding="utf-8")
    with pytest.raises(ImageError, match=r"2 of 6 pictures cannot be trained on: .*cut\.png.*text\.png"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_trainings_of_different_precision_in_one_process(config: DDPMConfig, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{"mixed_precision": precision} for precision in ("no", "bf16", "no")]
    short = replace(config, iterations=1)
    found = [weights_of(train(replace(short, **each), tmp_path / str(i))) for i, each in enumerate(changes)]
    assert_same(found[0], found[2])
    assert any(not torch.equal(value, found[1][name]) for name, value in found[0].items()), "bf16 was not taken"


def test_losses_differ(config: DDPMConfig, tmp_path: Path) -> None:
    a, b = (weights_of(train(replace(config, loss=loss), tmp_path / loss)) for loss in ("l1", "l2"))
    assert not torch.equal(a["last.weight"], b["last.weight"])


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (f"--seed={2**64}", "seed must be at most 9223372036854775807"),
        ("--perceptual-weight=1", "metric lpips needs pictures of at least 32 pixels a side, got 16 x 16"),
        ("--predictor=nowhere.safetensors", "there is no predictor at nowhere.safetensors"),
        ("--loss=l3", "is not one of 'l1', 'l2'"),
    ],
)
def test_options_are_refused_before_the_folder_is_made(option: str, message: str, photos: Path, tmp_path: Path) -> None:
    arguments = ["train-ddpm", f"--images={photos}", f"--out={tmp_path / 'run'}", *OPTIONS, "--crop=16", option]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_from_any_folder(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    arguments = ["train-ddpm", f"--images={photos.name}", f"--out={tmp_path / 'run'}", *OPTIONS, "--iterations=2"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = CliRunner().invoke(main, ["train-ddpm", "--resume", f"--out={tmp_path / 'run'}", "--iterations=4"])
    assert result.exit_code == 0, result.output
    assert latest_state(tmp_path / "run") == tmp_path / "run" / "state-00000004"


def test_what_a_run_begins_with_is_found_from_any_folder(
    photos: Path, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are kept as absolute ones, so that the same options are accepted when the run goes on; names stay."""
    configs = []
    monkeypatch.setattr(training, "train", lambda config, *_: configs.append(config))
    monkeypatch.chdir(Path(checkpoint).parent)
    out, init = tmp_path / "run", f"--init={Path(checkpoint).name}"
    images = f"--images={os.path.relpath(photos)}"
    result = CliRunner().invoke(main, ["train-ddpm", images, f"--out={out}", init, "--crop=32"])
    assert result.exit_code == 0, result.output
    assert (configs[0].init, configs[0].images) == (checkpoint, [str(photos)])
    start_run(out, asdict(configs[0]))
    result = CliRunner().invoke(main, ["train-ddpm", "--resume", f"--out={out}", init, "--iterations=4"])
    assert result.exit_code == 0, result.output
    assert (configs[1].init, configs[1].iterations) == (checkpoint, 4)
    result = CliRunner().invoke(main, ["train-ddpm", images, f"--out={tmp_path / 'other'}", "--init=natural-x4"])
    assert result.exit_code == 0, result.output
    assert configs[2].init == "natural-x4"
    result = CliRunner().invoke(main, ["train-ddpm", "--images=", f"--out={tmp_path / 'other'}"])
    assert configs[3].images == [""], "an empty path is refused where pictures are read"


def test_a_damaged_state_is_named(config: DDPMConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "run")
    state = latest_state(tmp_path / "run")
    assert state is not None
    for name in ("model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl"):  # the random states are not used
        whole = (state / name).read_bytes()
        (state / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match=f"the state {state} is damaged .*; remove it, and --resume"):
            train(resumed_config(DDPMConfig, tmp_path / "run", {"iterations": 6}), tmp_path / "run", resume=True)
        (state / name).write_bytes(whole)
    shutil.rmtree(state)
    (tmp_path / "run" / "state-other").mkdir()  # is none
    train(resumed_config(DDPMConfig, tmp_path / "run", {"iterations": 2}), tmp_path / "run", resume=True)
    assert latest_state(tmp_path / "run") == tmp_path / "run" / "state-00000002"


def test_the_samples_of_any_number_of_iterations() -> None:
    """Process 1 of 2, batches of 3, from iteration 2 on; and nothing of the size of the whole is made."""
    order = batches(2, 10**9, 3, processes=2, process=1)
    assert list(islice(order, 3)) == [[15, 16, 17], [21, 22, 23], [27, 28, 29]]
    assert list(batches(10**9 - 1, 10**9, 3)) == [[3 * 10**9 - 3, 3 * 10**9 - 2, 3 * 10**9 - 1]]


def test_a_run_that_was_killed_before_its_first_state(config: DDPMConfig, tmp_path: Path) -> None:
    """What is left under temporary names stands in the way of nothing."""
    for left in (".skipdiff-x.json", ".skipdiff-state/model.safetensors", ".lock"):
        (tmp_path / "run" / left).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / left).touch()
    train(config, tmp_path / "run")
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
