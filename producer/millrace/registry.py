"""Which models there are: what workers registered, with a short memory."""

from __future__ import annotations

import time

from millrace_schemas import InvalidRequest, ModelInfo, UnknownModel

from .backend import ModelSource

_REMEMBER = 10.0


class ModelRegistry:
    """Reads of the registration, at most one for a model in ten seconds. That a model is absent is not remembered."""

    def __init__(self, source: ModelSource):
        self._source = source
        self._known: dict[str, tuple[ModelInfo, float]] = {}
        self._only: tuple[str, float] | None = None

    async def resolve(self, model: str | None) -> str:
        """`model`, or the one registered model when it is None.

        Raises UnknownModel when there is none, InvalidRequest when there are several.
        """
        if model is not None:
            return model
        if self._only is not None and self._only[1] > time.monotonic():
            return self._only[0]
        names = await self._source.model_names()
        if not names:
            raise UnknownModel("no model is registered; start a worker: millrace worker --model <name>")
        if len(names) > 1:
            raise InvalidRequest(f"several models are registered; name one: {', '.join(names)}", param="model")
        self._only = names[0], time.monotonic() + _REMEMBER
        return names[0]

    async def info(self, model: str) -> ModelInfo:
        """Raises UnknownModel naming the registered ones."""
        known = self._known.get(model)
        if known is not None and known[1] > time.monotonic():
            return known[0]
        (info,) = await self._source.registrations([model])
        if info is None:
            self.forget(model)
            raise await self.unknown(model)
        self._known[model] = info, time.monotonic() + _REMEMBER
        return info

    async def unknown(self, model: str) -> UnknownModel:
        """The error for `model`, with what could have been meant."""
        names = await self._source.model_names()
        start = f"no model is registered; start a worker: millrace worker --model {model}"
        there = f"registered: {', '.join(names)}" if names else start
        return UnknownModel(f"no worker has registered model {model!r}; {there}")

    async def all(self) -> list[ModelInfo]:
        """Registered models, sorted by name."""
        found = await self._source.registrations(await self._source.model_names())
        return [info for info in found if info is not None]

    def forget(self, model: str) -> None:
        self._known.pop(model, None)
        self._only = None
