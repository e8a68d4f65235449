"""A page as the tests read it, and what no page may hold."""

import html.parser

EVIL = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(2)>"
VOID = {"meta", "link", "img", "br", "wbr"}


class Parsed(html.parser.HTMLParser):
    """Tags, attributes, ids and text of a page; fails on tags that are closed in the wrong order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text, self.empty = [], [], [], "", set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def values(self, *names):
        return [value for _, name, value in self.attributes if name in names]


def assert_complete(page: Parsed) -> None:
    """Nothing comes from outside, and nothing runs."""
    assert "script" not in page.tags and not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith(("data:", "#")) for value in page.values("src", "href", "srcset", "action", "data"))
    styles = "".join(value for value in page.values("style")) + page.text
    assert "url(" not in styles and "@import" not in styles and "http:" not in styles and "https:" not in styles
    assert any("default-src 'none'" in value for value in page.values("content"))


def assert_harmless(text: str) -> None:
    """Of a page into which `EVIL` was written everywhere."""
    parsed = Parsed(text)
    assert "script" not in parsed.tags and "onerror" not in [name for _, name, _ in parsed.attributes]
    assert not [value for value in parsed.values("src", "href") if not value.startswith(("data:", "#"))]
    assert "<script" not in text and "<img src=http" not in text
    assert not [value for value in parsed.values("class", "style", "id") if "alert" in value]
