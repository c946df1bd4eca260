"""Click commands that report errors in one line, for `skipdiff` and the benchmarks."""

import errno
import logging
from typing import Any

import click

from ddpm.util.errors import SkipDiffError, one_line, out_of_memory
from ddpm.util.progress import orderly_end


class Command(click.Command):
    """A command that reports errors in one line, with exit code 2 for wrong input and 1 for errors of the machine.

    SIGTERM ends a command in order, so that temporary files are removed.
    """

    def invoke(self, ctx: click.Context) -> Any:
        # what Pillow logs about odd TIFFs is in the error already
        logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
        try:
            with orderly_end():
                return super().invoke(ctx)
        except SkipDiffError as error:
            raise click.UsageError(one_line(error)) from None
        except click.ClickException as error:
            vars(error)["message"] = one_line(error.message)
            raise
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of the output has closed it
                raise
            raise click.ClickException(one_line(_of_system(error))) from None
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise click.ClickException(
                "the memory does not hold what this computes; lower the size of pictures, batches or nets"
            ) from None


class Group(Command, click.Group):
    """A group of commands that reports errors as `Command` does."""


def _of_system(error: OSError) -> str:
    """Return the message of an error of the operating system, with the name of the file."""
    files = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    reason = error.strerror or str(error) or type(error).__name__
    return f"{files}: {reason}" if files else reason
