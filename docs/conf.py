"""The site, from these pages and the docstrings:  sphinx-build -W docs SITE"""

import importlib
import inspect
import re
import shutil
import sys
from importlib.metadata import version as installed
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))
import navigation

project = "rankfold"
author = copyright = "the authors of rankfold"
release = version = installed("rankfold")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = f"rankfold {release}"
html_extra_path = ["llms.txt"]
html_copy_source = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_google_docstring, napoleon_numpy_docstring, napoleon_use_ivar = True, False, True


def directive(name: str) -> str:
    """What documents ``rankfold.NAME``."""
    room, _, plain = name.rpartition(".")
    module = f"rankfold.{room}" if room else "rankfold"
    found = getattr(importlib.import_module(module), plain)
    if not inspect.isclass(found):
        return f".. autofunction:: {module}.{plain}\n"
    if issubclass(found, BaseException):
        return f".. autoexception:: {module}.{plain}\n"
    return f".. autoclass:: {module}.{plain}\n   :members:\n"


def write_api(app: Sphinx) -> None:
    folder = navigation.DOCS / navigation.API
    folder.mkdir(exist_ok=True)
    for heading, names in navigation.groups(navigation.index()):
        blocks = "\n".join(map(directive, names))
        text = f"# {heading}\n\n```{{eval-rst}}\n{blocks}```\n"
        file = folder / f"{navigation.slug(heading)}.md"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """Add the navigation to the index; files of the repository that are no pages can be downloaded."""
    source[0] = re.sub(
        r"\[([^\]]+)\]\(((?:\.\./)+(?:examples|benchmarks|findings|[A-Z]+\.md)[^)#\s]*)(?:#[^)]*)?\)",
        r"{download}`\1 <\2>`",
        source[0],
    )
    if page == "index":
        source[0] += navigation.toctrees(source[0])


def skip(app: Sphinx, kind: str, name: str, *rest: object) -> bool | None:
    """What scikit-learn adds to every estimator is on its own pages."""
    return True if re.fullmatch(r"set_\w+_request|get_metadata_routing", name) else None


def beside(app: Sphinx, error: Exception | None) -> None:
    """The pages as they are written, where llms.txt says: a language model reads these."""
    for page in navigation.linked((navigation.DOCS / "llms.txt").read_text(encoding="utf-8")):
        target = Path(app.outdir) / page
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(navigation.DOCS / page, target)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write_api)
    app.connect("source-read", read)
    app.connect("autodoc-skip-member", skip)
    app.connect("build-finished", beside)
    return {"parallel_read_safe": True}
