"""The README's picture: python docs/picture.py REPORT.html PICTURE.png. The top of a report, as a browser shows it."""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, COLORS = 1400, 128

report, picture = map(Path, sys.argv[1:])
browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if browser is None:
    sys.exit("picture: needs Chromium on PATH; on Debian and Ubuntu: apt-get install chromium")
with sync_playwright() as playwright:
    chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
    page = chromium.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
    page.goto(report.resolve().as_uri())
    curves = page.locator("#curves")
    curves.scroll_into_view_if_needed()
    for chart in curves.locator(".chart").all():
        chart.locator(".main-svg").first.wait_for()
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(1000)  # until the charts have come to rest
    end = curves.bounding_box()
    shot = page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": end["y"] + end["height"]})
    chromium.close()
image = Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
image.save(picture, optimize=True)
print(f"{picture}: {image.width} x {image.height}, {picture.stat().st_size / 1000:.0f} kB")
