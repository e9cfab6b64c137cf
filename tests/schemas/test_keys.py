"""The key map: what the docstring lists is what is built, and a queue's keys share a cluster slot."""

from __future__ import annotations

import fnmatch
import re

import pytest
from redis.crc import key_slot

from millrace_schemas import MODELS, InvalidRequest, Lane, QueueKeys, new_job_id, queue_of, queue_of_job
from millrace_schemas import keys as keys_module
from millrace_schemas.keys import (
    API_KEYS,
    BATCHES_DUE,
    BULK_FILES_EXPIRING,
    BULK_QUEUE,
    WEBHOOK_CHANNELS,
    WEBHOOK_QUEUES,
    batch_key,
    batch_parts,
    batches_of,
    bulk_file,
    bulk_files_of,
    rate_key,
    webhook_secret,
)

ID = "demo-01jd3vq6x0m5t9n8q2w4e7r1yz"


def every_key(queue: str) -> set[str]:
    keys = QueueKeys(queue)
    fixed = {keys.dead, keys.failures, keys.delayed, keys.deadlines, keys.control, keys.model, keys.workers}
    fixed |= {keys.pins, keys.pin_expiry, keys.pin_terms, keys.cache("host-1")}
    fixed |= {keys.webhooks, keys.unfinished("acme"), keys.idempotency("order-17", "acme")}
    by_id = {keys.job(ID), keys.tokens(ID), keys.events(ID), keys.result(ID), keys.done(ID)}
    return fixed | set(keys.lanes.values()) | by_id | {keys.idempotency("order-17"), keys.worker("host-1")}


def bulk_keys() -> set[str]:
    of_batch = {batch_key(ID), *batch_parts(ID), bulk_file(ID)}
    told = QueueKeys(BULK_QUEUE)
    of_batch |= {told.webhooks, told.job(ID)}
    return of_batch | {BATCHES_DUE, BULK_FILES_EXPIRING, batches_of("acme"), bulk_files_of("acme")}


def test_the_docstring_lists_exactly_the_keys_that_are_built() -> None:
    listed = set(re.findall(r"^ +(millrace:\S+(?: id>)?)", keys_module.__doc__ or "", re.MULTILINE))
    names = {"{q}": "{demo}", "<id>": ID, "<key>": "order-17", "<name>": "host-1", "<tenant>": "acme", "<key id>": "k1"}
    for placeholder, name in names.items():
        listed = {key.replace(placeholder, name) for key in listed}
    fixed = {MODELS, API_KEYS, WEBHOOK_QUEUES, rate_key("k1"), webhook_secret("acme")}
    assert listed == every_key("demo") | fixed | bulk_keys()


def test_one_pattern_finds_the_webhooks_of_all_queues() -> None:
    for queue in ("demo", "org--model-7b"):
        assert fnmatch.fnmatchcase(QueueKeys(queue).webhooks, WEBHOOK_CHANNELS)
        assert not fnmatch.fnmatchcase(QueueKeys(queue).control, WEBHOOK_CHANNELS)


@pytest.mark.parametrize("model", ["demo", "org/model-7b", "a.b_c--d", "x" * 200])
def test_all_keys_of_a_queue_share_a_slot(model: str) -> None:
    queue = queue_of(model)
    assert {key_slot(key.encode()) for key in every_key(queue)} == {key_slot(queue.encode())}


def test_a_hostile_idempotency_key_or_worker_name_stays_in_the_slot() -> None:
    """Only the first braces of a key count as its hash tag."""
    keys = QueueKeys("demo")
    slot = key_slot(keys.dead.encode())
    for name in ("{other}", "}{", "a:b", "{}", "ключ"):
        assert key_slot(keys.idempotency(name).encode()) == slot
        assert key_slot(keys.worker(name).encode()) == slot


def test_the_gateways_keys_share_a_slot_that_is_no_queues() -> None:
    assert key_slot(API_KEYS.encode()) == key_slot(rate_key("k1").encode()) == key_slot(b"@")
    with pytest.raises(InvalidRequest):
        queue_of("@")


def test_the_keys_of_bulk_files_share_a_slot_that_is_no_queues() -> None:
    assert {key_slot(key.encode()) for key in bulk_keys()} == {key_slot(b"@bulk")}
    with pytest.raises(InvalidRequest):
        queue_of("@bulk")


def test_queues_do_not_share_keys() -> None:
    assert not every_key("demo") & every_key("demo2")


def test_scripts_can_build_a_job_key_from_the_prefix() -> None:
    keys = QueueKeys("demo")
    assert keys.prefix + "job:" + ID == keys.job(ID)


def test_each_lane_is_its_own_stream() -> None:
    lanes = QueueKeys("demo").lanes
    assert set(lanes) == set(Lane)
    assert len(set(lanes.values())) == len(Lane)


def test_a_job_id_leads_to_its_keys() -> None:
    job_id = new_job_id(queue_of("org/model-7b"))
    assert QueueKeys(queue_of_job(job_id)).job(job_id) == f"millrace:{{org--model-7b}}:job:{job_id}"
