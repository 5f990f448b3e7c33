"""Pruning language models: parts go, what is left is a model that transformers and the exporters take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_language_model
from test_text_generation import context_of, load

from mlflow_slim.catalog import load_backend, load_technique
from mlflow_slim.errors import ModelError
from mlflow_slim.importance import input_norms
from mlflow_slim.inputs import Inputs
from mlflow_slim.structure import find_parts, keep_heads, keep_width

torch = pytest.importorskip("torch")
FAMILIES = ("llama", "qwen2", "mistral", "gemma")


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp(request.param)
    return load(folder, model=make_language_model(folder / "lm", request.param))


def logits(model: Any) -> Any:
    with torch.inference_mode():
        return model(torch.tensor([[5, 9, 40, 7, 12]])).logits


def test_groups_of_heads_that_add_nothing_can_go(lm: Inputs) -> None:
    """A group whose share of the output is zero changes nothing when it is taken out."""
    import copy

    assert lm.source is not None
    silent = copy.deepcopy(lm.source.model)
    for parts in find_parts(silent):
        width = parts.head_size * parts.shared
        with torch.no_grad():
            silent.get_submodule(parts.mixed).weight[:, width : 2 * width] = 0
    pruned = keep_heads(silent, {parts.layer: [0] for parts in find_parts(silent)})
    torch.testing.assert_close(logits(pruned), logits(silent), atol=1e-4, rtol=1e-4)
    assert (pruned.config.num_attention_heads, pruned.config.num_key_value_heads) == (2, 1)


def test_layers_of_a_decoder_keep_equally_many_groups(lm: Inputs) -> None:
    assert lm.source is not None
    with pytest.raises(ModelError, match=r"different numbers of heads \(1 to 2\).*head_sparsity"):
        keep_heads(lm.source.model, {0: [0], 1: [0, 1]})


def test_a_narrower_decoder_keeps_what_it_keeps(lm: Inputs) -> None:
    assert lm.source is not None
    model = keep_width(lm.source.model, range(0, 64, 2))
    config = model.config
    assert (config.hidden_size, config.head_dim) == (32, 16)
    table = lm.source.model.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, table[:, ::2])
    assert logits(model).shape == logits(lm.source.model).shape
    if config.tie_word_embeddings:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("prune.depth", {"layers": 1}),
        ("prune.width", {"sparsity": 0.5, "head_sparsity": 0.5, "hidden_sparsity": 0.5}),
        ("prune.magnitude", {"sparsity": 0.5}),
        ("prune.wanda", {"sparsity": 0.5}),
    ],
)
def test_every_way_ends_in_a_model_that_all_can_load(
    lm: Inputs, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    import transformers

    assert lm.source is not None
    before = {key: value.clone() for key, value in lm.source.model.state_dict().items()}
    step: Any = load_technique(name)(**options, epochs=1, batch_size=16)
    found = step.apply(lm.source, context_of(lm, tmp_path))
    assert all(torch.equal(value, before[key]) for key, value in lm.source.model.state_dict().items())
    notes = found.lineage[-1].notes
    assert len(notes["losses"]) == 1
    rows = lm.data.validation.inputs[:2]
    backend: Any = load_backend("torch")
    exported = backend.export(found, tmp_path / "torch", rows)
    plain = transformers.AutoModelForCausalLM.from_pretrained(str(exported.directory)).eval()
    torch.testing.assert_close(logits(plain), logits(found.model))
    if name in ("prune.magnitude", "prune.wanda"):
        assert exported.nonzero_parameters < exported.parameters
    else:
        assert exported.parameters < sum(weight.numel() for weight in lm.source.model.parameters())


def test_pruned_decoders_run_on_onnxruntime(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    inputs = load(tmp_path, model=make_language_model(tmp_path / "lm"))
    assert inputs.source is not None
    step: Any = load_technique("prune.width")(sparsity=0.5, head_sparsity=0.5, recovery="none")
    found = step.apply(inputs.source, context_of(inputs, tmp_path))
    rows = inputs.data.validation.inputs[:2]
    outputs = []
    for name in ("torch", "onnxruntime"):
        backend: Any = load_backend(name)
        backend.export(found, tmp_path / name, rows)
        outputs.append(backend.load(tmp_path / name, threads=1).scores(rows))
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-2)


@pytest.mark.parametrize(("share", "kept"), [(0.7, 1), (0.8, 2), (0.01, 1), (2, 2), (2.0, 2)])
def test_a_share_of_the_layers_stays(lm: Inputs, share: Any, kept: int, tmp_path: Path) -> None:
    assert lm.source is not None
    step: Any = load_technique("prune.depth")(layers=share, recovery="none")
    assert len(step.apply(lm.source, context_of(lm, tmp_path)).lineage[-1].notes["layers_kept"]) == kept


@pytest.mark.parametrize("share", [1.5, -0.5])
def test_shares_that_are_none_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share above 0 and below 1"):
        load_technique("prune.depth")(layers=share)


def test_wanda_keeps_what_is_fed_much(tmp_path: Path) -> None:
    """Weights of one size: those go that meet the smallest inputs, the same share of every row."""
    inputs = load(tmp_path, model=make_language_model(tmp_path / "lm"))
    assert inputs.source is not None
    model = inputs.source.model
    name = find_parts(model)[0].down
    with torch.no_grad():
        for parts in find_parts(model):
            for part in (*parts.queries, parts.mixed, *parts.up, parts.down):
                model.get_submodule(part).weight.sign_()
    context = context_of(inputs, tmp_path)
    step: Any = load_technique("prune.wanda")(sparsity=0.25, recovery="none")
    norms = input_norms(inputs.source, [name], context, rows=128)[name]
    weight = step.apply(inputs.source, context).model.get_submodule(name).weight
    gone = (weight == 0).all(dim=0)
    assert int(gone.sum()) == len(norms) // 4
    assert norms[gone].max() <= norms[~gone].min()


def test_wanda_keeps_a_pattern(tmp_path: Path) -> None:
    inputs = load(tmp_path, model=make_language_model(tmp_path / "lm"))
    assert inputs.source is not None
    step: Any = load_technique("prune.wanda")(pattern="2:4", recovery="none")
    found = step.apply(inputs.source, context_of(inputs, tmp_path)).model
    for parts in find_parts(found):
        weight = found.get_submodule(parts.down).weight
        assert ((weight.reshape(len(weight), -1, 4) != 0).sum(dim=-1) == 2).all()


def test_wanda_prunes_encoders_too(tmp_path: Path) -> None:
    from test_backends import tiny_source
    from test_prune_techniques import context as encoder_context

    source = tiny_source("bert")
    step: Any = load_technique("prune.wanda")(sparsity=0.5, recovery="none")
    found = step.apply(source, encoder_context(source, tmp_path))
    assert found.lineage[-1].notes["zero_share"] == pytest.approx(0.5, abs=0.02)


def test_layers_without_linear_modules_are_refused(tmp_path: Path) -> None:
    inputs = load(tmp_path, model=make_language_model(tmp_path / "lm", "gpt2"))
    assert inputs.source is not None
    for name in ("prune.magnitude", "prune.wanda"):
        with pytest.raises(ModelError, match=r"no linear modules.*prune.depth"):
            load_technique(name)().check(inputs.source)  # type: ignore[attr-defined]
    half: Any = load_technique("prune.depth")(layers=1, recovery="none")
    found = half.apply(inputs.source, replace(context_of(inputs, tmp_path)))
    assert found.model.config.num_hidden_layers == 1
    assert logits(found.model).shape == logits(inputs.source.model).shape
