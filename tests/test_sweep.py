"""Sweeps: each cell once, also when killed or grown; mean and deviation over seeds; what is refused."""

import csv
import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import psaq_jax
from launch import pages
from psaq_jax import calibrate, quantize, resumption, sweep, sweep_cells, sweep_tables
from psaq_jax.config import QuantizationConfig, from_mapping
from psaq_jax.data import dataset
from psaq_jax.errors import InputError
from psaq_jax.evaluation import agreement, collect_logits
from psaq_jax.extras import MissingExtra
from psaq_jax.models.loading import load_model
from psaq_jax.quantization import integer_plan
from psaq_jax.quantization.recipes import DefaultRecipe, read_recipe
from psaq_jax.report import measure_sensitivity, render_page, summary_line
from psaq_jax.sweep import run_sweep
from psaq_jax.sweep_config import SweepConfig, SweepQuantization
from psaq_jax.synthesis.config import SynthesisConfig
from tests import jobs
from tests.golden_files import GOLDEN
from tests.quick_recipe import QUICK

pytestmark = pytest.mark.usefixtures("quickly_compiled")

TINY = str(GOLDEN / "paper" / "vit")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return jobs.small_data(tmp_path_factory.mktemp("data"))


def config(data, **changes):
    settings = {
        "models": (TINY,), "data": data, "seeds": (0, 1), "batch_size": 20, "calibration": ("synthesized", "noise"),
        "synthesis": SynthesisConfig(num_images=4, group_size=4, iterations=2),
        "quantization": QuantizationConfig(("w8a8", "w4a8")),
    }  # fmt: skip
    return SweepConfig(**settings | changes)


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweep")
    return workdir, run_sweep(config(data), workdir)


def cells(workdir):
    return sorted(str(p.relative_to(workdir / sweep.slug(TINY))) for p in workdir.glob("*/seed_*/*.json"))


def test_every_cell_is_there_once(done):
    workdir, (results,) = done
    expected = [(s, c, b) for s in (0, 1) for c in ("synthesized", "noise") for b in ("w8a8", "w4a8")]
    assert [(r["seed"], r["calibration"], r["bits"]) for r in results["runs"]] == expected
    assert cells(workdir) == sorted(f"seed_{s}/{b}-paper-{c}.json" for s, c, b in expected)
    assert results["float"]["examples"] == 20
    assert all((r["synthesis_seconds"] is not None) == (r["calibration"] == "synthesized") for r in results["runs"])
    assert all(r["quantization_seconds"] > 0 for r in results["runs"])


def test_figures_are_those_of_the_same_models_outside_of_a_sweep(done, data):
    """On noise, which follows from the seed alone."""
    _, (results,) = done
    model, drawn = load_model(TINY), []
    assert results["float"] == psaq_jax.evaluate(model, data, 20)._asdict()
    float_logits, _ = collect_logits(model, data, 20)
    for seed in (0, 1):
        job = config(data, seed=seed, calibration=("noise",))
        pixels = sweep.pipeline.calibration_images(job, model, None, None)["noise"]
        drawn.append(pixels)
        ranges = psaq_jax.calibrate(model, pixels)
        for bits in (8, 4):
            q = psaq_jax.quantize(model, ranges, bits, 8)
            expected = psaq_jax.evaluate(q, data, 20)._asdict()
            expected["agreement"] = agreement(float_logits, collect_logits(q, data, 20)[0])
            (run,) = (
                run for run in results["runs"]
                if (run["seed"], run["calibration"], run["bits"]) == (seed, "noise", f"w{bits}a8")
            )  # fmt: skip
            expected["integer_share"] = 100 * integer_plan.coverage(integer_plan.plan(q))
            for name in (*sweep_cells.FIGURES, "integer_share"):
                assert run[name] == expected[name], name
    assert (drawn[0] != drawn[1]).all()


def timeless(results):
    """All but the wall time, which no second run repeats."""
    kept = [{k: v for k, v in run.items() if not k.endswith("_seconds")} for r in results for run in r["runs"]]
    return [{k: v for k, v in r.items() if k != "runs"} for r in results], kept


def forbid(monkeypatch, *names):
    for name in names:
        monkeypatch.setattr(name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))


def test_what_is_done_is_not_done_again(done, data, monkeypatch):
    workdir, results = done
    options = QuantizationConfig(options=DefaultRecipe(damping=1.0))
    with pytest.raises(InputError, match="quantization.options.damping is 0.1 there and 1.0 now"):
        run_sweep(config(data, quantization=options), workdir)
    forbid(monkeypatch, "psaq_jax.sweep_cells.synthesize_for_job", "psaq_jax.pipeline.quantized_models",
           "psaq_jax.pipeline.Examples.logits")  # fmt: skip
    assert run_sweep(config(data), workdir) == results
    assert run_sweep(config(data, data_workers=2, data_errors="skip"), workdir) == results
    for changes, found in (({"crop_fraction": 0.9}, "crop_fraction is 0.0"), ({"batch_size": 10}, "batch_size is 20")):
        with pytest.raises(InputError, match=f"belongs to another run: {found} there and"):
            run_sweep(config(data, **changes), workdir)


def test_a_page_shows_the_first_seeds_images_and_none_is_synthesized_for_it(done, data, tmp_path, monkeypatch):
    workdir, (results,) = done
    forbid(monkeypatch, "psaq_jax.synthesis.driver._run_wave")
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    seeds, told = (1, 0), []
    run_sweep(config(data, seeds=seeds), tmp_path, show=lambda *given: told.append(given))
    ((shown, model, pictures),) = told
    assert [run["seed"] for run in shown["runs"]] == [1] * 4 + [0] * 4
    assert shown["float"] == results["float"] and model.fingerprint() == load_model(TINY).fingerprint()
    (kept,) = (tmp_path / sweep.slug(TINY) / "seed_1" / "checkpoints").glob("*.npz")
    np.testing.assert_array_equal(pictures["images"]["synthesized"], np.load(kept)["images"].reshape(4, 32, 32, 3))
    noise = sweep.pipeline.calibration_images(config(data, seed=1, calibration=("noise",)), model, None, None)["noise"]
    np.testing.assert_array_equal(pictures["images"]["noise"], noise)
    assert len(pictures["targets"]) == 4 and all(len(values) == 2 for values in pictures["history"].values())
    page = render_page(shown, model=model, **pictures)
    assert '<th class="number">in integers, %</th>' in page
    assert "of seed 1" in page and "Synthesis loss by term, seed 1" in page and "Patch similarity by layer" in page
    shutil.rmtree(kept.parent)
    run_sweep(config(data, seeds=seeds), tmp_path, show=lambda *given: told.append(given))
    assert list(told[1][2]) == ["images"] and list(told[1][2]["images"]) == ["noise"]
    alone = config(data, seeds=seeds, calibration=("synthesized",))
    run_sweep(alone, tmp_path, show=lambda *given: told.append(given))
    assert told[2][2] == {"images": {}} and len(told[2][0]["runs"]) == 4
    assert "Synthesis loss" not in render_page(told[2][0], model=model, **told[2][2])


@pytest.mark.parametrize("recipe", ["paper", "distill"])
def test_a_page_has_the_layers_of_the_first_recipe_at_its_last_whole_bits(recipe, data, monkeypatch):
    monkeypatch.setattr(pages.console, "bar", lambda title: None)  # which asks flags that only scripts parse
    model, name = load_model(TINY), "default" if recipe == "distill" else recipe
    pixels = np.random.default_rng(0).normal(size=(4, *model.image_shape)).astype(np.float32)
    quantization = SweepQuantization(("w8a8", "w4a6", "auto:4a8", "w4a32"), f"{recipe},paper", QUICK)
    shown = pages.layer_by_layer(config(data, quantization=quantization), model, {"noise": pixels, "real": pixels + 1})
    base, options = read_recipe(name, QUICK)
    assert shown["measured"] == {"bits": "w4a6", "recipe": name, "calibration": "noise"}
    assert shown["ranges"]["real"] == calibrate(model, pixels + 1, base) != shown["ranges"]["noise"]
    images = None if recipe == "paper" else pixels
    q = quantize(model, shown["ranges"]["noise"], 4, 6, base, images, options)
    assert shown["sensitivity"] == measure_sensitivity(model, q, pixels)  # as of the model whole
    floats = dataclasses.replace(quantization, bits=("auto:4a8", "w4a32"))
    assert list(pages.layer_by_layer(config(data, quantization=floats), model, {"noise": pixels})) == ["ranges"]
    assert pages.layer_by_layer(config(data), model, {}) == {"ranges": {}}


def test_nothing_is_measured_for_a_page_that_cannot_be_written(data, tmp_path, monkeypatch):
    def missing():
        raise MissingExtra("jinja2: cannot be imported")

    monkeypatch.setattr(pages.report, "check_extra", missing)
    forbid(monkeypatch, "launch.pages.layer_by_layer")
    said = pages.write_layers(tmp_path, config(data), {}, load_model(TINY), {})
    assert said == "not written, jinja2: cannot be imported"
    assert not list(tmp_path.iterdir())


def test_images_are_decoded_once(data, tmp_path, monkeypatch):
    reads, load = [], dataset._load
    monkeypatch.setattr(dataset, "_load", lambda source, fit, task: reads.extend(task) or load(source, fit, task))
    results = run_sweep(config(data, calibration=("noise",), seeds=(1,)), tmp_path)
    assert len(results[0]["runs"]) > 1 and sorted(reads) == list(range(results[0]["float"]["examples"]))


def test_a_missing_cell_alone_is_computed_from_the_same_images(done, data, monkeypatch):
    workdir, results = done
    (workdir / sweep.slug(TINY) / "seed_1" / "w4a8-paper-synthesized.json").unlink()
    forbid(monkeypatch, "psaq_jax.synthesis.driver._run_wave")
    computed = []
    monkeypatch.setattr(sweep.pipeline, "score", lambda *a, score=sweep.pipeline.score: computed.append(a) or score(*a))
    told = []
    assert timeless(run_sweep(config(data), workdir, tell=told.append)) == timeless(results) and len(computed) == 1
    assert [[len(result["runs"]) for result in so_far] for so_far in told] == [[7], [8]]  # seed 1's others at once


def test_a_sweep_may_grow_but_not_change(done, data, monkeypatch):
    workdir, (before,) = done
    with pytest.raises(InputError, match="belongs to another run: synthesis.iterations is 2 there and 4 now"):
        run_sweep(config(data, synthesis=SynthesisConfig(num_images=4, group_size=4, iterations=4)), workdir)
    forbid(monkeypatch, "psaq_jax.synthesis.driver._run_wave")
    grown = config(data, quantization=QuantizationConfig(("w8a8", "w4a8", "w4a4")), calibration=("noise", "real"))
    (after,) = run_sweep(grown, workdir)
    kept = [r for r in before["runs"] if r["calibration"] == "noise"]
    assert [r for r in after["runs"] if r["calibration"] == "noise" and r["bits"] != "w4a4"] == kept
    assert len(after["runs"]) == 2 * 2 * 3


def test_data_that_is_not_there_leaves_nothing_behind(tmp_path):
    """Its folder would belong to the wrong path for ever."""
    with pytest.raises(InputError, match="typo.npz: no such file"):
        run_sweep(config("npz:typo.npz"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_further_model_that_is_not_there_is_named_before_the_first_is_quantized(data, tmp_path):
    with pytest.raises(InputError, match="typo"):
        run_sweep(config(data, models=(str(TINY), str(tmp_path / "typo"))), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_data_is_needed(tmp_path):
    (results,) = run_sweep(config("", seeds=(3,), calibration=("synthesized", "noise", "real")), tmp_path)
    assert results["float"] is None and {r["calibration"] for r in results["runs"]} == {"synthesized", "noise"}
    assert results["evaluated_on"] == {"images": 4, "kind": "synthesized"}
    assert all(r["top1"] is None and 0 <= r["agreement"] <= 100 for r in results["runs"])
    (line, *_) = csv.DictReader(io.StringIO(sweep_tables.as_csv([results])))
    assert line["top1_mean"] == "" and float(line["agreement_mean"]) >= 0 and line["agreement_std"] == ""


def test_tables_hold_mean_and_deviation_over_seeds(done, tmp_path):
    _, results = done
    written = sweep_tables.write(tmp_path, results)
    assert json.loads(written["runs"].read_text()) == results
    lines = list(csv.DictReader(io.StringIO(written["table"].read_text())))
    assert len(lines) == 4 and all(line["seeds"] == "0 1" and line["model"] == TINY for line in lines)
    for line in lines:
        runs = [r for r in results[0]["runs"] if (r["bits"], r["calibration"]) == (line["bits"], line["calibration"])]
        for field in ("top1", "top5", "loss", "agreement", "quantization_seconds"):
            values = [r[field] for r in runs]
            np.testing.assert_allclose(float(line[f"{field}_mean"]), np.mean(values))
            np.testing.assert_allclose(float(line[f"{field}_std"]), np.std(values, ddof=1), atol=1e-12)
        assert (line["synthesis_seconds_mean"] == "") == (line["calibration"] == "noise")
        np.testing.assert_allclose(float(line["lost_mean"]), float(line["float_top1"]) - float(line["top1_mean"]))
    text = written["Markdown"].read_text().splitlines()
    assert len(text) == 2 + 1 + 4 and "±" in text[3] and {line.count("|") for line in text} == {14}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": ""}, "models has '', expected sources"),
        ({"models": 3}, r"config.models is 3, expected tuple\[str, ...\]"),
        ({"seeds": 0.5}, r"config.seeds is 0.5, expected tuple\[int, ...\]"),
        ({"seeds": (0, -1)}, "one of seeds is -1, expected a whole number"),
        ({"seeds": ("0",)}, r"config.seeds is \('0',\), expected tuple\[int, ...\]"),
        ({"crop_fraction": 1.01}, "crop_fraction is 1.01, expected 0.1 to 1"),
        ({"crop_fraction": 0.09}, "crop_fraction is 0.09, expected 0.1 to 1"),
        ({"distillation": {"cycles": 0}}, "distillation.cycles is 0"),
        ({"quantization": {"recipe": "default,distil"}}, "quantization.recipe is 'distil', known are"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        from_mapping(SweepConfig, {"model": "a"} | changes)


def test_repeated_models_and_seeds_count_once():
    assert SweepConfig(models=("a", "b", "a"), seeds=(1, 1, 0)).models == ("a", "b")
    assert SweepConfig(models=("a",), seeds=(1, 1, 0)).seeds == (1, 0)
    assert SweepConfig(model="a", seed=7).models == ("a",) and SweepConfig(model="a", seed=7).seeds == (7,)


def test_what_is_damaged_is_made_again(data, tmp_path, caplog):
    small = config(data, seeds=(0,), calibration=("noise",))
    before = run_sweep(small, tmp_path)[0]
    cell = tmp_path / sweep.slug(TINY) / "seed_0" / "w8a8-paper-noise.json"
    figures = tmp_path / sweep.slug(TINY) / "float.json"
    whole = {path: json.loads(path.read_text()) for path in (cell, figures)}
    damaged = [(cell, text) for text in ("{", "[]", "{}", "[" * 100_000)] + [(figures, "{")]
    damaged += [(path, json.dumps(fields | {"top1": 12.5})) for path, fields in whole.items()]
    damaged += [(cell, json.dumps(whole[cell] | {"seed": 1}))]
    for path, text in damaged:
        path.write_text(text)
        after = run_sweep(small, tmp_path)[0]
        assert f"{path.name}: is missing or damaged; what needs it is made again" in caplog.text
        caplog.clear()
        assert after["float"] == before["float"]
        timeless = [[run | {"quantization_seconds": 0} for run in found["runs"]] for found in (before, after)]
        assert timeless[0] == timeless[1]
    run_sweep(small, tmp_path)
    assert not caplog.text


def test_no_model_is_evaluated_before_its_turn(data, tmp_path):
    """Nobody has compared its weights with those of its cells by then."""
    two = config(data, models=(TINY, f"hard:{TINY}"), seeds=(0,), calibration=("noise",))
    run_sweep(two, tmp_path)
    (tmp_path / sweep.slug(two.models[1]) / "float.json").unlink()
    told = []
    run_sweep(two, tmp_path, tell=lambda found: told.append([results["model"] for results in found]))
    assert told == [[TINY], list(two.models)]


@pytest.mark.parametrize("change", [{"seed": 1}, {"top1": "x"}, {"quantization_seconds": [1]}])
def test_a_whole_file_that_is_no_cell_is_refused(data, tmp_path, change):
    small = config(data, seeds=(0,), calibration=("noise",))
    run_sweep(small, tmp_path)
    cell = tmp_path / sweep.slug(TINY) / "seed_0" / "w8a8-paper-noise.json"
    resumption.write_figures(cell, resumption.read_figures(cell) | change)
    with pytest.raises(InputError, match=f"{cell.name}: is not a cell of this sweep; delete it"):
        run_sweep(small, tmp_path)


def test_other_data_behind_the_same_path_is_refused(tmp_path):
    """Its cells would stand beside the float model's figures on other images."""
    small = config(jobs.small_data(tmp_path), seeds=(0,), calibration=("noise",))
    run_sweep(small, tmp_path / "run")
    with np.load(tmp_path / "images.npz") as archive:
        images, labels = archive["images"], archive["labels"]
    for other in ({"images": images ^ 1, "labels": labels}, {"images": images, "labels": labels[::-1]}):
        np.savez(tmp_path / "images.npz", **other)
        with pytest.raises(InputError, match="belongs to another run: data_contents.sha256 is"):
            run_sweep(small, tmp_path / "run")
    np.savez(tmp_path / "images.npz", images=images[:19], labels=labels[:19])
    with pytest.raises(InputError, match="belongs to another run: data_contents.examples is 20 there and 19 now"):
        run_sweep(small, tmp_path / "run")
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    run_sweep(small, tmp_path / "run")


def test_broken_images_are_counted_by_every_start(tmp_path):
    for number in range(10):
        folder = tmp_path / "images" / str(number)
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32), (25 * number,) * 3).save(folder / "a.png")
    for number in (2, 5):
        (tmp_path / "images" / str(number) / "a.png").write_bytes(b"")
    synthesis = SynthesisConfig(num_images=16, group_size=16, iterations=1)
    some = config(
        f"folder:{tmp_path / 'images'}", data_errors="skip", seeds=(0,), calibration=("noise", "real"),
        quantization=QuantizationConfig(("w8a8",)), synthesis=synthesis,
    )  # fmt: skip
    for _ in range(2):  # the second reads no image
        (results,) = run_sweep(some, tmp_path / "run")
        assert results["evaluated_on"] == {"images": 8, "kind": "data", "skipped": 2}
        assert results["calibrated_on"] == {
            "noise": {"images": 16, "evaluated": False}, "real": {"images": 8, "evaluated": True},
        }  # fmt: skip
        assert "2 broken images were skipped" in summary_line(results)


def test_another_models_weights_under_the_same_name_are_refused(data, tmp_path, monkeypatch):
    small = config(data, seeds=(0,), calibration=("noise",))
    run_sweep(small, tmp_path)
    other = load_model(TINY)
    params = dict(other.params, class_token=other.params["class_token"] + 1)
    monkeypatch.setattr(sweep.pipeline, "load_float", lambda *_: other.replace(params=params))
    with pytest.raises(InputError, match="belongs to another run: model_fingerprint"):
        run_sweep(small, tmp_path)


def test_crop_fraction_is_timms_crop_pct():
    model = load_model(TINY)
    changed = SweepConfig(model=TINY, crop_fraction=0.9).preprocessed(model).preprocessing
    assert changed.interpolation == "bicubic" and changed.crop_fraction == 0.9
    assert changed.resize_size == (35, 35) and changed.image_size == (32, 32) and changed.resize == "cover"
    assert dataclasses.replace(changed, resize_size=(32, 32)).mean == model.preprocessing.mean


def test_slugs_are_fit_for_folders_and_of_their_own():
    names = [sweep.slug(source) for source in ("a/b", "a_b", "../../etc", "bundled:x", "x" * 300)]
    assert len(set(names)) == 5 and all("/" not in n and not n.startswith(".") and len(n) < 100 for n in names)
    assert sweep.slug("x" * 100 + "/model").startswith("x" * 74 + "_model-")  # its end tells people which


def launch(*arguments):
    return jobs.launch("sweep", "--quiet", *arguments)


def test_the_script_prints_the_table_and_writes_it(data, tmp_path):
    done = launch(
        "--config=configs/sweeps/demo.py", f"--workdir={tmp_path}", f"--config.models=('{TINY}',)",
        "--config.seeds=(0,)", f"--config.data={data}", "--config.calibration=('noise',)",
        "--config.quantization.recipe=paper",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "w4a4" in done.stdout and str(tmp_path / "sweep.csv") in done.stdout
    assert len((tmp_path / "sweep.csv").read_text().splitlines()) == 1 + 4
    page = (tmp_path / sweep.slug(TINY) / "report.html").read_text()
    assert "w4a4" in page and "launch.sweep" in page
    assert "that recipe paper quantizes.</p>" in page and "weights quantized alone at w4a4" in page
    assert "noise images of the calibration, with the ranges of all of them" in page and 'id="coverage"' not in page
    assert "figures are of 20 images" in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "--config is missing, expected --config=configs/sweeps/NAME.py"),
        (("--config=configs/sweeps/demo.py", "--config.models=('nowhere/at/all',)"), "nowhere/at/all"),
        (("--config=configs/accuracy.py:all",), "configs/accuracy.py:all is unknown, known are recipes, ablation"),
    ],
)
def test_the_script_ends_bad_input_in_one_line(arguments, message, tmp_path):
    done = launch(f"--workdir={tmp_path}", *arguments)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
