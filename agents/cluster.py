"""Work whose parts are independent, spread over a pool of workers on a Ray cluster."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

from ddpm.util.checks import check_whole
from ddpm.util.errors import ConfigError, SkipDiffError
from ddpm.util.packages import package
from ddpm.util.progress import orderly_end

# Bytes of the object store of a cluster on this machine: the least that Ray accepts. Results are a few lines of text.
STORE = 80 * 2**20
# Attempts to start a cluster on this machine: Ray waits half a minute for it, and a busy machine takes longer.
STARTS = 3
# The work on one chunk. Its argument and its result are pickled.
Work = Callable[[Any], Any]


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
        package("ray", "ray")

    def spread(self, make: Callable[..., Work], arguments: Mapping[str, Any], chunks: Sequence[Any]) -> Iterator[Any]:
        """Do the work on every chunk, in any order. The unfinished chunks of a lost worker are done again.

        Args:
            make: function that makes the work, once in each worker; its module must be importable on all nodes.
            arguments: arguments of `make`, which are pickled; their paths must mean the same on all nodes. Relative
                paths begin at the working folder of this process.
            chunks: arguments of the work, one for each call, which are pickled as well.

        Yields:
            The result of the work for each chunk.

        Raises:
            ClusterError: the cluster cannot be reached, or a worker fails, other than by being lost.
        """
        with self._connected() as ray:
            units = "GPU" if self.device.startswith("cuda") else "CPU"
            room = max(1, int(ray.cluster_resources().get(units, 1)))
            count = min(self.workers or room, len(chunks))
            options: dict[str, Any] = {"num_gpus": 1} if units == "GPU" else {"num_cpus": 1}
            kind = ray.remote(**options, max_restarts=-1, max_task_retries=-1)(_Worker)
            pool = ray.util.ActorPool([kind.remote(make, arguments, os.getcwd()) for _ in range(count)])
            results = pool.map_unordered(lambda worker, chunk: worker.work.remote(chunk), chunks)
            try:
                for _ in chunks:
                    with redirect_stdout(sys.stderr):  # Ray prints notes, such as the loss of a worker
                        result = next(results)
                    yield result
            except ray.exceptions.RayError as error:
                raise ClusterError(f"a worker of the cluster failed: {_cause(error)}") from None

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        """Yield Ray, connected. At the end, leave the cluster, and stop it if it was started here."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        import ray.util

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
            with orderly_end():  # in place of Ray's own handler
                yield ray
        finally:
            with redirect_stdout(sys.stderr):  # Ray may print its pending messages here
                ray.shutdown()


class _Worker:
    """The actor that does the work in a worker of the pool."""

    def __init__(self, make: Callable[..., Work], arguments: Mapping[str, Any], folder: str) -> None:
        import torch

        os.chdir(folder)
        torch.set_num_threads(1)  # since there is a worker for each CPU
        self._work = make(**arguments)

    def work(self, chunk: Any) -> Any:
        """Do the work on one chunk."""
        return self._work(chunk)


def _cause(error: BaseException) -> str:
    """Return the last line of an error, which for a worker's error is the last line of its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
