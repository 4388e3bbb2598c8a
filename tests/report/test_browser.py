"""The pages in a real browser: no network, no errors, both schemes, keyboard, phone."""

import pytest

from tests.browser import HAVE_BROWSER, WHY_NOT
from tests.report.browser import (
    CONTRASTS,
    open_browser,
    requests,
    visit,
)
from tests.report.conftest import BOLD, SCRIPT

pytestmark = pytest.mark.skipif(not HAVE_BROWSER, reason=WHY_NOT)

PAGES = ("page", "evil", "study")

OPEN_ALL = "document.querySelectorAll('details').forEach(one => one.open = true)"

IMAGES = """
return [...document.images].map(one => ({
  loaded: one.complete && one.naturalWidth > 0,
  width: one.getBoundingClientRect().width,
  height: one.getBoundingClientRect().height,
  seen: one.checkVisibility(),
}));
"""

FOCUSED = """
const node = document.activeElement;
const outline = getComputedStyle(node);
return {
  tag: node.tagName, name: node.className, text: node.textContent.slice(0, 40),
  outlined: parseFloat(outline.outlineWidth) > 0 && outline.outlineStyle !== 'none',
  place: node.getBoundingClientRect().left,
};
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(params=PAGES)
def path(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_loads_without_a_network_and_without_a_complaint(driver, path, scheme):
    visit(driver, path, scheme=scheme)
    assert driver.get_log("browser") == []
    assert requests(driver) == [path.as_uri()]
    assert driver.title
    assert driver.execute_script("return document.documentElement.lang") == "en"
    heads = driver.execute_script(
        "return [...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])"
    )
    assert heads.count(1) == 1
    assert heads[0] == 1
    found = driver.execute_script(IMAGES)
    assert len(found) >= 2
    for image in found:
        assert image["loaded"]
        assert image["seen"]
        assert min(image["width"], image["height"]) > 40


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(driver, path, scheme):
    visit(driver, path, scheme=scheme)
    driver.execute_script(OPEN_ALL)
    found = driver.execute_script(CONTRASTS)
    assert {"td.number", "p.note", "summary.", "h2."} <= set(found)
    low = {name: ratio for name, ratio in found.items() if ratio < 4.5}
    assert not low
    back = "return getComputedStyle(document.body).backgroundColor"
    shade = driver.execute_script(back)
    assert (shade == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_no_page_is_wider_than_the_screen(driver, path, width):
    visit(driver, path, width=width)
    for _ in ("closed", "open"):
        wide = driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width
        driver.execute_script(OPEN_ALL)
    height = driver.execute_script("return document.documentElement.scrollHeight")
    assert 900 < height < 40_000


WIDTHS = """
const main = document.querySelector('main').getBoundingClientRect().width;
return [...document.querySelectorAll('figure img')]
  .filter(one => !one.closest('.beside'))
  .map(one => one.getBoundingClientRect().width / main);
"""

CONTENTS = """
const links = [...document.querySelectorAll('nav a')];
return links.filter(one => one.checkVisibility()).map(one => {
  const box = one.getBoundingClientRect();
  return box.top >= 0 && box.bottom <= innerHeight;
});
"""


def scroll(driver, to):
    driver.execute_script(f"scrollTo({{top: {to}, behavior: 'instant'}})")


def test_figures_use_the_width_of_a_wide_screen(driver, path):
    visit(driver, path)
    found = driver.execute_script(WIDTHS)
    assert len(found) >= 2
    assert min(found) >= 0.6


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_contents_stay_beside_the_text(driver, path, scheme):
    visit(driver, path, scheme=scheme)
    n_sections = len(
        driver.execute_script("return [...document.querySelectorAll('h2')]")
    )
    for place in (0, 2000, 1e6):
        scroll(driver, place)
        assert driver.execute_script(CONTENTS) == [True] * n_sections


def test_the_contents_fold_up_on_a_phone_and_stay_at_the_top(driver, path):
    from selenium.webdriver.common.by import By

    visit(driver, path, width=390)
    assert driver.execute_script(CONTENTS) == []
    scroll(driver, 2000)
    summary = driver.find_element(By.CSS_SELECTOR, "nav summary")
    place = "return arguments[0].getBoundingClientRect().top"
    assert 0 <= driver.execute_script(place, summary) < 40
    summary.click()
    links = driver.execute_script(CONTENTS)
    assert links
    assert all(links)
    # what a link leads to is not hidden behind them
    driver.find_elements(By.CSS_SELECTOR, "nav a")[1].click()
    driver.execute_script("document.querySelector('nav details').open = false")
    scroll(driver, 0)
    driver.execute_script("location.hash = ''")
    target = driver.execute_script(
        "const link = document.querySelectorAll('nav a')[1];"
        "document.documentElement.style.scrollBehavior = 'auto';"
        "location.hash = link.getAttribute('href');"
        "return document.querySelector(link.getAttribute('href'))"
        ".getBoundingClientRect().top"
    )
    bar = driver.execute_script(
        "return document.querySelector('nav').getBoundingClientRect().bottom"
    )
    assert target >= bar


def test_a_cell_of_many_words_is_wrapped(driver, study):
    visit(driver, study)
    cells = driver.execute_script(
        "return [...document.querySelectorAll('.numbers td')]"
        ".filter(one => one.textContent.length > 40)"
        ".map(one => one.getBoundingClientRect().width)"
    )
    assert cells
    assert max(cells) <= 260


def test_the_keyboard_reaches_everything_and_shows_where_it_is(driver, path):
    from selenium.webdriver.common.keys import Keys

    visit(driver, path)
    # On a wide screen the contents stand open beside the text: nothing to unfold.
    count = (
        "return [...document.querySelectorAll('summary')]"
        ".filter(one => one.checkVisibility()).length"
    )
    n_details = driver.execute_script(count)
    seen = []
    for _ in range(300):
        driver.switch_to.active_element.send_keys(Keys.TAB)
        now = driver.execute_script(FOCUSED)
        if now["tag"] == "BODY" or (seen and now["name"] == "skip"):
            break
        assert now["outlined"], now
        seen.append(now)
    assert seen[0]["name"] == "skip"
    assert seen[0]["place"] >= 0
    assert n_details >= 2
    assert [one["tag"] for one in seen].count("SUMMARY") == n_details


def test_enter_opens_the_numbers_of_a_figure(driver, page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    visit(driver, page)
    summary = driver.find_element(By.CSS_SELECTOR, "figure summary")
    table = driver.find_element(By.CSS_SELECTOR, "figure table")
    assert not table.is_displayed()
    summary.send_keys(Keys.ENTER)
    assert table.is_displayed()


def test_html_in_what_users_write_is_text_and_does_nothing(driver, evil, study):
    from selenium.common.exceptions import NoAlertPresentException

    for path, words in ((evil, (SCRIPT, BOLD)), (study, (SCRIPT, BOLD))):
        visit(driver, path)
        with pytest.raises(NoAlertPresentException):
            driver.switch_to.alert  # noqa: B018 - raises where no alert is open
        text = driver.execute_script("return document.body.innerText")
        assert all(word in text for word in words)
        tags = driver.execute_script("return document.querySelectorAll('script, b')")
        assert tags == []


def test_all_numbers_are_printed_and_in_light_colours(driver, page):
    visit(driver, page, scheme="dark")
    media = {
        "media": "print",
        "features": [{"name": "prefers-color-scheme", "value": "dark"}],
    }
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    style = "return getComputedStyle(document.body)"
    assert driver.execute_script(f"{style}.color") == "rgb(26, 26, 26)"
    sized = "document.querySelector('details table').getBoundingClientRect().height"
    assert driver.execute_script(f"return {sized}") > 50
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
