"""Reduce JPEG, PNG, WebP and BMP files to what a decoder needs, before it sees them.

A decoder allocates memory and computes as the file tells it, and so do Pillow's readers of metadata. A file of a few
kilobytes can ask for gigabytes of memory or minutes of work. Therefore this module removes the parts that are not
needed, limits the size of the others, and refuses other formats (TIFF has tiles of any size, EPS starts Ghostscript).
"""

import dataclasses
import re
import struct
from collections.abc import Iterator

MAX_BYTES = 70_000_000  # of a file; MAX_PIXELS with four uncompressed channels fit
MAX_PIXELS = 2**24  # of an image; it takes 50 MB when decoded
MAX_SCANS = 100  # of a JPEG file; progressive ones have about ten
MAX_SCANNED = 20 * MAX_PIXELS  # pixels × scans; they take a second
MAX_PARTS = 20_000  # segments or chunks; PNG writers begin a new one every 8 KB
MAX_BESIDE = 2**20  # bytes of metadata that are searched for an orientation
MAX_TABLES = 2**18  # bytes that the decoder needs before a JPEG file's first scan; 1 KB is usual

# A marker is 0xFF and a second byte. That byte is not 0x00 (then 0xFF is data), not 0xFF (a fill byte), and not a
# restart marker, which lies within a scan.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
# Markers of the segments that contain the image size.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Segments that the decoder needs: also Huffman, arithmetic and quantisation tables, the restart interval, and JFIF and
# Adobe, which define the colours.
_NEEDED = _FRAMES | {0xC4, 0xCC, 0xDB, 0xDD, 0xE0, 0xEE}
_SCAN, _END, _APP1 = 0xDA, 0xD9, 0xE1
# EXIF's types of values: the bytes of each, and the struct format of those that are whole numbers.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_WHOLE = {3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q"}
_XMP = b"http://ns.adobe.com/xap/1.0/"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture without its metadata.

    Attributes:
        format: Pillow's name of the format.
        content: the file's bytes without metadata.
        orientation: EXIF's orientation, 1..8; 1 is upright.
    """

    format: str
    content: bytes
    orientation: int = 1


def take_apart(content: bytes) -> Picture:
    """Return the picture in a file's bytes, without its metadata.

    Raises:
        ValueError: the file is damaged, has an unsupported format, or exceeds a limit.
    """
    if content.startswith(b"\xff\xd8\xff"):
        return _jpeg(content)
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(content)
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return _webp(content)
    if content.startswith(b"BM"):
        return _bmp(content)
    raise ValueError("cannot identify image file: it is not JPEG, PNG, WebP or BMP")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}×{height} pixels are more than the {MAX_PIXELS} that a crop may have")


def _jpeg(content: bytes) -> Picture:
    """Return the first picture in a JPEG file. Phones append other pictures to it (MPO)."""
    kept, beside, scans, pixels, first, end = [content[:2]], {}, 0, 0, 0, len(content)
    for code, begin, stop in _segments(content):
        if code == _END:
            end = stop
            break
        if code == _SCAN:
            scans, first = scans + 1, first or begin - 2
            if scans > MAX_SCANS or scans * pixels > MAX_SCANNED:
                raise ValueError(f"{scans} scans of {pixels} pixels are more than a JPEG file may have")
        elif first:
            continue
        elif code in _NEEDED:
            kept.append(content[begin - 2 : stop])
            if code in _FRAMES:
                height, width = struct.unpack_from(">HH", content, begin + 3)
                _check_size(width, height)
                pixels = max(pixels, width * height)
        elif code == _APP1:
            name, _, value = content[begin + 2 : stop].partition(b"\0")
            if name in (b"Exif", _XMP):
                beside.setdefault(name, value)
    if sum(map(len, kept)) > MAX_TABLES:
        raise ValueError(f"its tables have more than {MAX_TABLES} bytes")
    # If the file has no scan, the decoder gets no data and reports a truncated file.
    orientation = _orientation(beside.get(b"Exif", b""), beside.get(_XMP, b""))
    return Picture("JPEG", b"".join([*kept, content[first or end : end]]), orientation)


def _segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker's code, begin, end of its data) for the segments of a JPEG file, as libjpeg finds them."""
    position = 2
    for _ in range(MAX_PARTS):
        match = _MARKER.search(content, position)
        if match is None:
            return
        code, begin = match[1][0], match.end()
        alone = code in (0x01, 0xD8, _END)
        length = 0 if alone else int.from_bytes(content[begin : begin + 2], "big")
        if not alone and length < 2:
            raise ValueError("a JPEG segment has no length")
        position = begin + length
        yield code, begin, position
    raise ValueError(f"more than {MAX_PARTS} segments")


def _png(content: bytes) -> Picture:
    if content[8:16] != b"\0\0\0\x0dIHDR" or len(content) < 33:
        raise ValueError("a PNG file without a header")
    _check_size(*struct.unpack_from(">II", content, 16))
    kept, exif, xmp, position = [content[:8]], b"", b"", 8
    for _ in range(MAX_PARTS):
        if position + 8 > len(content):
            break
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if kind == b"IHDR" and position > 8:
            # The decoder would use the size in the second header, which was not checked.
            raise ValueError("a PNG file with two headers")
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(content[position:end])
        elif kind == b"eXIf":
            exif = content[position + 8 : end][:MAX_BESIDE]
        elif kind == b"iTXt" and content.startswith(b"XML:com.adobe.xmp\0", position + 8):
            xmp = content[position + 8 : end][:MAX_BESIDE]
        if kind == b"IEND":
            break
        position = end
    else:
        raise ValueError(f"more than {MAX_PARTS} chunks")
    return Picture("PNG", b"".join(kept), _orientation(exif, xmp))


def _webp(content: bytes) -> Picture:
    kept, beside, position = [], {}, 12
    for _ in range(MAX_PARTS):
        if position + 8 > len(content):
            break
        kind, length = struct.unpack_from("<4sI", content, position)
        position += 8
        body = content[position : position + length]
        if kind in (b"ANIM", b"ANMF"):
            raise ValueError("an animation is not supported; save one of its pictures")
        if kind in (b"VP8X", b"ALPH", b"VP8 ", b"VP8L"):
            if kind != b"ALPH":
                _check_size(*_webp_size(kind, body))
            if kind == b"VP8X":
                # Keep only the flag for transparency. The other flags announce metadata, which is removed here.
                body = bytes([body[0] & 0x10]) + body[1:]
            kept += [struct.pack("<4sI", kind, len(body)), body, b"\0" * (len(body) % 2)]
        elif kind in (b"EXIF", b"XMP "):
            beside.setdefault(kind, body[:MAX_BESIDE])
        position += length + length % 2
    else:
        raise ValueError(f"more than {MAX_PARTS} chunks")
    body = b"WEBP" + b"".join(kept)
    orientation = _orientation(beside.get(b"EXIF", b""), beside.get(b"XMP ", b""))
    return Picture("WEBP", struct.pack("<4sI", b"RIFF", len(body)) + body, orientation)


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int]:
    if len(body) < 10:
        raise ValueError("a truncated WebP file")
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    bits = int.from_bytes(body[1:5], "little")
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1


def _bmp(content: bytes) -> Picture:
    if len(content) < 34:
        raise ValueError("a truncated BMP file")
    old = content[14:18] == b"\x0c\0\0\0"
    width, height = struct.unpack_from("<HH" if old else "<ii", content, 18)
    _check_size(abs(width), abs(height))
    # Refuse run-length encoding: Pillow decodes it slowly, and one run can skip 255 rows.
    if not old and content[30:34] not in (b"\0\0\0\0", b"\3\0\0\0"):
        raise ValueError("a compressed BMP file is not supported; save it as PNG")
    return Picture("BMP", content)


def _orientation(exif: bytes, xmp: bytes) -> int:
    """Return the orientation in EXIF, as Pillow finds it, or else the one in XMP, or else 1 (upright)."""
    tiff = exif.removeprefix(b"Exif\0").removeprefix(b"\0")
    order = ">" if tiff.startswith(b"MM") else "<"
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        total = 0  # bytes of all values that are stored outside their entry
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number, place = struct.unpack_from(order + "HHII", tiff, entry)
            size = number * _SIZES.get(kind, 0)
            # A value of more than four bytes is stored elsewhere. As Pillow does, skip values that together exceed the
            # metadata, and stop at a value that lies outside it.
            if size > 4:
                total += size
                if total > len(tiff):
                    continue
                if place + size > len(tiff):
                    break
            if tag != 0x0112 or not size:
                continue
            if kind not in _WHOLE:
                return 1
            (value,) = struct.unpack_from(order + _WHOLE[kind], tiff, entry + 8 if size <= 4 else place)
            return value if 1 <= value <= 8 else 1
    except struct.error:
        pass  # The EXIF data is missing or truncated.
    match = _XMP_ORIENTATION.search(xmp)
    return int(match[1]) if match else 1
