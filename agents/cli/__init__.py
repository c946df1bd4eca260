"""The command line, `skipdiff`. Heavy imports happen inside the commands, so that `--help` is quick."""

import click

from agents.cli import (
    benchmark_command,
    export_command,
    hub_commands,
    study_commands,
    training_commands,
    upscale_command,
    web_command,
)
from agents.cli.command import Group


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="skipdiff")
def main() -> None:
    """SkipDiff: learn which denoising steps a diffusion model can skip."""


for module in (
    benchmark_command, export_command, hub_commands, study_commands, training_commands, upscale_command, web_command,
):  # fmt: skip
    for found in vars(module).values():
        if isinstance(found, click.Command):
            main.add_command(found)
