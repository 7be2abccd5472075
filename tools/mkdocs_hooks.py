"""Hooks of mkdocs: notebooks become pages, figures' scripts stay out, and no page loads anything from other hosts."""

import base64
import json
import re
from pathlib import PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

LOADED = re.compile(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="((?:https?:)?//[^"]*)"')


class Notebook(File):
    """A notebook of the documentation, shown as a page."""

    def is_documentation_page(self) -> bool:
        """True: mkdocs renders `content_string` as Markdown."""
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Turn notebooks into pages and their images into files; leave out Python files."""
    for file in list(files):
        if file.src_uri.endswith((".ipynb", ".py")):
            files.remove(file)
        if file.src_uri.endswith(".ipynb"):
            page = Notebook(file.src_uri, config.docs_dir, config.site_dir, config.use_directory_urls)
            text, images = markdown(json.loads(file.content_string), PurePosixPath(file.src_uri).stem)
            page.content_string = text
            files.append(page)
            folder = PurePosixPath(file.src_uri).parent
            for name, content in images.items():
                files.append(File.generated(config, str(folder / name), content=content))
    return files


def on_post_page(output: str, **_: Any) -> None:
    """Refuse a page that loads from another host.

    Raises:
        PluginError: it does.
    """
    if found := LOADED.search(output):
        raise PluginError(f"a page loads {found[1]}; the site must not request anything from other hosts")


def markdown(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its images by the file names that the text refers to."""
    parts: list[str] = []
    images: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        printed = "".join("".join(output.get("text", ())) for output in cell.get("outputs", ()))
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                file = f"{name}-{len(images)}.png"
                images[file] = base64.b64decode(output["data"]["image/png"])
                parts.append(f"![Figure drawn by the code above]({file})")
    parts.append(f"*This page is the notebook `docs/notebooks/{name}.ipynb`.*")
    return "\n\n".join(parts), images
