"""Puts pages of the whole repository into the documentation's site, in the folders that they have.

So a link from one page to another works in the repository and on the site alike. Two pages are the
site's alone: the reference of the Python interface, made from the docstrings, and the tables of all
benchmarks. Those, and the ones in the benchmarks' own pages, are made anew from the raw results.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
#: What the site shows, and what its pages link to.
SHOWN = (
    "*.md",
    "docs/*.md",
    "docs/*.svg",
    "benchmarks/*/README.md",
    "benchmarks/**/*.svg",
    "benchmarks/**/*.png",
    "notebooks/*.ipynb",
)
API = "docs/api.md"
TABLES = "benchmarks/tables.md"
LOG = logging.getLogger("mkdocs.hooks.site")
#: What the reference of the Python interface is about, and where it is defined.
NAMES = {
    "train": "launch.train",
    "open_run": "store.run",
    "evaluate": "evaluation",
    "predict": "evaluation",
    "load": "experiment",
    "Result": "store.run",
    "Callback": "launch.callbacks",
    "EarlyStopping": "launch.callbacks",
    "Training": "launch.callbacks",
    "Mlflow": "launch.trackers",
    "Wandb": "launch.trackers",
    "AsyncDNIError": "errors",
}


def on_files(files: Files, config: Any) -> Files:
    """Take the repository's pages in place of those of `docs/` alone."""
    place = {"dest_dir": config.site_dir, "use_directory_urls": config.use_directory_urls}
    theme = [file for file in files if not file.src_uri.endswith((".md", ".svg", ".py"))]
    measured = _measured()
    made = {API: _api(), TABLES: _tables(measured), **measured}
    pages = [
        File(path.relative_to(ROOT).as_posix(), src_dir=str(ROOT), **place)
        for pattern in SHOWN
        for path in sorted(ROOT.glob(pattern))
    ]
    pages = [page for page in pages if page.src_uri not in made]
    generated = [File.generated(config, name, content=text) for name, text in made.items()]
    return Files([*theme, *pages, *generated])


def _api() -> str:
    """Return the page of the Python interface; mkdocstrings fills it in."""
    parts = [f"::: asyncdni.{where}.{name}" for name, where in NAMES.items()]
    return "\n\n".join(["# The Python interface", *parts]) + "\n"


# --- results -------------------------------------------------------------------------------------


def _measured() -> dict[str, str]:
    """Return the pages of the benchmarks that keep raw results, with tables made from those.

    Each program puts its tables in with `--readme`, in a copy of the benchmarks. A page of the
    repository that says something else is a warning, and so the site isn't built.
    """
    pages = {}
    with TemporaryDirectory() as copy:
        shutil.copytree(ROOT / "benchmarks", Path(copy) / "benchmarks")
        for needed in ("launch", "tests"):  # what programs read and import beside their own folder
            (Path(copy) / needed).symlink_to(ROOT / needed)
        folders = sorted(path for path in (Path(copy) / "benchmarks").iterdir() if path.is_dir())
        with ThreadPoolExecutor(os.cpu_count()) as at_once:
            filled = list(at_once.map(_filled_in, folders))
        for folder, programs in zip(folders, filled, strict=True):
            if programs:
                name = f"benchmarks/{folder.name}/README.md"
                pages[name] = (Path(copy) / name).read_text(encoding="utf-8")
                if pages[name] != (ROOT / name).read_text(encoding="utf-8"):
                    commands = " and ".join(f"{one} --readme" for one in programs)
                    LOG.warning("%s has other tables than its results: run %s", name, commands)
    return pages


def _filled_in(folder: Path) -> list[str]:
    """Fill in the tables of a benchmark's page; return the programs that did."""
    programs: list[str] = []
    for path in [] if folder.name == "shared" else sorted(folder.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        # A program without raw results would have to measure first.
        if not re.search(r"(fill_in|carry_out)\(", text) or "results" not in text:
            continue
        command = [sys.executable, path, "--readme"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        programs.append(f"benchmarks/{folder.name}/{path.name}")
        if done.returncode:
            LOG.warning("%s --readme failed: %s", programs[-1], done.stderr.strip())
    return programs


def _tables(pages: Mapping[str, str]) -> str:
    """Return the page of all tables, each under its benchmark and its heading there."""
    parts = [
        "# All tables",
        "What the benchmarks have measured, made from their raw results while this site was built. "
        "How each was measured, and what it shows, is on the page that its title leads to.",
    ]
    for name, text in pages.items():
        title = text.partition("\n")[0].removeprefix("# ")
        parts.append(f"## [{title}]({name.removeprefix('benchmarks/')})")
        parts += _marked(text)
    return "\n\n".join(parts) + "\n"


def _marked(text: str) -> Iterator[str]:
    """Yield the tables of a page, and the headings of its sections that have any."""
    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        tables = re.findall(r"^<!-- .+? -->\n(.*?)^<!-- end -->", section, re.DOTALL | re.MULTILINE)
        if tables and section.startswith("## "):
            yield "#" + section.splitlines()[0]
        for table in tables:
            yield re.sub(r"^##+ ", "#### ", table, flags=re.MULTILINE)
