"""`make examples` with one use: that it is shown, and that a sentence that is untrue ends it with an error."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.slow
def test_one_use_is_shown() -> None:
    done = subprocess.run([sys.executable, EXAMPLES / "uses.py", "fraud"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "killed with SIGKILL: no call failed" in done.stdout
    assert "| use | model | state a session | calls a second | wake | what the kill did |" in done.stdout


@pytest.mark.slow
def test_negative_control_another_answer_than_the_models_is_told(tmp_path: Path) -> None:
    """The handler that is run directly learns twice as fast as the one that serves."""
    script = tmp_path / "other.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(EXAMPLES)!r}, {str(EXAMPLES / 'fraud')!r}]\n"
        "import fraud, uses\nfraud.RATE *= 2\nuses.main(['fraud'])\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "untrue: all scores within 1e-12 of the handler run directly" in done.stderr
