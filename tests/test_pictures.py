"""Test that pictures decode as in Pillow, and that hostile files cost little time and memory."""

import contextlib
import io
import re
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from nrsrd_jax.data.images import decode, read_picture, read_rgb
from nrsrd_jax.data.picture import MAX_BYTES, take_apart
from nrsrd_jax.errors import InputError

ORIENTATION = 0x0112
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def encoded(image, name, **options):
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def noise(mode, size=(9, 7)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def placed(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    return path


@few
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]),
    st.sampled_from(["RGB", "L", "CMYK", "RGBA", "P", "LA"]),
    st.integers(0, 9),
    st.booleans(),
    st.sampled_from([b"", b"\xff\xda" * 9, b"icc" * 30_000]),
)
def test_metadata_does_not_change_the_pixels(tmp_path, name, mode, orientation, progressive, icc):
    """Compare with Pillow. The EXIF orientation is applied; colour profiles, also of several segments, are ignored."""
    if (name, mode) in {(n, m) for n in ("JPEG", "BMP") for m in ("RGBA", "LA", "P", "CMYK")} - {("JPEG", "CMYK")}:
        mode = "RGB"
    if name != "JPEG" and mode == "CMYK":
        mode = "RGBA"
    image = noise("RGBA").convert("L").convert("LA") if mode == "LA" else noise(mode)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {} if name == "BMP" else {"exif": exif, "icc_profile": icc}
    if name == "JPEG":
        options |= {"progressive": progressive, "comment": b"\xff\xda\xff\xd9"}
    content = encoded(image, name, **options)
    expected = Image.open(io.BytesIO(content))
    expected = ImageOps.exif_transpose(expected)
    if expected.has_transparency_data:
        expected = expected.convert("RGBA")
        expected = Image.alpha_composite(Image.new("RGBA", expected.size, "black"), expected)
    np.testing.assert_array_equal(read_rgb(placed(tmp_path, content)), expected.convert("RGB"))


def pixel(path):
    return decode(path, (2, 2), "bilinear")[0, 0].tolist()


def test_pictures_of_unusual_modes_decode_to_the_right_colours(tmp_path):
    red = (200, 10, 20)
    for name, image in {
        "palette.png": Image.new("RGB", (2, 2), red).quantize(4), "opaque.png": Image.new("RGBA", (2, 2), (*red, 255)),
        "clear.png": Image.new("RGBA", (2, 2), (*red, 0)), "grey.png": Image.new("L", (2, 2), 99),
        "grey_alpha.png": Image.new("LA", (2, 2), (99, 255)),
        "sixteen.png": Image.fromarray(np.full((2, 2), 99 * 256 + 50, np.uint16)),
    }.items():  # fmt: skip
        image.save(tmp_path / name)
    assert pixel(tmp_path / "palette.png") == pixel(tmp_path / "opaque.png") == list(red)
    # The colour of a fully transparent pixel is invisible, so it must not appear.
    assert pixel(tmp_path / "clear.png") == [0, 0, 0]
    assert (
        pixel(tmp_path / "grey.png")
        == pixel(tmp_path / "grey_alpha.png")
        == pixel(tmp_path / "sixteen.png")
        == [99] * 3
    )
    cmyk = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    cmyk.save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(np.subtract(pixel(tmp_path / "cmyk.jpg"), (255, 0, 0))).max() < 8


def test_a_picture_is_turned_as_its_exif_orientation_says(tmp_path):
    image = Image.new("RGB", (40, 20))
    # The left quarter is white, so the top of the turned picture must be white.
    image.paste((255, 255, 255), (0, 0, 10, 20))
    exif = image.getexif()
    # Orientation 6: viewers turn the picture clockwise by 90°.
    exif[ORIENTATION] = 6
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = np.asarray(read_rgb(tmp_path / "a.jpg"))
    assert upright.shape == (40, 20, 3)
    assert upright[:8].min() > 240
    assert upright[12:].max() < 15


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_and_xmp_turn_a_picture_that_lies_on_its_side(tmp_path, order):
    """Use both byte orders, since cameras write big-endian EXIF, and XMP. If a file has both, EXIF counts."""
    image = noise("RGB")
    tiff = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IHHHIHH", 8, 1, ORIENTATION, 3, 1, 6, 0)
    for content in (
        encoded(image, "JPEG", exif=b"Exif\0\0" + tiff),
        encoded(image, "JPEG", xmp=b'<x tiff:Orientation="6"/>'),
        encoded(image, "WEBP", exif=tiff, xmp=b"<tiff:Orientation>3</tiff:Orientation>"),
    ):
        assert read_rgb(placed(tmp_path, content)).size == (7, 9)


@pytest.mark.parametrize("order", ["<", ">"])
@given(st.lists(st.tuples(st.sampled_from([ORIENTATION, 271]), st.integers(0, 17), st.integers(0, 5) | st.just(2**31),
                          st.lists(st.integers(0, 9), min_size=4, max_size=4)), min_size=1, max_size=3))  # fmt: skip
# The first value of this example lies outside the file.
@example([(271, 3, 3, [0, 0, 1, 0]), (ORIENTATION, 3, 1, [0, 2, 0, 2])])
@pytest.mark.filterwarnings("ignore")
def test_exif_of_any_type_turns_a_picture_as_pillow_does(order, entries):
    """Check that empty values and types other than whole numbers do not turn the picture."""
    tiff = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(entries))
    tiff += b"".join(struct.pack(order + "HHI", *entry[:3]) + bytes(entry[3]) for entry in entries) + bytes(4)
    content = encoded(noise("RGB"), "JPEG")
    content = content[:2] + segment(0xE1, b"Exif\0\0" + tiff) + content[2:]
    value = Image.open(io.BytesIO(content)).getexif().get(ORIENTATION, 1)
    expected = value if isinstance(value, int) and value in range(1, 9) else 1
    assert take_apart(content).orientation == expected


@pytest.mark.parametrize(("order", "kind", "number", "value", "turned"), [
    ("<", 3, 1, "6", True), ("<", 1, 1, "6", False), ("<", 3, 0, "6", False), (">", 1, 1, "6", False),
    (">", 9, 1, "i", True), (">", 4, 1, "i", True), (">", 3, 1, "6", True), ("<", 7, 1, "6", False),
])  # fmt: skip
def test_only_a_whole_number_in_exif_turns_a_picture(tmp_path, order, kind, number, value, turned):
    entry = struct.pack(order + "HHI", ORIENTATION, kind, number)
    entry += struct.pack(order + "i", 6) if value == "i" else bytes([6] * 4) if kind in (1, 7) else struct.pack(
        order + "HH", 6, 0)  # fmt: skip
    tiff = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, 1) + entry + bytes(4)
    content = encoded(noise("RGB"), "JPEG", exif=b"Exif\0\0" + tiff)
    assert (read_rgb(placed(tmp_path, content)).size == (7, 9)) == turned
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(content))).size == read_rgb(tmp_path / "a.jpg").size


def test_only_the_first_picture_of_a_file_with_several_is_read(tmp_path):
    """Use MPO, which phones and 3D cameras write under the name .jpg."""
    first, second = noise("RGB"), Image.new("RGB", (5, 5))
    content = encoded(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(content)).format == "MPO"
    picture = read_picture(placed(tmp_path, content))
    np.testing.assert_array_equal(picture.image, Image.open(io.BytesIO(encoded(first, "JPEG"))))
    assert take_apart(content + b"\xff\xda" * 1000).content == take_apart(content).content


def scans(count, size=(64, 64)):
    """Return a progressive JPEG file with `count` scans: its last scan is repeated."""
    content = encoded(Image.new("RGB", size), "JPEG", progressive=True)
    begins = [match.start() for match in re.finditer(rb"\xff\xda", content)]
    return content[:-2] + content[begins[-1] : -2] * (count - len(begins)) + b"\xff\xd9"


def segment(code, body):
    return bytes([0xFF, code]) + struct.pack(">H", len(body) + 2) + body


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def riff(*chunks):
    body = b"WEBP" + b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
                              for kind, data in chunks)  # fmt: skip
    return b"RIFF" + struct.pack("<I", len(body)) + body


def exif_bomb():
    """Return EXIF with 5000 entries, all of which point to the same 50 000 bytes."""
    entries = b"".join(struct.pack("<HHII", tag, 7, 50_000, 8) for tag in range(0x8000, 0x8000 + 5000))
    return b"II*\0" + struct.pack("<IH", 8, 5000) + entries


def tiff(tile=(65520, 32768)):
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile[0], 323: tile[1], 324: 200, 325: 18}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(80)


JPEG, PNG, WEBP, BMP = (encoded(noise("RGB"), name) for name in ("JPEG", "PNG", "WEBP", "BMP"))
LOSSLESS = encoded(noise("RGB"), "WEBP", lossless=True)
HOSTILE = {
    "TIFF with a tile of 2 GiB": (tiff, "not JPEG, PNG, WebP or BMP"),
    "GIF": (lambda: encoded(noise("RGB"), "GIF"), "not JPEG, PNG, WebP or BMP"),
    "EPS": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 64\n", "not JPEG, PNG, WebP or BMP"),
    "JPEG with 101 scans": (lambda: scans(101), "101 scans of 4096 pixels"),
    "JPEG with few scans of many pixels": (lambda: scans(21, (4096, 4096)), "21 scans of 16777216 pixels"),
    "JPEG with too many pixels": (lambda: JPEG.replace(b"\0\7\0\x09", b"\xff\xff\xff\xff"), "65535×65535 pixels"),
    "JPEG with a million segments": (lambda: JPEG[:2] + segment(0xFE, b"") * 10**6 + JPEG[2:], "more than .* segments"),
    "JPEG with many tables": (lambda: JPEG[:2] + segment(0xDB, b"\0" * 65 * 900) * 9 + JPEG[2:], "its tables"),
    "JPEG filled with 0xFF": (lambda: JPEG[:2] + b"\xff" * 10**7, "cannot read"),
    "JPEG filled with zeros": (lambda: JPEG[:3] + bytes(10**7), "cannot read"),
    "PNG with too many pixels": (
        lambda: PNG[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + PNG[24:], "2147483647×2147483647 pixels"),
    "PNG whose second header has too many pixels": (
        lambda: PNG[:33] + chunk(b"IHDR", struct.pack(">II", 30_000, 30_000) + PNG[24:29]) + PNG[33:], "two headers"),
    "PNG with a chunk before its header": (
        lambda: PNG[:8] + chunk(b"tEXt", b"a\0b") + PNG[8:], "without a header"),
    "PNG with a short header": (lambda: PNG[:8] + chunk(b"IHDR", PNG[16:24]) + PNG[33:], "without a header"),
    "JPEG whose second frame has too many pixels": (
        lambda: JPEG.replace(b"\xff\xda", segment(0xC0, b"\x08" + b"\xff" * 4 + b"\1\1\x11\0") + b"\xff\xda", 1),
        "65535×65535 pixels"),
    "JPEG whose first frame has too many pixels": (
        lambda: JPEG[:2] + segment(0xC2, b"\x08" + b"\xff" * 4 + b"\1\1\x11\0") + JPEG[2:], "65535×65535 pixels"),
    "JPEG with another frame after its scan": (
        lambda: JPEG[:-2] + segment(0xC0, b"\x08" + b"\xff" * 4 + b"\1\1\x11\0") + JPEG[-14:], "cannot read"),
    "WebP whose second frame has too many pixels": (
        lambda: riff((b"VP8 ", WEBP[20:]), (b"VP8 ", WEBP[20:26] + b"\xff\x3f\xff\x3f" + WEBP[30:])), "16383×16383"),
    "WebP whose second canvas has too many pixels": (
        lambda: riff((b"VP8X", bytes(4) + b"\x08\0\0\x06\0\0"), (b"VP8X", bytes(4) + b"\xff" * 6),
                     (b"VP8 ", WEBP[20:])), "16777216×16777216"),
    "WebP whose lossless frame has too many pixels": (
        lambda: riff((b"VP8 ", WEBP[20:]), (b"VP8L", LOSSLESS[20:21] + b"\xff" * 4 + LOSSLESS[25:])), "16384×16384"),
    "PNG with a million chunks": (lambda: PNG[:33] + chunk(b"IDAT", b"") * 10**6 + PNG[33:], "more than .* chunks"),
    "PNG without its header": (lambda: PNG[:8] + chunk(b"IDAT", b"") * 9, "without a header"),
    "WebP canvas with too many pixels": (
        lambda: riff((b"VP8X", bytes(4) + b"\xff" * 6), (b"VP8 ", WEBP[20:])), "16777216×16777216 pixels"),
    "WebP frame with too many pixels": (
        lambda: riff((b"VP8 ", WEBP[20:26] + b"\xff\x3f\xff\x3f" + WEBP[30:])), "16383×16383 pixels"),
    "lossless WebP with too many pixels": (
        lambda: riff((b"VP8L", LOSSLESS[20:21] + b"\xff" * 4 + LOSSLESS[25:])), "16384×16384 pixels"),
    "WebP animation": (
        lambda: encoded(noise("RGB"), "WEBP", save_all=True, append_images=[Image.new("RGB", (9, 7))]), "animation"),
    "BMP with run lengths that skip 4 GB": (
        lambda: BMP[:18] + struct.pack("<iiHHI", 2**24, 1, 1, 8, 1) + BMP[34:] + b"\0\2\0\xff" * 99, "compressed BMP"),
    "BMP upside down, with too many pixels": (
        lambda: BMP[:18] + struct.pack("<ii", 2**30, -(2**30)) + BMP[26:], "1073741824×1073741824 pixels"),
    "BMP with an odd header": (lambda: BMP[:14] + struct.pack("<I", 2**31) + BMP[18:], "cannot read"),
    "truncated BMP": (lambda: BMP[:30], "truncated"),
    "a large file": (lambda: bytes(MAX_BYTES + 1), f"more than {MAX_BYTES} bytes"),
    "an empty file": (lambda: b"", "not JPEG"),
}  # fmt: skip


@contextlib.contextmanager
def cheap(megabytes):
    """Check that the block takes less than a second of CPU time and `megabytes` MiB of memory, decoders included."""

    def resident(name):
        return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

    # Reset the peak of the resident memory.
    Path("/proc/self/clear_refs").write_text("5")
    before, begin = resident("VmRSS"), time.process_time()
    yield
    assert time.process_time() - begin < 1
    assert resident("VmHWM") - before < megabytes


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_picture_is_refused_quickly_with_a_one_line_error(tmp_path, name):
    make, reason = HOSTILE[name]
    path = placed(tmp_path, make())
    with cheap(100), pytest.raises(InputError, match=reason) as refusal:
        decode(path, (4, 4), "bilinear")
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [
    JPEG[:2] + segment(0xE1, b"Exif\0\0" + exif_bomb()) + JPEG[2:],
    JPEG[:2] + segment(0xE2, b"MPF\0" + exif_bomb()) + JPEG[2:],
    PNG[:33] + chunk(b"eXIf", exif_bomb()) + PNG[33:],
    PNG[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))) * 9 + PNG[33:],
    PNG[:33] + chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8))) * 9 + PNG[33:],
    riff((b"VP8X", b"\x0c\0\0\0\x08\0\0\x06\0\0"), (b"VP8 ", WEBP[20:]), (b"EXIF", exif_bomb())),
], ids=["EXIF", "MPF", "PNG EXIF", "PNG text", "PNG profile", "WebP EXIF"])  # fmt: skip
def test_memory_bombs_in_metadata_are_not_unpacked(tmp_path, content):
    path = placed(tmp_path, content)
    with cheap(20):
        assert read_rgb(path).size == (9, 7)


def test_a_large_truncated_picture_is_refused(tmp_path):
    whole = encoded(Image.new("RGB", (4096, 4096)), "JPEG", progressive=True)
    path = placed(tmp_path, whole[:800])
    del whole
    with cheap(100), pytest.raises(InputError, match="truncated"):
        read_rgb(path)
