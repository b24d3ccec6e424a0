"""Every shipped config is read by the verb that its name promises, and survives a round trip through YAML."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import get_type_hints

import pytest

from lsm.commands import VERBS
from lsm.config import load_settings, settings_from, settings_kind_of, to_dict

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))
VERB_OF_PREFIX = {
    "latent": "pretrain",
    "decoder": "train-decoder",
    "learned": "train-decoder",
    "corrector": "train-decoder",
    "reason": "reason",
    "cram": "cram",
    "compress": "compress",
}


def test_there_are_configs():
    assert {path.name for path in CONFIGS} >= {"latent-small.yaml", "latent-base.yaml", "decoder-prefix.yaml"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_parses(path):
    verb = VERB_OF_PREFIX[path.stem.split("-")[0]]
    kind = get_type_hints(importlib.import_module(VERBS[verb].module).Options)["settings"]
    kind = settings_kind_of(kind, path)
    settings = load_settings(kind, path)
    assert settings_from(kind, to_dict(settings), origin=path.name) == settings
    assert path.read_text(encoding="utf-8").startswith("# "), "the first line says what the config is for"
