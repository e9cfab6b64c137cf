"""Files that are to go, and what keeps them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import openai
import pytest
import redis

from backends import until
from bulk_parts import BulkProcess
from fake_worker import register
from gateway_server import GatewayServer
from millrace import InvalidRequest
from millrace.bulk.expiry import MAX_SECONDS, MIN_SECONDS, output_expires_at, read_expiry
from millrace.bulk.files import FileNotFound, FileStore
from millrace.bulk.output import output_url
from millrace.bulk.store import BatchStore
from millrace.bulk.submitting import make_batch
from millrace.bulk.sweep import sweep, sweep_files
from millrace.connection import Connection
from millrace.gateway import GatewaySettings
from millrace_schemas.batch import Batch, BulkFile
from millrace_schemas.keys import BATCHES_DUE, BULK_FILES_EXPIRING, bulk_file

T = TypeVar("T")
Do = Callable[[Callable[[Connection], Awaitable[T]]], T]


@pytest.fixture
def do(redis_url: str) -> Do[Any]:
    def do(what: Callable[[Connection], Awaitable[T]]) -> T:
        async def run() -> T:
            connection = Connection(redis_url)
            try:
                return await what(connection)
            finally:
                await connection.close()

        return asyncio.run(run())

    return do


@pytest.fixture
def made(do: Do[Any], tmp_path: Path) -> Callable[..., BulkFile]:
    def make(name: str, expires_in: float | None = -1000.0, location: str = "", **fields: Any) -> BulkFile:
        async def put(connection: Connection) -> BulkFile:
            now = await connection.now()
            file = BulkFile(
                id=f"file-{name}", location=location or f"file://{tmp_path}/{name}", filename=name, size=1,
                created_at=now - 5000, purpose="batch", expires_at=None if expires_in is None else now + expires_in,
                **fields,
            )  # fmt: skip
            Path(file.location.removeprefix("file://")).write_text("x")
            await FileStore(connection).put(file)
            return file

        return do(put)

    return make


def swept(do: Do[int], later: float = 0.0, **limits: int) -> int:
    async def run(connection: Connection) -> int:
        return await sweep_files(connection, await connection.now() + later, **limits)

    return do(run)


def begin(do: Do[Any], source: str, output: str = "/nowhere", **fields: Any) -> Batch:
    async def create(connection: Connection) -> Batch:
        store = BatchStore(connection)
        batch = make_batch(source, output, now=await store.now(), **fields)
        await store.create(batch)
        return batch

    return do(create)


def names(path: Path) -> set[str]:
    return {found.name for found in path.iterdir()}


def test_what_is_over_goes(do: Do[Any], made: Callable[..., BulkFile], redis_url: str, tmp_path: Path) -> None:
    for n in range(5):
        made(f"over{n}", tenant="acme" if n % 2 else "")
    made("soon", 1000.0), made("stays", None)
    assert swept(do, most=3) == 3
    assert sweep(redis_url, 100) == 2
    assert sweep(redis_url, 100) == 0
    assert names(tmp_path) == {"soon", "stays"}
    with redis.Redis.from_url(redis_url) as raw:
        assert raw.zrange(BULK_FILES_EXPIRING, 0, -1) == [b"file-soon"]
        assert set(raw.keys("millrace:{@bulk}:file:*")) == {bulk_file(f"file-{n}").encode() for n in ("soon", "stays")}
        assert not raw.exists("millrace:{@bulk}:files@acme")


def test_nobody_sees_what_is_over(do: Do[Any], made: Callable[..., BulkFile], tmp_path: Path) -> None:
    """Also before it goes, which is a while later: who has just found it may still make a batch of it."""
    file, other = made("over", -1.0), made("stays", None)
    with pytest.raises(FileNotFound):
        do(lambda connection: FileStore(connection).get(file.id))
    assert do(lambda connection: FileStore(connection).page()) == [other]
    assert swept(do) == 0
    assert swept(do, later=70.0) == 1
    assert names(tmp_path) == {"stays"}


def test_what_a_batch_reads_or_writes_stays(
    do: Do[Any], made: Callable[..., BulkFile], redis_url: str, tmp_path: Path
) -> None:
    by_id, by_place, free = made("by_id"), made("by_place"), made("free")
    first = begin(do, "/elsewhere", input_file_id=by_id.id)
    second = begin(do, by_place.location, str(tmp_path))
    made("output", location=output_url(second))
    assert swept(do) == 1
    assert not (tmp_path / free.filename).exists()
    # They are looked at again after a while, not at once.
    with redis.Redis.from_url(redis_url) as raw:
        raw.zrem(BATCHES_DUE, first.id)
        assert swept(do) == 0
        assert swept(do, later=310.0) == 1
        assert names(tmp_path) == {"by_place", Path(output_url(second)).name}
        raw.zrem(BATCHES_DUE, second.id)
    assert swept(do, later=1000.0) == 2
    assert not names(tmp_path)


def test_a_sweep_that_died_is_ended_by_the_next(
    do: Do[Any], made: Callable[..., BulkFile], redis_url: str, tmp_path: Path
) -> None:
    made("half")
    (tmp_path / "half").unlink()
    # Another one died before the record was written.
    with redis.Redis.from_url(redis_url) as raw:
        raw.zadd(BULK_FILES_EXPIRING, {"file-none": 1.0})
        assert swept(do) == 1
        assert not raw.exists(BULK_FILES_EXPIRING, bulk_file("file-half"))


def test_a_place_that_is_away_holds_up_no_others(do: Do[Any], made: Callable[..., BulkFile], tmp_path: Path) -> None:
    stuck = made("stuck")
    (tmp_path / "stuck").unlink()
    (tmp_path / "stuck").mkdir()
    made("over")
    assert swept(do) == 1
    (tmp_path / "stuck").rmdir()
    assert swept(do, later=310.0) == 1
    with pytest.raises(FileNotFound):
        do(lambda connection: FileStore(connection).get(stuck.id))


def test_when_output_goes() -> None:
    batch = make_batch("/in.jsonl", "/out", now=1000.0, output_expires_after=7200)
    # From when it is made, not from when the batch was.
    assert output_expires_at(batch, 5000.0) == 12_200.0
    assert output_expires_at(make_batch("/in.jsonl", "/out", now=1000.0), 5000.0) is None


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (3600, "output_expires_after"),
        ({"seconds": 3600}, "output_expires_after"),
        ({"anchor": "last_active_at", "seconds": 3600}, "output_expires_after"),
        ({"anchor": "created_at", "seconds": 3600, "days": 1}, "output_expires_after"),
        ({"anchor": "created_at", "seconds": MIN_SECONDS - 1}, "output_expires_after.seconds"),
        ({"anchor": "created_at", "seconds": MAX_SECONDS + 1}, "output_expires_after.seconds"),
        ({"anchor": "created_at", "seconds": True}, "output_expires_after.seconds"),
        ({"anchor": "created_at", "seconds": "3600"}, "output_expires_after.seconds"),
    ],
)
def test_what_is_refused(value: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as found:
        read_expiry(value, "output_expires_after")
    assert found.value.param == param


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[GatewayServer]:
    register(redis_url)
    with GatewayServer(redis_url, GatewaySettings(files=f"file://{tmp_path}/files")) as server:
        yield server


def test_over_http(do: Do[Any], gateway: GatewayServer) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        file = client.files.create(
            file=("in.jsonl", b"x\n"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )
        assert file.expires_at == file.created_at + 3600
        assert client.files.retrieve(file.id).expires_at == file.expires_at
        assert client.files.create(file=("in.jsonl", b"x\n"), purpose="batch").expires_at is None
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            output_expires_after={"anchor": "created_at", "seconds": 86_400},
        )
        view = do(lambda connection: BatchStore(connection).view(batch.id))
        assert view.batch.output_expires_after == 86_400
        with pytest.raises(openai.BadRequestError) as refused:
            client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                output_expires_after={"anchor": "created_at", "seconds": 60},
            )
        assert refused.value.param == "output_expires_after.seconds"
    with httpx2.Client(base_url=gateway.url) as http:
        for fields, param in (
            ({"expires_after[seconds]": "3600"}, "expires_after"),
            ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "1h"}, "expires_after.seconds"),
            ({"expires_after[days]": "1"}, "expires_after[days]"),
        ):
            answer = http.post("/v1/files", files={"file": b"x"}, data={"purpose": "batch", **fields})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_the_service_sweeps(do: Do[Any], made: Callable[..., BulkFile], redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    over = made("over", location=f"file://{tmp_path}/files/over")
    with BulkProcess(redis_url, tmp_path):
        until(lambda: not (tmp_path / "files" / "over").exists())
        until(lambda: not do(lambda connection: connection.run(("EXISTS", bulk_file(over.id))))[0])


def test_an_upload_whose_gateway_died_goes(do: Do[Any], redis_url: str, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/file-half.jsonl"
    (tmp_path / ".file-half.jsonl.abc.part").write_text("half")

    async def begin(connection: Connection) -> BulkFile:
        now = await connection.now()
        file = BulkFile(id="file-half", location=url, filename="f", size=1, created_at=now, purpose="batch")
        await FileStore(connection).reserve(file, now + 1000)
        return file

    file = do(begin)
    with pytest.raises(FileNotFound):
        do(lambda connection: FileStore(connection).get(file.id))
    assert do(lambda connection: FileStore(connection).page()) == []
    assert swept(do) == 0
    assert names(tmp_path) == {".file-half.jsonl.abc.part"}
    assert swept(do, later=1100.0) == 1
    assert names(tmp_path) == set()


def test_an_upload_that_is_whole_stays(do: Do[Any], redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "whole").write_text("x")

    async def whole(connection: Connection) -> BulkFile:
        now = await connection.now()
        file = BulkFile(
            id="file-whole", location=f"file://{tmp_path}/whole", filename="f", size=1, created_at=now, purpose="batch"
        )
        await FileStore(connection).reserve(file, now + 10)
        await FileStore(connection).put(file)
        return file

    file = do(whole)
    assert swept(do, later=5000.0) == 0
    assert do(lambda connection: FileStore(connection).get(file.id)) == file
