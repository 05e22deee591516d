# SPDX-License-Identifier: Apache-2.0
"""Builds the site of more than this folder: README is its first page.

The documents link to files beside this folder as they are in the repository; in the
site these files are below its root.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README, the changelog, the pictures, and the files to take."""
    pages = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
    others = [
        path.relative_to(REPOSITORY).as_posix()
        for folder in ("media", "contrib")
        for path in sorted((REPOSITORY / folder).rglob("*"))
        if path.is_file()
    ]
    for name, there in {**pages, **{name: name for name in others}}.items():
        files.append(File.generated(config, there, abs_src_path=str(REPOSITORY / name)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Lead links to where the files are in the site."""
    markdown = markdown.replace("(../CHANGELOG.md", "(changelog.md")
    markdown = re.sub(r'([("=])\.\./(media|contrib)/', r"\1\2/", markdown)
    # README's.
    markdown = markdown.replace("(CHANGELOG.md", "(changelog.md")
    return re.sub(r'([("=])docs/', r"\1", markdown)
