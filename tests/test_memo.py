"""The bounded store."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skipdiff_env.memo import OVERHEAD, Memo

TENSOR = torch.zeros(2, 1024)  # 8 KiB
SIZE = TENSOR.nbytes + OVERHEAD


def test_least_recently_used_goes_first() -> None:
    memo = Memo(3 * SIZE / 2**20)
    for key in "abc":
        memo.put(key, TENSOR)
    assert memo.get("a") is not None
    memo.put("d", TENSOR)
    assert [key for key in "abcd" if memo.get(key) is not None] == ["a", "c", "d"]


def test_a_stored_tensor_is_a_copy() -> None:
    memo = Memo(1)
    batch = torch.zeros(8, 4)
    memo.put("row", batch[3])
    batch += 1
    stored = memo.get("row")
    assert not stored.any()
    assert stored.untyped_storage().nbytes() == 16, "the batch would stay alive"


def test_what_does_not_fit_is_not_stored() -> None:
    for megabytes in (0, (SIZE - 1) / 2**20):
        memo = Memo(megabytes)
        memo.put("a", TENSOR)
        assert memo.get("a") is None
        assert memo.used == 0


def test_replacing_does_not_count_twice() -> None:
    memo = Memo(1)
    for _ in range(3):
        memo.put("a", TENSOR)
    assert memo.used == SIZE
    assert len(memo) == 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4000)), max_size=60))
def test_never_above_capacity(entries: list[tuple[int, int]]) -> None:
    memo = Memo(4 * OVERHEAD / 2**20 + 0.01)
    last: dict[int, int] = {}
    for key, length in entries:
        memo.put(key, torch.full((length,), float(key)))
        last[key] = length
        assert memo.used <= memo.capacity
    kept = {key: memo.get(key) for key in last}
    assert memo.used == sum(OVERHEAD + 4 * len(value) for value in kept.values() if value is not None)
    for key, value in kept.items():
        if value is not None:
            assert (value == key).all()
