"""`millrace.webhooks.verify`: what it takes for a webhook, and what not."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from email.message import Message
from typing import Any

import pytest

from millrace import MillraceError
from millrace.webhooks import Event, InvalidSignature, verify
from millrace.webhooks.signature import new_secret, sign

BODY = json.dumps(
    {"id": "evt_1", "object": "event", "type": "job.completed", "created_at": 7, "data": {"id": "demo-1"}, "more": 1}
).encode()
SECRET, OLD = new_secret(), new_secret()


def headers(secrets: tuple[str, ...] = (SECRET,), at: float = 0.0, body: bytes = BODY) -> dict[str, str]:
    return sign(body, "evt_1", int(time.time() + at), secrets)


def test_a_known_signature() -> None:
    """What the tests of Standard Webhooks' own libraries expect of this secret, message and time."""
    signed = sign(
        b'{"test": 2432232314}', "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
    )
    assert signed["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_what_is_ours() -> None:
    event = verify(BODY, headers(), SECRET)
    assert event == Event(id="evt_1", type="job.completed", created_at=7, data={"id": "demo-1"})
    assert event.job_id == "demo-1"
    assert verify(BODY.decode(), headers(), SECRET) == event
    assert Event(id="e", type="response.completed", created_at=1, data={"id": "resp_demo-1"}).job_id == "demo-1"


def test_headers_of_any_kind() -> None:
    given = headers()
    title = {name.title(): value for name, value in given.items()}
    message = Message()  # as http.server has them
    for name, value in title.items():
        message[name] = value
    kinds: list[Any] = [title, list(given.items()), [*title.items(), ("Accept", "*/*")], message]
    for kind in kinds:
        assert verify(BODY, kind, SECRET).id == "evt_1"


def test_rotation() -> None:
    """Both sides may know two secrets for a while."""
    assert verify(BODY, headers((SECRET, OLD)), OLD)
    assert verify(BODY, headers((SECRET, OLD)), SECRET)
    assert verify(BODY, headers((SECRET,)), [OLD, SECRET])
    with pytest.raises(InvalidSignature):
        verify(BODY, headers((SECRET,)), [OLD])
    with pytest.raises(InvalidSignature):
        verify(BODY, headers((SECRET,)), [])


@pytest.mark.parametrize(
    "change",
    [
        {"webhook-id": "evt_2"},
        {"webhook-timestamp": str(int(time.time()) - 1)},
        {"webhook-timestamp": "now"},
        {"webhook-timestamp": "-1"},
        {"webhook-timestamp": "1e9"},
        {"webhook-timestamp": "٣"},
        {"webhook-timestamp": "9" * 30},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1,ä"},
        {"webhook-signature": "v1"},
        {"webhook-signature": "v1a," + base64.b64encode(bytes(32)).decode()},
        {"webhook-signature": ""},
        {"webhook-id": ""},
    ],
)
def test_what_somebody_has_changed(change: Mapping[str, str]) -> None:
    with pytest.raises(InvalidSignature):
        verify(BODY, {**headers(), **change}, SECRET)


def test_a_signature_of_another_version_does_not_count() -> None:
    given = headers()
    given["webhook-signature"] = given["webhook-signature"].replace("v1,", "v2,")
    with pytest.raises(InvalidSignature, match="no signature fits"):
        verify(BODY, given, SECRET)


def test_another_body() -> None:
    for body in (BODY + b" ", b"", BODY.replace(b"demo-1", b"demo-2")):
        with pytest.raises(InvalidSignature, match="no signature fits"):
            verify(body, headers(), SECRET)


def test_missing_headers() -> None:
    for name in headers():
        with pytest.raises(InvalidSignature, match=f"no header {name}"):
            verify(BODY, {key: value for key, value in headers().items() if key != name}, SECRET)


def test_old_and_future_calls() -> None:
    for at in (-400.0, 400.0):
        with pytest.raises(InvalidSignature, match="300 seconds"):
            verify(BODY, headers(at=at), SECRET)
        assert verify(BODY, headers(at=at), SECRET, tolerance=500)


def test_a_signed_body_that_is_no_event() -> None:
    for body in (b"[]", b"{", b"\xff", b'{"id": 5}'):
        with pytest.raises(InvalidSignature, match="no event"):
            verify(body, headers(body=body), SECRET)


def test_a_secret_that_is_none() -> None:
    for secret in ("", "whsec_", "whsec_!", "abc"):
        with pytest.raises(ValueError, match="millrace webhooks secret") as caught:
            verify(BODY, headers(), secret)
        assert not isinstance(caught.value, InvalidSignature)


def test_secrets_are_random_and_of_the_form_that_others_read() -> None:
    assert SECRET != OLD
    assert len(base64.b64decode(SECRET.removeprefix("whsec_"), validate=True)) == 32
    assert issubclass(InvalidSignature, MillraceError)
