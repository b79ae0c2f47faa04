from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from g3pt.config import CARConfig
from g3pt.models.correction import change_digits, corrected
from g3pt.models.quantizer import FSQ, LFQ
from g3pt.models.tokenizer import CVQ
from tests.g3pt.tiny import random_batch, tiny_g3pt, tiny_tokenizer

WEIGHTS = Path(__file__).parents[3] / "weights" / "g3pt-nano-cvq"


def draws(tokenizer, size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes_BS = torch.randint(tokenizer.config.num_codes, (size, tokenizer.config.num_tokens), generator=generator)
    shape = (*codes_BS.shape, tokenizer.cqt.quantizer.num_digits)
    return codes_BS, torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


def aligned(tokenizer, codes_BS):
    return torch.cat(
        [
            tokenizer.align(tokenizer.canvas(codes_BS[:, : sum(tokenizer.config.scales[:k])]), k)
            for k in range(1, tokenizer.config.num_scales)
        ],
        dim=1,
    )


@pytest.mark.parametrize("quantizer", [FSQ((8, 8, 5, 5, 5)), FSQ((3, 4)), LFQ((2,) * 13)])
def test_a_cell_s_centre_is_in_the_cell(quantizer):
    codes = torch.arange(torch.tensor(quantizer.levels).prod())[None]
    centres = quantizer.centres(codes)
    assert torch.equal(quantizer(centres)[1], codes) and centres.abs().max() < 2.5, (
        "at the end of a tanh nothing would move it"
    )


def test_the_rate_decides_how_many_digits_change_and_none_to_itself():
    levels, generator = torch.tensor([8, 5, 2]), torch.Generator().manual_seed(0)
    digits = torch.randint(2, (3, 4000, 3), generator=generator)
    drawn = [torch.rand(digits.shape, generator=generator) for _ in range(2)]
    changed = change_digits(digits, levels, drawn[0], torch.tensor([0.0, 0.3, 1.0]), drawn[1])
    moved = changed != digits
    assert [round(float(row.float().mean()), 1) for row in moved] == [0, 0.3, 1]
    assert ((changed >= 0) & (changed < levels)).all()
    assert [len(changed[2, :, c].unique()) for c in range(3)] == [8, 5, 2], "every other value is taken"


@pytest.mark.parametrize("changes", [{}, {"quantizer": "lfq"}, {"resampling": "pooled"}, {"resampling": "slices"}])
def test_without_changes_inputs_and_targets_are_the_stored_codes(changes):
    tokenizer = tiny_tokenizer(**changes)
    codes_BS, chance, choice = draws(tokenizer)
    seen, targets = corrected(tokenizer, codes_BS, torch.zeros(4), chance, choice, 4)
    assert torch.equal(targets, codes_BS)
    torch.testing.assert_close(seen, aligned(tokenizer, codes_BS))


def test_only_what_is_finer_than_a_change_is_recomputed():
    tokenizer = tiny_tokenizer()
    surface_BP6 = torch.randn(6, 64, 6, generator=torch.Generator().manual_seed(1))
    codes_BS = tokenizer.encode(surface_BP6)  # codes of latents: random ones describe no shape that could be corrected
    _, chance, choice = draws(tokenizer, 6)
    chance[:, [0, *range(4, 18)]] = 1.0  # only scale 2 (tokens 1 to 3) can change
    rate_B = torch.tensor([0.0, 1, 1, 1, 1, 1])
    seen, targets = corrected(tokenizer, codes_BS, rate_B, chance, choice, 4)
    assert torch.equal(targets[:, :4], codes_BS[:, :4]) and torch.equal(targets[0], codes_BS[0])
    assert (targets[1:, 4:] != codes_BS[1:, 4:]).any(dim=1).sum() >= 3
    torch.testing.assert_close(seen[:, :3], aligned(tokenizer, codes_BS)[:, :3])
    digits = tokenizer.cqt.quantizer.codes_to_digits(codes_BS[1:, 1:4])
    changed = tokenizer.cqt.quantizer.digits_to_codes(
        (digits + 1 + (choice[1:, 1:4] * (tokenizer.cqt.quantizer.levels_C - 1)).long())
        % tokenizer.cqt.quantizer.levels_C
    )
    coarse = torch.cat([codes_BS[1:, :1], changed], dim=1)
    torch.testing.assert_close(
        seen[1:],
        aligned(tokenizer, torch.cat([coarse, targets[1:, 4:]], dim=1)),
        msg="what is seen is what the targets belong to",
    )


def test_the_new_targets_bring_a_trained_tokenizer_back_to_the_object():
    tokenizer = CVQ.from_pretrained(WEIGHTS).eval()
    direction = F.normalize(torch.randn(6, 1024, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    radius_B13 = torch.rand(6, 1, 3, generator=torch.Generator().manual_seed(1)) * 0.7 + 0.2
    with torch.no_grad():
        codes_BS = tokenizer.encode(
            torch.cat([direction * radius_B13, F.normalize(direction / radius_B13, dim=-1)], dim=-1)
        )  # ellipsoids
        _, chance, choice = draws(tokenizer, 6)
        chance[:, sum(tokenizer.config.scales[:-1]) :] = 1.0
        _, targets = corrected(tokenizer, codes_BS, torch.full((6,), 0.1), chance, choice, 4)
        quantizer = tokenizer.cqt.quantizer

        def error(codes_BS):
            digits = change_digits(
                quantizer.codes_to_digits(codes_BS), quantizer.levels_C, chance, torch.full((6,), 0.1), choice
            )
            return (tokenizer.canvas(quantizer.digits_to_codes(digits)) - tokenizer.canvas(whole_BS)).square().mean()

        whole_BS = codes_BS
        assert error(targets) < 0.85 * error(codes_BS)


def test_training_reads_changed_inputs_and_evaluation_does_not():
    model = tiny_g3pt(bit_flip=0.9, drop_text=0, drop_image=0, image_text_weight=0)
    batch = random_batch(model)
    torch.manual_seed(1)
    noisy = model.train()(batch)[0]
    clean = model.eval()(batch)[0]
    assert noisy.item() != clean.item() and clean.item() == tiny_g3pt().eval()(batch)[0].item()
    model.train().active_scales = 2
    assert set(model(batch)[1]) == {"ce", "ce_scale_1", "ce_scale_2"}


def test_noise_and_flips_exclude_each_other():
    with pytest.raises(ValueError, match="code_noise 0.1 and bit_flip 0.2"):
        CARConfig(depth=1, width=8, num_heads=1, code_noise=0.1, bit_flip=0.2)
