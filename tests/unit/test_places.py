"""Where backups lie: what is written is there as a whole or not at all, and nothing is written over."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from dormouse import places
from dormouse_core.errors import InvalidArgument, Unavailable
from dormouse_testing.buckets import S3, s3


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with s3() as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        for name in ("AWS_ALLOW_HTTP", "AWS_SKIP_SIGNATURE"):
            monkeypatch.setenv(name, "true")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield made


class Broken(Exception):
    pass


def kept(place: places.Place, name: str, content: bytes) -> None:
    with place.new(name) as new:
        new.path.write_bytes(content)


def broken(place: places.Place, name: str) -> None:
    with place.new(name) as new:
        new.path.write_bytes(b"half")
        raise Broken


def test_a_folder_has_several_and_a_file_is_one(tmp_path: Path) -> None:
    folder, file = places.find(str(tmp_path)), places.find(str(tmp_path / "one"))
    assert (folder.folder, file.folder) == (True, False)
    kept(folder, "a", b"1")
    kept(file, "ignored", b"2")
    assert sorted(folder.names()) == ["a", "one"]
    for place, name, text in ((folder, "a", f"{tmp_path}/a"), (file, "", f"{tmp_path}/one")):
        assert place.text(name) == text
        with pytest.raises(InvalidArgument, match="it exists"), place.new(name):
            pass
    folder.remove("a")
    folder.remove("a")
    with pytest.raises(Broken):
        broken(folder, "b")
    assert folder.names() == ["one"]
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidArgument, match="it exists"), places.find(str(tmp_path / "link")).new(""):
        pass


def test_in_a_folder_it_is_kept_under_the_name_that_it_has_at_the_end(tmp_path: Path, bucket: S3) -> None:
    for place in (places.find(str(tmp_path)), places.find("s3://b/x/")):
        with place.new("a.db") as new:
            new.path.write_bytes(b"1")
            new.name = "a-empty.db"
        assert place.names() == ["a-empty.db"]

    def over(place: places.Place) -> None:
        with place.new("b.db") as new:
            new.path.write_bytes(b"2")
            new.name = "a-empty.db"

    with pytest.raises(InvalidArgument, match=r"a-empty\.db: it exists"):
        over(places.find(str(tmp_path)))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"1"]


@pytest.mark.parametrize("size", [10, 30 << 20], ids=["small", "in-parts"])
def test_a_bucket(bucket: S3, size: int) -> None:
    content = os.urandom(size)
    folder = places.find("s3://b/backups/eu/")
    assert folder.folder
    kept(folder, "x.db", content)
    assert bucket.objects == {"b/backups/eu/x.db": content}
    bucket.objects["b/backups/eu/y.db"] = bucket.objects["b/backups/europe/z.db"] = b""
    assert sorted(folder.names()) == ["x.db", "y.db"]
    with folder.existing("x.db") as path:
        assert path.read_bytes() == content
    assert not path.exists()
    with places.find("s3://b/backups/eu/x.db").existing("") as path:
        assert path.read_bytes() == content
    folder.remove("y.db")
    assert sorted(bucket.objects) == ["b/backups/eu/x.db", "b/backups/europe/z.db"]
    with pytest.raises(Broken):
        broken(folder, "half.db")
    assert "b/backups/eu/half.db" not in bucket.objects
    assert places.find("s3://b").text("x.db") == "s3://b/x.db"


def test_what_cannot_be_is_told(bucket: S3) -> None:
    for text in ("ftp://b/x", "s3://", "https://user:word@host/x"):
        with pytest.raises(InvalidArgument, match="a file, a folder, s3://BUCKET/PATH or gs://BUCKET/PATH is allowed") as found:
            places.find(text)
        assert "word" not in found.value.message
    with pytest.raises(Unavailable, match="s3://b/none: "), places.find("s3://b/none").existing(""):
        pass
    bucket.refusing = True
    with pytest.raises(Unavailable, match="s3://b/x/: ") as refused:
        kept(places.find("s3://b/x/"), "a", b"1")
    assert "\n" not in refused.value.message
    with pytest.raises(Unavailable, match="s3://b/x/: "):
        places.find("s3://b/x/").names()
