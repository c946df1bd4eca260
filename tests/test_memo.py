"""The bounded stores, in memory and on disk."""

import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ddpm.pictures.degradation import Degradation
from skipdiff_env import SkipDiffEnv
from skipdiff_env.memo import BLOCK, DIGEST, OVERHEAD, Memo, Store
from skipdiff_env.metrics import Metric
from tests.conftest import counting, tiny_unet
from tests.test_vector_env import assert_same

TENSOR = torch.zeros(2, 1024)  # 8 KiB
SIZE = TENSOR.nbytes + OVERHEAD


def test_least_recently_used_goes_first() -> None:
    memo = Memo(3 * SIZE / 2**20)
    for key in "abc":
        memo.put(key, TENSOR)
    assert memo.get("a") is not None
    memo.put("d", TENSOR)
    assert [key for key in "abcd" if memo.get(key) is not None] == ["a", "c", "d"]


def test_a_stored_tensor_is_a_copy() -> None:
    memo = Memo(1)
    batch = torch.zeros(8, 4)
    memo.put("row", batch[3])
    batch += 1
    stored = memo.get("row")
    assert not stored.any()
    assert stored.untyped_storage().nbytes() == 16, "the batch would stay alive"


def test_what_does_not_fit_is_not_stored() -> None:
    for megabytes in (0, (SIZE - 1) / 2**20):
        memo = Memo(megabytes)
        memo.put("a", TENSOR)
        assert memo.get("a") is None
        assert memo.used == 0


def test_replacing_does_not_count_twice() -> None:
    memo = Memo(1)
    for _ in range(3):
        memo.put("a", TENSOR)
    assert memo.used == SIZE
    assert len(memo) == 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4000)), max_size=60))
def test_never_above_capacity(entries: list[tuple[int, int]]) -> None:
    memo = Memo(4 * OVERHEAD / 2**20 + 0.01)
    last: dict[int, int] = {}
    for key, length in entries:
        memo.put(key, torch.full((length,), float(key)))
        last[key] = length
        assert memo.used <= memo.capacity
    kept = {key: memo.get(key) for key in last}
    assert memo.used == sum(OVERHEAD + 4 * len(value) for value in kept.values() if value is not None)
    for key, value in kept.items():
        if value is not None:
            assert (value == key).all()


def test_several_threads() -> None:
    """The room that is counted is the room that is used, whoever comes first."""
    memo = Memo(20 * SIZE / 2**20)

    def work(seed: int) -> None:
        for key in np.random.default_rng(seed).integers(30, size=2000).tolist():
            value = memo.get(key)
            assert value is None or value[0, 0] == key
            memo.put(key, TENSOR + key)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert memo.used == SIZE * len(memo) <= memo.capacity


# --- on disk ---


def test_another_process_finds_it(tmp_path: Path) -> None:
    """Tensors and numbers, bit by bit."""
    value, numbers = torch.randn(3, 5, 5), {"lpips": 0.1, "broken": float("nan")}
    first = Memo(1, Store(tmp_path, 1))
    first.put(("a", 1, (4, 2)), value)
    first.put("numbers", numbers)
    first.put("fleeting", value, lasting=False)
    for megabytes in (0, 1):
        later = Memo(megabytes, Store(tmp_path, 1))
        assert torch.equal(later.get(("a", 1, (4, 2))), value)
        found = later.get("numbers")
        assert found["lpips"] == 0.1
        assert np.isnan(found["broken"])
        assert later.get("fleeting") is None
        assert later.get(("a", 2, (4, 2))) is None
        assert len(later) == (2 if megabytes else 0), "kept in memory from then on"


def test_a_damaged_file_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path, 1)
    store.put("a", TENSOR)
    (file,) = tmp_path.glob("*/*/*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    assert store.get("a") is None
    store.put("a", TENSOR)
    assert store.get("a") is not None


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 0x40
    file.write_bytes(content)


def rewrite(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    """Writes other tensors into a file, as whole a safetensors file as before, with the digest of the old ones."""

    def damage(file: Path) -> None:
        found = load_file(file)
        digest = found.pop(DIGEST)
        save_file({**change(found), DIGEST: digest}, file)

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a bit flipped": flip,
    "flattened": rewrite(lambda found: {name: each.reshape(1, -1) for name, each in found.items()}),
    "shorter": rewrite(lambda found: {name: each.reshape(-1)[1:].clone() for name, each in found.items()}),
    "other tensors": rewrite(lambda found: {"x": torch.zeros(3)}),
    "one more tensor": rewrite(lambda found: {**found, "x": torch.zeros(3)}),
    "renamed": rewrite(lambda found: {f"{name}2": each for name, each in found.items()}),
    "not a number": rewrite(lambda found: {name: each * float("nan") for name, each in found.items()}),
    "another type": rewrite(lambda found: {name: each.float() for name, each in found.items()}),
    "without digest": lambda file: save_file({k: v for k, v in load_file(file).items() if k != DIGEST}, file),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_not_written_is_none(damage: str, tmp_path: Path) -> None:
    """Bit rot, a synchronised folder, a script: whole safetensors files that hold something else."""
    values: dict[str, Any] = {"tensor": torch.randn(2, 3, dtype=torch.float64), "numbers": {"lpips": 0.1, "psnr": 20.0}}
    for key, value in values.items():
        store = Store(tmp_path / key, 1)
        store.put(key, value)
        (file,) = (tmp_path / key).glob("*/*/*.safetensors")
        assert store.get(key) is not None
        DAMAGES[damage](file)
        assert store.get(key) is None
        store.put(key, value)
        assert store.get(key) is not None


def test_a_file_under_another_name_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path, 1)
    store.put("a", TENSOR)
    (file,) = tmp_path.glob("*/*/*.safetensors")
    store.put("b", TENSOR + 1)
    other = next(each for each in tmp_path.glob("*/*/*.safetensors") if each != file)
    shutil.copyfile(file, other)
    assert store.get("a") is not None
    assert store.get("b") is None


def on_disk(folder: Path) -> int:
    """Bytes of blocks."""
    return sum(-(-file.stat().st_size // BLOCK) * BLOCK for file in folder.glob("*/*/*"))


def test_bounded_on_disk(tmp_path: Path) -> None:
    """Whatever the number of stores and of restarts; what was not used for longest goes first."""
    capacity = 40 * (TENSOR.nbytes + 2 * BLOCK)
    for _ in range(3):
        stores = [Store(tmp_path, capacity / 2**20) for _ in range(2)]
        for i in range(60):
            for place, store in enumerate(stores):
                store.put((place, i), TENSOR)
                assert on_disk(tmp_path) <= capacity * (1 + 2 / 16) + 2 * (TENSOR.nbytes + 2 * BLOCK)
            if i == 0:
                stores[0].put("kept", TENSOR)
            assert stores[0].get("kept") is not None, "used again and again"
    assert stores[0].get((0, 0)) is None
    assert stores[0].get((0, 59)) is not None


def test_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo = Memo(1, Store(tmp_path, 1))

    def full(tensors: Any, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("skipdiff_env.memo.save_file", full)
    with pytest.warns(UserWarning, match=r"a value could not be stored in cache_dir .* \(No space left on device\)"):
        memo.put("a", TENSOR)
    assert memo.get("a") is not None, "in memory it is"
    assert not list(tmp_path.glob("*/*/*")), "nothing half-written is left"


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    """The folder may be one that holds more than the cache, even files that look alike."""
    own = tmp_path / "checkpoints" / "mine" / "deep" / "model.safetensors"
    own.parent.mkdir(parents=True)
    own.write_bytes(bytes(10**6))
    store = Store(tmp_path, 0.1)
    for i in range(50):
        store.put(i, TENSOR)
    assert own.stat().st_size == 10**6


# --- under the environment ---

ENV: dict[str, Any] = {
    "image_size": 32, "steps": (1, 5), "skip_mode": "jump", "metric": "psnr", "noise_seeds": 2, "observation": "dict",
}  # fmt: skip


def episodes(env: SkipDiffEnv) -> list[Any]:
    """Some episodes, with all that is seen of them."""
    given: list[Any] = []
    rng = np.random.default_rng(0)
    for i in range(6):
        given.append(env.reset(options={"image": i % 3, "noise_seed": i % 2}))
        given += [env.step(int(action)) for action in rng.integers(2, size=4)]
        given.append(env.sr)
    return given


def test_a_second_run_starts_warm(short_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {**ENV, "checkpoint": short_checkpoint, "cache_dir": str(tmp_path)}
    cold = episodes(SkipDiffEnv(**arguments))
    monkeypatch.setattr(Metric, "__call__", lambda *args: pytest.fail("a metric was measured again"))
    monkeypatch.setattr(Degradation, "__call__", lambda *args: pytest.fail("a picture was made again"))
    for cache_mb in (64, 0):
        env = SkipDiffEnv(**arguments, cache_mb=cache_mb)
        with counting(env.task.unet) as forwards:
            assert_same(episodes(env), cold)
        assert forwards == []
    assert_same(pickle.loads(pickle.dumps(env)).reset(options={"image": 0, "noise_seed": 0}), cold[0])


def test_others_do_not_see_it(short_checkpoint: str, tmp_path: Path) -> None:
    """Another net, plan, picture or degradation is another entry; so is a function, whose name says nothing."""
    arguments = {**ENV, "checkpoint": short_checkpoint, "cache_dir": str(tmp_path / "cache")}
    episodes(SkipDiffEnv(**arguments))
    tiny_unet(seed=1, diffusion_steps=12, coarse_steps=3, start=None).save_pretrained(tmp_path / "net")

    def psnr(sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        return sr.mean((1, 2, 3)) * 0 + 7

    for change in (
        {"checkpoint": str(tmp_path / "net")},
        {"fine_sampler": "ddim"},
        {"steps": (1, 6)},
        {"split": "test"},
        {"degradation": "photo"},
    ):
        env = SkipDiffEnv(**{**arguments, **change})
        with counting(env.task.unet) as forwards:
            env.reset(options={"image": 0, "noise_seed": 0})
            for _ in range(env.task.decisions):
                env.step(0)
        assert forwards
    for _ in range(2):
        env = SkipDiffEnv(**{**arguments, "metric": psnr})
        with counting(env.task.unet) as forwards:
            rewards = [given[1] for given in episodes(env) if isinstance(given, tuple) and len(given) == 5]
        assert forwards == [], "latents are the same"
        assert set(rewards) == {0.0, 7.0}
    env = SkipDiffEnv(**{**arguments, "report_metrics": ["colour"]})
    assert set(episodes(env)[4][-1]["metrics"]) == {"psnr", "colour"}, "further metrics are added to what is there"
    assert set(episodes(SkipDiffEnv(**arguments))[4][-1]["metrics"]) == {"psnr"}


def _work(arguments: dict[str, Any]) -> list[Any]:
    return episodes(SkipDiffEnv(**arguments))


@pytest.mark.slow
def test_several_processes(short_checkpoint: str, tmp_path: Path) -> None:
    """They write and read one folder at once, and leave nothing half-written."""
    arguments = {**ENV, "checkpoint": short_checkpoint, "cache_dir": str(tmp_path), "cache_mb": 0, "cache_dir_mb": 1}
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(_work, [arguments] * 4))
    expected = episodes(SkipDiffEnv(**{**arguments, "cache_dir": None}))
    for each in found:
        assert_same(each, expected)
    assert list(tmp_path.glob("*/*/*.safetensors"))
    assert not list(tmp_path.glob("*/*/.*"))
