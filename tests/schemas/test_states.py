"""Every pair of state and event, against a table written a second time."""

from __future__ import annotations

import itertools

import pytest

from millrace_schemas import TERMINAL, TRANSITIONS, IllegalTransition, JobEvent, JobState, advance

LEGAL = {
    ("queued", "lease"): "in_progress",
    ("queued", "fail"): "failed",
    ("queued", "cancel"): "cancelled",
    ("queued", "expire"): "expired",
    ("in_progress", "lease"): "in_progress",
    ("in_progress", "requeue"): "queued",
    ("in_progress", "complete"): "completed",
    ("in_progress", "fail"): "failed",
    ("in_progress", "cancel"): "cancelled",
    ("in_progress", "expire"): "expired",
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(JobState, JobEvent)))
def test_every_move(state: JobState, event: JobEvent) -> None:
    if (state, event) in LEGAL:
        assert advance(state, event) is JobState(LEGAL[state, event])
    else:
        with pytest.raises(IllegalTransition, match=f"in state {state} has no move {event}"):
            advance(state, event)


def test_terminal_states_are_those_without_a_move() -> None:
    assert {state for state in JobState if not TRANSITIONS[state]} == TERMINAL


def test_every_state_can_be_reached_and_left_for_good() -> None:
    reached = {JobState.QUEUED}
    for _ in JobState:
        reached |= {advance(s, e) for s in reached for e in TRANSITIONS[s]}
    assert reached == set(JobState)
    for state in set(JobState) - TERMINAL:
        assert TERMINAL & set(TRANSITIONS[state].values())


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[JobState.COMPLETED][JobEvent.LEASE] = JobState.QUEUED  # type: ignore[index]
