"""`mmtune show` counts what trains, to the last digit, for models of full size and without their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmtune import config, registry
from mmtune.cli import app
from mmtune.commands import show
from mmtune.recipe import Recipe

COUNTS = {
    "llava_1_5_7b_stage1": ["connector trains 20,979,712 parameters"],
    "llava_1_5_7b_lora": ["lora trains 319,815,680 parameters"],
    "pllava_7b": ["connector trains 20,979,712 parameters", "lora trains 67,108,864 parameters"],
    "pllava_13b": ["connector trains 31,467,520 parameters", "lora trains 104,857,600 parameters"],
    "llama_adapter_v2_7b_stage1": ["61,731,584 of "],
    "llama_adapter_v2_7b_stage2": ["1,363,968 of "],
    "llama_adapter_v2_65b": ["bias  6,799,360", "scale  5,693,440", "norm.weight  1,310,720"],
    "p2p": ["drawing trains 83,683 parameters"],
    "video_llama_7b_al_stage1": [
        "connector.query_tokens          6,144",
        "connector.frame_positions       8,192",
        "connector.qformer          19,691,520",
        "connector.proj              3,149,824",
    ],
    "video_llama_7b_vl_stage1": [
        "connector.qformer          18,905,088",
        "connector.query_tokens         24,576",
        "connector.frame_positions      24,576",
        "connector.proj              3,149,824",
    ],
}
"""Recipe to what its table must say; the numbers are those of the published systems."""


@pytest.mark.parametrize("recipe", sorted(COUNTS))
def test_the_published_counts(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    show.run(recipe, [], groups=False)
    said = capsys.readouterr().out
    for words in COUNTS[recipe]:
        assert words in said, said


def test_the_whole_recipe_as_a_run_would_keep_it(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["show", "llava_1_5_7b_lora", "run.seed=3", "--resolved"])
    assert done.exit_code == 0, done.exception
    tree = config.parse(done.stdout, "what was shown")
    assert tree["run"]["seed"] == 3 and "base" not in tree
    assert tree["run"]["max_bad_in_a_row"] == 100, "defaults are written out"
    (tmp_path / "shown.yaml").write_text(done.stdout)
    shown = config.load(Recipe, tmp_path / "shown.yaml")
    assert shown == config.load(Recipe, "llava_1_5_7b_lora", ["run.seed=3"])


def test_the_schema_of_recipes_knows_every_field_and_remark() -> None:
    done = CliRunner().invoke(app, ["show", "--schema"])
    assert done.exit_code == 0, done.exception
    schema = json.loads(done.stdout)
    assert set(schema["properties"]) == {*Recipe.model_fields, "base"}
    run = schema["$defs"]["RunSection"]["properties"]
    assert run["precision"]["enum"] == ["fp32", "bf16"] and "Micro-steps in a step." in run["accumulate"]["description"]
    connectors = schema["$defs"]["BranchSection"]["properties"]["connector"]["anyOf"]
    assert {one["properties"]["name"]["const"] for one in connectors} == set(registry.names("connectors"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("branches.sight.connector.qformer.layer.0.weight", "branches.sight.connector.qformer"),
        ("fusion.prompts.weight", "fusion.prompts"),
        ("llm.model.model.layers.3.self_attn.q_proj.bias", "llm layers: bias"),
        ("llm.model.model.layers.3.self_attn.q_proj.base_layer.weight", "llm layers: matrix"),
        ("llm.model.model.layers.3.self_attn.q_proj.lora_A.default.weight", "llm layers: lora_A"),
        ("llm.model.model.layers.3.input_layernorm.weight", "llm layers: norm.weight"),
        ("llm.model.model.norm.weight", "llm outside layers: norm.weight"),
        ("llm.model.model.embed_tokens.weight", "llm outside layers: embedding"),
    ],
)
def test_what_a_parameter_is_called(name: str, kind: str) -> None:
    assert show.kind_of(name) == kind
