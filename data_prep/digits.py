"""scikit-learn's digits: ``python -m data_prep.digits`` only verifies that they are as expected."""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep import is_current
from data_prep.command import run_command
from data_prep.reading.digits import digits_split
from data_prep.reading.root import data_root
from data_prep.storage import exclusive, say, storage_errors, write_manifest

NAME = "digits"


def prepare(root: Path | None = None) -> Path:
    """Verify the digits, and leave a manifest without files for the pipeline.

    Raises:
        PrepareError: nothing can be written.
        DataError: the installed scikit-learn brings other images.
    """
    root = root or data_root()
    digits_split("test")
    if not is_current(NAME, root):
        with storage_errors(root), exclusive(root, NAME) as folder:
            write_manifest(folder, [])
    say(f"{NAME}: verified, they come with scikit-learn")
    return root / NAME


if __name__ == "__main__":
    sys.exit(run_command(NAME, prepare))
