"""Upload of checkpoints and agents to the Hugging Face Hub, with a card that describes them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.agent import CONFIG, WEIGHTS, find_agent, is_agent, load_agent
from agents.tables import markdown
from ddpm.checkpoints import load_unet, shipped_checkpoints
from ddpm.nets.unet import ADD_ON
from ddpm.util.errors import CheckpointError, ConfigError, one_line
from ddpm.util.files import read_settings

CARD = "README.md"
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp")
# Text of the card that huggingface_hub writes by default, which does not describe the network.
EMPTY_CARD = "PyTorchModelHubMixin"
# Files of every checkpoint and every agent.
OWN = (CONFIG, WEIGHTS)
# kind → task and tags on the Hub, and for a new card what it is, and an example of use in the shell and in Python.
KINDS = {
    "checkpoint": (
        "image-to-image",
        ["super-resolution", "diffusion"],
        "A diffusion network that enlarges pictures, for the Python package `skipdiff`.",
        "skipdiff upscale photo.jpg -o large/ --checkpoint REPOSITORY",
        'from skipdiff_env import Upscaler\n\nUpscaler("REPOSITORY").upscale_file("photo.jpg", "large.png")',
    ),
    "agent": (
        "reinforcement-learning",
        ["reinforcement-learning", "super-resolution"],
        "An agent that decides, picture by picture, which steps of a super-resolution diffusion model are skipped.",
        "skipdiff upscale photo.jpg -o large/ --agent REPOSITORY",
        'from agents import load_agent\n\nagent = load_agent("REPOSITORY")',
    ),
}


@dataclass(frozen=True)
class Shared:
    """A checkpoint or an agent that can be uploaded.

    Attributes:
        kind: "checkpoint" or "agent".
        folder: its folder.
        files: name in the repository → file.
        facts: contents of its card, heading → table of names and values.
    """

    kind: str
    folder: Path
    files: dict[str, Path]
    facts: dict[str, Mapping[str, Any]]


def find_shared(path: str | Path) -> Shared:
    """Return the checkpoint or the agent of a folder. It is loaded, so that damaged files are not uploaded.

    Args:
        path: name of a shipped checkpoint; folder of a checkpoint or an agent, or of a run of `train-ddpm` or
            `train-agent`.

    Raises:
        CheckpointError: there is neither a checkpoint nor an agent, or a file of it or of its run is damaged.
    """
    folder = shipped_checkpoints().get(str(path), Path(path))
    if not folder.is_dir():
        raise CheckpointError(f"no such folder: {path}; name a checkpoint, an agent, or the run that made it")
    if (folder / "checkpoint" / WEIGHTS).is_file():
        folder /= "checkpoint"
    own = all((folder / name).is_file() for name in OWN)
    shared = _checkpoint(folder) if own and not is_agent(folder) else _agent(find_agent(folder))
    pictures = [file for file in sorted(shared.folder.iterdir()) if file.suffix.lower() in PICTURES]
    shared.files.update({name: shared.folder / name for name in OWN}, **{file.name: file for file in pictures})
    return shared


def _checkpoint(folder: Path) -> Shared:
    unet, files = load_unet(folder), {}
    predictor = read_settings(folder / CONFIG).get("predictor")
    if predictor is not None and predictor.count("/") != 2:  # OWNER/NAME/FILE is on the Hub already
        if not (folder / predictor).is_file():
            raise CheckpointError(f"the predictor {predictor} must lie in {folder} to be uploaded; copy it there")
        files[predictor] = folder / predictor
    if unet.substeps > 1:
        files[ADD_ON] = folder / ADD_ON
    for own in (each for each in sorted(folder.iterdir()) if is_agent(each)):
        files |= {f"{own.name}/{file.name}": file for file in own.iterdir() if file.name in (*OWN, CARD)}
    facts: dict[str, Mapping[str, Any]] = {"Settings": unet.settings}
    run = folder.parent / CONFIG
    if folder.name == "checkpoint" and run.is_file() and (training := read_settings(run)):
        facts["Training"] = {name: value for name, value in training.items() if name not in ("images", "unet")}
    return Shared("checkpoint", folder, files, facts)


def _agent(folder: Path) -> Shared:
    config = load_agent(folder).config
    settings = {
        "algorithm": config.algorithm,
        "episodes": config.plan.describe(),
        "observation": config.observation,
        "pictures in training": f"{config.image_size} x {config.image_size} pixels",
        "price of a forward": "one" if config.price_range is None else " … ".join(map(str, config.price_range)),
    }
    told = {"Environment": config.training.get("env"), "Evaluation in training": config.training.get("evaluation")}
    facts = {name: values for name, values in told.items() if isinstance(values, Mapping)}
    return Shared("agent", folder, {}, {"Settings": settings, **facts})


def card_of(shared: Shared, repo_id: str, license: str, evaluation: Path | None, pictures: Iterable[str]) -> str:
    """Return the card of a repository: the one in the folder, or else a new one.

    Args:
        shared: the checkpoint or the agent.
        repo_id: OWNER/NAME.
        license: license in the card's metadata.
        evaluation: folder that `evaluate --out` wrote; its table is added.
        pictures: names of the pictures in the repository that the card shows.

    Raises:
        ConfigError: the folder does not hold an evaluation, or a file is not text.
    """
    own = shared.folder / CARD
    text = _read_text(own) if own.is_file() else EMPTY_CARD
    if EMPTY_CARD in text:
        text = _new_card(shared, repo_id, license)
    if evaluation is not None:
        table = evaluation / "table.md"
        if not table.is_file():
            raise ConfigError(f"{evaluation} holds no table.md; name a folder that `skipdiff evaluate --out` wrote")
        text += f"\n## Evaluation\n\n`skipdiff evaluate` printed:\n\n{_read_text(table).strip()}\n"
    for name in pictures:
        if f"({name})" not in text:
            text += f"\n![{Path(name).stem}]({name})\n"
    return text


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is damaged, expected text in UTF-8 ({error}); replace it") from None


def _new_card(shared: Shared, repo_id: str, license: str) -> str:
    """Return a new card: the metadata, which the Hub reads, an example of use, and the facts."""
    from huggingface_hub import EvalResult, ModelCardData

    name = repo_id.partition("/")[2]
    task, tags, what, use, code = KINDS[shared.kind]
    reward = shared.facts.get("Evaluation in training", {}).get("reward")
    data = ModelCardData(library_name="skipdiff", license=license, tags=tags, pipeline_tag=task)
    if reward is not None:
        data.model_name = name
        data.eval_results = [
            EvalResult(task, "skipdiff", "photographs of the evaluation", "mean_reward", float(reward)),
        ]
    text = f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n"
    text += f"{what}\n\n```shell\n{use}\n```\n\n```python\n{code}\n```\n".replace("REPOSITORY", repo_id)
    for heading, values in shared.facts.items():
        rows = ((key, f"{value:.4g}" if isinstance(value, float) else value) for key, value in values.items())
        text += f"\n## {heading}\n\n{markdown(('', ''), rows)}\n"
    return text


def push_to_hub(
    path: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    evaluation: Path | None = None,
    picture: Path | None = None,
    license: str = "mit",
) -> str:
    """Upload a checkpoint or an agent to the Hugging Face Hub, with a card. The repository is created if it is missing.

    Args:
        path: as `find_shared`.
        repo_id: OWNER/NAME.
        private: whether a new repository is private.
        evaluation: folder that `skipdiff evaluate --out` wrote, for the table in the card.
        picture: picture or film in the card.
        license: license in the metadata of a new card.

    Returns:
        The address of the repository.

    Raises:
        ConfigError: the id is not valid, a file is missing, there is no token, or the Hub refuses the upload.
        CheckpointError: as `find_shared`.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ConfigError(f"the repository must be OWNER/NAME, got {repo_id!r}")
    if picture is not None and (not picture.is_file() or picture.suffix.lower() not in PICTURES):
        raise ConfigError(f"the picture must be a file ending in {', '.join(PICTURES)}, got {picture}")
    shared = find_shared(path)
    files = shared.files | ({picture.name: picture} if picture is not None else {})
    shown = [name for name in files if Path(name).suffix.lower() in PICTURES]
    card = card_of(shared, repo_id, license, evaluation, shown)
    if get_token() is None:
        raise ConfigError("no token of the Hugging Face Hub; log in with `hf auth login`, or set HF_TOKEN")
    operations = [CommitOperationAdd(name, str(file)) for name, file in files.items()]
    operations.append(CommitOperationAdd(CARD, card.encode()))
    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=private or None, exist_ok=True)
        api.create_commit(repo_id, operations, commit_message=f"Upload {shared.kind} of skipdiff")
    except Exception as error:  # errors of huggingface_hub, and of the HTTP library below it
        raise ConfigError(f"the Hub did not take {repo_id}: {one_line(error) or type(error).__name__}") from None
    return str(address)
