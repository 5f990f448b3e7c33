from __future__ import annotations

from typing import Any

import pytest

from mlflow_slim.depth import choose_layers, find_layers, keep_layers
from mlflow_slim.errors import ModelError
from mlflow_slim.losses import attention_loss, distillation_loss, hidden_loss

torch = pytest.importorskip("torch")


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("multi_label", [False, True])
def test_distillation_loss_is_zero_only_when_both_agree(multi_label: bool) -> None:
    logits, other = random(5, 4), random(5, 4, seed=1)
    assert distillation_loss(logits, logits, temperature=3.0, multi_label=multi_label) == pytest.approx(0, abs=1e-6)
    assert distillation_loss(logits, other, temperature=3.0, multi_label=multi_label) > 0.01


def test_distillation_loss_of_two_classes_equals_the_formula_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    p = 1 / (1 + torch.exp(torch.tensor(-1.0)))  # teacher softened by 2
    by_hand = 4 * (p * torch.log(p / 0.5) + (1 - p) * torch.log((1 - p) / 0.5))
    assert distillation_loss(student, teacher, temperature=2.0) == pytest.approx(float(by_hand), rel=1e-5)


def test_gradients_keep_their_size_when_the_temperature_changes() -> None:
    teacher, sizes = random(8, 5, seed=1), []
    for temperature in (10.0, 20.0):
        student = random(8, 5).requires_grad_()
        distillation_loss(student, teacher, temperature=temperature).backward()
        sizes.append(float(student.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def test_a_shift_of_all_logits_changes_nothing_for_single_labels() -> None:
    student, teacher = random(3, 4), random(3, 4, seed=1)
    shifted = distillation_loss(student + 7, teacher, temperature=2.0)
    assert shifted == pytest.approx(float(distillation_loss(student, teacher, temperature=2.0)), rel=1e-4)


def test_temperature_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature must be over 0, got 0"):
        distillation_loss(random(1, 2), random(1, 2), temperature=0)


def test_hidden_and_attention_losses_look_at_real_tokens_only() -> None:
    mask = torch.tensor([[1, 1, 0]])
    ours, theirs = random(1, 3, 4), random(1, 3, 4)
    theirs[0, 2] += 100
    assert hidden_loss(ours, theirs, mask) == 0
    attention = torch.softmax(random(1, 2, 3, 3), dim=-1)
    other = attention.clone()
    other[0, :, 2] = torch.tensor([1.0, 0.0, 0.0])
    assert attention_loss(attention, other, mask) == pytest.approx(0, abs=1e-6)


def test_attention_loss_averages_heads_when_their_numbers_differ() -> None:
    ours = torch.softmax(random(1, 2, 3, 3), dim=-1)
    mask = torch.ones(1, 3)
    same = ours.mean(dim=1, keepdim=True).expand(1, 4, 3, 3)
    assert attention_loss(ours, same, mask) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["spread", "alternate", "first", "last"])
@pytest.mark.parametrize("total", [1, 2, 5, 12])
def test_chosen_layers_are_as_many_as_asked_distinct_and_ascending(name: Any, total: int) -> None:
    for kept in range(1, total + 1):
        chosen = choose_layers(total, kept, name)
        assert len(chosen) == kept
        assert chosen == sorted(set(chosen))
        assert chosen[0] >= 0 and chosen[-1] < total


def test_asking_for_more_layers_than_there_are_is_refused() -> None:
    with pytest.raises(ModelError, match="layers is 7, but the model has 6"):
        choose_layers(6, 7)


def tiny(kind: str, layers: int = 4) -> Any:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": layers}
    if kind == "distilbert":
        sizes = {"dim": 32, "hidden_dim": 64, "n_heads": 2, "n_layers": layers}
    if kind == "modernbert":
        sizes |= {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, vocab_size=50, **sizes)).eval()


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "electra", "deberta-v2", "modernbert"])
def test_a_model_without_some_layers_runs_saves_and_loads(kind: str, tmp_path: Any) -> None:
    from transformers import AutoModelForSequenceClassification

    model = tiny(kind)
    student = keep_layers(model, [0, 3])
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.inference_mode():
        answer = student(input_ids=ids).logits
    student.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert len(find_layers(again)[1]) == 2
    assert len(find_layers(model)[1]) == 4
    with torch.inference_mode():
        assert torch.allclose(again(input_ids=ids).logits, answer, atol=1e-6)


def test_keeping_all_layers_changes_no_answer() -> None:
    model = tiny("bert")
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.inference_mode():
        assert torch.equal(keep_layers(model, range(4))(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_model_that_shares_its_layer_is_refused_with_a_way_out() -> None:
    with pytest.raises(ModelError, match=r"steps\.distill\.student"):
        keep_layers(tiny("albert"), [0])


@pytest.mark.parametrize("kept", [[], [9], [-1]])
def test_layers_that_do_not_exist_are_refused(kept: list[int]) -> None:
    with pytest.raises(ModelError, match="layers are 0 to 3"):
        keep_layers(tiny("bert"), kept)
