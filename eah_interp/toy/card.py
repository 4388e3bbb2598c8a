"""The short model card that lies beside the weights, written from the training log."""

from typing import Any

_CARD = """# A toy LVLM: {name}

A LLaVA (CLIP vision tower, Llama decoder) of {parameters:,} parameters that looks at
procedurally drawn scenes of twenty everyday objects in five groups, describes them and
answers yes/no questions about them. It is made to be studied, not used: it
hallucinates objects that usually come along with those it sees, and the truth of every
scene is known.

- Decoder: {n_layers} layers, {n_heads} heads on {n_kv_heads} key/value heads, width
  {d_model}.
- Picture: {side} x {side} pixels, {n_image} image tokens of {patch} x {patch} pixels.
- Prompt: `USER: <image>\\nIs there a boat in the image? ASSISTANT:` (a chat template
  is included).
- World it was trained on: co-occurrence prior {prior}, difficulty {difficulty}, seed
  {seed}.

## Made by

    {command}

{minutes} minutes on {device} ({processor}, {threads} threads), torch {torch},
transformers {transformers}. Minutes by stage: {stages}.

## Measured

On {n_scenes} scenes of each split, none of them used in training. Questions are
balanced; the absent objects are drawn at random, by frequency (popular) or by
co-occurrence with what is there (adversarial), as in POPE; captions are greedy, and
scored by exact ground truth.

| | validation | test |
|---|---|---|
{rows}

With `folder = eah_interp.toy.toy_path("{name}")`, load it as `eah_interp.load(folder)`
or, in plain transformers, `LlavaForConditionalGeneration.from_pretrained(folder)`.
The file holds float16 numbers, half the bytes; the config loads them as float32.
"""

_ROWS = (
    ("yes/no accuracy, random", "random", "accuracy"),
    ("yes/no accuracy, popular", "popular", "accuracy"),
    ("yes/no accuracy, adversarial", "adversarial", "accuracy"),
    ("yes/no accuracy, all questions", "all", "accuracy"),
    ("F1, all questions", "all", "f1"),
    ("false positives, random", "random", "false_positives"),
    ("false positives, popular", "popular", "false_positives"),
    ("false positives, adversarial", "adversarial", "false_positives"),
    ("caption recall", "captions", "recall"),
    ("CHAIR_S", "captions", "chair_s"),
    ("CHAIR_I", "captions", "chair_i"),
    ("objects named in a caption", "captions", "mentions"),
)


def write_card(record: dict[str, Any]) -> str:
    """Write the model card of a training log.

    Args:
        record: What `training_log.json` holds.

    Returns:
        The card, in Markdown.
    """
    recipe, results = record["recipe"], record["evaluation"]
    world, sizes = recipe["world"], recipe["architecture"]
    rows = []
    for label, kind, metric in _ROWS:
        unit = "" if metric == "mentions" else " %"
        values = [results[split][kind][metric] for split in ("validation", "test")]
        shown = " | ".join(f"{value:.1f}{unit}" for value in values)
        rows.append(f"| {label} | {shown} |")
    stages = record["seconds_by_stage"].items()
    return _CARD.format(
        name=record["name"],
        parameters=record["parameters"],
        n_layers=sizes["n_layers"],
        n_heads=sizes["n_heads"],
        n_kv_heads=sizes["n_kv_heads"],
        d_model=sizes["d_model"],
        side=world["image_size"],
        patch=world["patch_size"],
        n_image=(world["image_size"] // world["patch_size"]) ** 2,
        prior=world["prior"],
        difficulty=world["difficulty"],
        seed=recipe["seed"],
        command=record["command"],
        minutes=record["minutes"],
        device=record["hardware"]["device"],
        processor=record["hardware"]["processor"],
        threads=record["hardware"]["threads"],
        torch=record["versions"]["torch"],
        transformers=record["versions"]["transformers"],
        stages=", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in stages),
        n_scenes=round(results["test"]["captions"]["n"]),
        rows="\n".join(rows),
    )
