"""Loading: whole, sharded and dummy models, and an error for each way in which a directory can be wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from millrace_worker.errors import ModelError
from millrace_worker.models import load_model
from millrace_worker.models.weights import shapes, slots
from tiny_models import make_model

NAME = "model.layers.1.self_attn.k_proj.weight"


def weights_of(path: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Every tensor of the loaded decoder by its name, its layers' included."""
    decoder, config = load_model(path, **options)
    found = {"embed": decoder._embed, "norm": decoder._norm, "lm_head": decoder._lm_head}
    for name in shapes(slots(config)):
        if name.startswith("layers."):
            _, layer, field = name.split(".")
            holder = decoder._layers[int(layer)]
            found[name] = getattr(holder, field, None) if hasattr(holder, field) else getattr(holder, "_" + field)
    return found


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path / "model.safetensors")
    edit(tensors)
    save_file(tensors, path / "model.safetensors")


def test_sharded_equals_single(tmp_path: Path) -> None:
    model = make_model("qwen2")
    model.save_pretrained(tmp_path / "single")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    single, sharded = weights_of(tmp_path / "single"), weights_of(tmp_path / "sharded")
    assert single.keys() == sharded.keys()
    for name, tensor in single.items():
        assert torch.equal(tensor, sharded[name]), name


def test_dtype_is_converted_while_loading(llama: Path) -> None:
    decoder, config = load_model(llama, dtype=torch.bfloat16)
    assert decoder.dtype == torch.bfloat16
    assert config.dtype == "float32"
    stored = load_file(llama / "model.safetensors")["model.norm.weight"]
    assert torch.equal(weights_of(llama, dtype=torch.bfloat16)["norm"], stored.bfloat16())
    with pytest.raises(ModelError, match="cannot run in int8; the dtype must be auto or one of float32, bf"):
        load_model(llama, dtype=torch.int8)


def test_auto_dtype_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    make_model("qwen3").to(torch.float16).save_pretrained(tmp_path)
    assert load_model(tmp_path)[0].dtype == torch.float16
    assert load_model(tmp_path, dtype="auto")[0].dtype == torch.float16
    assert load_model(tmp_path, dtype="float32")[0].dtype == torch.float32


def test_dummy_needs_only_the_configuration(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").unlink()
    first = weights_of(tmp_path, load_format="dummy", seed=1)
    again = weights_of(tmp_path, load_format="dummy", seed=1)
    other = weights_of(tmp_path, load_format="dummy", seed=2)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(first["embed"], other["embed"])
    assert first["embed"].std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(first["layers.0.input_norm"], torch.ones(48))
    with pytest.raises(ModelError, match=r"there is no model\.safetensors and no model\.safetensors\.index\.json"):
        load_model(tmp_path)


def test_known_buffers_and_a_tied_head_are_ignored(tmp_path: Path) -> None:
    make_model("llama3-tied").save_pretrained(tmp_path)
    before = weights_of(tmp_path)

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
        tensors["lm_head.weight"] = torch.zeros(97, 48)

    change(tmp_path, edit)
    after = weights_of(tmp_path)
    assert torch.equal(before["lm_head"], after["lm_head"])


def test_missing_tensor(llama: Path) -> None:
    change(llama, lambda tensors: tensors.pop(NAME))
    with pytest.raises(ModelError, match=rf"model\.safetensors: tensor {NAME} is missing; expected shape \[16, 48\]"):
        load_model(llama)


def test_wrong_shape(llama: Path) -> None:
    change(llama, lambda tensors: tensors.update({NAME: torch.zeros(48, 16)}))
    with pytest.raises(ModelError, match=rf"{NAME} has shape \[48, 16\]; expected \[16, 48\] from config"):
        load_model(llama)


def test_wrong_dtype(llama: Path) -> None:
    change(llama, lambda tensors: tensors.update({NAME: torch.zeros(16, 48, dtype=torch.int8)}))
    with pytest.raises(ModelError, match=rf"{NAME} is I8; expected one of F32, BF16, F16"):
        load_model(llama)


def test_unexpected_tensor(llama: Path) -> None:
    change(llama, lambda tensors: tensors.update({"model.layers.3.mlp.up_proj.weight": torch.zeros(2, 3)}))
    with pytest.raises(ModelError, match=r"tensor model\.layers\.3\.mlp\.up_proj\.weight \[2, 3\] is not one that"):
        load_model(llama)


def test_many_problems_are_counted(llama: Path) -> None:
    change(llama, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.2" in name])
    with pytest.raises(ModelError, match=r"; and 5 more$"):
        load_model(llama)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:100],
        lambda data: data[:-10],
        lambda data: struct.pack("<Q", 2**60) + data[8:],
        lambda data: data[:8] + b"x" * 100 + data[108:],
    ],
    ids=["empty", "cut-header", "cut-data", "huge-header", "no-json"],
)
def test_broken_safetensors(llama: Path, damage: Callable[[bytes], bytes]) -> None:
    file = llama / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ModelError, match=r"model\.safetensors: is not a whole safetensors file: .+; download"):
        load_model(llama)


def test_missing_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=rf"{shard.name}: is missing, and model\.safetensors\.index\.json names it"):
        load_model(sharded)


def test_shard_that_lacks_a_promised_tensor(sharded: Path) -> None:
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    shard = sharded / index["weight_map"][NAME]
    tensors = load_file(shard)
    del tensors[NAME]
    save_file(tensors, shard)
    with pytest.raises(ModelError, match=rf"{shard.name}: has no tensor {NAME}, which model\.safetensors\.index\.json"):
        load_model(sharded)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 1}])
def test_broken_index(sharded: Path, weight_map: object) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match=r"index\.json: weight_map must be an object"):
        load_model(sharded)


def test_index_cannot_point_elsewhere(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../b.safetensors"}}))
    with pytest.raises(ModelError, match=r"'\.\./b\.safetensors' is not the name of a file beside it"):
        load_model(sharded)


def test_another_format_is_named(llama: Path) -> None:
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is of a format that we do not read"):
        load_model(llama)


def test_unknown_load_format(llama: Path) -> None:
    with pytest.raises(ModelError, match="load_format is 'pickle'; it must be 'auto' or 'dummy'"):
        load_model(llama, load_format="pickle")
