"""docs/operating-kubernetes.md: each of its commands is run by a test on a cluster."""

import re
from pathlib import Path

from dormouse_testing import pages

CLUSTER = Path(__file__).resolve().parents[1] / "cluster"


def test_each_block_of_the_page_is_run_by_a_test_on_a_cluster() -> None:
    """By its heading; a heading that no test names is one whose commands nobody tried."""
    tests = "".join(path.read_text() for path in CLUSTER.glob("test_*.py"))
    named = set(re.findall(r'"([A-Z][^"\n]+)"', tests))
    found = pages.headings()
    assert len(found) >= 3
    assert {title for title in found if title not in named} == set()


def test_remarks_are_no_part_of_a_command_and_a_long_line_is_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# T\n\n## Do\n\n```sh\n# first\na --b='#c'   # why\nd \\\n  --e\n```\n\n```python\nx\n```\n\n## Know\n\ntext\n")
    assert pages.headings(page) == {"Do": [["a --b='#c'", "d    --e"]]}
