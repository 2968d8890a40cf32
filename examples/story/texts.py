"""Reads Jane Austen's six novels out of Debian's package of R's janeaustenr: `python texts.py r-cran-janeaustenr_1.0.0-1_all.deb`.

The texts are Project Gutenberg's, in the public domain; the package is MIT. R keeps each book as a vector of lines, serialized and
compressed, one after the other in one file. What it prints is what the model is trained on: a paragraph a line, in plain ASCII.
"""

import pathlib
import re
import struct
import subprocess
import sys
import tempfile
import zlib

INSIDE = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
ASCII = str.maketrans(
    {"“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "–": "-", "é": "e", "è": "e", "ê": "e", "à": "a", "ï": "i", "£": "", "_": ""}
)


def books(rdb: bytes) -> list[list[str]]:
    """Each vector of strings in a database of R's: a length in four bytes, and then zlib's."""
    found = []
    while rdb:
        stream = zlib.decompressobj()
        data = stream.decompress(rdb[4:])
        rdb = stream.unused_data
        at = data.index(struct.pack(">I", 16))  # a STRSXP; in front of it a header that has no 16 in it
        (count,) = struct.unpack_from(">I", data, at + 4)
        at += 8
        lines = []
        for _ in range(count):
            (size,) = struct.unpack_from(">I", data, at + 4)
            lines.append(data[at + 8 : at + 8 + size].decode())
            at += 8 + size
        found.append(lines)
    return found


def paragraphs(lines: list[str]) -> list[str]:
    """Without headings and what is shorter than a sentence."""
    text = "\n".join(lines).translate(ASCII)
    each = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return [p for p in each if len(p) > 60 and p.isascii() and not p.isupper()]


def main(package: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg", "-x", package, folder], check=True)
        rdb = (pathlib.Path(folder) / INSIDE).read_bytes()
    for book in books(rdb):
        print("\n".join(paragraphs(book)))


if __name__ == "__main__":
    main(sys.argv[1])
