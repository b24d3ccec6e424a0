"""The superposition code: its bytes are what docs/codes.md says, whatever stands beside a text."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm.assets import resolve
from lsm.codes import quantise
from lsm.codes.alphabet import Alphabet, checksum
from lsm.codes.signs import position_signs, token_signs
from lsm.codes.spec import CodeSpec, amplitudes, margin
from lsm.codes.storage import from_arrays, to_arrays
from lsm.codes.superposition import IN_BYTES, Codes, SuperpositionEncoder, pieces
from lsm.errors import UserError
from lsm.lm.tokens import ByteTokens, FolderTokens

MASK = 2**64 - 1


def mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def sign(seed: int, stream: int, index: int, j: int) -> int:
    """docs/codes.md in plain integers, sharing no line with the package."""
    word = mix(mix(mix(mix(seed) ^ stream) ^ index) ^ (j // 64))
    return 1 if word >> (j % 64) & 1 else -1


def slow_code(symbols: list[int], first: int, spec: CodeSpec, salt: int) -> tuple[list[int], int]:
    """Entries and step of one code of `symbols`, which stand at positions first, first + 1 … of their text."""
    n, sums = len(symbols), [0] * spec.dims
    for t, symbol in enumerate(symbols):
        numerator = 2 * n * 14 - spec.fall_half_bits * t
        amplitude = int(2 ** (numerator / (2 * n)))
        while amplitude ** (2 * n) > 2**numerator:
            amplitude -= 1
        while (amplitude + 1) ** (2 * n) <= 2**numerator:
            amplitude += 1
        for j in range(spec.dims):
            sums[j] += amplitude * sign(spec.seed, 2, (salt << 32) + first + t, j) * sign(spec.seed, 1, symbol, j)
    top = 2 ** (spec.bits - 1) - 1
    step = min(65535, max(1, math.ceil(max(map(abs, sums)) / top)))
    return [int(math.copysign(min((2 * abs(s) + step) // (2 * step), top), s)) for s in sums], step


def make(dims: int = 64, bits: int = 8, seed: int = 0, noise: float = 0.0) -> SuperpositionEncoder:
    alphabet = Alphabet(ByteTokens())
    return SuperpositionEncoder(alphabet.spec(dims=dims, bits=bits, seed=seed, noise=noise), alphabet)


@pytest.mark.parametrize(
    ("dims", "bits", "seed", "salt", "noise"), [(64, 8, 0, 0, 0), (96, 6, 7, 1, 0), (72, 4, 2**62, 127, 0), (64, 8, 0, 0, 0.1)]
)
def test_bytes_are_those_of_the_specification(dims: int, bits: int, seed: int, salt: int, noise: float) -> None:
    encoder, text = make(dims, bits, seed, noise), "It was the best of times."
    codes = encoder.encode([text], salts=[salt], n_codes=[2])
    symbols = list(text.encode())
    for number, (begin, end) in enumerate(pieces(len(symbols), 2)):
        entries, step = slow_code(symbols[begin:end], begin, encoder.spec, salt)
        assert codes.q_CK[number].tolist() == entries and int(codes.step_C[number]) == step
    assert int(codes.checksum_B[0]) == int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def test_sums_beyond_float32_are_exact() -> None:
    encoder, n = make(dims=16, bits=4), 2600
    signs_VK, at_TK = token_signs(0, 256, 16), position_signs(0, 0, n, 16)
    # Of the first entry all terms have one sign, odd amplitudes among them: its sum passes 2^24, where float32 knows even numbers only.
    plus, minus = int(np.flatnonzero(signs_VK[:, 0] > 0)[0]), int(np.flatnonzero(signs_VK[:, 0] < 0)[0])
    row = [plus if sign > 0 else minus for sign in at_TK[:, 0]]
    amplitude_T = amplitudes(n, encoder.spec.fall_half_bits)
    sums = amplitude_T @ (signs_VK[row].astype(np.int64) * at_TK)
    assert sums[0] == amplitude_T.sum() > 2**24
    terms_TK = (signs_VK[row] * at_TK).astype(np.float32)
    assert (amplitude_T.astype(np.float32) @ terms_TK).astype(np.int64).tolist() != sums.tolist()
    added = np.zeros((1, 16), dtype=np.int64)
    encoder._add(added, [row], np.array([1], np.uint16), np.array([0], np.uint8))
    assert added[0].tolist() == sums.tolist()


@pytest.mark.parametrize("n", [1024, 1025, 3000])
def test_sums_of_long_codes_are_exact(n: int) -> None:
    encoder = make(dims=16)
    codes = encoder.encode(["é" * (n // 2) + "e" * (n % 2)], n_codes=[1])
    symbols = np.array([*("é".encode() * (n // 2)), *(b"e" * (n % 2))])
    signs = token_signs(0, 512, 16)[symbols].astype(np.int64) * position_signs(0, 0, n, 16)
    sums = amplitudes(n, encoder.spec.fall_half_bits) @ signs
    q_CK, step_C = quantise.quantise(sums[None], encoder.spec)
    assert np.array_equal(codes.q_CK, q_CK) and np.array_equal(codes.step_C, step_C)


def test_test_vectors_hold_for_ever() -> None:
    """Numbers of docs/codes.md: a change here breaks every corpus that was ever written."""
    codes = make(dims=16, seed=3).encode(["Hi!", ""])
    assert codes.q_CK.tolist() == [FIRST, [0] * 16] and codes.step_C.tolist() == [STEP, 1]
    assert codes.checksum_B.tolist() == [checksum("Hi!"), checksum("")] and codes.n_tokens_B.tolist() == [3, 0]
    assert amplitudes(5, 15).tolist() == [16384, 5792, 2048, 724, 256]


FIRST = [90, 83, -90, 90, -83, -120, 90, -127, 83, -127, -120, 83, -83, 90, 83, -127]
STEP = 156


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6), st.integers(0, 127))
@settings(deadline=None, max_examples=40)
def test_a_code_is_a_function_of_its_text_alone(texts: list[str], salt: int) -> None:
    encoder = make(dims=32)
    together = encoder.encode(texts, salts=[salt] * len(texts))
    alone = Codes.join([encoder.encode([text], salts=[salt]) for text in texts])
    assert together.same_as(alone).all()
    order = np.arange(len(texts))[::-1]
    assert together.select(order).select(order).same_as(together).all()
    assert from_arrays(encoder.spec, to_arrays(together)).same_as(together).all()


@given(st.integers(1, 200), st.integers(1, 15))
@settings(deadline=None, max_examples=30)
def test_amplitudes_are_floors_of_powers_of_two(n_tokens: int, fall: int) -> None:
    for t, amplitude in enumerate(amplitudes(n_tokens, fall).tolist()):
        exponent = 14 - fall * t / (2 * n_tokens)
        assert amplitude - 1e-6 * amplitude <= 2**exponent < (amplitude + 1) * (1 + 1e-9)


@given(st.integers(1, 4), st.sampled_from([4, 6, 8]), st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_packing_keeps_every_entry(n: int, bits: int, seed: int) -> None:
    top = 2 ** (bits - 1) - 1
    q_CK = np.random.default_rng(seed).integers(-top, top + 1, (n, 24)).astype(np.int8)
    packed = quantise.pack(q_CK, bits)
    assert packed.shape == (n, 24 * bits // 8) and np.array_equal(quantise.unpack(packed, bits), q_CK)


@given(st.lists(st.integers(-(2**26), 2**26), min_size=8, max_size=8), st.sampled_from([4, 6, 8]))
def test_quantised_entries_are_nearest_levels(sums: list[int], bits: int) -> None:
    spec = make(dims=8, bits=bits).spec
    q_CK, step_C = quantise.quantise(np.array([sums]), spec)
    step, top = int(step_C[0]), spec.largest_level
    for entry, total in zip(q_CK[0].tolist(), sums, strict=True):
        assert abs(entry) <= top and (abs(entry) == top or abs(entry * step - total) <= step / 2)


def test_signs_look_like_coins() -> None:
    codebook = token_signs(0, 4096, 128).astype(np.float64)
    assert abs(codebook.mean()) < 0.005
    overlap = codebook @ codebook.T / 128 - np.eye(4096)
    assert abs(overlap.std() * math.sqrt(128) - 1) < 0.01 and abs(overlap).max() < 0.6
    assert not np.array_equal(position_signs(0, 0, 8, 64), position_signs(0, 1, 8, 64))
    assert np.array_equal(position_signs(0, 5, 8, 64), position_signs(0, 5, 20, 64)[:8])


class Forgetful(ByteTokens):
    """A tokenizer that does not give capitals back."""

    def encode(self, texts):
        return super().encode([text.lower() for text in texts])

    encode_exact = encode


def test_what_the_tokenizer_loses_is_coded_in_bytes() -> None:
    alphabet = Alphabet(Forgetful())
    codes = SuperpositionEncoder(alphabet.spec(dims=32), alphabet).encode(["low", "HIGH é"])
    assert (codes.variant_B & IN_BYTES).tolist() == [0, IN_BYTES] and codes.n_tokens_B.tolist() == [3, 7]
    assert alphabet.text(alphabet.symbols(["HIGH é"])[0]) == "HIGH é"


def test_margin_bounds_the_tokens_of_a_code() -> None:
    spec = make(dims=256).spec
    n = spec.tokens_per_code
    assert margin(256, 15, n) >= 22 > margin(256, 15, n + 1)
    codes = make(dims=256).encode(["x" * n, "x" * (n + 1)])
    assert codes.n_codes_B.tolist() == [1, 2] and codes.bytes_B.tolist() == [9 + 258, 9 + 2 * 258]


def test_room_for_noise_is_a_shorter_fall() -> None:
    assert [make(noise=sigma).spec.fall_half_bits for sigma in (0, 1e-4, 0.01, 0.03, 0.1, 0.3, 1)] == [15, 15, 13, 10, 6, 3, 1]
    spec = make(noise=0.1).spec
    assert spec != make().spec and spec.fingerprint != make().spec.fingerprint and spec.tokens_per_code < make().spec.tokens_per_code
    assert CodeSpec.from_dict(spec.as_dict(), origin="x") == spec
    with pytest.raises(UserError, match="--residual-noise 2"):
        make(noise=2)


def test_specs_are_compared_and_refused() -> None:
    spec = make().spec
    assert CodeSpec.from_dict(spec.as_dict() | {"tokenizer": "stub"}, origin="x") == spec
    with pytest.raises(UserError, match=r"manifest.*tokens_per_code \d+ there"):
        CodeSpec.from_dict(spec.as_dict() | {"fall_half_bits": 12}, origin="manifest")
    with pytest.raises(UserError, match="manifest does not describe"):
        CodeSpec.from_dict({"kind": "learned"}, origin="manifest")
    with pytest.raises(UserError, match=r"257 \(sha256"):
        SuperpositionEncoder(CodeSpec(vocabulary=9, vocabulary_sha256="0" * 64), Alphabet(ByteTokens()))
    for bad in ({"dims": 7}, {"bits": 5}, {"seed": -1}, {"dims": 8192}):
        with pytest.raises(UserError, match="residual"):
            CodeSpec(vocabulary=9, vocabulary_sha256="0" * 64, **bad)


def test_a_lone_surrogate_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="lone surrogate"):
        make().encode(["bad \ud800 text"])
    with pytest.raises(UserError, match="lone surrogate"):
        Alphabet(FolderTokens(Path(resolve("smollm2-135m-instruct").path))).symbols(["bad \ud800 text"])
