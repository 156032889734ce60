"""Pictures from files, bytes and URLs: only kinds that are safe to open, and one short sentence for all others."""

import base64
import io
import os
import stat

import pytest
from PIL import Image

from helpers.errors import BadImageError
from helpers.text.pictures import open_picture

RED = Image.new("RGB", (6, 4), "red")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def _bytes(kind):
    data = io.BytesIO()
    RED.save(data, kind)
    return data.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_common_kinds_are_opened(tmp_path, kind):
    path = tmp_path / "picture"
    path.write_bytes(_bytes(kind))
    assert open_picture(path).size == open_picture(_bytes(kind)).size == open_picture(str(path)).size == RED.size


def test_a_data_url_is_a_picture():
    url = "data:image/png;base64," + base64.b64encode(_bytes("PNG")).decode()
    assert open_picture(url).getpixel((0, 0)) == (255, 0, 0)
    for wrong in (url[:60], url.replace(";base64", ""), "data:image/png;base64,***" + "A" * 1_000_000):
        with pytest.raises(BadImageError) as raised:
            open_picture(wrong)
        assert len(str(raised.value)) < 400


@pytest.mark.parametrize("suffix", [".png", ".eps"])
def test_no_program_is_started_for_a_picture(tmp_path, monkeypatch, suffix):
    ghost = tmp_path / "gs"
    ghost.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    ghost.chmod(ghost.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    path = tmp_path / f"photo{suffix}"
    path.write_bytes(EPS)
    for source in (path, str(path), EPS):
        with pytest.raises(BadImageError, match="not a picture in a known format"):
            open_picture(source)
    with Image.open(path) as opened, pytest.raises(BadImageError, match="format EPS"):
        open_picture(opened)
    assert not (tmp_path / "started").exists()


def test_what_is_no_file_is_not_waited_for(tmp_path):
    pipe = tmp_path / "photo.png"
    os.mkfifo(pipe)
    with pytest.raises(BadImageError, match="a pipe, a device"):
        open_picture(pipe)
    with pytest.raises(BadImageError, match="a pipe, a device"):
        open_picture("/dev/zero")
    with pytest.raises(BadImageError, match="a folder"):
        open_picture(tmp_path)


@pytest.mark.parametrize(
    "source",
    [5, None, ["a.png"], "a\0b.png", "x" * 10_000, "https://example.com/cat.jpg", b"", ""],
)
def test_what_is_no_picture_is_one_short_sentence(source):
    with pytest.raises(BadImageError) as raised:
        open_picture(source)
    assert len(str(raised.value)) < 400
