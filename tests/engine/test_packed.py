from __future__ import annotations

import numpy as np
import pytest
import torch

from millrace_worker.engine.packed import Field, PackedInputs, packed_bytes

FIELDS = {"ids": Field(np.int64, 3), "heat": Field(np.float32, 5, padding=2), "slots": Field(np.int32, 4, padding=-1)}


def test_each_array_lies_at_its_place_with_padding_behind_it() -> None:
    buffer = torch.full((packed_bytes(FIELDS) + 7,), 99, dtype=torch.uint8)
    packed = PackedInputs(buffer, FIELDS)
    views = packed.tensors
    packed.send(ids=np.array([1 << 40, -5]), heat=np.array([0.5], dtype=np.float32), slots=np.arange(4, dtype=np.int32))
    assert views["ids"].tolist() == [1 << 40, -5, 0]
    assert views["heat"].tolist() == [0.5, 2, 2, 2, 2]
    assert views["slots"].tolist() == [0, 1, 2, 3]
    assert [tensor.dtype for tensor in views.values()] == [torch.int64, torch.float32, torch.int32]
    assert all(tensor.storage_offset() * tensor.element_size() % 16 == 0 for tensor in views.values())
    assert buffer[packed_bytes(FIELDS) :].tolist() == [99] * 7

    nothing = np.zeros(0, dtype=np.int64)
    packed.send(ids=nothing, heat=nothing, slots=nothing)
    assert views["slots"].tolist() == [-1] * 4
    assert views["ids"].tolist() == [0] * 3


def test_more_than_there_is_room_for_is_refused() -> None:
    packed = PackedInputs(torch.zeros(packed_bytes(FIELDS), dtype=torch.uint8), FIELDS)
    three = np.arange(3)
    with pytest.raises(ValueError, match="slots has 5 numbers; there is room for 4"):
        packed.send(ids=three, heat=three, slots=np.arange(5))


def test_values_may_change_once_they_are_sent() -> None:
    packed = PackedInputs(torch.zeros(packed_bytes(FIELDS), dtype=torch.uint8), FIELDS)
    values = np.arange(3)
    packed.send(ids=values, heat=values, slots=values)
    values[:] = 7
    assert packed.tensors["ids"].tolist() == [0, 1, 2]
