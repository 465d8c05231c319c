#!/usr/bin/env python3
"""Write docs/CONFIG.md: every config key, its default, what it may be, and its meaning.

The table of keys is in smca/config: change it there and run this again.

Examples:
    python tools/make_config_reference.py
    python tools/make_config_reference.py --check
"""

import argparse
import sys
from pathlib import Path

from smca.analysis.reference import config_reference
from smca.engine.guard import guarded

REFERENCE = Path(__file__).resolve().parent.parent / "docs/CONFIG.md"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if the file is out of date"
    )
    return parser.parse_args()


def main() -> int:
    args = parse()
    text = config_reference()
    if not args.check:
        REFERENCE.write_text(text, encoding="utf-8")
        print(REFERENCE)
    elif not REFERENCE.exists() or REFERENCE.read_text(encoding="utf-8") != text:
        print(f"{REFERENCE} is out of date: run python {sys.argv[0]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
