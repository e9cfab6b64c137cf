"""From names to directories."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from millrace_worker import model_path
from millrace_worker.errors import ModelError
from millrace_worker.model_path import resolve_model


def test_a_directory_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path / "model")) == tmp_path / "model"
    monkeypatch.chdir(tmp_path)
    assert resolve_model("model") == Path("model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/model") == tmp_path / "model"


def test_what_is_no_model_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no config\.json"):
        resolve_model(str(tmp_path))
    with pytest.raises(ModelError, match="nowhere: there is no such directory"):
        resolve_model(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=r"\./nowhere: there is no such directory"):
        resolve_model("./nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="file: is a file; give the directory"):
        resolve_model(str(tmp_path / "file"))


def test_demo_is_in_the_package_or_in_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "worker" / "millrace_worker"
    monkeypatch.setattr(model_path, "__file__", str(package / "model_path.py"))
    with pytest.raises(ModelError, match="the demo model is not installed"):
        resolve_model("demo")
    checkout = tmp_path / "infra" / "demo_model" / "model"
    checkout.mkdir(parents=True)
    (checkout / "config.json").write_text("{}")
    assert resolve_model("demo") == checkout
    installed = package / "demo_model"
    installed.mkdir(parents=True)
    (installed / "config.json").write_text("{}")
    assert resolve_model("demo") == installed


def test_a_hub_name_asks_the_hub_for_what_a_worker_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(name: str, **options: list[str]) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model("some-org/some-model") == tmp_path
    assert asked["name"] == "some-org/some-model"
    kept = list(
        huggingface_hub.utils.filter_repo_objects(
            [
                "config.json",
                "model-00001-of-00002.safetensors",
                "consolidated.safetensors",
                "original/params.json",
                "pytorch_model.bin",
                "tokenizer.model",
                "merges.txt",
                "chat_template.jinja",
                "model.gguf",
            ],
            allow_patterns=asked["allow_patterns"],
            ignore_patterns=asked["ignore_patterns"],
        )
    )
    assert kept == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
    ]


@pytest.mark.parametrize("name", ["some-org/no-such-model", "double--dash/..name"])
def test_a_hub_that_does_not_give_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"is no directory here, and the Hugging Face hub does not give it: ."
    ) as caught:
        resolve_model(name)
    assert "\n" not in str(caught.value)
