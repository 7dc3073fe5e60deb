"""The commands, by name: one module each, imported only when asked for.

A command module has `HELP` (one line), `EXAMPLE` (command lines for --help),
`add_arguments(parser)` and `run(args) -> int` (the exit code).
"""

COMMANDS = (
    "train",
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
    "data",
)

#: Those that do more than print, and go on when nobody reads what they say.
LASTING = ("train", "compare", "coordinator", "worker")
