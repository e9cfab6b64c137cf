"""A single call: names are resolved once, and what was checked is what is connected to."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from millrace.gateway.webhook_addresses import Allowed
from millrace.gateway.webhook_sender import Answer, Sender
from receiver import Receiver

CERTIFICATE = Path(__file__).parents[1] / "support" / "hooks_internal.pem"


class Names:
    """A name server whose answers follow each other; the last one is repeated."""

    def __init__(self, *answers: Sequence[str]):
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        return list(answer)


def post(url: str, *, names: Names | None = None, allow: Sequence[str] = (), count: int = 1) -> list[Answer]:
    async def run() -> list[Answer]:
        sender = Sender(Allowed.of(allow), 1.0, names)
        try:
            return [await sender.post(url, b"{}", {"webhook-id": "evt_1"}) for _ in range(count)]
        finally:
            sender.close()

    return asyncio.run(run())


def test_a_name_that_changes_its_mind() -> None:
    """The first answer is checked and used; nobody asks again between check and connection."""
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    with Receiver() as here, Receiver(host="127.0.0.2", port=here.port) as there:
        url = f"http://rebinding.example:{here.port}/"
        first, second = post(url, names=names, allow=["127.0.0.1"], count=2)
        assert first.delivered
        assert names.asked == ["rebinding.example"] * 2
        assert second.error.startswith("rebinding.example is no public address")
        assert "127.0.0.2" not in second.error
        (call,) = here.calls
        assert call.headers["host"] == f"rebinding.example:{here.port}"
        assert not there.calls


def test_one_private_address_among_public_ones_is_enough() -> None:
    with Receiver() as receiver:
        for addresses in (["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"], ["8.8.8.8", "::ffff:7f00:1"]):
            (answer,) = post(f"http://mixed.example:{receiver.port}/", names=Names(addresses))
            assert "is no public address" in answer.error
        assert not receiver.calls


def test_all_addresses_are_tried() -> None:
    with Receiver() as receiver:
        names = Names(["127.0.0.3", "127.0.0.1"])
        (answer,) = post(f"http://two.example:{receiver.port}/a?b=c", names=names, allow=["127.0.0.0/8"])
        assert answer.delivered
        assert receiver.calls[0].path == "/a?b=c"


def test_a_host_can_be_allowed_by_its_name() -> None:
    with Receiver() as receiver:
        (answer,) = post(f"http://localhost:{receiver.port}/", allow=["localhost"])
        assert answer.delivered
        (answer,) = post(f"http://localhost:{receiver.port}/")
        assert answer.error.startswith("localhost is no public address")
        assert len(receiver.calls) == 1


def test_a_status_is_an_answer_whatever_follows() -> None:
    def trickle(handler: Any) -> None:
        time.sleep(0.5)
        handler.wfile.write(b"HTTP/1.1 204 OK\r\ncontent-length: 100\r\n\r\n")
        time.sleep(1.5)

    def break_off(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense")

    for answer in (trickle, break_off):
        with Receiver(answer) as receiver:
            assert post(receiver.url, allow=["127.0.0.1"])[0].delivered


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as receiver, Receiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert post(receiver.url, allow=["127.0.0.1"])[0].delivered
        assert len(receiver.calls) == 1
        assert not proxy.calls


def test_the_certificate_is_that_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    context.sni_callback = lambda sock, name, context: asked.append(name)
    with Receiver(tls=context) as receiver:
        names, allow = Names(["127.0.0.1"]), ["127.0.0.1"]
        (unknown,) = post(f"https://hooks.internal:{receiver.port}/", names=names, allow=allow)
        assert unknown.error.startswith("its certificate is not valid: ")
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        (answer,) = post(f"https://hooks.internal:{receiver.port}/", names=names, allow=allow)
        assert answer.delivered, answer.error
        (other,) = post(f"https://other.internal:{receiver.port}/", names=names, allow=allow)
        assert "other.internal" in other.error
        (plain,) = post(f"http://hooks.internal:{receiver.port}/", names=names, allow=allow)
        assert not plain.delivered
    assert asked == ["hooks.internal", "hooks.internal", "other.internal"]
    assert [call.headers["host"] for call in receiver.calls] == [f"hooks.internal:{receiver.port}"]


def test_names_that_nobody_resolves() -> None:
    async def broken(host: str, port: int) -> list[str]:
        raise OSError("no name server")

    async def hanging(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    async def run(resolve: object) -> Answer:
        sender = Sender(Allowed(), 0.2, resolve)  # type: ignore[arg-type]
        try:
            return await sender.post("http://a.example/", b"{}", {})
        finally:
            sender.close()

    assert asyncio.run(run(broken)).error == "no connection: the name a.example cannot be resolved"
    assert asyncio.run(run(hanging)).error == "no answer within 0.2 s"
    (empty,) = post("http://a.example/", names=Names([]))
    assert empty.error == "no connection: a.example has no address"
    (odd,) = post(f"http://{'a' * 70}.example/")
    assert odd.error.endswith("cannot be resolved")


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [("7", 7, 7), ("Fri, 31 Dec 1999 23:59:59 GMT", 0, 0), ("soon", None, None), ("-1", None, None), ("", None, None)],
)
def test_retry_after(value: str, least: float | None, most: float | None) -> None:
    with Receiver((503, {"retry-after": value})) as receiver:
        (answer,) = post(receiver.url, allow=["127.0.0.1"])
    assert (answer.status, answer.delivered, answer.error) == (503, False, "HTTP 503")
    if least is None or most is None:
        assert answer.retry_after is None
    else:
        assert answer.retry_after is not None
        assert least <= answer.retry_after <= most


def test_retry_after_a_date() -> None:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    with Receiver((503, {"retry-after": date})) as receiver:
        (answer,) = post(receiver.url, allow=["127.0.0.1"])
    assert answer.retry_after is not None
    assert 50 < answer.retry_after <= 100
