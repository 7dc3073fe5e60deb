"""Who may import whom, and what no file may do. Reads the source, runs none of it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, wraps
from pathlib import Path

PACKAGE = "asyncdni"
ROOT = Path(__file__).parent.parent / PACKAGE
FUNCTION_LINES_MAX = 55

#: What each package may import of the others. One that is not here, and each module beside the
#: packages, may import all that leads to no circle, except what ONLY and NEVER below say.
MAY_IMPORT = {
    "errors": set[str](),
    "logs": set[str](),
    "messages": set[str](),
    "tables": set[str](),
    # options of a schedule stand beside its rule; `config` gathers all tables
    "config": {"schedules", "tables"},
    "files": {"errors"},
    "handover": {"errors"},
    "software": {""},
    "imports": {"handover", "errors"},
    "delays": {"schedules.base"},
    "encodings": {"messages"},
    "schedules": {"tables"},
    "core": {"schedules", "messages", "errors"},
    "nn": {"imports", "handover", "tables", "errors"},
    "stages": {
        *("nn", "network", "imports", "schedules", "core.events"),
        "messages",
        "config",
        "errors",
    },
    "data": {"files", "imports", "nn.base", "nn.streams", "schedules.base", "config", "errors"},
    "wire": {"core.liveness", "delays", "encodings", "logs", "messages", "config", "errors"},
    # what a table may name, the tables of schedules, generators and data sets know
    "experiment": {
        *("schedules", "nn.generators", "data", "files", "messages", "config", "errors"),
    },
    "plan": {
        *("experiment", "network", "core", "schedules", "stages", "nn", "data", "wire.codec"),
        *("delays", "encodings", "messages", "imports", "handover", "software", "config"),
        *("tables", "errors"),
    },
    "store": {
        *("files", "experiment", "plan", "core", "data", "messages", "config", "errors"),
    },
    "report": {"files", "imports", "store", "core", "data.meta", "schedules", "sampling", "errors"},
    "drivers": {
        *("core", "wire", "stages", "nn.base", "plan", "data", "store", "report.traces"),
        *("delays", "encodings", "schedules", "experiment.schema", "files", "imports"),
        *("messages", "config"),
        *("software", "logs", "errors"),
    },
    "cluster": {
        *("experiment", "plan", "core.liveness", "core.transfer", "wire", "drivers.real", "launch"),
        *(
            "store.claims",
            "store.given",
            "store.parts",
            "report",
            "imports",
            "logs",
            "messages",
            "config",
            "errors",
        ),
    },
    "page": {
        "core.counts",
        "core.slices",
        "launch.display",
        "launch.incidents",
        "plan",
        "report",
        "store",
        "files",
        "imports",
        "messages",
        "errors",
    },
    "profiling": {
        *("core", "wire", "stages", "plan", "network", "data.meta", "report", "experiment"),
        *("store.manifest", "files"),
        *("drivers.virtual", "delays", "imports", "schedules", "messages", "config", "errors"),
        "nn.torch.layer",
    },
}

#: Modules of one package that nothing else may import, but the modules named.
IMPORTED_BY = {
    "cli": {"__main__"},
    "cluster": {"cli.run", "cli.node"},
    "page": {"cli"},
    "launch": {"", "cli", "cluster", "page"},
    "drivers.real": {"launch", "cluster.agent", "cluster.ssh", "cli.worker"},
    "drivers.virtual": {*("cli.simulate", "cli.profile", "cli.timeline"), "profiling"},
    "profiling": {"cli.profile", "cli.advise", "cli.simulate", "launch.compare"},
}

#: Modules that functions import when they are called, against the layers: a `Result` is data of
#: `store`, and what it shows of itself is drawn by `report`.
WHEN_CALLED = {"store.run": {"report.result"}}

#: Libraries, and where alone they may be imported.
ONLY = {
    "zmq": {"wire"},
    "msgpack": {"wire"},
    "torch": {
        *("nn.torch", "data.torch", "plan.model", "launch.model", "launch.train"),
        *("store.given", "store.run"),
    },
    "pytorch_optimizer": {"nn.torch.optimizer"},
    "cloudpickle": {"handover"},
    "subprocess": {"launch", "cluster.keeper", "cluster.ssh", "plan.describe"},
    "rich": {"cli", "launch.display"},
    "matplotlib": {"report"},
    "jinja2": {"report.result"},
    "tensorboard": {"report.tensorboard"},
    "safetensors": {"store.tensors"},
    "ray": {"cluster.ray"},
    "fsspec": {"store.mirror"},
    "numba": {"nn.fused"},
    "starlette": {"page.server", "page.gate"},
    "uvicorn": {"page.server"},
    "prometheus_client": {"page.metrics"},
}

PURE = {"zmq", "numpy", "torch", "time", "random", "asyncio", "threading", "os", "logging"}
#: Libraries that a package must not import.
NEVER = {
    "core": PURE | {"datetime", "socket", "secrets", "multiprocessing", "signal"},
    "schedules": PURE | {"datetime", "socket", "secrets", "multiprocessing", "signal"},
    # one seed replays one run: time is virtual, and nothing happens beside the agenda
    "drivers.virtual": {"time", "datetime", "threading", "asyncio", "socket", "secrets", "uuid"},
}

#: Packages that use the standard library and these.
THIRD_PARTY = {
    "errors": set[str](),
    "logs": set[str](),
    "core": set[str](),
    "schedules": {"msgspec"},
    "tables": {"msgspec"},
    "messages": {"msgspec"},
    "encodings": {"msgspec", "numpy"},
    "config": {"msgspec"},
    "nn": {"numpy", "numba", "torch", "pytorch_optimizer"},
    "launch": {"msgspec", "numpy", "rich", "torch"},
    "cluster": {"ray"},
    "wire": {"zmq", "msgpack", "msgspec", "numpy"},
}

#: Ways to run code that came as data.
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
#: Reads objects from a file that the process which started this one has left open for it, and that
#: nobody else can write to.
UNPICKLES = "handover"
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}


@dataclass(frozen=True)
class Module:
    name: str  # without the package: "core.worker", "" for the package itself
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def home(self) -> str:
        """The package that it is in, or itself."""
        return self.name.partition(".")[0]


def load() -> dict[str, Module]:
    modules = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = Module(name, path)
    return modules


MODULES = load()


def each_module(check: Callable[[Module], None]) -> Callable[[], None]:
    """One test of all modules: a case each would be a third of the suite."""

    @wraps(check)
    def test() -> None:
        wrong = []
        for name, module in MODULES.items():
            try:
                check(module)
            except AssertionError as error:
                wrong.append(f"{name or PACKAGE}: {error}")
        assert not wrong, "\n".join(wrong)

    del test.__wrapped__  # type: ignore[attr-defined]  # pytest would ask it for its arguments
    return test


@cache
def imported(module: Module) -> frozenset[str]:
    """Full names of all modules imported anywhere in it, also where that is done late."""
    return frozenset(_imported(module))


def _imported(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.path}:{node.lineno}: a relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix(f"{PACKAGE}.") in MODULES else node.module


def ours(module: Module) -> set[str]:
    """Modules of the package outside the module's own home; the package itself is left out."""
    names = {name for name in imported(module) if name.split(".")[0] == PACKAGE}
    inside = {name.removeprefix(PACKAGE).removeprefix(".") for name in names} - {""}
    inside -= WHEN_CALLED.get(module.name, set())
    return {name for name in inside if name.partition(".")[0] != module.home}


def theirs(module: Module) -> set[str]:
    return {name.partition(".")[0] for name in imported(module)} - {PACKAGE}


def within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


# --- who may import whom -------------------------------------------------------------------------


def test_the_table_names_packages_that_exist() -> None:
    named = {*MAY_IMPORT, *NEVER, *THIRD_PARTY, *IMPORTED_BY}
    assert {name for name in named if name not in MODULES} == set()


@each_module
def test_modules_import_only_what_the_layers_allow(module: Module) -> None:
    if module.home not in MAY_IMPORT:
        return
    allowed = MAY_IMPORT[module.home]
    assert {name for name in ours(module) if not within(name, allowed)} == set()


@each_module
def test_the_upper_layers_are_imported_by_those_who_run_them_alone(module: Module) -> None:
    for package, users in IMPORTED_BY.items():
        if not within(module.name, users):
            assert {name for name in ours(module) if within(name, {package})} == set()


def test_no_packages_import_each_other_in_a_circle() -> None:
    """The package's own `__init__` is left out: its public names are looked up when asked for."""
    uses: dict[str, set[str]] = {}
    for module in MODULES.values():
        if module.name:
            homes = {name.partition(".")[0] for name in ours(module)}
            uses.setdefault(module.home, set()).update(homes)
    while True:
        leaves = {home for home, used in uses.items() if not used & uses.keys()}
        if not leaves:
            break
        uses = {home: used for home, used in uses.items() if home not in leaves}
    assert uses == {}, "in a circle, or depending on one"


def test_importing_the_package_does_not_load_what_runs_the_workers() -> None:
    top = [node for node in MODULES[""].tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module for node in top if isinstance(node, ast.ImportFrom)}
    assert {name for name in names if name and name.startswith(PACKAGE)} <= {
        f"{PACKAGE}.config",
        f"{PACKAGE}.errors",
    }


# --- libraries -----------------------------------------------------------------------------------


@each_module
def test_each_library_stays_in_its_place(module: Module) -> None:
    strays = {
        library
        for library in theirs(module) & ONLY.keys()
        if not within(module.name, ONLY[library])
    }
    assert strays == set()


@each_module
def test_pure_parts_touch_neither_time_nor_chance_nor_arrays_nor_the_system(module: Module) -> None:
    assert theirs(module) & NEVER.get(module.home, set()) == set()


@each_module
def test_the_lower_layers_need_no_more_than_the_standard_library(module: Module) -> None:
    if module.home in THIRD_PARTY:
        foreign = theirs(module) - sys.stdlib_module_names
        assert foreign <= THIRD_PARTY[module.home]


@each_module
def test_nothing_that_came_as_data_is_run_as_code(module: Module) -> None:
    if module.name != UNPICKLES:
        assert theirs(module) & UNSAFE_MODULES == set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            where = f"{module.path}:{node.lineno}"
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            assert called not in UNSAFE_CALLS, where
            for keyword in node.keywords:
                refused = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                assert keyword.arg != "allow_pickle" or refused, where


def test_a_worker_process_imports_no_display_no_plots_no_launcher() -> None:
    code = (
        "import asyncdni.__main__, asyncdni.cli.worker, asyncdni.drivers.real.process, sys;"
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "asyncdni.core.worker" in loaded
    unwanted = {"rich", "matplotlib", "jinja2", "torch", "starlette", "uvicorn"}
    for name in ("cli.train", "launch", "page", "drivers.virtual"):
        unwanted.add(f"{PACKAGE}.{name}")
    assert {name for name in loaded if within(name, unwanted)} == set()


# --- every file ----------------------------------------------------------------------------------


def _lines(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


@each_module
def test_functions_stay_short(module: Module) -> None:
    """Docstrings do not count: they are to be complete."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            has_docstring = ast.get_docstring(node) is not None
            lines = _lines(node) - (_lines(node.body[0]) if has_docstring else 0)
            assert lines <= FUNCTION_LINES_MAX, f"{module.path}:{node.lineno} {node.name}"


@each_module
def test_every_module_says_what_it_is(module: Module) -> None:
    """An `__init__` without a line in it has nothing to say."""
    if module.text:
        assert ast.get_docstring(module.tree)


@each_module
def test_every_module_with_classes_or_functions_lists_its_public_names(module: Module) -> None:
    defined = [
        node
        for node in module.tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    targets = [
        target.id
        for node in module.tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    assert not defined or "__all__" in targets
