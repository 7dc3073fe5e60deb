"""Puts pages of the whole repository into the documentation's site, in the folders that they have.

So a link from one page to another works in the repository and on the site alike. The reference of
the Python interface is a page that only the site has, made from the docstrings.
"""

from __future__ import annotations

from pathlib import Path
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
    pages = [
        File(path.relative_to(ROOT).as_posix(), src_dir=str(ROOT), **place)
        for pattern in SHOWN
        for path in sorted(ROOT.glob(pattern))
    ]
    return Files([*theme, *pages, File.generated(config, API, content=_api())])


def _api() -> str:
    """Return the page of the Python interface; mkdocstrings fills it in."""
    parts = [f"::: asyncdni.{where}.{name}" for name, where in NAMES.items()]
    return "\n\n".join(["# The Python interface", *parts]) + "\n"
