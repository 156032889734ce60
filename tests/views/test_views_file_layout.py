"""The drawing of a safetensors file."""

import json
import struct
import xml.etree.ElementTree as ET

import pytest
import torch
from safetensors.torch import save_file

from helpers.errors import BadInputError
from helpers.views.file_layout import LEFT, RIGHT, show_file_layout

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """(header, its length) of a file with three tensors, as `safetensors` writes it."""
    file = tmp_path_factory.mktemp("layout") / "model.safetensors"
    save_file({"a": torch.zeros(30, 10), "b": torch.zeros(10), "c": torch.zeros(90)}, file)
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), length


def pieces(view):
    """(left, width) of each tensor's piece, those that are half transparent."""
    found = ET.fromstring(view._repr_svg_()).findall(f"{SVG}rect[@fill-opacity]")
    return [(float(piece.get("x")), float(piece.get("width"))) for piece in found]


def test_pieces_lie_where_the_header_says(read):
    header, length = read
    view = show_file_layout(header, length, ["a", "b", "c"])
    assert view.data_bytes == 4 * 400
    for (left, width), tensor in zip(pieces(view), view.tensors, strict=True):
        assert left == pytest.approx(LEFT + (RIGHT - LEFT) * tensor.begin / 1600, abs=0.1)
        assert width == pytest.approx((RIGHT - LEFT) * (tensor.end - tensor.begin) / 1600, abs=0.1)


def test_mapped_memory_has_the_same_offsets(read):
    header, length = read
    file, both = (pieces(show_file_layout(header, length, ["a", "c"], mapped=mapped)) for mapped in (False, True))
    assert sorted(both) == sorted(2 * file)


def test_its_text_has_the_numbers(read):
    header, length = read
    text = repr(show_file_layout(header, length, ["b"], mapped=True))
    assert f"{length:,} bytes: the header" in text
    assert "b: F32 [10]" in text
    assert "mapped" in text


@pytest.mark.parametrize(("names", "says"), [(["d"], "no tensor 'd'"), ([], "one to 4"), (["a"] * 5, "one to 4")])
def test_what_cannot_be_drawn_is_refused(read, names, says):
    with pytest.raises(BadInputError, match=says):
        show_file_layout(*read, names)
