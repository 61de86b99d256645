"""Report known vulnerabilities of the packages in requirements.txt; exit with 1 if there are any."""

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parent.parent / "requirements.txt"
OPTIONS = ["--disable-pip", "--require-hashes", "--format", "json", "--progress-spinner", "off", "--timeout", "10"]


def main() -> int:
    """Scan the lock file, print what was found, and return the exit code."""
    command = [sys.executable, "-m", "pip_audit", *OPTIONS, "-r", str(LOCK)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        dependencies = json.loads(ran.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (ran.stderr.strip() or "no output").splitlines()[-1]
        print(f"audit: skipped, the scanner had no data: {last[:200]}")
        return 0
    unknown = sum("skip_reason" in each for each in dependencies)
    vulnerabilities = [(each, vulnerability) for each in dependencies for vulnerability in each.get("vulns", ())]
    for each, vulnerability in vulnerabilities:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
        print(f"audit: {each['name']} {each['version']} has {vulnerability['id']}; fixed in {fixed}")
    skipped = f", skipped {unknown} that the scanner had no data about" if unknown else ""
    print(f"audit: scanned {len(dependencies) - unknown} of {len(dependencies)} packages{skipped}")
    return 1 if vulnerabilities else 0


if __name__ == "__main__":
    sys.exit(main())
