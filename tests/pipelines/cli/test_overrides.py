"""`--set`: fields of a preset are parsed by type, checked like a preset, and refused by name."""

import pytest

from g3pt.config import car_preset, cvq_preset
from pipelines.cli.errors import UsageError
from pipelines.cli.overrides import overridden


def test_values_are_read_by_their_fields_type_and_go_where_they_belong() -> None:
    model, train = overridden(
        "head=bits, drop_phrases=0.5,text_revision=none,checkpoint_layers=true,learning_rate=1e-4", *car_preset("nano")
    )
    assert (model.head, model.drop_phrases, model.text_revision, model.checkpoint_layers, train.learning_rate) == (
        "bits",
        0.5,
        None,
        True,
        1e-4,
    )
    (model,) = overridden("scales=1:8:64,quantizer=lfq,lfq_bits=10", cvq_preset("nano")[0])
    assert (model.scales, model.num_codes) == ((1, 8, 64), 1024)
    assert overridden(None, *car_preset("nano")) == car_preset("nano")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("drop_phrase=0.5", "--set drop_phrase: no such field; did you mean drop_phrases"),
        ("zzz=1", "the fields are "),
        ("head", "is not name=value"),
        ("head=bit", "'bit' is not one of digits, joint, bits"),
        ("depth=two", "'two' is not of type int"),
        ("checkpoint_layers=yes", "'yes' is not one of true, false"),
        ("steps=5", "it has a flag of its own, --steps"),
        ("drop_text=2", "drop_text must be a share"),
        ("drop_both=0.9", "drop_both, drop_text, drop_image must add up to at most 1, got 1.15"),
        ("width=97", "not a multiple of num_heads"),
    ],
)
def test_what_does_not_fit_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        overridden(text, *car_preset("nano"))
    assert message in str(raised.value) and "\n" not in str(raised.value)
