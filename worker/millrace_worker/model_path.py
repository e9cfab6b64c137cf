"""From the name of a model to the directory that holds it."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import ModelError

DEMO = "demo"

#: What a worker reads of a hub repository; not the same weights again in another format.
_ALLOW = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer*"]
_IGNORE = ["consolidated*", "original/*", "onnx/*"]

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def resolve_model(name: str) -> Path:
    """The directory of the model `name`: that path, "demo" for the model in the package, else a hub name.

    A hub model is downloaded into Hugging Face's cache unless it is there. Raises ModelError when nothing is found, or
    when the directory has no config.json.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked(path)
    if name == DEMO:
        return _checked(_demo())
    if path.exists():
        raise ModelError(f"{name}: is a file; give the directory of the model")
    if not _HUB_NAME.fullmatch(name) or name.startswith("."):
        raise ModelError(f"{name}: there is no such directory")
    return _checked(_download(name))


def _demo() -> Path:
    here = Path(__file__).resolve().parent
    # In an installed package, and in a checkout.
    places = (here / "demo_model", here.parents[1] / "infra" / "demo_model" / "model")
    for place in places:
        if place.is_dir():
            return place
    raise ModelError(f"the demo model is not installed: neither {places[0]} nor {places[1]} is there")


def _download(name: str) -> Path:
    # Here and not on top: it takes long to import, and a local model needs none of it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_ALLOW, ignore_patterns=_IGNORE))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ModelError(f"{name!r} is no directory here, and the Hugging Face hub does not give it: {reason}") from e


def _checked(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: there is no config.json; this is not the directory of a model")
    return path
