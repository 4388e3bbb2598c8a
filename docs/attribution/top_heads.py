"""Do the heads that direct attribution names matter? Ablate them, and see.

For each scene one mention of an object is read: of an object in the picture, in the
true caption; and of an object that is not, in the model's own caption. The `K` heads
with the largest direct effect are ablated (their output set to zero everywhere), and so
are as many random heads, of any layer and of the same layers. Differences are paired.

    python docs/attribution/top_heads.py          # writes docs/attribution.json
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import eah_interp as eah
from eah_interp.attribution import Case, attribute_heads, pose
from eah_interp.errors import InputError
from eah_interp.lvlm.anatomy import attention_operation, walk_sites
from eah_interp.statistics import Effect, estimate_mean
from eah_interp.toy import draw_scenes
from eah_interp.toy.language import caption_of, mentions_in, objects_in

K = 3
DOCS = Path(__file__).parents[1]
TOYS = ("seed-0", "seed-1", "seed-2")
BATCH = 50


def ablate(model: eah.LVLM, case: Case, heads: Tensor) -> Tensor:
    """Read every target with its row's heads, `[row layer head]`, set to zero."""
    with torch.no_grad(), model.trace(**case.inputs, use_cache=False):
        for site in walk_sites(model.anatomy):
            operation = attention_operation(model, site)
            z, *rest = operation.output
            off = heads[:, site.layer, None, :, None]
            operation.output = (z.masked_fill(off, 0.0), *rest)
        logits = model.output.logits.save()
    return case.readout.values(logits)


def draw_heads(like: Tensor, *, seed: int, same_layers: bool) -> Tensor:
    """Draw as many random heads for each row, none of them in `like`."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(like.shape, generator=generator).masked_fill(like, -1)
    if not same_layers:
        chosen = noise.flatten(1).topk(K).indices
        drawn = torch.zeros_like(like).flatten(1).scatter(1, chosen, value=True)
        return drawn.view(like.shape)
    ranks = noise.argsort(-1, descending=True).argsort(-1)
    return ranks < like.sum(-1, keepdim=True)


def measure(
    model: eah.LVLM, images: list[Any], words: list[str], captions: list[str]
) -> dict[str, Tensor]:
    """Return how far each target falls under each ablation, `[scene]`."""
    drops: dict[str, list[Tensor]] = {}
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        case = pose(
            model,
            images[part],
            objects=sorted(set(words[part])),
            caption=captions[part],
        )
        asked = [
            max(
                index
                for index, target in enumerate(case.readout.targets)
                if target.row == row and target.label == word
            )
            for row, word in enumerate(words[part])
        ]
        case = Case(case.encoding, case.prompt_mask, case.readout.pick(asked))
        effects = attribute_heads(model, case).plain
        flat = effects.heads.flatten(1)
        top = torch.zeros_like(flat, dtype=torch.bool)
        top = top.scatter(1, flat.topk(K).indices, value=True).view(effects.heads.shape)
        for name, heads in {
            "top": top,
            "random": draw_heads(top, seed=start, same_layers=False),
            "random, same layers": draw_heads(top, seed=start, same_layers=True),
        }.items():
            drop = effects.values - ablate(model, case, heads)
            drops.setdefault(name, []).append(drop)
    return {name: torch.cat(parts) for name, parts in drops.items()}


def choose(model: eah.LVLM, n_scenes: int) -> dict[str, tuple[Any, Any, Any]]:
    """Choose images, objects and captions: of what is there, and of what is not."""
    scenes = draw_scenes(range(n_scenes), split="test")
    present = (
        [scene.image for scene in scenes],
        [objects_in(caption_of(scene.objects))[-1] for scene in scenes],
        [caption_of(scene.objects) for scene in scenes],
    )
    told: list[str] = []
    for start in range(0, n_scenes, BATCH):
        told += model.describe([s.image for s in scenes[start : start + BATCH]])
    wrong = [
        (scene.image, absent[-1], text)
        for scene, text in zip(scenes, told, strict=True)
        if (absent := [m for m in mentions_in(text) if m not in scene.objects])
    ]
    images, words, captions = zip(*wrong, strict=True)
    return {
        "present": present,
        "hallucinated": (list(images), list(words), list(captions)),
    }


def plain(effect: Effect) -> dict[str, float | None]:
    """Round an effect for the record; null for an interval that is undetermined."""
    ends = {"low": effect.low, "high": effect.high}
    return {
        "estimate": round(effect.estimate, 3),
        **{
            key: None if math.isnan(end) else round(end, 3) for key, end in ends.items()
        },
        "n": effect.n,
    }


def run(model: eah.LVLM, n_scenes: int) -> dict[str, Any]:
    """Measure one model: drops in logits, and top minus random, with intervals."""
    record: dict[str, Any] = {}
    for kind, (images, words, captions) in choose(model, n_scenes).items():
        drops = measure(model, images, words, captions)
        record[kind] = {
            name: plain(estimate_mean(d.tolist())) for name, d in drops.items()
        }
        for name in ("random", "random, same layers"):
            paired = (drops["top"] - drops[name]).tolist()
            record[kind][f"top - {name}"] = plain(estimate_mean(paired))
    return record


def main() -> None:
    """Measure the three toys and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--out", type=Path, default=DOCS / "attribution.json")
    options = parser.parse_args()
    if options.scenes < 2:
        raise InputError("an interval needs 2 scenes or more")
    record = {
        "command": "python docs/attribution/top_heads.py",
        "k": K,
        "scenes": options.scenes,
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
        "toys": {name: run(eah.load(f"toy:{name}"), options.scenes) for name in TOYS},
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record["toys"], indent=1))


if __name__ == "__main__":
    main()
