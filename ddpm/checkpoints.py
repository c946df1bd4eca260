"""Finding and loading checkpoints, and the device they run on."""

import shutil
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError

from ddpm.errors import CheckpointError, ConfigError
from ddpm.unet import WEIGHTS, UNet


def shipped_checkpoints() -> dict[str, Path]:
    """The checkpoints that come with the package: name → folder."""
    root = Path(str(files("checkpoints")))
    return {p.parent.name: p.parent for p in sorted(root.glob("*/config.json"))}


def resolve_checkpoint(checkpoint: str | Path) -> str:
    """A shipped name becomes its folder; a folder or a Hub id stays what it is.

    Raises:
        CheckpointError: it is none of the three. What looks like a path, or lies in a folder that exists, is not looked
            up on the network.
    """
    shipped = shipped_checkpoints()
    if str(checkpoint) in shipped:
        return str(shipped[str(checkpoint)])
    if Path(checkpoint).is_dir():
        for name in ("config.json", WEIGHTS):
            if not (Path(checkpoint) / name).is_file():
                raise CheckpointError(f"{checkpoint} is no checkpoint: it lacks {name}")
        return str(checkpoint)
    name = str(checkpoint)
    like_a_path = isinstance(checkpoint, Path) or "/" in name or "\\" in name
    owner, _, rest = name.partition("/")
    hub_id = owner and rest and "/" not in rest and not name.startswith((".", "~")) and "\\" not in name
    if isinstance(checkpoint, str) and hub_id and not Path(owner).is_dir():
        return name
    if Path(checkpoint).exists():
        raise CheckpointError(f"{name} is a file; name the folder with config.json and {WEIGHTS}")
    raise CheckpointError(
        f"{'no such folder:' if like_a_path else 'unknown checkpoint'} {name!r}; known are {_known()}"
    )


def _known() -> str:
    return ", ".join(
        [*shipped_checkpoints(), f"a folder with config.json and {WEIGHTS}, or a Hub id such as owner/name"]
    )


def save_checkpoint(unet: UNet, folder: Path) -> None:
    """Writes config.json and model.safetensors into `folder`, whose other files stay.

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
    """Loads a net in float32 for inference.

    Args:
        checkpoint: name of a shipped checkpoint, folder, or Hub id.
        device: "cpu", "cuda", "cuda:1", "mps", …

    Raises:
        CheckpointError: the checkpoint is unknown, damaged or incomplete.
        ConfigError: its configuration holds an unknown setting, or the device does not exist.
    """
    check_device(device)
    source = resolve_checkpoint(checkpoint)
    try:
        unet = UNet.from_pretrained(source)
    except CheckpointError:
        raise
    except ConfigError as error:
        raise ConfigError(f"{source}/config.json: {error}") from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        if Path(source).is_dir():
            raise CheckpointError(f"the checkpoint {source} cannot be read ({error})") from None
        raise CheckpointError(
            f"unknown checkpoint {str(checkpoint)!r}: no such folder, and the Hub did not give it "
            f"({type(error).__name__}); known are {_known()}"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:  # JSON that does not parse, or is no object
        raise CheckpointError(f"{source}/config.json is damaged ({error})") from None
    return unet.eval().requires_grad_(False).to(device)


def check_device(device: str) -> None:
    """Raises ConfigError where torch has no such device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            found.append("mps")
        raise ConfigError(f"no such device: {device!r}; this machine has {', '.join(found)}") from None
