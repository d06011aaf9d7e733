"""Makes the pictures of the report page: python docs/screenshots.py PAGE.html, with Chromium installed."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

_HERE = Path(__file__).parent
_SIZES = {"desktop": (1280, 1500, 1), "phone": (390, 1000, 2)}  # width, height, pixels per point


def main(page: Path) -> None:
    """Opens the page in a headless browser as wide as a desktop and as a phone."""
    browser = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if browser is None:
        raise SystemExit("no Chromium: apt-get install chromium")
    for name, (width, height, scale) in _SIZES.items():
        with tempfile.TemporaryDirectory() as profile:
            target = _HERE / f"report_{name}.png"
            # A window narrower than 500 cannot be asked for: a frame of the right width is shown in a wider one.
            frame = Path(profile) / "frame.html"
            style = f"border:0;width:{width}px;height:{height}px"
            frame.write_text(
                f'<body style="margin:0"><iframe src="{page.resolve().as_uri()}" style="{style}"></iframe>'
            )
            options = [
                *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"),
                *(f"--window-size={max(width, 500)},{height}", f"--force-device-scale-factor={scale}"),
                *(f"--user-data-dir={profile}", f"--screenshot={target}"),
            ]
            command = [browser, *options, frame.as_uri()]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            image = Image.open(target).crop((0, 0, width * scale, height * scale))
            image.quantize(128).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
