"""Names of arguments: neighbours are taken, the rest is refused by name, everywhere."""

import importlib
import inspect

import nnsight
import pytest

import eah_interp as eah
from eah_interp.arguments import Named, find_near
from eah_interp.errors import EAHError, KeywordError
from eah_interp.interventions import donors_of_run
from eah_interp.studies import Condition, Item, ModelSource, Study, toy_items
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor

FOLDERS = (
    *("attribution", "benchmarks", "finders", "interventions", "lvlm", "report"),
    *("studies", "testing", "toy", "transformer_lens", "viz"),
)
PASS_ON = (
    "interventions.intervene",
    "lvlm.load",
    "lvlm.wrap",
    "report.inspect_image",
    "testing.tiny_folder",
    "testing.tiny_lvlm",
    "testing.tiny_inputs",
)
"""What hands other names on to what checks them; figures hand them on to results."""

QUESTION = "Is there a cat?"


@pytest.fixture(scope="module")
def model():
    return eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))


@pytest.fixture(scope="module")
def image():
    return random_image()


def public(wanted):
    for folder in FOLDERS:
        module = importlib.import_module(f"eah_interp.{folder}")
        for name, thing in vars(module).items():
            home = getattr(thing, "__module__", None) or ""
            if home.startswith(f"eah_interp.{folder}") and wanted(thing):
                yield f"{folder}.{name}", thing


def test_every_public_function_names_an_argument_that_it_has_not():
    found = dict(public(inspect.isfunction))
    assert len(found) > 50
    for name, function in found.items():
        parameters = inspect.signature(function).parameters
        if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            assert name in PASS_ON or name.startswith("viz."), name
            continue
        with pytest.raises(KeywordError, match="has no argument 'zzz'") as caught:
            function(zzz=1)
        listed = str(caught.value).partition("takes ")[2]
        assert all(one in listed for one in parameters), name
        for one, parameter in parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
                continue
            misspelt = f"{one}x" if len(one) > 1 else one * 9
            with pytest.raises(KeywordError, match=misspelt):
                function(**{misspelt: 1})


def test_a_notebook_shows_what_a_class_is_made_with():
    for name, kind in public(inspect.isclass):
        if isinstance(kind, Named):
            listed = inspect.signature(kind).parameters
            assert list(listed) == list(inspect.signature(kind.__init__).parameters)[1:]
            assert "kwargs" not in listed, name
    assert "steps: Literal['prefill', 'all'] = 'prefill'" in str(
        inspect.signature(eah.EAH)
    )


def test_what_is_lacking_and_what_is_too_many_is_named():
    with pytest.raises(KeywordError, match="score_sinks needs model, images: it takes"):
        eah.score_sinks()
    with pytest.raises(KeywordError, match="takes model, images, prompts without a na"):
        eah.score_sinks(1, 2, 3, "paper")
    with pytest.raises(KeywordError, match="was given images twice"):
        eah.score_sinks(1, 2, images=3)
    with pytest.raises(KeywordError, match="one argument for image and images"):
        eah.score_sinks(1, images=2, image=3)
    with pytest.raises(TypeError, match="EAH takes names only, got 1 values"):
        eah.EAH(1)
    with pytest.raises(KeywordError, match="Ablation needs heads"):
        eah.Ablation()


def test_settings_are_read_by_neighbouring_names_and_others_are_named():
    assert eah.EAH(layer=(2,)) == eah.EAH(layers=(2,))
    assert eah.Ablation(head=[(1, 0)]) == eah.Ablation(heads=((1, 0),))
    assert eah.EAH.paper(layer=(2,)) == eah.EAH.paper(layers=(2,))
    assert Condition("EAH", settings=eah.EAH()) == Condition("EAH", eah.EAH())
    assert Item("a", "caption", "x.png", question="What?").prompt == "What?"
    kinds = [eah.EAH, eah.PAI, eah.VAR, eah.Ablation, Condition, Item, Study]
    for kind in (*kinds, ModelSource):
        assert isinstance(kind, Named)
        with pytest.raises(KeywordError, match=f"{kind.__name__} has no argument"):
            kind(zzz=1)
    with pytest.raises(KeywordError, match="did you mean definition"):
        eah.EAH(defnition="paper")
    with pytest.raises(KeywordError, match="did you mean batch_size"):
        Study(None, [], [], batchsize=3)
    with pytest.raises(KeywordError, match="did you mean alpha"):
        eah.PAI(alhpa=0.2)


def test_a_subclass_of_a_user_is_read_the_same_way():
    from dataclasses import dataclass, replace

    @dataclass(frozen=True, kw_only=True)
    class Louder(eah.PAI):
        kind = "louder_for_keywords"
        factors: tuple[int, ...] = (1,)

    assert Louder(factor=(2,), layer="1:").factors == (2,)
    assert replace(Louder(), alpha=0.3).alpha == 0.3
    with pytest.raises(KeywordError, match="Louder has no argument 'fctors': did you"):
        Louder(fctors=(1,))


def test_var_without_dimensions_names_what_finds_them(model):
    for make in (eah.VAR, lambda: eah.VAR(tau=10.0), lambda: eah.VAR.from_dict({})):
        with pytest.raises(eah.EAHError, match=r"find_sink_dims\(model, image\) meas"):
            make()
    with pytest.raises(eah.EAHError, match="find_sink_dims"):
        Condition.from_dict({"name": "VAR", "var": {}})
    # what it names has the form that VAR takes
    from eah_interp.interventions import find_sink_dims

    found = find_sink_dims(model, random_image(), k=2)
    assert eah.VAR(sink_dims=tuple(found.dim)).dims == tuple(sorted(found.dim))


@pytest.mark.parametrize(
    "given",
    [
        {"images": 0, "prompts": 1},
        {"image": 0, "prompt": 1},
        {"images": 0, "text": 1},
        {"image": 0, "question": 1},
        {"images": [0], "prompts": [1]},
    ],
)
def test_runs_take_images_and_prompts_by_name(model, image, given):
    values = {0: image, 1: QUESTION}
    named = {
        key: [values[v] for v in value] if isinstance(value, list) else values[value]
        for key, value in given.items()
    }
    with model.trace(image, QUESTION):
        expected = model.output.logits.save()
    with model.trace(**named):
        found = model.output.logits.save()
    assert (found == expected).all()
    with model.trace() as tracer:  # noqa: SIM117 - nnsight reads each from its line
        with tracer.invoke(**named):
            found = model.output.logits.save()
    assert (found == expected).all()
    ids = model.generate(image, QUESTION, max_new_tokens=2)
    found = model.generate(**named, max_new_tokens=2)
    assert (found == ids).all()
    with model.generate(**named, max_new_tokens=2) as tracer:
        found = tracer.result.save()
    assert (found == ids).all()
    with model.scan(**named):
        shape = nnsight.save(tuple(model.output.logits.shape))
    assert shape == tuple(expected.shape)
    said = model.describe(**named, max_new_tokens=2)
    assert isinstance(said, list if isinstance(given.get("images"), list) else str)


def test_images_by_name_stand_beside_a_prompt_without_one(model, image):
    with model.trace(image, QUESTION):
        expected = model.output.logits.save()
    with model.trace(QUESTION, images=image):
        first = model.output.logits.save()
    with model.trace(image, prompt=QUESTION):
        second = model.output.logits.save()
    assert (first == expected).all()
    assert (second == expected).all()


def test_misspelt_names_of_a_run_are_refused_before_it(model, image):
    for run in (model.trace, model.scan, model.generate):
        with pytest.raises(KeywordError, match="did you mean images"):
            run(img=image)
        with pytest.raises(KeywordError, match="did you mean images"):
            run(imagse=image, prompts=QUESTION)
    with pytest.raises(KeywordError, match="did you mean use_cache"):
        model.trace(image, QUESTION, use_cahce=False)
    with pytest.raises(KeywordError, match="did you mean max_new_tokens"):
        model.generate(image, QUESTION, max_new_token=3)
    with pytest.raises(KeywordError, match="did you mean max_new_tokens"):
        model.describe(image, QUESTION, max_newtokens=3)
    with pytest.raises(KeywordError, match="generate has no argument 'qqqq'"):
        model.generate(image, QUESTION, qqqq=3)
    with pytest.raises(KeywordError, match="one argument for image and images"):
        model.trace(images=image, image=image)
    with pytest.raises(EAHError, match="no image was given"):
        model.trace(images=None, prompts=None)


def test_what_a_run_knows_is_not_refused(model, image):
    encoding = model.encode(images=image, prompt=QUESTION)
    with model.trace(**encoding, use_cache=False, output_hidden_states=True):
        n_states = len(model.output.hidden_states).save()
    assert n_states == model.n_layers + 1
    with model.trace({**encoding}):
        logits = model.output.logits.save()
    assert len(logits) == 1
    found = model.generate(**encoding, max_new_tokens=1, do_sample=False, num_beams=1)
    assert len(found) == 1


def test_intervene_and_edit_take_a_patch_by_its_neighbours_names(model, image):
    with model.trace(image, QUESTION):
        patch = eah.intervene(model, patch=eah.EAH(donor=2))
    assert patch.donors.tolist() == [2]
    with model.trace(image, QUESTION):
        patch = eah.intervene(model, settings=eah.EAH(donor=1))
    assert patch.donors.tolist() == [1]
    twin = eah.edit(model, intervention=eah.EAH(donor=3))
    twin.describe(image, max_new_tokens=1)
    assert donors_of_run(twin)[1].tolist() == [3]
    with (
        pytest.raises(Exception, match="intervene has no argument 'imagemask'"),
        model.trace(image, QUESTION),
    ):
        eah.intervene(model, imagemask=None)


def test_load_names_what_transformers_does_not_know():
    with pytest.raises(KeywordError, match=r"'dtyp'.*did you mean dtype.*revision"):
        eah.load(dtyp="float32")
    with pytest.raises(KeywordError, match="load has no argument 'qqqq'"):
        eah.load(qqqq=1)
    assert eah.load(model_name="toy", dtype="float32").n_layers == 8


def test_a_near_name_is_found_by_kind_number_and_spelling():
    assert find_near("img", ("images", "prompts")) == "images"
    assert find_near("pictures", ("images",)) is None
    assert find_near("layer", ("layers", "heads")) == "layers"
    assert find_near("seeds", ("seed",)) == "seed"
    assert find_near("qqqq", ("seed",)) is None


def test_a_study_takes_its_words_by_neighbouring_names(tmp_path):
    items = toy_items(1, captions=False, samplings=("random",))
    study = Study(eah.load(), items, condition=[Condition("baseline")])
    with pytest.raises(KeywordError, match="run has no argument 'worker_count'"):
        study.run(tmp_path, worker_count=3)
    with pytest.raises(KeywordError, match="did you mean engine"):
        study.run(tmp_path, engin="ray")


def test_results_name_what_their_methods_take(model, image):
    sinks = eah.score_sinks(model, image)
    with pytest.raises(KeywordError, match="top has no argument 'n': it takes k"):
        sinks.top(n=2)
    with pytest.raises(
        KeywordError, match="plot has no argument 'itm': did you mean it"
    ):
        sinks.plot(itm=1)
    toy = eah.load()
    heads = eah.attribute_heads(toy, image, objects=["cup"])
    with pytest.raises(KeywordError, match="top has no argument"):
        heads.top(zzz=2)
    with pytest.raises(KeywordError, match="wrap has no argument 'procesor': did you"):
        eah.wrap(model._module, procesor=None)


def test_a_report_hands_its_options_on_to_what_names_them(image):
    from eah_interp.report import inspect_image

    with pytest.raises(KeywordError, match="did you mean max_new_tokens"):
        inspect_image(eah.load(), image, max_newtokens=3)


def test_a_study_file_with_var_and_no_dimensions_names_what_finds_them(tmp_path):
    from eah_interp.studies import StudyFile

    file = tmp_path / "study.yaml"
    lines = ["items: {source: toy, n_scenes: 1}", "conditions: [baseline, {kind: var}]"]
    file.write_text("\n".join(lines))
    with pytest.raises(EAHError, match=r"study.yaml:2: .*find_sink_dims\(model, image"):
        StudyFile.load(file)
