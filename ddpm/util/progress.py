"""Progress of long commands, a bar on a terminal and a line now and then in a log; and their orderly end."""

import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

SECONDS = 30


class _Lines(tqdm):
    """What stands in for a bar where standard error is no terminal: its own line every half minute."""

    @staticmethod
    def status_printer(file: Any) -> Any:
        """Gives what prints a status: a whole line, where a bar would return to its beginning."""

        def print_status(status: str) -> None:
            if status.strip():
                file.write(f"{status.strip()}\n")
                file.flush()

        return print_status

    def clear(self, *args: Any, **kwargs: Any) -> None:
        """Lines stay."""

    def moveto(self, n: int) -> None:
        """Lines follow one another."""

    def close(self) -> None:
        """Ends without a last status, as the command's result follows."""
        self.sp = None
        super().close()

    def set_postfix(self, *args: Any, **kwargs: Any) -> None:
        """Remembers what the next status shall end with, without printing one."""
        super().set_postfix(*args, **{**kwargs, "refresh": False})

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> None:
        """Prints a status when it is due, and not whenever something else was written."""
        if not nolock:
            super().refresh(nolock=nolock, lock_args=lock_args)


def progress(iterable: Iterable[Any] | None = None, **options: Any) -> "tqdm[Any]":
    """A progress bar of tqdm on a terminal; in a log, a line every 30 s and none for what ends sooner.

    Args:
        iterable: what is gone through, if the bar shall do that.
        options: of tqdm: total, desc, unit, initial, leave, …
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
    """Prints a line on standard error without disturbing a bar."""
    tqdm.write(str(message), file=sys.stderr)


@contextmanager
def orderly_end() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP end the program like `sys.exit`, so that temporary files are removed."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # which alone can receive signals
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # SIGHUP is ignored under nohup, and stays so
    before = {n: signal.signal(n, leave) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
