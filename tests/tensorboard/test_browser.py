"""What a person sees: TensorBoard itself, in a headless browser, over a log directory of ours."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import numpy as np
import pytest

import torchlimits as tl

webdriver = pytest.importorskip("selenium.webdriver")
common = pytest.importorskip("selenium.common")

TIME, STEPS = 4.0, 240  # limit time at the end of training, and in steps
SWITCHES = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1500,1600",
]
PATIENCE = 60  # seconds, for a machine that is busy with something else
RUNS = ["corrector/measured", "corrector/predicted", "flow/measured", "flow/predicted"]

# every element that matches, in the order of the page; "a >>> b": b below a, in shadow roots too
FIND = """
const walk = (node, selector, found) => {
  if (node.matches && node.matches(selector)) found.push(node);
  if (node.shadowRoot) walk(node.shadowRoot, selector, found);
  for (const child of node.children) walk(child, selector, found);
  return found;
};
return arguments[0].split(" >>> ").reduce(
  (roots, selector) => roots.flatMap(root => walk(root, selector, [])),
  [arguments[1] || document.documentElement]);
"""


@pytest.fixture(scope="module")
def paths():
    """One training and two predictions of it: with a band, and gradient flow without one."""
    problem = tl.GaussianMixture.binary(dim=60, width=2, snr=2.0, ridge=0.05)
    measured = tl.train(problem, step_size=1.0, time=TIME, runs=1, progress=False)
    dynamics = problem.dynamics(step_size=1.0)
    predicted = dynamics.solve(measured.initial, measured.times, band=True)
    flow = dynamics.solve(measured.initial, measured.times, corrector=False)
    return measured, predicted, flow


@pytest.fixture(scope="module")
def logdir(paths, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    measured, predicted, flow = paths
    tl.tensorboard.write(folder / "corrector", measured=measured, predicted=predicted)
    tl.tensorboard.write(folder / "flow", measured=measured, predicted=flow)
    return folder


@pytest.fixture(scope="module")
def server(logdir, tmp_path_factory):
    """The address of a TensorBoard that has read the log directory."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logdir, "--port", port]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*map(str, command), "--host", "localhost"], stdout=output, stderr=output
        )
    address, deadline = f"http://localhost:{port}", time.monotonic() + PATIENCE
    try:
        while not ready(address):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def ready(address):
    with contextlib.suppress(OSError):
        layout = fetch(address, "custom_scalars/layout")
        return len(fetch(address, "scalars/tags")) == len(RUNS) and "category" in layout
    return False


def fetch(address, path, **query):
    url = f"{address}/data/plugin/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def browser():
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for switch in SWITCHES:
        options.add_argument(switch)
    service = webdriver.ChromeService(driver)
    with webdriver.Chrome(options=options, service=service) as driver:
        driver.set_script_timeout(PATIENCE)
        driver.set_page_load_timeout(PATIENCE)
        yield driver


class Page:
    """One dashboard; what is asked of it is asked again until it is as expected."""

    def __init__(self, browser, server, dashboard):
        self.browser = browser
        # a query of its own, as another fragment alone would not load the page anew
        browser.get(f"{server}/?smoothing=0&for={dashboard}#{dashboard}&_smoothingWeight=0")

    def until(self, expected, ask):
        """Wait until it is so; the assertion shows what is there instead."""
        deadline, found = time.monotonic() + PATIENCE, None
        while found != expected and time.monotonic() < deadline:
            # an element may not be there yet, or be redrawn while it is looked at
            with contextlib.suppress(common.WebDriverException, IndexError):
                found = ask()
            time.sleep(0.1)
        assert found == expected

    def click(self, selector, number=0):
        """Click on the element as soon as it is there."""

        def done():
            self.all(selector)[number].click()
            return True

        self.until(True, done)

    def all(self, selector, within=None):
        return self.browser.execute_script(FIND, selector, within)

    def texts(self, selector, within=None):
        contents = "return arguments[0].map(element => element.textContent)"
        found = self.browser.execute_script(contents, self.all(selector, within))
        return [" ".join(text.split()) for text in found]

    def attributes(self, name, selector, within=None):
        values = "return arguments[0].map(element => element.getAttribute(arguments[1]))"
        return self.browser.execute_script(values, self.all(selector, within), name)


@pytest.fixture
def page(browser, server):
    return lambda dashboard: Page(browser, server, dashboard)


@pytest.fixture(scope="module")
def charts(browser, server):
    """The custom scalars dashboard, with all of each curve in view."""
    page = Page(browser, server, "custom_scalars")
    # each experiment has categories of its own, and no chart of the other one's runs
    titles = [
        f"{one}: {family}" for one in ("corrector", "flow") for family in ("v 2", "m 2", "R 3")
    ]
    page.until(titles, lambda: [t.split("/")[-1] for t in page.texts("button.heading")])
    page.until(True, lambda: page.all("paper-checkbox")[1].is_displayed())
    assert page.texts("paper-checkbox")[1] == "Ignore outliers in chart scaling"
    page.click("paper-checkbox", 1)
    return page


def points(path):
    """(n, 2) pixels of an SVG path."""
    return np.array(re.findall(r"-?[0-9.]+(?:e-?[0-9]+)?", path), dtype=float).reshape(-1, 2)


def ticks(page, card):
    """Numbers at the horizontal axis of a chart."""
    labels = page.texts(".x-axis text", page.all(card)[0])
    return [float(label) for label in labels if re.fullmatch(r"-?[0-9.]+", label)]


BANDS, LINES = "tf-custom-scalar-margin-chart-card", "tf-custom-scalar-multi-line-chart-card"


# --- custom scalars ------------------------------------------------------------------------------


def test_the_run_selector_has_nothing_but_measured_and_predicted(charts, server):
    with urllib.request.urlopen(f"{server}/data/runs") as answer:
        assert sorted(json.load(answer)) == RUNS
    charts.until(RUNS, lambda: charts.texts(".name-row .item-label-container"))


def test_charts_are_in_the_order_of_the_statistics(charts):
    def names():
        cards = charts.all(f"{BANDS}, {LINES}")
        return [charts.texts(".heading-row .name", card)[0] for card in cards]

    bands = ["v[0]", "v[1]", "m[0,0]", "m[1,0]", "R[0,0]", "R[0,1]", "R[1,1]"]
    charts.until(bands * 2, names)


@pytest.mark.parametrize("number", range(7))
def test_measured_lies_over_predicted_and_its_band(number, charts, paths):
    """Pixels of the curves and of the band's edges are one affine image of the numbers."""
    measured, predicted, _ = paths
    rows = 2 * len(measured)

    def sizes():
        card = charts.all(BANDS)[number]
        return [len(points(path)) for path in charts.attributes("d", "path.area", card)]

    charts.until([rows, rows], sizes)
    card = charts.all(BANDS)[number]
    areas = [points(path) for path in charts.attributes("d", "path.area", card)]
    assert len(set(charts.attributes("fill", "path.area", card))) == 2
    edges = [(area[: rows // 2], area[: rows // 2 - 1 : -1]) for area in areas]
    exact, band = sorted(edges, key=lambda edge: np.abs(edge[0] - edge[1]).max())
    truth = [measured.values[0, :, number], predicted.values[0, :, number]]
    half = 1.96 * predicted.std[0, :, number]
    values = np.stack([truth[0], truth[0], truth[1] + half, truth[1] - half])
    pixels = np.stack([*exact, *band])
    for numbers, place in ((np.tile(measured.steps, (4, 1)), 0), (values, 1)):
        scale = np.polyfit(numbers.ravel(), pixels[..., place].ravel(), 1)
        np.testing.assert_allclose(np.polyval(scale, numbers), pixels[..., place], atol=0.05)
    assert np.ptp(pixels[2:, :, 1]) > 50
    # each curve itself, in its own colour
    charts.until(2, lambda: len(set(charts.attributes("stroke", "path.line[stroke]", card))))


def test_without_a_band_each_statistic_has_a_chart_of_its_experiments_runs(charts):
    def lines(number):
        card = charts.all(LINES)[number]
        return [len(points(path)) for path in charts.attributes("d", "path.line[stroke]", card)]

    for number in range(7):
        charts.until([STEPS + 1] * 2, lambda n=number: lines(n))
        card = charts.all(LINES)[number]
        colours = charts.attributes("stroke", "path.line[stroke]", card)
        # the third and the fourth run of the log directory: TensorBoard's colours go by the place
        assert sorted(colours) == ["#33bbee", "#cc3311"]


@pytest.mark.parametrize("card", [BANDS, LINES])
def test_the_axis_is_the_step_or_limit_time(card, charts):
    for axis, end in (("relative", TIME), ("step", STEPS)):
        charts.click(f"paper-button#{axis}")
        charts.until(True, lambda end=end: end <= max(ticks(charts, card), default=0) <= 1.5 * end)
    charts.click("paper-button#wall_time")
    charts.until([], lambda: ticks(charts, card))
    charts.click("paper-button#step")


# --- the other dashboards ------------------------------------------------------------------------


def test_time_series_are_grouped_and_bands_come_last(page):
    page = page("timeseries")
    groups = ["R", "m", "torchlimits", "v", "± band", "· Custom Scalars"]
    page.until(groups, lambda: page.texts(".card-group .group-title"))
    cards = ["R/0/0", "R/0/1", "R/1/1", "m/0/0", "m/1/0"]
    page.until(cards, lambda: page.texts("scalar-card .tag"))
    page.until(
        RUNS, lambda: page.texts("runs-data-table tb-data-table-content-cell.table-column-run")
    )
    table = "scalar-card tb-data-table-content-cell"
    page.until(True, lambda: {f"{STEPS}", f"{TIME:g} hr"} <= set(page.texts(table)))


def test_scalars_are_grouped_and_bands_come_last(page):
    page = page("scalars")
    groups = ["R", "m", "torchlimits", "v", "± band", "· Custom Scalars"]
    page.until(groups, lambda: page.texts("button.heading .category-name"))
    page.until("R/0/0", lambda: page.texts("tf-scalar-card >>> .heading-row .name")[0])
    page.until(
        [0.0],
        lambda: [
            float(e.get_property("value")) for e in page.all("tf-smoothing-input >>> paper-input")
        ],
    )


def test_images_show_all_statistics_and_each_panel_large_enough_to_be_read(page):
    page = page("images")
    width = "return arguments[0].map(image => image.naturalWidth)"
    seen = lambda: page.browser.execute_script(width, page.all("tf-image-loader >>> img"))  # noqa: E731
    # the whole of each experiment, and its panels v, m and R on and off the diagonal
    page.until(True, lambda: len(seen()) == 2 * (1 + 4) and min(seen()) > 400)


def test_text_says_how_to_read_the_charts(page):
    page = page("text")
    page.until(["Measured and predicted"] * 2, lambda: page.texts("tf-markdown-view >>> h2"))
    cells = page.texts("tf-markdown-view >>> td")
    assert {"R[0,0]", "step_size", "1.0", "snr", "2.0"} <= {*cells}
    assert any("Proposition" in text for text in page.texts("tf-markdown-view >>> p"))
    page.click("tf-markdown-view >>> a")
    page.until(7, lambda: len(page.all(BANDS)))


def test_hparams_compare_experiments(page):
    page = page("hparams")
    # what differs comes first
    head = ["Trial ID", "Show Metrics", "corrector", "batch_size", "components", "dampening", "dim"]
    cells = "tf-hparams-table-view >>> vaadin-grid-cell-content"
    page.until(head, lambda: page.texts(cells)[: len(head)])

    def rows():
        texts = page.texts(cells)
        names = [
            i for i, text in enumerate(texts) if re.fullmatch(r"(corrector|flow) \(\w{6}\)", text)
        ]
        return {texts[i].split()[0]: texts[i + 2] for i in names}

    page.until({"corrector": "true", "flow": "false"}, rows)
    boxes = "tf-hparams-query-pane >>> .hparam-checkbox"
    assert not {"fused", "foreach", "differentiable"} & set(page.texts(boxes))
    assert {"snr", "step_size", "momentum"} <= set(page.texts(boxes))
