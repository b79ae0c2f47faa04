"""The section about a generator's evaluation: samples beside their text or picture, then metrics and protocol."""

from __future__ import annotations

import base64
from pathlib import Path

from markupsafe import Markup

from pipelines.cli.paths import file_below
from pipelines.evaluate.gallery import folder_of
from pipelines.report.common import note_environment
from pipelines.report.evaluations import HINT, mesh_of, no_gallery, protocol, task
from pipelines.report.generator_figures import figures
from pipelines.report.html import Page, caption, card, cards, paragraph, text
from pipelines.report.values import Source, read_json

MAX_PICTURE_BYTES = 2**20


def generator(page: Page, file: Path) -> None:
    """Add the section: samples with prompts and seeds, metrics, protocol."""
    source = read_json(file, page.root)
    note_environment(page, source, "the generator's evaluation")
    metrics = source.at("metrics")
    if metrics.get("family_accuracy") is not None:
        page.tile(
            metrics.number("family_accuracy"),
            "samples of the prompted family",
            Markup("chance {}").format(metrics.number("family_chance")),
        )
    if metrics.get("attribute_agreement") is not None:
        page.tile(
            metrics.number("attribute_agreement"),
            "attributes of the prompt on the mesh",
            Markup("chance {}").format(metrics.number("attribute_chance")),
        )
    entries = [source.at("gallery", k) for k in range(len(source.get("gallery", default=[])))]
    samples = [_sample(page, file, source, entry) for entry in entries if entry.get("object") is not None]
    pictured = [_pictured(page, file, source, entry) for entry in entries if entry.get("image_object") is not None]
    body = [task(source)]
    if samples:
        body += [paragraph(f"The first samples, none left out. {HINT}", "soft"), cards(samples)]
    if pictured:
        words = (
            "The first samples made only from a picture of a held-out object, none left out. Left: the picture. "
            "Right: the sample."
        )
        body += [paragraph(words, "soft"), cards(pictured, "pairs")]
    if not entries:
        body.append(no_gallery())
    body += [figures(source), protocol(source)]
    page.add(page.heading("Evaluation of the generator", file), *body)


def _sample(page: Page, file: Path, source: Source, entry: Source) -> Markup:
    """A sample with its prompt, seed and nearest training object."""
    scored = source.at("objects", entry.get("object"))
    mesh, why_not = mesh_of(file, entry)
    words = str(scored.get("text") or "no prompt")
    seen = {True: "prompt never trained on", False: "prompt seen in training"}.get(scored.get("unseen"), "")
    told = Markup("seed {} · {}").format(scored.number("seed", spec="d"), seen)
    return card(page.view(mesh, words, why_not=why_not), caption(words), told, _nearest(scored), _missed(scored))


def _pictured(page: Page, file: Path, source: Source, entry: Source) -> Markup:
    """A sample beside the picture it was made from."""
    page.credit(entry.value)
    scored = source.at("image_objects", entry.get("image_object"))
    mesh, why_not = mesh_of(file, entry)
    words = f"picture of {entry.get('id')}"
    views = Markup(
        '<div class="pair"><div>{}<div class="which">picture</div></div><div>{}<div '
        'class="which">sample</div></div></div>'
    ).format(_picture(file, entry, words), page.view(mesh, f"Sample from a {words}", why_not=why_not))
    told = Markup("seed {} · {}").format(scored.number("seed", spec="d"), text(entry.get("id")))
    return card(views, caption(scored.get("family") or words), told, _nearest(scored))


def _picture(file: Path, entry: Source, words: str) -> Markup:
    """The entry's PNG inside the page."""
    found = file_below(folder_of(file), str(entry.get("view") or ""))
    data = found.read_bytes() if found and found.stat().st_size < MAX_PICTURE_BYTES else b""
    if not data.startswith(b"\x89PNG\r\n"):
        return Markup('<div class="empty"><span>the picture is missing</span></div>')
    address = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    return Markup('<img class="picture" src="{}" alt="{}">').format(address, words)


def _missed(scored: Source) -> Markup:
    """The prompt's attributes that are not found on the mesh, if it states any."""
    wanted, measured = scored.get("attributes") or {}, scored.get("measured") or {}
    missed = [
        f"{slot} {value}" + (f" (found {measured[slot]})" if slot in measured else "")
        for slot, value in wanted.items()
        if measured.get(slot) != value
    ]
    if not wanted:
        return Markup("")
    return text("all attributes found" if not missed else f"not found: {', '.join(missed)}")


def _nearest(scored: Source) -> Markup:
    if not scored.get("nearest"):
        return Markup("")
    name = text(scored.get("nearest_family") or scored.get("nearest"))
    return Markup("nearest in training: {}, Chamfer {}").format(name, scored.number("chamfer"))
