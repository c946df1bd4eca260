"""Exported graphs, and the programs other than torch that run networks."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from agents.cli import main
from ddpm.checkpoints import load_unet, save_checkpoint
from ddpm.nets import backends, export
from ddpm.nets.backends import run_by
from ddpm.nets.predictor import load_predictor
from ddpm.noise import Stage, keyed_noise
from ddpm.pictures.degradation import upsample
from ddpm.pictures.images import to_tensor, to_uint8
from ddpm.util.errors import ConfigError
from skipdiff_env.upscaler import Upscaler
from tests.conftest import Photo, tiny_unet
from tests.test_predictor import tiny_span

MOST = 16


@pytest.fixture(autouse=True)
def _shared_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of networks are made once for all tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "graphs"))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of graphs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints by name: plain, with substeps and a predictor, and one that predicts eps."""
    root = tmp_path_factory.mktemp("nets")
    save_file(tiny_span(norm=False).state_dict(), root / "span.safetensors")
    unets = {
        "plain": tiny_unet(local_variance=True, attention_resolutions=(64,)),
        "substeps": tiny_unet(),
        "eps": tiny_unet(prediction="eps", target="image"),
    }
    jumps = unets["substeps"].jump_network().eval()
    for parameter in jumps.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    unets["substeps"].add_substeps(MOST, jumps)
    unets["substeps"].start_from(load_predictor(root / "span.safetensors"))
    for name, unet in unets.items():
        save_checkpoint(unet, root / name)
    return {name: str(root / name) for name in unets}


@pytest.fixture(scope="module")
def graphs(nets: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What `skipdiff export` writes for two of the checkpoints."""
    pytest.importorskip("onnx")
    root, found = tmp_path_factory.mktemp("graphs"), {}
    for name, options in (("plain", ()), ("substeps", ("--detail=0.5",))):
        found[name] = root / f"{name}.onnx"
        result = skipdiff("export", nets[name], "-o", found[name], *options)
        assert result.exit_code == 0, result.output
    return found


def skipdiff(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def noise_of(lr_image: torch.Tensor, scale: int = 4, stride: int = 4) -> np.ndarray:
    """The noise that the upscaler draws with the seed 0."""
    height, width = (-(-side * scale // stride) * stride for side in lr_image.shape[-2:])
    return keyed_noise(0, Stage.INITIAL, 1, (3, height, width))[None]


def runner(kind: str, path: Path) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """Runs a graph by ONNX Runtime or OpenVINO."""
    module: Any = pytest.importorskip(kind)
    if kind == "onnxruntime":
        options = module.SessionOptions()
        options.log_severity_level = 3  # of an input with a default it says that it is no constant
        session = module.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(None, inputs)[0]
    compiled = backends._core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: compiled(inputs)[0]


@pytest.mark.parametrize("scale", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [(1, 1), (5, 8)])
def test_bicubic_enlargement_by_convolutions(scale: int, size: tuple[int, int]) -> None:
    lr_image = torch.rand(2, 3, *size) * 2 - 1
    torch.testing.assert_close(export._bicubic(lr_image, scale), upsample(lr_image, scale), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_a_plain_graph_gives_what_the_upscaler_gives(
    kind: str, nets: dict[str, str], graphs: dict[str, Path], photo: Photo
) -> None:
    pytest.importorskip(kind)
    run = runner(kind, graphs["plain"])
    for size in ((16, 24), (17, 9), (1, 3)):
        lr_image = to_tensor(photo(*size))
        sr = Upscaler(nets["plain"], levels=(1,)).upscale([lr_image], [0])[0].sr
        inputs = {"image": (lr_image[None].numpy() + 1) / 2, "noise": noise_of(lr_image)}
        found = run(inputs)
        assert found.shape == (1, *sr.shape)
        assert np.abs(found[0] * 255 - (sr.numpy() + 1) * 127.5).max() < 1
    both = run({name: np.repeat(value, 2, axis=0) for name, value in inputs.items()})
    np.testing.assert_allclose(both[1], found[0], atol=1e-5)


def test_sides_that_do_not_fit_the_stride(photo: Photo, tmp_path: Path) -> None:
    """The condition is continued as the upscaler does it; noise of the size of the result, periodically."""
    pytest.importorskip("onnx")
    unet = tiny_unet(scale=3)
    save_checkpoint(unet, tmp_path / "x3")
    export.export_onnx(tmp_path / "x3", tmp_path / "x3.onnx")
    run = runner("onnxruntime", tmp_path / "x3.onnx")
    lr_image = to_tensor(photo(5, 7))
    noise = noise_of(lr_image, 3)
    assert noise.shape == (1, 3, 16, 24)
    sr = Upscaler(tmp_path / "x3", levels=(1,)).upscale([lr_image], [0])[0].sr
    image = (lr_image[None].numpy() + 1) / 2
    assert np.abs(run({"image": image, "noise": noise})[0] * 255 - (sr.numpy() + 1) * 127.5).max() < 1
    small = noise[..., :15, :21]
    wrapped = np.pad(small, ((0, 0), (0, 0), (0, 1), (0, 3)), mode="wrap")
    np.testing.assert_array_equal(run({"image": image, "noise": small}), run({"image": image, "noise": wrapped}))


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_substeps_vary_at_run_time(kind: str, nets: dict[str, str], graphs: dict[str, Path], photo: Photo) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip(kind)
    path = graphs["substeps"]
    model = onnx.load(path)
    properties = {each.key: each.value for each in model.metadata_props}
    assert properties["most_substeps"] == str(MOST)
    assert (properties["checkpoint"], properties["scale"], properties["stride"]) == ("substeps", "4", "4")
    assert [each.name for each in model.graph.input] == ["image", "noise", "detail"]
    lr_image = to_tensor(photo(12, 10))
    unet = load_unet(nets["substeps"])
    assert unet.predictor is not None
    # so that the graph's choice between the two is tested
    assert not torch.equal(unet.condition(lr_image[None]), unet.predictor(lr_image[None]))
    inputs = {"image": (lr_image[None].numpy() + 1) / 2, "noise": noise_of(lr_image)}
    run = runner(kind, path)
    results = {0.5: run(inputs)}
    if kind == "onnxruntime":  # OpenVINO takes the default for a constant
        for detail in (0.0, 0.14, 0.15, 0.4, 1.0, 2.0):
            results[detail] = run({**inputs, "detail": np.array([detail], np.float32)})
    for detail, found in results.items():
        sr = Upscaler(nets["substeps"], detail=min(detail, 1)).upscale([lr_image], [0])[0].sr
        assert np.abs(found[0] * 255 - (sr.numpy() + 1) * 127.5).max() < 1
    if kind == "onnxruntime":
        assert np.abs(results[0.0] - results[0.5]).max() > 2 / 255
        assert np.abs(results[1.0] - results[0.5]).max() > 2 / 255


def test_bad_exports_end_in_one_line(nets: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    (tmp_path / "old.onnx").write_bytes(b"old")
    (tmp_path / "folder.onnx").mkdir()
    for arguments, words in (
        ((nets["plain"], "-o", tmp_path / "net.png"), "ending in .onnx"),
        ((nets["plain"], "-o", tmp_path / "old.onnx"), "replace it with --overwrite"),
        ((nets["plain"], "-o", tmp_path / "folder.onnx", "--overwrite"), "give another --out"),
        ((nets["plain"], "-o", tmp_path / "no" / "net.onnx"), "no such folder"),
        ((nets["plain"], "-o", tmp_path / "net.onnx", "--detail=2"), "0<=x<=1"),
        ((nets["plain"], "-o", tmp_path / "net.onnx", "--detail=1"), "skipdiff train-substeps"),
        ((nets["eps"], "-o", tmp_path / "net.onnx"), "predicts eps"),
        (("nothing", "-o", tmp_path / "net.onnx"), "unknown checkpoint"),
    ):
        result = skipdiff("export", *arguments)
        assert result.exit_code == 2
        assert words in result.output
        assert "Traceback" not in result.output
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = skipdiff("export", nets["plain"], "-o", tmp_path / "net.onnx")
    assert result.exit_code == 2
    assert "pip install 'skipdiff[export]'" in result.output
    assert (tmp_path / "old.onnx").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.onnx", "old.onnx"]


def test_overwriting(nets: dict[str, str], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    (tmp_path / "net.onnx").write_bytes(b"old")
    assert skipdiff("export", nets["plain"], "-o", tmp_path / "net.onnx", "--overwrite").exit_code == 0
    assert onnx.load(tmp_path / "net.onnx").graph.output[0].name == "sr"


def test_a_graph_with_fixed_sizes_is_refused(nets: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As the tracing of a predictor that computes with its sizes could give one."""
    pytest.importorskip("onnx")
    unet = load_unet(nets["plain"])
    monkeypatch.setattr(export, "_padded", lambda side, stride: -(-int(side) // stride) * stride)
    with pytest.raises(ConfigError, match="at another size"):
        export._check(export.build(unet), unet)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_backends_give_what_torch_gives(
    backend: str, nets: dict[str, str], photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip(backend)
    lr_images = [to_tensor(photo(20, 14, seed)) for seed in range(3)]
    for checkpoint in (nets["plain"], nets["substeps"]):
        expected, found = (
            Upscaler(checkpoint, levels=(4, 2, 1), backend=each, tile=40, batch_size=2) for each in ("torch", backend)
        )
        results = [upscaler.upscale(lr_images, range(3)) for upscaler in (expected, found)]
        for one, other in zip(*results, strict=True):
            assert np.abs(to_uint8(one.sr).astype(int) - to_uint8(other.sr)).max() <= 1
    parts: list[float] = []
    found.upscale(lr_images[:1], [0], parts.append)
    assert sum(parts) == pytest.approx(3)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_backends_run_jumps(backend: str, nets: dict[str, str]) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip(backend)
    expected, found = load_unet(nets["substeps"]), run_by(backend, load_unet(nets["substeps"]))
    inputs = torch.rand(3, 3, 8, 16), torch.randn(3, 3, 8, 16), torch.full((3,), 0.1), torch.full((3,), 0.8)
    for substeps in ((1, 4, 16), (1, 1, 1), (2, 2, 2)):
        with torch.inference_mode():
            out = [unet(*inputs, torch.tensor(substeps, dtype=torch.float32)) for unet in (expected, found)]
        torch.testing.assert_close(out[1], out[0], atol=1e-4, rtol=1e-4)


def test_signals_are_handled_after_openvino(nets: dict[str, str]) -> None:
    """OpenVINO's plugins leave a freed stack for signals behind if they end in the order in which they began."""
    pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    code = f"""
import gc, signal, subprocess
from ddpm.checkpoints import load_unet
from ddpm.nets.backends import run_by

nets = [run_by("openvino", load_unet({nets["plain"]!r})) for _ in range(3)]
while nets:
    nets.pop(0)
    gc.collect()
signal.signal(signal.SIGCHLD, lambda *_: print("handled"))
subprocess.run(["true"], check=True)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n")


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_graphs_are_cached(nets: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    made: list[str] = []
    traced = backends.traced

    def counting(network: Any, inputs: Any) -> bytes:
        made.append(type(network).__name__)
        return traced(network, inputs)

    monkeypatch.setattr(backends, "traced", counting)
    for content in (None, None, b"damaged", b""):
        for file in backends.cache_folder().glob("*"):
            if content is not None:
                file.write_bytes(file.read_bytes()[:-1] + content if content else b"")
        run_by("onnxruntime", load_unet(nets["plain"]))
    assert len(made) == 3
    other = load_unet(nets["plain"])
    other.last.weight.data += 0.01
    run_by("onnxruntime", other)
    assert len(made) == 4
    assert len(list(backends.cache_folder().iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_none(
    nets: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    run_by("onnxruntime", load_unet(nets["plain"]))


def test_upscale_by_another_backend(nets: dict[str, str], photo: Photo, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    Image.fromarray(photo(12, 12)).save(tmp_path / "a.png")
    options = ("--checkpoint", nets["plain"], "--levels=2,1")
    for backend in ("torch", "onnxruntime"):
        out = tmp_path / f"{backend}.png"
        result = skipdiff("upscale", tmp_path / "a.png", "-o", out, "--backend", backend, *options)
        assert result.exit_code == 0, result.output
    one, other = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("torch", "onnxruntime"))
    assert np.abs(one - other).max() <= 1


@pytest.mark.usefixtures("own_cache")
def test_bad_backends(nets: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = load_unet(nets["plain"])
    with pytest.raises(ConfigError, match="must be one of torch, onnxruntime, openvino"):
        run_by("tensorrt", unet)
    with pytest.raises(ConfigError, match="runs on the device cpu, got 'cuda:1'; take the backend torch"):
        run_by("onnxruntime", unet, "cuda:1")
    monkeypatch.setitem(sys.modules, "openvino", None)
    result = skipdiff("upscale", tmp_path, "-o", tmp_path / "out", "--checkpoint", nets["plain"], "--backend=openvino")
    assert result.exit_code == 2
    assert "pip install 'skipdiff[openvino]'" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()
    assert not backends.cache_folder().exists()
    monkeypatch.setitem(backends.PROGRAMS, "onnxruntime", lambda graph: lambda inputs: inputs[0] * 0)
    with pytest.raises(ConfigError, match="has another output in onnxruntime than in torch"):
        run_by("onnxruntime", unet)


def test_used_up_memory_is_told_as_such(nets: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the upscaler tries fewer pictures at once."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    unet = run_by("onnxruntime", load_unet(nets["plain"]))
    compiled: Any = unet.forward

    def run(inputs: object) -> np.ndarray:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 1")

    monkeypatch.setattr(compiled, "run", run)
    with pytest.raises(MemoryError):
        unet(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4), torch.rand(1))
