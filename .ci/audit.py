"""Looks for published advisories on the versions of constraints.txt, by pip-audit.

Where no advisories can be read (no network, an index without them) it says so and passes: what was
not looked up is neither sound nor unsound.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "constraints.txt"
LIMIT = 300.0  # seconds
UNKNOWN = "advisories could not be read here, so nothing was audited: "


def main() -> int:
    """The exit status: 1 where a version has a known advisory."""
    words = ["-r", str(PINS), "--no-deps", "--disable-pip", "--format", "json"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", *words],
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        rows = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError, OSError) as error:
        print(UNKNOWN + type(error).__name__)
        return 0
    asked = [row for row in rows if "skip_reason" not in row]
    if not asked:
        print(UNKNOWN + str(rows[0]["skip_reason"] if rows else "no versions"))
        return 0
    known = [(row["name"], row["version"], v) for row in asked for v in row.get("vulns", [])]
    for name, version, advisory in known:
        fixed = ", ".join(advisory.get("fix_versions", [])) or "no version yet"
        print(f"{name} {version}: {advisory['id']}, fixed in {fixed}")
    print(f"audited {len(asked)} of {len(rows)} versions: {len(known)} advisories")
    return 1 if known else 0


if __name__ == "__main__":
    sys.exit(main())
