"""config.json in the spellings found in the wild, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PretrainedConfig

from millrace_worker.errors import ModelError
from millrace_worker.models.config import ModelConfig, load_config, parse_config
from tiny_models import CONFIGS

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def parse(**changes: Any) -> ModelConfig:
    return parse_config({**BASE, **changes}, "there/config.json")


def test_what_transformers_saves_reads_as_transformers_means_it(tmp_path: Path) -> None:
    for name, theirs in CONFIGS.items():
        theirs.save_pretrained(tmp_path)
        check_equal(load_config(tmp_path), theirs, name)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_absent_fields_take_the_defaults_of_transformers(tmp_path: Path, family: str) -> None:
    classes = {c.model_type: type(c) for c in CONFIGS.values()}
    raw = {**BASE, "architectures": None, "model_type": family, "num_attention_heads": 32, "hidden_size": 4096}
    theirs = classes[family].from_dict(raw)
    check_equal(parse_config(raw), theirs, family)


def check_equal(ours: ModelConfig, theirs: PretrainedConfig, name: str) -> None:
    pairs = {
        "hidden_size": theirs.hidden_size,
        "intermediate_size": theirs.intermediate_size,
        "num_layers": theirs.num_hidden_layers,
        "num_heads": theirs.num_attention_heads,
        "num_kv_heads": theirs.num_key_value_heads,
        "head_dim": getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads,
        "vocab_size": theirs.vocab_size,
        "max_position_embeddings": theirs.max_position_embeddings,
        "rms_norm_eps": theirs.rms_norm_eps,
        "tie_word_embeddings": theirs.tie_word_embeddings,
        "sliding_window": getattr(theirs, "sliding_window", None),
        "mlp_bias": getattr(theirs, "mlp_bias", False),
        "o_bias": getattr(theirs, "attention_bias", False),
    }
    for field, value in pairs.items():
        assert getattr(ours, field) == value, (name, field)
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.rope.type == theirs.rope_parameters["rope_type"]


def test_both_spellings_of_rope_are_the_same() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
    want = parse(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling}).rope
    assert want.theta == 5e5
    assert want.factor == 8.0
    assert want.original_max_position_embeddings == 512
    assert parse(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **scaling}).rope == want
    assert parse(rope_theta=5e5, rope_scaling={"type": "llama3", **scaling}).rope == want
    assert parse(rope_theta=5e5, rope_scaling={"type": "llama3", "rope_type": "llama3", **scaling}).rope == want
    nested = {"full_attention": {"rope_type": "llama3", "rope_theta": 5e5, **scaling}}
    assert parse(rope_parameters=nested).rope == want


def test_no_rope_fields_at_all() -> None:
    for changes in ({}, {"rope_scaling": None}, {"rope_parameters": None, "rope_theta": 10000}):
        rope = parse(**changes).rope
        assert (rope.type, rope.theta, rope.attention_factor) == ("default", 10000.0, 1.0)


def test_both_spellings_of_dtype() -> None:
    assert parse(dtype="bfloat16").dtype == "bfloat16"
    assert parse(torch_dtype="float16").dtype == "float16"
    assert parse(dtype="bfloat16", torch_dtype="float16").dtype == "bfloat16"
    assert parse(dtype="torch.bfloat16").dtype == "bfloat16"
    assert parse().dtype == "float32"
    with pytest.raises(ModelError, match="torch_dtype must be one of float32, bfloat16, float16, not 'int8'"):
        parse(torch_dtype="int8")


def test_eos_as_number_list_or_nothing() -> None:
    assert parse(eos_token_id=7).eos_token_ids == (7,)
    assert parse(eos_token_id=[7, 9]).eos_token_ids == (7, 9)
    assert parse(eos_token_id=None).eos_token_ids == ()
    assert parse().eos_token_ids == ()
    with pytest.raises(ModelError, match="eos_token_id must be a token id"):
        parse(eos_token_id="</s>")


def test_head_dim_absent_null_and_given() -> None:
    assert parse().head_dim == 16
    assert parse(head_dim=None).head_dim == 16
    assert parse(head_dim=32).head_dim == 32
    assert parse(architectures=["Qwen3ForCausalLM"], num_key_value_heads=2).head_dim == 128


def test_null_kv_heads_are_as_many_as_heads() -> None:
    for architecture in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"):
        assert parse(architectures=[architecture], num_key_value_heads=None).num_kv_heads == 4


def test_sliding_window_caps_the_context() -> None:
    mistral = {"architectures": ["MistralForCausalLM"], "num_key_value_heads": 2, "max_position_embeddings": 32768}
    assert parse(**mistral, sliding_window=4096).max_context == 4096
    assert parse(**mistral).max_context == 4096  # transformers' default
    assert parse(**mistral, sliding_window=None).max_context == 32768
    assert parse(**mistral, sliding_window=65536).max_context == 32768


def test_sliding_window_of_some_layers() -> None:
    qwen = {"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2, "sliding_window": 512}
    assert parse(**qwen).sliding_window is None
    assert parse(**qwen, use_sliding_window=True).sliding_window is None  # from layer 28 of 2 on
    assert parse(**qwen, use_sliding_window=True, max_window_layers=1).max_context == 512
    layers = ["full_attention", "sliding_attention"]
    assert parse(**qwen, use_sliding_window=True, layer_types=layers).max_context == 512
    assert parse(**qwen, use_sliding_window=False, layer_types=layers).sliding_window is None


def test_stretched_rope_stretches_the_context() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert parse(max_position_embeddings=32768, rope_scaling=yarn).max_context == 131072
    assert parse(max_position_embeddings=131072, rope_scaling=yarn).max_context == 131072
    assert parse(max_position_embeddings=4096, rope_scaling={"type": "linear", "factor": 4}).max_context == 16384


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "architecture GPT2LMHeadModel is not supported; Millrace runs LlamaFor",
        ),
        ({"architectures": None, "model_type": "bert"}, "model_type 'bert' is not supported; Millrace runs LlamaFor"),
        ({"architectures": None}, "model_type None is not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config: quantised checkpoints are not supp"),
        ({"attention_chunk_size": 8192}, "chunked attention is not supported"),
        ({"layer_types": ["linear_attention"]}, "layer_types may name full_attention and sliding_attention alone"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported; Millrace has default, lin"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope' is not supported"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}, r"\(mrope\) is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
        ({"rope_scaling": {"type": "linear"}}, "rope parameters: factor is missing"),
        ({"rope_scaling": "linear"}, "rope parameters must be an object, not 'linear'"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e6}}},
            "rope parameters that differ between layer types",
        ),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', not 'gelu'"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size must be a positive integer, not '64'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, not 0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must divide num_attention_heads = 4, not 3"),
        ({"head_dim": 15}, "head_dim must be even, not 15"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a positive number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
    ],
)
def test_refusals_name_file_field_and_what_is_supported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        parse(**changes)
    assert str(caught.value).startswith("there/config.json")


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no config\.json"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: is not JSON"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([BASE]))
    with pytest.raises(ModelError, match="must hold a JSON object, not list"):
        load_config(tmp_path)
