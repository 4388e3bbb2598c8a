"""Draw the README's picture: a toy scene, the donor's sinks, its objects' logits.

    python docs/images/readme_picture.py

The scene is the first of the test split whose caption names an object that is not
there; nothing else chooses it. `readme.json` has the numbers that are drawn.
"""

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

import eah_interp as eah
from eah_interp.benchmarks import run_toy_benchmark
from eah_interp.report import inspect_image
from eah_interp.report.inspection import list_donor_sinks
from eah_interp.report.reading import PATCHED, PLAIN
from eah_interp.toy import draw_scenes
from eah_interp.viz import draw_sinks

HERE = Path(__file__).parent
HEIGHT, GAP, HEAD = 560, 40, 64
N_SCENES = 100


def find_scene(model: eah.LVLM) -> tuple[Any, list[str]]:
    """Find the first test scene with a hallucination, and what is hallucinated."""
    scenes = draw_scenes(range(N_SCENES))
    captions = run_toy_benchmark(model, scenes, progress=False).captions
    for scene, row in zip(scenes, captions.itertuples(), strict=True):
        absent = sorted(set(row.mentions) - set(row.truth))
        if absent:
            return scene, absent
    raise SystemExit(f"no caption of the first {N_SCENES} scenes names what is absent")


def render(figure: Any) -> Image.Image:
    """Render a matplotlib figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=300)
    return Image.open(buffer).convert("RGB")


def join(panels: dict[str, Image.Image], *, notes: list[str]) -> Image.Image:
    """Put panels of one height side by side, each below its title; notes below all."""
    scaled = [
        panel.resize((round(panel.width * HEIGHT / panel.height), HEIGHT))
        for panel in panels.values()
    ]
    width = sum(panel.width for panel in scaled) + GAP * (len(scaled) + 1)
    height = HEAD + HEIGHT + HEAD * len(notes)
    page = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(32)
    left = GAP
    for title, panel in zip(panels, scaled, strict=True):
        pen.text((left, HEAD // 3), title, fill="black", font=font)
        page.paste(panel, (left, HEAD))
        left += panel.width + GAP
    for place, note in enumerate(notes):
        top = HEAD + HEIGHT + HEAD * place + HEAD // 3
        pen.text((GAP, top), note, fill="black", font=font)
    return page


def main() -> None:
    """Draw the picture, and write what it shows."""
    model = eah.load()
    scene, absent = find_scene(model)
    found = inspect_image(
        model, scene.pil(), objects=list(scene.objects), absent=absent
    )
    assert found.caption is not None
    assert found.explained
    patch = found.asked[-1].reading.patches[PATCHED]
    (sinks,) = list_donor_sinks(patch, found.sink_map)
    captions = {name: found.caption.answers[name] for name in (PLAIN, PATCHED)}
    # What was read for a question, up to the same words for a caption.
    text = found.asked[0].reading.text
    text = text.replace(found.asked[0].question.prompt, found.caption.prompt)
    heads = eah.attribute_heads(
        model,
        scene.pil(),
        f"{text} {found.caption.answer_start}",
        objects=[*scene.objects, *absent],
        patch=eah.EAH(),
    )
    page = join(
        {
            "The image": scene.pil(),
            f"Vision sinks of the donor, L{sinks.layer}H{sinks.head}": draw_sinks(
                scene.pil(), found.span, columns=sinks.columns
            ),
            "Sink density by layer and head": render(
                found.sink_map.plot(donors=found.donors)
            ),
            f'Object logits after "{found.caption.answer_start}"': render(
                heads.plot_logits(present=scene.objects)
            ),
        },
        notes=[f"{name}: {caption}" for name, caption in captions.items()],
    )
    page.save(HERE / "readme.png", optimize=True)
    facts = {
        "scene": scene.seed,
        "present": list(scene.objects),
        "absent": absent,
        "captions": captions,
        "read after": found.caption.answer_start,
        "logits": heads.list_logits(present=scene.objects).to_dict("records"),
    }
    (HERE / "readme.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
