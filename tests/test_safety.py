"""The gate before any load: one crafted folder for each rule, and ordinary models of several kinds that pass."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlflow_slim.errors import ConfigError, InputNotFound, ModelError, UnsafeModelError
from mlflow_slim.safety import check_model_directory, safe_yaml


@pytest.fixture
def folder(tiny_classifier_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_classifier_dir, tmp_path / "model"))


def change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    "kind", ["Bert", "DistilBert", "Roberta", "DebertaV2", "Electra", "Albert", "XLMRoberta", "ModernBert"]
)
def test_ordinary_saved_models_pass(kind, folder, tmp_path):
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if kind == "DistilBert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=200, pad_token_id=0, label2id={"auto_map": 0, "kernels": 1}, **sizes
    )
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    model.save_pretrained(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / "other" / name)
    change(tmp_path / "other/config.json", _name_or_path="someone/their-model", transformers_version="4.30.0")
    assert check_model_directory(tmp_path / "other")["architectures"] == [f"{kind}ForSequenceClassification"]


def test_sharded_weights_pass_and_a_lost_shard_is_named(folder, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20kB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    check_model_directory(folder)
    shards[0].unlink()
    with pytest.raises(ModelError, match=f"lacks {shards[0].name}"):
        check_model_directory(folder)


def test_what_a_trainer_leaves_beside_the_weights_is_ignored(folder):
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"):
        (folder / name).write_bytes(b"\x80\x04never opened")
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"loss": 0.5}] * 80_000}))
    (folder / "README.md").write_text("# card")
    (folder / "modeling_custom.py").write_text("raise SystemExit")
    check_model_directory(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"auto_map": {"AutoModel": "evil/repo--modeling.Evil"}}, "sets auto_map"),
        ({"trust_remote_code": True}, "sets trust_remote_code"),
        ({"trust_remote_code": "false"}, "sets trust_remote_code"),
        ({"_attn_implementation": "evil/kernel"}, "names kernels"),
        ({"_attn_implementation_internal": "evil/kernel@v1:attention"}, "names kernels"),
        ({"attn_implementation": "evil/kernel"}, "names kernels"),
        ({"_experts_implementation": "evil/kernel"}, "names kernels"),
        ({"attn_implementation": {"text_config": "evil/kernel"}}, "names kernels"),
        ({"text_config": {"deep": [{"_attn_implementation": "evil/kernel"}]}}, "names kernels"),
        ({"text_config": {"auto_map": {"AutoConfig": "c.C"}}}, "sets auto_map"),
        ({"model_file": "evil.py"}, "sets model_file"),
        ({"custom_pipelines": {"text-classification": {"impl": "p.P"}}}, "sets custom_pipelines"),
        ({"use_kernels": True}, "asks for kernels"),
        ({"transformers_weights": "pytorch_model.bin"}, "isn't safetensors"),
        ({"transformers_weights": "../other/model.safetensors"}, "isn't safetensors"),
        ({"backbone": "evil/backbone"}, "names another model"),
        ({"use_pretrained_backbone": True}, "other weights"),
        ({"text_config": "evil/config"}, "names another model"),
        ({"detector": {"model_type": "evilpoint", "_name_or_path": "evil/repo"}}, "which transformers would fetch"),
        ({"architectures": ["EvilForSequenceClassification"]}, "architecture 'EvilForSequenceClassification'"),
        ({"model_type": "evil"}, "model_type='evil'"),
    ],
)
def test_settings_that_run_or_fetch_code_are_refused(folder, settings, message):
    change(folder / "config.json", **settings)
    with pytest.raises(UnsafeModelError, match=message):
        check_model_directory(folder)


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "generation_config.json", "anything.json", "sub/config.json"]
)
def test_every_json_file_is_looked_at(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"auto_map": {"AutoTokenizer": ["t.T", None]}}))
    with pytest.raises(UnsafeModelError, match=f"{name} sets auto_map"):
        check_model_directory(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"_name_or_path": "owner/model"},
        {"_attn_implementation": "sdpa"},
        {"attn_implementation": None},
        {"auto_map": {}},
        {"trust_remote_code": False},
        {"label2id": {"trust_remote_code": 0, "a/b c": 1}},
        {"text_config": {"model_type": "bert", "_name_or_path": "google/bert"}},
    ],
)
def test_harmless_settings_pass(folder, settings):
    change(folder / "config.json", **settings)
    check_model_directory(folder)


def test_code_in_the_folder_is_refused_only_when_something_refers_to_it(folder):
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    check_model_directory(folder)
    change(folder / "tokenizer_config.json", tokenizer_class="modeling_evil.Tokenizer")
    with pytest.raises(UnsafeModelError, match="code that lies in the model's folder"):
        check_model_directory(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.pkl", "model.ckpt"])
def test_weights_that_are_only_a_pickle_are_refused_with_how_to_convert(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    (folder / "training_args.bin").touch()
    with pytest.raises(
        UnsafeModelError, match=rf"only as a pickle \({name}\).*safe_serialization=True.*weights_only=True"
    ):
        check_model_directory(folder)


def test_the_conversion_in_the_message_works(folder, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    again = torch.load(folder / "pytorch_model.bin", weights_only=True)
    save_file(
        {k: v.clone().contiguous() for k, v in again.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    check_model_directory(folder)
    assert all(torch.equal(weights[k], v) for k, v in load_file(folder / "model.safetensors").items())


def test_an_index_that_names_pickled_shards_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "shard.bin")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "shard.bin"}}))
    with pytest.raises(UnsafeModelError, match=r"names the shard 'shard.bin'"):
        check_model_directory(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{broken", "is not JSON"),
        ("config.json", "[1]", "holds a list, not an object"),
        ("config.json", '{"model_type": "bert", "model_type": "evil"}', "says 'model_type' twice"),
        ("config.json", "{}", "has no model_type"),
        ("config.json", '{"model_type": "bert", "architectures": "BertModel"}', "must be a list"),
        ("config.json", '{"a": "' + "x" * 2**20 + '"}', "more than 1"),
        ("config.json", '{"a": ' + "[" * 100_000, "nested too deeply|not JSON"),
        ("tokenizer.json", "null", "holds a NoneType"),
        ("tokenizer.json", '{"version"', "tokenizer.json is not JSON"),
        ("model.safetensors", "version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("model.safetensors", "", "cut short"),
        (
            "model.safetensors",
            "\x10\x00\x00\x00\x00\x00\x00\x00{not a header at",
            "damaged safetensors header|cut short",
        ),
    ],
)
def test_damaged_files_are_named(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(ModelError, match=message):
        check_model_directory(folder)


@pytest.mark.parametrize("cut", [1, 100, 10_000])
def test_truncated_weights_are_noticed(folder, cut):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ModelError, match="cut short or damaged"):
        check_model_directory(folder)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("tokenizer.json", r"has no tokenizer \(looked for tokenizer.json, vocab.txt"),
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no weights"),
    ],
)
def test_missing_files_are_named(folder, gone, message):
    (folder / gone).unlink()
    with pytest.raises(ModelError, match=message):
        check_model_directory(folder)


def test_the_folder_above_checkpoints_points_to_one(folder, tmp_path):
    shutil.move(folder, tmp_path / "run" / "checkpoint-5")
    with pytest.raises(ModelError, match=r"Did you mean .*checkpoint-5\?"):
        check_model_directory(tmp_path / "run")


def test_an_adapter_is_told_to_be_merged(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "evil/base"}))
    with pytest.raises(ModelError, match=r"PEFT adapter.*merge_and_unload"):
        check_model_directory(folder)


def test_links_out_of_the_folder_are_refused_unless_they_stay_in_the_root(folder, tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (folder / "model.safetensors").rename(blobs / "weights")
    (folder / "model.safetensors").symlink_to(blobs / "weights")
    with pytest.raises(UnsafeModelError, match=r"is a link to .*outside"):
        check_model_directory(folder)
    check_model_directory(folder, root=tmp_path)
    (blobs / "weights").unlink()
    with pytest.raises(ModelError, match="link to nothing"):
        check_model_directory(folder, root=tmp_path)


def test_a_missing_folder_and_a_file_are_told_apart(folder, tmp_path):
    with pytest.raises(InputNotFound, match=str(tmp_path / "nowhere")):
        check_model_directory(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="is a file"):
        check_model_directory(folder / "config.json")


def test_plain_yaml_is_read():
    assert safe_yaml("a: {b: [1, 2.5, true, null, 'x & y']}") == {"a": {"b": [1, 2.5, True, None, "x & y"]}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: &x [1]\n", "line 2: &x is an anchor"),
        ("a: 1\n\nb: *x\n", r"line 3: \*x is an anchor or alias"),
        ("a: 1\nb: 2\na: 3\n", "line 3: 'a' is said twice"),
        ("x:\n  - {k: 1, k: 2}\n", "line 2: 'k' is said twice"),
        ("a: [1, 2\nb: 3\n", "line 2 is not YAML"),
        ("a: 1\n\tb: 2\n", "line 2 is not YAML"),
        ("a: !!python/object/apply:os.system [id]\n", "line 1 is not YAML"),
        ("a: 1\n---\nb: 2\n", "line 2 is not YAML"),
        ("a: 1\nb: \x00\n", "line 2 holds a character"),
        ("a: " + "[" * 20_000, "nested too deeply|is not YAML"),
        ("a: " + "x" * (2**20 + 1), "the limit is 1 MiB"),
        ("a: 2026-99-99", "a value that can't be read"),
    ],
)
def test_unsafe_or_broken_yaml_is_refused_with_its_line(text, message):
    with pytest.raises(ConfigError, match=message):
        safe_yaml(text)


def test_an_alias_bomb_is_refused_before_it_is_walked():
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    with pytest.raises(ConfigError, match="line 1: &a0 is an anchor"):
        safe_yaml(bomb)
