"""Stores for the values of a deterministic process: in memory, and on disk for other processes and runs."""

import contextlib
import hashlib
import os
import tempfile
import threading
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm.util.errors import ConfigError
from ddpm.util.files import atomic_path

# Bytes of an entry beside its tensor: key, dictionary slot, small values.
OVERHEAD = 512
# Bytes of a file beside its tensor, since disks allocate space in blocks.
BLOCK = 4096
# A full store shrinks to the first share of its capacity; it checks again after the second share has been written.
KEPT, LOOKED_AFTER = 0.8, 1 / 16
# Held while entries change, because copies of an environment share them and may run in several threads.
LOCK = threading.Lock()
# Increased when the meaning of the files changes.
VERSION = 3
# Name of the tensor with a file's digest.
DIGEST = "#digest"


class Store:
    """Tensors and small dictionaries of numbers on disk, one safetensors file each, bounded in bytes.

    Any number of processes may read and write it at once: a file is written under a temporary name and renamed. The
    least recently used values are dropped first.

    Args:
        folder: folder that holds the store in a subfolder; it is made if it is missing.
        megabytes: space for the values of all processes together, in MiB; while several write, up to a sixteenth more
            for each.
        device: device of the returned tensors.

    Raises:
        ConfigError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, megabytes: float, device: str = "cpu") -> None:
        self.root = Path(folder).absolute() / f"skipdiff-{VERSION}"
        self.capacity = int(megabytes * 2**20)
        self.device = device
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.root).close()
        except OSError as error:
            raise ConfigError(f"cannot write into cache_dir {folder} ({error.strerror}); name another folder") from None
        self._written = self.capacity  # so that the first value checks the space

    def _path(self, key: Hashable) -> Path:
        name = hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()
        return self.root / name[:2] / f"{name[2:]}.safetensors"

    def get(self, key: Hashable) -> Any:
        """Return the value stored under a key, or None; a damaged file counts as missing."""
        path = self._path(key)
        try:
            found = load_file(path)
            os.utime(path)
        except (OSError, SafetensorError):
            return None
        digest = found.pop(DIGEST, None)
        if digest is None or not torch.equal(digest, _digest(key, found)):
            return None
        if found.keys() == {""}:
            return found[""].to(self.device)
        return {name: float(value) for name, value in found.items()}

    def put(self, key: Hashable, value: Tensor | Mapping[str, float]) -> None:
        """Store a value, and drop the oldest ones if the store is full; warn if the disk cannot be written."""
        if isinstance(value, Tensor):
            tensors = {"": value.detach().contiguous().cpu()}
        else:
            tensors = {name: torch.tensor(number, dtype=torch.float64) for name, number in value.items()}
        try:
            with atomic_path(self._path(key)) as temporary:
                save_file({**tensors, DIGEST: _digest(key, tensors)}, temporary)
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) else type(error).__name__
            warnings.warn(f"a value could not be stored in cache_dir {self.root.parent} ({reason})", stacklevel=2)
            return
        self._written += BLOCK + sum(tensor.nbytes for tensor in tensors.values())
        if self._written > self.capacity * LOOKED_AFTER:
            self._shrink()

    def _shrink(self) -> None:
        """Remove the least recently used files if all together exceed the capacity."""
        files = []
        for path in self.root.glob("*/*"):
            with contextlib.suppress(OSError):  # another process has removed it
                stat = path.stat()
                files.append((stat.st_mtime_ns, -(-stat.st_size // BLOCK) * BLOCK, path))
        self._written, used = 0, sum(size for _, size, _ in files)
        if used <= self.capacity:
            return
        for _, size, path in sorted(files):
            path.unlink(missing_ok=True)
            used -= size
            if used <= self.capacity * KEPT:
                break


def _digest(key: Hashable, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the digest of a key and the tensors that are stored under it, uint8 (16,)."""
    found = hashlib.blake2b(repr(key).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        found.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        found.update(tensor.numpy().tobytes())
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8)


class Memo:
    """Least-recently-used store of tensors and small values, bounded in bytes, optionally with a second one on disk.

    Args:
        megabytes: capacity in MiB; 0 keeps nothing in memory.
        store: a store on disk, which also gets the values, and is read when they are not in memory.
    """

    def __init__(self, megabytes: float, store: Store | None = None) -> None:
        self.capacity = int(megabytes * 2**20)
        self.used = 0
        self.store = store
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @staticmethod
    def _size(value: Any) -> int:
        return OVERHEAD + (value.nbytes if isinstance(value, Tensor) else 0)

    def get(self, key: Hashable) -> Any:
        """Return the value stored under a key, or None."""
        with LOCK:
            value = self._entries.get(key)
            if value is not None:
                self._entries.move_to_end(key)
        if value is None and self.store is not None:
            value = self.store.get(key)
            if value is not None:
                self._keep(key, value)
        return value

    def put(self, key: Hashable, value: Any, lasting: bool = True) -> None:
        """Store a value and drop the oldest ones if memory is full; a tensor is copied, so that its batch can be freed.

        Args:
            key: the key of the value.
            value: a tensor, or a dictionary of numbers if there is a store on disk.
            lasting: whether the value may be stored on disk.
        """
        self._keep(key, value)
        if self.store is not None and lasting:
            self.store.put(key, value)

    def _keep(self, key: Hashable, value: Any) -> None:
        """Store a copy of a value in memory."""
        size = self._size(value)
        if size > self.capacity:
            return
        value = value.clone() if isinstance(value, Tensor) else value
        with LOCK:
            if key in self._entries:
                self.used -= self._size(self._entries.pop(key))
            self._entries[key] = value
            self.used += size
            while self.used > self.capacity:
                self.used -= self._size(self._entries.popitem(last=False)[1])
