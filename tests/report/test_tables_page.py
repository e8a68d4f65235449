"""The page of runs that measure and quantize nothing: everything escaped, nothing from outside, figures in columns."""

import numpy as np
import pytest

from psaq_jax.report import pictures, render_tables
from psaq_jax.text_tables import Table
from tests.report.parsed import EVIL, Parsed, assert_complete, assert_harmless
from tests.report.samples import image_sets

RESULTS = {"device": "2 CPU cores", "versions": {"jax": "0.10.2"}, "peak_memory_bytes": 2_500_000_000}
TABLE = Table("Speed", ("model", "why", "ms"), [("deit_tiny", "w" * 41, "1.50")], 2, "Medians of five pairs.")
SHOWN = {"heading": "deit_tiny", "kind": "speed report", "lead": "It takes 1.5 ms."}


def tables_page(vit):
    shown = {"The first images": pictures.gallery(vit, image_sets(vit)["noise"], ["Coat", "Bag", "Shirt", "Dress"])}
    more = {"command": "python -m launch.benchmark --quiet", "config": {"repeats": 5}}
    return render_tables(RESULTS, [TABLE], galleries=shown, **SHOWN, **more)


@pytest.fixture(scope="module")
def page(vit):
    return Parsed(tables_page(vit))


def test_everything_is_there_the_answer_first(page):
    order = (
        "deit_tiny: speed report", "Speed report", "It takes 1.5 ms.", "1.50", "Medians of five pairs.",
        "The first images", "Coat", "How it was made", "python -m launch.benchmark --quiet", "2.5 GB", "2 CPU cores",
        "0.10.2", '"repeats": 5',
    )  # fmt: skip
    places = [page.text.find(text) for text in order]
    assert -1 not in places and places == sorted(places)
    assert page.values("alt")[::3] == ["The first images 1: Coat", "The first images 4: Dress"]


def test_figures_stand_on_the_right_and_long_texts_wrap(page):
    found = [(tag, value) for tag, name, value in page.attributes if name == "class" and tag in ("th", "td")][:4]
    assert found == [("th", "number"), ("td", ""), ("td", "text"), ("td", "number")]


def test_nothing_comes_from_outside_and_nothing_runs(page):
    assert_complete(page)


def test_everything_is_escaped(vit):
    galleries = {EVIL: pictures.gallery(vit, image_sets(vit)["noise"], [EVIL] * 4)}
    text = render_tables(
        {"device": EVIL, "versions": {EVIL: EVIL}, "seconds": {EVIL: 1.0}},
        [Table(EVIL, (EVIL, EVIL), [(EVIL, EVIL)], 1, EVIL)],
        heading=EVIL, kind=EVIL, lead=EVIL, galleries=galleries, command=EVIL, config={EVIL: EVIL},
    )  # fmt: skip
    assert_harmless(text)


def test_what_is_not_there_is_left_out():
    parsed = Parsed(render_tables({}, [], **SHOWN))
    assert "table" not in parsed.tags and "img" not in parsed.tags and parsed.values("id") == []


def test_a_gallery_of_no_images_is_empty(vit):
    assert pictures.gallery(vit, np.zeros((0, *vit.image_shape), np.float32), ["Coat"]) == []
