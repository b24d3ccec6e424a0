"""The vec2text extra on a tiny checkpoint in its published format, written and trained here until it knows a few sentences."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from lsm.decode import vec2text
from lsm.decode.load import DecoderSource
from lsm.decode.vec2text import CHECK_SENTENCES, load_vec2text, within
from lsm.decode.vec2text_checkpoint import Checkpoint, CorrectorModel
from lsm.errors import UserError

DIM, WIDTH, REPEATS = 12, 24, 3
FINGERPRINT = {"name": "bag", "sha256": "0", "dim": DIM, "pooling": "mean", "normalised": False}
SENTENCES = [text.lower().rstrip(".") for text in CHECK_SENTENCES]
VOCABULARY = {word: n for n, word in enumerate(["<pad>", "</s>", "<unk>", *sorted({w for text in SENTENCES for w in text.split()})])}
WORDS_VD = np.random.default_rng(0).standard_normal((len(VOCABULARY), DIM)).astype(np.float32)


def encode(texts: Sequence[str]) -> np.ndarray:
    """Mean of word vectors, not normalised."""
    rows = [[VOCABULARY.get(word, 2) for word in text.lower().rstrip(".").split()] or [2] for text in texts]
    return np.stack([2 * WORDS_VD[row].mean(0) for row in rows])


def normalised(texts: Sequence[str]) -> np.ndarray:
    """A different space of the same width."""
    return np.roll(encode(texts), 1, axis=1) / np.linalg.norm(encode(texts), axis=1, keepdims=True)


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=len(VOCABULARY), decoder_start_token_id=0, dropout_rate=0.0, **sizes))


def projection() -> nn.Sequential:
    return nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.0), nn.GELU(), nn.Linear(DIM, WIDTH * REPEATS))


def write(folder: Path, model: nn.Module, *, tie: str = "encoder_decoder.shared.weight", **more: Any) -> Path:
    """The published format: the union of all arguments as config.json, tied tensors once, the encoder's own weights along with it."""
    folder.mkdir()
    config = {
        "embedder_model_name": "bag_of_words", "embedding_transform_strategy": "repeat", "num_repeat_tokens": REPEATS, "max_seq_length": 12,
        "model_name_or_path": "t5-base", "use_lora": False, "embedder_model_api": None,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | more))
    tied = ("shared.weight", "embed_tokens.weight", "lm_head.weight")
    tensors = {key: tensor.clone() for key, tensor in model.state_dict().items() if not key.endswith(tied)}
    tensors[tie] = model.encoder_decoder.shared.weight.detach().clone()
    tensors["embedder.block.0.weight"] = torch.full((2, 2), torch.nan)
    save_file(tensors, folder / "model.safetensors")
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def hypothesis_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Knows the first words of the sentences but says `water` where two of them end: something is left to correct."""
    torch.manual_seed(0)
    model = nn.Module()
    model.encoder_decoder, model.embedding_transform = t5(), projection()
    said = [text if n < 2 else " ".join([*text.split()[:-1], "water"]) for n, text in enumerate(SENTENCES)]
    labels_BT = labels(said)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        inputs_BPH = model.embedding_transform(torch.from_numpy(encode(SENTENCES))).view(len(SENTENCES), REPEATS, WIDTH)
        optimizer.zero_grad()
        model.encoder_decoder(inputs_embeds=inputs_BPH, labels=labels_BT).loss.backward()
        optimizer.step()
    return write(tmp_path_factory.mktemp("vec2text") / "hypothesis", model)


@pytest.fixture(scope="module")
def corrector_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on the layout of the published corrector, spelled out here once more."""
    torch.manual_seed(1)
    model = nn.Module()
    model.encoder_decoder, model.layernorm = t5(), nn.LayerNorm(WIDTH)
    model.embedding_transform_1, model.embedding_transform_2, model.embedding_transform_3 = projection(), projection(), projection()
    labels_BT, wrong = labels(SENTENCES), [" ".join([*text.split()[:-1], "water"]) for text in SENTENCES]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        inputs_BPH, mask_BP = layout(model, torch.from_numpy(encode(SENTENCES)), torch.from_numpy(encode(wrong)), labels(wrong))
        model.encoder_decoder(inputs_embeds=inputs_BPH, attention_mask=mask_BP, labels=labels_BT).loss.backward()
        optimizer.step()
    return write(tmp_path_factory.mktemp("vec2text") / "corrector", model, tie="encoder_decoder.lm_head.weight")


def labels(texts: Sequence[str]) -> torch.Tensor:
    rows = [[*(VOCABULARY[word] for word in text.split()), 1] for text in texts]
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def layout(model: nn.Module, e: torch.Tensor, found: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    word, end = model.encoder_decoder.shared, torch.ones(len(e), 1, dtype=torch.long)
    ids = torch.cat([torch.zeros_like(end), ids], dim=1)
    one, three, two = (
        part(z).view(len(e), REPEATS, WIDTH)
        for part, z in ((model.embedding_transform_1, e), (model.embedding_transform_3, found), (model.embedding_transform_2, e - found))
    )
    inputs = torch.cat([word(end), one, word(end), three, word(end), two, word(end), word(ids)], dim=1)
    return model.layernorm(inputs), torch.cat([torch.ones(len(e), 4 + 3 * REPEATS), (ids != 0).float()], dim=1)


def load(folder: Path, corrector: Path | None = None, **more: Any) -> vec2text.Vec2TextDecoder:
    return load_vec2text(folder, corrector, more.pop("encode", encode), more.pop("fingerprint", FINGERPRINT), quiet=True, **more)


def test_corrections_finish_what_the_hypothesis_began(hypothesis_folder: Path, corrector_folder: Path) -> None:
    z = encode(SENTENCES)
    first = load(hypothesis_folder).decode(z)
    assert first[:2] == SENTENCES[:2] and first[2] == "she plays the piano every water"
    decoder = load(hypothesis_folder, corrector_folder, steps=3)
    assert decoder.encoder_calls_per_sentence == 4
    assert decoder.decode(z) == SENTENCES
    assert 1 < decoder.encoder_calls_per_sentence <= 4


def test_beam_keeps_the_best_of_all_steps_within_its_budget(hypothesis_folder: Path, corrector_folder: Path) -> None:
    calls: list[str] = []

    def counted(texts: Sequence[str]) -> np.ndarray:
        calls.extend(texts)
        return encode(texts)

    decoder = load(hypothesis_folder, corrector_folder, encode=counted, steps=4, beam=2)
    budget = decoder.encoder_calls_per_sentence
    assert budget == 1 + 2 + 3 * 4
    calls.clear()
    z = encode(["the piano is paris", *SENTENCES])
    pools = decoder.candidates(z, 5)
    assert len(calls) == round(decoder.encoder_calls_per_sentence * len(z)) <= budget * len(z)
    for z_D, pool in zip(z, pools, strict=True):
        cosine_K = encode(pool) @ z_D / np.linalg.norm(encode(pool), axis=1)
        assert len(set(pool)) == len(pool) and (np.diff(cosine_K) <= 1e-6).all()
    assert [pool[0] for pool in pools] == decoder.decode(z, seed=9)
    alone = [decoder.decode(row[None])[0] for row in z]
    assert alone == decoder.decode(z)


@pytest.mark.parametrize("beam", [1, 2, 4])
def test_any_budget_gives_steps_and_a_beam_within_it(beam: int) -> None:
    assert within(1, beam) == (0, 1)
    for limit in range(2, 70):
        steps, narrowed = within(limit, beam)
        calls = 1 + narrowed + (steps - 1) * narrowed**2
        assert steps >= 1 and narrowed == min(beam, limit - 1) and calls <= limit < calls + narrowed**2


def test_the_decoder_is_loaded_by_its_name(hypothesis_folder: Path, corrector_folder: Path) -> None:
    z = encode(SENTENCES)
    folders = {"vec2text": str(hypothesis_folder), "vec2text_corrector": str(corrector_folder)}
    (decoder,) = DecoderSource(encoder=FINGERPRINT, encode=encode, encoder_calls=4, beam=1, quiet=True, **folders).load(["vec2text"])
    assert decoder.name == "vec2text" and decoder.encoder_calls_per_sentence == 4 and decoder.decode(z) == SENTENCES
    source = DecoderSource(encoder=FINGERPRINT, encode=encode, quiet=True, **(folders | {"vec2text_corrector": "none"}))
    (alone,) = source.load(["vec2text"])
    assert alone.encoder_calls_per_sentence == 1 and alone.decode(z) == load(hypothesis_folder).decode(z) != SENTENCES
    for option in ({"encoder_calls": 0}, {"beam": 0}):
        with pytest.raises(UserError, match=r"--(encoder-calls|beam) 0: must be at least 1"):
            DecoderSource(encoder=FINGERPRINT, encode=encode, **option, **folders).load(["vec2text"])


def bag_encoder(folder: Path) -> Path:
    """A static encoder as wide as the checkpoint, of other vectors than it inverts."""
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({"embedding": torch.from_numpy(np.roll(WORDS_VD, 1, axis=0).copy())}, folder / "vectors.safetensors")
    return folder


def test_the_command_line_says_in_one_line_what_is_missing_or_does_not_fit(
    run_cli: Callable[..., Any], empty_home: Path, hypothesis_folder: Path, corrector_folder: Path, tmp_path: Path
) -> None:
    other = bag_encoder(tmp_path / "bag")
    for encoder, options, message in (
        ("stub", (), r"jxm/gtr__nq__32: .*LSM_OFFLINE.*lsm assets pull jxm/gtr__nq__32; or give a local folder"),
        (other, ("--vec2text", hypothesis_folder), r"jxm/gtr__nq__32__correct: .*lsm assets pull"),
        ("stub", ("--vec2text", hypothesis_folder), r"12 dims, encoder stub .* has 64; give the --encoder"),
        (
            other,
            ("--vec2text", hypothesis_folder, "--vec2text-corrector", corrector_folder),
            r"does not invert encoder bag .*use that model",
        ),
        ("stub", ("--vec2text", tmp_path / "nowhere"), r"nowhere does not exist"),
    ):
        outcome = run_cli("invert", "--text", "Any text.", "--encoder", encoder, "--decoder", "vec2text", *options, "--quiet")
        assert outcome.code == 2 and outcome.stderr.count("\n") == 1 and re.search(message, outcome.stderr), outcome


def test_our_corrector_lays_out_its_input_as_the_published_one(corrector_folder: Path) -> None:
    corrector = CorrectorModel(Checkpoint.read(corrector_folder, "corrector"))
    e, found = torch.from_numpy(encode(SENTENCES)), torch.from_numpy(encode(SENTENCES[::-1]))
    ids_BT = torch.cat([torch.zeros(4, 1, dtype=torch.long), labels(SENTENCES)], dim=1)
    ours, theirs = corrector.inputs(e, found, ids_BT), layout(corrector, e, found, labels(SENTENCES))
    torch.testing.assert_close(ours[0], theirs[0])
    assert torch.equal(ours[1].float(), theirs[1])


def test_lengths_that_no_text_has_are_brought_into_range(hypothesis_folder: Path) -> None:
    decoder, z = load(hypothesis_folder), encode(SENTENCES)
    np.testing.assert_array_equal(decoder._in_range(z), z)
    lengths = np.linalg.norm(decoder._in_range(100 * z), axis=1)
    np.testing.assert_allclose(lengths, np.linalg.norm(z, axis=1).max() * 1.25, rtol=1e-5)
    assert not decoder._in_range(np.zeros_like(z)).any() and len(decoder.decode(np.zeros_like(z))) == 4
    assert decoder.decode(z[:0]) == []


def test_other_conventions_are_refused(hypothesis_folder: Path) -> None:
    with pytest.raises(UserError, match=r"does not invert encoder bag.*mean cosine is .*trained on vectors of bag_of_words.*normalisation"):
        load(hypothesis_folder, encode=normalised)
    with pytest.raises(UserError, match=r"inverts vectors of 12 dims, encoder bag .* has 384"):
        load(hypothesis_folder, fingerprint=FINGERPRINT | {"dim": 384})
    constant = np.ones((1, DIM), np.float32)
    with pytest.raises(UserError, match=r"mean cosine is 1.00.*to the other sentences 1.00"):
        load(hypothesis_folder, encode=lambda texts: constant.repeat(len(texts), 0))
    decoder = load(hypothesis_folder)
    with pytest.raises(UserError, match="vector 1 holds NaN"):
        decoder.decode(np.array([[1.0] * DIM, [np.nan] * DIM]))
    with pytest.raises(UserError, match=r"shape \[1, 5\]"):
        decoder.decode(np.ones((1, 5)))


def change(tensors: dict[str, torch.Tensor], key: str, tensor: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {name: value for name, value in (tensors | {key: tensor}).items() if value is not None}


LAST = "encoder_decoder.decoder.final_layer_norm.weight"


@pytest.mark.parametrize(
    ("key", "tensor", "message"),
    [
        (LAST, None, f"tensor {LAST} is missing"),
        (LAST, torch.ones(3), f"tensor {LAST} is of another shape"),
        (LAST, torch.full((WIDTH,), torch.nan), f"{LAST} holds NaN or infinity"),
        ("extra.weight", torch.ones(3), "tensor extra.weight is unknown"),
        ("encoder_decoder.shared.weight", None, "no tensor encoder_decoder.shared.weight"),
        ("embedding_transform.0.weight", None, "no tensor embedding_transform.0.weight"),
    ],
)
def test_damage_gives_one_clear_line(hypothesis_folder: Path, tmp_path: Path, key: str, tensor: torch.Tensor | None, message: str) -> None:
    folder = shutil.copytree(hypothesis_folder, tmp_path / "damaged")
    save_file(change(load_file(folder / "model.safetensors"), key, tensor), folder / "model.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_repeat_tokens": 16}, "num_repeat_tokens is 16, its weights have 3"),
        ({"embedding_transform_strategy": "nearest_neighbors"}, "only 'repeat' is read"),
        ({"use_lora": True}, "use_lora"),
    ],
)
def test_variants_that_are_not_read_say_so(hypothesis_folder: Path, tmp_path: Path, setting: dict[str, Any], message: str) -> None:
    folder = shutil.copytree(hypothesis_folder, tmp_path / "variant")
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | setting))
    with pytest.raises(UserError, match=message):
        load(folder)


def test_pickles_stay_closed_and_missing_parts_are_named(
    hypothesis_folder: Path, corrector_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(hypothesis_folder, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin is a pickle, which is never opened; convert it.*weights_only=True"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"holds no \*.safetensors"):
        load(folder)
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"model.safetensors is damaged"):
        load(folder)
    with pytest.raises(UserError, match=r"no tensor embedding_transform.*right folder of the two"):
        load(corrector_folder)
    monkeypatch.setenv("LSM_OFFLINE", "1")
    bare = shutil.copytree(hypothesis_folder, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"put the tokenizer.json of google-t5/t5-base into its folder"):
        load(bare)
    assert load(bare, tokenizer=hypothesis_folder / "tokenizer.json").decode(encode(SENTENCES[:1])) == SENTENCES[:1]
    with pytest.raises(UserError, match=r"is no tokenizer.json"):
        load(bare, tokenizer=bare / "config.json")


def test_the_licence_is_shown_once(hypothesis_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(vec2text, "_notice_given", False)
    for _ in range(2):
        load_vec2text(hypothesis_folder, None, encode, FINGERPRINT)
    assert capsys.readouterr().err.count("Software for Open Models") == 1
