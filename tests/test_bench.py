"""The speed benchmark times what it says it times, and does its sums right."""

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import eah_interp as eah
from eah_interp.kernels import score_columns

BENCH = Path(__file__).parents[1] / "docs" / "bench"


@pytest.fixture(scope="module", autouse=True)
def bench_on_the_path():
    """The benchmark is a script: its files find each other beside it."""
    sys.path.insert(0, str(BENCH))
    yield
    sys.path.remove(str(BENCH))


@pytest.fixture(scope="module")
def model(bench_on_the_path):
    from shaped_models import SHAPES, build_model

    return build_model(SHAPES["tiny"], n_layers=3, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def inputs(model):
    from shaped_models import build_inputs

    return build_inputs(model, batch=1, n_tokens=624)


@pytest.fixture(scope="module")
def logits(model, inputs):
    """One prefill of each variant, all around the same weights."""
    from prefill_variants import VARIANTS, make_run

    return {name: make_run(name, model, inputs)() for name in VARIANTS}


def test_the_picture_takes_positions_35_to_610(inputs):
    ids = inputs["input_ids"][0]
    positions = (ids == ids.max()).nonzero().flatten().tolist()
    assert positions == list(range(35, 611))
    assert len(ids) == 624


def test_traces_compute_what_the_plain_model_computes(logits):
    assert torch.equal(logits["trace"], logits["plain"])
    assert torch.equal(logits["wrapped"], logits["plain"])


def test_the_released_style_is_official_eah(logits, model, inputs):
    """Two implementations, one after method.md's audit and one ours, one result."""
    from shaped_models import twin

    lvlm = eah.wrap(twin(model))
    with torch.no_grad(), lvlm.trace(**inputs, use_cache=False) as tracer:
        patch = eah.intervene(lvlm, eah.EAH.official(layers=(1,)))
        tracer.stop()
    assert patch.donors.item() > 0  # neither head 0 nor none
    assert len(patch.density.unique()) > 10
    size = float(logits["plain"].abs().max())
    moved = float((logits["official"] - logits["plain"]).abs().max())
    assert moved > 0.1 * size
    torch.testing.assert_close(
        logits["released"], logits["official"], rtol=1e-4, atol=1e-4 * size
    )


def test_the_released_style_patches_the_first_item_alone(model):
    from prefill_variants import make_run
    from shaped_models import build_inputs

    two = build_inputs(model, batch=2, n_tokens=624)
    plain = make_run("plain", model, two)()
    for name in ("released", "official"):
        moved = (make_run(name, model, two)() - plain).abs().amax((1, 2))
        assert moved[0] > 0.1
        assert moved[1] < 1e-3


def test_twins_share_weights_and_nothing_else(model, inputs):
    from prefill_variants import make_run
    from shaped_models import twin

    plain = twin(model)
    for name in ("eah_1", "released"):
        make_run(name, model, inputs)()
    ours, theirs = dict(plain.named_parameters()), dict(model.named_parameters())
    assert all(ours[name] is theirs[name] for name in theirs)
    for untouched in (plain, model):
        assert not [m for m in untouched.modules() if "forward" in vars(m)]
        assert untouched.config.text_config._attn_implementation == "sdpa"


def test_a_shallow_twin_is_the_first_layers(model, inputs):
    from shaped_models import twin

    shallow = twin(model, n_layers=2)
    with torch.no_grad():
        found = shallow(**inputs, use_cache=False, output_hidden_states=True)
        whole = model(**inputs, use_cache=False, output_hidden_states=True)
    assert len(found.hidden_states) == 3
    assert torch.equal(found.hidden_states[1], whole.hidden_states[1])
    assert len(model.get_decoder().layers) == 3


def test_ratios_are_extrapolated_as_stated():
    """A patch of 0.5 s in layers of 1 s: 1 + 0.5 / 32 for each patched layer."""
    from bench_report import summarize

    slow = [1.0, 2.0, 1.0]  # a moment in which everything takes twice as long
    times = {
        "plain": [6.0 * s for s in slow],
        "plain@shallow": [4.0 * s for s in slow],
        "trace": [6.6 * s for s in slow],
        "trace@shallow": [4.6 * s for s in slow],
        "eah_1": [7.1 * s for s in slow],
        "eah_2": [7.6 * s for s in slow],
        "released": [14.6 * s for s in slow],
        "released@shallow": [10.6 * s for s in slow],
    }
    rows = summarize(times, n_layers=4, n_shallow=2)
    assert list(rows) == ["plain", "trace", "eah_1", "eah_2", "released"]
    for name in ("eah_1", "eah_2"):
        assert rows[name].extra == pytest.approx(0.5)
        assert rows[name].extra_range == pytest.approx((0.5, 1.0))
        assert rows[name].per_patched_deep == pytest.approx(1 + 0.5 / 32)
    assert rows["eah_1"].to_trace == pytest.approx(7.1 / 6.6)
    assert rows["eah_1"].to_trace_deep == pytest.approx((7.1 + 28) / (6.6 + 28))
    assert rows["released"].to_trace_deep == pytest.approx((14.6 + 56) / (6.6 + 28))
    assert rows["released"].per_patched_deep is None
    assert rows["plain"].extra is None


def test_a_model_of_32_layers_is_not_extrapolated():
    from bench_report import summarize

    times = {"plain": [10.0], "trace": [10.5], "eah_2": [11.5]}
    rows = summarize(times, n_layers=32, n_shallow=2)
    assert rows["eah_2"].to_trace_deep == pytest.approx(11.5 / 10.5)
    assert rows["eah_2"].per_patched_deep == pytest.approx(1 + 0.5 / 10.5)


def test_a_slope_that_cannot_be_is_not_extrapolated_from():
    from bench_report import summarize

    times = {"plain": [6.0], "trace": [6.5], "trace@shallow": [6.5], "eah_1": [7.0]}
    for measured in (times, {k: v for k, v in times.items() if "@" not in k}):
        rows = summarize(measured, n_layers=4, n_shallow=2)
        assert rows["eah_1"].extra == pytest.approx(0.5)
        assert rows["eah_1"].per_patched_deep is None
        assert rows["eah_1"].to_trace_deep is None


def test_a_peak_is_what_a_run_holds_at_once():
    from peak_memory import measure_peak

    size = 64 * 2**20

    def run():
        held = torch.ones(size // 4)
        return (held + held).sum()

    assert 1.9 * size < measure_peak(run, device="cpu") < 2.3 * size


def test_the_smoke_run_writes_its_json_and_its_table(tmp_path):
    from prefill import app

    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- bench:cpu -->\nold\n<!-- /bench:cpu -->\nafter\n")
    out = page.with_suffix(".json")
    out.write_text('{"cuda": "kept"}')
    options = ["--smoke", "--variant", "eah_1", "--variant", "fixed", "--out", str(out)]
    done = CliRunner().invoke(app, options, catch_exceptions=False)
    assert done.exit_code == 0
    written = json.loads(out.read_text())
    assert written["cuda"] == "kept"
    (setting,) = written["cpu"]["settings"]
    assert list(setting["rows"]) == ["plain", "trace", "eah_1", "fixed"]
    assert {len(times) for times in setting["seconds"].values()} == {1}
    moved = setting["largest_change_of_logits"]
    assert moved["plain"] == moved["trace"] == 0 < min(moved["eah_1"], moved["fixed"])
    text = page.read_text()
    assert text.startswith("before\n<!-- bench:cpu -->")
    assert text.endswith("<!-- /bench:cpu -->\nafter\n")
    assert "old" not in text
    assert "| EAH, layer 1 |" in text


@pytest.mark.parametrize(
    ("size", "groups"),
    [
        ("narrow", ["3 tokens", "one forward", "image to text"]),
        ("tiny", ["3 tokens", "one forward"]),
    ],
)
def test_the_smoke_run_of_generation_writes_its_json_and_its_table(
    tmp_path, size, groups
):
    """Flash attention cannot run here: it is left out, and said so."""
    from generation import app

    page = tmp_path / "performance.md"
    page.write_text("<!-- bench:generation-cpu -->\n<!-- /bench:generation-cpu -->\n")
    out = page.with_suffix(".json")
    out.write_text('{"cpu": "kept"}')
    options = ["--smoke", "--size", size, "--out", str(out), "--attention", "sdpa"]
    options += ["--attention", "flash_attention_2"]
    done = CliRunner().invoke(app, options, catch_exceptions=False)
    assert done.exit_code == 0
    written = json.loads(out.read_text())
    assert written["cpu"] == "kept"
    (setting,) = written["generation-cpu"]["settings"]
    assert list(setting["rows"]) == groups
    for rows in setting["rows"].values():
        assert next(iter(rows.values()))["to_plain"] == 1
    (missing,) = written["generation-cpu"]["left_out"]
    assert missing.startswith("flash_attention_2: ")
    assert "| 3 tokens | `generate` under EAH of the prompt |" in page.read_text()


def test_all_ways_to_generate_write_the_same_tokens_plain_or_patched():
    from generation import make_ways

    ways = make_ways(
        "narrow",
        n_layers=3,
        n_tokens=6,
        device="cpu",
        dtype="float32",
        attention="sdpa",
    )
    plain, ours, patched, slow, slow_patched = (
        run() for run in ways["6 tokens"].values()
    )
    assert torch.equal(plain, ours)
    assert torch.equal(plain, slow)
    assert torch.equal(patched, slow_patched)
    forwards = [run() for run in ways["one forward"].values()]
    assert torch.equal(forwards[0], forwards[1])
    assert torch.equal(forwards[0], forwards[2])
    assert not torch.equal(forwards[0], forwards[3])
    texts = list(ways["image to text"].values())
    assert texts[0]()[0].strip() == texts[1]()


def test_ratios_of_generation_are_to_the_plain_run_of_the_same_repeat():
    from generation import summarize

    rows = summarize({"plain": [1.0, 2.0, 4.0], "ours": [1.5, 2.2, 4.0]})
    assert rows["ours"] == {
        "seconds": 2.2,
        "to_plain": pytest.approx(1.1),
        "quartiles": [1.0, 1.5],
    }


def test_a_page_without_markers_is_refused(tmp_path):
    from bench_report import replace_section

    page = tmp_path / "page.md"
    page.write_text("<!-- bench:cpu -->\n")
    with pytest.raises(ValueError, match=r"needs the markers .* once each"):
        replace_section(page, "cpu", "table")
    assert page.read_text() == "<!-- bench:cpu -->\n"


def test_the_page_has_a_section_for_each_device():
    page = (BENCH.parent / "performance.md").read_text(encoding="utf-8")
    for device in ("cpu", "cuda", "generation-cpu", "generation-cuda"):
        for marker in (f"<!-- bench:{device} -->", f"<!-- /bench:{device} -->"):
            assert page.count(marker) == 1


def test_the_numbers_of_the_method_page_hold():
    """What docs/method.md says of the uniform share, and of late columns."""
    image = torch.zeros(1, 630, dtype=torch.bool)
    image[:, 35:611] = True
    even = torch.ones(630, 630).tril() / torch.arange(1.0, 631)[:, None]
    unit = score_columns(even[None, None], image_mask=image).unit
    share = unit[0, 0, [35, 610]].tolist()
    assert share == pytest.approx([0.0048, 0.0016], abs=5e-5)
    assert [0.002 / s for s in share] == pytest.approx([0.4, 1.2], abs=0.05)
    later = torch.arange(575, -1, -1)  # image tokens after each image column
    needed = 0.002 * 576 / later
    assert (needed > 1).tolist() == [False] * 574 + [True] * 2
    assert float(needed[0]) == pytest.approx(0.002, abs=5e-6)
    assert float(needed[later == 50]) == pytest.approx(0.023, abs=5e-4)
    for weight, expected in ((0.0229, 0), (0.0232, 1)):
        pattern = torch.zeros(1, 1, 630, 630)
        pattern[..., 561:, 560] = weight  # 50 image tokens come after column 560
        found = score_columns(pattern, image_mask=image, definition="paper")
        assert int(found.sinks(0.002).sum()) == expected


# -- other tools ---------------------------------------------------------------------


def test_density_by_hand_is_the_score_of_the_package():
    from peer_ways import find_density

    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 3, 624, 624, generator=generator) * 2
    later = torch.ones(624, 624, dtype=torch.bool).triu(1)
    pattern = scores.masked_fill(later, -torch.inf).softmax(-1)
    image = torch.zeros(1, 624, dtype=torch.bool)
    image[:, 35:611] = True
    ours = score_columns(pattern, image_mask=image)
    beta = eah.EAH().beta
    assert 0.1 < float(ours.density(beta).mean()) < 0.9
    torch.testing.assert_close(
        find_density(pattern[0]), ours.density(beta)[0], atol=1 / 576, rtol=0
    )


def test_a_tool_that_finds_something_else_ends_the_comparison():
    from peer_ways import LENS, PATCH, SINKS
    from peers import check_close, scale_to_all

    hand = torch.tensor([1.0, -2.0, 3.0, 0.5, 1.0, 2.0])
    assert check_close("nnterp", LENS, hand + 1e-4, hand) == pytest.approx(
        1e-4 / 3, rel=0.01
    )
    with pytest.raises(SystemExit, match=r"nnterp, logit .*: 0\.033 off"):
        check_close("nnterp", LENS, hand + 0.1, hand)
    with pytest.raises(SystemExit, match="5 numbers, expected 6"):
        check_close("nnterp", LENS, hand[:5], hand)
    assert check_close("nnterp", SINKS, hand + 1 / 576, hand) < 2 / 576
    # Of every layer the first head is by hand.
    every = torch.stack([hand, hand + 1], 1).flatten()
    assert check_close("eah_interp", PATCH, every, hand) == 0
    assert scale_to_all(every, every) == 1
    assert scale_to_all(hand, every) == 14 / 8


def test_the_table_of_tools_has_ours_as_one():
    from peer_ways import LENS
    from peers import write_table

    part = {
        "command": "python docs/bench/peers.py",
        "date": "2026-11-30T12:00:00",
        "hardware": {"device": "a processor", "threads": 1, "load": "0.5"},
        "versions": {"torch": "2.13.0"},
    }
    times = part | {
        "seconds": {LENS: {"eah_interp": [2.0, 1.0, 3.0], "nnterp": [5.0, 7.0, 6.0]}},
        "labels": {"eah_interp": {LENS: "`ours`"}, "nnterp": {LENS: "`theirs`"}},
        "tools": {"nnterp": {"nnterp": "1.3.0", "nnsight": "0.7.0"}},
        "apart": {LENS: 2e-6},
    }
    memory = part | {"peak_bytes": {LENS: {"eah_interp": 4_000_000}}}
    table = write_table({"times": times, "memory": memory})
    assert f"| {LENS} | eah_interp: `ours` | 2 | 1.00 | 4 | 1.00 |" in table
    assert "|  | nnterp: `theirs` | 6 | 3.00 |  |  |" in table
    assert "nnterp with nnterp 1.3.0, nnsight 0.7.0" in table
    assert "at most 2e-06 of the largest" in table


@pytest.mark.slow
def test_a_tool_that_is_not_installed_is_left_out_by_name(monkeypatch, capsys):
    import peers

    monkeypatch.setattr(peers, "TOOLS", ["vlmprobe"])
    monkeypatch.setattr(peers, "ENVIRONMENTS", Path("nowhere"))
    assert peers.start_all(["--smoke"], 1) == {}
    said = capsys.readouterr().out
    assert "vlmprobe is left out, as it is not installed: No module named" in said
