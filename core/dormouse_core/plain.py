"""Text that others wrote, as it may reach a terminal, a log or a list of conditions.

A handler's exception, a tensor's name, a file's: each may hold what a terminal obeys (escape sequences, C1 controls), what makes one line
look like two (line ends of every kind), or what reverses the order of the text behind it (controls of bidirectional text). Such characters
are written out, as JSON writes them; all others stay, of whatever script. Joiners stay too: Persian, Hindi and family pictures need them.

What tells nothing but the end of a line where the reader knows that there may be several is kept by `keep`.
"""

import re

_ACTED_ON = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # order of bidirectional text
    "\u2028\u2029"  # line and paragraph separators
    "\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"  # what is never seen, and what annotates the text beside it
    "\ud800-\udfff"  # halves of pairs: no text in UTF-8
    "\U000e0000-\U000e007f"  # tags, which are ASCII that nobody sees
    "]"
)
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def plain(text: str, keep: str = "") -> str:
    """`text` without what is acted on. `keep`: characters that stay all the same."""
    return _ACTED_ON.sub(lambda found: found[0] if found[0] in keep else _written(found[0]), text)


def _written(character: str) -> str:
    short = _SHORT.get(character)
    if short is not None:
        return short
    number = ord(character)
    if number < 0x10000:
        return f"\\u{number:04x}"
    number -= 0x10000
    return f"\\u{0xD800 + (number >> 10):04x}\\u{0xDC00 + (number & 0x3FF):04x}"
