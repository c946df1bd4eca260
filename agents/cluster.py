"""Work whose parts are independent, spread over a pool of workers on a Ray cluster."""

import io
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, TextIO

from ddpm.util.checks import check_whole
from ddpm.util.errors import ConfigError, SkipDiffError
from ddpm.util.progress import orderly_end

# Bytes of the object store of a cluster on this machine: the least that Ray accepts. Results are a few lines of text.
STORE = 80 * 2**20
# Attempts to start a cluster on this machine: Ray waits half a minute for it, and a busy machine takes longer.
STARTS = 3
# The work on one chunk, from plain data to plain data.
Work = Callable[[list[Any]], Any]


class ClusterError(SkipDiffError):
    """An error of a cluster: it cannot be reached, or its workers fail."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster and its number of workers.

    Attributes:
        address: address of a running cluster, "auto", HOST:PORT or ray://HOST:PORT; "": a cluster is started on this
            machine and ended after the work.
        workers: number of workers; None: one for each GPU if `device` is a GPU, else one for each CPU.
        device: device of each worker.

    Raises:
        ConfigError: the address is not valid, the number is below 1, or Ray is not installed.
    """

    address: str = ""
    workers: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.address and not re.fullmatch(r"auto|(ray://)?[\w.-]+:\d+", self.address):
            raise ConfigError(
                f"--ray takes the address of a cluster, auto, HOST:PORT or ray://HOST:PORT, got {self.address!r}; "
                "without one, put it last"
            )
        if self.workers is not None:
            check_whole(workers=self.workers)
        try:
            import ray.data  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"Ray is not installed ({error}); pip install 'skipdiff[ray]'") from None

    def spread(
        self, make: Callable[..., Work], arguments: Mapping[str, Any], chunks: Sequence[list[Any]]
    ) -> Iterator[Any]:
        """Do the work on every chunk, in any order. The unfinished chunks of a lost worker are done again.

        Args:
            make: function that makes the work, once in each worker; its module must be importable on all nodes.
            arguments: arguments of `make`, plain data; their paths must mean the same on all nodes.
            chunks: arguments of the work, plain data, one for each call.

        Yields:
            The result of the work for each chunk.

        Raises:
            ClusterError: the cluster cannot be reached, or a worker fails, other than by being lost.
        """
        with self._connected() as ray:
            count = min(self.workers or self._units(ray), len(chunks))
            items = [{"chunk": json.dumps(chunk)} for chunk in chunks]
            results = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                _Worker,
                fn_constructor_kwargs={"make": make, "arguments": dict(arguments)},
                batch_size=None,  # a block, which is one chunk
                compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
                num_gpus=int(self._on_gpu) or None,
                num_cpus=None if self._on_gpu else 1,
            )
            try:
                for row in results.iter_rows():
                    yield json.loads(row["result"])
            except ray.exceptions.RayError as error:
                raise ClusterError(f"a worker of the cluster failed: {_cause(error)}") from None

    @property
    def _on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def _units(self, ray: Any) -> int:
        """Return the number of workers for which the cluster has room."""
        return max(1, int(ray.cluster_resources().get("GPU" if self._on_gpu else "CPU", 1)))

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        """Yield Ray, connected. At the end, leave the cluster, and stop it if it was started here."""
        import ray.data

        _quiet(ray)
        options: dict[str, Any] = {"address": self.address}
        if not self.address:
            cpus = self.workers or len(os.sched_getaffinity(0))
            options = {
                "address": "local", "num_cpus": cpus, "include_dashboard": False, "object_store_memory": STORE,
            }  # fmt: skip
        for left in reversed(range(1 if self.address else STARTS)):
            try:
                ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
                break
            except Exception as error:  # for an address without a cluster, Ray raises nearly any error
                ray.shutdown()
                if not left:
                    where = f"at {self.address}" if self.address else "on this machine"
                    raise ClusterError(f"no Ray cluster {where} ({_cause(error)})") from None
        try:
            with orderly_end(), redirect_stdout(_OneThread(sys.stdout)):  # in place of Ray's own handler
                yield ray
        finally:
            with redirect_stdout(sys.stderr):  # Ray may print its pending messages here
                ray.shutdown()


class _OneThread(io.TextIOBase):
    """Standard output for the thread that creates it; other threads, such as Ray's, print to standard error."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.owner = out, threading.get_ident()

    def write(self, text: str) -> int:
        """Write to the stream of the thread."""
        return (self.out if threading.get_ident() == self.owner else sys.stderr).write(text)

    def flush(self) -> None:
        """Flush standard output."""
        self.out.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.out, name)


class _Worker:
    """The actor that does the work in a worker of the pool."""

    def __init__(self, make: Callable[..., Work], arguments: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(1)  # since there is a worker for each CPU
        self.work = make(**arguments)

    def __call__(self, block: dict[str, Any]) -> dict[str, list[str]]:
        return {"result": [json.dumps(self.work(json.loads(chunk))) for chunk in block["chunk"]]}


def _quiet(ray: Any) -> None:
    """Switch off Ray's usage statistics, progress bars and notes; the command prints its own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)


def _cause(error: BaseException) -> str:
    """Return the last line of an error, which for a worker's error is the last line of its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
