"""Links are proven before anybody trains, and those that carry nothing are named."""

from __future__ import annotations

from typing import Any

import networks
import pytest
from each import each
from hand import MIDDLE, Hand, activation, sends
from office import Office, end, failure, hello, records
from office import sent as to_workers
from pair import Bench, chain, roster_of

from asyncdni.core.coordinator import Coordinator
from asyncdni.core.events import Fail, Finish, Woke
from asyncdni.core.members import Phase
from asyncdni.core.post import PATIENCE_S
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.messages import COORDINATOR, Greeting, Message, Note, Ready, Start, Unheard
from asyncdni.plan.build import Design
from asyncdni.schedules.locked import Locked

FROM_P, FROM_C = Greeting("p", 1, "m"), Greeting("c", 1, "m")
OURS = [("c", Greeting("m", 7, "c")), ("p", Greeting("m", 7, "p"))]


# --- a worker ------------------------------------------------------------------------------------


def test_a_worker_is_ready_once_it_has_greeted_all_and_heard_all() -> None:
    hand = Hand(MIDDLE)
    assert sends(hand(Woke())) == OURS
    assert hand(FROM_P) == []
    assert sends(hand(FROM_C)) == [(COORDINATOR, Ready(7))]
    assert hand(FROM_C) == []  # again, and once is enough


def test_greetings_that_came_before_its_own_count() -> None:
    hand = Hand(MIDDLE)
    assert hand(FROM_P) == hand(FROM_C) == []
    assert sends(hand(Woke())) == [*OURS, (COORDINATOR, Ready(7))]


def test_it_greets_again_until_the_start_as_one_that_is_ready_may_not_have_been_heard() -> None:
    hand = Hand(MIDDLE)
    for _ in range(3):
        assert hand.worker.deadline() is not None
        assert sends(hand(Woke()), Greeting) == OURS
        hand(FROM_P)
        hand(FROM_C)
    hand(Start())
    assert hand.worker.deadline() is None
    assert hand(Woke()) == hand(FROM_P) == []


def test_what_does_not_prove_a_link_does_not_count() -> None:
    for word in (
        Greeting("c", 1, "z"),  # meant for the one that it takes this to be
        Greeting("c", 0, "m"),  # of an older process
        Greeting("m", 7, "c"),  # its own: the address of c is wrong
        Greeting("nobody", 1, "m"),
        activation(0),
    ):
        hand = Hand(MIDDLE)
        hand(Woke())
        hand(FROM_P)
        assert sends(hand(word)) == []
        assert sends(hand(FROM_C)) == [(COORDINATOR, Ready(7))]


def test_whom_it_has_not_heard_for_a_while_it_tells_the_coordinator_and_what_changes() -> None:
    hand = Hand(MIDDLE)
    told = []
    for number in range(int(PATIENCE_S) + 5):
        told += [message for _, message in sends(hand(Woke()), Unheard)]
        if number == PATIENCE_S + 2:
            assert told == [Unheard(7, ["c", "p"])]
            hand(FROM_P)
    assert told == [Unheard(7, ["c", "p"]), Unheard(7, ["c"])]


# --- a coordinator -------------------------------------------------------------------------------


def notes(actions: Any) -> list[str]:
    return [record["text"] for record in records(actions, "note")]


def test_who_can_t_reach_whom_is_said_once_and_ends_the_run_where_it_has_not_begun() -> None:
    office = Office(silence_s=1000.0)
    for name in ("a", "b", "c"):
        office.hear(name, hello(name, host=f"host-{name}", address=f"tcp://10.0.0.1:6{name}?key=x"))
    office.build()
    actions = office.hear("b", Unheard(1, ["a"]))
    (text,) = notes(actions)
    assert sorted(to_workers(actions, Note)) == [("a", Note(text)), ("b", Note(text))]  # their logs
    assert text.startswith(
        "worker a on host-a can't reach worker b on host-b at tcp://10.0.0.1:6b: "
    )
    assert "firewalls" in text and "--stage b --bind tcp://HOST:PORT" in text
    assert notes(office.hear("b", Unheard(1, ["a"]))) == []
    assert len(notes(office.hear("b", Unheard(1, ["a", "c"])))) == 1
    fail = failure(office.wake(office.machine.roster.startup_s))
    assert fail.kind == "LaunchError"
    assert "within 60 s" in fail.text and text in fail.text and "1 more" in fail.text


@each(
    "address, words",
    [
        ("tcp://127.0.0.1:6", "an address of there alone"),
        ("tcp://0.0.0.0:6", "an address of there alone"),
        ("tcp://localhost:6", "an address of there alone"),
        ("tcp://[::1]:6", "an address of there alone"),
        ("tcp://[2001:db8::7]:6", "open that port in the firewalls"),
        ("ipc:///run/w", "an address of there alone"),
        ("tcp://name:6", "see whether here knows that name"),
    ],
)
def test_the_advice_goes_by_the_address(address: str, words: str) -> None:
    office = Office()
    office.hear("a", hello("a", host="here"))
    office.hear("b", hello("b", host="there", address=address))
    office.hear("c", hello("c"))
    office.build()
    (text,) = notes(office.hear("b", Unheard(1, ["a"])))
    assert words in text


def test_after_five_seconds_it_is_said_once_who_is_awaited_and_from_which_host() -> None:
    office = Office(silence_s=1000.0, stuck_s=1000.0)
    office(Woke())
    office.hear("a", hello("a", host="here"))
    assert notes(office.wake(4.9)) == []
    assert notes(office.wake(0.1)) == [
        "after 5 s still waiting for worker a on here, which builds its stages, and worker b, "
        "which has not joined, and worker c, which has not joined"
    ]
    assert notes(office.wake(20.0)) == []
    office.hear("b", hello("b", host="there"))
    office.hear("c", hello("c", host="there"))
    office.build()
    office.ready()
    assert notes(office.wake(20.0)) == []
    office.kill("b")
    (text,) = notes(office.wake(6.0))  # all but b were told to build anew, by now
    assert "worker b, which has not joined; the one before was on there" in text


def test_a_link_is_named_however_late_the_last_worker_has_come() -> None:
    office = Office(silence_s=1000.0)
    office.wake(0.0)
    office.hear("a", hello("a"))
    office.hear("c", hello("c"))
    office.wake(office.machine.roster.startup_s - 0.1)
    office.hear("b", hello("b", address="tcp://10.0.0.1:6"))
    office.build()
    assert end(office.wake(PATIENCE_S)) is None
    office.hear("b", Unheard(1, ["a"]))
    assert "can't reach worker b on h at tcp://10.0.0.1:6" in failure(office.wake(PATIENCE_S)).text


def test_links_that_come_late_are_in_time() -> None:
    office = Office(silence_s=1000.0, stuck_s=1000.0).connecting()
    office.hear("b", Unheard(1, ["a"]))
    office.ready()
    assert office.phase is Phase.TRAINING
    assert end(office.wake(office.machine.roster.startup_s)) is None


def test_a_worker_that_has_not_heard_a_stranger_breaks_the_protocol() -> None:
    office = Office().connecting()
    (lost,) = records(office.hear("a", Unheard(1, ["c"])), "lost")  # c is no neighbour of a
    assert lost["stage"] == "a"
    assert Office().started().hear("a", Unheard(1, ["b"])) == []  # too late to mean anything


# --- all of them ---------------------------------------------------------------------------------


def test_nobody_is_ready_while_a_link_carries_nothing_one_way() -> None:
    positions = chain(3)
    bench = Bench(
        positions,
        Locked(),
        coordinator=Coordinator(roster_of(positions)),
        withheld=lambda sender, to, message: (sender, to) == ("stage 0", "stage 1"),
    )
    bench.join()
    ready = [sender for sender, _, message in bench.sent if isinstance(message, Ready)]
    assert sorted(ready) == ["stage 0", "stage 2"]


def tried(lost_after: int, schedule: str) -> tuple[Design, Any]:
    """A run whose link from s0 to s1 carries so many messages and no more."""
    design = networks.design(
        networks.chain(3), {"name": schedule}, limits={"startup_s": 8, "stuck_s": 4}
    )
    sent = 0

    def lose(sender: str, to: str, message: Message) -> bool:
        nonlocal sent
        sent += (sender, to) == ("s0", "s1")
        return (sender, to) == ("s0", "s1") and sent > lost_after

    return design, simulate(design, seed=0, maths=False, lose=lose)


@pytest.mark.parametrize("schedule", ["locked", "synthetic"])
def test_a_link_that_is_down_from_the_start_ends_the_run_and_is_named_before(schedule: str) -> None:
    _, result = tried(0, schedule)
    assert isinstance(result.end, Fail)
    assert result.end.kind == "LaunchError"
    said = [values for kind, values in result.records if kind == "note"]
    assert len(said) == 1 and said[0]["time_s"] < 8.0
    assert "worker s0 on simulator can't reach worker s1" in said[0]["text"]
    assert said[0]["text"] in result.end.text
    assert not [kind for kind, _ in result.records if kind in ("start", "lost", "launch")]


@pytest.mark.parametrize("schedule", ["locked", "synthetic"])
def test_a_link_that_breaks_for_good_ends_the_run_in_its_name(schedule: str) -> None:
    design, result = tried(6, schedule)
    assert isinstance(result.end, Fail)
    assert "can't reach worker s1" in result.end.text
    rounds = [values for kind, values in result.records if kind == "round"]
    assert len(rounds) <= 2 + design.experiment.recovery.restarts
    assert not [
        kind for kind, _ in result.records if kind == "lost"
    ]  # nobody's process is to blame


def test_a_greeting_that_is_lost_is_sent_again() -> None:
    design = networks.design(networks.chain(3), {"name": "locked"})
    lost: list[Message] = []

    def lose(sender: str, to: str, message: Message) -> bool:
        first = isinstance(message, Greeting) and message not in lost
        lost.extend([message] * first)
        return first

    result = simulate(design, seed=0, maths=False, lose=lose)
    assert isinstance(result.end, Finish)
    assert len(lost) == 4
