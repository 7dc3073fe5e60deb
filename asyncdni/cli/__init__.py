"""The commands by name: one module each, imported only when needed.

A command's module has `HELP` (one line), `EXAMPLE` (command lines for --help),
`add_arguments(parser)` and `run(args) -> int` (the exit code).
"""

COMMANDS = (
    "train",
    "run",
    "node",
    "compare",
    "profile",
    "advise",
    "coordinator",
    "worker",
    "keys",
    "evaluate",
    "predict",
    "sample",
    "simulate",
    "graph",
    "timeline",
    "view",
    "data",
    "explain",
    "check",
    "new",
)

#: Commands that do more than print; they go on when nobody reads their output.
LASTING = ("train", "run", "node", "compare", "coordinator", "worker")

#: Commands whose lines go to log files, or to one place with those of other processes: they begin
#: with time, level and name.
STAMPED = ("run", "node", "worker")
