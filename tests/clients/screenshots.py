# ruff: noqa: RUF001  the Chinese page has Chinese punctuation
"""Take the screenshots of docs/: `make screenshots`, or `.venv/bin/python tests/clients/screenshots.py [folder]`.

The Chinese page needs a font with Chinese characters (Debian: fonts-noto-cjk).
"""

import base64
import re
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))

import upstream as wire  # noqa: E402
from chromium import start_chromium  # noqa: E402
from fork_server import close_fork_servers  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402
from server import Rill, rill_env  # noqa: E402

PROMPT = "How does a rill form? Include a table and some code."
ANSWER = """## How a rill forms

A **rill** is a *very small stream*, usually the first one on a bare slope.

1. Rain falls faster than the soil can take it in.
2. Water runs downhill as a thin sheet.
   - It follows the smallest hollows.
   - It cuts them deeper with every storm.
3. The hollows become *rills*, then gullies.

| Channel | Typical width | Seasonal |
|---|--:|:-:|
| Rill | 5 cm | yes |
| Brook | 1 m | sometimes |
| River | 50 m | no |

The cross-section is roughly `width * depth`:

```python
def flow(width: float, depth: float, speed: float) -> float:
    \"""Return the flow in cubic metres per second, from width and depth in metres and speed in m/s.\"""
    return width * depth * speed
```

> Small streams unite to form rivers.

See [Wikipedia](https://en.wikipedia.org/wiki/Rill).
"""
CHINESE_PROMPT = "细流是怎样形成的？请用表格和代码说明。"
CHINESE_ANSWER = """## 细流的形成

**细流**是*非常小的水流*，通常最先出现在裸露的坡面上。

1. 雨水下得比土壤吸收得快。
2. 水以薄层的形式顺坡流下。
   - 它沿着最小的凹地流动。
   - 每场暴雨都把凹地切得更深。

| 水道 | 典型宽度 | 季节性 |
|---|--:|:-:|
| 细流 | 5 厘米 | 是 |
| 小溪 | 1 米 | 有时 |

横截面大约是 `宽 * 深`：

```python
def flow(width: float, depth: float, speed: float) -> float:
    return width * depth * speed
```
"""
WORD = re.compile(r"\s*\S{1,8}|\s+$")
# Name: width, height, scheme, language.
SHOTS = {
    "page": (1280, 800, "light", "en"),
    "page-dark": (1280, 800, "dark", "en"),
    "page-phone-light": (390, 844, "light", "en"),
    "page-phone": (390, 844, "dark", "en"),
    "page-zh-CN": (1280, 800, "light", "zh-CN"),
    "page-zh-CN-phone": (390, 844, "dark", "zh-CN"),
}


def main(folder: Path) -> None:
    with wire.Upstream() as upstream, start_chromium() as browser, Rill(rill_env(upstream)) as rill:
        agent = browser.execute_script("return navigator.userAgent")
        for name, (width, height, scheme, language) in SHOTS.items():
            touch = width < 1000
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
            scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
            for command, values in {
                "setDeviceMetricsOverride": metrics,
                "setTouchEmulationEnabled": {"enabled": touch, "maxTouchPoints": 5},
                "setEmulatedMedia": {"features": [scheme_feature]},
                "setUserAgentOverride": {"userAgent": agent, "acceptLanguage": language},
            }.items():
                browser.execute_cdp_cmd(f"Emulation.{command}", values)
            browser.get(rill.url)
            browser.execute_script("sessionStorage.clear(); localStorage.clear()")
            browser.get("about:blank")
            browser.get(rill.url)
            is_chinese = language == "zh-CN"
            text = CHINESE_ANSWER if is_chinese else ANSWER
            steps = [step for word in WORD.findall(text) for step in (wire.send(wire.text(word)), wire.pause(0.005))]
            end = wire.send(wire.block_stop() + wire.stop(output_tokens=len(steps) // 2))
            upstream.script(wire.head(), wire.send(wire.opening()), *steps, end, wire.end())
            browser.find_element("id", "prompt").send_keys(CHINESE_PROMPT if is_chinese else PROMPT)
            browser.find_element("id", "send").click()
            ended = (
                "return !!document.querySelector('.outcome')?.textContent && !!document.querySelector('#model').value"
            )
            WebDriverWait(browser, 20).until(lambda driver, ended=ended: driver.execute_script(ended))
            browser.execute_async_script("setTimeout(arguments[0], 300)")
            shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
            (folder / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))
    close_fork_servers()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TESTS.parent / "docs")
