"""Photos at addresses: read through a server that speaks S3's protocol, and one of web pages."""

import functools
import http.server
import io
import json
import tarfile
import threading

import pytest
from PIL import Image

from fourm_lite.errors import ConfigError
from fourm_lite.photos.item import Item, Skipped
from fourm_lite.photos.sources import open_sources, read_uri
from fourm_lite.reading.regular import set_budget
from fourm_lite.reading.remote import expand, place


def jpeg(shade):
    stream = io.BytesIO()
    Image.new("RGB", (12, 8), (shade, 10, 10)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A folder with photos, a list, and two shards."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "b").mkdir()
    for name, shade in (("a.jpg", 10), ("b/c.jpg", 20), ("b.jpg", 30)):
        (folder / name).write_bytes(jpeg(shade))
    (folder / "notes.heif.txt").write_text("no photo")
    rows = [{"id": "one", "file": "a.jpg", "year": 1999}, {"file": "https://elsewhere/x.jpg"}]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for number in range(2):
        with tarfile.open(folder / f"s-{number}.tar", "w") as tar:
            for i in range(3):
                info = tarfile.TarInfo(f"{i}.jpg")
                data = jpeg(100 + 10 * number + i)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


@pytest.fixture(scope="module")
def bucket(s3, local):
    """The same under s3://photos/all."""
    import s3fs

    files = s3fs.S3FileSystem()
    files.mkdir("photos")
    for path in local.rglob("*"):
        if path.is_file():
            files.pipe(f"photos/all/{path.relative_to(local).as_posix()}", path.read_bytes())
    return "s3://photos/all"


def told(stream):
    """What a stream gives: ids and bytes, and reasons."""
    return [(o.id, o.read()) if isinstance(o, Item) else o.reason for o in stream]


@pytest.mark.parametrize("name", ["", "/list.jsonl", "/s-{0..1}.tar", "/a.jpg"])
def test_a_bucket_gives_what_the_same_folder_gives(local, bucket, name):
    assert told(open_sources([f"{bucket}{name}"])) == told(open_sources([f"{local}{name}"]))


def test_a_photo_is_found_again_by_its_uri(bucket):
    for one in open_sources([f"{bucket}/s-0.tar", f"{bucket}/a.jpg"]):
        assert read_uri(one.uri) == one.read()
        assert one.uri.startswith("s3://photos/all/")


def test_what_is_not_there_is_listed(bucket):
    (one,) = open_sources([f"{bucket}/none.tar"])

    assert isinstance(one, Skipped)
    assert "none.tar" in one.reason


def test_no_address_is_fetched_that_a_list_names(bucket):
    reasons = [o.reason for o in open_sources([f"{bucket}/list.jsonl"]) if isinstance(o, Skipped)]

    assert len(reasons) == 1
    assert "no address is fetched" in reasons[0]


def test_a_web_server_gives_photos_and_is_held_to_the_budget(local):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    handler = functools.partial(Quiet, directory=str(local))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        try:
            for name in ("/a.jpg", "/s-0.tar"):
                assert told(open_sources([address + name])) == told(
                    open_sources([f"{local}{name}"])
                )
            set_budget(bytes=1000)
            (one,) = open_sources([f"{address}/s-0.tar"])
            assert "--max-bytes" in one.reason
        finally:
            set_budget(bytes=1 << 30)
            server.shutdown()


def test_an_address_that_lost_a_slash_and_patterns_are_understood(tmp_path):
    (tmp_path / "{a,b}.jpg").write_bytes(jpeg(1))

    assert str(place("s3:/b/x.tar")) == "s3://b/x.tar"
    assert expand([tmp_path / "{a,b}.jpg"]) == [tmp_path / "{a,b}.jpg"]
    assert [p.name for p in expand(["s-{00000..00002}.tar"])] == [
        f"s-{i:05d}.tar" for i in range(3)
    ]
    with pytest.raises(ConfigError, match="more than"):
        expand(["{0..9999}-{0..9999}.tar"])
    with pytest.raises(ConfigError, match="s3://"):
        expand(["ftp://host/a.tar"])


def test_without_the_extra_its_install_line_is_told(monkeypatch):
    monkeypatch.setattr("fourm_lite.reading.remote.find_spec", lambda name: None)

    with pytest.raises(ConfigError, match="pip install universal-pathlib s3fs"):
        open_sources(["s3://bucket/a.tar"])
