"""A bounded store for what a deterministic process has already computed."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from torch import Tensor

# What an entry costs beside its tensor: key, dictionary slot, small values.
OVERHEAD = 512


class Memo:
    """Least-recently-used store of tensors and small values, bounded in bytes.

    Args:
        megabytes: room in MiB; 0 stores nothing.
    """

    def __init__(self, megabytes: float) -> None:
        self.capacity = int(megabytes * 2**20)
        self.used = 0
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @staticmethod
    def _size(value: Any) -> int:
        return OVERHEAD + (value.nbytes if isinstance(value, Tensor) else 0)

    def get(self, key: Hashable) -> Any:
        """The value stored under a key, or None."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: Hashable, value: Any) -> None:
        """Stores a value (a tensor is copied, so that no larger batch stays alive) and drops the oldest that overflow."""
        size = self._size(value)
        if size > self.capacity:
            return
        if key in self._entries:
            self.used -= self._size(self._entries.pop(key))
        self._entries[key] = value.clone() if isinstance(value, Tensor) else value
        self.used += size
        while self.used > self.capacity:
            self.used -= self._size(self._entries.popitem(last=False)[1])
