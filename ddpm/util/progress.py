"""Progress of long commands: a bar on a terminal, or a line every half minute in a log; and their orderly end."""

import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

SECONDS = 30


class _Lines(tqdm):
    """The progress where standard error is not a terminal: a line every half minute."""

    @staticmethod
    def status_printer(file: Any) -> Any:
        """Return the function that prints a status as a line, where a bar would overwrite the last one."""

        def print_status(status: str) -> None:
            if status.strip():
                file.write(f"{status.strip()}\n")
                file.flush()

        return print_status

    def clear(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing, since printed lines stay."""

    def moveto(self, n: int) -> None:
        """Do nothing, since each line follows the last one."""

    def close(self) -> None:
        """Close the progress without a last status, since the command's result follows."""
        self.sp = None
        super().close()

    def set_postfix(self, *args: Any, **kwargs: Any) -> None:
        """Set the end of the next status, without printing one."""
        super().set_postfix(*args, **{**kwargs, "refresh": False})

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> None:
        """Print a status when it is due, and not whenever another line was written."""
        if not nolock:
            super().refresh(nolock=nolock, lock_args=lock_args)


def progress(iterable: Iterable[Any] | None = None, **options: Any) -> "tqdm[Any]":
    """Return a progress bar of tqdm; in a log it prints a line every 30 s, and none if it ends sooner.

    Args:
        iterable: the items to iterate over; None: the caller updates the bar.
        options: options of tqdm: total, desc, unit, initial, leave, …
    """
    if sys.stderr.isatty():
        return tqdm(iterable, dynamic_ncols=True, **options)
    seldom: dict[str, Any] = {
        "mininterval": SECONDS,
        "maxinterval": SECONDS,
        "miniters": 0,
        "delay": SECONDS,
        "ascii": True,
    }
    return _Lines(iterable, **{**options, **seldom})


def say(message: object) -> None:
    """Print a line on standard error without disturbing a bar."""
    tqdm.write(str(message), file=sys.stderr)


@contextmanager
def orderly_end() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the program like `sys.exit` within the block, so that temporary files are removed."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # under nohup, SIGHUP stays ignored
    before = {n: signal.signal(n, leave) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
