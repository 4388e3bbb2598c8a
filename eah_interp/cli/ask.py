"""One question, answered without EAH and with it."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from eah_interp.cli.app import Bar
from eah_interp.cli.tables import tabulate_next
from eah_interp.errors import InputError
from eah_interp.interventions import EAH
from eah_interp.lvlm import LVLM
from eah_interp.lvlm.images import read_image
from eah_interp.report.inspection import list_donors
from eah_interp.report.reading import (
    PATCHED,
    PLAIN,
    compare_with,
    describe,
    likeliest,
    list_model,
    list_versions,
    read_next_token,
    yes_no_tokens,
)
from eah_interp.report.tables import say_donors, say_settings


@dataclasses.dataclass(frozen=True)
class Answer:
    """A question's answers, and the logits of what comes first in them.

    Attributes:
        model: Which model.
        eah: The settings.
        image: The picture's file.
        prompt: The question.
        answers: In words, `"plain"` and `"EAH"`.
        next_tokens: The likeliest first tokens and their logits.
        yes_minus_no: Logit of "Yes" minus that of "No"; empty without such tokens.
        is_yes_no: Whether one of the two is what would come first.
        donors: Who donated in each layer.
    """

    model: Mapping[str, Any]
    eah: EAH
    image: str
    prompt: str
    answers: Mapping[str, str]
    next_tokens: Mapping[str, list[dict[str, Any]]]
    yes_minus_no: Mapping[str, float]
    is_yes_no: bool
    donors: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Write it as JSON can hold it."""
        return {
            "command": "ask",
            "versions": list_versions(),
            "model": dict(self.model),
            "settings": self.eah.to_dict(),
            "image": self.image,
            "prompt": self.prompt,
            "answers": dict(self.answers),
            "next_tokens": dict(self.next_tokens),
            "yes_minus_no": dict(self.yes_minus_no),
            "donors": self.donors,
        }

    def show(self) -> Iterator[RenderableType]:
        """Lay it out, side by side."""
        yield Text(say_settings(self.eah), style="dim")
        yield Text(f"Donor: {say_donors(self.donors)}\n", style="dim")
        table = Table(expand=True)
        table.add_column("without EAH", ratio=1)
        table.add_column("with EAH", ratio=1)
        table.add_row(Text(self.answers[PLAIN]), Text(self.answers[PATCHED]))
        yield table
        yield Text("\nLikeliest first token of the answer", style="bold")
        yield tabulate_next(self.next_tokens)
        if self.yes_minus_no and self.is_yes_no:
            plain, patched = (self.yes_minus_no[name] for name in (PLAIN, PATCHED))
            yield Text(
                f"\nYes minus No, in logits: {plain:+.2f} without EAH, {patched:+.2f} "
                f"with it ({patched - plain:+.2f})"
            )


def answer(
    model: LVLM,
    image: Path,
    *,
    prompt: str,
    eah: EAH,
    name: str | None = None,
    max_new_tokens: int = 40,
    bar: Bar | None = None,
) -> Answer:
    """Ask a model about a picture, without EAH and with it.

    Args:
        model: The model.
        image: The picture's file.
        prompt: The question.
        eah: The settings.
        name: What the model was loaded as.
        max_new_tokens: Longest answer.
        bar: Told of each forward pass.

    Returns:
        Both answers.

    Raises:
        InputError: If the picture cannot be read, or nothing is asked.
    """
    if not prompt.strip():
        msg = "the question is empty: ask something, such as 'Is there a boat?'"
        raise InputError(msg)
    bar = Bar() if bar is None else bar
    picture = read_image(image)
    bar.expect(4)
    conditions = compare_with(eah, controls=False)
    reading = read_next_token(
        model, picture, prompt=prompt, conditions=conditions, bar=bar
    )
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "bar": bar}
    tokens = yes_no_tokens(model, reading)
    margins: dict[str, float] = {}
    first = {int(values.argmax()) for values in reading.logits.values()}
    if tokens is not None:
        yes, no = tokens
        margins = {n: float(v[yes] - v[no]) for n, v in reading.logits.items()}
    return Answer(
        model=list_model(model, name),
        eah=eah,
        image=str(image),
        prompt=prompt,
        answers={
            PLAIN: describe(model, picture, prompt=prompt, eah=None, **options),
            PATCHED: describe(model, picture, prompt=prompt, eah=eah, **options),
        },
        next_tokens={n: likeliest(model, v) for n, v in reading.logits.items()},
        yes_minus_no=margins,
        is_yes_no=bool(first & set(tokens or ())),
        donors=list_donors(reading.patches[PATCHED]),
    )
