"""Every kind of page in a browser, wide and narrow, light and dark: readable, and nothing over its edge.

With FISMO_SCREENSHOTS=FOLDER the pages' pictures are kept, as those in docs/screenshots were.
"""

import os
from pathlib import Path

import pytest

from tests.end_to_end.conftest import HereCli, browser, wait_until

pytestmark = pytest.mark.slow
SHORT = ["train.threads=1", "train.epochs=null", "train.steps=12", "train.log_every=2", "evaluate.every=4"]

CONTRAST = """
const channels = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
const part = value => { value /= 255; return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4; };
const luminance = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
const ground = element => {
  for (let at = element; at; at = at.parentElement) {
    const colour = channels(getComputedStyle(at).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const low = [];
for (const element of document.querySelectorAll('body *')) {
  const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
  const style = getComputedStyle(element), box = element.getBoundingClientRect();
  if (!own || !box.width || style.visibility === 'hidden' || element.closest('style, script, .modebar')) continue;
  if (Number(style.opacity) === 0) continue;
  const svg = element instanceof SVGElement;
  const both = [channels(svg ? style.fill : style.color), ground(element)].map(luminance);
  const [a, b] = both.sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) low.push(`${ratio.toFixed(2)} ${element.textContent.trim().slice(0, 40)}`);
}
return low;
"""

COVERED = """
const over = [];
for (const plot of document.querySelectorAll('.js-plotly-plot')) {
  const legend = plot.querySelector('.legend'), points = plot.querySelector('.plot');
  if (!legend || !points) continue;
  const a = legend.getBoundingClientRect(), b = plot.querySelector('.nsewdrag, .bglayer').getBoundingClientRect();
  if (a.width && b.width && a.top < b.bottom - 1 && a.bottom > b.top + 1) over.push(plot.id);
}
return over;
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    cli = HereCli(tmp_path_factory.mktemp("pages"))
    for name, change in {"one": "train.seed=0", "two": "train.seed=1", "three": "optimizer.name=adamw"}.items():
        settings = ["digits-vit", *SHORT, "optimizer.lr=0.01", change]
        assert cli.run("train", *settings, "--name", name).code == 0
    runs = [f"runs/digits-vit/{name}" for name in ("one", "two", "three")]
    one, three = cli.run("report", runs[0], "--json").json["report"], cli.run("report", *runs, "--json").json["report"]
    assert cli.run("tune", "digits-vit", *SHORT, "--trials", "4", "--workers", "1").code == 0
    assert cli.run("compare", "digits-vit", *SHORT, "--baselines", "muon", "--seeds", "3", "--workers", "1").code == 0
    (study,), (comparison,) = cli.folder.glob("studies/*/tune.html"), cli.folder.glob("comparisons/*/report.html")
    return {"run": cli.folder / one, "three-runs": cli.folder / three, "study": study, "comparison": comparison}


def test_pages_are_readable_wide_and_narrow_light_and_dark(pages):
    kept = os.environ.get("FISMO_SCREENSHOTS")
    with browser() as driver:
        for name, page in pages.items():
            for scheme in ("light", "dark"):
                media = [{"name": "prefers-color-scheme", "value": scheme}]
                driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
                for width in (1400, 390):
                    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
                    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                    driver.get(page.as_uri())
                    drawn = "return document.querySelectorAll('.js-plotly-plot .main-svg').length > 0"
                    wait_until(lambda drawn=drawn: driver.execute_script(drawn))
                    case = f"{name}, {width} px, {scheme}"
                    sizes = "return [document.documentElement.scrollWidth, window.innerWidth]"
                    whole, seen = driver.execute_script(sizes)
                    assert whole <= seen == width, case
                    assert driver.execute_script(CONTRAST) == [], case
                    assert driver.execute_script(COVERED) == [], case
                    if kept is not None:
                        driver.save_screenshot(str(Path(kept) / f"{name}-{width}-{scheme}.png"))
