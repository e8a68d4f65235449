"""Job settings: what is refused, and how it is said."""

import dataclasses
import re

import numpy as np
import pytest

import psaq_jax
from configs import default, demo
from psaq_jax import config
from psaq_jax.distillation.config import DistillationConfig
from psaq_jax.errors import InputError
from psaq_jax.quantization.recipes import WITH, WITHOUT, DefaultRecipe, read_recipe
from psaq_jax.sweep_config import SweepConfig
from psaq_jax.synthesis.config import SynthesisConfig

PAPERS = {
    "num_images": 32, "group_size": 32, "iterations": 1000, "rounds": 2, "learning_rate": None, "jitter": (15, 30),
    "total_variation": (2500, 3000), "total_variation_weight": 0.05, "cross_entropy_weight": 1.0, "bandwidth": 0.01,
    "recipe": "paper", "parametrization": "pixels", "fused_attention": None,
}  # fmt: skip


@pytest.mark.parametrize("given, plain", [
    ("DIR/", "DIR"), ("folder:DIR//", "folder:DIR"), ("/", "/"), ("folder:/", "folder:/"), ("a/b", "a/b"), ("", ""),
])  # fmt: skip
def test_a_folder_is_written_in_one_way(given, plain):
    assert config.plain_source(given) == plain


def test_the_synthesis_defaults_are_the_papers():
    """The release's numbers, spelled out; a round has 500 iterations, of which 100 warm up."""
    found = SynthesisConfig()
    assert dataclasses.asdict(found) == PAPERS
    assert (found.round_length, found.warmup, found.groups) == (500, 100, 1)
    ours = dataclasses.asdict(SynthesisConfig(recipe="default"))
    assert ours == PAPERS | {"recipe": "default", "parametrization": "frequencies"}


def test_the_demo_s_config_is_the_papers_with_our_recipe_beside_it():
    job = config.from_mapping(config.JobConfig, demo.get_config().to_dict())
    assert job.synthesis == SynthesisConfig()
    assert job.quantization.recipes == ("paper", "default")
    assert job.quantization.bits == ("w8a8", "w4a8") and job.calibration == ("synthesized", "noise", "real")


def test_the_default_config_is_our_recipe_alone():
    job = config.from_mapping(config.JobConfig, default.get_config().to_dict())
    expected = SynthesisConfig(recipe="default", iterations=200)
    assert job.synthesis == expected
    assert job.quantization.recipes == ("default",) and job.calibration == ("synthesized",)


def test_another_recipe_decides_anew():
    mapping = default.get_config()
    mapping.synthesis.recipe = "paper"
    job = config.from_mapping(config.JobConfig, mapping.to_dict())
    assert job.synthesis == SynthesisConfig(iterations=200)


def test_what_the_recipe_decides_may_be_set():
    mapping = default.get_config()
    mapping.synthesis.parametrization, mapping.synthesis.learning_rate = "pixels", 0.3
    job = config.from_mapping(config.JobConfig, mapping.to_dict())
    expected = SynthesisConfig(recipe="default", iterations=200, parametrization="pixels", learning_rate=0.3)
    assert job.synthesis == expected


def test_every_field_of_a_job_is_in_the_demo_s_config():
    values = demo.get_config().to_dict()
    assert set(values) == {field.name for field in dataclasses.fields(config.JobConfig)}


def test_a_run_is_the_same_with_other_processes_and_another_with_another_seed():
    model = psaq_jax.load_model("bundled:fashion_mnist_vit")
    job = config.from_mapping(config.JobConfig, demo.get_config().to_dict())
    assert dataclasses.replace(job, data_workers=4, data_errors="skip").identity(model) == job.identity(model)
    assert dataclasses.replace(job, seed=4).identity(model) != job.identity(model)
    darker = dataclasses.replace(model.preprocessing, mean=(0.6,) * 3)
    assert job.identity(model.replace(preprocessing=darker)) != job.identity(model)


class Named:
    """Stands for a model or a data set of another content."""

    def __init__(self, name):
        self.fingerprint = self.identity = lambda: name


OTHERS = {
    "model": "other", "image_size": 32, "revision": "main", "data": "npz:x", "seed": 1, "batch_size": 4,
    "dtype": "bfloat16", "data_errors": "skip", "data_workers": 3, "class_index": "c", "labels_file": "l",
    "calibration": ("noise",), "synthesis": SynthesisConfig(iterations=3),
    "quantization": config.QuantizationConfig(recipe="default"),
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(config.JobConfig)])
def test_a_run_is_another_with_any_other_setting_but_two(name):
    """Of those two nothing depends that a finished run has."""
    job = config.JobConfig(model="a")
    changed = dataclasses.replace(job, **{name: OTHERS[name]})
    same = changed.identity(Named("a")) == job.identity(Named("a"))
    assert same == (name in ("data_errors", "data_workers"))


def test_a_run_is_another_with_another_model_or_other_data():
    job, model = config.JobConfig(model="a", data="npz:x"), Named("a")
    found = [job.identity(m, data) for m, data in ((model, Named("x")), (model, Named("y")), (Named("b"), Named("x")))]
    assert found[0] != found[1] and found[0] != found[2] and found[0] == job.identity(model, Named("x"))
    assert found[0] != job.identity(model)


@pytest.mark.parametrize("bits, whole", [("w4a8", True), ("w4a32", False), ("auto:4a8", False), ("auto:4.5a32", False)])
def test_whole_bits_are_of_weights_and_activations(bits, whole):
    assert config.has_whole_bits(bits) == whole


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"synthesys": {}}, "config.synthesys is not a known field; did you mean 'synthesis'"),
        ({"synthesis": {"iteration": 3}}, "config.synthesis.iteration is not a known field; did you mean 'iterations'"),
        ({"synthesis": 3}, "config.synthesis is 3, expected its own fields"),
        ({"seed": "x"}, "config.seed is 'x', expected int"),
        ({"seed": -1}, "seed is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"data_errors": "continue"}, "data_errors is 'continue', known are stop, skip"),
        ({"dtype": "float16"}, "dtype is 'float16', known are float32, bfloat16"),
        ({"calibration": ("sythesized",)}, "calibration is 'sythesized', known are"),
        ({"calibration": ()}, "calibration is empty"),
        ({"calibration": ("real",), "data": ""}, "nothing to calibrate on"),
        ({"quantization": {"bits": ("w9a8",)}}, "'w9a8': weight bits is 9, expected a whole number of bits from 2"),
        ({"quantization": {"bits": ("w4a1",)}}, "'w4a1': activation bits (32: floating point) is 1"),
        ({"quantization": {"bits": ("8/8",)}}, "expected a form such as 'w4a8'"),
        ({"quantization": {"bits": ("w٤a٨",)}}, "expected a form such as 'w4a8'"),
        ({"quantization": {"bits": ("w4a16",)}}, "'w4a16': activation bits (32: floating point) is 16"),
        ({"quantization": {"recipe": "default-gptq-gptq"}}, "'default-gptq-gptq' names gptq twice"),
        ({"quantization": {"recipe": "default" + "-gptq" * 40}}, "is 207 letters long, expected at most 200"),
        ({"quantization": {"bits": ("auto:1.9a8",)}}, "the average is 1.9, expected 2 to 8"),
        ({"quantization": {"bits": ("auto:a8",)}}, "expected a form such as 'w4a8', 'w4a32' or 'auto:4.5a8'"),
        ({"quantization": {"options": {"sofmax": "uniform"}}}, "did you mean 'softmax'"),
        ({"quantization": {"options": {"softmax": "linear"}}}, "quantization.options.softmax is 'linear'"),
        ({"quantization": {"options": {"plain_grounds": 2}}}, "options.plain_grounds is 2, expected bool"),
        ({"quantization": {"options": {"reconstruct": "yes"}}}, "options.reconstruct is 'yes', expected bool | None"),
        ({"quantization": {"options": {"reconstruction_steps": 0}}}, "reconstruction_steps is 0, expected a whole"),
        ({"quantization": {"options": {"damping": "x"}}}, "options.damping is 'x', expected float"),
        ({"quantization": {"options": {"damping": True}}}, "options.damping is True, expected float"),
        ({"quantization": {"options": {"damping": float("inf")}}}, "damping is inf, expected a number from 0.01 to"),
        ({"quantization": {"options": {"folding_strength": "x"}}}, "folding_strength is 'x', expected float | None"),
        ({"quantization": {"options": {"seed": -1}}}, "options.seed is -1, expected a whole number from 0 to"),
        ({"quantization": {"options": {"coverage": 3}}}, "coverage is 3, expected tuple[tuple[float, float], ...]"),
        ({"quantization": {"options": {"coverage": ()}}}, "coverage is (), expected pairs of positive numbers"),
        ({"quantization": {"options": {"coverage": ((1.0,),)}}}, "coverage is ((1.0,),), expected tuple"),
        ({"quantization": {"options": {"coverage": ((1.0, -1.0),)}}}, "coverage is ((1.0, -1.0),), expected pairs"),
        ({"quantization": {"bits": 8}}, "config.quantization.bits is 8, expected tuple[str, ...]"),
        ({"calibration": None}, "config.calibration is None, expected tuple[str, ...]"),
        ({"synthesis": {"learning_rate": "x"}}, "config.synthesis.learning_rate is 'x', expected float | None"),
        ({"batch_size": 0}, "batch_size is 0, expected a whole number of at least 1"),
        ({"image_size": -1}, "image_size is -1, expected a whole number of at least 0"),
        ({"data_workers": -1}, "data_workers is -1, expected a whole number of at least 0"),
        ({"synthesis": {"cross_entropy_weight": -1.0}}, "cross_entropy_weight is -1.0, expected a number from"),
        ({"synthesis": {"cross_entropy_weight": 1e300}}, "cross_entropy_weight is 1e+300, expected a number from"),
        ({"synthesis": {"total_variation_weight": float("nan")}}, "total_variation_weight is nan, expected a number"),
        ({"synthesis": {"learning_rate": float("inf")}}, "learning_rate is inf, expected a positive number"),
        ({"synthesis": {"jitter": (1e300, 1e300)}}, "expected 2 numbers from 0 to 10000, one a round"),
        ({"synthesis": {"total_variation": (1e300, 1e300)}}, "expected (least, greatest), 0 to 1000000000"),
        ({"synthesis": {"iterations": 10**20}}, "expected a whole number from 1 to 1000000"),
        ({"synthesis": {"jitter": 15}}, "synthesis.jitter is (15,), expected 2 numbers from 0 to 10000, one a round"),
        ({"synthesis": {"total_variation": 2500}}, "total_variation is 2500, expected tuple[float, float]"),
        ({"quantization": {"bits": ()}}, "quantization.bits is empty"),
        ({"quantization": {"recipe": "default,distill"}}, "recipe 'distill' is for launch.sweep alone"),
        ({"quantization": {"recipe": "papper"}}, "quantization.recipe is 'papper', known are"),
        ({"quantization": {"recipe": "default-gtpq"}}, "'-gtpq' is none of plain_grounds, close_ups,"),
        ({"quantization": {"recipe": "default+gptq"}}, "'+gptq' is none of bases, reconstruct"),
        ({"quantization": {"recipe": "paper-gptq"}}, "recipe 'paper' has no ingredients to change"),
        ({"synthesis": {"num_images": 40}}, "which groups of synthesis.group_size = 32 don't divide"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(InputError) as error:
        config.from_mapping(config.JobConfig, {"model": "bundled:fashion_mnist_vit"} | changes)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (SynthesisConfig, "synthesis.jitter", 3),
        (SynthesisConfig, "synthesis.total_variation", (1.0, "2")),
        (SynthesisConfig, "synthesis.learning_rate", "0.2"),
        (SynthesisConfig, "synthesis.bandwidth", None),
        (DefaultRecipe, "quantization.options.damping", "small"),
        (DefaultRecipe, "quantization.options.coverage", (1.0, 1.5)),
        (DefaultRecipe, "quantization.options.gptq", 1),
        (DistillationConfig, "distillation.kernel_rate", None),
    ],
)
def test_settings_of_another_type_are_named_in_python_too(kind, field, value):
    with pytest.raises(InputError, match=re.escape(f"{field} is {value!r}, expected ")):
        kind(**{field.rpartition(".")[2]: value})


def test_numpy_s_numbers_are_numbers():
    assert SynthesisConfig(learning_rate=np.float32(0.25)).learning_rate == 0.25


def test_recipes_take_ingredients_away_and_add_them():
    given = DefaultRecipe(damping=0.5)
    changed = DefaultRecipe(damping=0.5, gptq=False, gelu="uniform", reconstruct=True)
    assert read_recipe("paper", given) == ("paper", None)
    assert read_recipe("default", given) == ("default", given)
    assert read_recipe("default-gptq-gelu+reconstruct", given) == ("default", changed)
    fields = {field.name for field in dataclasses.fields(DefaultRecipe)}
    assert set(WITHOUT) <= fields and set(WITH) <= fields


def test_a_missing_model_is_named():
    with pytest.raises(InputError, match="config.model is missing"):
        config.from_mapping(config.JobConfig, {})


@pytest.mark.parametrize(
    "setting, bits",
    [("w8a8", (8, 8)), ("w2a4", (2, 4)), ("w4a32", (4, None)), ("auto:4.5a6", (4.5, 6)), ("auto:4a32", (4, None))],
)
def test_bits_are_read(setting, bits):
    assert config.parse_bits(setting) == bits
    assert isinstance(config.parse_bits(setting)[0], config.AverageBits) == setting.startswith("auto")


def test_mixed_precision_without_activation_bits_means_eight():
    assert config.QuantizationConfig(bits=("auto:4.5", "w4a8")).bits == ("auto:4.5a8", "w4a8")
    assert config.QuantizationConfig(bits="auto:4").bits == ("auto:4a8",)


def test_equal_bits_have_one_name():
    bits = ("auto:3a8", "auto:3.0a8", "w4a8", "w04a08", "auto:4.50a32", "w8a32")
    assert config.QuantizationConfig(bits=bits).bits == ("auto:3a8", "w4a8", "auto:4.5a32", "w8a32")


def test_what_is_given_twice_counts_once():
    quantization = config.QuantizationConfig(bits=("w4a8", "w8a8", "w4a8"), recipe="paper,default, paper")
    assert quantization.bits == ("w4a8", "w8a8") and quantization.recipes == ("paper", "default")
    assert config.JobConfig(model="a", calibration=("noise", "noise")).calibration == ("noise",)
    assert config.JobConfig(model="a", calibration="noise, real,noise", data="b").calibration == ("noise", "real")


def test_a_folder_has_one_name():
    job = config.JobConfig(model="hard:a/b/", data="folder:c//")
    assert (job.model, job.data) == ("hard:a/b", "folder:c") and config.JobConfig(model="/").model == "/"
    assert SweepConfig(models=("a/", "a", "b")).models == ("a", "b")


def test_what_is_no_name_is_refused_before_it_is_counted():
    with pytest.raises(InputError, match=r"quantization.bits has \['w8a8'\]"):
        config.QuantizationConfig(bits=(["w8a8"],))
    with pytest.raises(InputError, match=r"calibration is \[\], known are"):
        config.JobConfig(model="a", calibration=([],))
