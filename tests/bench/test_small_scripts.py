"""Scripts around the latent transformer: excerpts that share nothing, a packed model that predicts as its run, a page of spaces."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from lsm.bench import wording
from lsm.corpus.reader import Corpus
from lsm.errors import UserError
from lsm.latent.settings import ModelSettings
from lsm.latent.space import Part
from lsm.latent.trained_on import TRAINED_ON
from lsm.latent.transformer import LatentConfig, LatentTransformer


def test_excerpts_are_whole_paragraphs_of_different_documents(load_script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    script = load_script("excerpts")
    texts = {f"doc {n}": "\n\n".join(f"Paragraph {k} of document {n}." for k in range(20)) for n in range(9)}
    lines = [json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items()]
    (tmp_path / "all.jsonl").write_text("".join(lines))

    def cut(name: str, **options: int) -> dict[str, str]:
        script.main(script.Options(inputs=(str(tmp_path / "all.jsonl"),), out=tmp_path / name, characters=120, **options))
        return {row["id"]: row["text"] for row in map(json.loads, (tmp_path / name).read_text().splitlines())}

    judged, training = cut("judged.jsonl", documents=3), cut("training.jsonl", skip=3)
    assert len(judged) == 3 and set(judged) | set(training) == set(texts) and not set(judged) & set(training)
    for name, text in (judged | training).items():
        assert f"\n\n{text}\n\n" in f"\n\n{texts[name]}\n\n" and 90 < len(text) <= 120
    assert len({text.split(" of ")[0] for text in training.values()}) > 1, "where an excerpt begins is drawn"
    assert cut("again.jsonl", documents=3) == judged


def test_a_packed_model_predicts_as_its_run_and_is_small(
    load_script: Callable[[str], ModuleType], tmp_path: Path, held_out_corpus: Path, run_cli: Callable
) -> None:
    script, corpus = load_script("pack_latent"), Corpus.open(held_out_corpus)
    settings = ModelSettings(context=8, hidden=64, layers=2, heads=2)
    torch.manual_seed(0)
    model = LatentTransformer(LatentConfig(dim=corpus.dim, model=settings, encoder=corpus.encoder))
    torch.nn.init.normal_(model.correction.weight, std=0.1)
    model.save_pretrained(tmp_path / "run")
    (tmp_path / "run" / TRAINED_ON).write_text("0" * 16 + "\n")
    outcome = run_cli(
        "evaluate",
        tmp_path / "run",
        "--corpus",
        held_out_corpus,
        "--resamples",
        20,
        "--shuffled-positions",
        0,
        "--json",
        tmp_path / "made-up.json",
    )
    assert outcome.code == 0, outcome.stderr
    script.main(script.Options(run=tmp_path / "run", out=tmp_path / "packed", scores=(tmp_path / "made-up.json",), data="made-up words."))
    packed = LatentTransformer.from_pretrained(tmp_path / "packed")
    z_BSD = torch.from_numpy(np.asarray(corpus.vectors(0)[None], dtype=np.float32))
    cosine_BS = (packed.predict(z_BSD) * model.predict(z_BSD)).sum(-1)
    assert float(cosine_BS.min()) > 0.999 and not torch.equal(packed.predict(z_BSD), model.predict(z_BSD))
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("run", "packed")]
    assert sizes[1] < 0.3 * sizes[0]
    card = (tmp_path / "packed" / "README.md").read_text()
    assert "made-up words." in card and "## Held out: made-up" in card and (tmp_path / "packed" / TRAINED_ON).exists()


def test_every_space_is_worded_by_what_it_has(load_script: Callable[[str], ModuleType]) -> None:
    script = load_script("bench_spaces")
    both = [Part(name="semantic", dim=4), Part(name="residual", dim=9, scale=1 / 3)]
    speaker, codec = (SimpleNamespace(name="speaker", encoder={}, encoder_calls_per_sentence=0.0) for _ in range(2))

    def named(parts: list[Part]) -> list[str]:
        return list(script.decoders_of(SimpleNamespace(config=SimpleNamespace(parts=parts)), speaker, codec))

    assert named([]) == ["prefix"] and named(both) == ["prefix", "learned"] and named(both[1:]) == ["learned"]
    places = wording.Places(np.array([0, 1]), np.array([4, 5]), [["Before.", "Last."]] * 2, ["True.", "Also true."])
    said = {"semantic, prefix": ["One.", "Two."], wording.TRUTH: places.truth, wording.ELSEWHERE: ["Other.", "Another."]}
    page = "\n".join(script.page([], [], said, places))
    assert "**2.** after: Last." in page and "* semantic, prefix: Two." in page and "Another." not in page


def test_spaces_in_context_are_of_the_same_sentences(load_script: Callable[[str], ModuleType], run_cli, tmp_path: Path) -> None:
    script = load_script("bench_spaces")
    (tmp_path / "a.txt").write_text("One thing happened, after which there were many others. Then another did. All was well.")
    for name, more in (("plain", []), ("other", ["--cap-characters", "20"]), ("same", [])):
        assert run_cli("encode-corpus", tmp_path / "a.txt", "--out", tmp_path / name, "--encoder", "stub", "--quiet", *more).code == 0
    plain, other, same = tmp_path / "plain", tmp_path / "other", tmp_path / "same"
    with pytest.raises(UserError, match="holds sentences read alone"):
        script.corpora(script.Options(train=plain, judge=plain, out=tmp_path, in_context=same, judge_in_context=same))
    for path in (other, same):
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["encoder"]["context_sentences"] = 2
        (path / "manifest.json").write_text(json.dumps(manifest))
    found = script.corpora(script.Options(train=plain, judge=plain, out=tmp_path, in_context=same, judge_in_context=same))
    assert list(found) == [*script.SPACES, script.IN_CONTEXT]
    with pytest.raises(UserError, match="holds other sentences than"):
        script.corpora(script.Options(train=plain, judge=plain, out=tmp_path, in_context=other, judge_in_context=plain))
    with pytest.raises(UserError, match="belong together"):
        script.corpora(script.Options(train=plain, judge=plain, out=tmp_path, in_context=plain))
