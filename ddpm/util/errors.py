"""Errors that a user's input can cause; each message says what was got, what was expected and what to do."""


class SkipDiffError(ValueError):
    """Base class of the errors caused by input; the command line prints it as one line and exits with code 2."""


class ConfigError(SkipDiffError):
    """A setting has an unknown name or a value outside its range."""


class CheckpointError(SkipDiffError):
    """A checkpoint is unknown, incomplete or damaged."""


class ImageError(SkipDiffError):
    """A picture cannot be read, or has a size that does not fit its use."""


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python, NumPy or torch means that the memory is used up."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, shortened, or the name of its class if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def one_line(message: object) -> str:
    """Return a message without line breaks."""
    return " ".join(str(message).split())
