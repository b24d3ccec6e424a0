"""Rows to learn from, and the classes that the default names stand for (ModernBERT, GPT-2) as tiny random models in folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lsm.text.pairs import Pair

ANIMALS, PLACES = ("fox", "crow", "hare", "wolf", "bear"), ("the sea", "the wood", "the hill", "the town")


@pytest.fixture(scope="session")
def pairs() -> list[Pair]:
    """Dialogues of three turns and their summaries: animal and place decide both."""
    return [
        Pair(
            f"{animal}-{number}",
            f"A: Where does the {animal} go?\nB: I saw it at {place}.\nA: Thank you.",
            (f"The {animal} is at {place}.",),
        )
        for number, place in enumerate(PLACES)
        for animal in ANIMALS
    ]


@pytest.fixture(scope="session")
def rows(pairs: list[Pair], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a JSONL file, and beside it `held.jsonl` with other rows."""
    folder = tmp_path_factory.mktemp("rows")
    lines = [{"id": pair.document, "text": pair.text, "summaries": list(pair.targets)} for pair in pairs]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    others = [dict(line, text=line["text"].replace("Thank you", "Thanks"), summaries=[*line["summaries"], "Gone."]) for line in lines[:10]]
    (folder / "held.jsonl").write_text("\n".join(map(json.dumps, [*others, lines[0]])))
    return folder / "rows.jsonl"


@pytest.fixture(scope="session")
def modernbert(pairs: list[Pair], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import ModernBertConfig, ModernBertModel

    folder = tmp_path_factory.mktemp("modernbert")
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([pair.text for pair in pairs], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(names | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128})
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 128}
    ids = {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    ModernBertModel(ModernBertConfig(vocab_size=tokenizer.get_vocab_size(), local_attention=16, **sizes, **ids)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gpt2(pairs: list[Pair], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([pair.targets[0] for pair in pairs], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>").save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(), n_positions=128, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0,
        initializer_range=0.1,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder
