"""The page as a person uses it, in Chromium."""

from __future__ import annotations

import json

import numpy as np
import pytest
from served import NAMES, ColourModel, Server, picture

from paddlevit.calibration import Calibration
from paddlevit.serve.app import create_app
from paddlevit.serve.uploads import Limits

# What a drop or a paste is, with the bytes of a file; the page sees no difference to a real one.
DELIVER = """(async () => {
  const data = new DataTransfer(), bytes = Uint8Array.from(%s);
  data.items.add(new File([bytes], %s, { type: "image/png" }));
  const event = %s;
  document.body.dispatchEvent(event);
  return event.defaultPrevented;
})()"""
DROP = 'new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })'
PASTE = 'new ClipboardEvent("paste", { clipboardData: data, bubbles: true })'


@pytest.fixture(scope="module")
def model():
    return ColourModel()


@pytest.fixture(scope="module")
def server(model):
    with Server(create_app(model, NAMES, limits=Limits(max_bytes=2**20))) as server:
        yield server


@pytest.fixture
def page(chromium, server):
    chromium.errors.clear()
    chromium.open("about:blank")
    chromium.open(f"{server.url}/")
    chromium.until("document.getElementById('about').textContent")
    return chromium


def text(page, name):
    return page.value(f"document.getElementById('{name}').innerText")


def visible(page, name):
    return page.value(f"document.getElementById('{name}').offsetParent !== null")


def answered(page):
    page.until("!document.getElementById('result').hidden || !document.getElementById('error').hidden")


def deliver(page, name, data, event):
    page.value(DELIVER % (json.dumps(list(data)), json.dumps(name), event))
    answered(page)


def test_an_image_of_none_of_the_classes(page, model, monkeypatch):
    monkeypatch.setattr(model, "calibration", Calibration(max_energy=-9.0, num_images=9))
    deliver(page, "grey.png", picture((99, 90, 90)), DROP)
    assert text(page, "status").startswith("None of these classes; the closest: red – ")


def test_chosen_image(page, server, tmp_path):
    assert text(page, "about") == "colours: 3 classes: red, green, blue"
    assert "up to 1 MiB" in text(page, "limits") and f"{server.url}/predict" in text(page, "command")
    assert not visible(page, "result") and not visible(page, "error")
    file = tmp_path / "sunset <b>.jpg"
    file.write_bytes(picture((240, 90, 30), size=(300, 200), kind="JPEG"))
    page.choose("#file", file)
    answered(page)
    told = server.predict(file.read_bytes()).content["classes"]
    percent = [f"{100 * c['probability']:.1f} %" for c in told]
    assert text(page, "status") == f"red – {percent[0]}"
    rows = [row.split("\n") for row in text(page, "classes").split("\n\n")]
    assert [cell for row in rows for cell in row if cell] == [x for c, p in zip(told, percent) for x in (c["name"], p)]
    widths = page.value("[...document.querySelectorAll('.bar')].map(b => b.offsetWidth / b.parentNode.offsetWidth)")
    assert widths == pytest.approx([c["probability"] for c in told], abs=0.01)
    assert page.value("document.getElementById('image').naturalWidth") == 300
    assert page.value("document.getElementById('overlay').naturalWidth") == 8
    assert (
        text(page, "caption") == "sunset <b>.jpg"
        and text(page, "where") == "Bright: what speaks for “red”. Dark margins: not seen."
    )
    assert page.errors == [], "neither a mistake in the script nor anything that the policy forbids"


@pytest.mark.parametrize("event", [DROP, PASTE])
def test_dropped_and_pasted_images_one_after_the_other(page, event):
    deliver(page, "first.png", picture((20, 20, 240)), event)
    assert text(page, "status").startswith("blue")
    deliver(page, "second.png", picture((20, 240, 20)), event)
    page.until("document.getElementById('caption').innerText == 'second.png'")
    assert text(page, "status").startswith("green")


def test_mistakes_are_told_and_the_next_image_goes_on(page, tmp_path):
    deliver(page, "notes.png", b"no image", DROP)
    assert text(page, "error") == "notes.png: not an image, or a damaged one, allowed: JPEG, PNG"
    assert page.value("document.getElementById('error').getAttribute('role')") == "alert"
    large = tmp_path / "large.jpg"
    large.write_bytes(bytes(3 * 2**20))
    page.choose("#file", large)
    page.until("document.getElementById('error').innerText.includes('large.jpg')")
    assert text(page, "error") == "large.jpg: the file has 3 MiB, allowed: 1 MiB"
    deliver(page, "good.png", picture(), DROP)
    page.until("!document.getElementById('result').hidden")
    assert not visible(page, "error") and text(page, "status").startswith("red")


def test_a_photograph_that_is_too_large_is_scaled_down_in_the_browser(chromium, model, tmp_path):
    photo = tmp_path / "phone.jpg"
    photo.write_bytes(picture((240, 90, 30), size=(4000, 1000), kind="JPEG") + bytes(2 * 2**20))
    with Server(create_app(model, NAMES, limits=Limits(max_bytes=2**20, max_pixels=2048 * 512))) as server:
        assert server.predict(photo.read_bytes()).status == 413
        chromium.open(f"{server.url}/")
        chromium.choose("#file", photo)
        answered(chromium)
        assert text(chromium, "status").startswith("red") and not visible(chromium, "error")


def test_model_that_explains_nothing_and_server_that_is_gone(chromium, tmp_path):
    model = ColourModel()
    model.explains = False
    with Server(create_app(model, NAMES)) as server:
        chromium.open(f"{server.url}/")
        deliver(chromium, "one.png", picture(), DROP)
        assert visible(chromium, "image") and not visible(chromium, "seen")
    chromium.value(DELIVER % (json.dumps(list(picture())), '"two.png"', DROP))
    chromium.until("!document.getElementById('error').hidden")
    assert text(chromium, "error") == "two.png: the server cannot be reached"


def test_busy_server_that_has_no_time_for_overlays(chromium, model):
    with Server(create_app(model, NAMES, limits=Limits(max_overlays=0))) as server:
        chromium.open(f"{server.url}/")
        deliver(chromium, "one.png", picture(), DROP)
        assert text(chromium, "status").startswith("red") and not visible(chromium, "seen")
        assert text(chromium, "caption") == "one.png (too busy to show where it was seen: try again)"


def test_keyboard_and_narrow_dark_page(page, server):
    page.send("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert page.value("document.activeElement.id") == "file"
    assert page.value("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
    page.open(f"{server.url}/?narrow", width=360, dark=True)
    deliver(page, f"{'long' * 40}.png", picture(), DROP)
    assert page.value("document.documentElement.scrollWidth") <= 360
    assert _luminance(page, "backgroundColor") < 40 < 200 < _luminance(page, "color")


def _luminance(page, what):
    colour = page.value(f"getComputedStyle(document.body).{what}")
    return np.mean([int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]])
