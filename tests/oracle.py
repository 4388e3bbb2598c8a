"""Slow, explicit twins of the kernels, written from docs/method.md alone.

Every sum is a Python loop over Python floats (float64). Conventions: rows (x) and
columns (y) are absolute positions in the encoding, which may be padded on the left; a
donor of -1 means that the batch item keeps its own pattern. Visibility is a bool tensor
[batch 1 query key], or [batch head query key] where heads see different keys.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OracleScores:
    """What the oracle finds for each column: score, unit, and if it is judged."""

    scores: Tensor  # [batch head key] float64
    unit: Tensor  # [batch head key] float64
    columns: Tensor  # [batch key] bool

    def sinks(self, beta: float) -> Tensor:
        """Return [batch head key] bool: strictly above `beta` times the unit."""
        return (self.scores > beta * self.unit) & self.columns[:, None]

    def density(self, beta: float) -> Tensor:
        """Return [batch head] float64: the share of judged columns that are sinks.

        0 where no column is judged ("official" with a single image token).
        """
        counts = self.sinks(beta).sum(-1).double()
        return counts / self.columns.sum(-1)[:, None].clamp(min=1)


def causal(token_mask: Tensor) -> Tensor:
    """Return visibility [batch 1 query key]: a real key, not after the query."""
    batch, length = token_mask.shape
    visible = torch.zeros(batch, 1, length, length, dtype=torch.bool)
    for x in range(length):
        visible[:, 0, x, : x + 1] = token_mask[:, : x + 1]
    return visible


def oracle_scores(pattern, image_mask, token_mask, definition, visible=None):
    """Score every judged column of every head as `definition` says, by loops."""
    batch, n_heads, _, length = pattern.shape
    visible = causal(token_mask) if visible is None else visible
    scores = torch.zeros(batch, n_heads, length, dtype=torch.float64)
    unit = torch.ones(batch, n_heads, length, dtype=torch.float64)
    columns = torch.zeros(batch, length, dtype=torch.bool)
    for b in range(batch):
        image = [y for y in range(length) if image_mask[b, y]]
        real = [x for x in range(length) if token_mask[b, x]]
        judged = image[1:] if definition == "official" else image
        columns[b, judged] = True
        for h in range(n_heads):
            sees = visible[b, h % visible.shape[1]].tolist()
            keys_of = [sum(row) for row in sees]
            for y in judged:
                if definition == "paper":
                    rows = [x for x in image if x != y]
                    divisor = len(image)
                elif definition == "official":
                    rows = [x for x in real if x != y]
                    first = real[0]
                    span_start = image[0] - first + 1
                    span_end = image[-1] - first + 1
                    divisor = span_end - ((y - first) - span_start)
                else:
                    assert definition == "visible"
                    rows = [x for x in real if x != y and sees[x][y]]
                    divisor = len(rows)
                    if rows:
                        unit[b, h, y] = sum(1 / keys_of[x] for x in rows) / divisor
                column = pattern[b, h, :, y].double().tolist()
                if divisor > 0:
                    scores[b, h, y] = sum(column[x] for x in rows) / divisor
    return OracleScores(scores, unit, columns)


def oracle_donors(density, rule="densest", gamma=None, *, official=False):
    """Choose each item's donor head by scanning the heads in order; -1 for none.

    `official=True` is the released loop's outcome: head 0 as the densest head patches
    nothing, and only batch item 0 is looked at. "sparsest" always has a donor.
    """
    donors = []
    for b, row in enumerate(density.tolist()):
        best = 0
        for h in range(1, len(row)):
            if rule == "densest" and row[h] > row[best]:
                best = h
            if rule == "sparsest" and row[h] < row[best]:
                best = h
        largest = max(row)
        nothing = rule == "densest" and largest <= 0
        nothing |= rule == "densest" and gamma is not None and largest < gamma
        if official and (best == 0 or b > 0):
            nothing = True
        donors.append(-1 if nothing else best)
    return torch.tensor(donors)


def oracle_broadcast(pattern, donors, recipients=None):
    """Copy each item's donor pattern to its recipients, head by head."""
    patched = pattern.clone()
    for b, donor in enumerate(donors.tolist()):
        for h in range(pattern.shape[1]):
            if donor >= 0 and (recipients is None or recipients[b, h]):
                patched[b, h] = pattern[b, donor]
    return patched


def oracle_mean_pattern(pattern):
    """Give every head the mean pattern of all heads."""
    patched = torch.zeros_like(pattern)
    n_heads = pattern.shape[1]
    for h in range(n_heads):
        for other in range(n_heads):
            patched[:, h] += pattern[:, other] / n_heads
    return patched


def oracle_uniform_pattern(pattern, image_mask, visible):
    """Spread each row's sum evenly over the image columns it sees, if it sees any."""
    patched = pattern.clone()
    batch, n_heads, n_queries, length = pattern.shape
    for b in range(batch):
        for x in range(n_queries):
            seen = [
                y for y in range(length) if image_mask[b, y] and visible[b, 0, x, y]
            ]
            for h in range(n_heads):
                mass = sum(pattern[b, h, x].double().tolist())
                if seen:
                    patched[b, h, x] = 0
                for y in seen:
                    patched[b, h, x, y] = mass / len(seen)
    return patched


def oracle_shuffled_pattern(pattern, donors, image_mask, visible, priority):
    """Give every head the donor's pattern with its visible image columns permuted.

    Row by row: with v the visible image columns by position and s the same columns by
    ascending priority, new[v[i]] = old[s[i]], so no row sees more than it did.
    """
    patched = oracle_broadcast(pattern, donors)
    batch, n_heads, n_queries, length = pattern.shape
    for b in range(batch):
        donor = int(donors[b])
        if donor < 0:
            continue
        rank = priority[b].tolist()
        for x in range(n_queries):
            v = [y for y in range(length) if image_mask[b, y] and visible[b, 0, x, y]]
            s = sorted(v, key=lambda y: rank[y])
            for h in range(n_heads):
                for to, source in zip(v, s, strict=True):
                    patched[b, h, x, to] = pattern[b, donor, x, source]
    return patched


def oracle_recipients(pattern, controlled, recipients):
    """Keep the own pattern of every head that is not a recipient."""
    if recipients is None:
        return controlled
    kept = pattern.clone()
    for b in range(pattern.shape[0]):
        for h in range(pattern.shape[1]):
            if recipients[b, h]:
                kept[b, h] = controlled[b, h]
    return kept


def oracle_pattern(queries, keys, visible, scale, softcap=None, bias=None, sink=None):
    """Attend by loops over heads: float64 softmax of scaled, capped dot products.

    `bias` [batch 1 query key] is added to them. A row that sees nothing attends to
    nothing (zeros). `sink` [batch head query] is one more logit of each row, whose
    weight goes nowhere.
    """
    batch, n_heads, n_queries, _ = queries.shape
    groups = n_heads // keys.shape[1]
    length = keys.shape[2]
    pattern = torch.zeros(batch, n_heads, n_queries, length, dtype=torch.float64)
    for b in range(batch):
        for h in range(n_heads):
            q, k = queries[b, h].double(), keys[b, h // groups].double()
            logits = (q @ k.T) * scale
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            if bias is not None:
                logits = logits + bias[b, 0].double()
            for x in range(n_queries):
                seen = visible[b, h % visible.shape[1], x]
                if not seen.any():
                    continue
                weights = torch.softmax(logits[x, seen], -1)
                if sink is not None:
                    lost = torch.sigmoid(sink[b, h, x] - logits[x, seen].logsumexp(-1))
                    weights = weights * (1 - lost)
                pattern[b, h, x, seen] = weights
    return pattern


@dataclass(frozen=True)
class ReleasedFile:
    """What the released file does with one layer's pattern."""

    counts: list[int]  # columns that pass, per head
    donor: int  # -1: nothing is patched
    patched: Tensor


def released_file(pattern):
    """Restate the released file's behaviour on a LLaVA-1.5 pattern, literals and all.

    From the audit in docs/method.md: batch item 0; columns 36 to 610; the diagonal is
    removed; the column sums are divided by 611, 610, ... 37; above 0.0008 counts; the
    first largest of 32 heads wins; head 0 as the winner patches nothing.
    """
    n_queries, length = pattern.shape[-2:]
    counts = []
    for h in range(32):
        # A cached step has one row, and the diagonal of one row is all of it.
        own = torch.eye(n_queries, length if n_queries > 1 else 1, dtype=torch.bool)
        received = pattern[0, h].double().masked_fill(own, 0)[:, 36:611].sum(0)
        counts.append(int((received / (611 - torch.arange(575)) > 0.0008).sum()))
    most, winner = 0, 0
    for h, count in enumerate(counts):
        if count > most:
            most, winner = count, h
    patched = pattern.clone()
    if winner > 0:
        for h in range(32):
            patched[0, h] = pattern[0, winner]
    return ReleasedFile(counts, winner if winner > 0 else -1, patched)
