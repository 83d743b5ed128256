"""Known vulnerabilities of what constraints.txt pins. Exit status: 0 none, 1 some, 2 not all could be looked up."""

import json
import subprocess
import sys
from pathlib import Path

pins = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parents[1] / "constraints.txt")
command = [sys.executable, "-m", "pip_audit", "--requirement", pins, "--no-deps", "--disable-pip", "--format", "json"]
ran = subprocess.run([*command, "--progress-spinner", "off"], text=True, capture_output=True, check=False)
try:
    found = json.loads(ran.stdout)["dependencies"]
except ValueError:
    why = ran.stderr.strip().splitlines() or ["no word of why"]
    sys.exit(print(f"audit: its data cannot be reached from here: {why[-1][:300]}", file=sys.stderr) or 2)
vulnerable = [one for one in found if one.get("vulns")]
unknown = [one["name"] for one in found if "skip_reason" in one]
for one in vulnerable:
    for each in one["vulns"]:
        cure = ", ".join(each["fix_versions"]) or "no version yet"
        print(f"{one['name']} {one['version']}: {each['id']}, mended in {cure}")
print(f"audit: {len(found) - len(unknown)} of {len(found)} packages looked up, {len(vulnerable)} of them vulnerable")
if unknown:
    print(f"audit: the data of {len(unknown)} cannot be reached from here: {', '.join(unknown)}", file=sys.stderr)
sys.exit(1 if vulnerable else 2 if unknown else 0)
