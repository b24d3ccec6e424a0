"""The table of objectives: every variant is a valid run, all stand on one scoreboard, and what is done is not done again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from lsm.config import to_dict
from lsm.errors import UserError
from lsm.latent.settings import PretrainSettings

TINY = """steps: 2
eval_every: 2
save_every: 2
threads: 1
optimizer: {warmup_steps: 1}
model: {context: 8, hidden: 16, layers: 1, heads: 2, sampler_width: 16, sampler_blocks: 1}
data: {batch_sentences: 64, held_out_fraction: 0.2}
"""


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("bench_objectives")


def test_every_variant_changes_objectives_head_and_anchor_only(script: ModuleType) -> None:
    base = PretrainSettings()
    for name, variant in script.VARIANTS.items():
        settings = script.settings_of(name, base)
        assert settings.model.sampler == variant.sampler and (settings.objectives.sampler > 0) == (variant.sampler != "none")
        assert {key for key in script._OFF if getattr(settings.objectives, key)} == set(variant.weights)
        assert settings.model.anchor == ("none" if "without anchor" in name else base.model.anchor)
        assert to_dict(settings.data) == to_dict(base.data) and settings.steps == base.steps


def test_runs_share_a_scoreboard_and_are_kept(script: ModuleType, tmp_path: Path, training_corpus: Path, held_out_corpus: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "stories.jsonl").write_text(json.dumps({"sentences": ["War.", "Peace."], "endings": ["Law.", "Iron."], "right": 1}) + "\n")
    options = script.Options(
        train=training_corpus, judge=(f"made-up={held_out_corpus}",), out=tmp_path / "out", config=tmp_path / "tiny.yaml",
        variants="mse,infonce + energy,infonce + lexical", lexical_lm="stub",
        seeds="0,1", repeated="mse", cloze=tmp_path / "stories.jsonl", resamples=20, device="cpu",
    )  # fmt: skip
    script.main(options)
    rows = {row["predictor"]: row for row in json.loads((tmp_path / "out/made-up.json").read_text())["results"]["rows"]}
    assert {"mse", "infonce + energy", "infonce + energy, one sample", "last vector", "ridge"} <= set(rows)
    assert rows["mse"]["lead_contrastive_accuracy"] == 0 == rows["mse, seed 1"]["lead_contrastive_accuracy"]
    (seeds,) = json.loads((tmp_path / "out/made-up.json").read_text())["results"]["seeds"]
    both = [rows["mse"]["recall_at_10"], rows["mse, seed 1"]["recall_at_10"]]
    assert seeds["predictor"] == "mse (2 seeds)" and seeds["recall_at_10"] == pytest.approx(sum(both) / 2)
    energy = rows["infonce + energy"]
    assert energy["lead_l2"] == pytest.approx(energy["l2"] - rows["mse"]["l2"], abs=1e-9)
    stories = {row["predictor"] for row in json.loads((tmp_path / "out/cloze.json").read_text())["results"]["rows"]}
    assert {"mse", "infonce + energy", "last vector", "chance"} <= stories and "model" not in stories
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")}
    script.main(options)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")} == written
    assert "| infonce + energy, one sample |" in (tmp_path / "out/objectives.md").read_text()
    options.also, options.out = (f"again={tmp_path / 'out/runs/mse-0'}",), tmp_path / "beside"
    options.variants, options.seeds, options.cloze = "mse", "0", None
    script.main(options)
    rows = {row["predictor"]: row for row in json.loads((tmp_path / "beside/made-up.json").read_text())["results"]["rows"]}
    assert rows["again"] | {"predictor": "mse"} == rows["mse"]
    options.variants = "mse,hope"
    with pytest.raises(UserError, match="hope"):
        script.main(options)
