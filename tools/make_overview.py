"""Make docs/overview.png, the README's picture: the pipeline, and a finished run's report, through headless Chromium.

python tools/make_overview.py runs/digits
"""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; padding: 28px; background: #f4f4f1; font: 15px/1.45 "DejaVu Sans", sans-serif; color: #1b1b1f; display: flex; gap: 28px }}
.left {{ width: 380px }} h1 {{ font-size: 21px; margin: 0 0 14px }}
.step {{ background: #fff; border: 1px solid #dcdcd6; border-radius: 8px; padding: 9px 14px; margin: 0 0 20px; position: relative }}
.step b {{ display: block }} .step span {{ color: #5a5a63; font-size: 13px }}
.step:not(:last-child)::after {{ content: "▼"; position: absolute; left: 178px; bottom: -20px; color: #9a9aa3; font-size: 12px }}
.in {{ background: #e8f0fb }} .out {{ background: #e5f4ec }}
.right {{ width: 640px; height: 706px; overflow: hidden; border: 1px solid #dcdcd6; border-radius: 8px; background: #fff }}
.right img {{ width: 640px }}
</style>
<div class="left"><h1>edgekd compress recipe.yaml</h1>
<div class="step in"><b>teacher + data + devices</b><span>timm, transformers, your own PyTorch · pictures, parquet, hub</span></div>
<div class="step"><b>distill</b><span>logits, features, labels · teacher cached · resumes exactly</span></div>
<div class="step"><b>quantize</b><span>every variant the devices can use, beside an fp32 control</span></div>
<div class="step"><b>export</b><span>preprocessing inside the graph · I/O contract · check.py</span></div>
<div class="step"><b>verify: the gate</b><span>accuracy through every stage, on the runtime itself</span></div>
<div class="step"><b>bench: the clock</b><span>alternating blocks, intervals, a plain verdict</span></div>
<div class="step out"><b>for every device: what to ship, and why</b><span>one report, one manifest, files that prove themselves</span></div></div>
<div class="right"><img src="data:image/png;base64,{report}"></div>"""


def shot(page: Path, picture: Path, width: int, height: int) -> None:
    """Take a picture of a page."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("needs Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--hide-scrollbars",
            "--force-device-scale-factor=1",
        ]
        quiet = ["--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
        place = [
            f"--user-data-dir={profile}",
            f"--screenshot={picture}",
            f"--window-size={width},{height}",
            page.resolve().as_uri(),
        ]
        subprocess.run([browser, *flags, *quiet, *place], check=True, capture_output=True)


def main() -> None:
    """Take the report's picture, put it beside the pipeline, take that one's."""
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits")
    with tempfile.TemporaryDirectory() as folder:
        report, page = Path(folder) / "report.png", Path(folder) / "page.html"
        shot(run / "report.html", report, 900, 1000)
        page.write_text(PAGE.format(report=base64.b64encode(report.read_bytes()).decode()), encoding="utf-8")
        Path("docs").mkdir(exist_ok=True)
        shot(page, Path("docs/overview.png").resolve(), 1105, 764)


if __name__ == "__main__":
    main()
