"""Finding and loading checkpoints, and the device they run on."""

import shutil
from contextlib import suppress
from functools import partial
from importlib.resources import files
from pathlib import Path

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError

from ddpm.nets.denoiser import Denoiser, check_denoiser
from ddpm.nets.diffusers_models import is_diffusers, load_diffusers, split_settings
from ddpm.nets.unet import WEIGHTS, UNet
from ddpm.util.errors import CheckpointError, ConfigError
from ddpm.util.files import read_settings

# Files that are downloaded from a repository: settings and weights of a net, its predictor and its agent.
HUB_FILES = ("*.json", "*.safetensors", "*.pth")
# Files that are downloaded of a model of diffusers, and its weights in other precisions or before averaging, which are
# not.
DIFFUSERS_FILES = ("*.json", "*/*.txt", "*/*.safetensors", "diffusion_pytorch_model*.safetensors")
DIFFUSERS_VARIANTS = ("*.fp16.*", "*.bf16.*", "*.non_ema.*")


def shipped_checkpoints() -> dict[str, Path]:
    """Return the checkpoints that come with the package: name → folder."""
    root = Path(str(files("checkpoints")))
    return {p.parent.name: p.parent for p in sorted(root.glob("*/config.json"))}


def is_hub_id(name: str | Path) -> bool:
    """Return whether this is the id of a repository on the Hugging Face Hub, OWNER/NAME or OWNER/NAME@REVISION.

    A name that looks like a path, or lies in a folder that exists, is not looked up on the network.
    """
    if not isinstance(name, str) or name.startswith((".", "~")) or "\\" in name:
        return False
    owner, _, rest = name.partition("@")[0].partition("/")
    return bool(owner and rest) and "/" not in rest and not Path(owner).is_dir()


def hub_folder(repo_id: str, what: str = "checkpoint") -> Path:
    """Download the files of a checkpoint and of its agent, or of an agent, from a repository on the Hub.

    Files that were downloaded before are not downloaded again, and are used where the Hub cannot be reached.

    Args:
        repo_id: OWNER/NAME, optionally followed by @ and a revision: a branch, a tag or a commit.
        what: the kind of thing that is expected there, for the error.

    Returns:
        The local folder.

    Raises:
        CheckpointError: the repository cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = repo_id.partition("@")
    download = partial(snapshot_download, name, revision=revision or None)
    try:
        folder = Path(download(allow_patterns=["*.json"]))
        if is_diffusers(folder):  # its files lie in folders; those above them hold the same once more
            return Path(download(allow_patterns=list(DIFFUSERS_FILES), ignore_patterns=list(DIFFUSERS_VARIANTS)))
        return Path(download(allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"unknown {what} {repo_id!r}: no such folder, and the Hub did not give it ({type(error).__name__}); "
            f"known are {_known()}"
        ) from None


def resolve_checkpoint(checkpoint: str | Path) -> str:
    """Return the folder of a checkpoint.

    A checkpoint is a shipped name, a folder, or the id of a repository on the Hub, which is downloaded. The settings
    behind "?" of a model of diffusers are ignored.

    Raises:
        CheckpointError: it is none of the three. A name that looks like a path, or lies in a folder that exists, is not
            looked up on the network.
    """
    if isinstance(checkpoint, str):
        checkpoint = split_settings(checkpoint)[0]
    name, folder = str(checkpoint), Path(checkpoint)
    shipped = shipped_checkpoints()
    if name in shipped:
        return str(shipped[name])
    if not folder.is_dir() and is_hub_id(checkpoint):
        folder = hub_folder(name)
    if folder.is_dir():
        for file in () if is_diffusers(folder) else ("config.json", WEIGHTS):
            if not (folder / file).is_file():
                raise CheckpointError(
                    f"{name} is not a checkpoint: it lacks {file}, and model_index.json as models of diffusers have it"
                )
        return str(folder)
    if folder.exists():
        raise CheckpointError(f"{name} is a file; name the folder with config.json and {WEIGHTS}")
    like_a_path = isinstance(checkpoint, Path) or "/" in name or "\\" in name
    raise CheckpointError(
        f"{'no such folder:' if like_a_path else 'unknown checkpoint'} {name!r}; known are {_known()}"
    )


def checkpoint_files(checkpoint: str | Path) -> list[Path]:
    """Return the files that a checkpoint is read from: all files in the folder of `resolve_checkpoint`.

    Raises:
        CheckpointError: as `resolve_checkpoint`.
    """
    folder = Path(resolve_checkpoint(checkpoint))
    found = folder.rglob("*") if is_diffusers(folder) else folder.iterdir()
    return sorted(file for file in found if file.is_file())


def load_denoiser(source: str | Path | Denoiser, device: str = "cpu", trust_pickle: bool = False) -> Denoiser:
    """Return the diffusion model of a checkpoint, ours or in the format of diffusers, in float32 for inference.

    Args:
        source: name of a shipped checkpoint, folder, or Hub id; a model of diffusers may have settings behind it, as in
            "FOLDER?prompt=a cat&guidance=4", see `ddpm.nets.diffusers_models.load_diffusers`. A `Denoiser` is returned
            unchanged.
        device: "cpu", "cuda", "cuda:1", "mps", …
        trust_pickle: whether the weights may be pickles, which can run any code.

    Raises:
        CheckpointError: the model is unknown, damaged, incomplete, or not one that enlarges pictures.
        ConfigError: a setting is unknown or wrong, or the device does not exist.
    """
    check_denoiser(source)
    if not isinstance(source, str | Path):
        return source
    check_device(device)
    folder = Path(resolve_checkpoint(source))
    settings = split_settings(source)[1] if isinstance(source, str) else {}
    if is_diffusers(folder):
        return load_diffusers(folder, device, settings | ({"trust_pickle": "true"} if trust_pickle else {}))
    if settings:
        raise ConfigError(f"settings behind ? are for models of diffusers, and {folder} is not one; leave them out")
    return load_unet(folder, device)


def _known() -> str:
    hub = "a Hub id such as owner/name or owner/name@revision"
    return ", ".join([*shipped_checkpoints(), f"a folder with config.json and {WEIGHTS}, or {hub}"])


def save_checkpoint(unet: UNet, folder: Path) -> None:
    """Write config.json and model.safetensors into `folder`, and keep the other files of the folder.

    Raises:
        CheckpointError: the folder cannot be written, or the disk is full; `folder` is left as it was.
    """
    created = not folder.exists()
    temporary = folder / ".partial"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        unet.save_pretrained(temporary)
        # safetensors makes its files readable by their owner only
        (temporary / WEIGHTS).chmod((temporary / "config.json").stat().st_mode)
        for file in temporary.iterdir():
            file.replace(folder / file.name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the checkpoint {folder} ({error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if created:
            with suppress(OSError):
                folder.rmdir()  # works where it is still empty


def load_unet(checkpoint: str | Path, device: str = "cpu") -> UNet:
    """Load a net in float32 for inference.

    Args:
        checkpoint: name of a shipped checkpoint, folder, or Hub id.
        device: "cpu", "cuda", "cuda:1", "mps", …

    Raises:
        CheckpointError: the checkpoint is unknown, damaged or incomplete.
        ConfigError: its configuration holds an unknown setting, or the device does not exist.
    """
    check_device(device)
    source = Path(resolve_checkpoint(checkpoint))
    if is_diffusers(source):
        raise CheckpointError(f"{checkpoint} is a model of diffusers; only our own networks can be used for this")
    read_settings(source / "config.json")  # refuses a damaged file
    try:
        unet = UNet.from_pretrained(source)
    except CheckpointError:
        raise
    except ConfigError as error:
        raise ConfigError(f"{source}/config.json: {error}") from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:  # its predictor may be on the Hub
        raise CheckpointError(f"the checkpoint {source} cannot be read ({error})") from None
    except (ValueError, TypeError, AttributeError) as error:  # raised by odd values
        raise CheckpointError(f"{source}/config.json is damaged ({error})") from None
    return unet.eval().requires_grad_(False).to(device)


def check_device(device: str) -> None:
    """Raise ConfigError if torch does not have this device."""
    try:
        torch.zeros(1, device=device).item()  # fails on the device "meta"
    except (RuntimeError, AssertionError, NotImplementedError):
        found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            found.append("mps")
        raise ConfigError(f"no such device: {device!r}; this machine has {', '.join(found)}") from None
