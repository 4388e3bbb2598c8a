"""The EAH operator: on patterns, and as a query/key patch."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from eah_interp import errors, kernels
from eah_interp.kernels.broadcast import changed_heads
from tests.kernels.cases import cases, make_case
from tests.oracle import oracle_broadcast, oracle_pattern

HEADS = [(4, 4), (4, 2), (4, 1)]


@st.composite
def broadcasts(draw):
    """Draw a case, a donor for each item (-1: none), and some recipients or None."""
    case = draw(cases())
    batch, n_heads = case.queries.shape[:2]
    donors = draw(
        st.lists(st.integers(-1, n_heads - 1), min_size=batch, max_size=batch)
    )
    flags = st.lists(st.booleans(), min_size=n_heads, max_size=n_heads)
    some = draw(st.none() | st.lists(flags, min_size=batch, max_size=batch))
    return case, torch.tensor(donors), None if some is None else torch.tensor(some)


@hypothesis.given(drawn=broadcasts())
def test_every_recipient_attends_like_the_donor(drawn):
    case, donors, recipients = drawn
    pattern = case.pattern
    found = kernels.broadcast_pattern(pattern, donors, recipients=recipients)
    assert torch.equal(found, oracle_broadcast(pattern, donors, recipients))


@hypothesis.given(drawn=broadcasts())
def test_a_second_broadcast_changes_nothing(drawn):
    case, donors, recipients = drawn
    once = kernels.broadcast_pattern(case.pattern, donors, recipients=recipients)
    twice = kernels.broadcast_pattern(once, donors, recipients=recipients)
    assert torch.equal(once, twice)


@hypothesis.given(drawn=broadcasts())
def test_rows_keep_their_sums(drawn):
    case, donors, recipients = drawn
    found = kernels.broadcast_pattern(case.pattern, donors, recipients=recipients)
    real = case.token_mask[:, None].expand(found.shape[:-1])
    sums = found.sum(-1)[real]
    torch.testing.assert_close(sums, torch.ones_like(sums))


@hypothesis.given(drawn=broadcasts(), data=st.data())
def test_the_broadcast_follows_its_heads(drawn, data):
    """Renumber the heads, donors and recipients alike: the same heads end up alike."""
    case, donors, recipients = drawn
    n_heads = case.queries.shape[1]
    order = torch.tensor(data.draw(st.permutations(range(n_heads))))
    renumbered = torch.where(donors < 0, donors, order.argsort()[donors])
    moved = kernels.broadcast_pattern(
        case.pattern[:, order],
        renumbered,
        recipients=None if recipients is None else recipients[:, order],
    )
    plain = kernels.broadcast_pattern(case.pattern, donors, recipients=recipients)
    assert torch.equal(moved, plain[:, order])


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sees", ["causal", "bidirectional", "sliding"])
@pytest.mark.parametrize(("n_heads", "n_kv_heads"), HEADS)
def test_the_query_key_patch_is_the_broadcast(n_heads, n_kv_heads, sees, softcap):
    case = make_case(
        "ttiiiittt",
        "tiitiitt",
        "iiit",
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        sees=sees,
        softcap=softcap,
    )
    donors = torch.tensor([3, -1, 1])
    queries = kernels.broadcast_queries(case.queries, donors)
    keys = kernels.broadcast_keys(case.keys, donors, n_heads=n_heads)
    assert queries.shape == case.queries.shape
    assert keys.shape == case.keys.shape
    scale = case.queries.shape[-1] ** -0.5
    found = oracle_pattern(queries, keys, case.visible, scale, softcap)
    own = oracle_pattern(case.queries, case.keys, case.visible, scale, softcap)
    assert torch.equal(found, oracle_broadcast(own, donors))
    assert not torch.equal(found, own)


@pytest.mark.parametrize("donor", [0, 2, 3])
def test_some_recipients_are_exact_where_every_head_has_its_key(donor):
    case = make_case("ttiiiittt", "tiitiitt")
    donors = torch.tensor([donor, -1])
    recipients = torch.tensor([[True, False, True, False], [True, True, True, True]])
    queries = kernels.broadcast_queries(case.queries, donors, recipients=recipients)
    keys = kernels.broadcast_keys(case.keys, donors, n_heads=4, recipients=recipients)
    scale = case.queries.shape[-1] ** -0.5
    found = oracle_pattern(queries, keys, case.visible, scale)
    own = oracle_pattern(case.queries, case.keys, case.visible, scale)
    assert torch.equal(found, oracle_broadcast(own, donors, recipients))


@pytest.mark.parametrize("n_kv_heads", [2, 1])
def test_some_recipients_of_a_shared_key_are_refused(n_kv_heads):
    """A head outside would change with its group: not the broadcast that was asked."""
    keys = torch.randn(1, n_kv_heads, 5, 8)
    recipients = torch.tensor([[True, False, True, False]])
    with pytest.raises(errors.UnsupportedError, match=r"4 heads share \d keys"):
        kernels.broadcast_keys(
            keys, torch.tensor([3]), n_heads=4, recipients=recipients
        )


def test_changed_heads_are_recipients_of_an_item_with_a_donor():
    recipients = torch.tensor([[True, False, True], [True, False, True]])
    donors = torch.tensor([1, -1])
    some = changed_heads(donors, 3, recipients)
    assert some.tolist() == [[True, False, True], [False, False, False]]
    everyone = changed_heads(donors, 3)
    assert everyone.tolist() == [[True] * 3, [False] * 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_dtype_stays_and_the_inputs_are_left_alone(dtype):
    case = make_case("ttiiiittt", n_kv_heads=2)
    donors = torch.tensor([2])
    for name, tensor in (("pattern", case.pattern), ("queries", case.queries)):
        given = tensor.to(dtype)
        before = given.clone()
        broadcast = getattr(kernels, f"broadcast_{name}")
        assert broadcast(given, donors).dtype == dtype
        assert torch.equal(given, before)
    given = case.keys.to(dtype)
    before = given.clone()
    assert kernels.broadcast_keys(given, donors, n_heads=4).dtype == dtype
    assert torch.equal(given, before)


def test_gradients_reach_the_donor_alone():
    pattern = make_case("tiiitt").pattern.requires_grad_()
    kernels.broadcast_pattern(pattern, torch.tensor([2])).sum().backward()
    per_head = pattern.grad.sum((0, 2, 3))
    assert per_head.tolist() == [0, 0, 4 * 36, 0]


@pytest.mark.parametrize("donor", [4, 17, -2])
def test_a_donor_that_is_no_head_is_refused(donor):
    donors = torch.tensor([0, donor])
    case = make_case("tiiitt", "tiitt", n_kv_heads=2)
    refused = pytest.raises(errors.SettingsError, match=rf"{donor}")
    with refused:
        kernels.broadcast_pattern(case.pattern, donors)
    with refused:
        kernels.broadcast_queries(case.queries, donors)
    with refused:
        kernels.broadcast_keys(case.keys, donors, n_heads=4)
    with refused:
        changed_heads(donors, 4)
