"""torch.compile per block: one graph each, the same numbers. Inductor is left out: it would compile for minutes."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from g3pt.models import attention, transformer
from g3pt.models.attention import Causal, block_mask, causal
from g3pt.training.compiled import compile_blocks, compiles, prepare
from tests.g3pt.tiny import given_conditions, random_batch, tiny_g3pt, tiny_tokenizer

BACKEND = "eager"  # captures the forward pass and runs it as it is


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def loss_and_gradients(model: nn.Module, batch: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(0)
    model.zero_grad()
    loss, _ = model(batch, 0)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def surface_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(3, 40, 3, generator=generator) * 2 - 1
    return {
        "surface_BP6": torch.randn(3, 64, 6, generator=generator),
        "points_BQ3": points,
        "occupancy_BQ": (points.norm(dim=-1) < 0.7).float(),
        "near_BQ": (torch.arange(40) < 20).expand(3, -1),
    }


@pytest.mark.parametrize(("kind", "recompute"), [("generator", False), ("generator", True), ("tokenizer", False)])
def test_each_block_is_one_graph_with_the_same_loss_and_gradients(kind: str, recompute: bool) -> None:
    model = (tiny_g3pt if kind == "generator" else tiny_tokenizer)(checkpoint_layers=recompute)
    batch = random_batch(model) if kind == "generator" else surface_batch()
    model.train()
    wanted, gradients = loss_and_gradients(model, batch)
    names = list(model.state_dict())

    assert compile_blocks(model, BACKEND, whole=True) == (3 if kind == "generator" else 7)  # one is the text encoder's
    loss, got = loss_and_gradients(model, batch)

    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1, "nothing was captured"
    assert not torch._dynamo.utils.counters["graph_break"]
    assert loss == pytest.approx(wanted, rel=1e-6) and got.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6)
    assert list(model.state_dict()) == names, "checkpoints and exports have the same names"


def test_a_block_with_the_attention_of_a_gpu_is_one_graph_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block mask is made outside, once for all layers. FlexAttention has no gradients on a CPU."""
    model = tiny_g3pt().eval()
    batch = random_batch(model)
    with torch.no_grad():
        inputs = (model.aligned_inputs(batch["codes_BS"]), *given_conditions(model, batch))
        wanted = model.car(*inputs)
        monkeypatch.setattr(
            transformer, "causal", lambda levels, device: Causal(levels, block_mask(levels[:-1], device))
        )
        compile_blocks(model, BACKEND, whole=True)
        got = model.car(*inputs)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "the layers share one"
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_gpu_compiles_and_a_cpu_does_not_unless_asked() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [compiles(choice, gpu) for choice in ("auto", "on", "off")] == [True, True, False]
    assert [compiles(choice, cpu) for choice in ("auto", "on", "off")] == [False, True, False]
    model = tiny_g3pt()
    assert prepare("auto", model, cpu) == 0 and all(block._compiled_call_impl is None for block in model.car.blocks)
    assert prepare("on", model, cpu) == 3 and all(block._compiled_call_impl for block in model.car.blocks)
    assert all(m._compiled_call_impl is None for m in model.tokenizer.modules()), "the frozen tokenizer is not trained"


def test_only_a_gpu_has_a_mask_and_only_for_the_levels_before_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "block_mask", lambda levels, device: levels)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert causal((16, 1, 4, 16), cpu) == ((16, 1, 4, 16), None)
    assert causal((16, 1, 4, 16), gpu) == ((16, 1, 4, 16), (16, 1, 4))
    assert causal((1, 4), gpu).mask is None, "two calls without a mask are all of it"
