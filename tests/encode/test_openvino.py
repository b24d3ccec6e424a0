"""OpenVINO as engine: PyTorch's vectors up to rounding, the same bits by any number of workers and after a resume, and never a mixture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lsm.commands.encode_corpus import Options, prepared, run
from lsm.corpus.reader import Corpus
from lsm.encode import openvino_graph
from lsm.encode.encoder import encoder_info, load_encoder
from lsm.encode.model_folder import ModelFolder
from lsm.encode.plan import RunPlan
from lsm.errors import UserError
from lsm.files import read_json, write_json

installed = pytest.mark.skipif(find_spec("openvino") is None, reason="needs the extra lsm[openvino]")
TEXTS = [f"{'The war came, ' * (number % 7)}and year {number} of the house was like the {number % 5} before it." for number in range(60)]


@pytest.fixture(params=["mean", "cls"])
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_bert(tmp_path / "tiny", request.param)


def tiny_bert(folder: Path, pooling: str = "mean") -> Path:
    """A BERT of two layers with random weights and a tokenizer of letters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    how = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64}
    BertModel(BertConfig(vocab_size=200, **how), add_pooling_layer=False).save_pretrained(folder)
    words = {word: number for number, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *map(chr, range(32, 127))])}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]", max_input_chars_per_word=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "pooling").mkdir()
    write_json(folder / "pooling" / "config.json", {"pooling_mode": pooling})
    modules = [("Transformer", ""), ("Pooling", "pooling"), ("Normalize", "normalize")]
    write_json(folder / "modules.json", [{"idx": n, "path": path, "type": f"x.{kind}"} for n, (kind, path) in enumerate(modules)])
    return folder


def options(out: Path, encoder: Path, **more: Any) -> Options:
    text = out.with_name("text.txt")
    if not text.exists():
        text.write_text("\n".join(TEXTS), encoding="utf-8")
    return Options(inputs=(str(text),), out=out, encoder=str(encoder), device="cpu", quiet=True, **more)


@installed
def test_its_vectors_are_pytorchs_and_its_graph_is_made_once(tiny: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch, openvino = (load_encoder(str(tiny), device="cpu", precision="float32", engine=engine) for engine in ("torch", "openvino"))
    ours, theirs = openvino.encode(TEXTS), torch.encode(TEXTS)
    np.testing.assert_allclose(ours.vectors, theirs.vectors, atol=1e-6)
    assert ours.n_tokens.tolist() == theirs.n_tokens.tolist() and ours.truncated.tolist() == theirs.truncated.tolist()
    np.testing.assert_allclose(openvino.encode(TEXTS[5:6]).vectors[0], ours.vectors[5], atol=1e-6)
    monkeypatch.setattr(openvino_graph, "_make", None)
    again = load_encoder(str(tiny), device="cpu", engine="openvino").encode(TEXTS)
    np.testing.assert_array_equal(again.vectors, ours.vectors)


@installed
def test_text_before_is_read_and_not_pooled(tmp_path: Path, empty_home: Path) -> None:
    name, before = str(tiny_bert(tmp_path / "tiny")), ["", *TEXTS[:9]]
    torch, openvino = (load_encoder(name, device="cpu", precision="float32", engine=engine) for engine in ("torch", "openvino"))
    found = openvino.encode_in_context(TEXTS[:10], before).vectors
    np.testing.assert_allclose(found, torch.encode_in_context(TEXTS[:10], before).vectors, atol=1e-6)
    assert np.abs(found[1:] - openvino.encode(TEXTS[1:10]).vectors).max() > 1e-3


@installed
def test_a_corpus_keeps_to_its_engine(tmp_path: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny_bert(tmp_path / "tiny")
    run(options(tmp_path / "one", encoder, engine="openvino", workers=1, shard_rows=20))
    run(options(tmp_path / "two", encoder, engine="openvino", workers=2, shard_rows=20))
    one, two = Corpus.open(tmp_path / "one"), Corpus.open(tmp_path / "two")
    np.testing.assert_array_equal(one.vector_at(np.arange(one.n_sentences)), two.vector_at(np.arange(two.n_sentences)))
    assert one.fingerprint == two.fingerprint and one.encoder["engine"] == "openvino"
    with pytest.raises(UserError, match="encoder engine: 'openvino' there, None now"):
        run(options(tmp_path / "one", encoder, engine="torch", shard_rows=20))
    (tmp_path / "two" / "shards" / "00000" / "done.json").unlink()
    monkeypatch.setattr("lsm.encode.openvino_graph.openvino_installed", lambda: False)
    with pytest.raises(UserError, match=r"openvino is not installed; run: pip install 'lsm\[openvino\]'"):
        run(options(tmp_path / "two", encoder, shard_rows=20))
    monkeypatch.undo()
    monkeypatch.setenv("LSM_HOME", str(empty_home))
    run(options(tmp_path / "two", encoder, shard_rows=20))
    assert Corpus.open(tmp_path / "two").fingerprint == one.fingerprint


@installed
def test_auto_takes_it_in_float32_only_and_goes_on_with_what_a_run_began(tmp_path: Path, empty_home: Path) -> None:
    encoder = str(tiny_bert(tmp_path / "tiny"))
    taken = encoder_info(encoder, device="cpu", precision="float32", engine="auto")
    assert taken.engine == "openvino" and "faster" in taken.why
    taken = encoder_info(encoder, device="cpu", precision="bfloat16", engine="auto")
    assert taken.engine == "torch" and "bfloat16" in taken.why and "engine" not in taken.fingerprint
    begun = options(tmp_path / "begun", Path(encoder), precision="float32", engine="torch")
    run(begun)
    job, _ = prepared(options(tmp_path / "begun", Path(encoder), precision="float32"))
    assert job.info.engine == "torch"


@installed
def test_a_graph_that_computes_something_else_is_refused(tmp_path: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, made = str(tiny_bert(tmp_path / "tiny")), openvino_graph.infer
    monkeypatch.setattr(openvino_graph, "infer", lambda request, *inputs: made(request, *inputs) + np.float32(0.01))
    with pytest.raises(UserError, match=r"off PyTorch's vectors; take --engine torch"):
        encoder_info(encoder, device="cpu", engine="openvino")
    taken = encoder_info(encoder, device="cpu", precision="float32", engine="auto")
    assert taken.engine == "torch" and "off PyTorch" in taken.why
    assert not list((empty_home / "graphs").glob("*/*"))
    monkeypatch.setattr(openvino_graph, "infer", made)
    graph = openvino_graph.graph_of(ModelFolder.read(Path(encoder), "tiny"))
    assert read_json(graph.with_name("done.json"))["encoder"]["dim"] == 32
    graph.write_text("<net", encoding="utf-8")
    with pytest.raises(UserError, match="delete its folder"):
        load_encoder(encoder, device="cpu", engine="openvino")


def test_without_the_extra(tmp_path: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = str(tiny_bert(tmp_path / "tiny"))
    monkeypatch.setattr("lsm.encode.openvino_graph.openvino_installed", lambda: False)
    with pytest.raises(UserError, match=r"openvino is not installed; run: pip install 'lsm\[openvino\]'"):
        encoder_info(encoder, device="cpu", engine="openvino")
    taken = encoder_info(encoder, device="cpu", precision="float32", engine="auto")
    assert taken.engine == "torch" and "lsm[openvino]" in taken.why
    assert taken.fingerprint == encoder_info(encoder, device="cpu", precision="float32").fingerprint


def test_what_does_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="encoder stub has no network"):
        encoder_info("stub", engine="openvino")
    with pytest.raises(UserError, match="computes in float32"):
        encoder_info(str(tiny_bert(tmp_path / "tiny")), device="cpu", precision="bfloat16", engine="openvino")
    assert encoder_info("stub", engine="auto").engine == "torch" and RunPlan.load(tmp_path) is None
