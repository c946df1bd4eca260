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


COMMANDS = (
    upscale_command.upscale,
    web_command.web,
    training_commands.train_ddpm,
    training_commands.train_predictor,
    training_commands.train_substeps,
    training_commands.train_agent,
    training_commands.import_sr3,
    study_commands.evaluate,
    benchmark_command.benchmark,
    study_commands.reproduce,
    study_commands.enjoy,
    study_commands.plot,
    study_commands.demo,
    study_commands.tabulate,
    study_commands.schedule,
    hub_commands.push_to_hub,
    export_command.export,
)
for command in COMMANDS:
    main.add_command(command)
