"""The command that shares checkpoints and agents."""

from pathlib import Path
from typing import Any

import click


@click.command("push-to-hub")
@click.argument("folder")
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option(
    "--evaluation",
    type=click.Path(path_type=Path),
    help="Folder that `evaluate --out` wrote; the card shows its table.",
)
@click.option("--picture", type=click.Path(path_type=Path), help="Picture or film that the card shows.")
@click.option("--license", default="mit", help="License in a new card.")
def push_to_hub(folder: str, repo_id: str, **options: Any) -> None:
    """Upload a checkpoint or an agent to the Hugging Face Hub, with a card.

    FOLDER is a checkpoint, an agent, the run of either, or the name of a shipped checkpoint. Agents in folders
    inside a checkpoint are uploaded with it. Other users can then pass OWNER/NAME as --checkpoint or --agent. The card
    is the README.md of the folder; if there is none, the command writes a card.
    """
    from agents.hub import push_to_hub as push

    click.echo(f"repository: {push(folder, repo_id, **options)}")
