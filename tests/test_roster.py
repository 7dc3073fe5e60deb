"""Whom the coordinator lets in, and whom it misses."""

from __future__ import annotations

from each import each
from office import Office, failure, hello, records, sent

from asyncdni.core.events import Woke
from asyncdni.core.members import Phase
from asyncdni.messages import PROTOCOL_VERSION, Hello, Refused, Welcome


@each("stage, name", [("b", "b"), ("b2", "b"), ("1", "b"), ("0", "a")])
def test_a_worker_is_found_by_name_by_a_stage_of_it_or_by_index(stage: str, name: str) -> None:
    ((_, welcome),) = sent(Office().hear("x", hello(stage)), Welcome)
    assert isinstance(welcome, Welcome)
    assert welcome.stage == name


@each(
    "word, expected",
    [
        (
            hello("a", protocol=99),
            f"protocol 99, its coordinator {PROTOCOL_VERSION}: install",
        ),
        (hello("d"), "no stage 'd' here; known: a, b, c"),
        (hello("3"), "known: a, b, c"),
        (hello("²"), "known: a, b, c"),
        (hello("9" * 5000), "known: a, b, c"),
        (hello("b"), "stage b is taken by process 5 on h"),
    ],
)
def test_who_does_not_fit_is_refused_with_a_reason_and_the_run_goes_on(
    word: Hello, expected: str
) -> None:
    office = Office()
    office.hear("b", hello("b"))
    actions = office.hear("x", word)
    ((to, refused),) = sent(actions)
    assert to == "x"
    assert isinstance(refused, Refused)
    assert expected in refused.text
    assert records(actions, "refused")
    assert office.machine.phase is Phase.GATHERING


def test_too_slow_a_start_names_who_is_missing() -> None:
    office = Office(startup_s=60.0, silence_s=100.0, restarts=0)
    office(Woke())
    assert office.machine.deadline() == 160.0
    office.hear("b", hello("b"))
    office.now = 160.0
    fail = failure(office(Woke()))
    assert fail.kind == "LaunchError"
    assert fail.text == "no worker for a, c has joined within 60 s (limits.startup_s)"


@each("state", ["gathering", "connecting"])
def test_too_slow_a_worker_that_has_joined_is_named_too(state: str) -> None:
    """One that does not build its part, or finds its neighbours not."""
    office = getattr(Office(silence_s=100.0, stuck_s=100.0, restarts=0), state)()
    if state == "gathering":
        office.build("b")
    else:
        office.ready("b")
    office.now = 160.0
    assert "worker a, c has not become ready within 60 s" in failure(office(Woke())).text


def test_the_place_of_one_that_has_died_is_free() -> None:
    office = Office().started()
    ((_, refused),) = sent(office.hear("x", hello("b")))
    assert isinstance(refused, Refused)
    office.kill("b")
    assert sent(office.join("b"), Welcome)
