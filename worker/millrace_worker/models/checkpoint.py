"""What a safetensors checkpoint holds, checked against what the model needs before any weight is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from millrace_worker.errors import ModelError
from millrace_worker.fields import read_json_object

from .families import KNOWN_BUFFERS
from .weights import Slot

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

#: safetensors' names of the dtypes that we convert from.
_DTYPES = ("F32", "BF16", "F16")
#: Problems that one error lists; the rest are counted.
_LISTED = 4


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's header entry; `dtype` is safetensors' name of it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class Checkpoint:
    """The safetensors files of a model directory."""

    def __init__(self, path: str | Path):
        """Reads headers alone. Raises ModelError when a file is missing, broken, or lacks what the index promises."""
        self.path = Path(path)
        index = self._read_index()
        self.files = sorted({self.path / name for name in index.values()}) or [self.path / SINGLE]
        self.tensors: dict[str, StoredTensor] = {}
        for file in self.files:
            self.tensors.update(_read_header(file))
        absent = sorted(set(index) - set(self.tensors))
        if absent:
            name = absent[0]
            raise ModelError(f"{self.path / index[name]}: has no tensor {name}, which {INDEX} says is there")

    def _read_index(self) -> dict[str, str]:
        """Tensor name -> file name; empty for a checkpoint of one file."""
        if not (self.path / INDEX).exists():
            if not (self.path / SINGLE).exists():
                raise ModelError(f"{self.path}: there is no {SINGLE} and no {INDEX}{self._instead()}")
            return {}
        names = read_json_object(self.path / INDEX).get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(f, str) for f in names.values()):
            raise ModelError(f"{self.path / INDEX}: weight_map must be an object of tensor names and file names")
        for file in sorted(set(names.values())):
            if Path(file).name != file:
                raise ModelError(f"{self.path / INDEX}: {file!r} is not the name of a file beside it")
            if not (self.path / file).exists():
                raise ModelError(f"{self.path / file}: is missing, and {INDEX} names it; download the model again")
        return names

    def _instead(self) -> str:
        other = sorted(p.name for p in self.path.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".gguf"))
        return f"; {other[0]} is of a format that we do not read, convert it to safetensors" if other else ""

    def check(self, slots: list[Slot], *, tied: bool) -> None:
        """Raises ModelError naming file, tensor, what was found and what was expected, where these differ.

        `tied`: lm_head.weight may be there as well, and is not read.
        """
        problems = [p for slot in slots if (p := self._problem(slot))]
        known = {slot.source for slot in slots}
        for name, stored in self.tensors.items():
            if name in known or name.endswith(KNOWN_BUFFERS) or (tied and name == "lm_head.weight"):
                continue
            shape = list(stored.shape)
            problems.append(f"{stored.file}: tensor {name} {shape} is not one that the model in config.json has")
        if problems:
            more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
            raise ModelError("; ".join(problems[:_LISTED]) + more)

    def _problem(self, slot: Slot) -> str | None:
        stored = self.tensors.get(slot.source)
        if stored is None:
            where = self.files[0] if len(self.files) == 1 else self.path
            return f"{where}: tensor {slot.source} is missing; expected shape {list(slot.shape)}"
        if stored.dtype not in _DTYPES:
            return (
                f"{stored.file}: tensor {slot.source} is {stored.dtype}; expected one of {', '.join(_DTYPES)} "
                "(quantised checkpoints are not supported)"
            )
        if stored.shape != slot.shape:
            return (
                f"{stored.file}: tensor {slot.source} has shape {list(stored.shape)}; expected {list(slot.shape)} "
                "from config.json"
            )
        return None

    def read(self, names: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """The named tensors one after another, file by file, on the CPU; mapped, so drop each before the next."""
        for file in self.files:
            try:
                with safe_open(file, framework="pt", device="cpu") as handle:
                    for name in handle.keys():  # noqa: SIM118  (no mapping, only a method of that name)
                        if name in names and self.tensors[name].file == file:
                            yield name, handle.get_tensor(name)
            except (SafetensorError, OSError) as e:
                raise ModelError(f"{file}: cannot be read: {e}") from e


def _read_header(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            entries = {}
            for name in handle.keys():  # noqa: SIM118
                view = handle.get_slice(name)
                entries[name] = StoredTensor(file, view.get_dtype(), tuple(view.get_shape()))
            return entries
    except (SafetensorError, OSError) as e:
        raise ModelError(f"{file}: is not a whole safetensors file: {e}; download the model again") from e
