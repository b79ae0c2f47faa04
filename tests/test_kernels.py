"""The number of kernels of a training step, which decides how much of a GPU small steps use, does not grow unseen."""

from benchmarks.kernels import block_kernels, generator_kernels, tokenizer_kernels


def test_a_training_step_has_the_known_number_of_kernels() -> None:
    counted = {row["block"]: row["kernels"] for row in block_kernels()}
    rows = (generator_kernels("0.1B", recompute=False), tokenizer_kernels("nano", recompute=False))
    counted |= {row["model"]: row["kernels"] for row in rows}
    known = {"ModulatedBlock": 134, "SelfBlock": 65, "CrossBlock": 66, "CAR 0.1B": 2708, "CVQ nano": 1001}
    assert counted == known, "where there are fewer, lower these figures; more needs a reason"
