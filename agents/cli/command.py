"""Click commands that end in one line where the user or the machine is at fault, for `skipdiff` and the benchmarks."""

import errno
from typing import Any

import click

from ddpm.util.errors import SkipDiffError, out_of_memory
from ddpm.util.progress import orderly_end


class Command(click.Command):
    """Turns errors that a user or the machine causes into one line: of input exit code 2, of the machine 1.

    A signal to end ends a command in order, so that temporary files are removed.
    """

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with orderly_end():
                return super().invoke(ctx)
        except SkipDiffError as error:
            raise click.UsageError(_one_line(error)) from None
        except click.ClickException as error:
            vars(error)["message"] = _one_line(error.message)
            raise
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever reads the output has gone
                raise
            raise click.ClickException(_one_line(_of_system(error))) from None
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise click.ClickException(
                "the memory does not hold what this computes; lower the size of pictures, batches or nets"
            ) from None


class Group(Command, click.Group):
    """The same for a group of commands."""


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _of_system(error: OSError) -> str:
    """What an error of the operating system says, with the file that it is about."""
    files = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    reason = error.strerror or str(error) or type(error).__name__
    return f"{files}: {reason}" if files else reason
