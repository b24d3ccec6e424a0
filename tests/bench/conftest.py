"""Corpora of made-up documents under the stub encoder, a latent transformer and an adapter without training: every path in seconds."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from lsm.corpus.writer import SegmentedDocument, text_sha256, write_corpus
from lsm.encode.encoder import load_encoder

WORDS = ("union", "state", "people", "war", "peace", "money", "law", "nation", "labor", "trade", "house", "power", "treaty", "land", "iron")


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """`load_script("main_job")` gives scripts/main_job.py as a module."""

    def load(name: str) -> ModuleType:
        specification = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "scripts" / f"{name}.py")
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        specification.loader.exec_module(module)
        return module

    return load


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two threads waiting for each other in tiny matrices cost more than they save, above all beside another test."""
    import torch

    torch.set_num_threads(1)


def made_up_documents(first: int, stop: int) -> list[list[str]]:
    """Documents of 8 to 20 sentences, each about five words of its own."""
    documents = []
    for number in range(first, stop):
        chance = random.Random(number)
        topic = chance.sample(WORDS, 5)
        documents.append([f"The {' '.join(chance.choices(topic, k=chance.randint(4, 9)))}." for _ in range(chance.randint(8, 20))])
    return documents


def write_documents(path: Path, documents: list[list[str]], first: int) -> Path:
    segmented = []
    for number, texts in enumerate(documents, start=first):
        sentences, at = [], 0
        for text in texts:
            sentences.append(SimpleNamespace(text=text, char_start=at, char_end=at + len(text), gap=" ", section=0, part=0))
            at += len(text) + 1
        whole = "".join(f"{text} " for text in texts)
        segmented.append(SegmentedDocument(f"doc {number}", "test", "", text_sha256(whole), len(whole), "", sentences))
    encoder = load_encoder("stub")
    vectors = encoder.encode([text for texts in documents for text in texts]).vectors
    write_corpus(path, segmented, vectors, encoder.fingerprint())
    return path


@pytest.fixture
def write_made_up(tmp_path: Path) -> Callable[[Iterable[int], int], Path]:
    """`write_made_up(numbers, first_id)` writes a corpus of the made-up documents of these numbers, with ids from `first_id` on."""

    def write(numbers: Iterable[int], first_id: int) -> Path:
        return write_documents(tmp_path / "made-up", [made_up_documents(number, number + 1)[0] for number in numbers], first_id)

    return write


@pytest.fixture(scope="session")
def training_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("training") / "corpus", made_up_documents(0, 24), 0)


@pytest.fixture(scope="session")
def held_out_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six documents of its own, and one of the training corpus."""
    return write_documents(tmp_path_factory.mktemp("held-out") / "corpus", made_up_documents(23, 30), 23)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained latent transformer: it predicts its anchor."""
    from lsm.latent.settings import ModelSettings
    from lsm.latent.transformer import LatentConfig, LatentTransformer

    encoder = load_encoder("stub")
    settings = ModelSettings(context=8, hidden=32, layers=1, heads=2)
    folder = tmp_path_factory.mktemp("model")
    LatentTransformer(LatentConfig(dim=encoder.dim, model=settings, encoder=encoder.fingerprint())).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained prefix adapter between the stub encoder and the stub LM."""
    import torch

    from lsm.decode.adapter import AdapterHome, PrefixAdapter
    from lsm.decode.settings import AdapterSettings
    from lsm.lm.frozen import FrozenLM

    torch.manual_seed(0)
    encoder, lm = load_encoder("stub"), FrozenLM.load("stub")
    width, vocabulary = lm.embed(torch.zeros(1, 1, dtype=torch.long)).shape[-1], lm.model.get_input_embeddings().weight.shape[0]
    home = AdapterHome(encoder.fingerprint(), lm.fingerprint(), encoder.dim, width, vocabulary, lm.embedding_rms())
    adapter = PrefixAdapter(AdapterSettings(prefix_length=2, hidden=32, blocks=1), home)
    folder = tmp_path_factory.mktemp("adapter")
    adapter.save_pretrained(folder, card="# untrained\n")
    return folder
