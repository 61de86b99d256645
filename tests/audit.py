"""Known holes in what requirements.txt pins: exit code 1 where there are any, a word where nobody could be asked."""

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parent.parent / "requirements.txt"
OPTIONS = ["--disable-pip", "--require-hashes", "--format", "json", "--progress-spinner", "off", "--timeout", "10"]


def main() -> int:
    """Scan the lock, and say what was found."""
    command = [sys.executable, "-m", "pip_audit", *OPTIONS, "-r", str(LOCK)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        dependencies = json.loads(ran.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (ran.stderr.strip() or "it said nothing").splitlines()[-1]
        print(f"audit: skipped, the scanner had no data: {last[:200]}")
        return 0
    unknown = sum("skip_reason" in each for each in dependencies)
    holes = [(each, hole) for each in dependencies for hole in each.get("vulns", ())]
    for each, hole in holes:
        fixed = ", ".join(hole["fix_versions"]) or "no version yet"
        print(f"audit: {each['name']} {each['version']} has {hole['id']}; fixed in {fixed}")
    skipped = f", skipped {unknown} that the scanner had no data of" if unknown else ""
    print(f"audit: scanned {len(dependencies) - unknown} of {len(dependencies)} packages{skipped}")
    return 1 if holes else 0


if __name__ == "__main__":
    sys.exit(main())
