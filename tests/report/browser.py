"""What goes wrong on a page: contrasts, requests, colour schemes and widths."""

import contextlib
import json

from tests.browser import start_chromium

CONTRASTS = """
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const rgba = text => text.match(/[\\d.]+/g).map(Number);
const behind = node => {
  for (; node; node = node.parentElement) {
    const colour = rgba(getComputedStyle(node).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
const found = {};
for (const node of document.querySelectorAll('body, body *')) {
  const own = [...node.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  if (!own || !node.checkVisibility()) continue;
  const [a, b] = [light(rgba(getComputedStyle(node).color)), light(behind(node))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const name = node.tagName.toLowerCase() + '.' + node.className;
  found[name] = Math.min(found[name] ?? 99, ratio);
}
return found;
"""


@contextlib.contextmanager
def open_browser(folder):
    """Have a browser while it is needed."""
    driver = start_chromium(folder)
    try:
        yield driver
    finally:
        driver.quit()


def visit(driver, path, *, scheme="light", width=1280):
    """Open a page in a colour scheme and a width."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    for kind in ("browser", "performance"):
        driver.get_log(kind)  # what was before
    driver.get(path.as_uri())


def requests(driver):
    """Return what the page asked for, `data:` aside."""
    logged = [
        json.loads(entry["message"])["message"]
        for entry in driver.get_log("performance")
    ]
    urls = [
        one["params"]["request"]["url"]
        for one in logged
        if one["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in urls if not url.startswith("data:")]
