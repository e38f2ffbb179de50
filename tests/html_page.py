"""A page as a test reads it."""

from __future__ import annotations

import html.parser
from collections.abc import Collection
from typing import Any


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and collects text, tags and attributes. unread: tags whose text no person reads."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, content: str, unread: Collection[str] = ("style",)) -> None:
        super().__init__()
        self.unread = set(unread)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(content)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.unread & set(self.open):
            self.words.append(data)
