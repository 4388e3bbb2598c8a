"""Files that were right, and what may happen to them: bytes flipped, rows lost."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.values import Rng, pick

JSON_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**70, 0.5, -1.5, 1e300, float("nan"), float("inf")),
    *(
        "",
        "a",
        "1",
        "yes",
        "No",
        "é猫",
        "x" * 500,
        [],
        {},
        [None],
        ["a"],
        [[1]],
        {"a": 1},
    ),
    *({"": None}, [1, "a"], "L1H0", "toy:test:0", "all", "../..", [0], "<image>"),
]


def change_bytes(rng: Rng, content: bytes) -> bytes:
    """Change a file's bytes: flip, cut, repeat, empty, encode otherwise."""
    place = int(rng.integers(len(content) + 1))
    lines = content.splitlines(keepends=True)
    shuffled = random.Random(place).sample(lines, len(lines))
    whole = [b"", b"\n", b" ", b"{}", b"[]", b"null", b"1", b'"a"', b"\x00"]
    part = pick(rng, [b"\xff\xfe", b"\xc3", b"\x00", b'"', b"}", b"]", b",", b"NaN"])
    ways: list[Callable[[], bytes]] = [
        lambda: _flip(rng, content),
        lambda: content[:place],
        lambda: content[place:],
        lambda: content[:place] + content[max(0, place - 40) :],
        lambda: pick(rng, whole),
        lambda: content[:place] + part + content[place:],
        lambda: b"\xef\xbb\xbf" + content,
        lambda: b"".join(shuffled),
        lambda: b"".join([*lines, *lines[-1:]]),
    ]
    return bytes(pick(rng, ways)())


def _flip(rng: Rng, content: bytes) -> bytes:
    flipped = bytearray(content)
    for _ in range(int(rng.integers(1, 5)) if flipped else 0):
        flipped[int(rng.integers(len(flipped)))] ^= 1 << int(rng.integers(8))
    return bytes(flipped)


def change_json(rng: Rng, value: Any, *, depth: int = 0) -> Any:
    """Change a JSON value in one place: another value, a key less, a row twice."""
    if isinstance(value, dict) and value and (depth == 0 or rng.random() < 0.75):
        key = pick(rng, list(value))
        changed = dict(value)
        way = int(rng.integers(6))
        if way == 0:
            del changed[key]
        elif way == 1:
            changed[pick(rng, ["", "é", "extra", key.upper()])] = changed.pop(key)
        elif way == 2:
            changed = dict(reversed(list(changed.items())))
        else:
            changed[key] = change_json(rng, value[key], depth=depth + 1)
        return changed
    if isinstance(value, list) and value and (depth == 0 or rng.random() < 0.75):
        place = int(rng.integers(len(value)))
        changed = list(value)
        way = int(rng.integers(6))
        if way == 0:
            del changed[place]
        elif way == 1:
            changed.append(changed[place])
        elif way == 2:
            changed.reverse()
        else:
            changed[place] = change_json(rng, value[place], depth=depth + 1)
        return changed
    return pick(rng, JSON_VALUES)


def _read_values(path: Path) -> tuple[Any, bool] | None:
    """Read JSON, and whether it is a line an object; None where it is none."""
    content = path.read_bytes()
    if content[:1] not in (b"{", b"[") or path.suffix not in (".json", ".jsonl"):
        return None
    is_lines = content[:1] == b"{" and b"}\n{" in content
    if is_lines:
        content = b"[" + b",".join(content.splitlines()) + b"]"
    try:
        return json.loads(content), is_lines
    except ValueError:  # its bytes were changed before
        return None


def change_file(rng: Rng, path: Path) -> str:
    """Change a file in some way, or not at all; say how."""
    found = _read_values(path) if rng.random() < 0.7 else None
    if found is not None:
        value, is_lines = found
        for _ in range(int(rng.integers(1, 3))):
            value = change_json(rng, value)
        text = json.dumps(value)
        if is_lines and isinstance(value, list):
            text = "".join(json.dumps(line) + "\n" for line in value)
        path.write_text(text)
        return f"{path.name}: JSON changed"
    path.write_bytes(change_bytes(rng, path.read_bytes()))
    return f"{path.name}: bytes changed"
