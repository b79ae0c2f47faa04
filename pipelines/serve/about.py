"""What a model's page says about it: size, training objects and their licences, words, limits, credits."""

from __future__ import annotations

from collections import Counter
from typing import Any

from g3pt.training.exports import find_export, read_export_config
from pipelines.train import trained_on

MAX_CREDITS = 20_000  # characters
LIMITS = (
    "It makes closed surfaces without colour or texture.",
    "It has seen the objects counted here and no others: what is unlike them comes out as something like them.",
)


def about(path: str, model: Any) -> dict[str, Any]:
    """The facts of an export, for JSON. Objects are those of the generator and of its tokenizer, each once."""
    values, export = read_export_config(path), find_export(path)
    names = ("trained_on", "tokenizer_trained_on")
    rows = {row["id"]: row for name in names if name in values for row in trained_on.read(export, name)}
    credits = export / "CREDITS.md"
    return {
        "name": export.parent.name if export.name == "export" else export.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "scales": list(model.scales),
        "reads_images": model.image is not None,
        "objects": len(rows),
        "licenses": dict(Counter(row["license"] for row in rows.values())),
        "words": sorted(values.get("small_encoders", {}).get("text", {}).get("words", [])),
        "limits": list(LIMITS),
        "credits": credits.read_text(encoding="utf-8")[:MAX_CREDITS] if credits.is_file() else "",
    }
