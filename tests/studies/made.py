"""Studies made by hand: answers that no model gave, in a folder like any other."""

import dataclasses

import pandas as pd

from eah_interp.interventions import EAH
from eah_interp.studies.items import Item
from eah_interp.studies.manifest import FORMAT, Manifest, _hash_items
from eah_interp.studies.store import COLUMNS, Store
from eah_interp.studies.study import StudyRun


def question(name, *, label, cluster, kind="random", prompt="Is there a cup?"):
    return Item(
        id=name,
        task="yes_no",
        image=f"toy:test:{cluster}",
        prompt=prompt,
        label=label,
        kind=kind,
        cluster=str(cluster),
    )


def caption(name, *, truth, cluster, image=None, prompt="Describe the image."):
    return Item(
        id=name,
        task="caption",
        image=image or f"toy:test:{cluster}",
        prompt=prompt,
        truth=tuple(truth),
        cluster=str(cluster),
    )


def make_run(folder, items, answers, *, patches=None, sinks=None, **fixed):
    """Write a study: `answers[condition]` lists an answer for each item.

    An answer that is an Exception is a failure; None leaves the row out.
    """
    patches = patches or {}
    conditions = [
        {"name": name} | ({"eah": patches[name].to_dict()} if name in patches else {})
        for name in answers
    ]
    known = {
        "format": FORMAT,
        "images": (),
        "items": _hash_items(items),
        "n_items": len(items),
        "conditions": tuple(conditions),
        "decoding": {"yes_no": {"max_new_tokens": 8}},
        "batch_size": len(items),
        "model": "Made (by hand)",
        "weights": "none",
        "dtype": "float32",
        "attention": "eager",
        "device": "cpu",
        "versions": {"torch": "0"},
    } | fixed
    names = [field.name for field in dataclasses.fields(Manifest)]
    manifest = Manifest(**{name: known.get(name, 0) for name in names})
    folder.mkdir(exist_ok=True)
    store = Store(folder)
    store.prepare(list(answers))
    manifest.save(folder, items)
    for name, said in answers.items():
        rows = []
        for item, answer in zip(items, said, strict=True):
            failed = isinstance(answer, Exception)
            row = dict.fromkeys(COLUMNS) | {"item": item.id, "condition": name}
            row |= {"donors": "", "error": str(answer) if failed else None}
            if not failed and answer is not None:
                row |= {"answer": answer, "n_tokens": len(answer.split())}
            if answer is not None:
                rows.append(row)
        store.write(name, 0, pd.DataFrame(rows, columns=list(COLUMNS)))
    if sinks is not None:
        store.write_sinks(0, sinks)
    return StudyRun.load(folder)


def patch(**changes):
    return EAH(**changes)
