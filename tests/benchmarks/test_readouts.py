"""Claims about readouts: F1 by every rule and token, on text and on logits."""

import json
import random

import pandas as pd
import pytest
import torch

import eah_interp as eah
from eah_interp.benchmarks import audit_readouts, read_next_tokens
from eah_interp.benchmarks.pope import read_first_word, says_yes
from eah_interp.benchmarks.readouts import (
    NextTokens,
    ReadoutAudit,
    find_yes_no_tokens,
)
from eah_interp.errors import InputError, NumericalError
from eah_interp.toy import draw_scenes

SAID = ["Yes", "No", "NO", "no!", "There is no cup.", "A dog.", "**Yes**", "Yes. No."]


def f1_slowly(truth, given):
    hit = sum(t and g is True for t, g in zip(truth, given, strict=True))
    yes = sum(g is True for g in given)
    return 200 * hit / (yes + sum(truth)) if yes + sum(truth) else float("nan")


class Words:
    """A tokenizer of a few tokens."""

    def __init__(self, *tokens):
        self.tokens = tokens

    def get_vocab(self):
        return {token: number for number, token in enumerate(self.tokens)}


LLAMA = Words(
    *("a", "\u2581Yes", "Yes", "\u2581No", "No", "\u2581yes", "no", "Nope", "NO"),
)
BYTES = Words("\u0120yes", "\u0120no", "\u0120Yes", "\u0120No", "Yes", "noon", "yes\n")


@pytest.mark.parametrize("seed", range(5))
def test_readings_of_text_are_the_slow_ones(seed):
    rng = random.Random(seed)
    texts = rng.choices(SAID, k=40)
    truth = [rng.random() < 0.5 for _ in texts]
    audit = audit_readouts(pd.DataFrame({"present": truth, "answer": texts}))
    first = {"Yes": True, "No": False, "NO": False, "no!": False, "**Yes**": True}
    first |= {"Yes. No.": True}
    strict = first | {"There is no cup.": False}
    expected = {
        "pope": [says_yes(text) for text in texts],
        "opera": [says_yes(text, rule="opera") for text in texts],
        "first word": [first.get(text) for text in texts],
        "strict": [strict.get(text) for text in texts],
    }
    for name, given in expected.items():
        assert audit.find(name).score.f1 == pytest.approx(f1_slowly(truth, given)), name
    assert audit.find("first word").score.n_neither == sum(
        first.get(text) is None for text in texts
    )
    values = [f1_slowly(truth, given) for given in expected.values()]
    assert audit.spread == pytest.approx(max(values) - min(values))


def test_a_curly_apostrophe_is_one():
    assert read_first_word("Isn\u2019t there") is False


def test_tokens_of_yes_and_no_are_found_whatever_their_case_and_space():
    assert [str(token) for token in find_yes_no_tokens(LLAMA)] == [
        *("' Yes'", "'Yes'", "' No'", "'No'", "' yes'", "'no'", "'NO'"),
    ]
    found = find_yes_no_tokens(BYTES)
    assert [(token.id, token.is_yes) for token in found] == [
        *((0, True), (1, False), (2, True), (3, False), (4, True)),
    ]
    with pytest.raises(InputError, match="no token that says no: expected one"):
        find_yes_no_tokens(Words("Yes", "none"))


@pytest.mark.parametrize("seed", range(5))
def test_readings_of_logits_are_the_slow_ones(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(30, 9, generator=generator)
    truth = (torch.rand(30, generator=generator) < 0.5).tolist()
    found = NextTokens.of(logits, LLAMA)
    audit = audit_readouts(pd.DataFrame({"present": truth}), next_tokens=found)
    names = [one.name for one in audit.readouts]
    assert names == [
        *("' Yes' and ' No'", "'Yes' and 'No'", "all 7 tokens", "likeliest token"),
    ]
    shares = logits.softmax(-1)
    yes, no = shares[:, [1, 2, 5]].sum(1), shares[:, [3, 4, 6, 8]].sum(1)
    pairs = {names[0]: (1, 3), names[1]: (2, 4)}
    for name, (a, b) in pairs.items():
        given = (logits[:, a] > logits[:, b]).tolist()
        assert audit.find(name).score.f1 == pytest.approx(f1_slowly(truth, given))
        mass = float((shares[:, a] + shares[:, b]).mean())
        assert audit.find(name).mass == pytest.approx(mass)
    whole = audit.find("all 7 tokens")
    assert whole.score.f1 == pytest.approx(f1_slowly(truth, (yes > no).tolist()))
    assert whole.mass == pytest.approx(float((yes + no).mean()))
    said = {1: True, 2: True, 5: True, 3: False, 4: False, 6: False, 8: False}
    given = [said.get(token) for token in logits.argmax(1).tolist()]
    likeliest = audit.find("likeliest token")
    assert likeliest.score.f1 == pytest.approx(f1_slowly(truth, given))
    assert likeliest.score.n_neither == given.count(None)


def test_two_tokens_and_all_of_them_can_turn_an_answer():
    """The unspaced pair says no; what the other spellings hold says yes."""
    logits = torch.full((1, 9), -9.0)
    logits[0, [1, 2, 4]] = torch.tensor([2.0, 0.0, 0.5])
    audit = audit_readouts(
        pd.DataFrame({"present": [True]}), next_tokens=NextTokens.of(logits, LLAMA)
    )
    read = {one.name: one.score.tp for one in audit.readouts}
    assert read["'Yes' and 'No'"] == 0
    assert read["all 7 tokens"] == 1
    shown = str(audit.tables[0])
    assert "' yes' (5)" in shown
    assert "100.00 points" in shown


@pytest.mark.parametrize("patch", [None, eah.EAH(layers=(1,))])
def test_a_model_s_next_tokens_are_its_logits(patch, tmp_path):
    """Batched reading gives each question's own pass, patched where asked."""
    from eah_interp.interventions import intervene

    model, scenes = eah.load(), draw_scenes(range(3))
    images = [scene.pil() for scene in scenes]
    prompts = ["Is there a cup in the image?", "Is there a tree?", "Is there a bed?"]
    found = read_next_tokens(model, images, prompts, patch=patch, batch_size=2)
    for row, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        with torch.no_grad(), model.trace(image, prompt):
            if patch is not None:
                intervene(model, patch)
            logits = model.output.logits[0, -1].float().save()
        shares = logits.softmax(-1)[[token.id for token in found.tokens]]
        torch.testing.assert_close(found.probabilities[row], shares)
        assert int(found.likeliest[row]) == int(logits.argmax())
    table = found.frame()
    assert len(table) == 3 * len(found.tokens)
    for (row, number), own in table.groupby(["question", "id"]):
        place = [token.id for token in found.tokens].index(number)
        assert own.probability.item() == found.probabilities[row, place].item()
        assert own.likeliest.item() == (found.likeliest[row].item() == number)
    assert ("EAH(steps=" in repr(found)) == (patch is not None)
    assert found.model in repr(found)
    assert NextTokens.load(found.save(tmp_path)) == found
    truth = pd.DataFrame({"present": [True, False, False]})
    audit = audit_readouts(truth, next_tokens=found)
    assert ReadoutAudit.load(audit.save(tmp_path / "audit")) == audit


def test_released_answers_have_no_spread(reference_data):
    """LLaVA's are Yes and No alone: every reading gives the same F1."""
    folder = reference_data / "released/pope_answers"
    rows = [
        json.loads(a) | {"present": json.loads(q)["label"] == "yes"}
        for a, q in zip(
            (folder / "llava-1.5-7b_greedy_popular.jsonl").read_text().splitlines(),
            (folder / "questions_popular.jsonl").read_text().splitlines(),
            strict=True,
        )
    ]
    table = pd.DataFrame(rows).rename(columns={"text": "answer"})
    audit = audit_readouts(table)
    assert {round(one.score.f1, 2) for one in audit.readouts} == {84.47}


def test_what_cannot_be_read_is_refused(as_users_run_it):
    table = pd.DataFrame({"present": [True]})
    with pytest.raises(InputError, match="got neither"):
        audit_readouts(table)
    with pytest.raises(InputError, match=r"need the columns \['present'\]"):
        audit_readouts(table.rename(columns={"present": "label"}))
    with pytest.raises(InputError, match="hold texts in the column 'answer', got 3"):
        audit_readouts(table.assign(answer=3))
    found = NextTokens.of(torch.zeros(2, 9), LLAMA)
    with pytest.raises(InputError, match="logits of 1 questions, got those of 2"):
        audit_readouts(table, next_tokens=found)
    with pytest.raises(InputError, match="is the tokenizer this model's"):
        NextTokens.of(torch.zeros(2, 5), LLAMA)
    with pytest.raises(NumericalError, match="NaN"):
        NextTokens.of(torch.full((2, 9), torch.nan), LLAMA)
    with pytest.raises(InputError, match="as many prompts, got 1 and 2"):
        read_next_tokens(eah.load(), ["a.png"], ["a", "b"])
