"""Every figure of `bench/README.md`, one after the other: ``make bench``."""

import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
SCRIPTS = ("start.py", "batching.py", "wake.py", "gateway.py", "steps.py", "session_loops.py", "stream.py", "large.py", "cluster.py")


def main() -> None:
    for script in SCRIPTS:
        print(f"\n## bench/{script}\n", flush=True)
        subprocess.run([sys.executable, HERE / script], check=True)


if __name__ == "__main__":
    main()
