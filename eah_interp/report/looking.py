"""Where a donor and one of its recipients look, before and after the broadcast."""

from eah_interp.attribution import read_patterns, score_broadcast
from eah_interp.interventions import EAH
from eah_interp.lvlm import LVLM
from eah_interp.report.inspection import Broadcast
from eah_interp.report.subject import Subject


def look_at_broadcast(
    model: LVLM, subject: Subject, prompt: str, *, eah: EAH
) -> Broadcast:
    """Score the heads of the first patched layer, and read two of their patterns.

    The two are the donor and, of the recipients, the one with the fewest sinks, read
    from the last position of the prompt.

    Args:
        model: The model.
        subject: The picture.
        prompt: What is asked.
        eah: The settings.

    Returns:
        Scores of every head; no patterns where no head donated.

    Raises:
        EAHError: If the model does not allow it.
    """
    layer = eah.layers[0]
    scores = score_broadcast(model, subject.image, prompt, eah=eah, layers=[layer])
    donor = int(scores.donors[layer][0])
    if donor < 0:
        return Broadcast(scores, None)
    density = scores.density("plain")[0, 0].tolist()
    received = scores.recipients_mask[0, 0].tolist()
    others = [h for h, is_one in enumerate(received) if is_one and h != donor]
    heads = [donor, *sorted(others, key=lambda head: density[head])[:1]]
    patterns = read_patterns(
        model,
        subject.image,
        prompt,
        heads=[(layer, head) for head in heads],
        patch=eah,
    )
    return Broadcast(scores, patterns)
