"""Whom the coordinator lets in, and whom it misses."""

from __future__ import annotations

from each import each
from office import Office, built, failure, hello, records, sent

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


_OURS = {"Python": "3.12.4", "asyncdni": "0.1.0", "torch": "2.13.0+cpu"}


@each(
    "changes, expected",
    [
        ({"torch": "2.12.1"}, "has torch 2.12.1, the coordinator 2.13.0+cpu: install the same"),
        ({"torch": None}, "has no torch, the coordinator 2.13.0+cpu: install the same"),
        (
            {"Python": "3.11.9", "asyncdni": "0.2.0"},
            "has Python 3.11.9 and asyncdni 0.2.0, the coordinator 3.12.4 and 0.1.0: install the "
            "same",
        ),
    ],
)
def test_who_computes_with_other_versions_is_refused(
    changes: dict[str, str | None], expected: str
) -> None:
    theirs = {name: version for name, version in (_OURS | changes).items() if version}
    ((_, refused),) = sent(Office(versions=_OURS).hear("x", hello("b", versions=theirs)))
    assert isinstance(refused, Refused)
    assert refused.text == f"worker b on h {expected}"


@each(
    "changes, note",
    [
        ({"Python": "3.12.1"}, ""),
        ({"numpy": "1.0"}, ""),
        (
            {"torch": "2.13.0+cu126"},
            "worker b on h has torch 2.13.0+cu126, the coordinator 2.13.0+cpu: install the same, "
            "or weights may differ in the last bits",
        ),
    ],
)
def test_who_computes_with_another_build_comes_in(changes: dict[str, str], note: str) -> None:
    actions = Office(versions=_OURS).hear("x", hello("b", versions=_OURS | changes))
    assert sent(actions, Welcome)
    assert [one["text"] for one in records(actions, "note")] == ([note] if note else [])


def test_who_does_not_say_what_it_computes_with_comes_in() -> None:
    assert sent(Office(versions=_OURS).hear("x", hello("b")), Welcome)


@each(
    "ours, theirs",
    [
        ({"models": "1"}, "the coordinator"),
        ({}, "worker a on h"),
        ({"layers": "1"}, "worker a on h"),
    ],
)
def test_a_worker_with_another_source_of_the_model_ends_the_run(
    ours: dict[str, str], theirs: str
) -> None:
    office = Office(sources=ours, restarts=0)
    for name in "ab":
        office.hear(name, hello(name))
    assert not sent(office.hear("a", built(sources={"models": "1", "more": "3"})))
    fail = failure(office.hear("b", built(sources={"models": "2"})))
    assert (fail.kind, fail.text) == (
        "LaunchError",
        f"worker b on h has another source of models than {theirs}: copy the same files to both "
        "hosts, and start again",
    )


def test_too_slow_a_start_names_who_is_missing() -> None:
    office = Office(startup_s=60.0, silence_s=1000.0, restarts=0)
    office(Woke())
    office.hear("b", hello("b"))
    office.wake(5.0)  # says whom it waits for
    assert office.machine.deadline() == 160.0
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
