"""Views of tenants: the same cases over a real Redis and over one of millrace.testing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from millrace import Client, InvalidRequest, Job, JobNotFound, NotPermitted, Request, TooManyJobs
from millrace_schemas import new_job_id
from sites import Site

LOOKS: dict[str, Callable[[Job], Any]] = {
    "state": lambda job: job.state(),
    "record": lambda job: job.record(),
    "request": lambda job: job.request(),
    "result": lambda job: job.result(timeout=0),
    "wait": lambda job: job.wait(timeout=0.05),
    "cancel": lambda job: job.cancel(),
    "events": lambda job: list(job.events()),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("ended", [False, True], ids=["queued", "ended"])
def test_jobs_of_others_are_not_there(site: Site, client: Client, look: str, ended: bool) -> None:
    """The error is word by word that of an id that nobody ever made."""
    mine = client.for_tenant("acme").submit("a", stream=True)
    untold = client.submit("b", stream=True)
    if ended:
        site.work()
        client.result(mine.id, timeout=10)
        client.result(untold.id, timeout=10)
    for viewer, job in (("other", mine), ("", mine), ("acme", untold)):
        view = client.for_tenant(viewer)
        missing = new_job_id("demo")
        with pytest.raises(JobNotFound) as nowhere:
            LOOKS[look](view.get(missing))
        with pytest.raises(JobNotFound) as caught:
            LOOKS[look](view.get(job.id))
        assert str(caught.value) == str(nowhere.value).replace(missing, job.id)
    assert not client.record(mine.id).cancel_requested


def test_a_tenant_does_everything_with_its_own_jobs(site: Site, client: Client) -> None:
    view = client.for_tenant("acme")
    cancelled = view.submit("a")
    assert view.cancel(cancelled.id) == "cancelled"
    site.work()
    job = view.submit("hello", stream=True)
    assert job.result(timeout=10).text == "HELLO"
    # Another view of the tenant has to look whose it is.
    again = client.for_tenant("acme").get(job.id)
    assert again.wait(timeout=0).text == "HELLO"
    assert list(client.for_tenant("acme").events(job.id))[-1].result.text == "HELLO"
    assert (again.record().tenant, again.request().tenant) == ("acme", "acme")
    assert [model.name for model in view.models()] == ["demo"]
    view.close()
    assert client.record(job.id).tenant == "acme"


def test_a_view_makes_jobs_for_its_tenant_only(client: Client) -> None:
    view = client.for_tenant("acme")
    jobs = view.submit_many([Request(model="demo", prompt="a", tenant="other"), {"prompt": "b"}])
    assert [client.record(job.id).tenant for job in jobs] == ["acme", "acme"]
    assert client.record(client.for_tenant("").submit("a").id).tenant == ""
    with pytest.raises(InvalidRequest) as caught:
        client.for_tenant("a/b")
    assert caught.value.param == "tenant"


def test_tenants_share_no_idempotency_keys(client: Client) -> None:
    jobs = [client.for_tenant(name).submit("a", idempotency_key="order-17").id for name in ("a", "b", "", "a")]
    assert len(set(jobs)) == 3
    assert jobs[0] == jobs[3]


def test_queues_are_for_operators(site: Site, client: Client) -> None:
    job = client.submit("a")
    site.kill(job.id)
    (entry,) = client.dead()
    view = client.for_tenant("acme")
    for ask in (view.queue_stats, view.dead, lambda: view.requeue_dead(entry.id), view.purge_dead):
        with pytest.raises(NotPermitted, match="for operators"):
            ask()
    assert len(client.dead()) == 1


def test_a_view_in_a_view_is_narrower(client: Client) -> None:
    job = client.for_tenant("acme").submit("a")
    with pytest.raises(JobNotFound):
        client.for_tenant("acme").for_tenant("other").state(job.id)
    with pytest.raises(JobNotFound):
        client.for_tenant("other").for_tenant("acme").state(job.id)


def test_unfinished_jobs_are_limited(site: Site, client: Client) -> None:
    view = client.for_tenant("acme", max_jobs=2)
    first, second = view.submit("a", idempotency_key="k"), view.submit("b")
    with pytest.raises(TooManyJobs, match="may have 2 unfinished jobs") as caught:
        view.submit("c")
    assert (caught.value.tenant, caught.value.limit) == ("acme", 2)
    # What is there already takes no place, and others have their own.
    assert view.submit("a", idempotency_key="k").id == first.id
    client.for_tenant("other", max_jobs=2).submit("a")
    client.submit("a")
    second.cancel()
    view.submit("c")
    with pytest.raises(TooManyJobs):
        view.submit("d")
    site.work()
    first.wait(timeout=10)
    view.submit("d")


def test_a_list_is_made_whole_or_not_at_all(site: Site, client: Client) -> None:
    view = client.for_tenant("acme", max_jobs=4)
    view.submit("a")
    with pytest.raises(TooManyJobs):
        view.submit_many([{"prompt": str(i)} for i in range(4)])
    assert len(site.waiting()) == 1
    ids = [job.id for job in view.submit_many([{"prompt": str(i), "idempotency_key": f"k{i}"} for i in range(3)])]
    assert len(site.waiting()) == 4
    # A repeat, as after a lost reply, needs no room.
    again = view.submit_many([{"prompt": str(i), "idempotency_key": f"k{i}"} for i in range(3)])
    assert [job.id for job in again] == ids
    with pytest.raises(TooManyJobs):
        view.submit("a")


def test_a_list_over_two_queues_is_made_whole_or_not_at_all(site: Site, client: Client) -> None:
    site.register("second")
    view = client.for_tenant("acme", max_jobs=2)
    requests = [{"prompt": "a", "model": model} for model in ("demo", "demo", "second", "second", "second")]
    with pytest.raises(TooManyJobs):
        view.submit_many(requests)
    # Places kept in the first queue were given back.
    assert len(view.submit_many(requests[:4])) == 4
