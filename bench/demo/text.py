#!/usr/bin/env python3
"""The demo's text from Debian packages: the King James Bible, Webster's dictionary (GCIDE), An Anarchist FAQ. usage: text.py OUT_DIR"""
import gzip
import html.parser
import pathlib
import re
import subprocess
import sys


class Text(html.parser.HTMLParser):
    """Character data of a page without scripts and styles."""

    def __init__(self):
        super().__init__()
        self.parts, self.skip = [], 0

    def handle_starttag(self, tag, attrs):
        self.skip += tag in ("script", "style")
        if tag in ("p", "br", "h1", "h2", "h3", "li", "tr"):
            self.parts.append("\n")

    def handle_endtag(self, tag):
        self.skip -= tag in ("script", "style")

    def handle_data(self, data):
        if not self.skip:
            self.parts.append(data)


def bible():
    return subprocess.run(["bible", "-f", "gen1:1-rev22:21"], check=True, capture_output=True).stdout


def dictionary():
    return gzip.open("/usr/share/dictd/gcide.dict.dz").read()[: 24 << 20]


def anarchism():
    out = []
    for page in sorted(pathlib.Path("/usr/share/doc/anarchism/html").glob("*.html")):
        reader = Text()
        reader.feed(page.read_text(encoding="utf-8", errors="ignore"))
        out.append(re.sub(r"\n\s*\n+", "\n\n", re.sub(r"[ \t]+", " ", "".join(reader.parts))))
    return "\n".join(out).encode()


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name, make in (("bible.txt", bible), ("gcide.txt", dictionary), ("anarchism.txt", anarchism)):
        data = make().replace(b"\0", b"")
        (out / name).write_bytes(data)
        print(f"  {name:14s} {len(data) / 1e6:6.1f} MB", file=sys.stderr)


main()
