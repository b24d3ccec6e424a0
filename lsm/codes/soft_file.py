"""Codes as one file that another process reads back: integers of 8, 6 or 4 bits in groups with a 16-bit scale each.

All numbers are little-endian. Header (84 bytes): magic `LSMC`, version u8, bits u8, group u16, ratio u32, width of a code u32, texts u32,
sha256 of the LM, sha256 of the compressor. Then for each text: bytes of its beginning that goes as text u32, codes u32, those bytes, scales
float16 (one for each group of entries, counted through the text's codes row by row, the last group may be short), and the entries in two's
complement, lowest bit first, filled up to a whole byte. At the end the CRC-32 of everything before. Steps are scale · integer, |integer| ≤
2^(bits−1) − 1, scale = largest magnitude of the group / that.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from lsm.codes.groups import from_levels, level_bytes, to_levels
from lsm.errors import UserError

_HEADER = struct.Struct("<4sBBHIII32s32s")
_TEXT = struct.Struct("<II")
_MAGIC, VERSION = b"LSMC", 1
BITS = (8, 6, 4)


@dataclass(frozen=True)
class Wire:
    """What a file says."""

    bits: int
    group: int
    ratio: int
    lm_sha256: str
    adapter_sha256: str
    codes: list[np.ndarray]
    """float32 [P, D] of each text."""
    heads: list[str]
    """What of each text goes as text."""


def pack(wire: Wire) -> bytes:
    """The file's bytes."""
    assert wire.bits in BITS and wire.group >= 1 and len(wire.codes) == len(wire.heads)
    width = wire.codes[0].shape[1] if wire.codes else 0
    hashes = [bytes.fromhex(sha.ljust(64, "0")[:64]) for sha in (wire.lm_sha256, wire.adapter_sha256)]
    parts = [_HEADER.pack(_MAGIC, VERSION, wire.bits, wire.group, wire.ratio, width, len(wire.codes), *hashes)]
    for code_PD, head in zip(wire.codes, wire.heads, strict=True):
        scales, levels = to_levels(code_PD.astype(np.float32).ravel(), wire.bits, wire.group)
        written = head.encode()
        parts += [_TEXT.pack(len(written), len(code_PD)), written, scales.tobytes(), _packed(levels, wire.bits)]
    body = b"".join(parts)
    return body + struct.pack("<I", zlib.crc32(body))


def unpack(data: bytes, *, origin: str) -> Wire:
    """What `pack` wrote.

    Raises:
        UserError: not such a file, another version, or damage.
    """
    if data[:4] != _MAGIC:
        raise UserError(f"{origin} is no file of lsm compress pack; write one with: lsm compress pack RUN QUESTIONS.jsonl --out FILE")
    if len(data) < _HEADER.size + 4 or zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise UserError(f"{origin} is damaged or cut short (its checksum does not match); fetch or write it again")
    _, version, bits, group, ratio, width, n_texts, *hashes = _HEADER.unpack_from(data)
    if version != VERSION or bits not in BITS or group < 1:
        raise UserError(
            f"{origin} has format version {version} with {bits} bits, this lsm reads version {VERSION}; use the lsm that wrote it"
        )
    place, codes, heads = _HEADER.size, [], []
    for _ in range(n_texts):
        n_head, n_codes = _TEXT.unpack_from(data, place)
        place += _TEXT.size
        heads.append(data[place : place + n_head].decode())
        place += n_head
        n = n_codes * width
        n_scales, n_bytes = -(-n // group), -(-n * bits // 8)
        scales = np.frombuffer(data, "<f2", n_scales, place)
        levels = _unpacked(data[place + 2 * n_scales : place + 2 * n_scales + n_bytes], n, bits)
        codes.append(from_levels(scales, levels, group).reshape(n_codes, width))
        place += 2 * n_scales + n_bytes
    return Wire(bits, group, ratio, *(sha.hex() for sha in hashes), codes, heads)


def payload_bytes(n_codes: int, width: int, bits: int, group: int, head: str = "") -> int:
    """Bytes of one text in the file, without the header that all share."""
    return _TEXT.size + len(head.encode()) + level_bytes(n_codes * width, bits, group)


HEADER_BYTES = _HEADER.size + 4


def _packed(levels: np.ndarray, bits: int) -> bytes:
    unsigned = levels.astype(np.uint8)[:, None]
    return np.packbits(np.unpackbits(unsigned, axis=1, count=bits, bitorder="little"), bitorder="little").tobytes()


def _unpacked(data: bytes, n: int, bits: int) -> np.ndarray:
    flags = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: n * bits].reshape(n, bits)
    unsigned = np.packbits(flags, axis=1, bitorder="little")[:, 0].astype(np.int16) if n else np.zeros(0, np.int16)
    return np.where(unsigned >= 2 ** (bits - 1), unsigned - 2**bits, unsigned).astype(np.float32)
