"""Reads what the comparison needs with Python's own library: tensors of bytes, PNG pictures, and likeness in dB."""

import json
import math
import struct
import zlib

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ALIKE_DB = 200.0  # of two pictures that do not differ


def byte_tensors(path):
    """{name: bytes} of the tensors of bytes in a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    return {name: body[slice(*entry["data_offsets"])] for name, entry in header.items() if entry["dtype"] == "U8"}


def png_pixels(png):
    """The pixels of an 8-bit RGB picture that is not interlaced, row by row."""
    if not png.startswith(PNG_SIGNATURE):
        raise ValueError(f"not a PNG: {png[:60]!r}")
    position, packed = len(PNG_SIGNATURE), []
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        kind, chunk = png[position + 4 : position + 8], png[position + 8 : position + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunk)
            if (depth, colour, interlaced) != (8, 2, 0):
                raise ValueError(f"depth {depth}, colour type {colour}, interlaced {interlaced} is not read here")
        elif kind == b"IDAT":
            packed.append(chunk)
        position += 12 + length
    return unfiltered(zlib.decompress(b"".join(packed)), width, height)


def unfiltered(rows, width, height, step=3):
    """Undoes the filters of a PNG's rows, section 9.2 of its specification."""
    stride, above, pixels = width * step, bytearray(width * step), bytearray()
    for number in range(height):
        start = number * (stride + 1)
        kind, row = rows[start], bytearray(rows[start + 1 : start + 1 + stride])
        for i in range(stride) if kind else ():
            left, up = row[i - step] if i >= step else 0, above[i]
            if kind == 1:
                guess = left
            elif kind == 2:
                guess = up
            elif kind == 3:
                guess = (left + up) // 2
            else:
                corner = above[i - step] if i >= step else 0
                a, b, c = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
                guess = left if a <= b and a <= c else up if b <= c else corner
            row[i] = (row[i] + guess) & 255
        pixels += row
        above = row
    return bytes(pixels)


def psnr(one, other):
    """Peak signal-to-noise ratio of two pictures' bytes in dB."""
    if len(one) != len(other):
        raise ValueError(f"{len(one)} bytes against {len(other)}")
    squares = sum((a - b) ** 2 for a, b in zip(one, other) if a != b)
    return 10 * math.log10(255**2 * len(one) / squares) if squares else ALIKE_DB
