"""What an engine and its courier say to each other over their socketpair, in frames of the form of frames.py.

The courier is the process that moves records of the prefix cache between a bucket and the disk cache's directory. It
knows names, paths and lengths; what is in a record, and where on the disk it belongs, only the engine knows.
"""

from __future__ import annotations

import msgspec

#: Bytes of a name: a chain hash.
NAME_BYTES = 32


class Start(msgspec.Struct, frozen=True, tag="start"):
    """The engine's first frame."""

    bucket: str
    #: Before the names of objects: "", or what ends in "/".
    prefix: str
    endpoint_url: str | None
    #: Of each record, exactly.
    record_bytes: int
    #: Within which a request is answered, or given up.
    request_seconds: float
    #: Between two listings of the bucket, at least.
    list_seconds: float
    #: ... and for each page of a listing, as requests cost money.
    seconds_a_page: float
    fetches_at_once: int = 8
    stores_at_once: int = 2


class Fetch(msgspec.Struct, frozen=True, array_like=True):
    """A record to be put at `path`."""

    name: bytes
    path: str


class Store(msgspec.Struct, frozen=True, array_like=True):
    """The record at `path` belongs into the bucket; `replace`: also where there is one of that name."""

    name: bytes
    path: str
    replace: bool = False


class ToCourier(msgspec.Struct, frozen=True, tag="to_courier"):
    fetch: list[Fetch] = []
    #: Names whose fetch nobody waits for any more; each is still answered.
    drop: list[bytes] = []
    store: list[Store] = []
    #: To be deleted from the bucket.
    remove: list[bytes] = []


class Page(msgspec.Struct, frozen=True, array_like=True):
    """A part of a listing of the bucket: names of NAME_BYTES each, one after the other."""

    names: bytes
    first: bool
    last: bool


class Done(msgspec.Struct, frozen=True, array_like=True):
    """The answer to one request. Times are those of time.monotonic, which both processes share."""

    name: bytes
    #: Why not, as a word for a counter and as words for people; "" when it was done.
    reason: str = ""
    detail: str = ""
    began: float = 0.0
    ended: float = 0.0
    #: Of a store: whether the bucket had it already.
    present: bool = False


class FromCourier(msgspec.Struct, frozen=True, tag="from_courier"):
    """The first one, which is empty, says that it takes requests now."""

    pages: list[Page] = []
    fetched: list[Done] = []
    stored: list[Done] = []
    removed: list[Done] = []
    #: A listing failed; its name is empty.
    unlisted: Done | None = None
    #: Why there will never be anything to be had from this courier. It ends after this frame.
    hopeless: str = ""


_from_engine = msgspec.msgpack.Decoder(Start | ToCourier)
_from_courier = msgspec.msgpack.Decoder(FromCourier)


def unpack_to_courier(body: bytes) -> Start | ToCourier:
    return _from_engine.decode(body)


def unpack_from_courier(body: bytes) -> FromCourier:
    return _from_courier.decode(body)
