"""What is logged, how a command prints it, and how another process reads such lines."""

from __future__ import annotations

import json
import logging
import re
import socket
import sys

import pytest
from each import each

from asyncdni import logs
from asyncdni.__main__ import main
from asyncdni.launch.incidents import log_incident
from asyncdni.launch.local import worker_command

LOST = {"stage": "hidden1", "text": "no sign of life"}


def printer_of(printer: logs.Printer, level: str | None = None, **ways: bool) -> None:
    printer.use(level, **{"json": False, "stamped": False, "quiet": False, **ways})


def test_who_uses_the_package_from_python_gets_no_handler_that_prints() -> None:
    (handler,) = logging.getLogger("asyncdni").handlers
    assert type(handler) is logging.NullHandler
    with logs.printed():
        pass
    assert logging.getLogger("asyncdni").handlers == [handler]


def test_a_person_reads_plain_words(capsys: pytest.CaptureFixture[str]) -> None:
    with logs.printed() as printer:
        printer_of(printer)
        logs.own().error("it broke")
        logs.own().warning("it may break")
        logs.own().debug("it goes on")
    said = capsys.readouterr().err
    assert said == "asyncdni: it broke\nasyncdni: warning: it may break\n"


@each("level, number", [("debug", logging.DEBUG), ("error", logging.ERROR)])
@each("form", ["stamped", "json"])
def test_lines_of_a_worker_have_time_level_and_name_and_can_be_read_back(
    form: str, level: str, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "it's {odd}: 5 % of ü"
    with logs.printed() as printer:
        printer_of(printer, "debug", **{form: True})
        logs.be("worker", "hidden1")
        logs.own().log(number, "%s", text)
        logs.print_at_once(number, text)
    lines = capfd.readouterr().err.splitlines()
    assert [logs.parsed(line) for line in lines] == [(number, text)] * 2
    for line in lines:
        if form == "stamped":
            time_s = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
            assert re.fullmatch(f"{time_s} {level.upper()} worker hidden1: {text}", line), line
        else:
            values = json.loads(line)
            assert list(values) == ["time", "level", "host", "logger", "worker", "text"]
            assert values["level"] == level and values["host"] == socket.gethostname()
            assert (values["logger"], values["worker"]) == ("asyncdni.worker.hidden1", "hidden1")


@each("line", ["segfault", '{"time": 3}', "Traceback (most recent call last):"])
def test_a_line_that_was_not_logged_counts_as_a_warning(line: str) -> None:
    assert logs.parsed(line) == (logging.WARNING, line)


def test_incidents_are_logged_and_not_printed_beside_a_display(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with logs.printed() as printer:
        printer_of(printer)
        log_incident("lost", LOST)
        assert capsys.readouterr().err == ""
        printer_of(printer, quiet=True)
        log_incident("lost", LOST)
        log_incident("launch", {"stage": "hidden1", "attempt": 1})
        assert capsys.readouterr().err == "asyncdni: warning: lost: no sign of life\n"
        printer_of(printer, json=True)
        log_incident("launch", {"stage": "hidden1", "attempt": 1})
    values = json.loads(capsys.readouterr().err)
    assert (values["level"], values["logger"]) == ("info", "asyncdni.coordinator")
    assert values["text"] == "starting hidden1 again"


def test_workers_log_as_the_command_does_that_starts_them() -> None:
    with logs.printed() as printer:
        assert worker_command("a", "tcp://h:1")[-1] == "tcp://h:1"
        printer_of(printer, "debug", json=True)
        command = worker_command("a", "tcp://h:1")
        assert command[-3:] == ["--log-level", "debug", "--log-json"]


def test_a_command_fails_in_one_line_of_the_form_that_was_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    wrong = ["worker", "--stage", "top", "--coordinator", "nowhere"]
    codes = [main(wrong), main([*wrong, "--log-json"]), main(["train", "missing.toml"])]
    stamped, line, plain = capsys.readouterr().err.splitlines()
    assert 0 not in codes
    assert " ERROR worker top: " in stamped
    assert json.loads(line)["worker"] == "top"
    assert logs.parsed(stamped)[1] == json.loads(line)["text"]
    assert plain.startswith("asyncdni: ")
