"""The command that shares checkpoints and agents."""

from pathlib import Path

import click


@click.command("push-to-hub")
@click.argument("folder")
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option(
    "--evaluation", type=click.Path(path_type=Path), help="Folder of `evaluate --out`, whose table the card shall show."
)
@click.option("--picture", type=click.Path(path_type=Path), help="Picture or film that the card shall show.")
@click.option("--license", default="mit", help="License that a new card names.")
def push_to_hub(
    folder: str, repo_id: str, private: bool, evaluation: Path | None, picture: Path | None, license: str
) -> None:
    """Upload a checkpoint or an agent to the Hugging Face Hub, with a card.

    FOLDER is a checkpoint, an agent, the run that made it, or the name of a shipped checkpoint; an agent in a
    checkpoint's folder goes with it. Whoever has the package then uses OWNER/NAME as --checkpoint or --agent. The
    README.md of the folder is the card; where there is none, one is written.
    """
    from agents.hub import push_to_hub as push

    address = push(folder, repo_id, private=private, evaluation=evaluation, picture=picture, license=license)
    click.echo(f"repository: {address}")
