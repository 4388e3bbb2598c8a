"""A headless Chromium without a network, for every test that looks at a page."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
HAVE_BROWSER = bool(CHROMIUM and DRIVER and importlib.util.find_spec("selenium"))
WHY_NOT = "needs chromium, chromedriver and selenium: apt-get install chromium-driver"

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--enable-unsafe-swiftshader",
    "--window-size=1000,1600",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


def start_chromium(profile: Path) -> Any:
    """Start a browser with a profile of its own, its network switched off."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    logged = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logged)
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    driver.execute_cdp_cmd("Network.enable", {})
    nothing = {"latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions", {"offline": True, **nothing}
    )
    return driver
