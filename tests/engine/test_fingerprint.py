"""Whatever changes KV changes the fingerprint; what cannot be told gives none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from greedy import save
from millrace_worker.engine import fingerprint
from millrace_worker.engine.fingerprint import Identity, NoFingerprint, config_digest, dummy_digest, weights_digest

IDENTITY = Identity(
    weights="w", config="c", dtype="bfloat16", kv_dtype="bfloat16", layout_version=1, kernels="cuda 1", block_size=16
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save("llama3-untied", tmp_path)


@pytest.mark.parametrize("field", Identity.__struct_fields__)
def test_each_field_counts(field: str) -> None:
    value = getattr(IDENTITY, field)
    other = msgspec.structs.replace(IDENTITY, **{field: value + 1 if isinstance(value, int) else value + "x"})
    assert other.fingerprint != IDENTITY.fingerprint
    assert IDENTITY.differs(other) == (field,)


def test_the_fingerprint_is_fixed() -> None:
    """Another one silently empties every cache on a disk."""
    assert IDENTITY.fingerprint.hex() == "e8522a74ec7f4d1423d13c0c462093e1e07bbfce4e8ec2f972b7b7e7b15f4982"


def change_config(model: Path, **changes: object) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("change", [{"rope_theta": 1.0}, {"rms_norm_eps": 0.5}, {"something_new": True}])
def test_the_config_counts(model: Path, change: dict[str, object]) -> None:
    before = config_digest(model)
    change_config(model, **change)
    assert config_digest(model) != before


def test_names_in_the_config_do_not_count(model: Path) -> None:
    before = config_digest(model)
    change_config(model, _name_or_path="elsewhere/copy", transformers_version="0")
    assert config_digest(model) == before


def test_a_broken_config_gives_none(model: Path) -> None:
    (model / "config.json").write_text("{")
    with pytest.raises(NoFingerprint, match=r"config\.json"):
        config_digest(model)


def test_weights_count_by_their_content(model: Path, tmp_path: Path) -> None:
    before = weights_digest(model, tmp_path / "notes")
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    times = file.stat()
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a careless copy does
    changed = weights_digest(model, tmp_path / "notes")
    assert changed != before
    data[-1] ^= 1
    file.write_bytes(data)
    assert weights_digest(model, tmp_path / "notes") == before


def test_unchanged_weights_are_read_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = weights_digest(model, tmp_path / "notes")
    read: list[Path] = []
    plain = fingerprint._hash_file
    monkeypatch.setattr(fingerprint, "_hash_file", lambda file: read.append(file) or plain(file))
    assert weights_digest(model, tmp_path / "notes") == first
    assert read == []
    for note in (tmp_path / "notes").iterdir():
        note.write_text("{not json")
    assert weights_digest(model, tmp_path / "notes") == first
    assert len(read) == 1


def test_weights_that_are_not_whole_give_none(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(NoFingerprint, match=r"model\.safetensors"):
        weights_digest(model, tmp_path / "notes")


def test_dummy_weights_count_by_seed_shapes_and_device() -> None:
    shapes = {"embed": (4, 8), "norm": (8,)}
    plain = dummy_digest(shapes, 0, "cpu")
    others = [
        dummy_digest(shapes, 1, "cpu"),
        dummy_digest(shapes | {"norm": (9,)}, 0, "cpu"),
        dummy_digest(shapes, 0, "cuda"),
    ]
    assert len({plain, *others}) == 4
    assert dummy_digest(dict(shapes), 0, "cpu") == plain


def test_a_process_that_ends_does_not_wait_for_the_weights_to_be_read(tmp_path: Path) -> None:
    directory = save("llama3-untied", tmp_path)
    code = f"""
import threading, time
from pathlib import Path
from millrace_worker.engine import fingerprint
reading = threading.Event()
def hang(file):
    reading.set()
    time.sleep(60)
fingerprint._hash_file = hang
threading.Thread(target=fingerprint.weights_digest, args=(Path({str(directory)!r}), Path("notes")), daemon=True).start()
assert reading.wait(30)
"""
    subprocess.run([sys.executable, "-c", code], timeout=50, check=True, cwd=tmp_path)
